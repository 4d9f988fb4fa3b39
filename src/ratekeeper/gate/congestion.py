"""Congestion control for all loops that gather from one provider: fewer calls at a time while the provider refuses."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Final

from ratekeeper.gate.events import Event, Events
from ratekeeper.policy.interval import Congestion, Crowding, Going

__all__ = ["CongestionControl", "CongestionControls"]

_SIGNS: Final = ("throttled", "overloaded")
"""Event kinds that mean too many calls at once."""


class CongestionControl:
    """The number of concurrent calls to one provider, shared by all loops that gather from it. Thread-safe.

    Args:
        congestion: None: the defaults.
        events: told when the width or the gap changes; None: only the log is.
        provider: its namespace.
    """

    def __init__(self, congestion: Congestion | None = None, events: Events | None = None, provider: str = "") -> None:
        self.congestion = congestion or Congestion()
        self._events = events or Events()
        self._provider = provider
        self._told = Going(self.congestion.width, 0.0)
        self._crowding = Crowding()
        self._lock = threading.Lock()
        self._started = 0.0

    def refused(self) -> None:
        """Record that the provider refused a call because of load."""
        with self._lock:
            now = time.monotonic()
            self._crowding = self.congestion.refused(self._crowding, now)
            going = self.congestion.going(self._crowding, now)
        self._tell(going)

    def going(self) -> Going:
        """Return the present width and gap."""
        return self.congestion.going(self._crowding, time.monotonic())

    def admit(self, running: int) -> float:
        """Admit one more call. Return 0 if it may start, else the seconds after which to ask again. Less than 0: ask again
        after a running call has ended."""
        going = self.going()
        if going != self._told:
            self._tell(going)
        with self._lock:
            now = time.monotonic()
            if running >= going.width:
                return -1.0
            if now < self._started + going.gap:
                return self._started + going.gap - now
            self._started = now
            return 0.0

    def _tell(self, going: Going) -> None:
        """Report a change of the width or the gap, once."""
        with self._lock:
            before, self._told = self._told, going
        if going != before:
            fewer = "fewer" if going.width < before.width or going.gap > before.gap else "more"
            pause = f", {going.gap:g} s apart" if going.gap else ""
            self._events.say(
                "gather", f"gathers make {fewer} calls side by side: {going.width}{pause}", self._provider,
                width=going.width, gap=going.gap,
            )  # fmt: skip


class CongestionControls:
    """Congestion control of every provider, from the events of one gate.

    Args:
        events: of the gate.
        configured: by provider, or ``*`` for all others, what the configuration states.
    """

    def __init__(self, events: Events, configured: Mapping[str, Congestion]) -> None:
        self._configured = configured
        self._controls: dict[str, CongestionControl] = {}
        self._lock = threading.Lock()
        self._events = events
        self._heard = False

    def of(self, provider: str, congestion: Congestion | None = None) -> CongestionControl:
        """Return the congestion control of a provider (its namespace). The first caller sets its `congestion`; None: the
        configured one."""
        if congestion is None:
            congestion = self._configured.get(provider.partition("@")[0], self._configured.get("*"))
        with self._lock:
            if not self._heard:
                self._events.on(self._hear)
                self._heard = True
            return self._controls.setdefault(provider, CongestionControl(congestion, self._events, provider))

    def _hear(self, event: Event) -> None:
        control = self._controls.get(event.provider)
        if control is not None and event.kind in _SIGNS:
            control.refused()
