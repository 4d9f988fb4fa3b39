"""Bundles and late settles: what a busy process is spared, and that nothing of it is lost."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ratekeeper.ledger.decide import Refusal
from ratekeeper.ledger.limit import SECOND, Charge, Instant, Limit, Window
from ratekeeper.stores.busy import Part
from ratekeeper.stores.host import HostStore
from ratekeeper.stores.records import Grant

KEY = "shop/weight/ip:default"
WHO = (7, 0)  # the highest class: nothing is kept for classes above it


def charges(capacity: int, cost: int = 1) -> tuple[Charge, ...]:
    """One charge on a limit of an hour."""
    return (Charge(KEY, Limit("weight", "weight", capacity, 3600 * SECOND, Window.SLIDING), cost),)


def now(_: str = "") -> Instant:
    """The present, on a server whose clock is ours."""
    mono = time.monotonic_ns()
    return Instant(mono, mono, mono)


def take(store: HostStore, plan: tuple[Charge, ...]) -> Grant | Refusal:
    """One try, by a caller that will not wait."""
    return store.reserve("shop", plan, ("shop",), WHO, now(), backlog=None)


def state(store: HostStore) -> tuple[int, int, int]:
    """(used, in flight, permits held)."""
    found = store.read(now)
    return found.ledgers[0].used, found.ledgers[0].inflight, found.permits


def rush(store: HostStore, plan: tuple[Charge, ...], most: int = 20_000) -> list[Grant]:
    """Take and settle until permits come out of bundles; returns those of one bundle that are still held."""
    for _ in range(most):
        got = take(store, plan)
        assert isinstance(got, Grant)
        if isinstance(got, Part):
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
    plan = charges(10**9)
    for _ in range(3000):
        got = take(store, plan)
        assert isinstance(got, Grant)
        store.settle(got, now())
    store._close_bundles()
    assert state(store) == (3000, 0, 0)


def test_a_limit_is_given_out_exactly_once(store: HostStore) -> None:
    """In a rush up to the limit, no unit is given twice, and what bundles did not hand out comes back."""
    plan = charges(5000)
    granted, tries = 0, 0
    while tries < 50:
        got = take(store, plan)
        if isinstance(got, Grant):
            store.settle(got, now())
            granted += 1
        else:
            tries += 1
            store._close_bundles()
    assert granted == 5000
    assert state(store) == (5000, 0, 0)


def test_parts_of_a_bundle_end_each_in_its_own_way(store: HostStore) -> None:
    """Refunded, settled at another cost, held on: each part of one record ends as its holder says."""
    plan = charges(10**9, cost=3)
    parts = rush(store, plan)
    while len(parts) < 4:
        got = take(store, plan)
        assert isinstance(got, Grant)
        parts.append(got)
    store._close_bundles()
    used, inflight, _ = state(store)
    assert inflight == 12
    store.refund(parts[0], now())
    store.settle(parts[1], now(), actual={KEY: 1})
    assert store.hold(parts[2], now().mono + 10 * SECOND)
    store.settle(parts[3], now())
    store._close_bundles()
    assert state(store) == (used + 4, 3, 1)
    store.settle(parts[2], now())
    store._close_bundles()
    assert state(store) == (used + 7, 0, 0)


def test_a_part_whose_lease_ended_is_counted_once(store: HostStore) -> None:
    """A bundle that was reaped is spent; settling its part later changes nothing."""
    plan = charges(10**9)
    (part,) = rush(store, plan)
    store._close_bundles()
    used, inflight, _ = state(store)
    assert inflight == 1
    late = now()
    later = Instant(late.mono + 120 * SECOND, late.lo + 120 * SECOND, late.hi + 120 * SECOND)
    store.reserve("shop", plan, (), (9, 0), later, backlog=None)
    assert state(store)[:2] == (used + 1, 1)
    assert store.settle(part, later, actual={KEY: 1}).late
    assert state(store)[:2] == (used + 1, 1)


def test_a_block_closes_the_bundle(store: HostStore) -> None:
    """Permits of an open bundle are not handed out once a ban is known."""
    plan = charges(10**9)
    (part,) = rush(store, plan)
    mono = time.monotonic_ns()
    store.block("shop", 60 * SECOND, "ban", "test", mono, time.time_ns())
    got = take(store, plan)
    assert isinstance(got, Refusal)
    assert got.kind == "ban"
    store.refund(part, now())


def test_calls_that_charge_nothing_are_never_bundled(store: HostStore) -> None:
    """All their plans have the same empty charges: a permit taken for a cancel must not let a paused order pass."""
    rush(store, charges(10**9))
    store.block("shop/class:order", None, "pause", "test", time.monotonic_ns(), time.time_ns())
    for _ in range(100):
        cancel = store.reserve("shop", (), ("shop", "shop/class:cancel"), WHO, now(), backlog=None)
        assert isinstance(cancel, Grant)
        store.settle(cancel, now())
        order = store.reserve("shop", (), ("shop", "shop/class:order"), WHO, now(), backlog=None)
        assert isinstance(order, Refusal)


def spend(home: Path, capacity: int) -> int:
    """Take and settle until nothing is left; returns how many permits there were."""
    store, plan, granted = HostStore(home, patience=20.0), charges(capacity), 0
    refused = 0
    while refused < 20:
        got = take(store, plan)
        if isinstance(got, Grant):
            store.settle(got, now())
            granted += 1
            refused = 0
        else:
            refused += 1
            store._close_bundles()
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
