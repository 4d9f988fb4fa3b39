"""One flight for many askers: whoever comes first makes the call, in whatever process; the others wait until it landed.

Within a process they wait on an event. Between processes the first claims a slot of the store for a while; of each other
process one looks now and then whether it is free again, on behalf of all that wait there.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from ratekeeper.gate.steps import Parked
from ratekeeper.ledger.limit import SECOND
from ratekeeper.stores.base import Store

__all__ = ["Flights", "Follow", "Lead"]

T = TypeVar("T")

_SLOTS: Final = 16_384
"""Flights are told apart by so many names: notes in a store stay. Two that share one wait for each other in vain, and then
go by themselves."""
_FIRST_LOOK: Final = 0.002
_LAST_LOOK: Final = 0.05
"""Seconds between two looks at another process's flight, at first and later."""


class Lead:
    """We make the call, on behalf of all who ask for the same; `land` when it is over, however it ended."""

    def __init__(self, flights: Flights, key: bytes, parked: Parked) -> None:
        self._flights = flights
        self._key = key
        self._parked = parked
        self._over = False

    def land(self) -> None:
        """It is over: the answer is kept, or there is none. Safe to call twice."""
        if not self._over:
            self._over = True
            self._flights.landed(self._key, self._parked)

    def __del__(self) -> None:
        self.land()


class Follow:
    """Somebody else is making the call."""

    def __init__(self, flights: Flights, key: bytes, parked: Parked, *, looks: bool) -> None:
        self._flights = flights
        self._key = key
        self._parked = parked
        self._looks = looks

    def wait(self, timeout: float) -> bool:
        """Wait in this thread until it landed. False: the time is over."""
        if not self._looks:
            return self._parked.wait(timeout)
        deadline, nap = time.monotonic() + timeout, _FIRST_LOOK
        try:
            while not self._flights.free(self._key):
                if time.monotonic() >= deadline:
                    return False
                time.sleep(nap)
                nap = min(nap * 1.5, _LAST_LOOK)
        finally:
            self._flights.forget(self._key, self._parked)
        return True

    async def wait_async(self, timeout: float) -> bool:
        """The same in a task."""
        if not self._looks:
            return await self._parked.wait_async(timeout)
        deadline, nap = time.monotonic() + timeout, _FIRST_LOOK
        try:
            while not await self._flights.apart(self._flights.free, self._key):
                if time.monotonic() >= deadline:
                    return False
                await asyncio.sleep(nap)
                nap = min(nap * 1.5, _LAST_LOOK)
        finally:
            self._flights.forget(self._key, self._parked)
        return True


class Flights:
    """The flights of one gate."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._under_way: dict[bytes, Parked] = {}

    def join(self, key: bytes, longest: float) -> Lead | Follow:
        """Take part in the flight for a key; be the one who makes the call if there is none.

        Args:
            key: of the answer.
            longest: seconds after which nobody waits for the one any more.
        """
        parked = Parked()
        with self._lock:
            known = self._under_way.setdefault(key, parked)
        if known is not parked:
            return Follow(self, key, known, looks=False)
        now = time.monotonic_ns()
        try:
            taken = self._store.claim(_slot(key), now, now + int(longest * SECOND))
        except BaseException:
            self.forget(key, parked)
            raise
        return Follow(self, key, parked, looks=True) if taken else Lead(self, key, parked)

    async def join_async(self, key: bytes, longest: float) -> Lead | Follow:
        """The same in a task."""
        return await self.apart(self.join, key, longest)

    def landed(self, key: bytes, parked: Parked) -> None:
        """A flight of ours is over. Never waits: it is called while tasks are cancelled."""
        if self._store.remote:
            threading.Thread(target=self._leave, args=(key,), daemon=True).start()
        else:
            self._leave(key)
        self.forget(key, parked)

    def _leave(self, key: bytes) -> None:
        now = time.monotonic_ns()
        self._store.claim(_slot(key), now, now, held=True)

    def forget(self, key: bytes, parked: Parked) -> None:
        """Whoever waits here may look."""
        with self._lock:
            if self._under_way.get(key) is parked:
                del self._under_way[key]
        parked.release()

    def free(self, key: bytes) -> bool:
        """Whether no process makes the call any more."""
        now = time.monotonic_ns()
        return not self._store.claim(_slot(key), now, now)

    async def apart(self, work: Callable[..., T], *args: Any) -> T:
        """Work on the store: at once, or in a thread if the store is far away."""
        if self._store.remote:
            return await asyncio.to_thread(work, *args)
        return work(*args)


def _slot(key: bytes) -> str:
    return f"flight:{int.from_bytes(key[:8], 'big') % _SLOTS}"
