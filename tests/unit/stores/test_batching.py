"""Permit batches and deferred settles: what a busy process is spared, and that nothing of it is lost."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ratekeeper.ledger.decide import Refusal
from ratekeeper.ledger.limit import SECOND, Charge, Instant, Limit, Window
from ratekeeper.stores.batching import Batch, Batches, BatchPermit, DeferredSettles, Ending
from ratekeeper.stores.host import HostStore
from ratekeeper.stores.records import Ask, Grant, Settlement

CHARGES = (Charge("shop/weight/ip:a", Limit("weight", "weight", 100, 60 * SECOND), 2),)
ME = (7, 2)
OPEN = SECOND // 20


def made() -> Batches[Batch]:
    """Nothing open yet."""
    return Batches(OPEN, 256, lambda: 1, {})


def at(mono: int) -> Instant:
    """That steady instant."""
    return Instant(mono, mono, mono)


def whole(permits: int, until: int = OPEN) -> Batch:
    """A batch of so many permits."""
    return Batch(CHARGES, Grant(0, "shop", CHARGES, [0], Instant(0, 0, 0), ME, 60 * SECOND), permits, until, 1)


def test_permits_are_drawn_until_there_are_none() -> None:
    """Each once."""
    batches = made()
    batches.keep(whole(3))
    got = [batches.draw(CHARGES, ME, at(1), 1) for _ in range(4)]
    assert [batch is not None for batch in got] == [True, True, True, False]


def test_nothing_is_drawn_after_its_time_or_after_news() -> None:
    """A batch closes by itself, and when a block or a limit changed; what is left is handed back once."""
    for now, generation in ((OPEN, 1), (1, 2)):
        batches = made()
        kept = whole(3)
        batches.keep(kept)
        assert batches.draw(CHARGES, ME, at(now), generation) is None
        assert batches.close(now, generation) == [(kept, 3)]
        assert batches.close(now, generation) == []


def test_a_batch_is_for_one_plan_and_one_member() -> None:
    """Equal charges of another plan, or another class, draw nothing."""
    batches = made()
    batches.keep(whole(3))
    assert batches.draw((CHARGES[0],), ME, at(1), 1) is None
    assert batches.draw(CHARGES, (7, 3), at(1), 1) is None


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
    batches.draw(CHARGES, ME, at(1), 1)
    batches.keep(new)
    assert batches.close(1, 1) == [(old, 2)]
    drawn = batches.draw(CHARGES, ME, at(1), 1)
    assert drawn is not None and drawn.batch is new


def test_calls_that_charge_nothing_have_no_batches() -> None:
    """All their plans have the same empty charges, and a block may hold one of them."""
    batches = made()
    assert [batches.size(CHARGES, ME, at, 0) for at in (1, 2, 3)] == [2, 4, 8]
    assert {batches.size((), ME, at, 0) for at in (1, 2, 3)} == {0}


# -- deferred settles -------------------------------------------------------------------------------------------------


class Writer:
    """Stands for a store: counts its transactions."""

    def __init__(self) -> None:
        self.deferred = DeferredSettles(self.write)
        self.written = threading.Event()
        self.taken: list[list[Ending]] = []

    def write(self) -> bool:
        """A transaction."""
        self.taken.append(self.deferred.take())
        self.deferred.arrived()
        self.deferred.over()
        self.written.set()
        return True


def ending(number: int) -> Ending:
    """A permit that ends."""
    return Ending(Grant(number, "shop", (), (), Instant(0, 0, 0), (1, 0), 0), Instant(0, 0, 0))


def hurry(deferred: DeferredSettles, times: int) -> None:
    """Many transactions, the last of them just now."""
    for _ in range(times):
        deferred._last = time.monotonic_ns()
        deferred.over()


def test_busy_after_a_rush() -> None:
    """Only a process whose transactions follow each other closely, a hundred times, is busy; a pause ends that."""
    deferred = Writer().deferred
    hurry(deferred, 100)
    assert not deferred.busy(deferred._last)
    hurry(deferred, 1)
    assert deferred.busy(deferred._last)
    assert not deferred.busy(deferred._last + 1_000_000)


def test_a_pause_halves_the_run() -> None:
    """One pause does not make a busy process idle; several do."""
    deferred = Writer().deferred
    hurry(deferred, 1000)
    deferred._last = 0
    deferred.over()
    assert deferred.busy(deferred._last)
    for _ in range(2):
        deferred._last = 0
        deferred.over()
    assert not deferred.busy(deferred._last)


def test_what_a_failed_transaction_took_is_first_in_the_next() -> None:
    """What was thrown away goes with the next transaction, before what came since; what arrived never again."""
    deferred = Writer().deferred
    one, two, three = ending(1), ending(2), ending(3)
    deferred.pending += [one, two]
    assert deferred.take() == [one, two]
    deferred.pending.append(three)
    deferred.thrown()
    assert deferred.take() == [one, two, three]
    deferred.arrived()
    deferred.thrown()
    assert deferred.take() == []


def test_what_is_left_is_written_soon() -> None:
    """With no further transaction the helper thread writes what is pending."""
    store = Writer()
    mine = ending(1)
    store.deferred.pending.append(mine)
    store.deferred.poke()
    store.deferred.poke()
    assert store.written.wait(20)
    assert store.taken == [[mine]]


def test_the_helper_holds_no_store() -> None:
    """A store that is dropped is gone, helper thread or not."""
    store = Writer()
    store.deferred.poke()
    assert store.written.wait(20)
    thread = store.deferred._thread
    assert thread is not None
    store.deferred._poke.set()
    del store
    gc.collect()
    thread.join(20)
    assert not thread.is_alive()


# -- a store of a host ------------------------------------------------------------------------------------------------


KEY = "shop/weight/ip:default"
HIGHEST = (7, 0)  # the highest class: nothing is kept for classes above it


def hourly(capacity: int, cost: int = 1) -> tuple[Charge, ...]:
    """One charge on a limit of an hour."""
    return (Charge(KEY, Limit("weight", "weight", capacity, 3600 * SECOND, Window.SLIDING), cost),)


def now(_: str = "") -> Instant:
    """The present, on a server whose clock is ours."""
    mono = time.monotonic_ns()
    return Instant(mono, mono, mono)


def take(store: HostStore, plan: tuple[Charge, ...]) -> Grant | Refusal:
    """One try, by a caller that will not wait."""
    return store.reserve(Ask("shop", plan, ("shop",), HIGHEST, backlog=None), now())


def state(store: HostStore) -> tuple[int, int, int]:
    """(used, in flight, permits held)."""
    found = store.read(now)
    return found.ledgers[0].used, found.ledgers[0].inflight, found.permits


def rush(store: HostStore, plan: tuple[Charge, ...], most: int = 20_000) -> list[Grant]:
    """Take and settle until permits come out of batches; returns those of one batch that are still held."""
    for _ in range(most):
        got = take(store, plan)
        assert isinstance(got, Grant)
        if isinstance(got, BatchPermit):
            return [got]
        store.settle(got, now())
    raise AssertionError("the process never counted as busy")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[HostStore]:
    """A host store of its own."""
    made = HostStore(tmp_path / "home", patience=5.0)
    yield made
    made.close()


def test_everything_is_settled_in_the_end(store: HostStore) -> None:
    """After a rush, each permit counts once and nothing is in flight."""
    plan = hourly(10**9)
    for _ in range(3000):
        got = take(store, plan)
        assert isinstance(got, Grant)
        store.settle(got, now())
    store._close_batches()
    assert state(store) == (3000, 0, 0)


def test_a_limit_is_given_out_exactly_once(store: HostStore) -> None:
    """In a rush up to the limit, no unit is given twice, and what batches did not hand out comes back."""
    plan = hourly(5000)
    granted, tries = 0, 0
    while tries < 50:
        got = take(store, plan)
        if isinstance(got, Grant):
            store.settle(got, now())
            granted += 1
        else:
            tries += 1
            store._close_batches()
    assert granted == 5000
    assert state(store) == (5000, 0, 0)


def test_permits_of_a_batch_end_each_in_its_own_way(store: HostStore) -> None:
    """Refunded, settled at another cost, held on: each permit of one record ends as its holder says."""
    plan = hourly(10**9, cost=3)
    permits = rush(store, plan)
    while len(permits) < 4:
        got = take(store, plan)
        assert isinstance(got, Grant)
        permits.append(got)
    store._close_batches()
    used, inflight, _ = state(store)
    assert inflight == 12
    store.refund(permits[0], now())
    store.settle(permits[1], now(), Settlement(actual={KEY: 1}))
    assert store.hold(permits[2], now().mono + 10 * SECOND)
    store.settle(permits[3], now())
    store._close_batches()
    assert state(store) == (used + 4, 3, 1)
    store.settle(permits[2], now())
    store._close_batches()
    assert state(store) == (used + 7, 0, 0)


def test_a_permit_whose_lease_ended_is_counted_once(store: HostStore) -> None:
    """A batch that was reaped is spent; settling its permit later changes nothing."""
    plan = hourly(10**9)
    (permit,) = rush(store, plan)
    store._close_batches()
    used, inflight, _ = state(store)
    assert inflight == 1
    late = now()
    later = Instant(late.mono + 120 * SECOND, late.lo + 120 * SECOND, late.hi + 120 * SECOND)
    store.reserve(Ask("shop", plan, (), (9, 0), backlog=None), later)
    assert state(store)[:2] == (used + 1, 1)
    assert store.settle(permit, later, Settlement(actual={KEY: 1})).late
    assert state(store)[:2] == (used + 1, 1)


def test_a_block_closes_the_batch(store: HostStore) -> None:
    """Permits of an open batch are not handed out once a ban is known."""
    plan = hourly(10**9)
    (permit,) = rush(store, plan)
    mono = time.monotonic_ns()
    store.block("shop", 60 * SECOND, "ban", "test", mono, time.time_ns())
    got = take(store, plan)
    assert isinstance(got, Refusal)
    assert got.kind == "ban"
    store.refund(permit, now())


def test_calls_that_charge_nothing_are_never_taken_in_batches(store: HostStore) -> None:
    """All their plans have the same empty charges: a permit taken for a cancel must not let a paused order pass."""
    rush(store, hourly(10**9))
    store.block("shop/class:order", None, "pause", "test", time.monotonic_ns(), time.time_ns())
    for _ in range(100):
        cancel = store.reserve(Ask("shop", (), ("shop", "shop/class:cancel"), HIGHEST, backlog=None), now())
        assert isinstance(cancel, Grant)
        store.settle(cancel, now())
        order = store.reserve(Ask("shop", (), ("shop", "shop/class:order"), HIGHEST, backlog=None), now())
        assert isinstance(order, Refusal)


def spend(home: Path, capacity: int) -> int:
    """Take and settle until nothing is left; returns how many permits there were."""
    store, plan, granted = HostStore(home, patience=20.0), hourly(capacity), 0
    refused = 0
    while refused < 20:
        got = take(store, plan)
        if isinstance(got, Grant):
            store.settle(got, now())
            granted += 1
            refused = 0
        else:
            refused += 1
            store._close_batches()
            time.sleep(0.01)  # the others give back what they did not hand out
    store.close()
    return granted


def test_four_busy_processes_give_out_a_limit_exactly_once(store: HostStore) -> None:
    """Four processes in a rush spend a limit together: all of it, and not a unit more."""
    command = [sys.executable, __file__, str(store.home), "20000"]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    granted = [int(process.communicate(timeout=60)[0]) for process in running]
    assert sum(granted) == 20_000
    assert state(store) == (20_000, 0, 0)


if __name__ == "__main__":
    print(spend(Path(sys.argv[1]), int(sys.argv[2])))
