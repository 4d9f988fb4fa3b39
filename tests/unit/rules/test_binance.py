"""The two bundled Binance files against the tables they were made from."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from tests.support.ends import until

from ratekeeper.ledger.limit import SECOND, Window
from ratekeeper.rules.book import Rulebook
from ratekeeper.rules.call import Answer, Feedback, Outcome, Plan, Priority, Request
from ratekeeper.rules.provider import Provider
from ratekeeper.rules.reading import listed

NOW = 1_795_220_621 * SECOND
MANY = [f"S{i}" for i in range(150)]


@pytest.fixture(scope="module")
def book() -> Rulebook:
    """The bundled rules."""
    return Rulebook.load()


@pytest.fixture
def spot(book: Rulebook) -> Provider:
    """Binance spot."""
    return book.provider("binance-spot")


@pytest.fixture
def usdm(book: Rulebook) -> Provider:
    """Binance USD-M futures."""
    return book.provider("binance-usdm")


def plan(provider: Provider, call: str, **params: Any) -> Plan:
    """The plan of ``METHOD /path``."""
    method, path = call.split()
    return provider.plan(Request(method, path, params))


def costs(provider: Provider, call: str, **params: Any) -> dict[str, int]:
    """Limit -> cost of ``METHOD /path``; raw requests, which every spot call counts, are left out."""
    found = plan(provider, call, **params)
    assert found.route, f"{call} has no route"
    return {c.limit.name: c.cost for c in found.charges if c.limit.name != "requests-5m"}


def weight(cost: int) -> dict[str, int]:
    """A cost of weight only."""
    return {"weight-1m": cost} if cost else {}


def limits(provider: Provider) -> dict[str, tuple[int, float, Window, tuple[str, ...]]]:
    """Name -> (capacity, seconds, window, scope)."""
    return {
        name: (limit.capacity, limit.period / SECOND, limit.window, limit.scope)
        for name, limit in provider.limits.items()
    }


def test_usdm_limits(usdm: Provider) -> None:
    """The pools of USD-M futures."""
    fixed, ip, account = Window.FIXED, ("ip",), ("account",)
    assert limits(usdm) == {
        "weight-1m": (2400, 60, fixed, ip),
        "orders-10s": (300, 10, fixed, account),
        "orders-1m": (1200, 60, fixed, account),
        "funding-5m": (500, 300, fixed, ip),
        "futures-data-5m": (1000, 300, fixed, ip),
        "convert-quotes-1h": (360, 3600, Window.SLIDING, ip),
        "convert-quotes-1d": (500, 86400, Window.SLIDING, ip),
        "ws-messages-1s": (10, 1, Window.SLIDING, ("connection",)),
        "ws-streams": (1024, 0, Window.SLOTS, ("connection",)),
    }


def test_spot_limits(spot: Provider) -> None:
    """The pools of spot and sapi; where sources differ the smaller one, until exchangeInfo tells."""
    fixed, ip, account = Window.FIXED, ("ip",), ("account",)
    assert limits(spot) == {
        "weight-1m": (6000, 60, fixed, ip),
        "orders-10s": (50, 10, fixed, account),
        "orders-1d": (160_000, 86400, fixed, account),
        "requests-5m": (300_000, 300, fixed, ip),
        "connections-5m": (300, 300, fixed, ip),
        "sapi-ip-1m": (12_000, 60, fixed, ("ip", "endpoint")),
        "sapi-uid-1m": (180_000, 60, fixed, ("account", "endpoint")),
        "withdraw-history-ip-1s": (10, 1, Window.SLIDING, ip),
        "withdraw-history-uid-1s": (10, 1, Window.SLIDING, account),
        "ws-messages-1s": (5, 1, Window.SLIDING, ("connection",)),
        "ws-streams": (1024, 0, Window.SLOTS, ("connection",)),
    }


@pytest.mark.parametrize(
    ("call", "params", "cost"),
    [
        ("GET /fapi/v1/ping", {}, 1),
        ("GET /fapi/v1/exchangeInfo", {}, 1),
        ("GET /fapi/v1/openInterest", {}, 1),
        *[("GET /fapi/v1/depth", {"limit": n}, w) for n, w in [(5, 2), (50, 2), (100, 5), (500, 10), (1000, 20)]],
        ("GET /fapi/v1/depth", {}, 10),
        *[
            ("GET /fapi/v1/klines", {"limit": n}, w)
            for n, w in [(99, 1), (100, 2), (499, 2), (500, 5), (1000, 5), (1500, 10)]
        ],
        ("GET /fapi/v1/klines", {}, 5),
        ("GET /fapi/v1/markPriceKlines", {"limit": 1500}, 10),
        ("GET /fapi/v1/trades", {}, 5),
        ("GET /fapi/v1/historicalTrades", {}, 200),
        ("GET /fapi/v1/aggTrades", {}, 20),
        ("GET /fapi/v1/ticker/24hr", {"symbol": "A"}, 1),
        ("GET /fapi/v1/ticker/24hr", {}, 40),
        ("GET /fapi/v1/ticker/price", {"symbol": "A"}, 1),
        ("GET /fapi/v2/ticker/price", {}, 2),
        ("GET /fapi/v1/ticker/bookTicker", {"symbol": "A"}, 2),
        ("GET /fapi/v1/ticker/bookTicker", {}, 5),
        ("GET /fapi/v1/premiumIndex", {"symbol": "A"}, 1),
        ("GET /fapi/v1/premiumIndex", {}, 10),
        ("DELETE /fapi/v1/order", {}, 1),
        ("DELETE /fapi/v1/batchOrders", {}, 1),
        ("DELETE /fapi/v1/allOpenOrders", {}, 1),
        ("POST /fapi/v1/countdownCancelAll", {}, 10),
        ("GET /fapi/v1/order", {}, 1),
        ("GET /fapi/v1/openOrder", {}, 1),
        ("GET /fapi/v1/openOrders", {"symbol": "A"}, 1),
        ("GET /fapi/v1/openOrders", {}, 40),
        ("GET /fapi/v1/allOrders", {}, 5),
        ("GET /fapi/v1/userTrades", {}, 5),
        ("GET /fapi/v2/account", {}, 5),
        ("GET /fapi/v3/balance", {}, 5),
        ("GET /fapi/v2/positionRisk", {}, 5),
        ("GET /fapi/v1/income", {}, 30),
        ("GET /fapi/v1/income/asyn", {}, 1000),
        ("GET /fapi/v1/commissionRate", {}, 20),
        ("GET /fapi/v1/positionSide/dual", {}, 30),
        ("GET /fapi/v1/multiAssetsMargin", {}, 30),
        ("GET /fapi/v1/leverageBracket", {}, 1),
        ("POST /fapi/v1/leverage", {}, 1),
        ("POST /fapi/v1/marginType", {}, 1),
        ("GET /fapi/v1/forceOrders", {"symbol": "A"}, 20),
        ("GET /fapi/v1/forceOrders", {}, 50),
        ("WS-CONNECT /ws-fapi/v1", {}, 5),
    ],
)
def test_usdm_weights(usdm: Provider, call: str, params: dict[str, Any], cost: int) -> None:
    """Weights of USD-M futures; where documentation and measurement differ, the dearer."""
    assert costs(usdm, call, **params) == weight(cost)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("POST /fapi/v1/order", {"orders-10s": 1, "orders-1m": 1}),
        ("PUT /fapi/v1/order", {"orders-10s": 1, "orders-1m": 1}),
        ("POST /fapi/v1/algoOrder", {"orders-10s": 1, "orders-1m": 1}),
        ("POST /fapi/v1/batchOrders", {"weight-1m": 5, "orders-10s": 5, "orders-1m": 1}),
        ("PUT /fapi/v1/batchOrders", {"weight-1m": 5, "orders-10s": 5, "orders-1m": 1}),
        ("GET /fapi/v1/fundingRate", {"funding-5m": 1}),
        ("GET /fapi/v1/fundingInfo", {"funding-5m": 1}),
        ("GET /futures/data/openInterestHist", {"futures-data-5m": 1}),
        ("POST /fapi/v1/convert/getQuote", {"weight-1m": 200, "convert-quotes-1h": 1, "convert-quotes-1d": 1}),
        ("WS-SEND /ws", {"ws-messages-1s": 1}),
        ("WS-CONNECT /ws/btcusdt@trade", {}),
    ],
)
def test_usdm_pools(usdm: Provider, call: str, expected: dict[str, int]) -> None:
    """Calls that spend on other pools than weight."""
    assert costs(usdm, call) == expected


@pytest.mark.parametrize(
    ("call", "params", "cost"),
    [
        ("GET /api/v3/ping", {}, 1),
        ("GET /api/v3/exchangeInfo", {}, 20),
        *[
            ("GET /api/v3/depth", {"limit": n}, w)
            for n, w in [(100, 5), (101, 25), (500, 25), (1000, 50), (5000, 250), (9000, 250)]
        ],
        ("GET /api/v3/depth", {}, 5),
        ("GET /api/v3/trades", {}, 25),
        ("GET /api/v3/historicalTrades", {}, 25),
        ("GET /api/v3/aggTrades", {}, 4),
        ("GET /api/v3/klines", {"limit": 1000}, 2),
        ("GET /api/v3/avgPrice", {}, 2),
        ("GET /api/v3/ticker/price", {"symbol": "A"}, 2),
        ("GET /api/v3/ticker/price", {"symbols": '["A","B"]'}, 4),
        ("GET /api/v3/ticker/bookTicker", {}, 4),
        ("GET /api/v3/ticker/24hr", {"symbol": "A"}, 2),
        ("GET /api/v3/ticker/24hr", {"symbols": MANY[:20]}, 2),
        ("GET /api/v3/ticker/24hr", {"symbols": MANY[:21]}, 40),
        ("GET /api/v3/ticker/24hr", {"symbols": MANY[:100]}, 40),
        ("GET /api/v3/ticker/24hr", {"symbols": MANY}, 80),
        ("GET /api/v3/ticker/24hr", {}, 80),
        ("GET /api/v3/ticker", {"symbols": MANY[:7]}, 28),
        ("GET /api/v3/ticker", {"symbols": MANY}, 200),
        ("GET /api/v3/ticker/tradingDay", {"symbol": "A"}, 4),
        ("GET /api/v3/account", {}, 20),
        ("GET /api/v3/allOrders", {}, 20),
        ("GET /api/v3/order", {}, 4),
        ("GET /api/v3/openOrders", {"symbol": "A"}, 6),
        ("GET /api/v3/openOrders", {}, 80),
        ("GET /api/v3/myTrades", {}, 20),
        ("GET /api/v3/myTrades", {"orderId": 1}, 5),
        ("GET /api/v3/rateLimit/order", {}, 40),
        ("GET /api/v3/account/commission", {}, 20),
        ("DELETE /api/v3/order", {}, 1),
        ("DELETE /api/v3/openOrders", {}, 1),
        ("PUT /api/v3/order/amend/keepPriority", {}, 4),
        ("POST /api/v3/order/test", {}, 1),
        ("POST /api/v3/order/test", {"computeCommissionRates": "true"}, 20),
        ("POST /api/v3/order/test", {"computeCommissionRates": False}, 1),
    ],
)
def test_spot_weights(spot: Provider, call: str, params: dict[str, Any], cost: int) -> None:
    """Weights of spot."""
    assert costs(spot, call, **params) == weight(cost)


@pytest.mark.parametrize(
    ("path", "orders"),
    [
        ("order", 1),
        ("sor/order", 1),
        ("order/cancelReplace", 1),
        ("orderList/oco", 2),
        ("orderList/oto", 2),
        ("orderList/opo", 2),
        ("orderList/otoco", 3),
        ("orderList/opoco", 3),
    ],
)
def test_spot_orders(spot: Provider, path: str, orders: int) -> None:
    """Orders count on both order windows; their weight is given back when they succeed, and kept when they fail."""
    found = plan(spot, f"POST /api/v3/{path}")
    spent = {"requests-5m": 1, "weight-1m": 1, "orders-10s": orders, "orders-1d": orders}
    assert {c.limit.name: c.cost for c in found.charges} == spent
    assert spot.feedback(found, Answer(200, {}), now=NOW).actual == {"binance-spot/weight-1m/ip:default": 0}
    assert spot.feedback(found, Answer(400, {}), now=NOW).actual == {}


def test_sapi(spot: Provider) -> None:
    """Every sapi endpoint has pools of its own, with headers of their own."""
    found = plan(spot, "GET /sapi/v1/anything/new")
    keys = {c.limit.name: c.key for c in found.charges}
    assert keys["sapi-ip-1m"] == "binance-spot/sapi-ip-1m/ip:default,endpoint:GET/sapi/v1/anything/new"
    told = spot.feedback(found, Answer(200, {"x-sapi-used-ip-weight-1m": "7"}), now=NOW)
    assert told.used == {keys["sapi-ip-1m"]: 7}


HISTORY = ("withdraw-history-ip-1s", "withdraw-history-uid-1s")


@pytest.mark.parametrize(
    ("call", "cost", "priority"),
    [
        ("POST /sapi/v1/margin/order/oco", {"sapi-uid-1m": 6}, Priority.HIGH),
        ("DELETE /sapi/v1/margin/openOrders", {"sapi-ip-1m": 1, "sapi-uid-1m": 15}, Priority.CRITICAL),
        ("GET /sapi/v1/margin/allOrders", {"sapi-ip-1m": 200}, Priority.NORMAL),
        ("GET /sapi/v1/margin/crossMarginData", {"sapi-ip-1m": 5}, Priority.NORMAL),
        ("POST /sapi/v1/margin/borrow-repay", {"sapi-uid-1m": 3000}, Priority.NORMAL),
        ("POST /sapi/v1/capital/withdraw/apply", {"sapi-uid-1m": 600}, Priority.NORMAL),
        (
            "GET /sapi/v1/capital/withdraw/history",
            {"withdraw-history-ip-1s": 1, "withdraw-history-uid-1s": 1},
            Priority.NORMAL,
        ),
        ("POST /sapi/v1/asset/transfer", {"sapi-uid-1m": 900}, Priority.NORMAL),
    ],
)
def test_margin_and_withdrawals(spot: Provider, call: str, cost: dict[str, int], priority: Priority) -> None:
    """What moves money on sapi: the pool and the weight of each, and no repeat of what may have been done."""
    found = plan(spot, call)
    spent = {charge.limit.name: charge.cost for charge in found.charges}
    assert (spent, found.priority) == ({"requests-5m": 1, **cost}, priority)
    method, _, path = call.partition(" ")
    repeatable = spot.handling.safe(Request(method, path), found)
    assert repeatable == (method != "POST")


def test_raw_requests(spot: Provider) -> None:
    """Every spot HTTP call is one raw request as well, a websocket message is none."""
    routes = [match for rule in spot.file.routes for match in listed(rule.match)]
    for match in routes:
        method, path = match.split()
        names = [c.limit.name for c in spot.plan(Request(method, path)).charges]
        assert ("requests-5m" in names) != method.startswith("WS")


@pytest.mark.parametrize("name", ["binance-spot", "binance-usdm"])
def test_every_route_is_reached_and_fits(book: Rulebook, name: str) -> None:
    """No route is hidden by another, none costs more than its limits hold, and classes suit methods."""
    provider = book.provider(name)
    for rule in provider.file.routes:
        for match in listed(rule.match):
            method, path = match.split()
            found = provider.plan(Request(method, path.replace("*", "x")))
            assert found.route == match
            assert all(charge.cost <= charge.limit.usable for charge in found.charges)
            assert (rule.class_ == "cancel") <= (method == "DELETE" or "Cancel" in path)
            assert (found.priority is Priority.CRITICAL) == (rule.class_ == "cancel")


@pytest.mark.parametrize("name", ["binance-spot", "binance-usdm"])
def test_every_number_has_a_source(book: Rulebook, name: str) -> None:
    """Each limit and route is explained with source, date and confidence."""
    provider = book.provider(name)
    calls = [Request(*match.split()) for rule in provider.file.routes for match in listed(rule.match)]
    for call in [*calls, Request("GET", "/not/known")]:
        found = provider.explain(call)
        for origin in [found.cost, *(share.provenance for share in found.limits)]:
            assert origin.source
            assert origin.date
            assert origin.confidence
            assert origin.sources[0].read == origin.date


def exchange_info(*rows: tuple[str, str, int, int]) -> bytes:
    """An exchangeInfo body with these rate limits and much else."""
    keys = ("rateLimitType", "interval", "intervalNum", "limit")
    body = {
        "timezone": "UTC",
        "serverTime": 1795220621250,
        "rateLimits": [dict(zip(keys, row, strict=True)) for row in rows],
    }
    return msgspec.json.encode({**body, "symbols": [{"symbol": f"S{i}", "filters": [{}] * 5} for i in range(50)]})


def test_learned_from_exchange_info(spot: Provider, usdm: Provider) -> None:
    """exchangeInfo states limits and the clock; afterwards the headers' names follow the intervals in force."""
    assert usdm.learn_route == ("GET", "/fapi/v1/exchangeInfo")
    body = exchange_info(
        ("REQUEST_WEIGHT", "SECOND", 5, 200), ("ORDERS", "SECOND", 1, 30), ("ORDERS", "SECOND", 5, 100)
    )
    told = usdm.feedback(plan(usdm, "GET /fapi/v1/exchangeInfo"), Answer(200, {}, body), now=NOW)
    assert told.learned == {
        "weight-1m": (200, 5 * SECOND),
        "orders-10s": (30, SECOND),
        "orders-1m": (100, 5 * SECOND),
    }
    assert told.server_time == (1_795_220_621_250_000_000, 1_795_220_621_251_000_000)
    new = usdm.with_learned(told.learned)
    answer = Answer(200, {"x-mbx-used-weight-5s": "5", "x-mbx-order-count-1s": "5", "x-mbx-order-count-5s": "6"})
    assert sorted(new.feedback(plan(new, "POST /fapi/v1/batchOrders"), answer, now=NOW).used.values()) == [5, 5, 6]
    body = exchange_info(
        ("REQUEST_WEIGHT", "MINUTE", 1, 6000), ("ORDERS", "SECOND", 10, 100),
        ("ORDERS", "DAY", 1, 200000), ("RAW_REQUESTS", "MINUTE", 5, 61000),
    )  # fmt: skip
    told = spot.feedback(plan(spot, "GET /api/v3/exchangeInfo"), Answer(200, {}, body), now=NOW)
    assert {name: capacity for name, (capacity, _) in told.learned.items()} == {
        "weight-1m": 6000,
        "orders-10s": 100,
        "orders-1d": 200000,
        "requests-5m": 61000,
    }


def refused(provider: Provider, call: str, status: int, text: str, **headers: str) -> Feedback:
    """Feedback to a refusal of one of the two."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return provider.feedback(plan(provider, call), Answer(status, names, text.encode()), now=NOW)


@pytest.mark.parametrize(
    ("name", "call"), [("binance-usdm", "GET /fapi/v1/klines"), ("binance-spot", "GET /api/v3/klines")]
)
def test_bans_and_throttles(book: Rulebook, name: str, call: str) -> None:
    """429 fills the named pool, 418 shuts the address until the stated instant, in whichever words it is stated."""
    provider, ip = book.provider(name), f"{name}/ip:default"
    weights = f"{name}/weight-1m/ip:default"
    words = '{"code":-1003,"msg":"Too much request weight used; current limit is 2400 request weight per 1 MINUTE."}'
    told = refused(provider, call, 429, words)
    assert (told.outcome, told.full, told.blocks) == (Outcome.THROTTLED, (weights,), ())
    told = refused(provider, call, 429, words, retry_after="13")
    assert [(b.scope, until(b, NOW), b.kind) for b in told.blocks] == [(weights, NOW + 13 * SECOND, "throttle")]
    words = '{"code":-1003,"msg":"Way too many requests; IP(192.0.2.7) banned until 1795220741000. Please use the websocket"}'
    for status, more in [(418, {}), (418, {"retry_after": "120"}), (429, {}), (403, {})]:
        told = refused(provider, call, status, words, **more)
        assert told.outcome is Outcome.BANNED
        assert [(b.scope, until(b, NOW), b.kind) for b in told.blocks] == [(ip, NOW + 120 * SECOND, "ban")]
    assert [until(b, NOW) for b in refused(provider, call, 418, "").blocks] == [0]
    assert [provider.ban_length(earlier) // SECOND for earlier in (0, 1, 2, 99)] == [120, 240, 480, 3 * 86_400]


def test_order_refusal(usdm: Provider) -> None:
    """-1015 names the account's orders and the window; the weight pool is left alone."""
    words = '{"code":-1015,"msg":"Too many new orders; current limit is 300 orders per 10 SECOND."}'
    assert refused(usdm, "POST /fapi/v1/order", 429, words).full == ("binance-usdm/orders-10s/account:anonymous",)
    words = words.replace("300 orders per 10 SECOND", "1200 orders per MINUTE")
    assert refused(usdm, "POST /fapi/v1/order", 429, words).full == ("binance-usdm/orders-1m/account:anonymous",)


def test_raw_request_refusal(spot: Provider) -> None:
    """-1003 about requests names the raw pool, not the weight."""
    words = '{"code":-1003,"msg":"Too many requests; current limit is 61000 raw requests per 5 MINUTE."}'
    assert refused(spot, "GET /api/v3/klines", 429, words).full == ("binance-spot/requests-5m/ip:default",)


@pytest.mark.parametrize(
    ("status", "text", "outcome", "charged"),
    [
        (503, '{"code":-1008,"msg":"Server is currently overloaded"}', "overloaded", False),
        (503, "Service Unavailable.", "overloaded", False),
        (503, '{"code":-1000,"msg":"Unknown error, please check your request"}', "overloaded", True),
        (400, '{"code":-1121,"msg":"Invalid symbol."}', "bad request", True),
        (500, "", "failed", True),
        (403, "<html>denied</html>", "banned", True),
        (403, '{"code":-2015,"msg":"Invalid API-key"}', "bad request", True),
    ],
)
def test_other_errors(usdm: Provider, status: int, text: str, outcome: str, charged: bool) -> None:
    """Overload is no quota and partly not counted; bad requests stay charged; the firewall holds the address a little."""
    told = refused(usdm, "GET /fapi/v1/klines", status, text)
    assert told.outcome == outcome
    assert (told.actual == {}) == charged
    assert told.full == ()


def test_unreliable_headers(usdm: Provider) -> None:
    """The weight header of two endpoints is declared unreliable and not read."""
    for call in ("GET /fapi/v1/ticker/bookTicker", "GET /fapi/v2/ticker/price"):
        told = usdm.feedback(plan(usdm, call), Answer(200, {"x-mbx-used-weight-1m": "1"}), now=NOW)
        assert told.used == {}
