"""Work that a busy process lets ride with its next transaction, and the helper thread that sees to what is left."""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable
from typing import Final, NamedTuple

from ratekeeper.errors import StoreError
from ratekeeper.ledger.limit import SECOND, Instant
from ratekeeper.stores.helper import Helper, Nudge
from ratekeeper.stores.records import Grant

__all__ = ["Later", "Rider"]

_LOG: Final = logging.getLogger("ratekeeper")
_CLOSE: Final = SECOND // 1000
"""Transactions that follow within this many ns are close on each other."""
_RUSH: Final = 100
"""So many of them make a busy process."""
_SOON: Final = 0.03
"""Seconds after which what is pending is written in any case."""


class Rider(NamedTuple):
    """A permit that ends with the next transaction."""

    grant: Grant
    at: Instant
    sent: bool = True
    """False: it was never sent, and comes back."""


class Later:
    """What is pending in one process.

    Args:
        write: runs a transaction that takes along what is pending, and tells whether nothing is left; a bound method,
            held weakly.
    """

    def __init__(self, write: Callable[[], bool]) -> None:
        self._write = weakref.WeakMethod(write)
        self.pending: list[Rider] = []
        self._riding: list[Rider] = []
        self._poke = Nudge()
        self._thread: Helper | None = None
        self._last = self._run = 0

    def busy(self, mono: int) -> bool:
        """Whether another transaction is surely about to follow."""
        return self._run > _RUSH and mono - self._last < _CLOSE

    def poke(self) -> None:
        """There is something to write soon, should no transaction come along."""
        self._poke.set()
        if self._thread is None or not self._thread.is_alive():
            self._thread = Helper(_write_soon, weakref.ref(self), self._poke)

    def ride(self) -> list[Rider]:
        """What the transaction that has just begun should end."""
        self._riding = self.pending[:]
        del self.pending[: len(self._riding)]
        return self._riding

    def arrived(self) -> None:
        """The transaction was written."""
        self._riding = []

    def thrown(self) -> None:
        """The transaction came to nothing: its riders wait for the next."""
        waiting = set(map(id, self.pending))  # one that was on its way from one list to the other stands in both
        self.pending[:0] = [rider for rider in self._riding if id(rider) not in waiting]
        self._riding = []

    def over(self) -> None:
        """A transaction is over, whatever became of it."""
        mono = time.monotonic_ns()
        # A pause halves the run: a busy process that lost its processor for a moment is still busy, an idle one is not.
        self._run = min(self._run + 1, 4 * _RUSH) if mono - self._last < _CLOSE else self._run // 2
        self._last = mono

    def write(self) -> None:
        """Write what is pending, unless transactions still follow each other."""
        if time.monotonic_ns() - self._last < _CLOSE:
            self._poke.set()
            return
        transaction = self._write()
        try:
            if transaction is not None and not transaction():
                self._poke.set()
        except StoreError:
            pass  # the next transaction that works takes it along
        except Exception:  # noqa: BLE001 - told, and tried again
            _LOG.warning("ratekeeper: what is spent could not be written yet", exc_info=True)


def _write_soon(later: weakref.ref[Later], poke: Nudge) -> None:
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
