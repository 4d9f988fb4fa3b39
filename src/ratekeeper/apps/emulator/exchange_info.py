"""The body of ``exchangeInfo``: the limits in force and the symbols with their filters, so that clients can load markets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from .wording import interval

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .accounting import StrictLimit
    from .market import Symbol

__all__ = ["exchange_info", "rate_limits"]

_SPOT_TYPES = ["LIMIT", "LIMIT_MAKER", "MARKET", "STOP_LOSS", "STOP_LOSS_LIMIT", "TAKE_PROFIT", "TAKE_PROFIT_LIMIT"]
_USDM_TYPES = ["LIMIT", "MARKET", "STOP", "STOP_MARKET", "TAKE_PROFIT", "TAKE_PROFIT_MARKET", "TRAILING_STOP_MARKET"]


def rate_limits(limits: Iterable[StrictLimit]) -> list[dict[str, Any]]:
    """The ``rateLimits`` rows of the limits in force."""
    rows = []
    for limit in limits:
        unit, number = interval(limit.period)
        rows.append({"rateLimitType": limit.declared, "interval": unit, "intervalNum": number, "limit": limit.capacity})
    return rows


def exchange_info(symbols: Iterable[Symbol], limits: Iterable[StrictLimit], *, now: int, futures: bool) -> bytes:
    """The whole body; `now` in milliseconds."""
    body: dict[str, Any] = {
        "timezone": "UTC",
        "serverTime": now,
        "rateLimits": rate_limits(limits),
        "exchangeFilters": [],
    }
    symbols = list(symbols)
    if futures:
        quotes = sorted({symbol.quote for symbol in symbols})
        body["futuresType"] = "U_MARGINED"
        body["assets"] = [{"asset": quote, "marginAvailable": True, "autoAssetExchange": "-10000"} for quote in quotes]
        body["symbols"] = [_usdm(symbol) for symbol in symbols]
    else:
        body["symbols"] = [_spot(symbol) for symbol in symbols]
    return msgspec.json.encode(body)


def _common_filters(symbol: Symbol) -> list[dict[str, Any]]:
    return [
        {
            "filterType": "PRICE_FILTER",
            "minPrice": symbol.tick,
            "maxPrice": "1000000",
            "tickSize": symbol.tick,
        },
        {"filterType": "LOT_SIZE", "minQty": symbol.step, "maxQty": "100000", "stepSize": symbol.step},
        {"filterType": "MARKET_LOT_SIZE", "minQty": symbol.step, "maxQty": "10000", "stepSize": symbol.step},
    ]


def _usdm(symbol: Symbol) -> dict[str, Any]:
    return {
        "symbol": symbol.name,
        "pair": symbol.name,
        "contractType": "PERPETUAL",
        "deliveryDate": 4_133_404_800_000,
        "onboardDate": 1_569_398_400_000,
        "status": "TRADING",
        "maintMarginPercent": "2.5000",
        "requiredMarginPercent": "5.0000",
        "baseAsset": symbol.base,
        "quoteAsset": symbol.quote,
        "marginAsset": symbol.quote,
        "pricePrecision": symbol.price_decimals,
        "quantityPrecision": symbol.quantity_decimals,
        "baseAssetPrecision": 8,
        "quotePrecision": 8,
        "underlyingType": "COIN",
        "underlyingSubType": ["PoW"],
        "triggerProtect": "0.0500",
        "liquidationFee": "0.012500",
        "marketTakeBound": "0.05",
        "maxMoveOrderLimit": 10_000,
        "filters": [
            *_common_filters(symbol),
            {"filterType": "MAX_NUM_ORDERS", "limit": 200},
            {"filterType": "MAX_NUM_ALGO_ORDERS", "limit": 10},
            {"filterType": "MIN_NOTIONAL", "notional": str(symbol.min_notional)},
            {
                "filterType": "PERCENT_PRICE",
                "multiplierUp": "1.0500",
                "multiplierDown": "0.9500",
                "multiplierDecimal": "4",
            },
        ],
        "orderTypes": _USDM_TYPES,
        "timeInForce": ["GTC", "IOC", "FOK", "GTX", "GTD"],
        "permissionSets": ["GRID", "COPY"],
    }


def _spot(symbol: Symbol) -> dict[str, Any]:
    notional = str(symbol.min_notional or "0.0001")
    return {
        "symbol": symbol.name,
        "status": "TRADING",
        "baseAsset": symbol.base,
        "baseAssetPrecision": 8,
        "quoteAsset": symbol.quote,
        "quotePrecision": 8,
        "quoteAssetPrecision": 8,
        "baseCommissionPrecision": 8,
        "quoteCommissionPrecision": 8,
        "orderTypes": _SPOT_TYPES,
        "icebergAllowed": True,
        "ocoAllowed": True,
        "otoAllowed": True,
        "quoteOrderQtyMarketAllowed": True,
        "allowTrailingStop": True,
        "cancelReplaceAllowed": True,
        "amendAllowed": True,
        "isSpotTradingAllowed": True,
        "isMarginTradingAllowed": False,
        "filters": [
            *_common_filters(symbol),
            {"filterType": "ICEBERG_PARTS", "limit": 10},
            {
                "filterType": "PERCENT_PRICE_BY_SIDE",
                "bidMultiplierUp": "5",
                "bidMultiplierDown": "0.2",
                "askMultiplierUp": "5",
                "askMultiplierDown": "0.2",
                "avgPriceMins": 5,
            },
            {
                "filterType": "NOTIONAL",
                "minNotional": notional,
                "applyMinToMarket": True,
                "maxNotional": "9000000",
                "applyMaxToMarket": False,
                "avgPriceMins": 5,
            },
            {"filterType": "MAX_NUM_ORDERS", "maxNumOrders": 200},
            {"filterType": "MAX_NUM_ALGO_ORDERS", "maxNumAlgoOrders": 5},
        ],
        "permissions": [],
        "permissionSets": [["SPOT"]],
        "defaultSelfTradePreventionMode": "EXPIRE_MAKER",
        "allowedSelfTradePreventionModes": ["EXPIRE_TAKER", "EXPIRE_MAKER", "EXPIRE_BOTH"],
    }
