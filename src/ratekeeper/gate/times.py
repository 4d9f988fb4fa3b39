"""The clocks of providers: the gate learns them from responses and shares them through the store."""

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
"""A time stamp that narrows no bounds is processed again after this, ns."""
_CREEP: Final = SECOND // 5000
_instant = tuple.__new__  # the named tuple's own constructor costs twice as much
_FAR: Final = 86_400 * SECOND
"""The gate ignores a stored clock that is further than this from the wall clock, ns."""
_SHARE: Final = 5 * SECOND
"""The gate shares bounds that did not narrow much with other processes this often, ns."""


_GAP: Final = SECOND // 1000
"""Two clock readings count as simultaneous if less than this passes between them, ns."""


def _moment() -> tuple[int, int]:
    """Read the steady and the wall clock together, ns, so that a thread switch in between does not look like a clock step."""
    for _ in range(8):
        mono, wall = time.monotonic_ns(), time.time_ns()
        if time.monotonic_ns() - mono < _GAP:
            break
    return mono, wall


class _Clock(NamedTuple):
    """A provider's clock in the store, on the store's steady clock, ns: see `ServerClock`."""

    lo: int
    hi: int
    at: int
    wall: int

    def told(self, _: _Clock | None, now: Instant) -> tuple[_Clock, None]:
        """Convert from this machine's steady clock to the store's. The old value does not matter."""
        low, high = now.lo - now.mono, now.hi - now.mono
        return _Clock(self.lo - high, self.hi - low, self.at + low, self.wall), None


class Times:
    """Server clocks by namespace. A new process starts from what other processes have learned.

    Args:
        store: keeps the clocks.
        worker: writes them; None: the calling thread writes.
    """

    def __init__(self, store: Store, worker: Worker | None = None) -> None:
        self._store = store
        self._worker = worker or Worker()
        self._clocks: dict[str, ServerClock] = {}
        self._shared: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()

    def now(self, namespace: str) -> Instant:
        """Return the present moment on the provider's clock, with its uncertainty."""
        clock = self._clocks.get(namespace) or self._load(namespace)
        mono = time.monotonic_ns()
        if mono - clock.looked < _LOOK and (mono - clock.at < SECOND or not clock.known):
            # The wall clock had not stepped a moment ago, and drift since the last response is below a millisecond.
            return _instant(Instant, (mono, mono + clock.lo - _CREEP, mono + clock.hi + _CREEP))
        now = clock.instant(*_moment())
        if clock.stepped:
            clock.stepped = False
            # Ledgers keep window edges on steady time, which may have stood still.
            self._store.doubt(namespace, now)
        return now

    def knows(self, namespace: str) -> bool:
        """Whether `now` works without asking the store, which may be remote."""
        return namespace in self._clocks

    def clock(self, namespace: str) -> ServerClock:
        """Return the provider's clock as far as it is known."""
        return self._clocks.get(namespace) or self._load(namespace)

    def _load(self, namespace: str) -> ServerClock:
        clock = ServerClock(*_moment())
        note = self._store.get(f"clock:{namespace}", _Clock)
        low, high = self._store.skew()
        # A corrupt record counts as none: the initial uncertainty holds.
        if (
            note is not None
            and clock.lo - _FAR < note.lo + low <= note.hi + high < clock.hi + _FAR
            and note.at - high <= clock.at + SECOND
        ):
            clock.lo, clock.hi, clock.at, clock.known = note.lo + low, note.hi + high, note.at - high, True
            if not (low or high):  # the record is of this machine
                clock.wall = note.wall  # the old wall time: if the host slept since, the first check sees a step
        with self._lock:
            return self._clocks.setdefault(namespace, clock)

    def learn(self, namespace: str, sent: int, stamp: tuple[int, int]) -> tuple[bool, Instant]:
        """Process a time stamp of the provider.

        Args:
            namespace: the provider's.
            sent: the earliest steady ns at which the request was sent.
            stamp: bounds of the stamp, Unix ns.

        Returns:
            Whether the stamp contradicts the known clock, and the present moment on the corrected clock.
        """
        clock = self.clock(namespace)
        mono = time.monotonic_ns()
        if clock.known and mono - clock.at < _OFTEN and clock.covers(sent, mono, *stamp):
            return False, self.now(namespace)  # the stamp says nothing new
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
