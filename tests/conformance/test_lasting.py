"""What a store that outlives its processes must do besides: all of a transaction or nothing, and nothing lost between two."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.notes import noted, write

from ratekeeper.ledger.decide import Refusal
from ratekeeper.ledger.limit import SECOND, Charge, Instant, Limit, Window
from ratekeeper.stores.base import Store
from ratekeeper.stores.host import HostStore
from ratekeeper.stores.records import Ask, Grant, Settlement

Open = Callable[[], Store]
NS, WHO = "shop", (7, 0)
BASE = (time.monotonic_ns() // (3600 * SECOND) + 1000) * 3600 * SECOND  # the edge of a window of any length here
LIMITS = [
    Limit("fixed", "weight", 100, 60 * SECOND),
    Limit("first", "weight", 100, 60 * SECOND, Window.FIRST),
    Limit("sliding", "weight", 100, 60 * SECOND, Window.SLIDING),
    Limit("bucket", "weight", 100, 60 * SECOND, Window.BUCKET),
    Limit("slots", "slots", 100, 0, Window.SLOTS),
]
ALL = tuple(Charge(f"{NS}/{limit.name}/ip:a", limit, 1) for limit in LIMITS)


class Interruption(Exception):
    """Something that a caller's own code raises."""


@pytest.fixture(params=["host"])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens the store as a process of its own would see it."""
    opened: list[Store] = []

    def one() -> Store:
        assert request.param == "host"
        opened.append(HostStore(tmp_path / "home", patience=5.0))
        return opened[-1]

    yield one
    for store in opened:
        store.close()


def at(seconds: float = 0) -> Instant:
    """So many seconds after the beginning."""
    mono = BASE + int(seconds * SECOND)
    return Instant(mono, mono, mono)


def take(store: Store, *charges: Charge, t: float = 0) -> Grant:
    """A permit on every kind of limit, or on those given."""
    got = store.reserve(Ask(NS, charges or ALL, (NS,), WHO, backlog=None), at(t))
    assert isinstance(got, Grant), got
    return got


def picture(store: Store, t: float = 0) -> object:
    """All that the store knows, to be compared."""
    found = store.read(lambda _: at(t))
    ledgers = {view.key: (view.used, view.inflight, view.room, view.rows) for view in found.ledgers}
    return ledgers, found.blocks, found.learned, found.permits


def test_an_exception_inside_keeps_nothing(stores: Open) -> None:
    """Nothing of a batch that fails stays: no permit, no settle, no refund, no note, in any process."""
    mine, yours = stores(), stores()
    before, kept = take(mine), take(mine)
    mine.settle(take(mine), at(1))
    was = picture(yours, 1)

    def fail() -> None:
        take(mine)
        mine.settle(before, at(1), Settlement(actual={ALL[0].key: 9}))
        mine.refund(kept, at(1))
        write(mine, "topic", b"value")
        raise Interruption

    with pytest.raises(Interruption):
        mine.transact(fail)
    assert picture(yours, 1) == was
    assert picture(mine, 1) == was
    assert noted(yours, "topic") is None
    assert not mine.settle(before, at(1)).late
    assert not mine.refund(kept, at(1)).late


def test_an_exception_in_an_inner_batch_ends_the_outer(stores: Open) -> None:
    """Batches within batches are one: what escapes from both keeps nothing, what is caught between them keeps all."""
    store = stores()

    def fail() -> None:
        raise Interruption

    def inner_fails() -> None:
        take(store)
        store.transact(fail)

    def caught_between() -> None:
        take(store)
        with pytest.raises(Interruption):
            store.transact(fail)

    with pytest.raises(Interruption):
        store.transact(inner_fails)
    assert picture(store) == ({}, [], {}, 0)
    store.transact(caught_between)
    assert store.read(lambda _: at()).permits == 1


def test_a_ban_of_a_failed_batch_errs_on_the_safe_side(stores: Open) -> None:
    """A ban that was told in a batch that failed is in force all the same: it was written to disk at once."""
    mine, yours = stores(), stores()
    take(yours)

    def fail() -> None:
        mine.block(NS, 60 * SECOND, "ban", "test", at().mono, 0)
        raise Interruption

    with pytest.raises(Interruption):
        mine.transact(fail)
    assert isinstance(mine.reserve(Ask(NS, ALL, (NS,), WHO, backlog=None), at()), Refusal)


def test_every_kind_of_ledger_is_kept(stores: Open) -> None:
    """Between two processes no number of any kind of ledger changes."""
    store = stores()
    for number in range(5):
        grant = take(store, t=number)
        if number % 2:
            store.settle(grant, at(number + 0.5))
    was = picture(store, 6)
    store.close()
    assert picture(stores(), 6) == was


def test_bans_pauses_and_learned_limits_are_kept(stores: Open) -> None:
    """A process that begins later knows blocks and learned limits before its first call."""
    store = stores()
    store.block(NS, 600 * SECOND, "ban", "too much", at().mono, 0)
    store.block("other", None, "pause", "by hand", at().mono, 0)
    store.learn(NS, {"fixed": (7, SECOND)})
    store.close()
    later = stores()
    no = later.reserve(Ask(NS, ALL, (NS,), WHO, backlog=None), at())
    assert isinstance(no, Refusal)
    assert (no.kind, no.reason, no.available_at) == ("ban", "too much", at(600).mono)
    no = later.reserve(Ask("x", (), ("other",), WHO, backlog=None), at())
    assert isinstance(no, Refusal)
    assert no.kind == "pause"
    assert later.learned == {NS: {"fixed": (7, SECOND)}}
    assert later.unblock(NS)
    assert isinstance(stores().reserve(Ask(NS, ALL, (NS,), WHO, backlog=None), at()), Grant)


def test_permits_end_in_another_process(stores: Open) -> None:
    """What a process held when it ended is spent when the lease ends, whoever asks next."""
    store = stores()
    store.settle(take(store), at(0))
    take(store)
    store.close()
    later = stores()
    take(later, t=59)
    assert later.read(lambda _: at(59)).permits == 2
    take(later, t=61)
    assert later.read(lambda _: at(61)).permits == 2
    slots = next(view for view in later.read(lambda _: at(61)).ledgers if "slots" in view.key)
    assert (slots.used, slots.inflight) == (0, 2)


def test_ledgers_begun_in_a_batch_are_doubted_in_it(stores: Open) -> None:
    """A clock that proves wrong in the same batch in which a ledger began concerns that ledger too."""
    store = stores()

    def doubted() -> None:
        store.settle(take(store, ALL[0]), at(1))
        store.doubt(NS, at(1))

    store.transact(doubted)
    (view,) = store.read(lambda _: at(2)).ledgers
    assert view.used == 1


def test_names_of_any_length(stores: Open) -> None:
    """Owners with long names have ledgers of their own, also where only the ends differ."""
    store = stores()
    one, two = (Charge(f"{NS}/fixed/ip:{'a' * 600}{end}", LIMITS[0], 60) for end in "xy")
    take(store, one)
    take(store, two)
    assert isinstance(store.reserve(Ask(NS, (one,), (NS,), WHO, backlog=None), at()), Refusal)
    assert store.read(lambda _: at()).permits == 2
