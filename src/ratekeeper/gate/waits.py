"""How long calls waited, by class: added up for all processes in the store, for `status`, `top` and the demo."""

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
"""How often a process adds its waits to the common sum, ns. One that is killed loses what is younger."""


_Sum: TypeAlias = Annotated[int, Meta(ge=0, lt=1 << 62)]
"""A greater one was garbled, and begins anew."""


class Wait(NamedTuple):
    """The waits of one class since the store was made; a call that went at once is not counted.

    Attributes:
        calls: how many calls waited.
        total: ns, all of them together.
        longest: ns.
    """

    calls: _Sum = 0
    total: _Sum = 0
    longest: _Sum = 0

    def plus(self, other: Wait) -> Wait:
        """Both together."""
        return Wait(self.calls + other.calls, self.total + other.total, max(self.longest, other.longest))


def _plus(waits: dict[int, Wait], more: dict[int, Wait]) -> dict[int, Wait]:
    return {**waits, **{priority: waits.get(priority, Wait()).plus(wait) for priority, wait in more.items()}}


class Waits:
    """The waits of one process that are not yet in the store."""

    def __init__(self, store: Store, worker: Worker) -> None:
        self._store = store
        self._worker = worker
        self._lock = threading.Lock()
        self._fresh: dict[int, Wait] = {}
        self._shared = 0

    def add(self, priority: int, waited: int) -> None:
        """A call of that class got its permit after `waited` ns."""
        mono = time.monotonic_ns()
        with self._lock:
            self._fresh[priority] = self._fresh.get(priority, Wait()).plus(Wait(1, waited, waited))
            if mono - self._shared < _EVERY:
                return
            self._shared = mono
        self.share()

    def share(self) -> None:
        """Add what is fresh to the common sum. A store that fails now gets it later."""
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
    """What all processes have added, for the classes in which anybody waited."""
    found = store.get(_TOPIC, dict[int, Wait]) or {}
    return {Priority(priority): wait for priority, wait in sorted(found.items()) if priority in set(Priority)}
