"""What one process knows of one provider's ledgers on the server, and what it has still to tell it."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

from ratekeeper.errors import StoreUnavailable
from ratekeeper.ledger.limit import Instant
from ratekeeper.stores.redis.commands import Record
from ratekeeper.stores.redis.protocol import Command

__all__ = ["Namespace", "PendingCall"]


class PendingCall:
    """Commands of a caller that waits for them; `error`: why they came to nothing."""

    __slots__ = ("commands", "error", "over")

    def __init__(self, commands: Sequence[Command]) -> None:
        self.commands = commands
        self.over = False
        self.error: StoreUnavailable | None = None


class Namespace:
    """One namespace.

    Attributes:
        epoch: the server's; -1 before anything is held there.
        away: whether this process went on without the server since the last reply.
        gen: the generation of blocks and limits that is known; -1 before the first reply.
        copies: ledger key -> (number of the write, the ledger as it lies on the server, steady ns at which that was told).
            Should the server lose its memory, whoever wrote last has the last word.
        records: of permits that are in flight or can be drawn, by number: given again to a server without memory.
        pending: what has still to be told, oldest first.
        calls: of threads that wait while a request is under way; the next takes them along.
        now: the latest instant on the provider's clock that was given.
        members: how many were heard of lately.
        beat, silence: steady ns of the last sign of life, and how long after it others wait for the next, ns.
        asked: steady ns at which anything was wanted last.
        greeted: number of the connection over which the server was last asked who it is.
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
        self.copies: dict[str, tuple[int, bytes, int]] = {}
        self.records: dict[str, Record] = {}
        self.pending: list[Command] = []
        self.calls: list[PendingCall] = []
        self.now: Instant | None = None
        self.members = 1
        self.beat = self.silence = self.asked = 0
        self.greeted = -1
        self.jumps = 0
        self.lock = threading.Lock()

    @property
    def unsaid(self) -> bool:
        """Whether the server should be asked although nobody waits for it."""
        return bool(self.pending) or self.gen < 0

    def take_pending(self) -> tuple[list[PendingCall], list[Command]]:
        """What the next request carries."""
        with self.lock:
            calls, self.calls = self.calls, []
            pending, self.pending = self.pending, []
        return calls, pending

    def put_back(self, commands: Iterable[Command]) -> None:
        """They came to nothing. One whose answer cannot be read would only be answered so again."""
        with self.lock:
            self.pending[:0] = [one for one in commands if not one.doubted]
