"""The connections of a stream: it dials, watches and replaces them without a gap.

One task dials, watches and replaces connections; one more task per connection reads it. The reader of the live connection
hands its messages on. While a new connection takes over, its messages wait until the old one has been read to its end. So no
message is missed and none comes out of order.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ratekeeper.errors import CannotFit, Rejected
from ratekeeper.rules.secrets import secrets_of, struck
from ratekeeper.sessions.dials import Connection, bounded
from ratekeeper.sessions.transports import Closed

if TYPE_CHECKING:
    from ratekeeper import Gate
    from ratekeeper.sessions.dialects import Dialect, Habits
    from ratekeeper.sessions.dials import Dialler
    from ratekeeper.sessions.liveness import Liveness

__all__ = ["Connections", "Message"]

_LOG: Final = logging.getLogger("ratekeeper")
_MOST_HELD: Final = 10_000
"""Most messages of a new connection that wait while the old one is read to its end."""
_ROLL_AGAIN: Final = 5.0
"""Seconds until a failed replacement is retried."""


class Message(NamedTuple):
    """One message. `data` is the text or bytes received or, `polled`, the fallback's result; `at` is in Unix seconds."""

    data: Any
    polled: bool
    at: float


class Connections:
    """The part of `Stream` without the consumer's side; `Stream` explains the arguments."""

    liveness: Liveness

    def __init__(
        self,
        gate: Gate,
        dialler: Dialler,
        dialect: Dialect,
        habits: Habits,
        topics: Sequence[Any],
        setup: Callable[[Callable[[str], Awaitable[None]]], Awaitable[object]] | None,
        key: Callable[[Any], Hashable] | None,
        fallback: Callable[[], Awaitable[Any]] | None,
        every: Callable[[], float] | float,
        fallback_after: float,
        fallback_within: float,
        liveness: Liveness,
        backlog: int,
    ) -> None:
        self.liveness = liveness
        self._gate = gate
        self._dialler = dialler
        self._dialect = dialect
        self._habits = habits
        self._topics = list(topics)
        self._setup = setup
        self._key = key or (lambda data: data)
        self._fallback = fallback
        self._every = every
        self._fallback_after = fallback_after
        self._fallback_within = fallback_within
        self._backlog = backlog
        self._ready: deque[Message] = deque()
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._hurry = asyncio.Event()
        self._live: Connection | None = None
        self._next: Connection | None = None
        self._seen: set[Hashable] = set()
        self._replacing = False
        self._poll: asyncio.Task[None] | None = None
        self._down_now = True
        self._told_down = False
        self._number = 1
        self._reconnects = self._rollovers = 0
        self._heard: float | None = None
        self._problem = ""

    # --- one after the other ------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        connection: Connection | None = None
        try:
            self._serve_meanwhile()  # the first dial may hang, or wait for a ban to end
            while True:
                await self._dialler.turn()
                connection = await self._connect()
                if connection is None:
                    continue
                while connection is not None and (following := await self._watch(connection)) is not None:
                    connection = following
                self._live = connection = None
        finally:
            self._live, held = None, [each for each in (self._live, self._next, connection) if each is not None]
            self._next = None
            if self._poll is not None:
                self._poll.cancel()
                await asyncio.wait({self._poll}, timeout=1.0)  # the user's task: it may resist cancellation
            for each in dict.fromkeys(held):
                await self._end(each, at_once=True)

    async def _connect(self, *, replacing: bool = False) -> Connection | None:
        """Dial and subscribe one connection; None if that failed. The failure is recorded and reported."""
        connection: Connection | None = None
        try:
            opened = await self._dialler.dial()
            connection = Connection(*opened, self.liveness, self._dialect, self._habits)
            if replacing:
                self._next = connection  # before its first message is read
            connection.reader = asyncio.create_task(self._read(connection), name="ratekeeper-stream-reader")
            await self._prepare(connection, connection.reader)
        except BaseException as error:
            if connection is not None:
                self._live = None if self._live is connection else self._live
                await self._end(connection, at_once=True)
            if isinstance(error, CannotFit) or not isinstance(error, Exception):
                raise
            if isinstance(error, Rejected):
                # The gate refused the dial, so nothing is known of the host. A ban or a pause states when it ends.
                self._down(str(error))
                await asyncio.sleep(min(30.0, max(1.0, (error.retry_at or 0.0) - time.time())))
            else:  # an error of the library, the network, or the user's setup
                await self._dialler.failed(good=False)
                self._down(str(error) if isinstance(error, Closed) else f"{type(error).__name__}: {error}")
            return None
        return connection

    async def _prepare(self, connection: Connection, reader: asyncio.Task[str]) -> None:
        """Set up and subscribe a new connection. It then becomes the live one, unless it is to replace another.

        Raises:
            Closed: the connection was lost meanwhile.
            Exception: from `setup` or the gate.
        """

        async def prepare() -> None:
            if self._setup is not None:
                await bounded(self._setup(connection.send), self.liveness.setup_within, "the setup of a connection")
            await self._subscribe(connection)
            connection.ready = time.monotonic()
            if connection is not self._next:
                self._live = connection

        preparing = asyncio.create_task(prepare(), name="ratekeeper-stream-setup")
        try:
            while not preparing.done():
                await asyncio.wait({preparing, reader}, timeout=connection.tick, return_when=asyncio.FIRST_COMPLETED)
                problem = connection.look(time.monotonic())
                if not preparing.done() and (reader.done() or problem is not None):
                    raise Closed(problem[0] if problem is not None else reader.result() or "closed without a word")
            await preparing
        finally:
            if preparing.cancel():
                await asyncio.wait({preparing}, timeout=1.0)  # the user's `setup` may resist cancellation

    async def _subscribe(self, connection: Connection) -> None:
        """Subscribe a connection to exactly what the stream wants, even if that changes meanwhile."""
        while connection.topics != self._topics:
            gone = [topic for topic in connection.topics if topic not in self._topics]
            fresh = [topic for topic in self._topics if topic not in connection.topics]
            if not gone and not fresh:
                return
            before, connection.topics = connection.topics, [*self._topics]  # before the wait: other tasks read it
            try:
                for topics, leaving in ((gone, True), (fresh, False)):
                    for text in self._dialect.wanting(topics, self._number, gone=leaving):
                        self._number += 1
                        await connection.send(text)
            except BaseException:
                connection.topics = before
                raise

    async def _read(self, connection: Connection) -> str:
        """Read a connection to its end; returns how it ended."""
        try:
            while True:
                data = await connection.socket.recv()
                now = connection.anything = time.monotonic()
                quiet, reply = self._dialect.reply(data)
                if reply:
                    await connection.send(reply)
                if quiet:
                    continue
                connection.gaps = connection.gaps.heard(now)
                self._heard = now
                connection.heard.set()
                if connection is self._next:
                    connection.held.append(data)
                    while connection is self._next and len(connection.held) >= _MOST_HELD:
                        self._hurry.set()
                        connection.busy = True
                        self._room.clear()
                        await self._room.wait()
                    connection.busy = False
                    continue
                if self._next is not None or self._replacing:
                    self._seen.add(self._key(data))
                connection.busy = True
                await self._put(Message(data, False, time.time()))
                connection.busy = False
                connection.gaps = connection.gaps._replace(last=time.monotonic())
                if self._down_now:
                    self._up()
        except Closed as error:
            return str(error)
        except Rejected as error:
            return f"an answer to a ping was not allowed: {error}"

    async def _watch(self, connection: Connection) -> Connection | None:
        """Watch a connection until it is lost (None) or another has replaced it."""
        assert connection.reader is not None
        live, why, kind = self.liveness, "", "stream down"
        roll_at = live.roll_at(connection.opened, self._habits.lifetime, random.random())
        rolling: asyncio.Task[Connection | None] | None = None
        self._hurry.clear()
        try:
            while not why:
                now = time.monotonic()
                tick = connection.tick
                if rolling is None and roll_at is not None:
                    if now >= roll_at:
                        rolling = asyncio.create_task(self._replace(connection), name="ratekeeper-stream-rollover")
                    else:
                        tick = min(tick, roll_at - now)
                waited = {connection.reader} if rolling is None else {connection.reader, rolling}
                await asyncio.wait(waited, timeout=tick, return_when=asyncio.FIRST_COMPLETED)
                now = time.monotonic()
                if not connection.good and live.good(connection.opened, now, data=connection.heard.is_set()):
                    connection.good = True
                    await self._dialler.worked()
                    self._up()
                if rolling is not None and rolling.done():
                    following, rolling, roll_at = rolling.result(), None, now + _ROLL_AGAIN
                    if following is not None:
                        await self._switch(connection, following, "")
                        return following
                if connection.reader.done():
                    why = connection.reader.result() or "closed without a word"
                elif (problem := connection.look(now)) is not None:
                    why, kind = problem
            self._live = None
            await self._end(connection, at_once=kind == "stream stale")
            await self._dialler.failed(good=connection.good)
            self._down(why, kind)
            if rolling is not None:
                # A replacement is already on its way: use that one.
                self._hurry.set()
                following = await rolling
                if following is not None:
                    await self._switch(connection, following, why)
                    return following
        finally:
            if rolling is not None and not rolling.done():
                rolling.cancel()
                await asyncio.gather(rolling, return_exceptions=True)
        return None

    # --- one takes over from another --------------------------------------------------------------------------------

    async def _replace(self, old: Connection) -> Connection | None:
        """Open the replacement of `old` and wait until it delivers; None if it fails."""
        await self._dialler.turn()
        # The server may serve the new connection before we know that it is open.
        self._replacing = True
        try:
            connection = await self._connect(replacing=True)
        finally:
            self._replacing = False
            if self._next is None:
                self._seen.clear()
        if connection is None:
            return None
        assert connection.reader is not None
        try:
            hurry = asyncio.create_task(self._hurry.wait())
            heard = asyncio.create_task(connection.heard.wait())
            try:
                await asyncio.wait(
                    {hurry, heard, connection.reader},
                    timeout=self.liveness.overlap_most,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if connection.heard.is_set():
                    await asyncio.wait(
                        {hurry, connection.reader}, timeout=self.liveness.overlap, return_when=asyncio.FIRST_COMPLETED
                    )
            finally:
                for task in (hurry, heard):
                    task.cancel()
                await asyncio.gather(hurry, heard, return_exceptions=True)
        except asyncio.CancelledError:
            await self._end(connection, at_once=True)
            raise
        mute = not connection.heard.is_set() and (old.gaps.last or 0.0) > connection.opened
        if connection.reader.done() or (mute and not self._hurry.is_set()):
            await self._end(connection, at_once=True)
            await self._dialler.failed(good=False)
            return None
        return connection

    async def _switch(self, old: Connection, new: Connection, why: str) -> None:
        """Read `old` to its end; then deliver what only `new` received meanwhile; then make `new` live."""
        await self._end(old)
        while new.held:
            data = new.held.popleft()
            if self._key(data) not in self._seen:
                await self._put(Message(data, False, time.time()))
        self._live, self._next = new, None
        self._room.set()
        self._seen.clear()
        if why:
            return
        self._rollovers += 1
        self._tell("stream rolled over", "a new connection has taken over in time")

    async def _end(self, connection: Connection, *, at_once: bool = False) -> None:
        if self._next is connection:
            self._next = None
            self._seen.clear()
        await connection.end(at_once=at_once)

    # --- down, and back ---------------------------------------------------------------------------------------------

    def _down(self, why: str, kind: str = "stream down") -> None:
        why = struck(why, secrets_of(self._dialler.outbound.request()))
        self._problem = why
        if self._live is not None or self._told_down:
            return
        self._told_down = True
        self._tell(kind, why)
        if not self._down_now:
            self._down_now = True
            self._serve_meanwhile()

    def _serve_meanwhile(self) -> None:
        if self._fallback is not None:
            self._poll = asyncio.create_task(self._polling(self._fallback), name="ratekeeper-stream-fallback")

    def _up(self) -> None:
        self._down_now = False
        if self._poll is not None:
            self._poll.cancel()
        if self._told_down:
            self._told_down = False
            self._reconnects += 1
            self._tell("stream back", "messages come again")

    async def _polling(self, fallback: Callable[[], Awaitable[Any]]) -> None:
        await asyncio.sleep(self._fallback_after)
        failing = False
        while True:
            pause = 30.0
            try:
                pause = self._every() if callable(self._every) else self._every
                found = await bounded(fallback(), self._fallback_within, "the fallback")
            except Exception as error:  # noqa: BLE001 - the user's, on a bad network
                level = logging.INFO if failing else logging.WARNING
                failing = True
                _LOG.log(level, "the fallback of the stream of %s failed: %s", self._place, type(error).__name__)
            else:
                failing = False
                await self._put(Message(found, True, time.time()))
            await asyncio.sleep(pause)

    @property
    def _place(self) -> str:
        return self._dialler.outbound.netloc  # no path: it may hold a key to the user's data

    def _tell(self, kind: str, message: str) -> None:
        self._gate.events.say(
            kind, f"the stream of {self._place}: {message}", self._dialler.namespace, dials=self._dialler.dials
        )

    async def _put(self, message: Message) -> None:
        while len(self._ready) >= self._backlog:
            self._room.clear()
            await self._room.wait()
        self._ready.append(message)
        self._arrived.set()
