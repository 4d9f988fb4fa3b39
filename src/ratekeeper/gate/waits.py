"""How long calls waited, by class: added up for all processes in the store, for `status`, `top` and the demo."""

from __future__ import annotations

import struct
import threading
import time
from typing import Final, NamedTuple

from ratekeeper.errors import StoreError
from ratekeeper.ledger.limit import SECOND
from ratekeeper.rules.call import Priority
from ratekeeper.stores.base import Store

__all__ = ["Wait", "Waits", "read_waits"]

_NOTE: Final = struct.Struct("<QQQ")
_EVERY: Final = SECOND
"""How often a process adds its waits to the common sum, ns. One that is killed loses what is younger."""


class Wait(NamedTuple):
    """The waits of one class since the store was made; a call that went at once is not counted.

    Attributes:
        calls: how many calls waited.
        total: ns, all of them together.
        longest: ns.
    """

    calls: int = 0
    total: int = 0
    longest: int = 0

    def plus(self, other: Wait) -> Wait:
        """Both together."""
        return Wait(self.calls + other.calls, self.total + other.total, max(self.longest, other.longest))


class Waits:
    """The waits of one process that are not yet in the store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._fresh: dict[int, Wait] = {}
        self._shared = 0

    def add(self, klass: int, waited: int) -> None:
        """A call of that class got its permit after `waited` ns."""
        mono = time.monotonic_ns()
        with self._lock:
            self._fresh[klass] = self._fresh.get(klass, Wait()).plus(Wait(1, waited, waited))
            if mono - self._shared < _EVERY:
                return
            self._shared = mono
        self.share()

    def share(self) -> None:
        """Add what is fresh to the common sum. A store that fails now gets it later."""
        with self._lock:
            fresh, self._fresh = self._fresh, {}
        if not fresh:
            return

        def add() -> None:
            for klass, wait in fresh.items():
                self._store.sum(_topic(klass), (wait.calls, wait.total, wait.longest))

        try:
            self._store.transact(add)
        except StoreError:
            with self._lock:
                for klass, wait in fresh.items():
                    self._fresh[klass] = self._fresh.get(klass, Wait()).plus(wait)


def read_waits(store: Store) -> dict[Priority, Wait]:
    """What all processes have added, for the classes in which anybody waited."""
    notes = store.transact(lambda: {klass: store.remember(_topic(klass)) for klass in Priority})
    found = {klass: note for klass, note in notes.items() if note is not None and len(note) == _NOTE.size}
    return {klass: Wait(*_NOTE.unpack(note)) for klass, note in found.items()}


def _topic(klass: int) -> str:
    return f"waits:{klass}"
