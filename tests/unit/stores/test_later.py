"""What rides with a later transaction: in order, once, and in the end by itself."""

from __future__ import annotations

import gc
import threading
import time

from ratekeeper.ledger.limit import Instant
from ratekeeper.stores.later import Later, Rider
from ratekeeper.stores.records import Grant


class Writer:
    """Stands for a store: counts its transactions."""

    def __init__(self) -> None:
        self.later = Later(self.write)
        self.written = threading.Event()
        self.rides: list[list[Rider]] = []

    def write(self) -> bool:
        """A transaction."""
        self.rides.append(self.later.ride())
        self.later.arrived()
        self.later.over()
        self.written.set()
        return True


def rider(number: int) -> Rider:
    """A permit that ends."""
    return Rider(Grant(number, "shop", (), (), Instant(0, 0, 0), (1, 0), 0), Instant(0, 0, 0))


def hurry(later: Later, times: int) -> None:
    """Many transactions, the last of them just now."""
    for _ in range(times):
        later._last = time.monotonic_ns()
        later.over()


def test_busy_after_a_rush() -> None:
    """Only a process whose transactions follow each other closely, a hundred times, is busy; a pause ends that."""
    later = Writer().later
    hurry(later, 100)
    assert not later.busy(later._last)
    hurry(later, 1)
    assert later.busy(later._last)
    assert not later.busy(later._last + 1_000_000)


def test_a_pause_halves_the_run() -> None:
    """One pause does not make a busy process idle; several do."""
    later = Writer().later
    hurry(later, 1000)
    later._last = 0
    later.over()
    assert later.busy(later._last)
    for _ in range(2):
        later._last = 0
        later.over()
    assert not later.busy(later._last)


def test_riders_of_a_failed_transaction_ride_again_first() -> None:
    """What was thrown away rides with the next transaction, before what came since; what arrived never again."""
    later = Writer().later
    one, two, three = rider(1), rider(2), rider(3)
    later.pending += [one, two]
    assert later.ride() == [one, two]
    later.pending.append(three)
    later.thrown()
    assert later.ride() == [one, two, three]
    later.arrived()
    later.thrown()
    assert later.ride() == []


def test_what_is_left_is_written_soon() -> None:
    """With no further transaction the helper thread writes what is pending."""
    store = Writer()
    mine = rider(1)
    store.later.pending.append(mine)
    store.later.poke()
    store.later.poke()
    assert store.written.wait(20)
    assert store.rides == [[mine]]


def test_the_helper_holds_no_store() -> None:
    """A store that is dropped is gone, helper thread or not."""
    store = Writer()
    store.later.poke()
    assert store.written.wait(20)
    thread = store.later._thread
    assert thread is not None
    store.later._poke.set()
    del store
    gc.collect()
    thread.join(20)
    assert not thread.is_alive()
