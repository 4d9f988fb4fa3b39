"""Leases of what is open (websockets, calls that others wait for): a thread renews them; `close` gives them back."""

from __future__ import annotations

import secrets
import threading
import weakref
from typing import Final, Protocol

from ratekeeper.stores.threads import Helper, Parked, log_death

__all__ = ["Leases", "Renewable"]

_NAME: Final = "leases"
_RENEW_EVERY: Final = 15.0
"""Seconds between two renewals of a permit's lease, which lasts 60."""


class Renewable(Protocol):
    """An open resource with a lease, such as a websocket."""

    @property
    def holds(self) -> bool:
        """Whether the resource holds permits that need renewal."""

    def renew(self) -> None:
        """Extend the lease."""

    def close(self) -> None:
        """Give the lease back. Safe to call again."""


class Leases:
    """The leases of one process. A thread renews them; it starts with the first lease and ends with the last.

    The thread does not renew a resource that has no reference left; that lease ends.

    Args:
        every: seconds between two renewals.
    """

    def __init__(self, every: float = _RENEW_EVERY) -> None:
        self._every = every
        self._open: weakref.WeakSet[Renewable] = weakref.WeakSet()
        self._names: list[str] = []
        self._lock = threading.Lock()
        self._thread: Helper | None = None
        self._over = Parked()
        self._told = False

    def name(self) -> str:
        """Return a name for ledgers. It reuses a returned name if there is one, because stores keep ledgers for long."""
        with self._lock:
            return self._names.pop() if self._names else f"{secrets.randbits(48):012x}"

    def add(self, opened: Renewable) -> None:
        """Renew a resource until `remove`, or until no reference to it is left."""
        with self._lock:
            self._open.add(opened)
            if self._thread is None or not self._thread.is_alive():
                self._thread = Helper(self._renew, name=_NAME)

    def remove(self, opened: Renewable, name: str = "") -> None:
        """Stop renewing a closed resource and free its name, if it has one."""
        with self._lock:
            self._open.discard(opened)
            if name:
                self._names.append(name)

    def close(self) -> None:
        """Give all leases back at the end of the program."""
        self._over.release()
        for opened in list(self._open):
            opened.close()

    def _renew(self) -> None:
        while not self._over.wait(self._every):
            with self._lock:
                renewables = list(self._open)
                if not renewables:
                    self._thread = None
                    return
            while renewables:
                self._renew_one(renewables.pop())
            del renewables

    def _renew_one(self, opened: Renewable) -> None:
        """Renew one lease. A failure is reported once, and does not keep the others from their renewal."""
        try:
            if opened.holds:
                opened.renew()
        except Exception as error:  # noqa: BLE001 - reported; the next round tries again, and the lease ends by itself
            if not self._told:
                self._told = True
                log_death(_NAME, error)
