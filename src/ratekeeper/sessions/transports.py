"""One interface to two websocket client libraries, for streams."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Mapping
from typing import Any, Protocol

from ratekeeper.adapters._line import Refused
from ratekeeper.adapters.websockets import answer_of

__all__ = ["Aiohttp", "Closed", "Open", "Transport", "Websockets"]


class Closed(Exception):
    """The connection is over; the text tells how."""


class Open(Protocol):
    """One open websocket."""

    async def recv(self) -> str | bytes:
        """Return the next message. Raises `Closed`."""

    async def send(self, message: str) -> None:
        """Send text. Raises `Closed`."""

    async def ping(self, patience: float) -> None:
        """Send a ping and wait for its pong, `patience` seconds at most. Raises `Closed`, ``TimeoutError``."""

    async def close(self) -> None:
        """Close the connection; never raises, and takes no longer than a few seconds."""


class Transport(Protocol):
    """Opens websockets with one client library."""

    async def open(self, url: str, headers: Mapping[str, str]) -> Open:
        """Dial. Raises what the library raises."""

    def answer(self, error: BaseException) -> Refused | None:
        """Status, headers and body of a refused handshake, if the error carries them."""


class Websockets:
    """The `websockets` library. Options are those of its ``connect``."""

    def __init__(self, **options: Any) -> None:
        self._options = {"open_timeout": 10, "close_timeout": 2, "max_size": None, **options, "ping_interval": None}

    async def open(self, url: str, headers: Mapping[str, str]) -> Open:
        """See `Transport`."""
        from websockets.asyncio.client import connect

        return _Websocket(await connect(url, additional_headers=dict(headers) or None, **self._options))

    answer = staticmethod(answer_of)


class _Websocket:
    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def recv(self) -> str | bytes:
        with _closing():
            return await self._connection.recv()  # type: ignore[no-any-return]

    async def send(self, message: str) -> None:
        with _closing():
            await self._connection.send(message)

    async def ping(self, patience: float) -> None:
        with _closing():
            async with asyncio.timeout(patience):
                await (await self._connection.ping())

    async def close(self) -> None:
        await _whole(self._connection.close())


class _closing(contextlib.AbstractContextManager[None]):  # noqa: N801 - reads as a verb
    """Turns the library's exception for a closed connection into `Closed`."""

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        from websockets.exceptions import ConnectionClosed

        if isinstance(error, ConnectionClosed):
            raise Closed(str(error)) from None


class Aiohttp:
    """The websockets of an aiohttp session, which you close yourself.

    Args:
        session: a ``ClientSession``.
        **options: those of its ``ws_connect``.
    """

    def __init__(self, session: Any, **options: Any) -> None:
        self._session = session
        self._options = {"max_msg_size": 0, **options, "autoping": False, "heartbeat": None}

    async def open(self, url: str, headers: Mapping[str, str]) -> Open:
        """See `Transport`."""
        return _Response(await self._session.ws_connect(url, headers=dict(headers), **self._options))

    @staticmethod
    def answer(error: BaseException) -> Refused | None:
        """See `Transport`."""
        status: int = getattr(error, "status", 0)
        return (status, getattr(error, "headers", None) or {}, b"") if status else None


class _Response:
    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._ponged = asyncio.Event()

    async def recv(self) -> str | bytes:
        from aiohttp import WSMsgType

        while True:
            message = await self._socket.receive()
            if message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                return message.data  # type: ignore[no-any-return]
            if message.type is WSMsgType.PING:
                await self._socket.pong(message.data)
            elif message.type is WSMsgType.PONG:
                self._ponged.set()
            else:
                raise Closed(f"closed with code {self._socket.close_code}")

    async def send(self, message: str) -> None:
        try:
            await self._socket.send_str(message)
        except (ConnectionError, RuntimeError) as error:
            raise Closed(str(error)) from None

    async def ping(self, patience: float) -> None:
        self._ponged.clear()
        async with asyncio.timeout(patience):
            try:
                await self._socket.ping()
            except (ConnectionError, RuntimeError) as error:
                raise Closed(str(error)) from None
            await self._ponged.wait()

    async def close(self) -> None:
        with contextlib.suppress(Exception):
            await _whole(asyncio.wait_for(self._socket.close(), 3))


async def _whole(work: Coroutine[Any, Any, object]) -> None:
    """Run work to its end even if the caller is cancelled: else the socket would stay open."""
    await asyncio.shield(asyncio.ensure_future(work))
