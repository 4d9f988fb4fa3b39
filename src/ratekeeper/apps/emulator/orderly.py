"""Orderly Network: perpetual futures settled in USDC."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec

from .incoming import Fault, Incoming, flat, named, objects
from .market import INTERVALS, candle_rows, chosen, levels, prints
from .templates import Word
from .venue import Venue

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .market import Symbol
    from .orders import Order

__all__ = ["Orderly"]

_ORDER = {
    "symbol": "symbol",
    "side": "side",
    "order_price": "price",
    "order_quantity": "quantity",
    "order_amount": "quoteOrderQty",
    "client_order_id": "newClientOrderId",
    "reduce_only": "reduceOnly",
}
_NAMED = {"symbol": "symbol", "order_id": "orderId", "client_order_id": "origClientOrderId"}
_KINDS = {"MARKET": ("MARKET", ""), "LIMIT": ("LIMIT", "GTC"), "POST_ONLY": ("LIMIT", "GTX")}
_KINDS |= {kind: ("LIMIT", kind) for kind in ("IOC", "FOK")}
_OPEN = ("NEW", "PARTIAL_FILLED", "INCOMPLETE")


class Orderly(Venue):
    """The whole exchange."""

    venue = "orderly"

    # -- market data

    def per_symbol(self, asked: Incoming, row: str) -> Any:
        """One row for each market."""
        return _rows(self.every(asked, row))

    def market_trades(self, asked: Incoming) -> Any:
        """The last trades, the newest first."""
        symbol, count = self.book.symbol(asked), asked.number("limit", 10, high=1_000)
        last = reversed(list(prints(symbol, asked.now, count)))
        return _rows(self.sheet.fill("print", symbol=symbol, print=one) for one in last)

    def depth(self, asked: Incoming) -> Any:
        """The order book."""
        count = asked.number("max_level", 100, high=1_000)
        bids, asks = (
            [self.sheet.fill("level", price=price, size=size) for price, size in side]
            for side in levels(self.book.symbol(asked), asked.now, count)
        )
        return {"timestamp": asked.now, "bids": bids, "asks": asks}

    def klines(self, asked: Incoming) -> Any:
        """Candles, the newest first."""
        symbol, kind = self.book.symbol(asked), asked.need("type")
        interval = "1M" if kind == "1mon" else kind
        rows = candle_rows(asked, symbol, interval, start="start_t", end="end_t", most=1_000)
        step = INTERVALS[interval]
        return _rows(
            self.sheet.fill("kline", candle=candle, symbol=symbol, kind=kind, end=candle.at + step)
            for candle in reversed(rows)
        )

    def history(self, asked: Incoming) -> bytes:
        """Candles as the charts of the front end read them: columns, in seconds, without the envelope."""
        symbol, resolution = self.book.symbol(asked), asked.need("resolution")
        params = {"limit": asked.params.get("countback") or asked.params.get("limit") or "1000"}
        for name in ("from", "to"):
            params[name] = str(1_000 * asked.number(name, 0, low=0, high=100_000_000_000))
        bounded = asked._replace(params=params)
        rows = candle_rows(bounded, symbol, _resolution(resolution), start="from", end="to", most=1_000)
        columns: dict[str, list[Any]] = {"t": [candle.at // 1_000 for candle in rows]}
        for name, attribute in (("o", "open"), ("h", "high"), ("l", "low"), ("c", "close")):
            columns[name] = [float(getattr(candle, attribute)) for candle in rows]
        columns["v"] = [12.5] * len(rows)
        return msgspec.json.encode({"s": "ok" if rows else "no_data", **columns})

    # -- orders

    def place(self, asked: Incoming) -> Any:
        """Place one order."""
        return self._order(self.book.place(_as_order(asked)), "placed")

    def place_batch(self, asked: Incoming) -> Any:
        """Place up to ten orders; each has its own answer or error."""
        return _rows(
            {"client_order_id": params.get("client_order_id"), "error_message": answer.text, "success": False}
            if isinstance(answer, Word)
            else {**answer, "success": True}
            for params, answer in self.batch(self.place, asked, map(flat, objects(asked, "orders", 10)))
        )

    def amend(self, asked: Incoming) -> Any:
        """Change price and quantity of an open order."""
        self.book.amend(named(asked, {**_ORDER, **_NAMED}))
        return {"status": "EDIT_SENT"}

    def cancel(self, asked: Incoming) -> Any:
        """Cancel one order, by its number or its client order id."""
        self.book.symbol(asked)
        self.book.cancel(named(asked, _NAMED))
        return {"status": "CANCEL_SENT"}

    def cancel_batch(self, asked: Incoming) -> Any:
        """Cancel several orders, given with commas between them; those that are gone are passed over."""
        for theirs, ours in (("order_ids", "orderId"), ("client_order_ids", "origClientOrderId")):
            for value in filter(None, asked.params.get(theirs, "").split(",")):
                one = asked._replace(params={ours: value})
                if any(
                    value in (str(order.number), order.client_id) for order in self.book.listed(one, only_open=True)
                ):
                    self.book.cancel(one)
        return {"status": "CANCEL_ALL_SENT"}

    def cancel_all(self, asked: Incoming) -> Any:
        """Cancel every open order, of one symbol if the request names one."""
        for symbol in chosen(self.book.symbols, asked):
            self.book.cancel_all(asked._replace(params={"symbol": symbol.name}))
        return {"status": "CANCEL_ALL_SENT"}

    def found(self, asked: Incoming) -> Any:
        """One order."""
        return self._order(self.book.find(named(asked, _NAMED), among_open=False), "order")

    def listed(self, asked: Incoming) -> Any:
        """Orders, the newest first, in pages."""
        status, side = asked.params.get("status"), asked.params.get("side")
        orders = self.book.listed(named(asked, {"symbol": "symbol"}, limit="1000"), only_open=status in _OPEN)
        rows = [self._order(order, "order") for order in reversed(orders) if side in (None, order.side)]
        if status and status not in _OPEN:
            ended = ("FILLED", "CANCELLED") if status == "COMPLETED" else (status,)
            rows = [row for row in rows if row["status"] in ended]
        return _page(asked, rows)

    def trades(self, asked: Incoming) -> Any:
        """Fills, the newest first, of one symbol or of one order if the request names it."""
        wanted, number = asked.params.get("symbol"), asked.number("order_id", 0)
        fills = reversed(self.book.account(asked.account).fills)
        mine = (order for order in fills if wanted in (None, order.symbol) and number in (0, order.number))
        return _page(asked, [self._order(order, "trade") for order in mine])

    def _order(self, order: Order, row: str) -> Any:
        kind = order.kind
        if kind != "MARKET" and order.time_in_force != "GTC":
            kind = "POST_ONLY" if order.time_in_force == "GTX" else order.time_in_force
        return self.sheet.fill(row, order=order, kind=kind)

    # -- account

    def positions(self, asked: Incoming) -> Any:
        """Positions that are open, and the margin of the account."""
        held = self.book.account(asked.account).positions
        rows = [self._position(asked, self.book.symbols[name]) for name, amount in held.items() if amount]
        return self.sheet.fill("positions", total=self._money(asked), rows=rows)

    def position(self, asked: Incoming) -> Any:
        """The position of one symbol, also of size zero."""
        return self._position(asked, self.book.symbol(asked))

    def _position(self, asked: Incoming, symbol: Symbol) -> Any:
        account, none = self.book.account(asked.account), Decimal(0)
        open_orders = [order for order in account.open.values() if order.symbol == symbol.name]
        held, mark = account.positions.get(symbol.name, none), Decimal(symbol.show(symbol.price(asked.now)))
        entry = account.entries.get(symbol.name, none) if held else none
        values: dict[str, Any] = {"held": held, "entry": entry, "cost": held * entry, "profit": held * (mark - entry)}
        values["buying"] = sum(order.quantity for order in open_orders if order.side == "BUY")
        values["selling"] = sum(order.quantity for order in open_orders if order.side == "SELL")
        leverage = account.leverage.get(symbol.name, 10)
        return self.sheet.fill("position", asked=asked, symbol=symbol, mark=mark, leverage=leverage, **values)

    def _money(self, asked: Incoming) -> Decimal:
        return self.book.account(asked.account).balances["USDC"]

    def holding(self, asked: Incoming) -> Any:
        """What the account holds."""
        return self.sheet.fill("holding", asked=asked, total=self._money(asked))

    def set_leverage(self, asked: Incoming) -> Any:
        """Set the leverage, of one symbol if the request names one."""
        names = [symbol.name for symbol in chosen(self.book.symbols, asked)]
        leverage = asked.number("leverage", 10, high=100)
        self.book.account(asked.account).leverage.update(dict.fromkeys(names, leverage))
        return {}


def _rows(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    return {"rows": list(rows)}


def _page(asked: Incoming, rows: list[dict[str, Any]]) -> dict[str, Any]:
    page, size = asked.number("page", 1), asked.number("size", 25, high=500)
    meta = {"total": len(rows), "records_per_page": size, "current_page": page}
    return {"meta": meta, "rows": rows[(page - 1) * size : page * size]}


def _as_order(asked: Incoming) -> Incoming:
    """A request to place an order in the words of the order book."""
    kind = _KINDS.get(asked.need("order_type"))
    if kind is None:
        raise Fault("kind")
    return named(asked, _ORDER, type=kind[0], timeInForce=kind[1])


def _resolution(text: str) -> str:
    """A chart's resolution (``15``, ``60``, ``1D``, ``D``) as an interval."""
    if not text.isdecimal():
        return (text if text[:1].isdecimal() else f"1{text}").replace("D", "d").replace("W", "w")
    minutes = int(text)
    return f"{minutes // 60}h" if minutes >= 60 else f"{minutes}m"
