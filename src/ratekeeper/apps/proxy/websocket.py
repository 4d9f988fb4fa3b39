"""Websockets through the proxy: every message, ping, pong and close code both ways."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import WSMsgType, hdrs, web

from ratekeeper.adapters._line import Line
from ratekeeper.apps.proxy.forward import admitted, broken
from ratekeeper.apps.proxy.refusal import failure
from ratekeeper.apps.proxy.wire import kept, passed
from ratekeeper.errors import Rejected
from ratekeeper.gate.call import HandedDown
from ratekeeper.gate.steps import drive_async

if TYPE_CHECKING:
    from ratekeeper.adapters._governor import Governor
    from ratekeeper.apps.proxy.forward import Target

__all__ = ["Relays", "wants_websocket"]

_GOODBYE = 5.0
"""Seconds that the other side of a closed connection has to say goodbye."""
_SENT = (WSMsgType.TEXT, WSMsgType.BINARY, WSMsgType.PING, WSMsgType.PONG)
_GONE = -1
"""In place of a close code: the connection broke without one."""

End = tuple[int, bytes]
"""Close code and reason."""


def wants_websocket(request: web.BaseRequest) -> bool:
    """Whether a request is a websocket's handshake."""
    return request.method == "GET" and request.headers.get(hdrs.UPGRADE, "").lower() == "websocket"


class Relays:
    """The websockets of one proxy.

    Args:
        session: what to connect with.
    """

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Close all of them with 1001 (going away)."""
        self._stop.set()

    async def exchange(self, target: Target, governor: Governor) -> web.StreamResponse:
        """Connect when the gate allows it, and relay until one side closes.

        Raises:
            Rejected: the gate refused.
        """
        request, headers = target.request, target.headers
        asked = [name.strip() for name in headers.get(hdrs.SEC_WEBSOCKET_PROTOCOL, "").split(",") if name.strip()]
        outbound = target.outbound(None, upgrade=True)
        call = await admitted(governor, outbound, apart=True)
        rules = governor.match(outbound)
        line = None if call is None or rules is None else Line(governor, rules, outbound, call)
        for name in [name for name in headers if name.lower().startswith("sec-websocket-")]:
            headers.popall(name, None)
        connect = self._session.ws_connect(
            target.url, headers=headers, protocols=asked, autoclose=False, autoping=False, max_msg_size=0,
            timeout=aiohttp.ClientWSTimeout(ws_close=_GOODBYE),
        )  # fmt: skip
        with kept(call):
            try:
                with nullcontext() if call is None else HandedDown(call):
                    far = await connect
            except aiohttp.WSServerHandshakeError as error:
                if line is not None:
                    line.failed(error, (error.status, error.headers or {}, b""))
                told = passed((error.headers or {}).items())
                for name in (hdrs.CONTENT_LENGTH, hdrs.CONTENT_ENCODING, hdrs.CONTENT_TYPE):
                    told.popall(name, None)
                return failure(error.status, "Handshake", "the provider refused the websocket", headers=dict(told))
            except BaseException as error:
                if line is not None:
                    line.failed(error, None)
                if isinstance(error, (aiohttp.ClientError, OSError)):
                    return broken(error)
                raise
            try:
                if line is not None:
                    await drive_async(line.opened(is_async=True))
                return await self._relay(request, far, line)
            finally:
                if not far.closed:
                    await far.close(code=1001)
                if line is not None:
                    line.close()  # what it held, such as a place among the connections, it held until here

    async def _relay(
        self, request: web.BaseRequest, far: aiohttp.ClientWebSocketResponse, line: Line | None
    ) -> web.StreamResponse:
        near = web.WebSocketResponse(
            autoclose=False, autoping=False, max_msg_size=0, compress=False, timeout=_GOODBYE,
            protocols=(far.protocol,) if far.protocol else (),
        )  # fmt: skip
        transport = request.transport
        await near.prepare(request)
        out = asyncio.create_task(_pump(near, far, line))
        back = asyncio.create_task(_pump(far, near))
        stop = asyncio.create_task(self._stop.wait())
        tasks = (out, back, stop)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if _ended(back):
            code, reason = back.result()
            if code == _GONE:
                if transport is not None:
                    transport.abort()  # as broken as the provider's side
            else:
                await near.close(code=code, message=reason)
                await far.close(code=near.close_code or code)
        elif _ended(out):
            code, reason = out.result()
            if code == _GONE:
                await far.close(code=1001)
            else:
                await far.close(code=code, message=reason)
                await near.close(code=_sendable(far.close_code) or code)
        else:
            await far.close(code=1001)
            await near.close(code=1001, message=b"the proxy stops")
        return near


def _ended(pump: asyncio.Task[End]) -> bool:
    return pump.done() and not pump.cancelled() and pump.exception() is None


async def _pump(source: Any, sink: Any, line: Line | None = None) -> End:
    """Passes messages on until the source ends; returns how. Those that go to the provider wait until they may: `line`."""
    while True:
        message = await source.receive()
        kind = message.type
        try:
            if line is not None and kind in _SENT:
                said = message.data if kind in (WSMsgType.TEXT, WSMsgType.BINARY) else None
                try:
                    await drive_async(line.sending(said, is_async=True))
                except Rejected as error:
                    return 1013, str(error).encode()[:120]  # try again later
            if kind is WSMsgType.TEXT:
                await sink.send_str(message.data)
            elif kind is WSMsgType.BINARY:
                await sink.send_bytes(message.data)
            elif kind is WSMsgType.PING:
                await sink.ping(message.data)
            elif kind is WSMsgType.PONG:
                await sink.pong(message.data)
            elif kind is WSMsgType.CLOSE:
                return _sendable(message.data) or 1000, (message.extra or "").encode()
            else:
                return _GONE, b""
        except ConnectionError:
            # The sink broke: its own pump tells how, unless it has already.
            await asyncio.sleep(_GOODBYE)
            return _GONE, b""


def _sendable(code: int | None) -> int | None:
    """A close code that may stand in a frame (1005 and 1006 mean that there was none)."""
    return code if code and code not in (1005, 1006, 1015) else None
