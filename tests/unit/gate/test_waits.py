"""How long calls waited, added up over processes."""

from __future__ import annotations

from ratekeeper.errors import StoreUnavailable
from ratekeeper.gate.waits import Wait, Waits, read_waits
from ratekeeper.ledger.limit import SECOND
from ratekeeper.rules.call import Priority
from ratekeeper.stores.memory import MemoryStore
from ratekeeper.stores.worker import Worker


def test_processes_add_to_one_sum() -> None:
    """Calls and totals add up, the longest stays; classes in which nobody waited are left out."""
    store = MemoryStore()
    for waited in ((1, 4), (2,)):
        waits = Waits(store, Worker())
        for seconds in waited:
            waits.add(Priority.LOW, seconds * SECOND)
        waits.share()
    assert read_waits(store) == {Priority.LOW: Wait(calls=3, total=7 * SECOND, longest=4 * SECOND)}


def test_a_store_that_fails_gets_it_later() -> None:
    """Nothing is raised into the call that waited, and nothing is forgotten."""

    class Broken(MemoryStore):
        broken = True

        def _note_down(self, topic: str, raw: bytes | None) -> None:
            if self.broken:
                raise StoreUnavailable("full")
            super()._note_down(topic, raw)

    store = Broken()
    waits = Waits(store, Worker())
    waits.add(Priority.HIGH, 5)
    store.broken = False
    waits.share()
    assert read_waits(store) == {Priority.HIGH: Wait(1, 5, 5)}
