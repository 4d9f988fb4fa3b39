"""A stream of websocket messages that survives reconnects: the consumer's side."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from ratekeeper.sessions.connections import Connections, Message
from ratekeeper.sessions.dialects import Dialect, dialect_of, habits_of
from ratekeeper.sessions.dials import Dialler
from ratekeeper.sessions.liveness import Liveness
from ratekeeper.sessions.transports import Closed, Transport, Websockets

if TYPE_CHECKING:
    from ratekeeper import Gate, Priority

__all__ = ["Message", "State", "Stream"]


class State(NamedTuple):
    """The state of a stream.

    Attributes:
        state: ``live``, ``polled`` (down, and the fallback serves), ``down`` or ``closed``.
        connected: Unix seconds since which the present connection is open; None: there is none.
        age: seconds since the last message of any connection; None: none yet.
        dials: how often it dialled.
        reconnects: connections that replaced a lost one.
        rollovers: connections that replaced one before its end.
        problem: why it was down last.
    """

    state: str
    connected: float | None
    age: float | None
    dials: int
    reconnects: int
    rollovers: int
    problem: str


class Stream(Connections):
    """Messages of a websocket that reconnects whenever needed: ``async with Stream(...) as s: async for m in s``.

    Args:
        gate: its limits apply.
        url: of the websocket.
        subscriptions: topics, in the provider's format (text, or objects where it wants objects).
        headers: of the handshake.
        dialect: how to subscribe; None: that of the URL's provider.
        setup: called with ``send`` after each connection is open and before it is subscribed: to log in.
        key: returns what distinguishes two messages while two connections overlap; None: the message itself.
        fallback: called while the stream is down, also before it is first up; its result becomes a polled message. Its own
            calls should be governed; that is up to the caller.
        every: seconds between two calls of `fallback`, or a function that returns them.
        fallback_after: seconds that the stream must be down before the first.
        fallback_within: seconds that one call of `fallback` may take.
        transport: `Websockets` or `Aiohttp`.
        liveness: when it counts as dead, and how it is replaced.
        priority: class of its dials and messages.
        backlog: most messages that wait for the consumer; beyond it the connection is read no further.

    Raises:
        ValueError: the URL is not one of a websocket.

    Without ``async with`` the stream starts with the first message, and ends when the task that reads it is cancelled.
    """

    def __init__(
        self,
        gate: Gate,
        url: str,
        subscriptions: Sequence[Any] = (),
        *,
        headers: Mapping[str, str] | None = None,
        dialect: Dialect | None = None,
        setup: Callable[[Callable[[str], Awaitable[None]]], Awaitable[object]] | None = None,
        key: Callable[[Any], Hashable] | None = None,
        fallback: Callable[[], Awaitable[Any]] | None = None,
        every: Callable[[], float] | float = 30.0,
        fallback_after: float = 2.0,
        fallback_within: float = 60.0,
        transport: Transport | None = None,
        liveness: Liveness | None = None,
        priority: Priority | int | str | None = None,
        backlog: int = 1000,
    ) -> None:
        chosen = liveness or Liveness()
        dialler = Dialler(gate, url, headers or {}, transport or Websockets(), chosen, priority)
        rules = dialler.provider
        words = dialect or dialect_of(rules.name if rules is not None else "")
        habits = habits_of(rules, dialler.outbound.path)
        super().__init__(
            gate, dialler, words, habits, subscriptions, setup, key, fallback, every, fallback_after, fallback_within,
            chosen, backlog,
        )  # fmt: skip
        self._main: asyncio.Task[None] | None = None
        self._entered = self._closed = False

    # --- the consumer's side ----------------------------------------------------------------------------------------

    async def __aenter__(self) -> Stream:
        self._entered = True
        self._begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        if self._closed:
            raise StopAsyncIteration
        main = self._begin()
        try:
            while not self._ready:
                if main.done():
                    if not main.cancelled() and (error := main.exception()) is not None:
                        raise error
                    raise StopAsyncIteration
                self._arrived.clear()
                await self._arrived.wait()
        except asyncio.CancelledError:
            if not self._entered:
                await self.close()
            raise
        self._room.set()
        return self._ready.popleft()

    async def subscribe(self, *topics: Any) -> None:
        """Subscribe to more topics; kept over every reconnect. Waits for the limits of messages."""
        self._topics += [topic for topic in topics if topic not in self._topics]
        await self._resubscribe()

    async def unsubscribe(self, *topics: Any) -> None:
        """Unsubscribe from topics."""
        self._topics = [topic for topic in self._topics if topic not in topics]
        await self._resubscribe()

    async def send(self, text: str) -> None:
        """Send a message of your own on the present connection as soon as its limits allow.

        Raises:
            ConnectionError: the stream is down.
        """
        if self._live is None:
            raise ConnectionError("the stream is down")
        try:
            await self._live.send(text)
        except Closed as error:
            raise ConnectionError(str(error)) from None

    @property
    def state(self) -> State:
        """Return the present state."""
        live = self._live
        polled = self._poll is not None and not self._poll.done()
        name = "closed" if self._closed else "live" if live is not None else "polled" if polled else "down"
        age = None if self._heard is None else time.monotonic() - self._heard
        since = None if live is None else live.since
        return State(name, since, age, self._dialler.dials, self._reconnects, self._rollovers, self._problem)

    async def close(self) -> None:
        """Close the connection and end every task. May be called again."""
        self._closed = True
        main, self._main = self._main, None
        if main is not None:
            main.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await main

    def _begin(self) -> asyncio.Task[None]:
        if self._main is None:
            if self._closed:
                raise RuntimeError("this stream is closed")
            self._main = asyncio.create_task(self._run(), name="ratekeeper-stream")
            self._main.add_done_callback(lambda _: self._arrived.set())
        return self._main

    async def _resubscribe(self) -> None:
        for connection in (self._live, self._next):
            if connection is not None and connection.ready is not None:  # else it subscribes by itself
                with contextlib.suppress(Closed):  # the next connection subscribes to all topics
                    await self._subscribe(connection)
