"""The clocks of the providers a gate talks to, learned from their answers and shared through the store."""

from __future__ import annotations

import threading
import time
from typing import Final, NamedTuple

from ratekeeper.ledger.clock import ServerClock
from ratekeeper.ledger.limit import SECOND, Instant
from ratekeeper.stores.base import Store
from ratekeeper.stores.worker import Worker

__all__ = ["Times"]

_LOOK: Final = SECOND // 50
_OFTEN: Final = SECOND // 10
"""Stamps that narrow no bounds are taken in again after this, ns."""
_CREEP: Final = SECOND // 5000
_instant = tuple.__new__  # a named tuple's own constructor costs twice as much
_FAR: Final = 86_400 * SECOND
"""A provider's clock that is said to be further from the wall clock is asked for anew, ns."""
_SHARE: Final = 5 * SECOND
"""How often bounds that did not narrow much are written for other processes, ns."""


_GAP: Final = SECOND // 1000
"""Two clocks are read together if so little time passes meanwhile, ns."""


def _moment() -> tuple[int, int]:
    """Steady and wall clock, read together, ns: a thread that loses its processor in between sees no clock that steps."""
    for _ in range(8):
        mono, wall = time.monotonic_ns(), time.time_ns()
        if time.monotonic_ns() - mono < _GAP:
            break
    return mono, wall


class _Clock(NamedTuple):
    """What is known of a provider's clock, on the steady clock of the store, ns: see `ServerClock`."""

    lo: int
    hi: int
    at: int
    wall: int

    def told(self, _: _Clock | None, now: Instant) -> tuple[_Clock, None]:
        """From this machine's steady clock to the store's, whatever was known there."""
        low, high = now.lo - now.mono, now.hi - now.mono
        return _Clock(self.lo - high, self.hi - low, self.at + low, self.wall), None


class Times:
    """Server clocks by namespace. A new process starts from what others have learned.

    Args:
        store: where that is kept.
        worker: writes it down; None: whoever calls does.
    """

    def __init__(self, store: Store, worker: Worker | None = None) -> None:
        self._store = store
        self._worker = worker or Worker()
        self._clocks: dict[str, ServerClock] = {}
        self._shared: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()

    def now(self, namespace: str) -> Instant:
        """The present moment on the provider's clock, with doubt."""
        clock = self._clocks.get(namespace) or self._load(namespace)
        mono = time.monotonic_ns()
        if mono - clock.looked < _LOOK and (mono - clock.at < SECOND or not clock.known):
            # A moment ago the wall clock had not stepped, and drift since the last answer is below a millisecond.
            return _instant(Instant, (mono, mono + clock.lo - _CREEP, mono + clock.hi + _CREEP))
        now = clock.instant(*_moment())
        if clock.stepped:
            clock.stepped = False
            # What ledgers have learned of edges stands on steady time, which may have stood still.
            self._store.doubt(namespace, now)
        return now

    def knows(self, namespace: str) -> bool:
        """Whether `now` can be told without asking the store, which may be a network away."""
        return namespace in self._clocks

    def clock(self, namespace: str) -> ServerClock:
        """The provider's clock as it is known."""
        return self._clocks.get(namespace) or self._load(namespace)

    def _load(self, namespace: str) -> ServerClock:
        clock = ServerClock(*_moment())
        note = self._store.get(f"clock:{namespace}", _Clock)
        low, high = self._store.skew()
        # One that is garbled is none: the first doubt holds.
        if (
            note is not None
            and clock.lo - _FAR < note.lo + low <= note.hi + high < clock.hi + _FAR
            and note.at - high <= clock.at + SECOND
        ):
            clock.lo, clock.hi, clock.at, clock.known = note.lo + low, note.hi + high, note.at - high, True
            if not (low or high):  # of this very machine
                clock.wall = note.wall  # that of then: a host that slept since shows as a step at the first look
        with self._lock:
            return self._clocks.setdefault(namespace, clock)

    def learn(self, namespace: str, sent: int, stamp: tuple[int, int]) -> tuple[bool, Instant]:
        """Take in a time stamp of the provider.

        Args:
            namespace: the provider's.
            sent: steady ns at which the request was sent at the earliest.
            stamp: bounds of the stamp, Unix ns.

        Returns:
            Whether it contradicts what was believed, and the present moment by what is known now.
        """
        clock = self.clock(namespace)
        mono = time.monotonic_ns()
        if clock.known and mono - clock.at < _OFTEN and clock.covers(sent, mono, *stamp):
            return False, self.now(namespace)  # it says nothing new
        with self._lock:
            contradicted = clock.learn(sent, mono, *stamp)
            width, at = self._shared.get(namespace, (1 << 62, 0))
            share = contradicted or mono - at > _SHARE or clock.hi - clock.lo < width // 2
            if share:
                self._shared[namespace] = clock.hi - clock.lo, mono
                known = _Clock(clock.lo, clock.hi, clock.at, clock.wall)
        if share:
            topic = f"clock:{namespace}"
            self._worker.later(topic, lambda: self._store.update(topic, _Clock, known.told))
        return contradicted, clock.instant(*_moment())
