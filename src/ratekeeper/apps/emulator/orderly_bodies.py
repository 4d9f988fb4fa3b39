"""The bodies of the emulated Orderly. Times are milliseconds; amounts are numbers, as the exchange sends them."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

from .market import DAY, INTERVALS

if TYPE_CHECKING:
    from .market import Symbol
    from .orders import Account, Order

__all__ = [
    "future_row",
    "holding_row",
    "info_row",
    "kline_row",
    "order_row",
    "placed_row",
    "position_row",
    "trade_row",
]

_STATUS = {"CANCELED": "CANCELLED", "EXPIRED": "CANCELLED"}
_FUNDING = 28_800_000


def info_row(symbol: Symbol) -> dict[str, Any]:
    """The rules of one market."""
    return {
        "symbol": symbol.name,
        "quote_min": 0,
        "quote_max": 1_000_000,
        "quote_tick": float(symbol.tick),
        "base_min": float(symbol.step),
        "base_max": 1_000_000,
        "base_tick": float(symbol.step),
        "min_notional": symbol.min_notional,
        "price_range": 0.03,
        "price_scope": 0.4,
        "base_mmr": 0.012,
        "base_imr": 0.05,
        "funding_period": 8,
        "created_time": 1_682_235_722.003,
        "updated_time": 1_682_235_722.003,
    }


def future_row(symbol: Symbol, now: int) -> dict[str, Any]:
    """Prices and statistics of one market."""
    price, before = (float(symbol.show(symbol.price(at))) for at in (now, now - DAY))
    return {
        "symbol": symbol.name,
        "index_price": price,
        "mark_price": price,
        "sum_unitary_funding": 0.0,
        "est_funding_rate": 0.0001,
        "last_funding_rate": 0.0001,
        "next_funding_time": (now // _FUNDING + 1) * _FUNDING,
        "open_interest": 12345.0,
        "24h_open": before,
        "24h_close": price,
        "24h_high": float(symbol.show(symbol.around * 1.012)),
        "24h_low": float(symbol.show(symbol.around * 0.988)),
        "24h_volume": 18000.0,
        "24h_amount": 18000.0 * symbol.around,
    }


def kline_row(symbol: Symbol, kind: str, interval: str, row: tuple[int, str, str, str, str, float]) -> dict[str, Any]:
    """One candle; `kind` is its length as the request named it."""
    at, opening, high, low, closing, number = row
    prices = {"open": float(opening), "high": float(high), "low": float(low), "close": float(closing)}
    times = {"start_timestamp": at, "end_timestamp": at + INTERVALS[interval]}
    return {**prices, "volume": 12.5, "amount": 12.5 * number, "symbol": symbol.name, "type": kind, **times}


def placed_row(order: Order) -> dict[str, Any]:
    """The answer to an order that was taken."""
    return {
        "order_id": order.number,
        "client_order_id": order.client_id,
        "order_type": _kind(order),
        "order_price": float(order.price) or None,
        "order_quantity": float(order.quantity),
        "order_amount": None,
        "error_message": "none",
    }


def order_row(order: Order) -> dict[str, Any]:
    """One order."""
    return {
        "order_id": order.number,
        "client_order_id": order.client_id,
        "symbol": order.symbol,
        "side": order.side,
        "type": _kind(order),
        "price": float(order.price) or None,
        "quantity": float(order.quantity),
        "amount": None,
        "visible_quantity": float(order.quantity),
        "executed_quantity": float(order.filled),
        "total_executed_quantity": float(order.filled),
        "average_executed_price": float(order.average),
        "status": _STATUS.get(order.status, order.status),
        "total_fee": 0.0,
        "fee_asset": "USDC",
        "realized_pnl": 0.0,
        "reduce_only": order.reduce_only,
        "created_time": order.time,
        "updated_time": order.updated,
    }


def trade_row(order: Order) -> dict[str, Any]:
    """The fill of an order: there is one for each, of all of it."""
    return {
        "id": order.number,
        "order_id": order.number,
        "symbol": order.symbol,
        "side": order.side,
        "executed_price": float(order.average),
        "executed_quantity": float(order.filled),
        "executed_timestamp": order.updated,
        "fee": 0.0,
        "fee_asset": "USDC",
        "is_maker": int(order.updated > order.time),
        "realized_pnl": 0.0,
    }


def position_row(account: Account, symbol: Symbol, orders: list[Order], now: int) -> dict[str, Any]:
    """One position, also of size zero; `orders` are the open ones of this market."""
    held = account.positions.get(symbol.name, Decimal(0))
    mark = Decimal(symbol.show(symbol.price(now)))
    entry = account.entries.get(symbol.name, Decimal(0)) if held else Decimal(0)
    waiting = {side: float(sum(order.quantity for order in orders if order.side == side)) for side in ("BUY", "SELL")}
    return {
        "symbol": symbol.name,
        "position_qty": float(held),
        "cost_position": float(held * entry),
        "average_open_price": float(entry),
        "mark_price": float(mark),
        "unsettled_pnl": float(held * (mark - entry)),
        "unrealized_pnl": float(held * (mark - entry)),
        "settle_price": float(entry),
        "last_sum_unitary_funding": 0.0,
        "pending_long_qty": waiting["BUY"],
        "pending_short_qty": waiting["SELL"],
        "est_liq_price": None,
        "leverage": account.leverage.get(symbol.name, 10),
        "imr": 0.1,
        "mmr": 0.012,
        "pnl_24_h": 0.0,
        "fee_24_h": 0.0,
        "timestamp": now,
        "updated_time": now,
    }


def holding_row(token: str, amount: Decimal, now: int) -> dict[str, Any]:
    """What is held of one token."""
    return {"token": token, "holding": float(amount), "frozen": 0.0, "pending_short_qty": 0.0, "updated_time": now}


def _kind(order: Order) -> str:
    if order.kind == "MARKET" or order.time_in_force == "GTC":
        return order.kind
    return "POST_ONLY" if order.time_in_force == "GTX" else order.time_in_force
