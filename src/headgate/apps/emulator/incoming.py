"""One request as the emulated exchange sees it, and the error with which it may answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import msgspec

__all__ = ["Fault", "Handler", "Incoming", "Route"]


class Fault(Exception):
    """An error answer in Binance's form: HTTP status, code, text; `until` (ns) is what ``Retry-After`` counts to."""

    def __init__(self, code: int, text: str, *, status: int = 400, until: int = 0) -> None:
        super().__init__(text)
        self.until = until
        self.status = status
        self.code = code
        self.text = text

    @property
    def body(self) -> bytes:
        """The answer's JSON."""
        return msgspec.json.encode({"code": self.code, "msg": self.text})


class Incoming(NamedTuple):
    """A request after it was counted."""

    params: dict[str, str]
    """Query and form parameters together."""
    now: int
    """Milliseconds of the emulator's clock at arrival."""
    account: str
    """Label of the account: a digest of its API key."""

    def need(self, name: str) -> str:
        """A mandatory parameter."""
        value = self.params.get(name)
        if not value:
            raise Fault(-1102, f"Mandatory parameter '{name}' was not sent, was empty/null, or malformed.")
        return value

    def number(self, name: str, default: int, *, low: int = 1, high: int = 1_000_000_000_000_000) -> int:
        """An optional whole number between bounds."""
        text = self.params.get(name)
        if not text:
            return default
        try:
            value = int(text)
        except ValueError:
            raise Fault(-1100, f"Illegal characters found in parameter '{name}'; legal range is '^[0-9]+$'.") from None
        if not low <= value <= high:
            raise Fault(-1130, f"Data sent for parameter '{name}' is not valid.")
        return value


Handler: TypeAlias = Callable[[Incoming], bytes]


class Route(NamedTuple):
    """How the emulated exchange answers one method and path."""

    handler: Handler
    signed: bool = False
    """Whether timestamp and signature must be there."""
    keyed: bool = False
    """Whether an API key must be there, without a signature."""
    free: bool = False
    """Whether its weight is given back when it succeeds (spot orders)."""
