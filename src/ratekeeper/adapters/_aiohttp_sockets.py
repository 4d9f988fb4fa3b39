"""Open websockets of aiohttp: each message is charged before it is sent, and what they hold is given back when they end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from aiohttp import WSMsgType

from ratekeeper.adapters._call import drive_async

if TYPE_CHECKING:
    from ratekeeper.adapters._line import Line

__all__ = ["join"]

_DATA: Final = (WSMsgType.TEXT, WSMsgType.BINARY)


async def join(socket: Any, line: Line) -> Any:
    """Has the messages of a websocket that was just opened charged; returns it.

    Raises:
        Rejected: it may not be used; it is closed.
    """
    try:
        await drive_async(line.opened(is_async=True))
    except BaseException as error:
        line.failed(error, None)
        await asyncio.shield(asyncio.ensure_future(socket.close()))
        raise
    # aiohttp sends everything through this one, its own pongs and heartbeats too.
    socket._writer = _Writer(socket._writer, line)
    _watch(socket, line)
    return socket


class _Writer:
    """The writer of a websocket, which waits for the limits first.

    A goodbye waits for nobody, nor does an answer to a ping: a message of each window is set aside for it (`Line.opened`).
    """

    def __init__(self, inner: Any, line: Line) -> None:
        self._inner = inner
        self._line = line

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def send_frame(self, message: bytes, opcode: Any, compress: int | None = None) -> None:
        if opcode in _DATA or opcode == WSMsgType.PING:
            shown = bytes(message) if opcode in _DATA else None
            await drive_async(self._line.sending(shown, is_async=True))
        await self._inner.send_frame(message, opcode, compress)


def _watch(socket: Any, line: Line) -> None:
    """Closes the line when the connection is closed, by whichever side, or lost."""
    connection = socket._conn
    protocol = None if connection is None else connection.protocol
    if protocol is None or not protocol.is_connected():  # gone already, before it could be told
        line.close()
        return

    def end(lost: asyncio.Future[None] | None = None) -> None:
        if lost is not None and not lost.cancelled():
            lost.exception()  # ours is not the only eye on it, but it may be the last
        line.close()

    connection.add_callback(end)
    lost = getattr(protocol, "closed", None)
    if lost is not None:
        lost.add_done_callback(end)
