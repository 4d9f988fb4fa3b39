"""ratekeeper.apps.proxy.session: what it relies on inside aiohttp, and timeouts that cost no timer for each piece."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

import aiohttp
from aiohttp.client_proto import ResponseHandler

from ratekeeper.apps.proxy.session import _Connection


def test_hooks_are_where_we_think() -> None:
    """What we rely on inside aiohttp exists; an upgrade that moves it fails here."""

    async def main() -> None:
        async with aiohttp.ClientSession() as session:
            assert session._retry_connection is True
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector()) as session:
            assert session.connector is not None
            assert type(session.connector._factory()) is ResponseHandler

    asyncio.run(main())
    assert aiohttp.web.StreamResponse._send_headers_immediately is True
    assert asyncio.iscoroutinefunction(aiohttp.web.StreamResponse._prepare_headers)
    for name in ("_reschedule_timeout", "_drop_timeout", "_on_read_timeout"):
        assert callable(getattr(ResponseHandler, name))
    assert callable(aiohttp.ClientRequest.update_auto_headers)


class Clock:
    """A loop's clock and its timers, moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now

    def call_at(self, due: float, function: Callable[[], None]) -> Timer:
        self.timers.append(Timer(due, function, self.timers))
        return self.timers[-1]

    def move(self, now: float) -> None:
        """Let time pass; timers that are due are called."""
        self.now = now
        for timer in [timer for timer in self.timers if timer.due <= now]:
            timer.cancel()
            timer.function()


class Timer(NamedTuple):
    """One timer."""

    due: float
    function: Callable[[], None]
    among: list[Any]

    def cancel(self) -> None:
        """Call it no more."""
        self.among.remove(self)


def test_one_timer_follows_all_pieces_of_an_answer() -> None:
    """It is over when nothing came for as long as a silence may last; a connection that nobody uses is not silent."""

    async def main() -> None:
        clock = Clock()
        handler: Any = _Connection(loop=asyncio.get_running_loop())
        handler._loop, handler._read_timeout = clock, 10
        handler.start_timeout()
        for now in (3, 6, 9):  # pieces
            clock.move(now)
            handler._reschedule_timeout()
            assert [timer.due for timer in clock.timers] == [10]
        clock.move(10)
        assert handler.exception() is None
        assert [timer.due for timer in clock.timers] == [19]
        handler._drop_timeout()  # the end of the answer
        clock.move(19)
        assert handler.exception() is None
        assert not clock.timers
        clock.move(50)
        handler.start_timeout()  # the next one
        clock.move(59)
        assert handler.exception() is None
        clock.move(60)
        assert isinstance(handler.exception(), aiohttp.SocketTimeoutError)
        assert not clock.timers

    asyncio.run(main())


def test_a_connection_that_is_lost_leaves_no_timer() -> None:
    """Nor does one without a timeout, such as a websocket's, have one."""

    async def main() -> None:
        clock = Clock()
        handler: Any = _Connection(loop=asyncio.get_running_loop())
        handler._loop = clock
        handler.start_timeout()
        assert not clock.timers
        handler._read_timeout = 10
        handler.start_timeout()
        assert clock.timers
        handler._loop = asyncio.get_running_loop()
        handler.connection_lost(None)
        assert not clock.timers

    asyncio.run(main())
