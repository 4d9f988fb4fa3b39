"""websocket-client, the library of pybit, binance-connector and many bots: dials and messages wait for their limits.

``ratekeeper run`` patches it in unchanged programs. It works in threads only.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from ratekeeper.adapters._governor import Governor
from ratekeeper.adapters._line import Refused, dialled
from ratekeeper.adapters.websockets import ending, handshake
from ratekeeper.gate.steps import drive

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["patch"]

_TEXT, _BINARY, _PING = 1, 2, 9
"""Kinds of frames (RFC 6455) that wait. A pong does not, because one message of each window is reserved for it. Nor does
the rest of a message whose first frame was sent."""

_END: Final = ("shutdown", "send_close", "_recv")
"""Methods that may end a connection."""


def patch(module: ModuleType) -> None:
    """Govern every connection of an unchanged program, also those of a ``WebSocketApp``.

    Args:
        module: ``websocket._core``.
    """
    cls: Any = module.WebSocket
    cls.connect = _connecting(cls.connect, Governor(lenient=True))
    cls.send_frame = _sending(cls.send_frame)
    for name in _END:
        setattr(cls, name, ending(getattr(cls, name), lambda socket: not (socket.connected and socket.sock)))


def _family() -> type[Exception]:
    from websocket import WebSocketException

    return WebSocketException


def _answer_of(error: BaseException) -> Refused | None:
    """Return the response that refused the handshake, if the error holds one."""
    status: int = getattr(error, "status_code", 0)
    if not status:
        return None
    return status, getattr(error, "resp_headers", None) or {}, getattr(error, "resp_body", None) or b""


def _headers(shown: Any) -> dict[str, str]:
    """Return headers from a mapping or from lines."""
    if isinstance(shown, Mapping):
        return {str(name): str(value) for name, value in shown.items()}
    lines: Iterable[str] = shown or ()
    return {name.strip(): value.strip() for name, _, value in (str(line).partition(":") for line in lines)}


def _connecting(original: Any, governor: Governor) -> Any:
    @functools.wraps(original)
    def connect(self: Any, url: str, **options: Any) -> Any:
        outbound = handshake(url, _headers(options.get("header")))
        if outbound is None:
            return original(self, url, **options)

        def dial() -> Any:
            try:
                return original(self, url, **options)
            except BaseException:
                self.shutdown()
                raise

        connected, self.ratekeeper_line = drive(
            dialled(
                governor, outbound, _family, dial,
                refused=_answer_of, leave=lambda _: self.shutdown(), is_async=False,
            )
        )  # fmt: skip
        return connected

    return connect


def _sending(original: Any) -> Any:
    @functools.wraps(original)
    def send_frame(self: Any, frame: Any) -> Any:
        line = getattr(self, "ratekeeper_line", None)
        if line is not None and frame.opcode in (_TEXT, _BINARY, _PING):
            data = frame.data.encode() if isinstance(frame.data, str) else bytes(frame.data)
            drive(line.sending(None if frame.opcode == _PING else data, is_async=False))
        return original(self, frame)

    return send_frame
