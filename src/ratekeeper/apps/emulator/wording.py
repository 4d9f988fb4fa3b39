"""How Binance words its limits: intervals, usage headers, refusals and bans, for spot and for USD-M futures."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ratekeeper.rules.denial import Envelope, interval

from .incoming import Fault

if TYPE_CHECKING:
    import random

    from .accounting import Refusal, StrictLimit

__all__ = ["Trouble", "Wording", "check_key", "check_signed", "interval"]


class Trouble(NamedTuple):
    """One kind of 503: its code and text, and whether the request was carried out behind it."""

    code: int
    text: str
    carried_out: bool


class Wording:
    """The texts of one provider.

    Args:
        futures: USD-M futures rather than spot.
    """

    def __init__(self, *, futures: bool) -> None:
        self.futures = futures
        self._envelope = Envelope.of("binance-usdm" if futures else "binance-spot")
        unknown = "Unknown error, please check your request or try again later."
        timeout = "Timeout waiting for response from backend server. Send status unknown; execution status unknown."
        overload = "Server is currently overloaded with other requests. Please try again in a few minutes."
        self._troubles = (
            Trouble(-1008, overload, carried_out=False),
            Trouble(-1001, "Service Unavailable.", carried_out=False),
            Trouble(-1000 if futures else -1007, unknown if futures else timeout, carried_out=True),
        )

    def usage_header(self, limit: StrictLimit) -> str | None:
        """The header that reports the use of `limit`, or ``None``: the name follows the interval in force."""
        unit, number = interval(limit.period)
        suffix = f"{number}{unit[0]}" if unit.isalpha() else unit
        if limit.unit == "orders":
            return f"X-MBX-ORDER-COUNT-{suffix}"
        if limit.unit == "weight":
            return f"X-MBX-USED-WEIGHT-{suffix}"
        if limit.unit in ("sapi-ip", "sapi-uid"):
            return f"X-SAPI-USED-{limit.unit[5:].upper()}-WEIGHT-{suffix}"
        return None

    def throttled(self, refusal: Refusal, ip: str) -> Fault:
        """The 429 that names the limit that has no room."""
        limit = refusal.limit
        unit, number = interval(limit.period)
        if limit.unit == "orders":
            text = f"Too many new orders; current limit is {limit.capacity} orders per {number} {unit}."
            return Fault(-1015, text, status=429, until=refusal.free_at)
        if self.futures:
            per = "minute" if (unit, number) == ("MINUTE", 1) else f"{number} {unit}"
            text = (
                f"Too many requests; current limit of IP({ip}) is {limit.capacity} requests per {per}. "
                "Please use the websocket for live updates to avoid polling the API."
            )
        else:
            what = "raw requests" if limit.declared == "RAW_REQUESTS" else "request weight"
            text = (
                f"Too much {what} used; current limit is {limit.capacity} {what} per {number} {unit}. "
                "Please use WebSocket Streams for live updates to avoid polling the API."
            )
        return Fault(-1003, text, status=429, until=refusal.free_at)

    def banned(self, ip: str, until: int) -> Fault:
        """The 418 of an address that is banned until `until` (nanoseconds)."""
        text = self._envelope.banned_text(ip, until)
        return Fault(-1003, text, status=418, until=until)

    def trouble(self, dice: random.Random) -> tuple[Fault, bool]:
        """One of the ways in which the exchange answers 503, and whether the request was carried out behind it."""
        chosen = dice.choice(self._troubles)
        return Fault(chosen.code, chosen.text, status=503), chosen.carried_out

    def unknown_path(self, method: str, path: str) -> Fault:
        """The 404 of a path that does not exist."""
        return Fault(-5000, f"Path {path}, Method {method} is invalid", status=404)


def check_signed(params: dict[str, str], now: int) -> None:
    """What a signed endpoint checks, except the signature itself: both parameters are there and the time is fresh."""
    for name in ("timestamp", "signature"):
        if not params.get(name):
            raise Fault(-1102, f"Mandatory parameter '{name}' was not sent, was empty/null, or malformed.")
    try:
        timestamp, window = int(params["timestamp"]), float(params.get("recvWindow") or 5_000)
    except ValueError:
        raise Fault(
            -1100, "Illegal characters found in parameter 'timestamp'; legal range is '^[0-9]{1,20}$'."
        ) from None
    if not 0 < window <= 60_000:
        raise Fault(-1131, "'recvWindow' must be less than 60000.")
    if timestamp > now + 1_000:
        raise Fault(-1021, "Timestamp for this request was 1000ms ahead of the server's time.")
    if now - timestamp > window:
        raise Fault(-1021, "Timestamp for this request is outside of the recvWindow.")


def check_key(key: str) -> None:
    """What an endpoint checks that needs an API key."""
    if not key:
        raise Fault(-2014, "API-key format invalid.", status=401)
