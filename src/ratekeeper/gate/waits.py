"""Waiting times of calls by priority: the store sums them up for all processes, for `status`, `top` and the demo."""

from __future__ import annotations

import functools
import threading
import time
from typing import Annotated, Final, NamedTuple, TypeAlias

from msgspec import Meta

from ratekeeper.errors import StoreError
from ratekeeper.ledger.limit import SECOND, Instant
from ratekeeper.rules.call import Priority
from ratekeeper.stores.base import Store
from ratekeeper.stores.worker import Worker

__all__ = ["Wait", "Waits", "read_waits"]

_TOPIC: Final = "waits"
_EVERY: Final = SECOND
"""A process adds its waits to the common sum this often, ns. A killed process loses the newer ones."""


_Sum: TypeAlias = Annotated[int, Meta(ge=0, lt=1 << 62)]
"""A greater sum is corrupt and restarts at zero."""


class Wait(NamedTuple):
    """The waits of one priority since the store was created. A call that did not wait is not counted.

    Attributes:
        calls: the number of calls that waited.
        total: the sum of all waits, ns.
        longest: the longest wait, ns.
    """

    calls: _Sum = 0
    total: _Sum = 0
    longest: _Sum = 0

    def plus(self, other: Wait) -> Wait:
        """Return the sum of both."""
        return Wait(self.calls + other.calls, self.total + other.total, max(self.longest, other.longest))


def _plus(waits: dict[int, Wait], more: dict[int, Wait]) -> dict[int, Wait]:
    return {**waits, **{priority: waits.get(priority, Wait()).plus(wait) for priority, wait in more.items()}}


class Waits:
    """The waits of one process that the store does not have yet."""

    def __init__(self, store: Store, worker: Worker) -> None:
        self._store = store
        self._worker = worker
        self._lock = threading.Lock()
        self._fresh: dict[int, Wait] = {}
        self._shared = 0

    def add(self, priority: int, waited: int) -> None:
        """Count a call of that priority that got its permit after `waited` ns."""
        mono = time.monotonic_ns()
        with self._lock:
            self._fresh[priority] = self._fresh.get(priority, Wait()).plus(Wait(1, waited, waited))
            if mono - self._shared < _EVERY:
                return
            self._shared = mono
        self.share()

    def share(self) -> None:
        """Add new waits to the common sum. If the store fails now, the next call adds them."""
        with self._lock:
            fresh, self._fresh = self._fresh, {}
        if fresh:
            self._worker.later(_TOPIC, functools.partial(self._add, fresh))

    def _add(self, fresh: dict[int, Wait]) -> None:
        def change(old: dict[int, Wait] | None, now: Instant) -> tuple[dict[int, Wait], None]:
            return _plus(old or {}, fresh), None

        try:
            self._store.update(_TOPIC, dict[int, Wait], change)
        except StoreError:
            with self._lock:
                self._fresh = _plus(self._fresh, fresh)


def read_waits(store: Store) -> dict[Priority, Wait]:
    """Return the sums of all processes, for the priorities in which calls waited."""
    found = store.get(_TOPIC, dict[int, Wait]) or {}
    return {Priority(priority): wait for priority, wait in sorted(found.items()) if priority in set(Priority)}
