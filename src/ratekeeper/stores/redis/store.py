"""The Redis store: many machines share ledgers in a Redis or Valkey server (long because it has every verb).

The server runs the arithmetic. The end of a permit waits for the next request of this process, which carries everything
pending. Permits for calls in close succession come out of batches. So the busier a process is, the fewer round trips it makes
per call.
"""

from __future__ import annotations

import hashlib
import random
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ratekeeper.errors import StoreError, StoreUnavailable
from ratekeeper.ledger.base import Ledger
from ratekeeper.ledger.decide import Refusal
from ratekeeper.ledger.limit import SECOND, Charge, Instant
from ratekeeper.ledger.shares import Who
from ratekeeper.stores.base import SharedStore
from ratekeeper.stores.blocks import PAUSE, BlockState, PauseRecord
from ratekeeper.stores.encoding import Change, encoded, note_of
from ratekeeper.stores.files import make_folder, write_private
from ratekeeper.stores.members import WakeSockets
from ratekeeper.stores.pauses import Pauses
from ratekeeper.stores.records import (
    AS_RESERVED,
    NOTHING,
    Answered,
    Ask,
    Decision,
    Grant,
    Settlement,
    Snapshot,
    Units,
)  # fmt: skip
from ratekeeper.stores.redis.address import parse_address
from ratekeeper.stores.redis.client import Client
from ratekeeper.stores.redis.connection import Connection
from ratekeeper.stores.redis.lua import member_name
from ratekeeper.stores.redis.mirror import Mirror
from ratekeeper.stores.redis.permits import Permits
from ratekeeper.stores.redis.protocol import (
    EVER,
    MICRO,
    NOTES,
    BlockRow,
    Command,
    Message,
    Request,
    command,
    namespace_of,
    read_ledger,
)  # fmt: skip
from ratekeeper.stores.redis.pubsub import PubSub
from ratekeeper.stores.redis.snapshot import read_all, surely_left
from ratekeeper.stores.worker import Background, Worker

if TYPE_CHECKING:
    from ratekeeper.stores.responses import ResponseStorage

__all__ = ["RedisStore"]

N = TypeVar("N")
T = TypeVar("T")

_BURY: Final = SECOND // 4
"""Time between two checks for dead processes of this machine, ns: shorter than the silence after which the server holds the
share of a busy process."""
_KEY: Final = "hg:{notes}:secret"
_LENGTH: Final = 32
_MILLI: Final = 1_000_000
"""Nanoseconds in a millisecond."""
_TRIES: Final = 10_000
"""Most attempts of a compare-and-set on a note. Each failed attempt means that another process changed the note."""
_SLACK: Final = SECOND // 10 // MICRO
"""By so much may a pause seem younger than the record that takes it back, because two machines date them, us."""
_KNOWN: Final = 4096
"""Notes cached at most."""


class RedisStore(SharedStore):
    """Ledgers that all processes of all machines with this server address share.

    Args:
        url: of the server, see `ratekeeper.stores.redis.address`.
        home: the state folder of this machine; its processes use it to detect dead ones.
        given: for tests: calls supply the instants, and every verb is a round trip of its own. Else the server's clock
            counts, and ends of permits are sent later.
    """

    together = True

    def __init__(self, url: str, *, home: Path | None = None, given: bool = False) -> None:
        super().__init__()
        self.address = parse_address(url)
        self._sockets = WakeSockets(home / "wake") if home is not None else None
        self._home = home
        self._given = given
        self._start()

    def _start(self) -> None:
        """Begin with nothing sent and nothing held; also in a forked child."""
        self._numbers = random.Random(random.SystemRandom().getrandbits(128))  # a forked twin draws other numbers
        self._noted: dict[str, bytes | None] = {}
        """Notes as this process last wrote them, by topic."""
        self._buried = 0
        self.pauses = Pauses(self._home, str(self.address)) if self._home is not None else None
        self.connection = Connection(self.address, given=self._given)
        self._mirror = Mirror(self.blocks, self.learned, self.generation, self._changed, given=self._given)
        self._client = Client(
            self.connection, self._mirror, tend=self._tend, asked=self._tend_pauses, returned=self._returned,
            died=self.reporter(), given=self._given,
        )  # fmt: skip
        self._permits = Permits(
            self._client, self._mirror, self._numbers, self._tell, self.heed, self.handed, given=self._given
        )
        self._pubsub = PubSub(self.connection, self._client.refresh, self.reporter())
        self.heed()

    def _changed(self) -> None:
        """Take the new `learned` and `generation` from the mirror."""
        self.learned = self._mirror.learned
        self.generation = self._mirror.generation

    def _tell(self, namespace: str, answered: Answered) -> None:
        self.heard(namespace, answered)

    def _returned(self) -> None:
        self.back()

    def _tend(self, mono: int) -> bool:
        """Do this store's part of the helper thread's work; returns whether to run again in a moment."""
        self._permits.close_batches(mono)
        self._pubsub.look()
        if self._client.member and self._sockets is not None and mono - self._buried > _BURY:
            self._buried = mono
            for member, lives in self._sockets.census().items():
                if not lives and self._client.leave(member_name(member), own=False):
                    self._sockets.bury([member])
        self.heed()
        return self._permits.any_open

    def _tend_pauses(self) -> None:
        """Bring what was ordered on this machine to the server; called by the helper thread."""
        if self.pauses is not None and not self._client.broken:
            try:
                self.hand_on()
                self._review()
            except StoreError:
                pass  # the next call tries again

    # -- permits ---------------------------------------------------------------------------------------------------

    def reserve(self, ask: Ask, now: Instant) -> Decision:
        found = self.reserve_all([ask], lambda _: now)[0]
        return found if isinstance(found, Refusal) else found[0]

    def reserve_all(self, asks: Sequence[Ask], now: Callable[[str], Instant]) -> list[Sequence[Grant] | Refusal]:
        return self._permits.take(asks, now)

    def draw(self, charges: tuple[Charge, ...], who: Who, now: Instant) -> Grant | None:
        return self._permits.draw(charges, who, now)

    def settle(self, grant: Grant, now: Instant, told: Settlement = AS_RESERVED) -> Answered:
        return self._permits.settle(grant, now, told)

    def hold(self, grant: Grant, until: int) -> bool:
        return self._permits.hold(grant, until)

    def withdraw(
        self, keys: Iterable[str], who: Who, now: Instant, missed: Units = NOTHING, left: Units = NOTHING
    ) -> None:
        namespaces: dict[str, list[str]] = {}
        for key in keys:
            namespaces.setdefault(key.partition("/")[0], []).append(key)
        member, priority = who
        for namespace, names in namespaces.items():

            def write(request: Request, names: list[str] = names) -> list[Any]:
                of = [(request.ledger(key), missed.get(key, 0), left.get(key, 0)) for key in names]
                return ["withdraw", of, member_name(member), priority]

            self._client.post(namespace, Command(write), now)

    # -- observe and block -----------------------------------------------------------------------------------------

    def learn(self, namespace: str, limits: Mapping[str, tuple[int, int]]) -> bool:
        # Rounded, so that the numbers known here equal those that the server returns.
        whole = {name: (capacity, period // MICRO * MICRO) for name, (capacity, period) in limits.items()}
        if not self._mirror.learn(namespace, whole):
            return False
        wire = {name: [capacity, period // MICRO] for name, (capacity, period) in whole.items()}
        told = command("learn", wire, done=lambda _: self._mirror.learn(namespace, whole))
        self._client.post(namespace, told, now=True)
        return True

    def doubt(self, namespace: str, now: Instant) -> None:
        self._client.post(namespace, command("doubt", []), now, now=True)

    def block(self, scope: str, length: int | None, kind: str, reason: str, mono: int, wall: int) -> BlockState:
        record = self.blocks.kept.get((scope, kind))
        if isinstance(record, PauseRecord) and record.store == str(self.address):  # ordered here a moment ago
            told = Command(partial(self._pausing, record), partial(self._paused, record))
            self._client.post(namespace_of(scope), told, now=True)
            return record
        here = partial(self._mirror.block, scope, length, kind, reason, mono, wall)
        state = here()
        span = False if length is None else -(-max(0, length) // MICRO)
        # What arrived with the same request is older than this block.
        told = command("block", scope, kind, reason, span, done=lambda _: here())
        now = Instant(mono, mono, mono) if self._given else None
        self._client.post(namespace_of(scope), told, now, now=True)
        return state

    def unblock(self, scope: str, kind: str = "") -> bool:
        self._mirror.unblock(scope, kind)
        gone = bool(self._client.ask(namespace_of(scope), lambda _: ["unblock", scope, kind, kind == PAUSE]))
        self._mirror.unblock(scope, kind)  # what arrived with the same round trip was older
        return gone

    def keep(self, scope: str, length: int | None, kind: str, reason: str, mono: int, wall: int) -> BlockState:
        return self._mirror.block(scope, length, kind, reason, mono, wall)

    # -- the pauses of this machine ----------------------------------------------------------------------------------

    def _obey(self, records: list[PauseRecord]) -> None:
        self._mirror.obey(records)
        self._pubsub.hear(Message("", False, None))  # the waiting calls of this process recheck

    def deliver(self, record: PauseRecord) -> bool:
        if not record.resumed:
            return self._paused(record, self._client.ask(namespace_of(record.scope), partial(self._pausing, record)))
        item = ["unblock", record.scope, record.kind, self.connection.clock.there(record.mono) + _SLACK]
        news = bool(self._client.ask(namespace_of(record.scope), lambda _: item))
        self._mirror.take_back(record)
        if self.pauses is not None:
            self.pauses.handed(record)
        return news

    def _pausing(self, record: PauseRecord, request: Request, *, again: bool = False) -> list[Any]:
        """The command that pauses. `again`: the server was given the record before, and holds it no more."""
        span = False if record.length is None else -(-record.length // MICRO)
        at = self.connection.clock.there(record.mono)
        return ["block", record.scope, record.kind, record.reason, span, at, again]

    def _paused(self, record: PauseRecord, held: BlockRow) -> bool:
        """Apply the server's answer to `_pausing`. False: somebody had taken the pause back on another machine."""
        over = held.length is not False and held.length == 0
        if not over:
            self._mirror.block(record.scope, record.length, record.kind, record.reason, record.mono, record.wall)
        if self.pauses is not None:
            (self.pauses.drop if over else self.pauses.handed)(record)
        return not over

    def _review(self) -> None:
        """Deliver again what the server was given and does not hold. It may have lost its memory; else it answers that the
        pause was taken back on another machine."""
        assert self.pauses is not None
        for record in self.pauses.handed_on():
            if not self._mirror.holds(record):
                self._client.call(namespace_of(record.scope), [])  # learn what the server holds now
            if not self._mirror.holds(record):
                again = partial(self._pausing, record, again=True)
                self._paused(record, self._client.ask(namespace_of(record.scope), again))

    # -- notes and members -----------------------------------------------------------------------------------------

    def update(self, topic: str, kind: type[N], change: Change[N, T], keep: int = 0) -> T:
        """Compare-and-set: try first on the note as this process knows it, which usually succeeds, then on the server's
        value."""
        self.connection.clock  # noqa: B018 - `present` is by the server's clock
        raw, told = self._noted.get(topic), False
        for _ in range(_TRIES):
            note, result = change(note_of(raw, kind), self.present())
            changed = encoded(note)
            if told and changed == raw:
                return result
            written, there = self._swap(topic, raw, changed, keep)
            if written:
                if len(self._noted) > _KNOWN:
                    self._noted.clear()
                self._noted[topic] = changed
                return result
            raw, told = there, True
        raise StoreUnavailable(f"{topic} is changed by others all the time")

    def _swap(self, topic: str, before: bytes | None, after: bytes | None, keep: int) -> tuple[bool, bytes | None]:
        def write(request: Request) -> list[Any]:
            blobs = [False if raw is None else request.blob(raw) for raw in (before, after)]
            return ["swap", topic, *blobs, keep // _MILLI + 1 if keep else False]

        found: tuple[bool, bytes | None] = self._client.ask(NOTES, write)
        return found

    def get(self, topic: str, kind: type[N]) -> N | None:
        return note_of(self._client.ask(NOTES, lambda _: ["note", topic]), kind)

    def worker(self) -> Worker:
        return Background(self.reporter())

    def responses(self, home: Path, most_bytes: int) -> ResponseStorage:
        from ratekeeper.stores.responses import ServerResponses

        return ServerResponses(self.connection, most_bytes)

    def skew(self) -> tuple[int, int]:
        seen = self.connection.seen
        return (0, 0) if self._given else (seen.lo, seen.hi)

    def new_id(self) -> int:
        return self._numbers.getrandbits(63)

    def join(self, member: int, name: str) -> socket.socket | None:
        self._client.member = member_name(member)
        self._client.namespace(NOTES).beat = 0  # sends a heartbeat too
        topic = f"member:{member_name(member)}"
        self._client.post(NOTES, Command(lambda request: ["swap", topic, True, request.blob(name.encode()), False]))
        if self._sockets is not None:
            try:
                self._sockets.open(member)  # the kernel tells the others of this machine when we are dead
            except OSError:
                pass
        return self._pubsub.subscribe(member_name(member)) if not self._given else None

    def leave(self, member: int) -> None:
        if self._sockets is not None:
            self._sockets.shut(member)
        self._pubsub.unsubscribe(member_name(member))
        self._client.leave(member_name(member))

    def wake(self, members: Iterable[int]) -> None:
        self._pubsub.publish(map(member_name, members))

    def alive(self) -> int:
        return self._client.members() or self.address.processes

    def secret(self, home: Path) -> bytes:
        """Return the key under which API keys are digested, the same for all machines. The server keeps it, and `home` keeps
        a copy for when the server is unreachable."""
        kept = home / f"secret-{hashlib.sha256(str(self.address).encode()).hexdigest()[:12]}"
        # An emptied server gets back the key that running programs already use.
        fresh = kept.read_bytes() if kept.exists() else secrets.token_bytes(_LENGTH)

        def agreed(redis: Any) -> bytes:
            redis.set(_KEY, fresh, nx=True)
            found = redis.get(_KEY)
            if not isinstance(found, bytes) or len(found) != _LENGTH:
                raise ValueError("no key")
            return found

        try:
            found = self.connection.ask(agreed)
            make_folder(home)
            write_private(kept, found)
            return found
        except (StoreError, OSError):
            return fresh

    # -- for the fallback -----------------------------------------------------------------------------------------

    def peek(self, key: str, now: Instant) -> Ledger | None:
        copy = self._client.namespace(key.partition("/")[0]).copies.get(key)
        if copy is None:
            raise StoreUnavailable(f"{key} was never seen; others may have used it")
        there = self.connection.clock.instant(now)
        ledger = self.connection.read(lambda: read_ledger(copy[1], there))
        ledger.room = surely_left(ledger, there, now.mono, copy[2], self._client.held_from())
        return ledger

    def state(self) -> tuple[int, int]:
        return 0, 0  # unknown; `peek` returns what may surely be shared

    def detach(self, length: int = 0) -> str:
        self._client.leave_alone()
        return ""

    def held_from(self) -> int:
        return self._client.held_from()

    def reattach(
        self, mark: str, processes: int, held: Iterable[Grant], replay: Iterable[Callable[[], object]]
    ) -> None:
        if self._client.broken:
            raise StoreUnavailable(self._client.broken)
        for grant in held:
            self.adopt(grant)
        for verb in replay:
            verb()
        self._client.soon(at_once=True)  # the next round trip of any thread sends it

    def adopt(self, grant: Grant) -> None:
        self._permits.adopt(grant)

    def spent(self, grant: Grant, actual: Units, at: Instant) -> None:
        self._permits.spent(grant, actual, at)

    # -- for others ------------------------------------------------------------------------------------------------

    @property
    def trips(self) -> int:
        """Return the number of script calls so far."""
        return self.connection.calls

    def read(self, now: Callable[[str], Instant]) -> Snapshot:
        self._permits.close_batches(time.monotonic_ns())
        self._client.flush()
        self.hand_on()
        found = read_all(self._client, now)
        found.learned, found.blocks = self.learned, self.blocks.states()
        return found

    def after_fork(self) -> None:
        if self._sockets is not None:
            self._sockets.abandon()
        self._start()

    def close(self) -> None:
        self._permits.close_batches(EVER)
        self._client.close()
        self._pubsub.close()
        if self._sockets is not None:
            self._sockets.close()
