"""KuCoin against the tables that its two files were made from."""

from __future__ import annotations

import pytest
from tests.support.bundled import NOW, charges, plan, told
from tests.support.ends import until

from ratekeeper.ledger.limit import SECOND, Window
from ratekeeper.rules.book import Rulebook
from ratekeeper.rules.call import Outcome, Priority
from ratekeeper.rules.provider import Provider


@pytest.fixture(scope="module")
def book() -> Rulebook:
    """The bundled rules."""
    return Rulebook.load()


@pytest.fixture
def spot(book: Rulebook) -> Provider:
    """KuCoin spot."""
    return book.provider("kucoin")


@pytest.fixture
def futures(book: Rulebook) -> Provider:
    """KuCoin futures."""
    return book.provider("kucoin-futures")


def test_windows_begin_with_the_first_request(spot: Provider, futures: Provider) -> None:
    """Every pool has a window of 30 s that its first request opens; the address has a ceiling of its own."""
    for provider in (spot, futures):
        for limit in provider.limits.values():
            if limit.name != "address-10s":
                assert (limit.window, limit.period) == (Window.FIRST, 30 * SECOND)
        ceiling = provider.limits["address-10s"]
        assert (ceiling.capacity, ceiling.period, ceiling.scope) == (500, 10 * SECOND, ("ip",))
    assert {name: limit.capacity for name, limit in spot.limits.items()} == {
        "address-10s": 500,
        "public-30s": 2000,
        "spot-30s": 4000,
        "management-30s": 2000,
        "unified-30s": 2000,
        "earn-30s": 2000,
        "broker-30s": 2000,
    }
    assert {name: limit.capacity for name, limit in futures.limits.items()} == {
        "address-10s": 500,
        "public-30s": 2000,
        "futures-30s": 2000,
    }


@pytest.mark.parametrize(
    ("line", "cost"),
    [
        ("GET /api/v1/market/allTickers", {"public-30s": 15}),
        ("GET /api/v1/market/orderbook/level1?symbol=BTC-USDT", {"public-30s": 2}),
        ("GET /api/v1/market/orderbook/level2_20?symbol=BTC-USDT", {"public-30s": 2}),
        ("GET /api/v2/symbols", {"public-30s": 4}),
        ("POST /api/v1/bullet-public", {"public-30s": 10}),
        ("GET /api/v3/market/orderbook/level2?symbol=BTC-USDT", {"spot-30s": 3}),
        ("POST /api/v1/hf/orders", {"spot-30s": 1}),
        ("POST /api/v1/orders", {"spot-30s": 2}),
        ("DELETE /api/v1/hf/orders/1", {"spot-30s": 1}),
        ("DELETE /api/v1/hf/orders/cancelAll", {"spot-30s": 30}),
        ("GET /api/v1/fills", {"spot-30s": 10}),
        ("GET /api/v1/accounts", {"management-30s": 5}),
        ("GET /api/v2/user-info", {"management-30s": 20}),
        ("POST /api/ua/v1/classic/order/place", {"unified-30s": 1}),
    ],
)
def test_spot_costs(spot: Provider, line: str, cost: dict[str, int]) -> None:
    """Costs as ccxt's table has them; those of the unified account halved, as their pool is."""
    assert charges(spot, line) == {"address-10s": 1, **cost}


@pytest.mark.parametrize(
    ("line", "cost"),
    [
        ("GET /api/v1/contracts/active", {"public-30s": 3}),
        ("GET /api/v1/level2/snapshot?symbol=XBTUSDTM", {"public-30s": 3}),
        ("POST /api/v1/orders", {"futures-30s": 2}),
        ("POST /api/v1/orders/multi", {"futures-30s": 3}),
        ("DELETE /api/v1/orders/1", {"futures-30s": 1}),
        ("GET /api/v1/positions", {"futures-30s": 2}),
        ("GET /api/v1/fills", {"futures-30s": 10}),
    ],
)
def test_futures_costs(futures: Provider, line: str, cost: dict[str, int]) -> None:
    """The same path costs otherwise on the futures host."""
    assert charges(futures, line) == {"address-10s": 1, **cost}


def test_hosts_tell_them_apart(book: Rulebook) -> None:
    """Which file is meant is told by the host."""
    names = [book.for_host(host, "/api/v1/orders") for host in ("api.kucoin.com", "api-futures.kucoin.com")]
    assert [provider.name for provider in names if provider] == ["kucoin", "kucoin-futures"]


def test_cancels_are_critical(spot: Provider, futures: Provider) -> None:
    """Cancels go first, deleted or posted; a recalled transfer is none."""
    for line in ("DELETE /api/v1/hf/orders/1", "POST /api/ua/v1/unified/order/cancel-all"):
        assert plan(spot, line).priority is Priority.CRITICAL
    assert plan(futures, "DELETE /api/v1/orders/multi-cancel").priority is Priority.CRITICAL
    assert plan(futures, "DELETE /api/v1/cancel/transfer-out").priority is Priority.NORMAL


def test_headers_state_the_pool(spot: Provider) -> None:
    """Size, rest and a countdown in milliseconds: the size is learned, the rest is turned into what is used."""
    found = plan(spot, "POST /api/v1/hf/orders")
    key = next(charge.key for charge in found.charges if charge.limit.name == "spot-30s")
    names = {"gw_ratelimit_limit": "10000", "gw_ratelimit_remaining": "9990", "gw_ratelimit_reset": "12000"}
    answer = told(spot, found, 200, {"code": "200000", "data": {}}, **names)
    assert answer.outcome is Outcome.OK
    assert answer.learned == {"spot-30s/account:anonymous": (10000, 30 * SECOND)}
    assert answer.used == {key: 10}
    assert answer.blocks == ()


@pytest.mark.parametrize("status", [200, 429])
def test_refusals(spot: Provider, status: int) -> None:
    """429000 names no pool: the one that the call spends is full, until the countdown ends."""
    found = plan(spot, "POST /api/v1/hf/orders")
    key = next(charge.key for charge in found.charges if charge.limit.name == "spot-30s")
    body = {"code": "429000", "msg": "Too many requests. System-level rate limit exceeded."}
    answer = told(spot, found, status, body, gw_ratelimit_reset="7000")
    assert (answer.outcome, answer.full) == (Outcome.THROTTLED, (key,))
    assert [(b.scope, until(b, NOW)) for b in answer.blocks] == [(key, NOW + 7 * SECOND)]
    answer = told(spot, found, status, body)
    assert (answer.full, answer.blocks) == ((key,), ())


def test_other_errors(futures: Provider) -> None:
    """Other codes are the caller's, and no limit is touched."""
    found = plan(futures, "POST /api/v1/orders")
    for status, outcome in [(200, Outcome.BAD_REQUEST), (400, Outcome.BAD_REQUEST)]:
        answer = told(futures, found, status, {"code": "300003", "msg": "no"})
        assert (answer.outcome, answer.full) == (outcome, ())


def test_clock(spot: Provider) -> None:
    """The server's time in milliseconds."""
    found = told(spot, plan(spot, "GET /api/v1/timestamp"), 200, {"code": "200000", "data": 1795220621250})
    assert found.server_time == (NOW + SECOND // 4, NOW + SECOND // 4 + SECOND // 1000)
