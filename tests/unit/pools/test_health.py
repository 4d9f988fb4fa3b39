"""Warnings, failures and rests."""

from __future__ import annotations

import time

from ratekeeper.ledger.limit import SECOND
from ratekeeper.pools.health import REST, WARNINGS, AddressHealth
from ratekeeper.stores.memory import MemoryStore

PLACE = "shop/egress:a"


def end_rest(store: MemoryStore) -> None:
    """As if its time had passed."""
    assert store.unblock(PLACE, REST)


def test_the_third_warning_is_one_too_many() -> None:
    """Two warnings are only counted; at the third the address rests, and the count begins anew."""
    health = AddressHealth(MemoryStore())
    assert [health.warned(PLACE)[1] for _ in range(WARNINGS - 1)] == [0] * (WARNINGS - 1)
    assert health.warnings(PLACE) == WARNINGS - 1 and not health.rests(PLACE)
    warnings, length = health.warned(PLACE)
    assert (warnings, length) == (WARNINGS, 60 * SECOND)
    assert health.rests(PLACE) > time.monotonic_ns()
    assert health.warnings(PLACE) == 0


def test_each_failure_rests_twice_as_long_up_to_five_minutes() -> None:
    """5 s, 10 s, 20 s ... 300 s; failures of calls that were on their way at the first one do not count."""
    store = MemoryStore()
    health = AddressHealth(store)
    lengths = []
    for _ in range(8):
        lengths.append(health.failed(PLACE) // SECOND)
        assert health.failed(PLACE) == 0
        end_rest(store)
    assert lengths == [5, 10, 20, 40, 80, 160, 300, 300]


def test_an_answer_makes_the_next_failure_a_first_one() -> None:
    """What works again is forgiven."""
    store = MemoryStore()
    health = AddressHealth(store)
    health.failed(PLACE)
    end_rest(store)
    health.failed(PLACE)
    end_rest(store)
    health.worked(PLACE)
    assert health.failed(PLACE) == 5 * SECOND


def test_other_processes_know() -> None:
    """AddressHealth lies in the store: two gates of one store count together and see one rest."""
    store = MemoryStore()
    one, other = AddressHealth(store), AddressHealth(store)
    one.warned(PLACE)
    other.warned(PLACE)
    assert one.warned(PLACE)[1] == 60 * SECOND
    assert other.rests(PLACE)
