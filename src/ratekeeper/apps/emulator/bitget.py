"""Bitget v2: USDT futures (``mix``) and spot, each with orders of its own. Positions are kept in one-way mode."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

from .incoming import Fault, Incoming, flat, named, objects
from .market import Symbol, candle_rows, chosen, levels, prints
from .templates import Word
from .venue import Venue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .limit_table import LimitTable
    from .options import Live
    from .orders import Order

__all__ = ["Bitget"]

LINE = "USDT-FUTURES"
"""The only product line of futures here; the others are empty."""
REMOVED = Symbol("LUNAUSDT", "LUNA", "USDT", 0.4, 4, 0)
"""A market that was taken off: the list of contracts shows it with the status ``off``, no other route knows it."""
_ORDER = {"symbol": "symbol", "price": "price", "size": "quantity", "clientOid": "newClientOrderId"}
_SYMBOL = {"symbol": "symbol"}
_NAMED = {"symbol": "symbol", "orderId": "orderId", "clientOid": "origClientOrderId"}
_FORCE = {"": "GTC", "GTC": "GTC", "POST_ONLY": "GTX", "IOC": "IOC", "FOK": "FOK"}


class Bitget(Venue):
    """A handler that serves futures and spot gets the name of the order book from the route."""

    venue = "bitget"

    def __init__(self, limits: LimitTable, options: Live) -> None:
        super().__init__(limits, options)
        self.mix, self.spot = self.books["mix"], self.books["spot"]

    # -- market data

    def tickers(self, asked: Incoming, half: str) -> Any:
        """Prices of one symbol, or of all; always a list."""
        return self.each(asked, f"{half}_ticker", half)

    def line_tickers(self, asked: Incoming) -> Any:
        """Prices of a product line."""
        return self.tickers(asked, "mix") if _ours(asked) else []

    def ticker(self, asked: Incoming) -> Any:
        """Prices of one future."""
        asked.need("symbol")
        return self.tickers(asked, "mix")

    def candles(self, asked: Incoming, half: str) -> Any:
        """Candles, the oldest first."""
        symbol, interval = self.books[half].symbol(asked), _interval(asked.need("granularity"))
        rows = candle_rows(asked, symbol, interval, start="startTime", end="endTime", most=1_000)
        return [self.sheet.fill("candle", candle=candle) for candle in rows]

    def depth(self, asked: Incoming, half: str) -> Any:
        """The order book."""
        count = 150 if asked.params.get("limit") == "max" else asked.number("limit", 100, high=1_000)
        bids, asks = levels(self.books[half].symbol(asked), asked.now, min(count, 150))
        return self.sheet.fill("depth", asked=asked, asks=asks, bids=bids)

    def prints(self, asked: Incoming, half: str) -> Any:
        """The last trades, the newest first."""
        symbol, count = self.books[half].symbol(asked), asked.number("limit", 100, high=1_000)
        last = reversed(list(prints(symbol, asked.now, count)))
        return [self.sheet.fill("print", symbol=symbol, print=one) for one in last]

    def contracts(self, asked: Incoming) -> Any:
        """The futures of a product line."""
        if not _ours(asked):
            return []
        rows = [self.sheet.fill("contract", symbol=one, status="normal") for one in chosen(self.mix.symbols, asked)]
        if "symbol" not in asked.params:
            rows.append(self.sheet.fill("contract", symbol=REMOVED, status="off"))
        return rows

    def coins(self, asked: Incoming) -> Any:
        """The coins of all spot markets, each with one chain."""
        names = sorted({symbol.base for symbol in self.spot.symbols.values()} | {"USDT"})
        return [self.sheet.fill("coin", name=name) for name in names]

    # -- orders

    def place(self, asked: Incoming, half: str) -> Any:
        """Place one order."""
        book = self.books[half]
        return self._brief(book.place(_as_order(asked, futures=book.futures)))

    def place_batch(self, asked: Incoming, half: str) -> Any:
        """Place up to fifty orders; parameters outside the list hold for all of them."""
        common = flat(asked.tree)
        several = ({**common, **flat(order)} for order in objects(asked, "orderList", 50))
        return self._each(lambda one: self.place(one, half), asked, several)

    def amend(self, asked: Incoming) -> Any:
        """Change size and price of an open future order."""
        return self._brief(self.mix.amend(named(asked, {**_NAMED, "newSize": "quantity", "newPrice": "price"})))

    def cancel(self, asked: Incoming, half: str) -> Any:
        """Cancel one order, by its number or its client order id."""
        return self._brief(self.books[half].cancel(named(asked, _NAMED)))

    def cancel_batch(self, asked: Incoming, half: str) -> Any:
        """Cancel the orders of a list, or all open ones (of a symbol, if one is named)."""
        tree = asked.tree if isinstance(asked.tree, dict) else {}
        symbol = named(asked, _SYMBOL)
        if wanted := tree.get("orderIdList") or tree.get("orderList"):
            if not isinstance(wanted, list):
                raise Fault("list", name="orderIdList")
            ids = [flat(one) for one in wanted]
        else:
            opened = self.books[half].listed(symbol, only_open=True)
            ids = [{"orderId": str(order.number)} for order in opened]
        several = ({**one, **symbol.params} for one in ids)
        return self._each(lambda one: self.cancel(one, half), asked, several)

    def _each(self, act: Callable[[Incoming], Any], asked: Incoming, several: Iterable[dict[str, str]]) -> Any:
        """Each request of a batch has its own answer or error."""
        good, bad = [], []
        for params, answer in self.batch(act, asked, several):
            if isinstance(answer, Word):
                ids = {name: params.get(name, "") for name in ("orderId", "clientOid")}
                bad.append({**ids, "errorMsg": answer.text, "errorCode": str(answer.code)})
            else:
                good.append(answer)
        return {"successList": good, "failureList": bad}

    def cancel_symbol(self, asked: Incoming) -> Any:
        """Cancel every open spot order of a symbol."""
        self.spot.cancel_all(asked)
        return {"symbol": asked.need("symbol")}

    def close(self, asked: Incoming) -> Any:
        """Close positions at the market, all or those of one symbol."""
        account, done = self.mix.account(asked.account), []
        names = [self.mix.symbol(asked).name] if "symbol" in asked.params else list(account.positions)
        for name in names:
            if held := account.positions.get(name):
                side, size = "SELL" if held > 0 else "BUY", str(abs(held))
                order = {"symbol": name, "side": side, "type": "MARKET", "quantity": size, "reduceOnly": "true"}
                done.append({"symbol": name, **self._brief(self.mix.place(asked._replace(params=order)))})
        return {"successList": done, "failureList": []}

    def detail(self, asked: Incoming, half: str) -> Any:
        """One order; for spot a list, which is empty if there is none."""
        try:
            row = self._row(asked, self.books[half].find(named(asked, _NAMED), among_open=False), f"{half}_order")
        except Fault as fault:
            if half == "mix" or fault.name != "not found":
                raise
            return []
        return row if half == "mix" else [row]

    def pending(self, asked: Incoming, half: str, under: str = "") -> Any:
        """Open orders."""
        orders = self.books[half].listed(named(asked, _SYMBOL), only_open=True)
        client_id, number = asked.params.get("clientOid"), asked.number("orderId", 0)
        found = [one for one in orders if client_id in (None, one.client_id) and number in (0, one.number)]
        row = "mix_order" if half == "mix" else "spot_pending"
        return _listed([self._row(asked, order, row) for order in reversed(found)], under)

    def history(self, asked: Incoming, half: str, under: str = "") -> Any:
        """Orders that have ended, the newest first."""
        orders = self.books[half].listed(named(asked, _SYMBOL, limit="1000"), only_open=False)
        ended = [order for order in reversed(orders) if order.status != "NEW"][: asked.number("limit", 100, high=100)]
        return _listed([self._row(asked, order, f"{half}_order") for order in ended], under)

    def fills(self, asked: Incoming, half: str, under: str = "") -> Any:
        """Fills, the newest first."""
        wanted, number = asked.params.get("symbol"), asked.number("orderId", 0)
        fills = reversed(self.books[half].account(asked.account).fills)
        mine = [order for order in fills if wanted in (None, order.symbol) and number in (0, order.number)]
        mine = mine[: asked.number("limit", 100, high=100)]
        return _listed([self.sheet.fill(f"{half}_fill", order=order) for order in mine], under)

    def _brief(self, order: Order) -> dict[str, Any]:
        body: dict[str, Any] = self.sheet.fill("brief", order=order)
        return body

    def _row(self, asked: Incoming, order: Order, row: str) -> Any:
        book = self.mix if row == "mix_order" else self.spot
        leverage = book.account(asked.account).leverage.get(order.symbol, 20)
        average = str(order.average) if order.filled else ""
        symbol = book.symbols[order.symbol]
        return self.sheet.fill(row, order=order, symbol=symbol, leverage=leverage, average=average)

    # -- account

    def assets(self, asked: Incoming) -> Any:
        """Spot balances."""
        wanted = asked.params.get("coin")
        balances = self.spot.account(asked.account).balances
        mine = {name: amount for name, amount in balances.items() if wanted in (None, name)}
        return [self.sheet.fill("asset", name=name, amount=amount, asked=asked) for name, amount in mine.items()]

    def account(self, asked: Incoming) -> Any:
        """The futures account of one coin."""
        return self.sheet.fill("account", total=self.mix.account(asked.account).balances["USDT"])

    def accounts(self, asked: Incoming) -> Any:
        """The futures accounts of a product line."""
        return [self.account(asked)] if _ours(asked) else []

    def positions(self, asked: Incoming) -> Any:
        """Positions that are open, of one symbol if the request names one."""
        account = self.mix.account(asked.account)
        names = [self.mix.symbol(asked).name] if "symbol" in asked.params else list(account.positions)
        if not _ours(asked):
            return []
        return [self._position(asked, self.mix.symbols[name]) for name in names if account.positions.get(name)]

    def _position(self, asked: Incoming, symbol: Symbol) -> Any:
        account = self.mix.account(asked.account)
        held, entry = account.positions[symbol.name], account.entries[symbol.name]
        mark, leverage = Decimal(symbol.show(symbol.price(asked.now))), account.leverage.get(symbol.name, 20)
        values = {"entry": entry, "mark": mark, "size": abs(held), "margin": abs(held) * entry / leverage}
        values["profit"] = held * (mark - entry)
        side = "long" if held > 0 else "short"
        return self.sheet.fill("position", symbol=symbol, asked=asked, side=side, leverage=leverage, **values)

    def set_leverage(self, asked: Incoming) -> Any:
        """Set the leverage of a symbol."""
        symbol, leverage = self.mix.symbol(asked), asked.number("leverage", 20, high=125)
        self.mix.account(asked.account).leverage[symbol.name] = leverage
        return self.sheet.fill("leverage", symbol=symbol, leverage=leverage)

    def set_margin_mode(self, asked: Incoming) -> Any:
        """Acknowledge a margin mode."""
        return {"marginCoin": "USDT", **named(asked, {"symbol": "symbol", "marginMode": "marginMode"}).params}

    def set_position_mode(self, asked: Incoming) -> Any:
        """Acknowledge a position mode."""
        return {"posMode": asked.need("posMode")}


def _as_order(asked: Incoming, *, futures: bool) -> Incoming:
    """A request to place an order in the words of the order book."""
    side, kind = asked.need("side").upper(), asked.need("orderType").upper()
    force = _FORCE.get(asked.params.get("force", "").upper())
    if kind not in ("LIMIT", "MARKET") or force is None:
        raise Fault("kind")
    reduce = asked.params.get("reduceOnly", "").upper() == "YES"
    if futures and asked.params.get("tradeSide", "").lower() == "close":
        # in hedge mode `side` says which position is meant, not which way the order goes
        side, reduce = {"BUY": "SELL", "SELL": "BUY"}.get(side, side), True
    order = named(asked, _ORDER, side=side, type=kind, timeInForce=force, reduceOnly=str(reduce).lower())
    if kind == "MARKET" and side == "BUY" and not futures:  # the size of these is what they may cost
        order.params["quoteOrderQty"] = order.params.pop("quantity", "")
    return order


def _ours(asked: Incoming) -> bool:
    """Whether the request means USDT futures; the name may be written in any case."""
    line = asked.params.get("productType")
    if not line:
        raise Fault("missing", name="productType")
    return line.upper() == LINE


def _listed(rows: list[dict[str, Any]], under: str) -> Any:
    """Rows as they are, or under a name, with the place where the next page begins."""
    return {under: rows, "endId": rows[-1].get("orderId", "") if rows else None} if under else rows


def _interval(text: str) -> str:
    """``1min``, ``1H``, ``1Dutc``, ``1day`` as intervals."""
    name = text.removesuffix("utc")
    for theirs, ours in (("min", "m"), ("day", "d"), ("week", "w"), ("H", "h"), ("D", "d"), ("W", "w")):
        if name.endswith(theirs):
            return name.removesuffix(theirs) + ours
    return name
