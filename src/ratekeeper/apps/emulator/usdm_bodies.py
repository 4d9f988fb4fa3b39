"""The bodies of the emulated USD-M futures. Times are milliseconds; amounts are text, as the exchange sends them."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .market import Symbol
    from .orders import Order

__all__ = [
    "FUNDING_PERIOD",
    "account_body",
    "algo_row",
    "asset_row",
    "balance_row",
    "fill_row",
    "income_row",
    "order_row",
    "position_row",
    "premium_row",
]

FUNDING_PERIOD = 8 * 3_600_000
"""Milliseconds between two fundings."""


def account_body(assets: list[dict[str, Any]], positions: list[dict[str, Any]]) -> dict[str, Any]:
    """Balances and positions together; the first asset is the account's own."""
    total = assets[0]["walletBalance"]
    none = "0"
    return {
        "feeTier": 0,
        "canTrade": True,
        "canDeposit": True,
        "canWithdraw": True,
        "multiAssetsMargin": False,
        "updateTime": 0,
        "totalInitialMargin": none,
        "totalMaintMargin": none,
        "totalWalletBalance": total,
        "totalUnrealizedProfit": none,
        "totalMarginBalance": total,
        "totalPositionInitialMargin": none,
        "totalOpenOrderInitialMargin": none,
        "totalCrossWalletBalance": total,
        "totalCrossUnPnl": none,
        "availableBalance": total,
        "maxWithdrawAmount": total,
        "assets": assets,
        "positions": positions,
    }


def balance_row(name: str, amount: str, now: int) -> dict[str, Any]:
    """One row of ``balance``."""
    return {
        "accountAlias": "emulated",
        "asset": name,
        "balance": amount,
        "crossWalletBalance": amount,
        "crossUnPnl": "0",
        "availableBalance": amount,
        "maxWithdrawAmount": amount,
        "marginAvailable": True,
        "updateTime": now,
    }


def position_row(symbol: Symbol, amount: Decimal, leverage: int, now: int) -> dict[str, Any]:
    """One row of ``positionRisk``, also of a position of size zero."""
    mark = symbol.show(symbol.price(now))
    entry, none = mark if amount else "0.0", "0"
    return {
        "symbol": symbol.name,
        "positionSide": "BOTH",
        "positionAmt": str(amount),
        "entryPrice": entry,
        "breakEvenPrice": entry,
        "markPrice": mark,
        "unRealizedProfit": none,
        "unrealizedProfit": none,
        "liquidationPrice": none,
        "leverage": str(leverage),
        "isolated": False,
        "isolatedMargin": none,
        "isolatedWallet": none,
        "initialMargin": none,
        "maintMargin": none,
        "positionInitialMargin": none,
        "openOrderInitialMargin": none,
        "notional": str(amount * Decimal(mark)),
        "marginAsset": symbol.quote,
        "marginType": "cross",
        "adl": 0,
        "updateTime": now if amount else 0,
    }


def income_row(number: int, time: int) -> dict[str, Any]:
    """One funding fee."""
    return {
        "symbol": "BTCUSDT",
        "incomeType": "FUNDING_FEE",
        "income": "-0.10000000",
        "asset": "USDT",
        "info": "FUNDING_FEE",
        "time": time,
        "tranId": number,
        "tradeId": "",
    }


def premium_row(symbol: Symbol, at: int) -> dict[str, Any]:
    """One row of ``premiumIndex``."""
    price = symbol.show(symbol.price(at))
    return {
        "symbol": symbol.name,
        "markPrice": price,
        "indexPrice": price,
        "estimatedSettlePrice": price,
        "lastFundingRate": "0.00010000",
        "interestRate": "0.00010000",
        "nextFundingTime": (at // FUNDING_PERIOD + 1) * FUNDING_PERIOD,
        "time": at,
    }


def asset_row(name: str, amount: str, now: int) -> dict[str, Any]:
    """One asset of ``account``."""
    nothing = "0.00000000"
    return {
        "asset": name,
        "walletBalance": amount,
        "unrealizedProfit": nothing,
        "marginBalance": amount,
        "maintMargin": nothing,
        "initialMargin": nothing,
        "positionInitialMargin": nothing,
        "openOrderInitialMargin": nothing,
        "crossWalletBalance": amount,
        "crossUnPnl": nothing,
        "availableBalance": amount,
        "maxWithdrawAmount": amount,
        "marginAvailable": True,
        "updateTime": now,
    }


def order_row(order: Order) -> dict[str, Any]:
    """An order."""
    return {
        "orderId": order.number,
        "symbol": order.symbol,
        "status": order.status,
        "clientOrderId": order.client_id,
        "price": str(order.price),
        "avgPrice": str(order.average),
        "origQty": str(order.quantity),
        "executedQty": str(order.filled),
        "cumQty": str(order.filled),
        "cumQuote": str(order.filled * order.average),
        "timeInForce": order.time_in_force,
        "type": order.kind,
        "origType": order.kind,
        "reduceOnly": order.reduce_only,
        "closePosition": False,
        "side": order.side,
        "positionSide": order.position_side,
        "stopPrice": str(order.stop_price),
        "workingType": "CONTRACT_PRICE",
        "priceProtect": False,
        "priceMatch": "NONE",
        "selfTradePreventionMode": "NONE",
        "goodTillDate": 0,
        "time": order.time,
        "updateTime": order.updated,
    }


def algo_row(order: Order) -> dict[str, Any]:
    """A conditional order."""
    return {
        "algoId": order.number,
        "clientAlgoId": order.client_id,
        "algoType": "CONDITIONAL",
        "orderType": order.kind,
        "symbol": order.symbol,
        "side": order.side,
        "positionSide": order.position_side,
        "timeInForce": order.time_in_force,
        "quantity": str(order.quantity),
        "algoStatus": order.status,
        "triggerPrice": str(order.stop_price),
        "price": str(order.price),
        "workingType": "CONTRACT_PRICE",
        "priceMatch": "NONE",
        "closePosition": False,
        "priceProtect": False,
        "reduceOnly": order.reduce_only,
        "selfTradePreventionMode": "NONE",
        "goodTillDate": 0,
        "createTime": order.time,
        "updateTime": order.updated,
        "triggerTime": 0,
    }


def fill_row(order: Order) -> dict[str, Any]:
    """One row of ``userTrades``."""
    return {
        "symbol": order.symbol,
        "id": order.number,
        "orderId": order.number,
        "side": order.side,
        "price": str(order.average),
        "qty": str(order.filled),
        "realizedPnl": "0",
        "quoteQty": str(order.filled * order.average),
        "commission": "0",
        "commissionAsset": "USDT",
        "time": order.updated,
        "positionSide": order.position_side,
        "buyer": order.side == "BUY",
        "maker": False,
    }
