"""One half of the emulated Bitget, futures or spot: its market data and its orders, told from one desk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .bitget_bodies import candle_row, fill_row, order_row, ticker_row
from .bodied import candle_rows, flat, named, objects
from .incoming import Fault
from .market import levels, prints

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .bodied import Word
    from .incoming import Incoming
    from .orders import Order, OrderDesk

__all__ = ["Trading"]

_ORDER = (
    ("symbol", "symbol"),
    ("price", "price"),
    ("size", "quantity"),
    ("clientOid", "newClientOrderId"),
)
_NAMED = (("symbol", "symbol"), ("orderId", "orderId"), ("clientOid", "origClientOrderId"))
_FORCE = {"": "GTC", "GTC": "GTC", "POST_ONLY": "GTX", "IOC": "IOC", "FOK": "FOK"}
_ALL = 1_000


class Trading:
    """What futures and spot have in common.

    Args:
        desk: where the orders are kept.
        said: makes the provider's error of a fault, for batches.
    """

    def __init__(self, desk: OrderDesk, said: Callable[[Fault, Mapping[str, str]], Word]) -> None:
        self.desk = desk
        self._said = said

    # -- market data

    def tickers(self, incoming: Incoming) -> list[dict[str, Any]]:
        """Prices of one symbol, or of all; always a list."""
        symbols = [self.desk.symbol(incoming)] if "symbol" in incoming.params else self.desk.symbols.values()
        return [ticker_row(symbol, incoming.now, futures=self.desk.futures) for symbol in symbols]

    def candles(self, incoming: Incoming) -> list[list[str]]:
        """Candles, the oldest first."""
        symbol, interval = self.desk.symbol(incoming), _interval(incoming.need("granularity"))
        rows = candle_rows(incoming, symbol, interval, start="startTime", end="endTime", most=1_000)
        return [candle_row(row) for row in rows]

    def book(self, incoming: Incoming) -> dict[str, Any]:
        """The order book."""
        limit = incoming.params.get("limit")
        count = 150 if limit == "max" else incoming.number("limit", 100, high=1_000)
        bids, asks = levels(self.desk.symbol(incoming), incoming.now, min(count, 150))
        return {"asks": asks, "bids": bids, "ts": str(incoming.now)}

    def prints(self, incoming: Incoming) -> list[dict[str, Any]]:
        """The last trades, the newest first."""
        symbol, count = self.desk.symbol(incoming), incoming.number("limit", 100, high=1_000)
        return [
            {
                "tradeId": str(number),
                "price": price,
                "size": "0.5",
                "side": "Sell" if sold else "Buy",
                "ts": str(time),
                "symbol": symbol.name,
            }
            for number, time, price, sold in reversed(list(prints(symbol, incoming.now, count)))
        ]

    # -- orders

    def place(self, incoming: Incoming) -> dict[str, Any]:
        """Place one order."""
        return _brief(self.desk.place(self._as_order(incoming)))

    def place_batch(self, incoming: Incoming) -> dict[str, Any]:
        """Place up to fifty orders; what is said outside the list holds for all of them."""
        common = flat(incoming.tree)
        good, bad = [], []
        for order in objects(incoming, "orderList", 50):
            one = incoming._replace(params={**common, **flat(order)})
            try:
                good.append(self.place(one))
            except Fault as fault:
                bad.append(self._bad(fault, one))
        return {"successList": good, "failureList": bad}

    def amend(self, incoming: Incoming) -> dict[str, Any]:
        """Change size and price of an open order."""
        new = (("newSize", "quantity"), ("newPrice", "price"))
        return _brief(self.desk.amend(named(incoming, (*_NAMED, *new))))

    def cancel(self, incoming: Incoming) -> dict[str, Any]:
        """Cancel one order, by its number or its client order id."""
        return _brief(self.desk.cancel(named(incoming, _NAMED)))

    def cancel_batch(self, incoming: Incoming) -> dict[str, Any]:
        """Cancel the orders of a list, or all open ones (of a symbol, if one is named)."""
        good, bad = [], []
        tree = incoming.tree if isinstance(incoming.tree, dict) else {}
        if wanted := tree.get("orderIdList") or tree.get("orderList"):
            if not isinstance(wanted, list):
                raise Fault(-1100, "The list of orders is in wrong format.")
            ids = [flat(one) for one in wanted]
        else:
            opened = self.desk.listed(named(incoming, [("symbol", "symbol")]), only_open=True)
            ids = [{"orderId": str(order.number)} for order in opened]
        for one in ids:
            asked = incoming._replace(params={**one, **named(incoming, [("symbol", "symbol")]).params})
            try:
                good.append(self.cancel(asked))
            except Fault as fault:
                bad.append(self._bad(fault, asked))
        return {"successList": good, "failureList": bad}

    def detail(self, incoming: Incoming) -> Any:
        """One order; for spot a list, which is empty if there is none."""
        try:
            row = self._row(incoming, self.desk.find(named(incoming, _NAMED), among_open=False))
        except Fault as fault:
            if self.desk.futures or fault.code != -2013:
                raise
            return []
        return row if self.desk.futures else [row]

    def pending(self, incoming: Incoming) -> list[dict[str, Any]]:
        """Open orders."""
        orders = self.desk.listed(named(incoming, [("symbol", "symbol")]), only_open=True)
        client_id, number = incoming.params.get("clientOid"), incoming.number("orderId", 0)
        found = [one for one in orders if client_id in (None, one.client_id) and number in (0, one.number)]
        return [self._row(incoming, order, listed=True) for order in reversed(found)]

    def history(self, incoming: Incoming) -> list[dict[str, Any]]:
        """Orders that have ended, the newest first."""
        orders = self.desk.listed(named(incoming, [("symbol", "symbol")], limit=str(_ALL)), only_open=False)
        ended = [order for order in reversed(orders) if order.status != "NEW"]
        return [self._row(incoming, order) for order in ended[: incoming.number("limit", 100, high=100)]]

    def fills(self, incoming: Incoming) -> list[dict[str, Any]]:
        """Fills, the newest first."""
        wanted, number = incoming.params.get("symbol"), incoming.number("orderId", 0)
        fills = reversed(self.desk.account(incoming.account).fills)
        mine = [order for order in fills if wanted in (None, order.symbol) and number in (0, order.number)]
        return [fill_row(order, futures=self.desk.futures) for order in mine[: incoming.number("limit", 100, high=100)]]

    def _row(self, incoming: Incoming, order: Order, *, listed: bool = False) -> dict[str, Any]:
        leverage = str(self.desk.account(incoming.account).leverage.get(order.symbol, 20))
        symbol = self.desk.symbols[order.symbol]
        return order_row(order, symbol, futures=self.desk.futures, listed=listed, leverage=leverage)

    def _bad(self, fault: Fault, incoming: Incoming) -> dict[str, Any]:
        word = self._said(fault, incoming.params)
        ids = {name: incoming.params.get(name, "") for name in ("orderId", "clientOid")}
        return {**ids, "errorMsg": word.text, "errorCode": str(word.code)}

    def _as_order(self, incoming: Incoming) -> Incoming:
        """A request to place an order in the desk's words."""
        side, kind = incoming.need("side").upper(), incoming.need("orderType").upper()
        force = _FORCE.get(incoming.params.get("force", "").upper())
        if kind not in ("LIMIT", "MARKET") or force is None:
            raise Fault(-1100, "This order type is not emulated.")
        reduce = incoming.params.get("reduceOnly", "").upper() == "YES"
        if self.desk.futures and incoming.params.get("tradeSide", "").lower() == "close":
            # in hedge mode `side` says which position is meant, not which way the order goes
            side, reduce = {"BUY": "SELL", "SELL": "BUY"}.get(side, side), True
        more = {"side": side, "type": kind, "timeInForce": force, "reduceOnly": str(reduce).lower()}
        order = named(incoming, _ORDER, **more)
        if kind == "MARKET" and side == "BUY" and not self.desk.futures:  # the size of these is what they may cost
            order.params["quoteOrderQty"] = order.params.pop("quantity", "")
        return order


def _brief(order: Order) -> dict[str, Any]:
    return {"orderId": str(order.number), "clientOid": order.client_id}


def _interval(text: str) -> str:
    """``1min``, ``1H``, ``1Dutc``, ``1day`` as intervals."""
    name = text.removesuffix("utc")
    for theirs, ours in (("min", "m"), ("day", "d"), ("week", "w"), ("H", "h"), ("D", "d"), ("W", "w")):
        if name.endswith(theirs):
            return name.removesuffix(theirs) + ours
    return name
