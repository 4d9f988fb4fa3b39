"""The leases of what is held for as long as something is open: they are renewed meanwhile, and given back at the end."""

from __future__ import annotations

import secrets
import threading
import weakref
from typing import Final, Protocol

__all__ = ["Leases", "Renewable"]

_RENEW_EVERY: Final = 15.0
"""Seconds between two renewals; a lease lasts 60."""


class Renewable(Protocol):
    """Something open, such as a websocket."""

    @property
    def holds(self) -> bool:
        """Whether it holds anything that must be renewed."""

    def renew(self) -> None:
        """Hold it for longer."""

    def close(self) -> None:
        """Give it back. May be called again."""


class Leases:
    """The leases of one process. A thread renews them, which begins with the first and ends with the last.

    What nobody refers to any more is not renewed, and its lease ends.
    """

    def __init__(self) -> None:
        self._open: weakref.WeakSet[Renewable] = weakref.WeakSet()
        self._names: list[str] = []
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._over = threading.Event()

    def name(self) -> str:
        """A name to keep ledgers under: one that was given back, if there is such, for stores keep ledgers for long."""
        with self._lock:
            return self._names.pop() if self._names else f"{secrets.randbits(48):012x}"

    def add(self, opened: Renewable) -> None:
        """Renews it until `remove`, or until nobody refers to it."""
        with self._lock:
            self._open.add(opened)
            if self._thread is None:
                self._thread = threading.Thread(target=self._renew, name="ratekeeper-leases", daemon=True)
                self._thread.start()

    def remove(self, opened: Renewable, name: str) -> None:
        """It is closed, and its name is free."""
        with self._lock:
            self._open.discard(opened)
            self._names.append(name)

    def close(self) -> None:
        """Give everything back: the program ends."""
        self._over.set()
        for opened in list(self._open):
            opened.close()

    def _renew(self) -> None:
        while not self._over.wait(_RENEW_EVERY):
            with self._lock:
                renewables = list(self._open)
                if not renewables:
                    self._thread = None
                    return
            for opened in renewables:
                if opened.holds:
                    opened.renew()
            del opened, renewables
