"""The markets that the emulator shows: a handful of symbols, and prices that are a fixed function of time.

Nothing is random, so the same question gets the same answer, and encoded bodies can be cached. Times are
milliseconds since the epoch, as in the exchange's own bodies.
"""

from __future__ import annotations

import tomllib
from collections import OrderedDict
from dataclasses import dataclass
from math import pi, sin
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .incoming import Fault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .incoming import Incoming

__all__ = [
    "INTERVALS",
    "MARKETS",
    "Bodies",
    "Candle",
    "Print",
    "Quote",
    "Symbol",
    "candle_rows",
    "candle_span",
    "candles",
    "chosen",
    "levels",
    "prints",
    "symbol_of",
]

SECOND = 1_000
MINUTE = 60_000
HOUR = 60 * MINUTE
DAY = 24 * HOUR
FUNDING = 8 * HOUR
"""Milliseconds between two fundings."""

INTERVALS = {
    "1s": SECOND,
    "1m": MINUTE,
    "3m": 3 * MINUTE,
    "5m": 5 * MINUTE,
    "15m": 15 * MINUTE,
    "30m": 30 * MINUTE,
    "1h": HOUR,
    "2h": 2 * HOUR,
    "4h": 4 * HOUR,
    "6h": 6 * HOUR,
    "8h": 8 * HOUR,
    "12h": 12 * HOUR,
    "1d": DAY,
    "3d": 3 * DAY,
    "1w": 7 * DAY,
    "1M": 30 * DAY,
}
"""Candle intervals in milliseconds. A month is taken as 30 days; weeks start on a Thursday, like the epoch."""


@dataclass(frozen=True, slots=True)
class Symbol:
    """One market: its names, the price it swings around, and its decimals."""

    name: str
    base: str
    quote: str
    around: float
    price_decimals: int
    quantity_decimals: int
    min_notional: int = 5

    @property
    def tick_size(self) -> float:
        """Smallest step of the price as a number."""
        return 10.0**-self.price_decimals

    @property
    def tick(self) -> str:
        """Smallest step of the price."""
        return _step(self.price_decimals)

    @property
    def step(self) -> str:
        """Smallest step of the quantity."""
        return _step(self.quantity_decimals)

    def price(self, at: int) -> float:
        """The price at `at` milliseconds: a slow and a fast swing around the middle."""
        return self.around * (1 + 0.01 * sin(at * (2 * pi / (6 * HOUR))) + 0.002 * sin(at * (2 * pi / (7 * MINUTE))))

    def show(self, price: float) -> str:
        """A price as text with the symbol's decimals."""
        return f"{price:.{self.price_decimals}f}"

    def ask(self, at: int) -> float:
        """Best offer: half a hundredth of a percent, and at least a tick, above the price."""
        return self.price(at) * 1.00005 + 0.5 * self.tick_size

    def bid(self, at: int) -> float:
        """Best bid."""
        return self.price(at) * 0.99995 - 0.5 * self.tick_size


class Quote:
    """Prices of one market at an instant, as bodies show them. All are text with the symbol's decimals.

    Attributes:
        symbol: the market.
        at: milliseconds.
        price, bid, ask: of the moment.
        before: the price 24 hours ago.
        high, low: of 24 hours.
        change, mean: `price` less `before`, and between them.
        part, percent: the change as a share of `before`, and times 100; numbers.
        turnover: money traded in 24 hours, a number.
        since: milliseconds, 24 hours before `at`.
        first, last, update: numbers of the first and the last trade of 24 hours, and of the change of the order book.
        funding: milliseconds of the next funding.
    """

    def __init__(self, symbol: Symbol, at: int) -> None:
        self.symbol, self.at = symbol, at

    # Each is computed when a template asks for it: most want only some.
    price = property(lambda self: self.symbol.show(self.symbol.price(self.at)))
    bid = property(lambda self: self.symbol.show(self.symbol.bid(self.at)))
    ask = property(lambda self: self.symbol.show(self.symbol.ask(self.at)))
    before = property(lambda self: self.symbol.show(self.symbol.price(self.since)))
    high = property(lambda self: self.symbol.show(self.symbol.around * 1.012))
    low = property(lambda self: self.symbol.show(self.symbol.around * 0.988))
    change = property(lambda self: self.symbol.show(self.symbol.price(self.at) - self.symbol.price(self.since)))
    mean = property(lambda self: self.symbol.show((self.symbol.price(self.at) + self.symbol.price(self.since)) / 2))
    part = property(lambda self: (self.symbol.price(self.at) - (old := self.symbol.price(self.since))) / old)
    percent = property(lambda self: 100 * self.part)
    turnover = property(lambda self: 18_000 * self.symbol.around)
    since = property(lambda self: self.at - DAY)
    first = property(lambda self: self.since // 100)
    last = property(lambda self: self.at // 100)
    update = property(lambda self: self.at * 10)
    funding = property(lambda self: (self.at // FUNDING + 1) * FUNDING)


class Candle(NamedTuple):
    """One candle: its opening (ms), its prices as text, and the last of them as a number."""

    at: int
    open: str
    high: str
    low: str
    close: str
    number: float

    @property
    def turnover(self) -> float:
        """Money traded: 12.5 units in every candle."""
        return 12.5 * self.number


def _step(decimals: int) -> str:
    return f"{10**-decimals:.{decimals}f}" if decimals else "1"


def _named(symbols: Iterable[Symbol]) -> dict[str, Symbol]:
    return {symbol.name: symbol for symbol in symbols}


def _markets() -> dict[str, dict[str, Symbol]]:
    file = tomllib.loads(Path(__file__).with_name("data").joinpath("markets.toml").read_text("utf-8"))
    usdm = _named(Symbol(f"{coin}USDT", coin, "USDT", *numbers) for coin, *numbers in file["coins"])
    spot = [
        Symbol(f"{coin}USDT", coin, "USDT", around, min(price + 1, 5), quantity + 2)
        for coin, around, price, quantity in file["coins"]
    ]
    return {
        "usdm": usdm,
        "bitget": usdm | _named(Symbol(f"{coin}USDT", coin, "USDT", *numbers) for coin, *numbers in file["more"]),
        "orderly": _named(Symbol(f"PERP_{coin}_USDC", coin, "USDC", *numbers) for coin, *numbers in file["coins"]),
        "spot": _named([*spot, Symbol("ETHBTC", "ETH", "BTC", 0.05, 5, 4, min_notional=0)]),
    }


MARKETS = _markets()
"""The markets of each kind, by name."""


class Bodies:
    """A cache of encoded bodies; it drops the oldest first."""

    def __init__(self, size: int = 128) -> None:
        self._size = size
        self._kept: OrderedDict[tuple[object, ...], bytes] = OrderedDict()

    def get(self, key: tuple[object, ...], build: Callable[[], bytes]) -> bytes:
        """The body under `key`, built when it is not there."""
        body = self._kept.get(key)
        if body is None:
            body = self._kept[key] = build()
            if len(self._kept) > self._size:
                self._kept.popitem(last=False)
        return body


def candle_span(interval: str, now: int, count: int, start: int = 0, end: int = 0) -> tuple[int, int]:
    """Opening of the first candle (ms) and number of candles: the last `count` until now or `end`, or those from `start`."""
    step = INTERVALS[interval]
    last = min(end or now, now) // step
    if not start:
        return (last - count + 1) * step, count
    first = -(-start // step)
    return first * step, max(0, min(count, last - first + 1))


def candles(symbol: Symbol, interval: str, first: int, count: int) -> Iterator[Candle]:
    """`count` candles, the first opening at `first` milliseconds."""
    step = INTERVALS[interval]
    price, show = symbol.price, symbol.show
    opening = price(first)
    for at in range(first, first + count * step, step):
        closing = price(at + step)
        high, low = (closing, opening) if closing > opening else (opening, closing)
        yield Candle(at, show(opening), show(high * 1.0002), show(low * 0.9998), show(closing), closing)
        opening = closing


def levels(symbol: Symbol, at: int, count: int) -> tuple[list[list[str]], list[list[str]]]:
    """Bids and asks at `at` milliseconds, `count` each, the best first: price and quantity."""
    tick, bid, ask = symbol.tick_size, symbol.bid(at), symbol.ask(at)
    bids = [[symbol.show(max(tick, bid - n * tick)), f"{1 + n % 7}.5"] for n in range(count)]
    return bids, [[symbol.show(ask + n * tick), f"{1 + n % 5}.5"] for n in range(count)]


class Print(NamedTuple):
    """One trade: its number, its time (ms), its price as text, and whether the taker sold. All are of half a unit."""

    number: int
    time: int
    price: str
    sold: bool

    @property
    def cost(self) -> float:
        """What it cost."""
        return 0.5 * float(self.price)


def prints(symbol: Symbol, at: int, count: int) -> Iterator[Print]:
    """The last trades up to `at` milliseconds, one every 100 ms."""
    last = at // 100
    for number in range(last - count + 1, last + 1):
        yield Print(number, number * 100, symbol.show(symbol.price(number * 100)), bool(number % 2))


def candle_rows(
    incoming: Incoming, symbol: Symbol, interval: str, *, start: str, end: str, most: int, default: int = 100
) -> list[Candle]:
    """Candles as the request wants them; `start` and `end` name the parameters that bound them (ms).

    Raises:
        Fault: the interval is not known.
    """
    if interval not in INTERVALS:
        raise Fault("interval")
    count = min(incoming.number("limit", default), most)
    bounds = incoming.number(start, 0, low=0), incoming.number(end, 0, low=0)
    return list(candles(symbol, interval, *candle_span(interval, incoming.now, count, *bounds)))


def chosen(symbols: dict[str, Symbol], incoming: Incoming) -> list[Symbol]:
    """The market that the request names, or all if it names none."""
    if "symbol" not in incoming.params:
        return list(symbols.values())
    return [symbol_of(symbols, incoming)]


def symbol_of(symbols: dict[str, Symbol], incoming: Incoming) -> Symbol:
    """The market that the request names."""
    found = symbols.get(incoming.need("symbol"))
    if found is None:
        raise Fault("symbol")
    return found
