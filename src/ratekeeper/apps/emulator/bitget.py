"""Bitget v2 as a venue: USDT futures and spot, each with orders of its own.

Shapes are those that ccxt's ``bitget`` reads (source X1 of the rule file), and so are the error codes but those whose
word below says otherwise. Errors have status 400. Positions are kept in one-way mode.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .bitget_bodies import account_row, asset_row, coin_row, contract_row, position_row, spot_symbol_row
from .bitget_trading import Trading
from .bodied import NO_KEY, NO_PATH, Bodied, Word, named
from .incoming import Fault, Incoming
from .market import BITGET_SYMBOLS, SPOT_SYMBOLS, Symbol
from .orders import OrderDesk

if TYPE_CHECKING:
    from .options import Live
    from .tariff import Tariff

__all__ = ["Bitget"]

LINE = "USDT-FUTURES"
"""The only product line of futures here; the others are empty."""
REMOVED = Symbol("LUNAUSDT", "LUNA", "USDT", 0.4, 4, 0)
"""Still listed, as off, and known to no other call: what every long list of symbols has sooner or later."""
_SCALE = Word(400, "40808", "Parameter verification exception checkBDScale error")
_GONE = Word(400, "40768", "Order does not exist")
_WORDS: dict[int | str, Word] = {
    NO_KEY: Word(400, "40006", "Invalid ACCESS_KEY"),
    NO_PATH: Word(404, "40404", "Request URL NOT FOUND"),  # from memory
    -1121: Word(400, "40034", "Parameter {symbol} does not exist"),
    -1120: Word(400, "40020", "Parameter granularity error"),
    -1102: Word(400, "40019", "Parameter cannot be empty"),
    -1100: Word(400, "40020", "Parameter error"),
    -4003: Word(400, "43006", "The quantity is below the minimum"),  # the text is a guess
    -1013: Word(400, "43006", "The quantity is below the minimum"),
    -1111: _SCALE,
    -4014: _SCALE,
    "PRICE_FILTER": _SCALE,
    "LOT_SIZE": _SCALE,
    -4164: Word(400, "45110", "less than the minimum amount 5 USDT"),
    "NOTIONAL": Word(400, "45110", "less than the minimum amount 5 USDT"),
    -4116: Word(400, "40786", "Duplicate clientOid"),  # from memory
    -2010: Word(400, "40786", "Duplicate clientOid"),  # for spot a guess
    -2011: _GONE,
    -2013: Word(400, "40109", "The data of the order cannot be found, please confirm the order number"),
}


class Bitget(Bodied):
    """See `Venue` for what the methods are."""

    def __init__(self, tariff: Tariff, options: Live) -> None:
        desk = OrderDesk(BITGET_SYMBOLS, futures=True, rejects_makers=False)
        spot = OrderDesk(SPOT_SYMBOLS, futures=False, rejects_makers=False, first=500_000_001)
        super().__init__(tariff, options, (desk, spot), _WORDS)
        self.spot = spot
        self.public("GET /api/v2/public/time", lambda asked: {"serverTime": str(asked.dated)})
        self._add_market("mix", futures := Trading(desk, self.said))
        self._add_market("spot", cash := Trading(spot, self.said))
        self._add_orders("mix/order/", futures, "place-order batch-place-order cancel-order batch-cancel-orders detail")
        self._add_orders("spot/trade/", cash, "place-order batch-orders cancel-order batch-cancel-order orderInfo")
        for route, teller in (
            ("GET mix/order/orders-pending", lambda asked: _listed("entrustedList", futures.pending(asked))),
            ("GET mix/order/orders-history", lambda asked: _listed("entrustedList", futures.history(asked))),
            ("GET mix/order/fills", lambda asked: _listed("fillList", futures.fills(asked))),
            ("GET mix/order/fill-history", lambda asked: _listed("fillList", futures.fills(asked))),
            ("POST mix/order/cancel-all-orders", futures.cancel_batch),
            ("POST mix/order/modify-order", futures.amend),
            ("POST mix/order/close-positions", self.close),
            ("GET spot/trade/unfilled-orders", cash.pending),
            ("GET spot/trade/history-orders", cash.history),
            ("GET spot/trade/fills", cash.fills),
            ("POST spot/trade/cancel-symbol-order", self.cancel_symbol),
            ("GET spot/account/assets", self.assets),
            ("GET spot/account/info", lambda asked: {"userId": asked.account, "authorities": ["trade", "readonly"]}),
            ("GET mix/account/accounts", lambda asked: [self._account(asked)] if _ours(asked) else []),
            ("GET mix/account/account", self._account),
            ("GET mix/position/all-position", self.positions),
            ("GET mix/position/single-position", self.positions),
            ("POST mix/account/set-leverage", self.set_leverage),
            ("POST mix/account/set-margin-mode", self._echo),
            ("POST mix/account/set-position-mode", lambda asked: {"posMode": asked.need("posMode")}),
        ):
            method, _, path = route.partition(" ")
            self.private(f"{method} /api/v2/{path}", teller)

    def _add_market(self, kind: str, trading: Trading) -> None:
        future = kind == "mix"
        for path, teller in (
            (
                "tickers",
                trading.tickers if not future else lambda asked: trading.tickers(asked) if _ours(asked) else [],
            ),
            ("candles", trading.candles),
            ("history-candles", trading.candles),
            ("orderbook", trading.book),
            ("merge-depth", trading.book),
            ("fills", trading.prints),
            ("fills-history", trading.prints),
        ):
            self.public(f"GET /api/v2/{kind}/market/{path}", teller)
        if future:
            self.public("GET /api/v2/mix/market/ticker", lambda asked: trading.tickers(_with_symbol(asked)))
            self.public("GET /api/v2/mix/market/symbol-price", lambda asked: trading.tickers(_with_symbol(asked)))
            self.public("GET /api/v2/mix/market/contracts", self.contracts)
        else:
            symbols = SPOT_SYMBOLS.values()
            coins = sorted({symbol.base for symbol in symbols} | {"USDT"})
            self.public(
                "GET /api/v2/spot/public/symbols", lambda asked: [spot_symbol_row(one) for one in self._asked(asked)]
            )
            self.public("GET /api/v2/spot/public/coins", lambda asked: [coin_row(name) for name in coins])

    def _add_orders(self, prefix: str, trading: Trading, names: str) -> None:
        place, place_batch, cancel, cancel_batch, detail = names.split()
        self.private(f"POST /api/v2/{prefix}{place}", trading.place)
        self.private(f"POST /api/v2/{prefix}{place_batch}", trading.place_batch)
        self.private(f"POST /api/v2/{prefix}{cancel}", trading.cancel)
        self.private(f"POST /api/v2/{prefix}{cancel_batch}", trading.cancel_batch)
        self.private(f"GET /api/v2/{prefix}{detail}", trading.detail)

    def wrapped(self, data: Any, now: int) -> dict[str, Any]:
        return {"code": "00000", "msg": "success", "requestTime": now, "data": data}

    def failed(self, word: Word, now: int) -> dict[str, Any]:
        return {"code": word.code, "msg": word.text, "requestTime": now, "data": None}

    # -- markets

    def contracts(self, incoming: Incoming) -> Any:
        """The futures of a product line."""
        if not _ours(incoming):
            return []
        if "symbol" in incoming.params:
            return [contract_row(self.desk.symbol(incoming))]
        off = {**contract_row(REMOVED), "symbolStatus": "off"}
        return [*(contract_row(symbol) for symbol in self.desk.symbols.values()), off]

    def _asked(self, incoming: Incoming) -> list[Symbol]:
        return [self.spot.symbol(incoming)] if "symbol" in incoming.params else list(self.spot.symbols.values())

    # -- account

    def close(self, incoming: Incoming) -> Any:
        """Close positions at the market, all or those of one symbol."""
        account, done = self.desk.account(incoming.account), []
        names = [self.desk.symbol(incoming).name] if "symbol" in incoming.params else list(account.positions)
        for name in names:
            if held := account.positions.get(name):
                order = {
                    "symbol": name,
                    "side": "SELL" if held > 0 else "BUY",
                    "type": "MARKET",
                    "quantity": str(abs(held)),
                }
                placed = self.desk.place(incoming._replace(params={**order, "reduceOnly": "true"}))
                done.append({"symbol": name, "orderId": str(placed.number), "clientOid": placed.client_id})
        return {"successList": done, "failureList": []}

    def cancel_symbol(self, incoming: Incoming) -> Any:
        """Cancel every open spot order of a symbol."""
        self.spot.cancel_all(incoming)
        return {"symbol": incoming.need("symbol")}

    def assets(self, incoming: Incoming) -> Any:
        """Spot balances."""
        wanted = incoming.params.get("coin")
        balances = self.spot.account(incoming.account).balances
        return [asset_row(name, held, incoming.now) for name, held in balances.items() if wanted in (None, name)]

    def _account(self, incoming: Incoming) -> dict[str, Any]:
        return account_row(self.desk.account(incoming.account))

    def positions(self, incoming: Incoming) -> Any:
        """Positions that are open, of one symbol if the request names one."""
        account = self.desk.account(incoming.account)
        names = [self.desk.symbol(incoming).name] if "symbol" in incoming.params else list(account.positions)
        held = [self.desk.symbols[name] for name in names if account.positions.get(name)] if _ours(incoming) else []
        return [position_row(account, symbol, incoming.now) for symbol in held]

    def set_leverage(self, incoming: Incoming) -> Any:
        """Set the leverage of a symbol."""
        symbol, leverage = self.desk.symbol(incoming), incoming.number("leverage", 20, high=125)
        self.desk.account(incoming.account).leverage[symbol.name] = leverage
        levels = {"longLeverage": str(leverage), "shortLeverage": str(leverage), "crossMarginLeverage": str(leverage)}
        return {"symbol": symbol.name, "marginCoin": "USDT", **levels, "marginMode": "crossed"}

    def _echo(self, incoming: Incoming) -> Any:
        return {"marginCoin": "USDT", **named(incoming, [("symbol", "symbol"), ("marginMode", "marginMode")]).params}


def _ours(incoming: Incoming) -> bool:
    """Whether the request means USDT futures; the name may be written in any case."""
    line = incoming.params.get("productType")
    if not line:
        raise Fault(-1102, "productType was not sent.")
    return line.upper() == LINE


def _with_symbol(incoming: Incoming) -> Incoming:
    incoming.need("symbol")
    return incoming


def _listed(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: rows, "endId": rows[-1].get("orderId", "") if rows else None}
