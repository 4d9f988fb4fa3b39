"""One request as the emulated provider sees it, and the error with which it may answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import msgspec

if TYPE_CHECKING:
    import random

    from ratekeeper.rules.call import Plan

    from .accounting import Bill, Meter, Refusal
    from .orders import OrderDesk

__all__ = ["Arrival", "Failure", "Fault", "Handler", "Incoming", "Route", "Venue"]

MILLI = 1_000_000


class Failure(Exception):
    """An error answer.

    Args:
        status: HTTP status.
        body: the answer's body.
        headers: further response headers.
        until: nanoseconds of the emulator's clock that ``Retry-After`` counts to; 0 for none.
        penalty: kind of owner that is shut out from now on, and for how many nanoseconds.
        bans: whether the provider calls this a ban.
    """

    def __init__(
        self,
        status: int,
        body: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        until: int = 0,
        penalty: tuple[str, int] | None = None,
        bans: bool = False,
    ) -> None:
        super().__init__(status)
        self.status = status
        self.body = body
        self.headers = dict(headers or {})
        self.until = until
        self.penalty = penalty
        self.bans = bans
        self.turned_away = ""
        """``throttled`` or ``banned`` once the server has refused a request with it."""


class Fault(Failure):
    """An error answer in Binance's form: HTTP status, code, text; `until` (ns) is what ``Retry-After`` counts to."""

    def __init__(self, code: int, text: str, *, status: int = 400, until: int = 0) -> None:
        body = msgspec.json.encode({"code": code, "msg": text})
        super().__init__(status, body, until=until, bans=status == 418)
        self.code = code
        self.text = text


class Arrival(NamedTuple):
    """One request with its price and its owners, at the instant it arrives."""

    method: str
    path: str
    params: dict[str, str]
    """Query and form parameters together."""
    plan: Plan
    bills: tuple[Bill, ...]
    ip: str
    key: str
    """The secret that names the account; ``""`` if there is none."""
    account: str
    """Label of the account: a digest of its key."""
    now: int
    """Nanoseconds of the clock that counts."""
    tree: Any = None
    """The decoded JSON body, if there is one."""
    ahead: int = 0
    """By how many ns the clock of the machine that dates the answer is ahead of `now`."""

    @property
    def dated(self) -> int:
        """The same moment as the answer's ``Date`` tells it, ns."""
        return self.now + self.ahead

    def incoming(self, params: dict[str, str]) -> Incoming:
        """The request with these parameters, for the handler that carries it out."""
        now = self.now // MILLI
        return Incoming(params, now, self.account, self.tree, self.dated // MILLI - now)


class Venue(Protocol):
    """How one provider talks: bodies, refusals, bans and headers. What is counted is none of its business."""

    @property
    def desk(self) -> OrderDesk | None:
        """Where its orders are kept, if it keeps any."""

    def carry_out(self, arrival: Arrival, meter: Meter) -> tuple[bytes, list[Bill]]:
        """The body of a request that was let through, and what is given back of its price; or raises `Failure`."""

    def throttled(self, arrival: Arrival, refusal: Refusal) -> Failure:
        """The refusal of a request that found a limit full."""

    def banned(self, arrival: Arrival, until: int, cause: Failure | None) -> Failure:
        """The answer to an owner who is shut out until `until` (ns), since the answer `cause` if one began it."""

    def ban_span(self) -> int:
        """Nanoseconds of the first ban of an address; 0 if this provider bans nobody."""

    def trouble(self, dice: random.Random) -> tuple[Failure, bool]:
        """One of the ways in which it answers 503, and whether the request was carried out behind it."""

    def reports(self, arrival: Arrival, meter: Meter) -> dict[str, str]:
        """The headers that tell what is used."""

    def orders(self) -> dict[str, Any]:
        """What is known of orders, by account."""


class Incoming(NamedTuple):
    """A request after it was counted."""

    params: dict[str, str]
    """Query and form parameters together."""
    now: int
    """Milliseconds of the clock that counts, at arrival."""
    account: str
    """Label of the account: a digest of its API key."""
    tree: Any = None
    """The decoded JSON body, if there is one."""
    ahead: int = 0
    """By how many milliseconds the clock that dates the answer is ahead of `now`."""

    @property
    def dated(self) -> int:
        """What a body says the time is, in milliseconds."""
        return self.now + self.ahead

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
