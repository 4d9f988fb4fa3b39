"""Permit batches: permits in hand, drawn without asking."""

from __future__ import annotations

from ratekeeper.ledger.limit import SECOND, Charge, Instant, Limit
from ratekeeper.stores.batching import Batch, Batches
from ratekeeper.stores.records import Grant

CHARGES = (Charge("shop/weight/ip:a", Limit("weight", "weight", 100, 60 * SECOND), 2),)
ME = (7, 2)
OPEN = SECOND // 20


def made() -> Batches[Batch]:
    """Nothing open yet."""
    return Batches(OPEN, 256)


def whole(permits: int, until: int = OPEN) -> Batch:
    """A batch of so many permits."""
    return Batch(CHARGES, Grant(0, "shop", CHARGES, [0], Instant(0, 0, 0), ME, 60 * SECOND), permits, until, 1)


def test_permits_are_drawn_until_there_are_none() -> None:
    """Each once."""
    batches = made()
    batches.keep(whole(3))
    got = [batches.draw(CHARGES, ME, 1, 1) for _ in range(4)]
    assert [batch is not None for batch in got] == [True, True, True, False]


def test_nothing_is_drawn_after_its_time_or_after_news() -> None:
    """A batch closes by itself, and when a block or a limit changed; what is left is handed back once."""
    for now, generation in ((OPEN, 1), (1, 2)):
        batches = made()
        kept = whole(3)
        batches.keep(kept)
        assert batches.draw(CHARGES, ME, now, generation) is None
        assert batches.close(now, generation) == [(kept, 3)]
        assert batches.close(now, generation) == []


def test_a_batch_is_for_one_plan_and_one_member() -> None:
    """Equal charges of another plan, or another class, draw nothing."""
    batches = made()
    batches.keep(whole(3))
    assert batches.draw((CHARGES[0],), ME, 1, 1) is None
    assert batches.draw(CHARGES, (7, 3), 1, 1) is None


def test_batches_grow_while_one_follows_another() -> None:
    """None for a call now and then; doubling in a rush, also where a round trip takes longer than a batch is open."""
    for took in (0, 3 * OPEN):
        batches, mono = made(), SECOND
        sizes = []
        for _ in range(12):
            sizes.append(batches.size(CHARGES, ME, mono, took))
            mono += took + OPEN // 2
        assert sizes[:5] == [0, 2, 4, 8, 16]
        assert sizes[-1] == 256
        assert batches.size(CHARGES, ME, mono + 10 * SECOND, took) == 0


def test_a_batch_that_was_not_used_halves_the_next() -> None:
    """What comes back unused was too much."""
    batches, mono = made(), SECOND
    for _ in range(6):
        size = batches.size(CHARGES, ME, mono)
        mono += 1
    batches.keep(whole(size, mono))
    batches.close(mono, 1)
    assert batches.size(CHARGES, ME, mono) == size


def test_a_batch_that_another_replaced_comes_back() -> None:
    """With the permits that nobody drew of it; the new one goes on."""
    batches = made()
    old, new = whole(3), whole(4)
    batches.keep(old)
    batches.draw(CHARGES, ME, 1, 1)
    batches.keep(new)
    assert batches.close(1, 1) == [(old, 2)]
    assert batches.draw(CHARGES, ME, 1, 1) is new


def test_calls_that_charge_nothing_have_no_batches() -> None:
    """All their plans have the same empty charges, and a block may hold one of them."""
    batches = made()
    assert [batches.size(CHARGES, ME, at, 0) for at in (1, 2, 3)] == [2, 4, 8]
    assert {batches.size((), ME, at, 0) for at in (1, 2, 3)} == {0}
