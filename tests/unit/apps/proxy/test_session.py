"""ratekeeper.apps.proxy.session: what it relies on inside aiohttp, and timeouts that cost no timer for each piece."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from raw import answer

from ratekeeper.apps.proxy.session import open_session


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


def test_a_body_may_take_longer_than_a_silence(raw: Any, proxied: Any) -> None:
    """Only a pause counts: what comes in pieces is passed on to its end."""

    def drip(connection: Any) -> bool:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n")
        for _ in range(8):
            time.sleep(0.08)
            connection.sendall(b"x")
        return True

    raw.acts["/a"] = drip
    assert proxied(lambda here: here.get("/testland/a"), silence=0.3) == (200, b"xxxxxxxx")


def test_a_pause_in_a_body_ends_it(raw: Any, proxied: Any) -> None:
    """Although the first piece came in time."""

    def stop(connection: Any) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n")
        time.sleep(0.15)
        connection.sendall(b"x")
        connection.recv(1)

    raw.acts["/a"] = stop
    begun = time.monotonic()
    assert proxied(lambda here: here.get("/testland/a"), silence=0.2) == (200, b"x")
    assert 0.3 < time.monotonic() - begun < 3


def test_a_connection_that_nobody_uses_is_not_silent(raw: Any) -> None:
    """It serves the next call, after longer than a silence."""

    async def main() -> None:
        async with open_session(0.1) as session:
            for _ in range(2):
                async with session.get(f"{raw.url}/a") as found:
                    assert await found.read()
                await asyncio.sleep(0.25)

    raw.acts["/a"] = lambda c: c.sendall(answer(b"yes")) or True
    asyncio.run(main())
    assert len(raw._open) == 1
