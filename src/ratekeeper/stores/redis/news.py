"""What all machines know besides ledgers: blocks, stated limits, notes, who is there, and what time it is over there."""

from __future__ import annotations

import functools
import hashlib
import os
import random
import secrets
import socket
import threading
import time
import weakref
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

from ratekeeper.errors import StoreError, StoreUnavailable
from ratekeeper.ledger.limit import Instant
from ratekeeper.stores.base import SharedStore
from ratekeeper.stores.blocks import BlockState
from ratekeeper.stores.inforce import InForce
from ratekeeper.stores.notes import Change, encoded, note_of
from ratekeeper.stores.redis.address import parse_address
from ratekeeper.stores.redis.bells import Bells
from ratekeeper.stores.redis.line import MICRO, Line, Load
from ratekeeper.stores.redis.lua import member_name
from ratekeeper.stores.redis.province import NOTES, Wish, province_of
from ratekeeper.stores.redis.slices import Slice, Slices
from ratekeeper.stores.redis.trips import Trips
from ratekeeper.stores.wake import Doorbells
from ratekeeper.stores.worker import Background, Worker

if TYPE_CHECKING:
    from ratekeeper.stores.shelf import Shelf

__all__ = ["EVER", "News"]

N = TypeVar("N")
T = TypeVar("T")

EVER: Final = 1 << 62
"""A steady instant that never comes, ns."""
_FAR: Final = 1 << 53
"""The script's word for never, us."""
_MILLI: Final = 1_000_000
"""Nanoseconds in a millisecond."""
_TRIES: Final = 10_000
"""So often a note is changed anew because others were faster: each time one of them has changed it."""
_KNOWN: Final = 4096
_KEY: Final = "hg:{notes}:secret"


class News(SharedStore):
    """The part of a `RedisStore` that has nothing to do with permits."""

    together: ClassVar[bool] = True

    @property
    @abstractmethod
    def slices_open(self) -> bool:
        """Whether permits can be drawn from any slice."""

    @abstractmethod
    def close_slices(self, mono: int, everything: bool = False) -> None:
        """Give back what nobody drew of the slices that are over at the steady instant `mono` (ns)."""

    @abstractmethod
    def settled(self, whole: Slice, permits: int) -> Wish:
        """So many permits of a slice were spent at their reserved cost."""

    @abstractmethod
    def regain(self, whole: Slice) -> Wish:
        """What gives a server without memory a record back."""

    def __init__(self, url: str, *, home: Path | None = None, given: bool = False) -> None:
        super().__init__()
        self.address = parse_address(url)
        self._doors = Doorbells(home / "wake") if home is not None else None
        self._given = given
        self._start()

    def _start(self) -> None:
        self._numbers = random.Random(random.SystemRandom().getrandbits(128))  # unlike a forked twin's
        self._in_force = InForce()
        self._slices = Slices()
        self._names: dict[int, str] = {}
        self._noted: dict[str, bytes | None] = {}
        """Notes as this process wrote them last, by topic."""
        self._news = threading.Lock()
        connected = weakref.WeakMethod(self._connected)  # the listening thread must not keep a dropped store alive

        def greeted() -> None:
            here = connected()
            if here is not None:
                here()

        line = Line(self.address, greeted)
        self._trips = Trips(line, self, given=self._given)
        self._bells = Bells(lambda: line.client, self._trips.refresh)

    def _connected(self) -> None:
        self._trips.connections += 1

    # -- observe ---------------------------------------------------------------------------------------------------

    def learn(self, namespace: str, limits: Mapping[str, tuple[int, int]]) -> bool:
        # What is known here and what the server says of it are the same numbers.
        whole = {name: (capacity, period // MICRO * MICRO) for name, (capacity, period) in limits.items()}

        def here() -> bool:
            with self._news:
                if not self._merge(namespace, whole):
                    return False
                self._changed()
                return True

        if not here():
            return False
        wire = {name: [capacity, period // MICRO] for name, (capacity, period) in whole.items()}
        self._trips.tell(namespace, Wish(lambda load: ["learn", wire], lambda result, load: here()), None, now=True)
        return True

    def doubt(self, namespace: str, now: Instant) -> None:
        self._trips.tell(namespace, Wish(lambda load: ["doubt", []]), now, now=True)

    def _changed(self) -> None:
        """`blocks` or `learned` are new."""
        self.generation += 1
        self._in_force.forget()

    def take_in(self, namespace: str, blocks: list[list[Any]], learned: Any) -> None:
        """What the server knows of blocks and stated limits of a namespace."""
        with self._news:
            mono, wall = time.monotonic_ns(), time.time_ns()
            states = [s for s in self.blocks.states() if province_of(s.scope) != namespace]
            for scope, kind, reason, length, at in blocks:
                begun = self.here(at)
                span = None if length is False else length * MICRO
                states.append(BlockState(scope, kind, reason, span, begun, wall + begun - mono, ""))
            self.blocks.load(states, 0 if self._given else mono, wall)
            if learned:
                limits = {name: (capacity, period * MICRO) for name, (capacity, period) in learned.items()}
                self.learned = {**self.learned, namespace: limits}
            self._changed()

    # -- block -----------------------------------------------------------------------------------------------------

    def block(self, scope: str, length: int | None, kind: str, reason: str, mono: int, wall: int) -> BlockState:
        def here() -> BlockState:
            with self._news:
                state = self.blocks.add(scope, length, kind, reason, mono, wall)
                self._changed()
                return state

        state = here()
        span = False if length is None else -(-max(0, length) // MICRO)
        now = Instant(mono, mono, mono) if self._given else None
        # What came in with the same round trip was older than this block.
        wish = Wish(lambda load: ["block", scope, kind, reason, span], lambda result, load: here())
        self._trips.tell(province_of(scope), wish, now, now=True)
        return state

    def shut_again(self, namespace: str) -> list[Wish]:
        """What gives a server that forgot them the blocks of a namespace back."""
        now = time.monotonic_ns()
        found: list[Wish] = []
        for state in self.blocks.states():
            left = False if state.length is None else (state.ends() - now) // MICRO
            if province_of(state.scope) == namespace and (left is False or left > 0):
                item = ["block", state.scope, state.kind, state.reason, left]
                found.append(Wish(functools.partial(_said, item)))
        return found

    def unblock(self, scope: str, kind: str = "") -> bool:
        gone: list[bool] = []

        def here() -> None:
            with self._news:
                self.blocks.remove(scope, kind)
                self._changed()

        here()
        self._trips.go(
            province_of(scope), [Wish(lambda load: ["unblock", scope, kind], lambda r, _: gone.append(bool(r)))], None
        )
        here()  # what came in with the same round trip was older than that
        return gone[0]

    def _hear_of_all(self) -> None:
        """Know what holds for all providers: it lies in a province of its own, because a script sees one only.

        A bell tells of changes; as long as this process is at work, a sign of life that is sent there four times a second
        does so too.
        """
        notes = self._trips.province(NOTES)
        notes.asked = time.monotonic_ns()
        if notes.gen < 0 or self._given:
            self._trips.go(NOTES, [], None)

    # -- notes and members -----------------------------------------------------------------------------------------

    def update(self, topic: str, kind: type[N], change: Change[N, T], keep: int = 0) -> T:
        """First on what this process knows of the note, as it usually is; then on what the server says it is."""
        self._trips.skew()
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
        def write(load: Load) -> list[Any]:
            blobs = [False if raw is None else load.blob(raw) for raw in (before, after)]
            return ["swap", topic, *blobs, keep // _MILLI + 1 if keep else False]

        found: list[tuple[bool, bytes | None]] = []
        self._trips.go(NOTES, [Wish(write, lambda r, _: found.append((bool(r[0]), self._blob(r[1]))))], None)
        return found[0]

    def get(self, topic: str, kind: type[N]) -> N | None:
        found: list[bytes | None] = []
        wish = Wish(lambda load: ["note", topic], lambda result, _: found.append(self._blob(result)))
        self._trips.go(NOTES, [wish], None)
        return note_of(found[0], kind)

    def _blob(self, number: Any) -> bytes | None:
        return self._trips.blob(number) if number else None

    def worker(self) -> Worker:
        return Background()

    def shelf(self, home: Path, most_bytes: int) -> Shelf:
        from ratekeeper.stores.shelf import ServerShelf

        return ServerShelf(self._trips.line, most_bytes)

    def skew(self) -> tuple[int, int]:
        skew = self._trips.line.skew
        return (0, 0) if self._given else (skew.lo, skew.hi)

    def here(self, instant: int) -> int:
        """A steady instant of the server (us) on this machine's clock (ns), the later if in doubt."""
        return EVER if instant >= _FAR else instant * MICRO - self._trips.skew()[0]

    def there(self, instant: int) -> int:
        """A steady instant of this machine (ns) on the server's clock (us), the later if in doubt."""
        return _FAR if instant >= EVER else -(-(instant + self._trips.skew()[1]) // MICRO)

    def new_id(self) -> int:
        return self._numbers.getrandbits(63)

    def join(self, member: int, name: str) -> socket.socket | None:
        self._names[member] = name
        self._trips.member = member_name(member)
        self._trips.province(NOTES).beat = 0  # a sign of life goes along
        topic = f"member:{member_name(member)}"
        self._trips.tell(NOTES, Wish(lambda load: ["swap", topic, True, load.blob(name.encode()), False]), None)
        if self._doors is not None:
            try:
                self._doors.hang(member)  # the kernel tells the others of this machine when we are dead
            except OSError:
                pass
        return self._bells.hang(member_name(member)) if not self._given else None

    def bury(self) -> None:
        """Take out the members of this machine whose processes are dead, so that nobody holds a share for them."""
        for member in self._doors.dead() if self._doors is not None else ():
            self._trips.leave(member_name(member), own=False)

    def leave(self, member: int) -> None:
        self._names.pop(member, None)
        if self._doors is not None:
            self._doors.take_down(member)
        self._bells.take_down(member_name(member))
        self._trips.leave(member_name(member))

    def wake(self, members: Iterable[int]) -> None:
        names = " ".join(member_name(member) for member in members)
        if names:
            try:
                self._trips.line.ask(lambda client: client.publish("hg:{notes}:bell", f"wake {names}"))
            except StoreError:
                pass  # the safety look remains

    @property
    def trips(self) -> int:
        """Script calls made so far."""
        return self._trips.line.trips

    def held_from(self) -> int:
        return self._trips.held_from()

    def alive(self) -> int:
        return self._trips.members() if self._trips.counted else self.address.processes

    def secret(self, home: Path) -> bytes:
        """The key under which API keys are digested, the same for all machines: kept on the server, and in `home` for when
        that is out of reach."""
        kept = home / f"secret-{hashlib.sha256(str(self.address).encode()).hexdigest()[:12]}"
        # A server that was emptied gets back what the programs that run already go by.
        fresh = kept.read_bytes() if kept.exists() else secrets.token_bytes(32)
        try:
            self._trips.line.ask(lambda client: client.set(_KEY, fresh, nx=True))
            found: bytes = self._trips.line.ask(lambda client: client.get(_KEY))
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft = kept.with_suffix(f".{os.getpid()}")
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(found)
            draft.replace(kept)
            return found
        except (StoreError, OSError):
            return fresh


def _said(item: list[Any], _load: Load) -> list[Any]:
    return item
