"""Single flight: the leader makes the call, in whatever process; the followers, who want the same response, wait for it.

Followers in the leader's process wait on an event. Between processes, the leader claims a slot of the store for a few seconds
and renews the claim until its call ends, so followers do not wait for a process that was killed. One follower of each other
process polls that slot, on behalf of all followers there.
"""

from __future__ import annotations

import functools
import threading
import time
from typing import Final

from ratekeeper.gate.leases import Leases
from ratekeeper.gate.steps import Steps, apart, pausing, waiting
from ratekeeper.ledger.limit import SECOND
from ratekeeper.policy.shared import Claim, held
from ratekeeper.stores.base import Store
from ratekeeper.stores.threads import Parked
from ratekeeper.stores.worker import Worker

__all__ = ["Follower", "Leader", "SingleFlight"]

_SLOTS: Final = 16_384
"""The number of slot names. It is bounded because records stay in the store. Two calls that share a slot wait for each
other in vain, and then go by themselves."""
_PASSING: Final = 60 * SECOND
"""The store keeps the end of a call for this long, ns."""
_CLAIM: Final = 3.0
_RENEW_EVERY: Final = 1.0
"""Seconds for which a leader claims its slot, and between two renewals."""
_FIRST_LOOK: Final = 0.002
_LAST_LOOK: Final = 0.05
"""Seconds between two checks of another process's call, at first and later."""


class Leader:
    """The leader makes the call for all followers. It calls `finish` at the end, on success and on failure."""

    def __init__(self, single_flight: SingleFlight, key: bytes, parked: Parked) -> None:
        self._single_flight = single_flight
        self._key = key
        self._parked = parked
        self._over = False

    @property
    def holds(self) -> bool:
        """Whether the call goes on."""
        return not self._over

    def renew(self) -> None:
        """Claim the slot for longer, for the followers in other processes."""
        self._single_flight.renew(self._key)

    def finish(self) -> None:
        """End the call: its response is stored, or there is none. Safe to call twice."""
        if not self._over:
            self._single_flight.leases.remove(self)
            self._end()

    close = finish

    def _end(self) -> None:
        self._over = True
        self._single_flight.finished(self._key, self._parked)

    def __del__(self) -> None:
        if not self._over:  # the leases hold it weakly; their lock may be held here
            self._end()


class Follower:
    """A follower waits while the leader makes the call."""

    def __init__(self, single_flight: SingleFlight, key: bytes, parked: Parked, *, looks: bool) -> None:
        self._single_flight = single_flight
        self._key = key
        self._parked = parked
        self._looks = looks

    def wait(self, timeout: float, *, is_async: bool) -> Steps[bool]:
        """Wait until the leader has finished. False: the timeout has passed."""
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
    """The single flights of one gate: one call at a time for each key.

    Attributes:
        leases: renew the claims of the calls that this process leads.
    """

    def __init__(self, store: Store, worker: Worker) -> None:
        self._store = store
        self._worker = worker
        self._lock = threading.RLock()  # reentrant: a leader's `__del__` may run inside
        self._under_way: dict[bytes, Parked] = {}
        self.leases = Leases(_RENEW_EVERY)

    def close(self) -> None:
        """End the calls that this process leads."""
        self.leases.close()

    def join(self, key: bytes, *, is_async: bool) -> Steps[Leader | Follower]:
        """Join the call for a key, as its leader if there is none.

        Args:
            key: of the response.
            is_async: as for `apart`.
        """
        parked = Parked()
        with self._lock:
            known = self._under_way.setdefault(key, parked)
        if known is not parked:
            return Follower(self, key, known, looks=False)
        slot = _slot(key)
        work = functools.partial(self._store.claim, slot, int(_CLAIM * SECOND))
        try:
            taken = yield from apart(self._worker, slot, work, 0, is_async=is_async)
        except BaseException:
            self.forget(key, parked)
            raise
        if taken:
            return Follower(self, key, parked, looks=True)
        leader = Leader(self, key, parked)
        self.leases.add(leader)
        return leader

    def renew(self, key: bytes) -> None:
        """Extend the claim of a call that this process leads, unless it has ended."""
        self._store.renew(_slot(key), int(_CLAIM * SECOND))

    def finished(self, key: bytes, parked: Parked) -> None:
        """End a call that this process leads. Never waits, because a cancelled task may call it."""
        slot = _slot(key)
        self._worker.later(slot, functools.partial(self._store.release, slot, _PASSING))
        self.forget(key, parked)

    def forget(self, key: bytes, parked: Parked) -> None:
        """Forget a call and wake its followers in this process."""
        with self._lock:
            if self._under_way.get(key) is parked:
                del self._under_way[key]
        parked.release()

    def free(self, key: bytes, *, is_async: bool) -> Steps[bool]:
        """Whether no process leads the call any more."""
        slot = _slot(key)
        claim = yield from apart(
            self._worker, slot, functools.partial(self._store.get, slot, Claim), None, is_async=is_async
        )
        return not held(claim, self._store.present())


def _slot(key: bytes) -> str:
    return f"flight:{int.from_bytes(key[:8], 'big') % _SLOTS}"
