"""Spot and USD-M futures of Binance as a venue: bodies of their own, and Binance's words for limits and bans."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .exchange import plain_body
from .orders import statistics
from .spot import Spot
from .usdm import Usdm
from .wording import Wording, check_key, check_signed

if TYPE_CHECKING:
    import random

    from .accounting import Bill, Meter, Refusal
    from .exchange import Exchange
    from .incoming import Arrival, Failure
    from .tariff import Tariff

__all__ = ["NAMES", "Binance"]

NAMES = ("binance-spot", "binance-usdm")
"""The rule files that have bodies of their own."""


class Binance:
    """One of the two exchanges; see `Venue` for what the methods are."""

    def __init__(self, name: str, tariff: Tariff) -> None:
        futures = name == "binance-usdm"
        self._tariff = tariff
        self._wording = Wording(futures=futures)
        self.exchange: Exchange = (Usdm if futures else Spot)(tariff.declared)
        self.desk = self.exchange.desk

    def carry_out(self, arrival: Arrival, meter: Meter) -> tuple[bytes, list[Bill]]:
        route = self.exchange.routes.get((arrival.method, arrival.path))
        if route is None:
            if not arrival.plan.route:
                raise self._wording.unknown_path(arrival.method, arrival.path)
            return plain_body(arrival.path), []
        incoming = arrival.incoming(arrival.params)
        if route.keyed:
            check_key(arrival.key)
        if route.signed:
            check_signed(arrival.params, incoming.dated)
        self.desk.match(incoming.now)
        filled = self.desk.filled
        body = route.handler(incoming)
        back: list[Bill] = []
        if route.free:
            back += [bill for bill in arrival.bills if bill.limit.unit == "weight"]
            if self.desk.filled > filled:  # a taker's first fill takes one off every order window
                back += [bill._replace(cost=1) for bill in arrival.bills if bill.limit.unit == "orders"]
        return body, back

    def throttled(self, arrival: Arrival, refusal: Refusal) -> Failure:
        return self._wording.throttled(refusal, arrival.ip)

    def banned(self, arrival: Arrival, until: int, cause: Failure | None) -> Failure:
        return self._wording.banned(arrival.ip, until)

    def ban_span(self) -> int:
        return self._tariff.stretched(self._tariff.provider.ban_length())

    def trouble(self, dice: random.Random) -> tuple[Failure, bool]:
        return self._wording.trouble(dice)

    def reports(self, arrival: Arrival, meter: Meter) -> dict[str, str]:
        headers: dict[str, str] = {}
        main = self._tariff.main
        if not arrival.path.startswith("/sapi/"):  # the wallet's routes report their own pools only
            weight = str(meter.used(arrival.now, main, f"ip:{arrival.ip}"))
            if not self._wording.futures:
                headers["X-MBX-USED-WEIGHT"] = weight
            headers[self._wording.usage_header(main) or ""] = weight
        for bill in arrival.bills:
            if bill.limit is not main and (name := self._wording.usage_header(bill.limit)):
                headers[name] = str(meter.used(arrival.now, bill.limit, bill.owner))
        return headers

    def orders(self) -> dict[str, Any]:
        return statistics(self.exchange.desk)
