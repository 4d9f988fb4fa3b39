"""The Redis client: the calls of one process share requests, and a helper thread sends commands for which no caller waits.

A call that needs an answer also sends everything pending and the commands of all other waiting calls. The end of a permit
waits a few ms for such a request. A client also sends heartbeats, finds a lost server again, and restores what this process
knows to a server that lost its memory.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from ratekeeper.errors import StoreError, StoreUnavailable
from ratekeeper.ledger.limit import SECOND, Instant
from ratekeeper.stores.redis.commands import regain
from ratekeeper.stores.redis.connection import Connection
from ratekeeper.stores.redis.mirror import Mirror, Namespace, PendingCall
from ratekeeper.stores.redis.protocol import MICRO, NOTES, Command, Done, Lost, Reply, Request, Stale, command
from ratekeeper.stores.threads import Helper, Nudge, log_death

__all__ = ["Client"]

_SOON: Final = 0.003
"""Seconds after which ended permits are sent; those that end meanwhile go along."""
_BEATS: Final = ((SECOND // 4, 3 * SECOND // 4), (2 * SECOND, 5 * SECOND))
"""Heartbeats of a busy process and of an idle one: the interval, and the silence after which others hold its share because it
may have begun to use it, ns."""
_REST: Final = 2 * SECOND
"""A process that wanted nothing for this long is idle, ns."""
_MARGIN: Final = SECOND // 4
"""A process begins to use its share this much later than others may expect, ns."""
_PROBE: Final = 0.05
"""Seconds between two attempts to reach a lost server."""
_REPEATS: Final = 8
_MOST: Final = 2_000
"""Most commands in one request, because the server serves no other client while it runs."""
_PENDING: Final = 100_000
"""Most commands kept for a server that is away; further ones are dropped (their leases end by themselves)."""


class Client:
    """The requests of one store. Thread-safe.

    Args:
        connection: to the server.
        mirror: updated when the server reports that it is stale.
        tend: called by the helper thread at the steady instant (ns); returns whether more work follows in a moment.
        asked: called by the helper thread when it has asked the server for news.
        returned: called by the helper thread when a lost server answers again.
        died: see `Helper`.
        given: see `RedisStore`.

    Attributes:
        member: the name of the gate that sends heartbeats, or empty.
        broken: why the server cannot be reached, or empty.
    """

    def __init__(
        self,
        connection: Connection,
        mirror: Mirror,
        *,
        tend: Callable[[int], bool],
        asked: Callable[[], object],
        returned: Callable[[], object],
        died: Callable[[str, BaseException], object] = log_death,
        given: bool,
    ) -> None:
        self.connection = connection
        self.member = self.broken = ""
        self._mirror = mirror
        self._tend = weakref.WeakMethod(tend)
        self._asked = weakref.WeakMethod(asked)
        self._returned = weakref.WeakMethod(returned)
        self._died = died
        self._given = given
        self._namespaces: dict[str, Namespace] = {}
        self._lock = threading.RLock()
        self._starting = threading.Lock()
        self._poke = Nudge()
        self._thread: Helper | None = None
        self._closed = False

    def namespace(self, name: str) -> Namespace:
        """Return what is known of a namespace."""
        return self._namespaces.get(name) or self._namespaces.setdefault(name, Namespace(name))

    def members(self) -> int:
        """Return how many members sent heartbeats lately, in the namespace with most; 0: the server never told."""
        spaces = list(self._namespaces.values())
        return max((space.members for space in spaces), default=1) if any(space.beat for space in spaces) else 0

    # -- calls -----------------------------------------------------------------------------------------------------

    def post(self, namespace: str, told: Command, at: Instant | None = None, *, now: bool = False) -> None:
        """Add a command to the next request.

        Args:
            namespace: the provider's.
            told: the command.
            at: the instant, if the caller knows one.
            now: whether a caller waits for its effect.
        """
        if self._given:
            self.call(namespace, [told], at)
            return
        space = self.namespace(namespace)
        if at is not None:
            space.now = at
        with space.lock:
            if len(space.pending) < _PENDING:
                space.pending.append(told)
        self.soon(at_once=now)

    def ask(self, namespace: str, write: Callable[[Request], list[Any]], at: Instant | None = None) -> Any:
        """Send a request for one command; returns the server's answer.

        Raises:
            StoreUnavailable: see `Connection.ask`.
        """
        told: list[Any] = []
        self.call(namespace, [Command(write, told.append)], at)
        return told[0]

    def call(self, namespace: str, commands: Sequence[Command], at: Instant | None = None) -> None:
        """Send a request for these commands and for what is pending; returns when they are done.

        Raises:
            StoreUnavailable: see `Connection.ask`.
        """
        space = self.namespace(namespace)
        mine = PendingCall(commands)
        with space.lock:
            if at is not None:
                space.now = at
            space.calls.append(mine)
        with self._lock:  # the thread that gets it also sends the commands of all that wait for it
            if not mine.over:
                self._send(space)
        if mine.error is not None:
            raise mine.error

    def _send(self, space: Namespace) -> None:
        calls, pending = space.take_pending()
        failed: StoreUnavailable | None = StoreUnavailable(f"{self.connection.address}: the request was broken off")
        try:
            while len(pending) > _MOST:
                self._exchange(space, pending[:_MOST])
                del pending[:_MOST]
            self._exchange(space, [*pending, *(one for call in calls for one in call.commands)])
            self.broken, failed = "", None
        except StoreUnavailable as error:
            space.put_back(pending)
            self.broken, failed = str(error), error
            self.soon(at_once=True)
        finally:
            for call in calls:
                call.over, call.error = True, failed

    def _exchange(self, space: Namespace, commands: list[Command]) -> None:
        """Send one request, and repeat it until the server and this process know the same."""
        clock = self.connection.clock
        lost, restored = False, list[Command]()
        for _ in range(_REPEATS):
            request, reply = self.connection.read(partial(self._round_trip, space, [*restored, *commands], lost))
            space.away = False
            # Generations only grow, so this server has forgotten blocks. What this process knows takes precedence.
            if reply.gen < space.gen and not restored:
                restored = self._mirror.restore(space.name, clock)
            if isinstance(reply, Stale):
                space.gen = reply.gen
                self._mirror.take_in(space.name, reply, clock)
            elif isinstance(reply, Lost):
                lost, space.epoch = True, reply.epoch
            else:
                self._done(space, request, reply)
                return
        raise StoreUnavailable(f"{self.connection.address}: it and this process do not agree on what was spent")

    def _round_trip(self, space: Namespace, commands: list[Command], lost: bool) -> tuple[Request, Reply]:
        made = self.connection.made
        request = self._request(space, commands, lost)
        header = self._header(space, request, lost)
        reply = self.connection.call(request, header)
        if header.get("hello"):
            space.greeted = made
        return request, reply

    def _request(self, space: Namespace, commands: list[Command], lost: bool) -> Request:
        request = Request(space.name, self._mirror.limit_of)
        clock = self.connection.clock
        if lost:  # a server that lost its memory: first restore what is known
            for key, (_, raw, _) in space.copies.items():
                request.add(Command(partial(_put, key=key, raw=raw)))
        if space.jumps != clock.jumps:
            # The ledgers store edges on the server's clock. That clock jumped, so the script must widen them.
            request.add(command("doubt", [], done=partial(_doubted, space, clock.jumps)))
        if lost:
            for record in list(space.records.values()):
                request.add(Command(partial(regain, of=record, lease=clock.there(record.record.lease))))
        for one in commands:
            request.add(one)
        mono = time.monotonic_ns()
        every, silence = _BEATS[mono - space.asked > _REST]
        if self.member and (lost or mono - space.beat > every or silence < space.silence):

            def counted(members: int) -> None:
                space.beat, space.silence, space.members = mono, silence, max(1, members)

            request.add(command("beat", self.member, silence // MICRO, done=counted))
        return request

    def _header(self, space: Namespace, request: Request, lost: bool) -> dict[str, Any]:
        mono = time.monotonic_ns()
        header: dict[str, Any] = {
            "gen": space.gen,
            "seen": [space.seen(key, mono) for key in request.names],
            **self.connection.clock.header(space.now or Instant(0, 0, 0)),
        }
        if not self._given:
            header["members"] = space.members
            if space.greeted != self.connection.made:
                header["hello"] = True
            if space.away:
                header["away"] = True
            if lost:
                header["restored"] = True
            if space.epoch >= 0:
                header["epoch"] = space.epoch
        return header

    def _done(self, space: Namespace, request: Request, reply: Done) -> None:
        """Apply the server's reply, and hand out the results."""
        space.gen, space.epoch = reply.gen, reply.epoch
        told = time.monotonic_ns()
        space.keep(reply.copies, told, told + self.connection.clock.lo)
        for one, result in zip(request.commands, reply.results, strict=True):
            if one.done is not None:
                one.done(result)

    # -- the helper thread -----------------------------------------------------------------------------------------

    def leave_alone(self) -> None:
        """This process goes on without the server."""
        for space in list(self._namespaces.values()):
            space.away = True

    def held_from(self) -> int:
        """Return the steady ns from which others hold the share of this process, if the server still serves them."""
        beats = [s.beat + s.silence + _MARGIN for s in self._namespaces.values() if s.beat and s.name != NOTES]
        return max(beats, default=0)

    def refresh(self, namespace: str) -> None:
        """Ask the server again, because blocks or limits of a namespace changed."""
        space = self._namespaces.get(namespace)
        if space is not None:
            space.gen = -1
            self.soon(at_once=True)

    def flush(self) -> None:
        """Send what is pending."""
        for space in list(self._namespaces.values()):
            if space.unsaid:
                try:
                    self.call(space.name, [])
                except StoreError:
                    return

    def leave(self, member: str, *, own: bool = True) -> bool:
        """Report that a member leaves; not `own`: that it is dead. False if the server cannot be told now."""
        told = not self.broken
        for space in list(self._namespaces.values()) if told else ():
            try:
                self.call(space.name, [command("leave", member, not own)])
            except StoreError:
                told = False
                break
        if own:
            self.member = ""
        return told

    def soon(self, *, at_once: bool = False) -> None:
        """Wake the helper thread soon."""
        if self._thread is None or not self._thread.is_alive():
            with self._starting:
                if (self._thread is None or not self._thread.is_alive()) and not self._closed:
                    self._thread = Helper(_keep_telling, weakref.ref(self), self._poke, name="redis", died=self._died)
        if at_once or not self._poke.is_set():
            self._poke.set()

    def look(self) -> float:
        """Do the helper thread's work once; returns seconds to sleep."""
        mono = time.monotonic_ns()
        tend, asked, returned = self._tend(), self._asked(), self._returned()
        if tend is None or asked is None or returned is None:
            return _PROBE  # the store is gone, and so is this client
        busy = tend(mono)
        if self.broken:
            try:
                self.connection.ask(lambda redis: redis.ping())
            except StoreError:
                return _PROBE
            self.broken = ""
            # An offline process first reports what it spent; only then may it count as back.
            returned()
        for space in list(self._namespaces.values()):
            due = self.member and mono - space.beat > _BEATS[mono - space.asked > _REST][0]
            if space.unsaid or due:
                try:
                    self.call(space.name, [])
                except StoreError:
                    return _PROBE
        asked()
        at_work = any(mono - space.asked <= _REST for space in self._namespaces.values())
        return _SOON if busy else _BEATS[not at_work][0] / SECOND

    def close(self) -> None:
        """Send what is pending, stop the helper thread, close the connections."""
        self._closed = True
        if not self.broken:
            self.flush()
        self._poke.set()
        self.connection.close()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed


def _doubted(space: Namespace, jumps: int, _: int) -> None:
    space.jumps = jumps


def _put(request: Request, key: str, raw: bytes) -> list[Any]:
    return ["put", request.ledger(key), request.blob(raw)]


def _keep_telling(client: weakref.ref[Client], poke: Nudge) -> None:
    """Run the helper thread. A `Helper` calls this again after an error."""
    seconds = _MARGIN / SECOND
    while True:
        if poke.wait(seconds):
            time.sleep(_SOON)
        here = client()
        if here is None or here.closed:
            return
        poke.clear()
        try:
            seconds = here.look()
        except Exception:
            if here.closed:  # closed during a call: ignore whatever redis-py raises
                return
            raise
        del here
