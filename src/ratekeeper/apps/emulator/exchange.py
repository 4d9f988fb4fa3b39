"""What spot and USD-M futures have in common: the market data that both show, and the table of routes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from .dialects import LISTEN_KEY
from .exchange_info import exchange_info, rate_limits
from .incoming import Fault, Incoming, Route
from .market import INTERVALS, Bodies, Symbol, candle_span, depth, klines, trades
from .orders import OrderDesk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .accounting import StrictLimit
    from .incoming import Handler

__all__ = ["Exchange", "encode", "plain_body"]

encode = msgspec.json.encode


class Exchange:
    """One emulated exchange: its markets, its orders, and the routes it answers with a body of their own.

    Args:
        symbols: the markets by name.
        limits: the limits that ``exchangeInfo`` declares, as they are in force.
        prefix: path in front of the market data routes, such as ``/fapi/v1/``.
        futures: USD-M futures rather than spot.
        most_klines: the largest number of candles in one answer.
    """

    def __init__(
        self,
        symbols: dict[str, Symbol],
        limits: Iterable[StrictLimit],
        *,
        prefix: str,
        futures: bool,
        most_klines: int,
    ) -> None:
        self.symbols = symbols
        self.limits = list(limits)
        self.futures = futures
        self.most_klines = most_klines
        self.desk = OrderDesk(symbols, futures=futures)
        self.bodies = Bodies()
        self.routes: dict[tuple[str, str], Route] = {}
        self._info: tuple[tuple[tuple[int, int], ...], bytes, bytes] | None = None
        for path, handler in (
            ("ping", lambda _incoming: b"{}"),
            ("time", lambda incoming: b'{"serverTime":%d}' % incoming.dated),
            ("exchangeInfo", self.exchange_info),
            ("depth", self.depth),
            ("trades", self.trades),
            ("aggTrades", self.agg_trades),
            ("klines", self.klines),
            ("ticker/24hr", self.day),
            ("ticker/price", self.price),
            ("ticker/bookTicker", self.book_ticker),
        ):
            self.get(prefix + path, handler)
        self.route("GET", prefix + "historicalTrades", self.trades, keyed=True)
        self.signed("GET", prefix + "rateLimit/order", self.order_limits)
        # ccxt asks for these when it loads markets with a key, whichever exchange it is for
        self.signed("GET", "/sapi/v1/capital/config/getall", self.coins)
        self.route("GET", "/sapi/v1/margin/allPairs", lambda _incoming: b"[]", keyed=True)
        self.signed("GET", "/sapi/v1/margin/isolated/allPairs", lambda _incoming: b"[]")

    # -- the table of routes

    def route(self, method: str, path: str, handler: Handler, **checks: bool) -> None:
        """Answer `method` and `path` with `handler`."""
        self.routes[method, path] = Route(handler, **checks)

    def get(self, path: str, handler: Handler) -> None:
        """Answer a public GET."""
        self.route("GET", path, handler)

    def signed(self, methods: str, path: str, handler: Handler) -> None:
        """Answer signed calls; `methods` are separated by blanks."""
        for method in methods.split():
            self.route(method, path, handler, signed=True, keyed=True)

    def listen_keys(self, path: str) -> None:
        """Hand out an account's listen key, which is always the same, for its user data stream."""

        def key(incoming: Incoming) -> bytes:
            return encode({"listenKey": LISTEN_KEY + incoming.account})

        for method, handler in (("POST", key), ("PUT", key), ("DELETE", lambda _incoming: b"{}")):
            self.route(method, path, handler, keyed=True)

    # -- market data

    def exchange_info(self, incoming: Incoming) -> bytes:
        """The body is kept; only its ``serverTime`` is set anew."""
        numbers = tuple((limit.capacity, limit.period) for limit in self.limits)
        if self._info is None or self._info[0] != numbers:
            mark = 9_999_999_999_999
            body = exchange_info(self.symbols.values(), self.limits, now=mark, futures=self.futures)
            before, _, after = body.partition(b"%d" % mark)
            self._info = (numbers, before, after)
        return b"%b%d%b" % (self._info[1], incoming.dated, self._info[2])

    def order_limits(self, incoming: Incoming) -> bytes:
        """The order limits of the account."""
        return encode(rate_limits(limit for limit in self.limits if limit.declared == "ORDERS"))

    def klines(self, incoming: Incoming) -> bytes:
        """Candles up to now, or from `startTime`, or up to `endTime`."""
        name = incoming.params.get("symbol") or incoming.need("pair")
        symbol = self.symbols.get(name)
        if symbol is None:
            raise Fault(-1121, "Invalid symbol.")
        interval = incoming.need("interval")
        if interval not in INTERVALS or (self.futures and interval == "1s"):
            raise Fault(-1120, "Invalid interval.")
        count = min(incoming.number("limit", 500), self.most_klines)
        start, end = incoming.number("startTime", 0, low=0), incoming.number("endTime", 0)
        first, count = candle_span(interval, incoming.now, count, start, end)
        key = ("klines", name, interval, first, count)
        return self.bodies.get(key, lambda: klines(symbol, interval, first, count))

    def depth(self, incoming: Incoming) -> bytes:
        """The order book, renewed every second."""
        symbol = self.desk.symbol(incoming)
        most = 1_000 if self.futures else 5_000
        levels = incoming.number("limit", 500 if self.futures else 100, high=most)
        if self.futures and levels not in (5, 10, 20, 50, 100, 500, 1_000):
            raise Fault(-4021, f"{levels} is not valid depth limit.")
        at = incoming.now // 1_000 * 1_000
        return self.bodies.get(
            ("depth", symbol.name, levels, at), lambda: depth(symbol, at, levels, futures=self.futures)
        )

    def trades(self, incoming: Incoming) -> bytes:
        """The last trades."""
        return self._trades(incoming, aggregate=False)

    def agg_trades(self, incoming: Incoming) -> bytes:
        """The last trades, aggregated."""
        return self._trades(incoming, aggregate=True)

    def _trades(self, incoming: Incoming, *, aggregate: bool) -> bytes:
        symbol, count = self.desk.symbol(incoming), incoming.number("limit", 500, high=1_000)
        at = min(incoming.number("endTime", incoming.now), incoming.now) // 1_000 * 1_000
        if start := incoming.number("startTime", 0, low=0):
            count = max(1, min(count, (at - start) // 100))
            at = min(at, start + count * 100)
        key = ("trades", symbol.name, aggregate, count, at)
        return self.bodies.get(key, lambda: trades(symbol, at, count, aggregate=aggregate))

    def price(self, incoming: Incoming) -> bytes:
        """Last price of one symbol, of several, or of all."""
        return self.per_symbol(incoming, "price", self._price_row)

    def book_ticker(self, incoming: Incoming) -> bytes:
        """Best bid and offer."""
        return self.per_symbol(incoming, "book", self._book_row)

    def day(self, incoming: Incoming) -> bytes:
        """Figures of the last 24 hours."""
        return self.per_symbol(incoming, "day", self._day_row)

    def per_symbol(self, incoming: Incoming, kind: str, row: Callable[[Symbol, int], dict[str, Any]]) -> bytes:
        """One object for `symbol`; a list for `symbols` or for none. Renewed every second."""
        at = incoming.now // 1_000 * 1_000
        params = incoming.params
        if "symbol" in params:
            symbol = self.desk.symbol(incoming)
            return self.bodies.get((kind, symbol.name, at), lambda: encode(row(symbol, at)))
        wanted = params.get("symbols")
        if not wanted:
            everything = self.symbols.values()
            return self.bodies.get((kind, at), lambda: encode([row(symbol, at) for symbol in everything]))
        try:
            names = msgspec.json.decode(wanted, type=list[str])
            chosen = [self.symbols[name] for name in names]
        except (msgspec.DecodeError, KeyError):
            raise Fault(-1121, "Invalid symbol.") from None
        return encode([row(symbol, at) for symbol in chosen])

    def _price_row(self, symbol: Symbol, at: int) -> dict[str, Any]:
        row = {"symbol": symbol.name, "price": symbol.show(symbol.price(at))}
        return {**row, "time": at} if self.futures else row

    def _book_row(self, symbol: Symbol, at: int) -> dict[str, Any]:
        row: dict[str, Any] = {
            "symbol": symbol.name,
            "bidPrice": symbol.show(symbol.bid(at)),
            "bidQty": "1.5",
            "askPrice": symbol.show(symbol.ask(at)),
            "askQty": "1.5",
        }
        return {**row, "time": at, "lastUpdateId": at * 10} if self.futures else row

    def _day_row(self, symbol: Symbol, at: int) -> dict[str, Any]:
        day = 86_400_000
        now, before = symbol.price(at), symbol.price(at - day)
        show = symbol.show
        row = {
            "symbol": symbol.name,
            "priceChange": show(now - before),
            "priceChangePercent": f"{100 * (now - before) / before:.3f}",
            "weightedAvgPrice": show((now + before) / 2),
            "lastPrice": show(now),
            "lastQty": "0.5",
            "openPrice": show(before),
            "highPrice": show(symbol.around * 1.012),
            "lowPrice": show(symbol.around * 0.988),
            "volume": "18000.0",
            "quoteVolume": f"{18_000 * symbol.around:.2f}",
            "openTime": at - day,
            "closeTime": at,
            "firstId": (at - day) // 100,
            "lastId": at // 100,
            "count": day // 100,
        }
        if self.futures:
            return row
        return {
            **row,
            "prevClosePrice": show(before),
            "bidPrice": show(symbol.bid(at)),
            "bidQty": "1.5",
            "askPrice": show(symbol.ask(at)),
            "askQty": "1.5",
        }

    # -- wallet

    def coins(self, incoming: Incoming) -> bytes:
        """The assets of all symbols, each with one network."""
        account = self.desk.account(incoming.account)
        names = sorted({symbol.base for symbol in self.symbols.values()} | {"USDT"})
        return encode([_coin(name, str(account.balances.get(name, 0))) for name in names])


def _coin(name: str, free: str) -> dict[str, Any]:
    network = {
        "network": name,
        "coin": name,
        "name": name,
        "isDefault": True,
        "depositEnable": True,
        "withdrawEnable": True,
        "withdrawFee": "0.001",
        "withdrawMin": "0.01",
        "withdrawMax": "100000",
        "withdrawIntegerMultiple": "0.00000001",
    }
    return {
        "coin": name,
        "name": name,
        "depositAllEnable": True,
        "withdrawAllEnable": True,
        "free": free,
        "locked": "0",
        "freeze": "0",
        "trading": True,
        "isLegalMoney": False,
        "networkList": [network],
    }


_LISTS = ("all", "list", "hist", "query", "record", "trade", "orders", "interest", "ratio", "pairs")


def plain_body(path: str) -> bytes:
    """The body of a route that has rules but none of its own: an empty list where lists are usual, or an empty object."""
    last = path.rsplit("/", 1)[-1].lower()
    return b"[]" if "/data/" in path or any(word in last for word in _LISTS) else b"{}"
