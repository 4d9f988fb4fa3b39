"""Slices: permits in hand, drawn without asking."""

from __future__ import annotations

from ratekeeper.ledger.limit import SECOND, Charge, Instant, Limit
from ratekeeper.stores.redis.slices import OPEN, Slice, Slices

CHARGES = (Charge("shop/weight/ip:a", Limit("weight", "weight", 100, 60 * SECOND), 2),)
ME = (7, 2)


def at(mono: int) -> Instant:
    """An instant."""
    return Instant(mono, mono, mono)


def whole(permits: int, until: int = OPEN) -> Slice:
    """A slice of so many permits."""
    return Slice("0" * 16, "shop", CHARGES, [0], (0, 0, 0), ME, 60 * SECOND, permits, until, 1)


def test_permits_are_drawn_until_there_are_none() -> None:
    """Each once."""
    slices = Slices()
    slices.keep(whole(3))
    got = [slices.draw(CHARGES, ME, at(1), 1, number) for number in range(4)]
    assert [part is not None for part in got] == [True, True, True, False]


def test_nothing_is_drawn_after_its_time_or_after_news() -> None:
    """A slice closes by itself, and when a block or a limit changed; what is left is handed back once."""
    for now, generation in ((OPEN, 1), (1, 2)):
        slices = Slices()
        kept = whole(3)
        slices.keep(kept)
        assert slices.draw(CHARGES, ME, at(now), generation, 1) is None
        assert slices.closed(now, generation) == [(kept, 3)]
        assert slices.closed(now, generation) == []


def test_a_slice_is_for_one_plan_and_one_member() -> None:
    """Equal charges of another plan, or another class, draw nothing."""
    slices = Slices()
    slices.keep(whole(3))
    assert slices.draw((CHARGES[0],), ME, at(1), 1, 1) is None
    assert slices.draw(CHARGES, (7, 3), at(1), 1, 1) is None


def test_slices_grow_while_one_follows_another() -> None:
    """None for a call now and then; doubling in a rush, also where a round trip takes longer than a slice is open."""
    for took in (0, 3 * OPEN):
        slices, mono = Slices(), SECOND
        sizes = []
        for _ in range(12):
            sizes.append(slices.size(CHARGES, ME, mono, took))
            mono += took + OPEN // 2
        assert sizes[:5] == [0, 2, 4, 8, 16]
        assert sizes[-1] == 256
        assert slices.size(CHARGES, ME, mono + 10 * SECOND, took) == 0


def test_a_slice_that_was_not_used_halves_the_next() -> None:
    """What comes back unused was too much."""
    slices, mono = Slices(), SECOND
    for _ in range(6):
        size = slices.size(CHARGES, ME, mono)
        mono += 1
    slices.keep(whole(size, mono))
    slices.closed(mono, 1)
    assert slices.size(CHARGES, ME, mono) == size


def test_calls_that_charge_nothing_have_no_slices() -> None:
    """All their plans have the same empty charges, and a block may hold one of them."""
    slices = Slices()
    assert [slices.size(CHARGES, ME, at, 0) for at in (1, 2, 3)] == [2, 4, 8]
    assert {slices.size((), ME, at, 0) for at in (1, 2, 3)} == {0}
