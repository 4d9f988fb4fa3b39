"""Ledgers shared by many machines, in a Redis or Valkey server that runs the arithmetic; long because a store has many verbs.

What ends a permit waits for the next request of this process, which takes along all that is pending; permits for calls that
follow each other closely come out of batches. So the busier a process is, the fewer round trips it makes.
"""

from __future__ import annotations

import hashlib
import os
import random
import secrets
import socket
import threading
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
from ratekeeper.stores.batching import Batches, BatchPermit
from ratekeeper.stores.blocks import BlockState
from ratekeeper.stores.encoding import Change, encoded, note_of
from ratekeeper.stores.members import WakeSockets
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
from ratekeeper.stores.redis.commands import End, Record, adopt, refund, reserve, settle, spent
from ratekeeper.stores.redis.connection import Connection
from ratekeeper.stores.redis.lua import member_name
from ratekeeper.stores.redis.mirror import Mirror
from ratekeeper.stores.redis.protocol import (
    EVER,
    MICRO,
    NOTES,
    Command,
    Granted,
    Request,
    command,
    namespace_of,
    read_ledger,
)  # fmt: skip
from ratekeeper.stores.redis.pubsub import PubSub
from ratekeeper.stores.redis.snapshot import read_all, surely_left
from ratekeeper.stores.worker import Background, Worker

if TYPE_CHECKING:
    from ratekeeper.stores.shelf import Shelf

__all__ = ["RedisStore"]

N = TypeVar("N")
T = TypeVar("T")

_OPEN: Final = SECOND // 20
"""How long permits are handed out of a batch, ns."""
_MOST: Final = 256
"""Permits in a batch at most."""
_BURY: Final = 2 * SECOND
"""Time between two looks which processes of this machine are dead, ns."""
_KEY: Final = "hg:{notes}:secret"
_LENGTH: Final = 32
_MILLI: Final = 1_000_000
"""Nanoseconds in a millisecond."""
_TRIES: Final = 10_000
"""So often a note is changed anew because others were faster: each time one of them has changed it."""
_KNOWN: Final = 4096
"""Notes that are known at most."""
_ENDED: Final = Answered()


class RedisStore(SharedStore):
    """All processes of all machines that name this server share these ledgers.

    Args:
        url: of the server, see `ratekeeper.stores.redis.address`.
        home: the state folder of this machine; there its processes see which of them are dead.
        given: instants come with the calls, and every verb is a round trip of its own: for tests. Else the server's clock
            counts, and what ends a permit is told when it suits.
    """

    together = True

    def __init__(self, url: str, *, home: Path | None = None, given: bool = False) -> None:
        super().__init__()
        self.address = parse_address(url)
        self._sockets = WakeSockets(home / "wake") if home is not None else None
        self._given = given
        self._start()

    def _start(self) -> None:
        """Begin with nothing sent and nothing held; also in a forked child."""
        self._numbers = random.Random(random.SystemRandom().getrandbits(128))  # unlike a forked twin's
        self._batches: Batches[Record] = Batches(_OPEN, _MOST)
        self._noted: dict[str, bytes | None] = {}
        """Notes as this process wrote them last, by topic."""
        self._counting = threading.Lock()
        self._buried = 0
        self.connection = Connection(self.address, given=self._given)
        self._mirror = Mirror(self.blocks, self.learned, self._changed, given=self._given)
        self._client = Client(
            self.connection, self._mirror, tend=self._tend, returned=self._returned, given=self._given
        )
        self._pubsub = PubSub(self.connection, self._client.refresh)

    def _changed(self) -> None:
        """`blocks` or `learned` are new."""
        self.learned = self._mirror.learned
        self.generation += 1

    def _returned(self) -> None:
        self.back()

    def _tend(self, mono: int) -> bool:
        """The client's helper thread is awake; whether it should look again in a moment."""
        self._close_batches(mono)
        if self._client.member and self._sockets is not None and mono - self._buried > _BURY:
            self._buried = mono
            for member in self._sockets.dead():  # so that nobody holds a share for them
                self._client.leave(member_name(member), own=False)
        return self._batches.any_open

    # -- permits ---------------------------------------------------------------------------------------------------

    def reserve(self, ask: Ask, now: Instant) -> Decision:
        found = self.reserve_all([ask], lambda _: now)[0]
        return found if isinstance(found, Refusal) else found[0]

    def draw(self, charges: tuple[Charge, ...], who: Who, now: Instant) -> Grant | None:
        record = self._batches.draw(charges, who, now.mono, self.generation)
        return None if record is None else BatchPermit(self._numbers.getrandbits(63), record, now)

    def reserve_all(self, asks: Sequence[Ask], now: Callable[[str], Instant]) -> list[Sequence[Grant] | Refusal]:
        found: list[Sequence[Grant] | Refusal | None] = [None] * len(asks)
        namespaces: dict[str, list[tuple[Command, int]]] = {}
        self._hear_of_all()
        for place, ask in enumerate(asks):
            at = now(ask.namespace)
            if no := self.blocks.against(ask.scopes, ask.charges, at.mono, everywhere=True):
                found[place] = no
                continue
            number = self._numbers.getrandbits(63)
            one = self._ask(ask, number, at, found, place)
            namespaces.setdefault(ask.namespace, []).append((one, number))
        for namespace, commands in namespaces.items():
            self._client.namespace(namespace).asked = time.monotonic_ns()
            try:
                self._client.call(namespace, [one for one, _ in commands], now(namespace))
            except StoreError:
                if not self._given:
                    for _, number in commands:  # nobody knows whether it was granted
                        self._client.post(namespace, command("undo", f"{number:016x}"))
                raise
        later = next((x for x in reversed(found) if isinstance(x, Refusal)), Refusal("", 0, unknown=True))
        return [later if one is None else one for one in found]

    def _hear_of_all(self) -> None:
        """Know what holds for all providers: it lies in a namespace of its own, because a script sees one only.

        A message tells of changes; as long as this process is at work, a sign of life that is sent there four times a second
        does so too.
        """
        notes = self._client.namespace(NOTES)
        notes.asked = time.monotonic_ns()
        if notes.gen < 0 or self._given:
            self._client.call(NOTES, [])

    def _ask(self, ask: Ask, number: int, now: Instant, found: list[Any], place: int) -> Command:
        """One `reserve`; its answer goes to `found[place]`."""
        most = ask.most
        if ask.lane and not ask.ahead:
            most += self._batches.size(ask.charges, ask.who, now.mono, self.connection.took)

        def write(request: Request) -> list[Any]:
            return reserve(request, ask, f"{number:016x}", most)

        def done(told: Granted | Refusal | None) -> None:
            if isinstance(told, Granted):
                record = Grant(number, ask.namespace, ask.charges, told.marks, now, ask.who, now.mono + ask.lease)
                found[place] = self._granted(ask, record, told.permits)
            elif told is not None:
                found[place] = told._replace(opens=self.connection.clock.here(told.opens))

        return Command(write, done)

    def _granted(self, ask: Ask, grant: Grant, permits: int) -> list[Grant]:
        """The permits that calls wait for; what was granted beyond them is kept."""
        now = grant.sent
        opened = now.mono if self._given else time.monotonic_ns()  # the answer may have been long under way
        record = Record(grant, self.connection.clock.stamp(now), permits, opened + _OPEN, self.generation)
        self._client.namespace(ask.namespace).records[record.number] = record
        wanted = min(ask.most, permits)
        record.undrawn -= wanted
        if record.undrawn:
            self._batches.keep(record)
            self._client.soon()
        return [BatchPermit(self.new_id() if i else grant.id, record, now) for i in range(wanted)]

    # -- their end -------------------------------------------------------------------------------------------------

    def settle(self, grant: Grant, now: Instant, told: Settlement = AS_RESERVED) -> Answered:
        if isinstance(grant, BatchPermit):
            if not grant.open:
                return Answered(late=True)
            grant.open = False
            if told is AS_RESERVED and not self._given:
                self._count(grant.batch)
                return _ENDED
        return self._end(grant, now, partial(settle, told=told) if told.sent else refund)

    def _count(self, record: Record) -> None:
        """One permit of a record was spent at its reserved cost: all such are told together."""
        with self._counting:
            record.counted += 1
            if record.counted > 1:
                return  # the command that takes the count is pending

        def counted() -> int:
            with self._counting:
                permits, record.counted = record.counted, 0
            return permits

        end = End(record, 0, counted)
        self._client.post(record.record.namespace, Command(partial(settle, end=end), partial(self._ended, end)))

    def _end(self, grant: Grant, now: Instant, item: Callable[..., list[Any]]) -> Answered:
        """Tell the end of a permit; what that brought about, if it is known already."""
        ends: list[End] = []
        found: list[Answered] = []

        def write(request: Request) -> list[Any]:
            if not ends:
                ends.append(End(self._record(grant)))
            return item(request, end=ends[0])

        def done(told: Answered) -> None:
            found.append(told)
            self._ended(ends[0], told)

        self._client.post(grant.namespace, Command(write, done), now)
        return found[0] if found else _ENDED

    def _record(self, grant: Grant) -> Record:
        """The permit's record on the server."""
        if isinstance(grant, BatchPermit):
            record: Record = grant.batch
            return record
        return Record(grant, self.connection.clock.stamp(grant.sent))

    def _ended(self, end: End, told: Answered) -> None:
        """The server knows that permits of a record ended."""
        self._let_go(end)
        if not self._given and (told.freed or told.foreign):  # else whoever asked waits for it
            self.heard(end.of.record.namespace, told._replace(wake=frozenset()))  # the script has woken the others

    def _let_go(self, end: End) -> None:
        end.of.left -= end.permits
        if end.of.left <= 0:
            self._client.namespace(end.of.record.namespace).records.pop(end.of.number, None)

    def _close_batches(self, mono: int) -> None:
        """Give back what nobody drew of the batches that are over."""
        for record, rest in self._batches.close(mono, self.generation):
            end = End(record, rest)
            self._client.post(record.record.namespace, Command(partial(refund, end=end), partial(self._ended, end)))

    def hold(self, grant: Grant, until: int) -> bool:
        if isinstance(grant, BatchPermit):
            if not grant.open:
                return False
            if grant.batch.left > 1:
                self._part_with(grant, until)
                return True
            grant.batch.record.lease = until
        grant.lease = until
        lease, held = self.connection.clock.there(until), [True]
        self._client.post(grant.namespace, Command(lambda _: ["hold", self._record(grant).number, lease], held.append))
        return held[-1]

    def _part_with(self, grant: BatchPermit[Record], until: int) -> None:
        """Give one permit of a batch a record of its own."""
        old, end = grant.batch, End(grant.batch)
        self._client.post(grant.namespace, Command(partial(refund, end=end), lambda _: self._let_go(end)))
        marks, sent = old.record.marks, old.record.sent
        own = Grant(self.new_id(), grant.namespace, grant.charges, marks, sent, grant.who, until)
        new = Record(own, old.sent)
        new.undrawn = 0
        grant.batch, grant.lease = new, until
        self._client.namespace(grant.namespace).records[new.number] = new
        self._adopt(new)

    def _adopt(self, record: Record) -> None:
        def write(request: Request) -> list[Any]:
            return adopt(request, record, self.connection.clock.there(record.record.lease))

        self._client.post(record.record.namespace, Command(write))

    def withdraw(
        self, keys: Iterable[str], who: Who, now: Instant, missed: Units = NOTHING, left: Units = NOTHING
    ) -> None:
        namespaces: dict[str, list[str]] = {}
        for key in keys:
            namespaces.setdefault(key.partition("/")[0], []).append(key)
        member, klass = who
        for namespace, names in namespaces.items():

            def write(request: Request, names: list[str] = names) -> list[Any]:
                of = [(request.ledger(key), missed.get(key, 0), left.get(key, 0)) for key in names]
                return ["withdraw", of, member_name(member), klass]

            self._client.post(namespace, Command(write), now)

    # -- observe and block -----------------------------------------------------------------------------------------

    def learn(self, namespace: str, limits: Mapping[str, tuple[int, int]]) -> bool:
        # What is known here and what the server says of it are the same numbers.
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
        here = partial(self._mirror.block, scope, length, kind, reason, mono, wall)
        state = here()
        span = False if length is None else -(-max(0, length) // MICRO)
        # What came in with the same request is older than this block.
        told = command("block", scope, kind, reason, span, done=lambda _: here())
        now = Instant(mono, mono, mono) if self._given else None
        self._client.post(namespace_of(scope), told, now, now=True)
        return state

    def unblock(self, scope: str, kind: str = "") -> bool:
        self._mirror.unblock(scope, kind)
        gone = bool(self._client.ask(namespace_of(scope), lambda _: ["unblock", scope, kind]))
        self._mirror.unblock(scope, kind)  # what came in with the same round trip was older than that
        return gone

    # -- notes and members -----------------------------------------------------------------------------------------

    def update(self, topic: str, kind: type[N], change: Change[N, T], keep: int = 0) -> T:
        """First on what this process knows of the note, as it usually is; then on what the server says it is."""
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
        return Background()

    def shelf(self, home: Path, most_bytes: int) -> Shelf:
        from ratekeeper.stores.shelf import ServerShelf

        return ServerShelf(self.connection, most_bytes)

    def skew(self) -> tuple[int, int]:
        seen = self.connection.seen
        return (0, 0) if self._given else (seen.lo, seen.hi)

    def new_id(self) -> int:
        return self._numbers.getrandbits(63)

    def join(self, member: int, name: str) -> socket.socket | None:
        self._client.member = member_name(member)
        self._client.namespace(NOTES).beat = 0  # a sign of life goes along
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
        """The key under which API keys are digested, the same for all machines: kept on the server, and in `home` for when
        that is out of reach."""
        kept = home / f"secret-{hashlib.sha256(str(self.address).encode()).hexdigest()[:12]}"
        # A server that was emptied gets back what the programs that run already go by.
        fresh = kept.read_bytes() if kept.exists() else secrets.token_bytes(_LENGTH)

        def agreed(redis: Any) -> bytes:
            redis.set(_KEY, fresh, nx=True)
            found = redis.get(_KEY)
            if not isinstance(found, bytes) or len(found) != _LENGTH:
                raise ValueError("no key")
            return found

        try:
            found = self.connection.ask(agreed)
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft = kept.with_suffix(f".{os.getpid()}")
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(found)
            draft.replace(kept)
            return found
        except (StoreError, OSError):
            return fresh

    # -- for the safe share ----------------------------------------------------------------------------------------

    def peek(self, key: str, now: Instant) -> Ledger | None:
        copy = self._client.namespace(key.partition("/")[0]).copies.get(key)
        if copy is None:
            raise StoreUnavailable(f"{key} was never seen; others may have used it")
        there = self.connection.clock.instant(now)
        ledger = self.connection.read(lambda: read_ledger(copy[1], there))
        ledger.room = surely_left(ledger, there, now.mono, copy[2], self._client.held_from())
        return ledger

    def state(self) -> tuple[int, int]:
        return 0, 0  # nobody can tell; `peek` says what may surely be shared

    def detach(self) -> str:
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
        self._client.soon(at_once=True)  # whoever makes the next trip tells it first

    def adopt(self, grant: Grant) -> None:
        self._adopt(self._record(grant))

    def spent(self, grant: Grant, actual: Mapping[str, int], at: Instant) -> None:
        end = self.connection.clock.stamp(at)
        self._client.post(grant.namespace, Command(partial(spent, grant=grant, actual=actual, end=end)))

    # -- for others ------------------------------------------------------------------------------------------------

    @property
    def trips(self) -> int:
        """Script calls made so far."""
        return self.connection.calls

    def read(self, now: Callable[[str], Instant]) -> Snapshot:
        self._close_batches(time.monotonic_ns())
        self._client.flush()
        found = read_all(self._client, now)
        found.learned, found.blocks = self.learned, self.blocks.states()
        return found

    def after_fork(self) -> None:
        if self._sockets is not None:
            self._sockets.abandon()
        self._start()

    def close(self) -> None:
        self._close_batches(EVER)
        self._client.close()
        self._pubsub.close()
        if self._sockets is not None:
            self._sockets.close()
