"""The shared context of one gate's parts. The gate creates it first and passes it down; no part sees the gate itself."""

from __future__ import annotations

import math
import secrets
import socket
import time
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from ratekeeper.gate.events import Events
from ratekeeper.gate.plans import Plans
from ratekeeper.gate.times import Times
from ratekeeper.ledger.limit import SECOND
from ratekeeper.ledger.shares import AGED
from ratekeeper.policy.policies import Policies
from ratekeeper.pools.pool import Egress
from ratekeeper.stores.base import Store
from ratekeeper.stores.blocks import CONTACT
from ratekeeper.stores.worker import Worker
from ratekeeper.waiting.queue import Depths

__all__ = ["Context", "Waiting"]


class Waiting(Protocol):
    """An object that keeps waiting calls."""

    def released(self, keys: Iterable[str]) -> None:
        """Serve waiting calls: units came back on these ledgers in this process."""

    def look(self) -> None:
        """Recheck all waiting calls: a change may let any of them pass."""


class Context:
    """The parts of one gate in one process. After a fork the gate creates a new one.

    Attributes:
        store, worker, events, egress, plans, policies, home: of the gate.
        max_wait: seconds that a call without a timeout waits.
        max_block_wait: seconds that such a call waits for the end of a block.
        weight: the process's fair share.
        member: the process's number in the store.
        who: (member, priority) for each priority.
        times: clocks of the providers.
        depths: the queue depth of each scope.
        wake_socket: signalled when another process has freed units; None: no process signals.
    """

    def __init__(
        self,
        store: Store,
        worker: Worker,
        events: Events,
        egress: Egress,
        plans: Plans,
        policies: Policies,
        home: Path,
        *,
        max_wait: float,
        max_block_wait: float,
        weight: int,
    ) -> None:
        self.store, self.worker, self.events, self.egress, self.plans = store, worker, events, egress, plans
        self.policies, self.home = policies, home
        self.max_wait, self.max_block_wait, self.weight = max_wait, max_block_wait, weight
        self.member = secrets.randbits(62) | 1
        self.who = tuple((self.member, priority) for priority in range(2 * AGED))
        self.times = Times(store, worker)
        self.depths = Depths()
        self.wake_socket: socket.socket | None = None
        self._waiting: weakref.ref[Waiting] | None = None

    def attend(self, waiting: Waiting) -> None:
        """Notify `waiting` of changes that may let calls pass. Holds only a weak reference to it."""
        self._waiting = weakref.ref(waiting)

    def released(self, keys: Iterable[str]) -> None:
        """Serve waiting calls: units came back on these ledgers. A remote store may call it after the gate is gone."""
        if waiting := self._here():
            waiting.released(keys)

    def block(self, scope: str, seconds: float | None, kind: str = "pause", reason: str = "") -> None:
        """Block a scope for every process, at once. `seconds` None: until `unblock`. Raises ValueError: not above 0."""
        if seconds is not None and not 0 < seconds < math.inf:
            raise ValueError(f"a scope is shut for more than 0 seconds, not for {seconds:g}")
        length = None if seconds is None else int(seconds * SECOND)
        self.store.block(scope, length, kind, reason, time.monotonic_ns(), time.time_ns())
        if kind != CONTACT:
            self.rouse()

    def unblock(self, scope: str, kind: str = "") -> bool:
        """Open a scope again and wake the waiting calls of every process."""
        gone = self.store.unblock(scope, kind)
        self.events.open_again(scope)
        self.rouse()
        return gone

    def rouse(self) -> None:
        """Wake the waiting calls of every process: a block began or ended."""
        self.store.rouse(self.member)
        if waiting := self._here():
            waiting.look()

    def _here(self) -> Waiting | None:
        return self._waiting() if self._waiting is not None else None
