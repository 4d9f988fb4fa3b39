"""A copy of the server's blocks and stated limits, by which this process goes without asking."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Mapping

from ratekeeper.ledger.limit import Charge, Limit
from ratekeeper.stores.blocks import Blocks, BlockState
from ratekeeper.stores.inforce import InForce
from ratekeeper.stores.redis.clock import ServerClock
from ratekeeper.stores.redis.protocol import MICRO, Command, Stale, command, namespace_of

__all__ = ["Mirror"]


class Mirror:
    """Blocks and stated limits of all namespaces. Thread-safe.

    Args:
        blocks: where the blocks are kept.
        learned: stated limits by namespace, see `Store.learned`; replaced as a whole.
        changed: called whenever one of both is new, while no other change is made; a bound method, held weakly.
        given: see `RedisStore`.
    """

    def __init__(
        self,
        blocks: Blocks,
        learned: dict[str, dict[str, tuple[int, int]]],
        changed: Callable[[], object],
        *,
        given: bool,
    ) -> None:
        self.blocks = blocks
        self.learned = learned
        self._changed = weakref.WeakMethod(changed)
        self._given = given
        self._in_force = InForce()
        self._lock = threading.Lock()

    def limit_of(self, charge: Charge) -> Limit:
        """The limit in force for a charge."""
        return self._in_force.of(charge, self.learned)

    def _news(self) -> None:
        self._in_force.forget()
        changed = self._changed()
        if changed is not None:
            changed()

    def take_in(self, namespace: str, told: Stale, clock: ServerClock) -> None:
        """What the server knows takes the place of what is known here of that namespace."""
        with self._lock:
            mono, wall = time.monotonic_ns(), time.time_ns()
            states = [state for state in self.blocks.states() if namespace_of(state.scope) != namespace]
            for row in told.blocks:
                begun = clock.here(row.at)
                length = None if row.length is False else row.length * MICRO
                states.append(BlockState(row.scope, row.kind, row.reason, length, begun, wall + begun - mono, ""))
            self.blocks.load(states, 0 if self._given else mono, wall)
            if isinstance(told.learned, dict):
                limits = {name: (capacity, period * MICRO) for name, (capacity, period) in told.learned.items()}
                self.learned = {**self.learned, namespace: limits}
            self._news()

    def learn(self, namespace: str, limits: Mapping[str, tuple[int, int]]) -> bool:
        """Add stated limits. True if that is news."""
        with self._lock:
            known = self.learned.get(namespace, {})
            merged = {**known, **limits}
            if merged == known:
                return False
            self.learned = {**self.learned, namespace: merged}
            self._news()
            return True

    def block(self, scope: str, length: int | None, kind: str, reason: str, mono: int, wall: int) -> BlockState:
        """Add a block, as `Store.block`."""
        with self._lock:
            state = self.blocks.add(scope, length, kind, reason, mono, wall)
            self._news()
            return state

    def unblock(self, scope: str, kind: str) -> None:
        """Take blocks of a scope away."""
        with self._lock:
            self.blocks.remove(scope, kind)
            self._news()

    def restore(self, namespace: str) -> list[Command]:
        """What gives a server that forgot them the blocks of a namespace back."""
        now = time.monotonic_ns()
        found: list[Command] = []
        for state in self.blocks.states():
            left = False if state.length is None else (state.ends() - now) // MICRO
            if namespace_of(state.scope) == namespace and (left is False or left > 0):
                found.append(command("block", state.scope, state.kind, state.reason, left))
        return found
