"""The emulated spot exchange: routes under ``/api`` and the bodies that only spot has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .exchange import Exchange, encode
from .incoming import Fault, Incoming
from .market import SPOT_SYMBOLS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .accounting import StrictLimit
    from .orders import Order

__all__ = ["Spot"]


class Spot(Exchange):
    """Binance spot. Successful order and cancel calls give their weight back (since 2026-04-02)."""

    def __init__(self, limits: Iterable[StrictLimit]) -> None:
        super().__init__(SPOT_SYMBOLS, limits, prefix="/api/v3/", futures=False, most_klines=1_000)
        self.listen_keys("/api/v3/userDataStream")
        self.get("/api/v3/uiKlines", self.klines)
        self.get("/api/v3/avgPrice", self.average)
        self.get("/api/v3/ticker", self.day)
        self.get("/api/v3/ticker/tradingDay", self.day)
        self._free("POST", "/api/v3/order", self.place)
        self._free("POST", "/api/v3/sor/order", self.place)
        self._free("POST", "/api/v3/order/cancelReplace", self.cancel_replace)
        self._free("DELETE", "/api/v3/order", self.cancel)
        self._free("DELETE", "/api/v3/openOrders", self.cancel_all)
        for kind in ("oco", "oto", "opo", "otoco", "opoco"):
            self._free("POST", f"/api/v3/orderList/{kind}", self.order_list)
        self._free("DELETE", "/api/v3/orderList", self.order_list)
        self.signed("POST", "/api/v3/order/test", self.try_order)
        self.signed("GET", "/api/v3/order", self.find)
        self.signed("GET", "/api/v3/openOrders", lambda incoming: self._listed(incoming, only_open=True))
        self.signed("GET", "/api/v3/allOrders", self.all_orders)
        self.signed("GET", "/api/v3/allOrderList", lambda _incoming: b"[]")
        self.signed("GET", "/api/v3/openOrderList", lambda _incoming: b"[]")
        self.signed("GET", "/api/v3/account", self.account)
        self.signed("GET", "/api/v3/account/commission", self.commission)
        self.signed("GET", "/api/v3/myTrades", self.my_trades)

    def _free(self, method: str, path: str, handler: Any) -> None:
        self.route(method, path, handler, signed=True, keyed=True, free=True)

    def average(self, incoming: Incoming) -> bytes:
        """Mean price of five minutes."""
        symbol = self.desk.symbol(incoming)
        price = symbol.show(symbol.price(incoming.now))
        return encode({"mins": 5, "price": price, "closeTime": incoming.now})

    # -- orders

    def place(self, incoming: Incoming) -> bytes:
        """Place one order; the answer is as long as `newOrderRespType` says."""
        order = self.desk.place(incoming)
        long_by_default = order.kind in ("LIMIT", "MARKET")
        wanted = incoming.params.get("newOrderRespType") or ("FULL" if long_by_default else "ACK")
        body: dict[str, Any] = {
            "symbol": order.symbol,
            "orderId": order.number,
            "orderListId": -1,
            "clientOrderId": order.client_id,
            "transactTime": order.time,
        }
        if wanted != "ACK":
            body = {**_order(order), **body}
        if wanted == "FULL":
            body["fills"] = [_part(order)] if order.filled else []
        return encode(body)

    def try_order(self, incoming: Incoming) -> bytes:
        """Check an order without placing it."""
        self.desk.place(incoming, test=True)
        return b"{}"

    def cancel(self, incoming: Incoming) -> bytes:
        """Cancel one order."""
        return encode(_cancelled(self.desk.cancel(incoming), incoming))

    def cancel_all(self, incoming: Incoming) -> bytes:
        """Cancel every open order of a symbol; an error if there is none."""
        found = self.desk.cancel_all(incoming)
        if not found:
            raise Fault(-2011, "Unknown order sent.")
        return encode([_cancelled(order, incoming) for order in found])

    def cancel_replace(self, incoming: Incoming) -> bytes:
        """Cancel one order and place another."""
        names = {"cancelOrderId": "orderId", "cancelOrigClientOrderId": "origClientOrderId"}
        target = {new: incoming.params[old] for old, new in names.items() if incoming.params.get(old)}
        mode = incoming.need("cancelReplaceMode")
        cancelled: dict[str, Any] | None = None
        try:
            order = self.desk.cancel(incoming._replace(params={"symbol": incoming.need("symbol"), **target}))
            cancelled = _cancelled(order, incoming)
        except Fault:
            if mode != "ALLOW_FAILURE":
                raise Fault(-2022, "Order cancel-replace failed.") from None
        placed = self.desk.place(incoming)
        return encode(
            {
                "cancelResult": "SUCCESS" if cancelled else "FAILURE",
                "newOrderResult": "SUCCESS",
                "cancelResponse": cancelled,
                "newOrderResponse": {**_order(placed), "transactTime": placed.time, "fills": []},
            }
        )

    def order_list(self, incoming: Incoming) -> bytes:
        """Acknowledge an order list. It is counted like a real one, but its orders are not kept."""
        return encode(
            {
                "orderListId": incoming.number("orderListId", 1),
                "contingencyType": "OCO",
                "listStatusType": "EXEC_STARTED",
                "listOrderStatus": "EXECUTING",
                "listClientOrderId": incoming.params.get("listClientOrderId") or "emulated",
                "transactionTime": incoming.now,
                "symbol": self.desk.symbol(incoming).name,
                "orders": [],
                "orderReports": [],
            }
        )

    def find(self, incoming: Incoming) -> bytes:
        """One order."""
        return encode(_order(self.desk.find(incoming, among_open=False)))

    def all_orders(self, incoming: Incoming) -> bytes:
        """Every order of one symbol."""
        self.desk.symbol(incoming)
        return self._listed(incoming, only_open=False)

    def _listed(self, incoming: Incoming, *, only_open: bool) -> bytes:
        return encode([_order(order) for order in self.desk.listed(incoming, only_open=only_open)])

    def my_trades(self, incoming: Incoming) -> bytes:
        """Fills of one symbol."""
        symbol, account = self.desk.symbol(incoming), self.desk.account(incoming.account)
        return encode([_trade(order) for order in account.fills if order.symbol == symbol.name])

    # -- account

    def account(self, incoming: Incoming) -> bytes:
        """Balances."""
        account = self.desk.account(incoming.account)
        return encode(
            {
                "makerCommission": 0,
                "takerCommission": 0,
                "buyerCommission": 0,
                "sellerCommission": 0,
                "commissionRates": {"maker": "0", "taker": "0", "buyer": "0", "seller": "0"},
                "canTrade": True,
                "canWithdraw": True,
                "canDeposit": True,
                "brokered": False,
                "requireSelfTradePrevention": False,
                "preventSor": False,
                "updateTime": incoming.now,
                "accountType": "SPOT",
                "balances": [
                    {"asset": asset, "free": str(amount), "locked": "0"} for asset, amount in account.balances.items()
                ],
                "permissions": ["SPOT"],
                "uid": 1,
            }
        )

    def commission(self, incoming: Incoming) -> bytes:
        """Fees of a symbol."""
        none = {"maker": "0", "taker": "0", "buyer": "0", "seller": "0"}
        return encode({"symbol": self.desk.symbol(incoming).name, "standardCommission": none, "taxCommission": none})


def _order(order: Order) -> dict[str, Any]:
    return {
        "symbol": order.symbol,
        "orderId": order.number,
        "orderListId": -1,
        "clientOrderId": order.client_id,
        "price": str(order.price),
        "origQty": str(order.quantity),
        "executedQty": str(order.filled),
        "origQuoteOrderQty": "0",
        "cummulativeQuoteQty": str(order.filled * order.average),
        "status": order.status,
        "timeInForce": order.time_in_force,
        "type": order.kind,
        "side": order.side,
        "stopPrice": str(order.stop_price),
        "icebergQty": "0",
        "time": order.time,
        "updateTime": order.updated,
        "workingTime": order.time,
        "isWorking": True,
        "selfTradePreventionMode": "EXPIRE_MAKER",
    }


def _cancelled(order: Order, incoming: Incoming) -> dict[str, Any]:
    return {
        **_order(order),
        "origClientOrderId": order.client_id,
        "clientOrderId": incoming.params.get("newClientOrderId") or f"cancelled-{order.number}",
        "transactTime": incoming.now,
    }


def _part(order: Order) -> dict[str, Any]:
    return {
        "price": str(order.average),
        "qty": str(order.filled),
        "commission": "0",
        "commissionAsset": "BNB",
        "tradeId": order.number,
    }


def _trade(order: Order) -> dict[str, Any]:
    return {
        **_part(order),
        "symbol": order.symbol,
        "id": order.number,
        "orderId": order.number,
        "orderListId": -1,
        "quoteQty": str(order.filled * order.average),
        "time": order.updated,
        "isBuyer": order.side == "BUY",
        "isMaker": False,
        "isBestMatch": True,
    }
