"""Market data as the streams of the providers write it, for the same prices that the REST bodies show.

Pure: a symbol, what is asked for, the number of the message and the instant (ms) make the body. Fields that bots read
are there; statistics that nobody checks are constants.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .market import INTERVALS

if TYPE_CHECKING:
    from .market import Symbol

__all__ = ["binance_tick", "bitget_tick", "orderly_tick"]


def binance_tick(symbol: Symbol, kind: str, seq: int, now: int) -> dict[str, Any]:
    """The body of ``<symbol>@<kind>``; of a kind that is not known here only its name and its time."""
    show, price = symbol.show, symbol.show(symbol.price(now))
    name, _, interval = kind.partition("_")
    head: dict[str, Any] = {"e": name, "E": now, "s": symbol.name}
    if name == "kline" and interval in INTERVALS:
        return {**head, "k": _binance_candle(symbol, interval, now)}
    match kind.partition("@")[0]:
        case "bookTicker":
            sides = {"b": show(symbol.bid(now)), "B": "1.5", "a": show(symbol.ask(now)), "A": "1.5"}
            return {**head, "u": seq, "T": now, **sides}
        case "aggTrade" | "trade":
            number = {"a": seq, "f": seq, "l": seq} if name == "aggTrade" else {"t": seq}
            return {**head, **number, "p": price, "q": "0.5", "T": now, "m": bool(seq % 2)}
        case "markPrice":
            body = {"p": price, "i": price, "P": price, "r": "0.00010000", "T": now + 1}
            return {**head, "e": "markPriceUpdate", **body}
        case "ticker" | "miniTicker" as kind:
            day = {"c": price, "o": price, "h": price, "l": price, "v": "1000", "q": "1000000"}
            if kind == "miniTicker":
                return {**head, "e": "24hrMiniTicker", **day}
            return {**head, "e": "24hrTicker", **day, "b": show(symbol.bid(now)), "a": show(symbol.ask(now))}
        case depth if depth.startswith("depth"):
            sides_of = {"b": [[show(symbol.bid(now)), "1.5"]], "a": [[show(symbol.ask(now)), "1.5"]]}
            return {**head, "e": "depthUpdate", "T": now, "U": seq, "u": seq, "pu": seq - 1, **sides_of}
    return head


def _binance_candle(symbol: Symbol, interval: str, now: int) -> dict[str, Any]:
    start, _, opening, high, low, closing = _candle(symbol, interval, now)
    step = INTERVALS[interval]
    prices = {"o": opening, "c": closing, "h": high, "l": low}
    return {"t": start, "T": start + step - 1, "s": symbol.name, "i": interval, **prices, "v": "12.5", "x": False}


def _candle(symbol: Symbol, interval: str, now: int) -> tuple[int, int, str, str, str, str]:
    """Start and end (ms), open, high, low and close of the candle that holds `now`."""
    step = INTERVALS[interval]
    start = now - now % step
    opening, closing = symbol.price(start), symbol.price(now)
    high, low = max(opening, closing), min(opening, closing)
    return start, start + step, symbol.show(opening), symbol.show(high), symbol.show(low), symbol.show(closing)


def orderly_tick(symbol: Symbol, name: str, kind: str, seq: int, now: int) -> dict[str, Any]:
    """The ``data`` of ``<name>@<kind>``."""
    price, bid, ask = (float(symbol.show(value)) for value in (symbol.price(now), symbol.bid(now), symbol.ask(now)))
    head: dict[str, Any] = {"symbol": name}
    word, _, interval = kind.partition("_")
    if word == "kline" and interval in INTERVALS:
        start, end, opening, high, low, closing = _candle(symbol, interval, now)
        prices = {"open": float(opening), "high": float(high), "low": float(low), "close": float(closing)}
        return {**head, "type": interval, **prices, "volume": 12.5, "startTime": start, "endTime": end}
    match kind:
        case "bbo":
            return {**head, "ask": ask, "askSize": 1.5, "bid": bid, "bidSize": 1.5}
        case "trade":
            return {**head, "price": price, "size": 0.5, "side": "SELL" if seq % 2 else "BUY"}
        case "ticker":
            return {**head, "open": price, "close": price, "high": price, "low": price, "volume": 1000.0}
        case "orderbook" | "orderbookupdate":
            return {**head, "asks": [[ask, 1.5]], "bids": [[bid, 1.5]], "prevTs": seq - 1}
        case "markprice" | "indexprice":
            return {**head, "price": price}
    return head


def bitget_tick(symbol: Symbol, channel: str, seq: int, now: int) -> Any:
    """One row of ``data`` of a channel."""
    show, price = symbol.show, symbol.show(symbol.price(now))
    interval = channel.removeprefix("candle").replace("H", "h").replace("D", "d").replace("W", "w")
    if channel.startswith("candle") and interval in INTERVALS:
        start, _, *prices = _candle(symbol, interval, now)
        return [str(start), *prices, "12.5", "800000", "800000"]
    bid, ask = show(symbol.bid(now)), show(symbol.ask(now))
    if channel == "trade":
        side = "sell" if seq % 2 else "buy"
        return {"ts": str(now), "price": price, "size": "0.5", "side": side, "tradeId": str(seq)}
    if channel.startswith("books"):
        return {"asks": [[ask, "1.5"]], "bids": [[bid, "1.5"]], "seq": seq, "checksum": 0, "ts": str(now)}
    quote = {"lastPr": price, "markPrice": price, "bidPr": bid, "askPr": ask, "ts": str(now)}
    return {"instId": symbol.name, **quote} if channel == "ticker" else {"instId": symbol.name, "ts": str(now)}
