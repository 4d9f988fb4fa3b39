"""The bodies of the emulated Bitget. Times are milliseconds and, like amounts, text, as the exchange sends them."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

from .market import DAY

if TYPE_CHECKING:
    from .market import Symbol
    from .orders import Account, Order

__all__ = [
    "account_row",
    "asset_row",
    "candle_row",
    "coin_row",
    "contract_row",
    "fill_row",
    "order_row",
    "position_row",
    "spot_symbol_row",
    "ticker_row",
]

_STATUS = {"NEW": "live", "FILLED": "filled"}
_FORCE = {"GTX": "post_only"}


def coin_row(name: str) -> dict[str, Any]:
    """One coin with one chain."""
    chain = {
        "chain": name,
        "needTag": "false",
        "withdrawable": "true",
        "rechargeable": "true",
        "withdrawFee": "0.001",
        "extraWithdrawFee": "0",
        "depositConfirm": "1",
        "withdrawConfirm": "1",
        "minDepositAmount": "0.001",
        "minWithdrawAmount": "0.01",
        "withdrawMinScale": "8",
        "congestion": "normal",
    }
    return {"coinId": name, "coin": name, "transfer": "true", "chains": [chain], "areaCoin": "no"}


def spot_symbol_row(symbol: Symbol) -> dict[str, Any]:
    """The rules of one spot market."""
    return {
        "symbol": symbol.name,
        "baseCoin": symbol.base,
        "quoteCoin": symbol.quote,
        "minTradeAmount": "0",
        "maxTradeAmount": "10000000000",
        "takerFeeRate": "0.001",
        "makerFeeRate": "0.001",
        "pricePrecision": str(symbol.price_decimals),
        "quantityPrecision": str(symbol.quantity_decimals),
        "quotePrecision": "8",
        "status": "online",
        "minTradeUSDT": str(symbol.min_notional),
        "buyLimitPriceRatio": "0.05",
        "sellLimitPriceRatio": "0.05",
    }


def contract_row(symbol: Symbol) -> dict[str, Any]:
    """The rules of one future."""
    return {
        "symbol": symbol.name,
        "baseCoin": symbol.base,
        "quoteCoin": symbol.quote,
        "buyLimitPriceRatio": "0.05",
        "sellLimitPriceRatio": "0.05",
        "feeRateUpRatio": "0.005",
        "makerFeeRate": "0.0002",
        "takerFeeRate": "0.0006",
        "openCostUpRatio": "0.01",
        "supportMarginCoins": [symbol.quote],
        "minTradeNum": symbol.step,
        "priceEndStep": "1",
        "volumePlace": str(symbol.quantity_decimals),
        "pricePlace": str(symbol.price_decimals),
        "sizeMultiplier": symbol.step,
        "symbolType": "perpetual",
        "minTradeUSDT": str(symbol.min_notional),
        "maxSymbolOrderNum": "200",
        "maxProductOrderNum": "400",
        "maxPositionNum": "150",
        "symbolStatus": "normal",
        "offTime": "-1",
        "limitOpenTime": "-1",
        "deliveryTime": "",
        "deliveryStartTime": "",
        "launchTime": "",
        "fundInterval": "8",
        "minLever": "1",
        "maxLever": "125",
        "posLimit": "0.05",
        "maintainTime": "",
    }


def ticker_row(symbol: Symbol, now: int, *, futures: bool) -> dict[str, Any]:
    """Prices and statistics of one market."""
    price, before = symbol.price(now), symbol.price(now - DAY)
    row = {
        "symbol": symbol.name,
        "lastPr": symbol.show(price),
        "askPr": symbol.show(symbol.ask(now)),
        "bidPr": symbol.show(symbol.bid(now)),
        "askSz": "1.5",
        "bidSz": "1.5",
        "high24h": symbol.show(symbol.around * 1.012),
        "low24h": symbol.show(symbol.around * 0.988),
        "change24h": f"{(price - before) / before:.5f}",
        "changeUtc24h": f"{(price - before) / before:.5f}",
        "baseVolume": "18000",
        "quoteVolume": f"{18_000 * symbol.around:.2f}",
        "usdtVolume": f"{18_000 * symbol.around:.2f}",
        "openUtc": symbol.show(before),
        "ts": str(now),
    }
    if not futures:
        return {**row, "open": symbol.show(before)}
    mark = symbol.show(price)
    more = {"open24h": symbol.show(before), "indexPrice": mark, "markPrice": mark, "price": mark}
    return {**row, **more, "fundingRate": "0.0001", "holdingAmount": "12345", "deliveryStatus": "delivery_normal"}


def candle_row(row: tuple[int, str, str, str, str, float]) -> list[str]:
    """One candle."""
    at, opening, high, low, closing, number = row
    return [str(at), opening, high, low, closing, "12.5", f"{12.5 * number:.2f}", f"{12.5 * number:.2f}"]


def order_row(order: Order, symbol: Symbol, *, futures: bool, listed: bool, leverage: str) -> dict[str, Any]:
    """One order; `listed` among the open ones, where spot calls the price and the average otherwise."""
    price, average = str(order.price), str(order.average) if order.filled else ""
    status = _STATUS.get(order.status, "canceled")
    row = {
        "symbol": order.symbol,
        "orderId": str(order.number),
        "clientOid": order.client_id,
        "size": str(order.quantity),
        "orderType": order.kind.lower(),
        "side": order.side.lower(),
        "force": _FORCE.get(order.time_in_force, order.time_in_force.lower()),
        "status": status,
        "baseVolume": str(order.filled),
        "quoteVolume": str(order.filled * order.average),
        "enterPointSource": "API",
        "orderSource": "normal",
        "cTime": str(order.time),
        "uTime": str(order.updated),
    }
    if futures:
        return {
            **row,
            "state": status,
            "price": price,
            "priceAvg": average,
            "fee": "0",
            "totalProfits": "0",
            "posSide": "net",
            "posMode": "one_way_mode",
            "tradeSide": f"{order.side.lower()}_single",
            "marginCoin": symbol.quote,
            "marginMode": "crossed",
            "leverage": leverage,
            "reduceOnly": "YES" if order.reduce_only else "NO",
        }
    if listed:
        return {**row, "priceAvg": price, "basePrice": "0", "tpslType": "normal"}
    coins = {"baseCoin": symbol.base, "quoteCoin": symbol.quote}
    return {**row, **coins, "price": price, "priceAvg": average or "0", "tpslType": "normal", "cancelReason": ""}


def fill_row(order: Order, *, futures: bool) -> dict[str, Any]:
    """The fill of an order: there is one for each, of all of it."""
    fee: dict[str, Any] = {"deduction": "no", "feeCoin": "USDT", "totalDeductionFee": "0", "totalFee": "0"}
    row: dict[str, Any] = {
        "tradeId": str(order.number),
        "symbol": order.symbol,
        "orderId": str(order.number),
        "side": order.side.lower(),
        "tradeScope": "maker" if order.updated > order.time else "taker",
        "cTime": str(order.updated),
        "uTime": str(order.updated),
    }
    cost = str(order.filled * order.average)
    if futures:
        more = {"price": str(order.average), "baseVolume": str(order.filled), "quoteVolume": cost, "profit": "0"}
        return {
            **row,
            **more,
            "feeDetail": [fee],
            "posMode": "one_way_mode",
            "tradeSide": f"{order.side.lower()}_single",
        }
    more = {"priceAvg": str(order.average), "size": str(order.filled), "amount": cost}
    return {**row, **more, "feeDetail": fee, "orderType": order.kind.lower()}


def asset_row(coin: str, amount: Decimal, now: int) -> dict[str, Any]:
    """One spot balance."""
    return {
        "coin": coin,
        "available": str(amount),
        "limitAvailable": "0",
        "frozen": "0",
        "locked": "0",
        "uTime": str(now),
    }


def account_row(account: Account) -> dict[str, Any]:
    """The futures account of one coin."""
    total = str(account.balances["USDT"])
    return {
        "marginCoin": "USDT",
        "locked": "0",
        "available": total,
        "crossedMaxAvailable": total,
        "isolatedMaxAvailable": total,
        "maxTransferOut": total,
        "accountEquity": total,
        "usdtEquity": total,
        "btcEquity": "0",
        "crossedRiskRate": "0",
        "unrealizedPL": "0",
        "coupon": "0",
        "posMode": "one_way_mode",
        "marginMode": "crossed",
        "assetMode": "single",
    }


def position_row(account: Account, symbol: Symbol, now: int) -> dict[str, Any]:
    """One position that is open."""
    held, entry = account.positions[symbol.name], account.entries[symbol.name]
    mark, leverage = Decimal(symbol.show(symbol.price(now))), account.leverage.get(symbol.name, 20)
    size = str(abs(held))
    return {
        "symbol": symbol.name,
        "marginCoin": symbol.quote,
        "holdSide": "long" if held > 0 else "short",
        "openDelegateSize": "0",
        "marginSize": f"{abs(held) * entry / leverage:.8f}",
        "available": size,
        "locked": "0",
        "total": size,
        "leverage": str(leverage),
        "achievedProfits": "0",
        "openPriceAvg": f"{entry:.8f}",
        "marginMode": "crossed",
        "posMode": "one_way_mode",
        "unrealizedPL": f"{held * (mark - entry):.8f}",
        "liquidationPrice": "0",
        "keepMarginRate": "0.004",
        "markPrice": str(mark),
        "breakEvenPrice": f"{entry:.8f}",
        "totalFee": "0",
        "marginRatio": "0.01",
        "assetMode": "single",
        "autoMargin": "off",
        "cTime": str(now),
        "uTime": str(now),
    }
