"""Binance COIN-M: weights per address, orders per account, limits read from exchangeInfo."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.bundled import NOW, charges, plan, told
from tests.support.ends import until

from ratekeeper.ledger.limit import SECOND
from ratekeeper.rules.book import Rulebook
from ratekeeper.rules.call import Outcome
from ratekeeper.rules.provider import Provider

WEIGHT = "binance-coinm/weight-1m/ip:default"
ORDERS = "binance-coinm/orders-1m/account:anonymous"


@pytest.fixture(scope="module")
def coinm() -> Provider:
    """The bundled rules."""
    return Rulebook.load().provider("binance-coinm")


@pytest.mark.parametrize(
    ("line", "cost"),
    [
        ("GET /dapi/v1/ping", 1),
        ("GET /dapi/v1/depth?limit=50", 2),
        ("GET /dapi/v1/depth?limit=1000", 20),
        ("GET /dapi/v1/depth", 10),
        ("GET /dapi/v1/klines?limit=499", 2),
        ("GET /dapi/v1/klines?limit=1500", 10),
        ("GET /dapi/v1/ticker/24hr", 40),
        ("GET /dapi/v1/ticker/24hr?symbol=BTCUSD_PERP", 1),
        ("GET /dapi/v1/premiumIndex?symbol=BTCUSD_PERP", 10),
        ("GET /dapi/v1/account", 5),
        ("GET /dapi/v1/balance", 1),
        ("GET /dapi/v1/income", 20),
        ("GET /dapi/v1/allOrders?symbol=BTCUSD_PERP", 20),
        ("GET /dapi/v1/userTrades?pair=BTCUSD", 40),
        ("DELETE /dapi/v1/order", 1),
        ("GET /futures/data/basis", 1),
    ],
)
def test_weights(coinm: Provider, line: str, cost: int) -> None:
    """Weights of the address."""
    assert charges(coinm, line) == {"weight-1m": cost}


def test_orders(coinm: Provider) -> None:
    """An order has no weight; a batch is reserved as the most it may hold."""
    assert charges(coinm, "POST /dapi/v1/order") == {"orders-1m": 1}
    assert charges(coinm, "POST /dapi/v1/batchOrders") == {"weight-1m": 5, "orders-1m": 5}


def test_headers(coinm: Provider) -> None:
    """Both counters are read."""
    names = {"x_mbx_used_weight_1m": "17", "x_mbx_order_count_1m": "4"}
    found = told(coinm, plan(coinm, "POST /dapi/v1/batchOrders"), 200, [], **names)
    assert found.used == {WEIGHT: 17, ORDERS: 4}


def test_limits_are_read(coinm: Provider) -> None:
    """exchangeInfo states limits and time, and needs no key."""
    assert coinm.learn_route == ("GET", "/dapi/v1/exchangeInfo")
    rows = [
        {"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1, "limit": 6000},
        {"rateLimitType": "ORDERS", "interval": "MINUTE", "intervalNum": 1, "limit": 6000},
    ]
    body = {"rateLimits": rows, "serverTime": NOW // 1_000_000}
    found = told(coinm, plan(coinm, "GET /dapi/v1/exchangeInfo"), 200, body)
    assert found.learned == {"weight-1m": (6000, 60 * SECOND), "orders-1m": (6000, 60 * SECOND)}
    assert found.server_time == (NOW, NOW + SECOND // 1000)


@pytest.mark.parametrize(
    ("status", "body", "outcome", "full", "ends"),
    [
        (429, {"code": -1003, "msg": "Too many requests; limit is 2400 per 1 MINUTE."}, Outcome.THROTTLED, (WEIGHT,), []),
        (429, {"code": -1015, "msg": "Too many new orders; limit is 1200 per 1 MINUTE."}, Outcome.THROTTLED, (ORDERS,), []),
        (418, {"code": -1003, "msg": "banned until 1795220921000"}, Outcome.BANNED, (), [NOW + 300 * SECOND]),
        (418, "", Outcome.BANNED, (), [0]),
        (503, {"code": -1008, "msg": "overloaded"}, Outcome.OVERLOADED, (), []),
        (400, {"code": -1121, "msg": "Invalid symbol."}, Outcome.BAD_REQUEST, (), []),
    ],
)  # fmt: skip
def test_refusals(
    coinm: Provider, status: int, body: Any, outcome: Outcome, full: tuple[str, ...], ends: list[int]
) -> None:
    """As on USD-M."""
    found = told(coinm, plan(coinm, "POST /dapi/v1/batchOrders"), status, body)
    assert (found.outcome, found.full, [until(b, NOW) for b in found.blocks]) == (outcome, full, ends)
    if outcome is Outcome.OVERLOADED:
        assert found.actual == {WEIGHT: 0, ORDERS: 0}
