"""Orderly Network as a venue: perpetual futures settled in USDC.

Shapes are those that ccxt's ``woofipro`` reads (source X1 of the rule file); error codes and statuses are the provider's
table (R1). Which of the codes answers which mistake is a guess where a word below says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from .bodied import NO_KEY, NO_PATH, Bodied, Word, candle_rows, flat, named, objects
from .incoming import Fault, Incoming
from .market import ORDERLY_SYMBOLS, levels, prints
from .orderly_bodies import future_row, holding_row, info_row, kline_row, order_row, placed_row, position_row, trade_row
from .orders import OrderDesk

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .market import Symbol
    from .options import Live
    from .tariff import Tariff

__all__ = ["Orderly"]

_WORDS: dict[int | str, Word] = {
    NO_KEY: Word(401, -1002, "API key or secret is invalid."),
    NO_PATH: Word(404, -1004, "No such endpoint."),  # status and code are a guess
    -1121: Word(400, -1005, "The symbol {symbol} is not known."),  # that it is this code is a guess
    -1120: Word(400, -1005, "The kline type is not known."),
    -1100: Word(400, -1005, "Some parameters are in wrong format."),
    -4003: Word(400, -1104, "The order quantity is below the minimum."),
    -1111: Word(400, -1104, "The order quantity does not follow the step size."),
    -4014: Word(400, -1103, "The order price does not follow the tick size."),
    -4164: Word(400, -1102, "The order value is too small."),
    -4116: Word(409, -1007, "The request is duplicated."),  # documented in general; for client order ids a guess
    -2011: Word(400, -1006, "The order is not found."),
    -2013: Word(400, -1006, "The order is not found."),
}
_ORDER = (
    ("symbol", "symbol"),
    ("side", "side"),
    ("order_price", "price"),
    ("order_quantity", "quantity"),
    ("order_amount", "quoteOrderQty"),
    ("client_order_id", "newClientOrderId"),
    ("reduce_only", "reduceOnly"),
)
_NAMED = (("symbol", "symbol"), ("order_id", "orderId"), ("client_order_id", "origClientOrderId"))
_KINDS = {"MARKET": ("MARKET", ""), "LIMIT": ("LIMIT", "GTC"), "POST_ONLY": ("LIMIT", "GTX")}
_KINDS |= {kind: ("LIMIT", kind) for kind in ("IOC", "FOK")}
_OPEN = ("NEW", "PARTIAL_FILLED", "INCOMPLETE")


class Orderly(Bodied):
    """See `Venue` for what the methods are."""

    def __init__(self, tariff: Tariff, options: Live) -> None:
        desk = OrderDesk(ORDERLY_SYMBOLS, futures=True, rejects_makers=False)
        super().__init__(tariff, options, (desk,), _WORDS)
        symbols = ORDERLY_SYMBOLS.values()
        for route, teller in (
            ("public/info", lambda asked: _rows(info_row(symbol) for symbol in symbols)),
            ("public/info/{symbol}", lambda asked: info_row(desk.symbol(asked))),
            ("public/futures", lambda asked: _rows(future_row(symbol, asked.now) for symbol in symbols)),
            ("public/futures/{symbol}", lambda asked: future_row(desk.symbol(asked), asked.now)),
            ("public/market_trades", self.market_trades),
            ("public/token", lambda asked: _rows([_TOKEN])),
            ("public/chain_info", lambda asked: _rows([_CHAIN])),
            ("public/system_info", lambda asked: {"status": 0, "msg": "System is functioning properly."}),
            ("tv/history", self.history),
            ("tv/kline_history", self.history),
        ):
            self.public(f"GET /v1/{route}", teller)
        for route, teller in (
            ("GET /v1/orderbook/{symbol}", self.order_book),
            ("GET /v1/kline", self.klines),
            ("POST /v1/order", lambda asked: placed_row(desk.place(_as_order(asked)))),
            ("PUT /v1/order", self.amend),
            ("DELETE /v1/order", self.cancel),
            ("DELETE /v1/client/order", self.cancel),
            ("DELETE /v1/orders", self.cancel_all),
            ("DELETE /v1/batch-order", self.cancel_batch),
            ("DELETE /v1/client/batch-order", self.cancel_batch),
            ("POST /v1/batch-order", self.place_batch),
            ("GET /v1/order/{order_id}", self.found),
            ("GET /v1/client/order/{client_order_id}", self.found),
            ("GET /v1/orders", self.listed),
            ("GET /v1/trades", self.trades),
            ("GET /v1/order/{order_id}/trades", self.trades),
            ("GET /v1/positions", self.positions),
            ("GET /v1/position/{symbol}", lambda asked: self._position(asked, desk.symbol(asked))),
            ("GET /v1/client/holding", self.holding),
            ("GET /v1/client/info", self.client),
            ("POST /v1/client/leverage", self.set_leverage),
        ):
            self.private(route, teller)

    def wrapped(self, data: Any, now: int) -> dict[str, Any]:
        return {"success": True, "data": data, "timestamp": now}

    def failed(self, word: Word, now: int) -> dict[str, Any]:
        return {"success": False, "code": word.code, "message": word.text}

    # -- market data

    def market_trades(self, incoming: Incoming) -> Any:
        """The last trades."""
        symbol, count = self.desk.symbol(incoming), incoming.number("limit", 10, high=1_000)
        return _rows(
            {
                "symbol": symbol.name,
                "side": "SELL" if sold else "BUY",
                "executed_price": float(price),
                "executed_quantity": 0.5,
                "executed_timestamp": time,
            }
            for _, time, price, sold in reversed(list(prints(symbol, incoming.now, count)))
        )

    def order_book(self, incoming: Incoming) -> Any:
        """The order book."""
        count = incoming.number("max_level", 100, high=1_000)
        bids, asks = levels(self.desk.symbol(incoming), incoming.now, count)
        sides = {"bids": bids, "asks": asks}
        return {
            "timestamp": incoming.now,
            **{
                name: [{"price": float(price), "quantity": float(size)} for price, size in side]
                for name, side in sides.items()
            },
        }

    def klines(self, incoming: Incoming) -> Any:
        """Candles, the newest first."""
        symbol, kind = self.desk.symbol(incoming), incoming.need("type")
        interval = "1M" if kind == "1mon" else kind
        rows = candle_rows(incoming, symbol, interval, start="start_t", end="end_t", most=1_000)
        return _rows(kline_row(symbol, kind, interval, row) for row in reversed(rows))

    def history(self, incoming: Incoming) -> bytes:
        """Candles as the charts of the front end read them: columns, in seconds, without the envelope."""
        symbol, resolution = self.desk.symbol(incoming), incoming.need("resolution")
        params = {"limit": incoming.params.get("countback") or incoming.params.get("limit") or "1000"}
        for name in ("from", "to"):
            params[name] = str(1_000 * incoming.number(name, 0, low=0, high=100_000_000_000))
        asked = incoming._replace(params=params)
        rows = candle_rows(asked, symbol, _resolution(resolution), start="from", end="to", most=1_000)
        columns: dict[str, list[Any]] = {name: [] for name in "tohlcv"}
        for at, *shown, _ in rows:
            columns["t"].append(at // 1_000)
            for name, text in zip("ohlc", shown, strict=True):
                columns[name].append(float(text))
            columns["v"].append(12.5)
        return msgspec.json.encode({"s": "ok" if rows else "no_data", **columns})

    # -- orders

    def place_batch(self, incoming: Incoming) -> Any:
        """Place up to ten orders; each has its own answer or error."""
        rows: list[dict[str, Any]] = []
        for order in objects(incoming, "orders", 10):
            one = incoming._replace(params=flat(order))
            try:
                rows.append({**placed_row(self.desk.place(_as_order(one))), "success": True})
            except Fault as fault:
                said = self.said(fault, one.params)
                client_id = one.params.get("client_order_id")
                rows.append({"client_order_id": client_id, "error_message": said.text, "success": False})
        return _rows(rows)

    def amend(self, incoming: Incoming) -> Any:
        """Change price and quantity of an open order."""
        self.desk.amend(named(incoming, (*_ORDER, *_NAMED)))
        return {"status": "EDIT_SENT"}

    def cancel(self, incoming: Incoming) -> Any:
        """Cancel one order, by its number or its client order id."""
        self.desk.symbol(incoming)
        self.desk.cancel(named(incoming, _NAMED))
        return {"status": "CANCEL_SENT"}

    def cancel_batch(self, incoming: Incoming) -> Any:
        """Cancel several orders, given with commas between them; those that are gone are passed over."""
        for theirs, ours in (("order_ids", "orderId"), ("client_order_ids", "origClientOrderId")):
            for value in filter(None, incoming.params.get(theirs, "").split(",")):
                one = incoming._replace(params={ours: value})
                if any(
                    value in (str(order.number), order.client_id) for order in self.desk.listed(one, only_open=True)
                ):
                    self.desk.cancel(one)
        return {"status": "CANCEL_ALL_SENT"}

    def cancel_all(self, incoming: Incoming) -> Any:
        """Cancel every open order, of one symbol if the request names one."""
        names = [self.desk.symbol(incoming).name] if "symbol" in incoming.params else list(self.desk.symbols)
        for name in names:
            self.desk.cancel_all(incoming._replace(params={"symbol": name}))
        return {"status": "CANCEL_ALL_SENT"}

    def found(self, incoming: Incoming) -> Any:
        """One order."""
        return order_row(self.desk.find(named(incoming, _NAMED), among_open=False))

    def listed(self, incoming: Incoming) -> Any:
        """Orders, the newest first, in pages."""
        asked = named(incoming, [("symbol", "symbol")], limit="1000")
        status, side = incoming.params.get("status"), incoming.params.get("side")
        orders = self.desk.listed(asked, only_open=status in _OPEN)
        rows = [order_row(order) for order in reversed(orders) if side in (None, order.side)]
        if status and status not in _OPEN:
            ended = ("FILLED", "CANCELLED") if status == "COMPLETED" else (status,)
            rows = [row for row in rows if row["status"] in ended]
        return _page(incoming, rows)

    def trades(self, incoming: Incoming) -> Any:
        """Fills, the newest first, of one symbol or of one order if the request names it."""
        wanted, number = incoming.params.get("symbol"), incoming.number("order_id", 0)
        fills = reversed(self.desk.account(incoming.account).fills)
        rows = [trade_row(order) for order in fills if wanted in (None, order.symbol) and number in (0, order.number)]
        return _page(incoming, rows)

    # -- account

    def positions(self, incoming: Incoming) -> Any:
        """Positions that are open, and the margin of the account."""
        held = self.desk.account(incoming.account).positions
        rows = [self._position(incoming, self.desk.symbols[name]) for name, amount in held.items() if amount]
        money = float(self._money(incoming))
        ratios = {
            "initial_margin_ratio": 10.0,
            "maintenance_margin_ratio": 10.0,
            "current_margin_ratio_with_orders": 10.0,
        }
        return {**ratios, "free_collateral": money, "total_collateral_value": money, "rows": rows}

    def _position(self, incoming: Incoming, symbol: Symbol) -> dict[str, Any]:
        account = self.desk.account(incoming.account)
        orders = [order for order in account.open.values() if order.symbol == symbol.name]
        return position_row(account, symbol, orders, incoming.now)

    def _money(self, incoming: Incoming) -> Any:
        return self.desk.account(incoming.account).balances["USDC"]

    def holding(self, incoming: Incoming) -> Any:
        """What the account holds."""
        return {"holding": [holding_row("USDC", self._money(incoming), incoming.now)]}

    def client(self, incoming: Incoming) -> Any:
        """The account itself."""
        fees = {"taker_fee_rate": 6, "maker_fee_rate": 3, "futures_taker_fee_rate": 6, "futures_maker_fee_rate": 3}
        account = {"account_id": incoming.account, "email": "", "account_mode": "FUTURES", "max_leverage": 20}
        return {**account, **fees, "maintenance_cancel_orders": True}

    def set_leverage(self, incoming: Incoming) -> Any:
        """Set the leverage, of one symbol if the request names one."""
        names = [self.desk.symbol(incoming).name] if "symbol" in incoming.params else self.desk.symbols
        leverage = incoming.number("leverage", 10, high=100)
        self.desk.account(incoming.account).leverage.update(dict.fromkeys(names, leverage))
        return {}


_TOKEN = {
    "token": "USDC",
    "decimals": 6,
    "minimum_withdraw_amount": 1,
    "token_hash": "0x0",
    "chain_details": [{"chain_id": 42161, "contract_address": "0x0", "decimals": 6, "withdrawal_fee": 1}],
}
_CHAIN = {"name": "Arbitrum", "chain_id": 42161, "public_rpc_url": "", "currency_symbol": "ETH", "bridgeless": True}


def _rows(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    return {"rows": list(rows)}


def _page(incoming: Incoming, rows: list[dict[str, Any]]) -> dict[str, Any]:
    page, size = incoming.number("page", 1), incoming.number("size", 25, high=500)
    meta = {"total": len(rows), "records_per_page": size, "current_page": page}
    return {"meta": meta, "rows": rows[(page - 1) * size : page * size]}


def _as_order(incoming: Incoming) -> Incoming:
    """A request to place an order in the desk's words."""
    kind = _KINDS.get(incoming.need("order_type"))
    if kind is None:
        raise Fault(-1100, "This order type is not emulated.")
    return named(incoming, _ORDER, type=kind[0], timeInForce=kind[1])


def _resolution(text: str) -> str:
    """A chart's resolution (``15``, ``60``, ``1D``, ``D``) as an interval."""
    if not text.isdecimal():
        return (text if text[:1].isdecimal() else f"1{text}").replace("D", "d").replace("W", "w")
    minutes = int(text)
    return f"{minutes // 60}h" if minutes >= 60 else f"{minutes}m"
