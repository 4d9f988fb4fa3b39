"""Binance: what spot and USD-M futures have in common, and spot.

Encoded bodies of market data are cached, because whole programs ask for the same candles every second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from ratekeeper.rules.denial import interval

from .accounting import Charge
from .dialects import LISTEN_KEY
from .incoming import Fault, Incoming, named
from .market import INTERVALS, Bodies, Quote, candle_span, candles, levels, prints
from .venue import Venue

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .accounting import Meter, StrictLimit
    from .incoming import Arrival
    from .limit_table import LimitTable
    from .market import Symbol
    from .options import Live
    from .orders import Order

__all__ = ["Binance", "Spot", "plain_body"]

encode = msgspec.json.encode
_LISTS = ("all", "list", "hist", "query", "record", "trade", "orders", "interest", "ratio", "pairs")
_MARK = 9_999_999_999_999
"""A placeholder for the server time in a cached body."""


class Binance(Venue):
    """The handlers that spot and USD-M futures share."""

    depths: tuple[int, ...] = ()
    """Numbers of levels that may be asked for; any, if there are none here."""
    most_levels = 5_000
    usual_levels = 100
    most_klines = 1_000
    shortest = "1s"
    """The shortest candle."""

    def __init__(self, limits: LimitTable, options: Live) -> None:
        super().__init__(limits, options)
        self.bodies = Bodies()
        self._info: tuple[tuple[tuple[int, int], ...], bytes, bytes] | None = None

    # -- what is counted and told

    def unknown(self, arrival: Arrival, meter: Meter) -> bytes:
        return plain_body(arrival.path)

    def carry_out(self, arrival: Arrival, meter: Meter) -> tuple[bytes, list[Charge]]:
        book = self.book
        book.match(arrival.now // 1_000_000)
        filled = book.filled
        body, back = super().carry_out(arrival, meter)
        if not book.futures and book.filled > filled:  # a taker's first fill takes one off every order window
            back += [charge._replace(cost=1) for charge in arrival.charges if charge.limit.unit == "orders"]
        return body, back

    def reported(self, arrival: Arrival) -> list[Charge]:
        main = self.limits.main
        others = [charge for charge in arrival.charges if charge.limit is not main]
        if arrival.path.startswith("/sapi/"):  # the wallet's routes report their own pools only
            return others
        return [Charge(main, f"ip:{arrival.ip}", 0), *others]

    # -- market data

    def exchange_info(self, asked: Incoming) -> bytes:
        """The limits in force and the symbols with their filters. The body is cached without its ``serverTime``."""
        limits = self.limits.declared
        numbers = tuple((limit.capacity, limit.period) for limit in limits)
        if self._info is None or self._info[0] != numbers:
            symbols = [self.sheet.fill("symbol", symbol=symbol) for symbol in self.book.symbols.values()]
            body = encode(self.sheet.fill("info", now=_MARK, limits=_rate_limits(limits), symbols=symbols))
            before, _, after = body.partition(b"%d" % _MARK)
            self._info = (numbers, before, after)
        return b"%b%d%b" % (self._info[1], asked.dated, self._info[2])

    def order_limits(self, asked: Incoming) -> Any:
        """The order limits of the account."""
        return _rate_limits(limit for limit in self.limits.declared if limit.declared == "ORDERS")

    def klines(self, asked: Incoming) -> bytes:
        """Candles up to now, or from `startTime`, or up to `endTime`."""
        name = asked.params.get("symbol") or asked.need("pair")
        symbol = self.book.symbols.get(name)
        if symbol is None:
            raise Fault("symbol")
        length = asked.need("interval")
        if INTERVALS.get(length, 0) < INTERVALS[self.shortest]:
            raise Fault("interval")
        count = min(asked.number("limit", 500), self.most_klines)
        start, end = asked.number("startTime", 0, low=0), asked.number("endTime", 0)
        first, count = candle_span(length, asked.now, count, start, end)
        return self.bodies.get(("klines", name, length, first, count), lambda: _klines(symbol, length, first, count))

    def depth(self, asked: Incoming) -> bytes:
        """The order book, renewed every second."""
        symbol = self.book.symbol(asked)
        count = asked.number("limit", self.usual_levels, high=self.most_levels)
        if self.depths and count not in self.depths:
            raise Fault("depth", count=count)
        at = asked.now // 1_000 * 1_000

        def build() -> bytes:
            bids, asks = levels(symbol, at, count)
            return encode(self.sheet.fill("depth", at=at, update=at * 10, bids=bids, asks=asks))

        return self.bodies.get(("depth", symbol.name, count, at), build)

    def trades(self, asked: Incoming, row: str) -> bytes:
        """The last trades, or those from `startTime`."""
        symbol, count = self.book.symbol(asked), asked.number("limit", 500, high=1_000)
        at = min(asked.number("endTime", asked.now), asked.now) // 1_000 * 1_000
        if start := asked.number("startTime", 0, low=0):
            count = max(1, min(count, (at - start) // 100))
            at = min(at, start + count * 100)

        def build() -> bytes:
            return encode([self.sheet.fill(row, print=one) for one in prints(symbol, at, count)])

        return self.bodies.get((row, symbol.name, count, at), build)

    def per_symbol(self, asked: Incoming, row: str) -> bytes:
        """One object for `symbol`; a list for `symbols` or for none. Renewed every second."""
        at = asked.now // 1_000 * 1_000
        symbols = self.book.symbols

        def made(symbol: Symbol) -> Any:
            return self.sheet.fill(row, symbol=symbol, quote=Quote(symbol, at))

        if "symbol" in asked.params:
            symbol = self.book.symbol(asked)
            return self.bodies.get((row, symbol.name, at), lambda: encode(made(symbol)))
        wanted = asked.params.get("symbols")
        if not wanted:
            return self.bodies.get((row, at), lambda: encode([made(symbol) for symbol in symbols.values()]))
        try:
            return encode([made(symbols[name]) for name in msgspec.json.decode(wanted, type=list[str])])
        except (msgspec.DecodeError, KeyError):
            raise Fault("symbol") from None

    # -- orders

    def order(self, order: Order, row: str = "order") -> Any:
        """One order as it is shown."""
        return self.sheet.fill(row, order=order)

    def found(self, asked: Incoming, row: str, among: str = "") -> Any:
        """One order, among those that are open if the route says so."""
        return self.order(self.book.find(asked, among_open=bool(among)), row)

    def listed(self, asked: Incoming, row: str, among: str = "") -> Any:
        """The account's orders."""
        found = self.book.listed(asked, only_open=bool(among), conditional=row == "algo")
        return [self.order(order, row) for order in found]

    def fills(self, asked: Incoming) -> Any:
        """Fills of one symbol."""
        symbol, account = self.book.symbol(asked), self.book.account(asked.account)
        return [self.order(order, "fill") for order in account.fills if order.symbol == symbol.name]

    # -- account

    def coins(self, asked: Incoming) -> Any:
        """The assets of all symbols, each with one network."""
        book = self.book
        names = sorted({symbol.base for symbol in book.symbols.values()} | {"USDT"})
        balances = book.account(asked.account).balances
        return [self.sheet.fill("coin", name=name, free=balances.get(name, 0)) for name in names]

    def listen_key(self, asked: Incoming) -> Any:
        """An account's listen key for its user data stream; it is always the same."""
        return {"listenKey": LISTEN_KEY + asked.account}


class Spot(Binance):
    """Spot. Successful order and cancel calls give their weight back (since 2026-04-02), as the rule file says."""

    venue = "binance-spot"

    def reports(self, arrival: Arrival, meter: Meter) -> dict[str, str]:
        headers = super().reports(arrival, meter)
        main = self.limits.main
        if not arrival.path.startswith("/sapi/"):
            headers["x-mbx-used-weight"] = str(meter.used(arrival.now, main, f"ip:{arrival.ip}"))
        return headers

    def place(self, asked: Incoming) -> Any:
        """Place one order; the answer is as long as `newOrderRespType` says."""
        order = self.book.place(asked)
        long_by_default = order.kind in ("LIMIT", "MARKET")
        wanted = asked.params.get("newOrderRespType") or ("FULL" if long_by_default else "ACK")
        body = self.order(order, "ack")
        if wanted != "ACK":
            body = {**self.order(order), **body}
        if wanted == "FULL":
            body["fills"] = [self.order(order, "part")] if order.filled else []
        return body

    def place_test(self, asked: Incoming) -> Any:
        """Check an order without placing it."""
        self.book.place(asked, test=True)
        return {}

    def cancel(self, asked: Incoming) -> Any:
        """Cancel one order."""
        return self._cancelled(self.book.cancel(asked), asked)

    def _cancelled(self, order: Order, asked: Incoming) -> dict[str, Any]:
        client_id = asked.params.get("newClientOrderId") or f"cancelled-{order.number}"
        more = {"origClientOrderId": order.client_id, "clientOrderId": client_id, "transactTime": asked.now}
        return {**self.order(order), **more}

    def cancel_all(self, asked: Incoming) -> Any:
        """Cancel every open order of a symbol; an error if there is none."""
        found = self.book.cancel_all(asked)
        if not found:
            raise Fault("not open")
        return [self._cancelled(order, asked) for order in found]

    def cancel_replace(self, asked: Incoming) -> Any:
        """Cancel one order and place another."""
        names = {"cancelOrderId": "orderId", "cancelOrigClientOrderId": "origClientOrderId"}
        mode = asked.need("cancelReplaceMode")
        cancelled: dict[str, Any] | None = None
        try:
            order = self.book.cancel(named(asked, names, symbol=asked.need("symbol")))
            cancelled = self._cancelled(order, asked)
        except Fault:
            if mode != "ALLOW_FAILURE":
                raise Fault("replace") from None
        placed = self.book.place(asked)
        return {
            "cancelResult": "SUCCESS" if cancelled else "FAILURE",
            "newOrderResult": "SUCCESS",
            "cancelResponse": cancelled,
            "newOrderResponse": {**self.order(placed), "transactTime": placed.time, "fills": []},
        }

    def order_list(self, asked: Incoming) -> Any:
        """Acknowledge an order list. It is counted like a real one, but its orders are not kept."""
        number, client_id = asked.number("orderListId", 1), asked.params.get("listClientOrderId") or "emulated"
        return self.of_symbol(asked, "order_list", number=number, client_id=client_id)

    def all_orders(self, asked: Incoming) -> Any:
        """Every order of one symbol."""
        self.book.symbol(asked)
        return self.listed(asked, "order")

    def account(self, asked: Incoming) -> Any:
        """Balances."""
        held = self.book.account(asked.account).balances
        balances = [self.sheet.fill("balance", name=name, amount=amount) for name, amount in held.items()]
        return self.sheet.fill("account", asked=asked, balances=balances)


def _rate_limits(limits: Iterable[StrictLimit]) -> list[dict[str, Any]]:
    rows = []
    for limit in limits:
        unit, number = interval(limit.period)
        rows.append({"rateLimitType": limit.declared, "interval": unit, "intervalNum": number, "limit": limit.capacity})
    return rows


def _klines(symbol: Symbol, length: str, first: int, count: int) -> bytes:
    """Candles, written as text because encoding objects is many times slower."""
    step = INTERVALS[length]
    rows = (
        f'[{at},"{opening}","{high}","{low}","{closing}","12.5",'
        f'{at + step - 1},"{12.5 * number:.2f}",300,"6.2","{6.2 * number:.2f}","0"]'
        for at, opening, high, low, closing, number in candles(symbol, length, first, count)
    )
    return f"[{','.join(rows)}]".encode()


def plain_body(path: str) -> bytes:
    """The body of a route that has rules but none of its own: an empty list where lists are usual, or an empty object."""
    last = path.rsplit("/", 1)[-1].lower()
    return b"[]" if "/data/" in path or any(word in last for word in _LISTS) else b"{}"
