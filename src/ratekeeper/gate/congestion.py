"""Congestion control for all loops that gather from one provider: fewer calls at a time while the provider refuses."""

from __future__ import annotations

import threading
import time
from typing import Final

from ratekeeper.gate.events import Event, Events
from ratekeeper.policy.interval import Congestion, Crowding, Going

__all__ = ["CongestionControl", "CongestionControls"]

_SIGNS: Final = ("throttled", "overloaded")
"""Event kinds that mean too many calls at once."""


class CongestionControl:
    """The number of concurrent calls to one provider, shared by all loops that gather from it. Thread-safe."""

    def __init__(self, congestion: Congestion | None = None) -> None:
        self.congestion = congestion or Congestion()
        self._crowding = Crowding()
        self._lock = threading.Lock()
        self._started = 0.0

    def refused(self) -> None:
        """Record that the provider refused a call because of load."""
        with self._lock:
            self._crowding = self.congestion.refused(self._crowding, time.monotonic())

    def going(self) -> Going:
        """Return the present width and gap."""
        return self.congestion.going(self._crowding, time.monotonic())

    def admit(self, running: int) -> float:
        """Admit one more call. Return 0 if it may start, else the seconds after which to ask again. Less than 0: ask again
        after a running call has ended."""
        with self._lock:
            now = time.monotonic()
            going = self.congestion.going(self._crowding, now)
            if running >= going.width:
                return -1.0
            if now < self._started + going.gap:
                return self._started + going.gap - now
            self._started = now
            return 0.0


class CongestionControls:
    """Congestion control of every provider, from the events of one gate."""

    def __init__(self, events: Events) -> None:
        self._controls: dict[str, CongestionControl] = {}
        self._lock = threading.Lock()
        self._events = events
        self._heard = False

    def of(self, provider: str, congestion: Congestion | None = None) -> CongestionControl:
        """Return the congestion control of a provider (its namespace). The first caller sets its `congestion`."""
        with self._lock:
            if not self._heard:
                self._events.on(self._hear)
                self._heard = True
            return self._controls.setdefault(provider, CongestionControl(congestion))

    def _hear(self, event: Event) -> None:
        control = self._controls.get(event.provider)
        if control is not None and event.kind in _SIGNS:
            control.refused()
