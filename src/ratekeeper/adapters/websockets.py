"""The `websockets` library, asyncio and threads: the gate charges dials and messages before they leave.

``ratekeeper run`` patches it in unchanged programs. In your own program `ratekeeper.sessions.stream.Stream` does more.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from ratekeeper.adapters._governor import Governor
from ratekeeper.adapters._line import Line, Refused, dialled
from ratekeeper.adapters._wire import from_url, lowered
from ratekeeper.gate.steps import Steps, drive, drive_async

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ratekeeper.adapters._wire import Outbound

__all__ = ["answer_of", "ending", "handshake", "patch"]


def handshake(url: str, headers: Any = None) -> Outbound | None:
    """Return the handshake request of a websocket; None: the URL names no host."""
    shown = lowered({"upgrade": "websocket", **(dict(headers) if headers else {})})
    return from_url("GET", url, shown)


def answer_of(error: BaseException) -> Refused | None:
    """Return the response that refused the handshake, if the error holds one."""
    response: Any = getattr(error, "response", None)
    if not hasattr(response, "status_code"):
        return None
    return response.status_code, dict(response.headers.raw_items()), bytes(response.body or b"")


def patch(module: Any) -> None:
    """Govern every connection of an unchanged program.

    Args:
        module: ``websockets.asyncio.client`` or ``websockets.sync.client``.
    """
    governor = Governor(lenient=True)
    is_async = module.__name__.endswith("asyncio.client")
    if is_async:
        owner: Any = module.connect
        name = next(name for name in ("connect", "__await_impl__") if name in vars(owner))
    else:
        owner, name = getattr(module, "reconnect", module), "connect"
    setattr(owner, name, _connecting(getattr(owner, name), governor, is_async=is_async))
    _patch_messages(module.ClientConnection, "connection_lost" if is_async else "recv_events", is_async=is_async)


def _family() -> type[Exception]:
    from websockets.exceptions import InvalidHandshake

    return InvalidHandshake


def _begun(connector: Any, options: Mapping[str, Any]) -> Outbound | None:
    """Return the handshake that a connector, or a function with a URL, is about to make."""
    url = connector if isinstance(connector, str) else connector.uri
    return handshake(url, getattr(connector, "additional_headers", None) or options.get("additional_headers"))


def _connecting(original: Any, governor: Governor, *, is_async: bool) -> Any:
    """Replace a function or a method that connects. Its first argument is the URL or holds it."""
    run: Any = drive_async if is_async else drive

    @functools.wraps(original)
    def connect(target: Any, *values: Any, **options: Any) -> Any:
        dial = functools.partial(original, target, *values, **options)
        outbound = _begun(target, options)
        if outbound is None:
            return dial()
        return run(_joined(governor, outbound, dial, is_async))

    return connect


def _joined(governor: Governor, outbound: Outbound, dial: Callable[[], Any], is_async: bool) -> Steps[Any]:
    """Dial; return a connection whose messages the gate charges."""
    connection, line = yield from dialled(
        governor, outbound, _family, dial, refused=answer_of, leave=lambda opened: opened.close(), is_async=is_async
    )
    if line is not None:
        connection.ratekeeper_line = line
        if connection.protocol.state.name == "CLOSED":  # closed before the hook could see it
            line.close()
    return connection


def _patch_messages(cls: Any, last: str, *, is_async: bool) -> None:
    for name in ("send", "ping", "pong"):
        setattr(cls, name, _sending(getattr(cls, name), data=name == "send", is_async=is_async))
    setattr(cls, last, ending(getattr(cls, last)))


def _sending(original: Any, *, data: bool, is_async: bool) -> Any:
    run: Any = drive_async if is_async else drive

    def charged(line: Line | None, message: Any, send: Callable[[], Any]) -> Steps[Any]:
        if line is not None:
            # The gate sees fragments that come one by one as one message of unknown content.
            shown = message if isinstance(message, str | bytes) else b""
            yield from line.sending(shown if data else None, is_async=is_async)
        return (yield send)

    @functools.wraps(original)
    def send(self: Any, message: Any = None, *values: Any, **options: Any) -> Any:
        given = () if message is None else (message, *values)
        line = getattr(self, "ratekeeper_line", None)
        return run(charged(line, message, functools.partial(original, self, *given, **options)))

    return send


def ending(original: Any, over: Callable[[Any], bool] = lambda _: True) -> Any:
    """Wrap a method that may end a connection. `over` tells whether it did."""

    @functools.wraps(original)
    def end(self: Any, *values: Any) -> Any:
        try:
            return original(self, *values)
        finally:
            line = getattr(self, "ratekeeper_line", None)
            if line is not None and over(self):
                line.close()

    return end
