"""What one process knows of the server: the state of each namespace, and a copy of all blocks and stated limits.

The copy lets the process decide without asking the server. The process restores its knowledge of a namespace to a server that
lost its memory.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from ratekeeper.errors import StoreUnavailable
from ratekeeper.ledger.limit import SECOND, Charge, Instant, Limit
from ratekeeper.stores.blocks import Blocks, BlockState, PauseRecord
from ratekeeper.stores.encoding import read_or
from ratekeeper.stores.inforce import InForce
from ratekeeper.stores.records import FEW
from ratekeeper.stores.redis.clock import ServerClock
from ratekeeper.stores.redis.commands import Record
from ratekeeper.stores.redis.protocol import MICRO, Command, Stale, command, namespace_of, read_ledger

__all__ = ["Mirror", "Namespace", "PendingCall"]

_EACH: Final = 2
"""Copies looked at for each new one, so that those at rest never make up more than part of all."""
_KEPT: Final = 3 * 3600 * SECOND
"""A copy is kept for this long and two periods, ns. The server keeps a ledger for longer (`IDLE` in ``lua/verbs.lua``)."""
_NO_COPY: Final = (0, b"", 0)


class PendingCall:
    """Commands of a caller that waits for them; `error`: why they failed."""

    __slots__ = ("commands", "error", "over")

    def __init__(self, commands: Sequence[Command]) -> None:
        self.commands = commands
        self.over = False
        self.error: StoreUnavailable | None = None


class Namespace:
    """What this process knows of one namespace, and what it still has to send there.

    Attributes:
        epoch: the server's; -1 before this process holds anything there.
        away: whether this process went on without the server since the last reply.
        gen: the known generation of blocks and limits; -1 before the first reply.
        copies: ledger key -> (number of the write, the ledger in the server's form, steady ns of the reply), the longest
            unseen first. If the server loses its memory, the copy with the highest number wins.
        records: permits that are in flight or can be drawn, by number; restored to a server that lost its memory.
        pending: commands still to be sent, oldest first.
        calls: calls of threads that wait while a request is under way; the next request carries them.
        now: the latest instant on the provider's clock that a caller gave.
        members: how many sent heartbeats lately.
        beat, silence: steady ns of the last heartbeat, and how long after it others wait for the next, ns.
        asked: steady ns of the last use.
        greeted: number of the connection over which the server last identified itself.
        jumps: how often the server's clock had jumped when its ledgers were last told.
    """

    __slots__ = (
        "asked", "away", "beat", "calls", "copies", "epoch", "gen", "greeted", "jumps", "lock", "members", "name", "now",
        "pending", "records", "silence",
    )  # fmt: skip

    def __init__(self, name: str) -> None:
        self.name = name
        self.gen = self.epoch = -1
        self.away = False
        self.copies: OrderedDict[str, tuple[int, bytes, int]] = OrderedDict()
        self.records: dict[str, Record] = {}
        self.pending: list[Command] = []
        self.calls: list[PendingCall] = []
        self.now: Instant | None = None
        self.members = 1
        self.beat = self.silence = self.asked = 0
        self.greeted = -1
        self.jumps = 0
        self.lock = threading.Lock()

    def keep(self, copies: Iterable[tuple[str, int, bytes]], told: int, there: int) -> None:
        """Keep the ledgers of a reply, and forget some of those at rest.

        Args:
            copies: key, number of the write, the ledger in the server's form.
            told: steady ns of the reply.
            there: that instant on the server's clock, ns.
        """
        before = len(self.copies)
        for key, seq, raw in copies:
            self.copies[key] = seq, raw, told
            self.copies.move_to_end(key)
        for _ in range(_EACH * (len(self.copies) - before) if before > FEW else 0):
            key, (_, raw, _) = next(iter(self.copies.items()))
            if read_or(0, _rests_at, raw) <= there:
                del self.copies[key]
            else:
                self.copies.move_to_end(key)

    def seen(self, key: str, mono: int) -> int:
        """Return the number of the last write of a ledger that this process saw; 0: none. Forgets a copy that is older than
        what the server keeps. `mono`: steady ns."""
        seq, raw, told = self.copies.get(key, _NO_COPY)
        if raw and mono - told > _KEPT:
            ledger = read_or(None, read_ledger, raw)
            if ledger is None or mono - told > _KEPT + 2 * ledger.limit.period:
                del self.copies[key]
                return 0
        return seq

    @property
    def unsaid(self) -> bool:
        """Whether to ask the server although no caller waits for it."""
        return bool(self.pending) or self.gen < 0

    def take_pending(self) -> tuple[list[PendingCall], list[Command]]:
        """Take what the next request carries."""
        with self.lock:
            calls, self.calls = self.calls, []
            pending, self.pending = self.pending, []
        return calls, pending

    def put_back(self, commands: Iterable[Command]) -> None:
        """Keep the commands of a failed request, except one whose answer cannot be read, because a retry would get the same
        answer."""
        with self.lock:
            self.pending[:0] = [one for one in commands if not one.doubted]


class Mirror:
    """Blocks and stated limits of all namespaces. Thread-safe.

    Args:
        blocks: where the blocks are kept.
        learned: stated limits by namespace, see `Store.learned`; replaced as a whole.
        generation: see `Store.generation`.
        changed: called after each change of either, while no other change is made; a bound method, held weakly.
        given: see `RedisStore`.
    """

    def __init__(
        self,
        blocks: Blocks,
        learned: dict[str, dict[str, tuple[int, int]]],
        generation: int,
        changed: Callable[[], object],
        *,
        given: bool,
    ) -> None:
        self.blocks = blocks
        self.learned = learned
        self.generation = generation
        self._changed = weakref.WeakMethod(changed)
        self._given = given
        self._in_force = InForce()
        self._lock = threading.Lock()

    def limit_of(self, charge: Charge) -> Limit:
        """Return the limit in force for a charge."""
        return self._in_force.of(charge, self.learned)

    def _news(self) -> None:
        self._in_force.forget()
        self.generation += 1
        changed = self._changed()
        if changed is not None:
            changed()

    def take_in(self, namespace: str, told: Stale, clock: ServerClock) -> None:
        """Replace what is known of a namespace by what the server states."""
        with self._lock:
            mono, wall = time.monotonic_ns(), time.time_ns()
            states = [state for state in self.blocks.stored() if namespace_of(state.scope) != namespace]
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
        """Add stated limits. True if any of them is new."""
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
        """Remove the blocks of a scope."""
        with self._lock:
            self.blocks.remove(scope, kind)
            self._news()

    def obey(self, records: list[PauseRecord]) -> None:
        """Put the records of this machine into force."""
        with self._lock:
            self.blocks.obey(records)
            self._news()

    def take_back(self, record: PauseRecord) -> None:
        """Remove the pause that a record takes back."""
        with self._lock:
            if self.blocks.take_back(record):
                self._news()

    def holds(self, record: PauseRecord) -> bool:
        """Whether the server holds a pause of the record's scope, as far as this process knows."""
        return any((state.scope, state.kind) == (record.scope, record.kind) for state in self.blocks.stored())

    def restore(self, namespace: str, clock: ServerClock) -> list[Command]:
        """Return the commands that restore the blocks of a namespace to a server that lost them."""
        now = time.monotonic_ns()
        found: list[Command] = []
        for state in self.blocks.stored():
            left = False if state.length is None else (state.ends() - now) // MICRO
            if namespace_of(state.scope) == namespace and (left is False or left > 0):
                at = clock.there(state.mono) if left is False else False  # a pause stays as old as it is
                found.append(command("block", state.scope, state.kind, state.reason, left, at, left is False))
        return found


def _rests_at(raw: bytes) -> int:
    return read_ledger(raw).rests_at()
