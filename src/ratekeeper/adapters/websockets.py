"""The `websockets` library, asyncio and threads: dials and messages are charged before they are made.

This is what ``ratekeeper run`` puts into unchanged programs. For those of one's own, `ratekeeper.sessions.stream.Stream` does
more.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from ratekeeper.adapters._call import Steps, drive, drive_async
from ratekeeper.adapters._governor import Governor
from ratekeeper.adapters._line import Line, Refused, dialling
from ratekeeper.adapters._wire import from_url, lowered

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ratekeeper.adapters._wire import Outbound

__all__ = ["answer_of", "ending", "handshake", "patch"]


def handshake(url: str, headers: Any = None) -> Outbound | None:
    """The request with which a websocket begins; None if the URL names no host."""
    shown = {"upgrade": "websocket", **lowered(dict(headers) if headers else None)}
    return from_url("GET", url, shown)


def answer_of(error: BaseException) -> Refused | None:
    """The answer that refused the handshake, if the error carries one."""
    response: Any = getattr(error, "response", None)
    if not hasattr(response, "status_code"):
        return None
    return response.status_code, dict(response.headers.raw_items()), bytes(response.body or b"")


def patch(module: Any) -> None:
    """Governs every connection of an unchanged program.

    Args:
        module: ``websockets.asyncio.client`` or ``websockets.sync.client``.
    """
    governor = Governor(lenient=True)
    if module.__name__.endswith("asyncio.client"):
        name = next(name for name in ("connect", "__await_impl__") if name in vars(module.connect))
        setattr(module.connect, name, _connecting(getattr(module.connect, name), governor))
        _patch_messages(module.ClientConnection, _sending, "connection_lost")
        return
    if hasattr(module, "reconnect"):
        module.reconnect.connect = _connecting_sync(module.reconnect.connect, governor)
    else:
        module.connect = _connecting_sync(module.connect, governor)
    _patch_messages(module.ClientConnection, _sending_sync, "recv_events")


def _family() -> type[Exception]:
    from websockets.exceptions import InvalidHandshake

    return InvalidHandshake


def _joining(connection: Any, line: Line, *, is_async: bool) -> Steps[Any]:
    """The connection is open, and its messages are charged from now on."""
    try:
        yield from line.opened(is_async=is_async)
    except BaseException as error:
        line.failed(error, None)
        yield connection.close
        raise
    connection.ratekeeper_line = line
    if connection.protocol.state.name == "CLOSED":  # already, before it could be told
        line.close()
    return connection


def _begun(connector: Any, options: Mapping[str, Any]) -> Outbound | None:
    """The handshake that a connector, or a function given a URL, is about to make."""
    url = connector if isinstance(connector, str) else connector.uri
    return handshake(url, getattr(connector, "additional_headers", None) or options.get("additional_headers"))


def _connecting(original: Any, governor: Governor) -> Any:
    @functools.wraps(original)
    async def connect(self: Any) -> Any:
        outbound = _begun(self, {})
        if outbound is None:
            return await original(self)
        line = await drive_async(dialling(governor, outbound, _family, is_async=True))
        if line is None:
            return await original(self)
        try:
            connection = await original(self)
        except BaseException as error:
            line.failed(error, answer_of(error))
            raise
        return await drive_async(_joining(connection, line, is_async=True))

    return connect


def _connecting_sync(original: Any, governor: Governor) -> Any:
    @functools.wraps(original)
    def connect(target: Any, *values: Any, **options: Any) -> Any:
        outbound = _begun(target, options)
        if outbound is None:
            return original(target, *values, **options)
        line = drive(dialling(governor, outbound, _family, is_async=False))
        if line is None:
            return original(target, *values, **options)
        try:
            connection = original(target, *values, **options)
        except BaseException as error:
            line.failed(error, answer_of(error))
            raise
        return drive(_joining(connection, line, is_async=False))

    return connect


def _patch_messages(cls: Any, wrapped: Callable[[Any, bool], Any], last: str) -> None:
    for name in ("send", "ping", "pong"):
        setattr(cls, name, wrapped(getattr(cls, name), name == "send"))
    setattr(cls, last, ending(getattr(cls, last)))


def _sending(original: Any, data: bool) -> Any:
    @functools.wraps(original)
    async def send(self: Any, message: Any = None, **options: Any) -> Any:
        line = getattr(self, "ratekeeper_line", None)
        if line is not None:
            await drive_async(line.sending(_seen(message, data), is_async=True))
        return await (original(self, **options) if message is None else original(self, message, **options))

    return send


def _sending_sync(original: Any, data: bool) -> Any:
    @functools.wraps(original)
    def send(self: Any, message: Any = None, *values: Any, **options: Any) -> Any:
        line = getattr(self, "ratekeeper_line", None)
        if line is not None:
            drive(line.sending(_seen(message, data), is_async=False))
        return original(self, *values, **options) if message is None else original(self, message, *values, **options)

    return send


def _seen(message: Any, data: bool) -> str | bytes | None:
    """What the gate sees of a message: parts that come one by one are one message of unknown content."""
    if not data:
        return None
    return message if isinstance(message, str | bytes) else b""


def ending(original: Any, over: Callable[[Any], bool] = lambda _: True) -> Any:
    """A method after which a connection is over, or may be: `over` says so."""

    @functools.wraps(original)
    def end(self: Any, *values: Any) -> Any:
        try:
            return original(self, *values)
        finally:
            line = getattr(self, "ratekeeper_line", None)
            if line is not None and over(self):
                line.close()

    return end
