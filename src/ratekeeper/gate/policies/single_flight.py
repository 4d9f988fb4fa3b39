"""Single flight: whoever asks first makes the call, in whatever process; all who ask for the same wait until it is over.

Within a process they wait on an event. Between processes the first claims a slot of the store for a while; of each other
process one looks now and then whether it is free again, on behalf of all that wait there.
"""

from __future__ import annotations

import functools
import threading
import time
from typing import Final

from ratekeeper.gate.steps import Parked, Steps, apart, pausing, waiting
from ratekeeper.ledger.limit import SECOND
from ratekeeper.policy.shared import Claim, held
from ratekeeper.stores.base import Store
from ratekeeper.stores.worker import Worker

__all__ = ["Follower", "Leader", "SingleFlight"]

_SLOTS: Final = 16_384
"""Calls are told apart by so many names: notes in a store stay. Two that share one wait for each other in vain, and then
go by themselves."""
_PASSING: Final = 60 * SECOND
"""How long it is of interest that a call is over, ns."""
_FIRST_LOOK: Final = 0.002
_LAST_LOOK: Final = 0.05
"""Seconds between two looks at another process's call, at first and later."""


class Leader:
    """We make the call, on behalf of all who ask for the same; `finish` when it is over, however it ended."""

    def __init__(self, single_flight: SingleFlight, key: bytes, parked: Parked) -> None:
        self._single_flight = single_flight
        self._key = key
        self._parked = parked
        self._over = False

    def finish(self) -> None:
        """It is over: the answer is kept, or there is none. Safe to call twice."""
        if not self._over:
            self._over = True
            self._single_flight.finished(self._key, self._parked)

    def __del__(self) -> None:
        self.finish()


class Follower:
    """Somebody else is making the call."""

    def __init__(self, single_flight: SingleFlight, key: bytes, parked: Parked, *, looks: bool) -> None:
        self._single_flight = single_flight
        self._key = key
        self._parked = parked
        self._looks = looks

    def wait(self, timeout: float, *, is_async: bool) -> Steps[bool]:
        """Waits until it is over. False: the time is over."""
        if not self._looks:
            done: bool = yield waiting(
                functools.partial(self._parked.wait, timeout),
                functools.partial(self._parked.wait_async, timeout),
                is_async=is_async,
            )
            return done
        deadline, nap = time.monotonic() + timeout, _FIRST_LOOK
        try:
            while not (yield from self._single_flight.free(self._key, is_async=is_async)):
                if time.monotonic() >= deadline:
                    return False
                yield pausing(nap, is_async=is_async)
                nap = min(nap * 1.5, _LAST_LOOK)
        finally:
            self._single_flight.forget(self._key, self._parked)
        return True


class SingleFlight:
    """The calls of one gate that others wait for: one at a time for each key."""

    def __init__(self, store: Store, worker: Worker) -> None:
        self._store = store
        self._worker = worker
        self._lock = threading.RLock()  # one that is collected as garbage finishes
        self._under_way: dict[bytes, Parked] = {}

    def join(self, key: bytes, longest: float, *, is_async: bool) -> Steps[Leader | Follower]:
        """Takes part in the call for a key; we are its leader if nobody makes it.

        Args:
            key: of the answer.
            longest: seconds after which nobody waits for the one any more.
            is_async: as for `apart`.
        """
        parked = Parked()
        with self._lock:
            known = self._under_way.setdefault(key, parked)
        if known is not parked:
            return Follower(self, key, known, looks=False)
        slot = _slot(key)
        work = functools.partial(self._store.claim, slot, int(longest * SECOND))
        try:
            taken = yield from apart(self._worker, slot, work, 0, is_async=is_async)
        except BaseException:
            self.forget(key, parked)
            raise
        return Follower(self, key, parked, looks=True) if taken else Leader(self, key, parked)

    def finished(self, key: bytes, parked: Parked) -> None:
        """A call of ours is over. Never waits: it is called while tasks are cancelled."""
        slot = _slot(key)
        self._worker.later(slot, functools.partial(self._store.release, slot, _PASSING))
        self.forget(key, parked)

    def forget(self, key: bytes, parked: Parked) -> None:
        """Whoever waits here may look."""
        with self._lock:
            if self._under_way.get(key) is parked:
                del self._under_way[key]
        parked.release()

    def free(self, key: bytes, *, is_async: bool) -> Steps[bool]:
        """Whether no process makes the call any more."""
        slot = _slot(key)
        claim = yield from apart(
            self._worker, slot, functools.partial(self._store.get, slot, Claim), None, is_async=is_async
        )
        return not held(claim, self._store.present())


def _slot(key: bytes) -> str:
    return f"flight:{int.from_bytes(key[:8], 'big') % _SLOTS}"
