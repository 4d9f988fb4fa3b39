"""ratekeeper.apps.proxy.websocket: messages, pings and close codes through a real proxy."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType, web

from ratekeeper import Gate
from ratekeeper.apps.proxy.server import Proxy, listen
from ratekeeper.apps.proxy.session import open_session
from ratekeeper.apps.proxy.upstreams import Upstreams

from .conftest import SUPPORT

Use = Callable[[aiohttp.ClientSession, Proxy], Awaitable[Any]]


def relayed(far: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], use: Use, *, path: str = "stream") -> Any:
    """Runs `use` with a session for the proxy, whose upstream handles websockets with `far`."""

    async def main() -> Any:
        upstream = web.ServerRunner(web.Server(far), shutdown_timeout=1)
        await upstream.setup()
        await web.TCPSite(upstream, "127.0.0.1", 0).start()
        place = f"127.0.0.1:{upstream.addresses[0][1]}"
        rules = [SUPPORT / "testland.toml"]
        with Gate("memory://", hosts={place: "testland"}, rules=rules, max_wait=5) as gate:
            there = open_session(5)
            proxy = Proxy(gate, Upstreams(gate.book, {}), there)
            runner = await listen(proxy, "127.0.0.1", 0)
            base = f"http://127.0.0.1:{runner.addresses[0][1]}/testland/"
            try:
                async with aiohttp.ClientSession(base) as session:
                    return await use(session, proxy)
            finally:
                await runner.cleanup()
                await there.close()
                await upstream.cleanup()

    return asyncio.run(main())


def handler(serve: Callable[[web.WebSocketResponse], Awaitable[Any]], **options: Any) -> Any:
    """An upstream's side."""

    async def far(request: web.BaseRequest) -> web.StreamResponse:
        ws = web.WebSocketResponse(autoping=False, **options)
        await ws.prepare(request)
        await ws.send_json([request.raw_path, request.headers.get("X-Key", "")])
        await serve(ws)
        return ws

    return far


async def echo(ws: web.WebSocketResponse) -> None:
    """Sends everything back."""
    async for message in ws:
        if message.type is WSMsgType.TEXT:
            await ws.send_str(message.data)
        elif message.type is WSMsgType.BINARY:
            await ws.send_bytes(message.data)
        elif message.type is WSMsgType.PING:
            await ws.pong(message.data + b"!")


def test_messages_both_ways() -> None:
    """Text, binary, a megabyte, pings of the client and the answers of the provider; the target is byte-exact."""

    async def use(session: aiohttp.ClientSession, _: Proxy) -> None:
        async with session.ws_connect("ws?a=%2f&b", headers={"X-Key": "k1"}, autoping=False) as ws:
            assert (await ws.receive_json())[1] == "k1"
            for text in ("a", "é✓", "x" * 1_000_000):
                await ws.send_str(text)
                assert await ws.receive_str() == text
            await ws.send_bytes(bytes(range(256)))
            assert await ws.receive_bytes() == bytes(range(256))
            await ws.ping(b"p")
            assert (await ws.receive())[:2] == (WSMsgType.PONG, b"p!")

    relayed(handler(echo, max_msg_size=0), use)


@pytest.mark.parametrize("code", [1000, 1008, 4321])
def test_close_codes_both_ways(code: int) -> None:
    """Code and reason of whoever closes reach the other side."""
    seen: list[tuple[int | None, Any]] = []

    async def close(ws: web.WebSocketResponse) -> None:
        message = await ws.receive()
        if message.type is WSMsgType.TEXT:
            await ws.close(code=code, message=b"why")
        else:
            seen.append((message.data, message.extra))

    async def use(session: aiohttp.ClientSession, _: Proxy) -> None:
        async with session.ws_connect("ws", autoclose=False) as ws:
            await ws.receive()
            await ws.send_str("close, please")
            assert (await ws.receive())[:3] == (WSMsgType.CLOSE, code, "why")
        async with session.ws_connect("ws") as ws:
            await ws.receive()
            await ws.close(code=code, message=b"because")

    relayed(handler(close, autoclose=False), use)
    assert seen == [(code, "because")]


def test_subprotocols() -> None:
    """The provider chooses; none is none."""

    async def use(session: aiohttp.ClientSession, _: Proxy) -> None:
        for offered, chosen in ((("a", "b"), "b"), (("c",), None), ((), None)):
            async with session.ws_connect("ws", protocols=offered) as ws:
                await ws.receive()
                assert ws.protocol == chosen

    relayed(handler(echo, protocols=("b",)), use)


def test_a_broken_upstream_breaks_the_clients_connection() -> None:
    """No close frame is invented."""

    async def vanish(ws: web.WebSocketResponse) -> None:
        await ws.receive()
        assert ws._req is not None and ws._req.transport is not None
        ws._req.transport.abort()

    async def use(session: aiohttp.ClientSession, _: Proxy) -> None:
        async with session.ws_connect("ws") as ws:
            await ws.receive()
            await ws.send_str("x")
            assert (await ws.receive()).type in (WSMsgType.CLOSED, WSMsgType.ERROR)
            assert ws.close_code == 1006

    relayed(handler(vanish), use)


def test_a_refused_handshake() -> None:
    """The provider's status comes back, and the gate has learned of it."""

    async def far(_: web.BaseRequest) -> web.StreamResponse:
        return web.json_response({"code": -1003}, status=429, headers={"Retry-After": "7"})

    async def use(session: aiohttp.ClientSession, proxy: Proxy) -> None:
        kinds: list[str] = []
        proxy._gate.on(lambda event: kinds.append(event.kind))
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await session.ws_connect("ws")
        assert caught.value.status == 429
        assert caught.value.headers is not None and caught.value.headers["Retry-After"] == "7"
        assert "throttled" in kinds

    relayed(far, use)


def test_a_slot_is_held_until_the_end_and_stopping_says_goodbye() -> None:
    """Two streams are allowed: a third is refused while they last; they end with 1001."""

    async def use(session: aiohttp.ClientSession, proxy: Proxy) -> None:
        first, second = await session.ws_connect("stream"), await session.ws_connect("stream")
        with pytest.raises(aiohttp.WSServerHandshakeError, match="429"):
            await session.ws_connect("stream", headers={"X-Ratekeeper-Timeout": "0"})
        await first.close()
        third = await session.ws_connect("stream", headers={"X-Ratekeeper-Timeout": "5"})
        proxy.stop()
        for ws in (second, third):
            await ws.receive()
            assert (await ws.receive()).type in (WSMsgType.CLOSE, WSMsgType.CLOSED)
            assert ws.close_code == 1001
        streams = [view for view in proxy._gate.read().ledgers if "/streams/" in view.key]
        while sum(view.inflight for view in streams):
            await asyncio.sleep(0.005)
            streams = [view for view in proxy._gate.read().ledgers if "/streams/" in view.key]

    relayed(handler(echo), use)
