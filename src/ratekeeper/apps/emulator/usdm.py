"""The emulated USD-M futures: routes under ``/fapi`` and the bodies that only futures have."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec

from .exchange import Exchange, encode
from .incoming import Fault, Incoming
from .market import USDM_SYMBOLS, Symbol
from .usdm_bodies import (
    FUNDING_PERIOD,
    account_body,
    algo_row,
    asset_row,
    balance_row,
    fill_row,
    income_row,
    order_row,
    position_row,
    premium_row,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .accounting import StrictLimit

__all__ = ["Usdm"]

SUCCESS = b'{"code":200,"msg":"success"}'


class Usdm(Exchange):
    """Binance USD-M futures."""

    def __init__(self, limits: Iterable[StrictLimit]) -> None:
        super().__init__(USDM_SYMBOLS, limits, prefix="/fapi/v1/", futures=True, most_klines=1_500)
        for kind in ("continuousKlines", "indexPriceKlines", "markPriceKlines", "premiumIndexKlines"):
            self.get(f"/fapi/v1/{kind}", self.klines)
        self.get("/fapi/v2/ticker/price", self.price)
        self.get("/fapi/v1/premiumIndex", lambda incoming: self.per_symbol(incoming, "premium", premium_row))
        self.get("/fapi/v1/fundingRate", self.funding_rate)
        self.get("/fapi/v1/fundingInfo", self.funding_info)
        self.get("/fapi/v1/openInterest", self.open_interest)
        self.signed("POST", "/fapi/v1/order", self.place)
        self.signed("POST", "/fapi/v1/order/test", self.try_order)
        self.signed("PUT", "/fapi/v1/order", lambda incoming: encode(order_row(self.desk.amend(incoming))))
        self.signed("DELETE", "/fapi/v1/order", lambda incoming: encode(order_row(self.desk.cancel(incoming))))
        self.signed("GET", "/fapi/v1/order", lambda incoming: self._found(incoming, among_open=False))
        self.signed("GET", "/fapi/v1/openOrder", lambda incoming: self._found(incoming, among_open=True))
        self.signed("POST", "/fapi/v1/batchOrders", self.place_batch)
        self.signed("DELETE", "/fapi/v1/batchOrders", self.cancel_batch)
        self.signed("DELETE", "/fapi/v1/allOpenOrders", self.cancel_all)
        self.signed("GET", "/fapi/v1/openOrders", lambda incoming: self._listed(incoming, only_open=True))
        self.signed("GET", "/fapi/v1/allOrders", lambda incoming: self._listed(incoming, only_open=False))
        self.signed("POST", "/fapi/v1/algoOrder", self.place_algo)
        self.signed("DELETE", "/fapi/v1/algoOrder", self.cancel_algo)
        self.signed("DELETE", "/fapi/v1/algoOpenOrders", self.cancel_all_algo)
        self.signed("GET", "/fapi/v1/algoOrder", self.find_algo)
        self.signed("GET", "/fapi/v1/openAlgoOrders", lambda incoming: self._listed_algo(incoming, only_open=True))
        self.signed("GET", "/fapi/v1/allAlgoOrders", lambda incoming: self._listed_algo(incoming, only_open=False))
        self.signed("GET", "/fapi/v1/userTrades", self.user_trades)
        self.signed("GET", "/fapi/v1/income", self.income)
        self.signed("POST", "/fapi/v1/leverage", self.set_leverage)
        self.signed("POST", "/fapi/v1/marginType", lambda _incoming: SUCCESS)
        self.signed("GET", "/fapi/v1/leverageBracket", self.leverage_bracket)
        self.signed("GET", "/fapi/v1/commissionRate", self.commission_rate)
        self.signed("POST", "/fapi/v1/countdownCancelAll", self.countdown)
        for path, answer in (("positionSide/dual", b"dualSidePosition"), ("multiAssetsMargin", b"multiAssetsMargin")):
            self.signed("GET", f"/fapi/v1/{path}", lambda _incoming, name=answer: b'{"%b":false}' % name)  # type: ignore[misc]
            self.signed("POST", f"/fapi/v1/{path}", lambda _incoming: SUCCESS)
        for version in ("v2", "v3"):
            self.signed("GET", f"/fapi/{version}/account", self.account)
            self.signed("GET", f"/fapi/{version}/balance", self.balance)
            self.signed("GET", f"/fapi/{version}/positionRisk", self.position_risk)
        self.listen_keys("/fapi/v1/listenKey")

    # -- market data

    def funding_rate(self, incoming: Incoming) -> bytes:
        """Past funding rates, one every eight hours."""
        symbols = [self.desk.symbol(incoming)] if "symbol" in incoming.params else list(self.symbols.values())
        count = incoming.number("limit", 100, high=1_000)
        last = min(incoming.number("endTime", incoming.now), incoming.now) // FUNDING_PERIOD
        first = max(last - count + 1, -(-incoming.number("startTime", 0, low=0) // FUNDING_PERIOD))
        rows = [
            {
                "symbol": symbol.name,
                "fundingTime": number * FUNDING_PERIOD,
                "fundingRate": "0.00010000",
                "markPrice": symbol.show(symbol.price(number * FUNDING_PERIOD)),
            }
            for number in range(first, last + 1)
            for symbol in symbols
        ]
        return encode(rows[-count:])

    def funding_info(self, incoming: Incoming) -> bytes:
        """The funding interval of each symbol."""
        return encode(
            [
                {
                    "symbol": name,
                    "adjustedFundingRateCap": "0.02",
                    "adjustedFundingRateFloor": "-0.02",
                    "fundingIntervalHours": 8,
                }
                for name in self.symbols
            ]
        )

    def open_interest(self, incoming: Incoming) -> bytes:
        """Open interest of one symbol."""
        symbol = self.desk.symbol(incoming)
        return encode({"symbol": symbol.name, "openInterest": "12345.000", "time": incoming.now})

    # -- orders

    def place(self, incoming: Incoming) -> bytes:
        """Place one order."""
        return encode(order_row(self.desk.place(incoming)))

    def try_order(self, incoming: Incoming) -> bytes:
        """Check an order without placing it."""
        return encode(order_row(self.desk.place(incoming, test=True)))

    def place_batch(self, incoming: Incoming) -> bytes:
        """Place up to five orders; each has its own answer or error."""
        answers: list[dict[str, Any]] = []
        for order in _batch(incoming.need("batchOrders")):
            try:
                answers.append(order_row(self.desk.place(incoming._replace(params=order))))
            except Fault as fault:
                answers.append({"code": fault.code, "msg": fault.text})
        return encode(answers)

    def cancel_batch(self, incoming: Incoming) -> bytes:
        """Cancel up to ten orders by number or client id; each has its own answer or error."""
        answers: list[dict[str, Any]] = []
        for name, key in (("orderIdList", "orderId"), ("origClientOrderIdList", "origClientOrderId")):
            text = incoming.params.get(name) or incoming.params.get(name.lower()) or "[]"
            for value in _list(text, name):
                one = {"symbol": incoming.need("symbol"), key: str(value)}
                try:
                    answers.append(order_row(self.desk.cancel(incoming._replace(params=one))))
                except Fault as fault:
                    answers.append({"code": fault.code, "msg": fault.text})
        return encode(answers)

    def cancel_all(self, incoming: Incoming) -> bytes:
        """Cancel every open order of a symbol."""
        self.desk.cancel_all(incoming)
        return b'{"code":200,"msg":"The operation of cancel all open order is done."}'

    def _found(self, incoming: Incoming, *, among_open: bool) -> bytes:
        return encode(order_row(self.desk.find(incoming, among_open=among_open)))

    def _listed(self, incoming: Incoming, *, only_open: bool) -> bytes:
        return encode([order_row(order) for order in self.desk.listed(incoming, only_open=only_open)])

    def place_algo(self, incoming: Incoming) -> bytes:
        """Place a conditional order. It rests until it is cancelled: nothing triggers it here."""
        return encode(algo_row(self.desk.place(_as_order(incoming), conditional=True)))

    def cancel_algo(self, incoming: Incoming) -> bytes:
        """Cancel a conditional order."""
        order = self.desk.cancel(_as_order(incoming))
        return encode({"algoId": order.number, "clientAlgoId": order.client_id, "code": "200", "msg": "success"})

    def cancel_all_algo(self, incoming: Incoming) -> bytes:
        """Cancel every conditional order of a symbol."""
        self.desk.cancel_all(incoming, conditional=True)
        return SUCCESS

    def find_algo(self, incoming: Incoming) -> bytes:
        """One conditional order."""
        return encode(algo_row(self.desk.find(_as_order(incoming), among_open=False)))

    def _listed_algo(self, incoming: Incoming, *, only_open: bool) -> bytes:
        found = self.desk.listed(incoming, only_open=only_open, conditional=True)
        return encode([algo_row(order) for order in found])

    def user_trades(self, incoming: Incoming) -> bytes:
        """Fills of one symbol."""
        symbol, account = self.desk.symbol(incoming), self.desk.account(incoming.account)
        return encode([fill_row(order) for order in account.fills if order.symbol == symbol.name])

    # -- account

    def account(self, incoming: Incoming) -> bytes:
        """Balances and positions together."""
        assets = [asset_row(name, str(amount), incoming.now) for name, amount in self._wallet(incoming)]
        positions = [self._position(incoming, symbol) for symbol in self.symbols.values()]
        return encode(account_body(assets, positions))

    def balance(self, incoming: Incoming) -> bytes:
        """Balances."""
        return encode([balance_row(name, str(amount), incoming.now) for name, amount in self._wallet(incoming)])

    def position_risk(self, incoming: Incoming) -> bytes:
        """Positions, also those of size zero."""
        symbols = [self.desk.symbol(incoming)] if "symbol" in incoming.params else list(self.symbols.values())
        return encode([self._position(incoming, symbol) for symbol in symbols])

    def _wallet(self, incoming: Incoming) -> list[tuple[str, Decimal]]:
        return [("USDT", self.desk.account(incoming.account).balances["USDT"])]

    def _position(self, incoming: Incoming, symbol: Symbol) -> dict[str, Any]:
        account = self.desk.account(incoming.account)
        amount = account.positions.get(symbol.name, Decimal(0))
        return position_row(symbol, amount, account.leverage.get(symbol.name, 20), incoming.now)

    def income(self, incoming: Incoming) -> bytes:
        """Funding fees of the last days."""
        last = incoming.now // FUNDING_PERIOD
        count = incoming.number("limit", 100, high=1_000)
        numbers = range(last - min(count, 21) + 1, last + 1)
        return encode([income_row(number, number * FUNDING_PERIOD) for number in numbers])

    def set_leverage(self, incoming: Incoming) -> bytes:
        """Set the leverage of a symbol."""
        symbol, leverage = self.desk.symbol(incoming), incoming.number("leverage", 20, high=125)
        self.desk.account(incoming.account).leverage[symbol.name] = leverage
        return encode({"symbol": symbol.name, "leverage": leverage, "maxNotionalValue": "1000000"})

    def leverage_bracket(self, incoming: Incoming) -> bytes:
        """One bracket for each symbol."""
        symbols = [self.desk.symbol(incoming)] if "symbol" in incoming.params else list(self.symbols.values())
        bracket = {
            "bracket": 1,
            "initialLeverage": 125,
            "notionalCap": 1_000_000,
            "notionalFloor": 0,
            "maintMarginRatio": 0.004,
            "cum": 0.0,
        }
        return encode([{"symbol": symbol.name, "brackets": [bracket]} for symbol in symbols])

    def commission_rate(self, incoming: Incoming) -> bytes:
        """Fees of a symbol."""
        symbol = self.desk.symbol(incoming)
        return encode({"symbol": symbol.name, "makerCommissionRate": "0.0002", "takerCommissionRate": "0.0004"})

    def countdown(self, incoming: Incoming) -> bytes:
        """Acknowledge a countdown; the emulator does not run it."""
        symbol = self.desk.symbol(incoming)
        return encode({"symbol": symbol.name, "countdownTime": str(incoming.number("countdownTime", 0, low=0))})


_ALGO_NAMES = {"algoId": "orderId", "triggerPrice": "stopPrice"}


def _as_order(incoming: Incoming) -> Incoming:
    """A request about a conditional order in the words of ordinary ones."""
    params = {_ALGO_NAMES.get(name, name): value for name, value in incoming.params.items()}
    if client_id := params.get("clientAlgoId"):
        params |= {"newClientOrderId": client_id, "origClientOrderId": client_id}
    return incoming._replace(params=params)


def _list(text: str, name: str) -> list[Any]:
    try:
        return msgspec.json.decode(text, type=list[Any])
    except msgspec.DecodeError:
        raise Fault(-1130, f"Data sent for parameter '{name}' is not valid.") from None


def _batch(text: str) -> list[dict[str, str]]:
    orders = _list(text, "batchOrders")
    if not 1 <= len(orders) <= 5 or not all(isinstance(order, dict) for order in orders):
        raise Fault(-4082, "Invalid number of batch place orders.")
    return [{name: str(value) for name, value in order.items()} for order in orders]
