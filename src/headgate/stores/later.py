"""Settling a moment later: a busy process lets plain settles ride with its next transaction.

Until then their units count as in flight, so no law is touched. A helper thread writes what no transaction takes along.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from typing import Final

from headgate.errors import StoreError
from headgate.ledger.limit import SECOND, Instant
from headgate.stores.records import Grant

__all__ = ["Later"]

_CLOSE: Final = SECOND // 1000
"""Transactions that follow within this many ns are close on each other."""
_RUSH: Final = 100
"""So many of them make a busy process."""
_SOON: Final = 0.01
"""Seconds after which a pending settle is written in any case."""


class Later:
    """The pending settles of one process.

    Args:
        write: runs a transaction, which takes along what is pending; a bound method, held weakly.
    """

    def __init__(self, write: Callable[[], None]) -> None:
        self._write = weakref.WeakMethod(write)
        self.pending: list[tuple[Grant, Instant]] = []
        self._riding: list[tuple[Grant, Instant]] = []
        self._poke = threading.Event()
        self._thread: threading.Thread | None = None
        self._last = self._run = 0

    def busy(self, mono: int) -> bool:
        """Whether another transaction is surely about to follow."""
        return self._run > _RUSH and mono - self._last < _CLOSE

    def add(self, grant: Grant, now: Instant) -> None:
        """Settle `grant` as of `now` with the next transaction."""
        self.pending.append((grant, now))
        if not self._poke.is_set():
            self._poke.set()
            if self._thread is None:
                self._thread = threading.Thread(
                    target=_write_soon, args=(weakref.ref(self), self._poke), name="headgate-settle", daemon=True
                )
                self._thread.start()

    def ride(self) -> list[tuple[Grant, Instant]]:
        """What the transaction that has just begun should settle."""
        self._riding = self.pending[:]
        del self.pending[: len(self._riding)]
        return self._riding

    def arrived(self) -> None:
        """The transaction was written."""
        self._riding = []

    def thrown(self) -> None:
        """The transaction came to nothing: its riders wait for the next."""
        self.pending[:0] = self._riding
        self._riding = []

    def over(self) -> None:
        """A transaction is over, whatever became of it."""
        mono = time.monotonic_ns()
        self._run = self._run + 1 if mono - self._last < _CLOSE else 0
        self._last = mono

    def write(self) -> bool:
        """Write what is pending unless transactions still follow each other; True if nothing is left to do."""
        if time.monotonic_ns() - self._last < _CLOSE:
            return False
        self._poke.clear()
        transaction = self._write()
        if transaction is not None and self.pending:
            try:
                transaction()
            except StoreError:
                pass  # the next transaction that works takes them along
        return True


def _write_soon(later: weakref.ref[Later], poke: threading.Event) -> None:
    """The helper thread."""
    while True:
        poked = poke.wait(timeout=60.0)
        if poked:
            time.sleep(_SOON)
        here = later()
        if here is None:
            return
        if poked:
            here.write()
        del here
