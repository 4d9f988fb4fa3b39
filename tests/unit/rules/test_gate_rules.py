"""Gate v4 against the tables that its file was made from."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.bundled import NOW, charges, plan, told
from tests.support.ends import until

from ratekeeper.ledger.limit import SECOND, Window
from ratekeeper.rules.book import Rulebook
from ratekeeper.rules.call import Outcome, Priority
from ratekeeper.rules.provider import Provider


@pytest.fixture(scope="module")
def provider() -> Provider:
    """Gate."""
    return Rulebook.load().provider("gate")


def test_limits(provider: Provider) -> None:
    """Pools of endpoints, of markets and of users; the algorithm is not stated, so all of them slide."""
    assert {
        name: (limit.capacity, limit.period // SECOND, limit.scope)
        for name, limit in provider.limits.items()
        if limit.window is Window.SLIDING
    } == {
        "public-10s": (200, 10, ("ip", "endpoint")),
        "private-10s": (200, 10, ("account", "endpoint")),
        "spot-orders-1s": (10, 1, ("account", "market")),
        "spot-cancels-1s": (200, 1, ("account",)),
        "futures-orders-1s": (100, 1, ("account",)),
        "futures-cancels-1s": (200, 1, ("account",)),
        "withdrawals-3s": (1, 3, ("account",)),
        "wallet-10s": (80, 10, ("account", "endpoint")),
        "slow-10s": (150, 10, ("account", "endpoint")),
    }


@pytest.mark.parametrize(
    ("line", "cost"),
    [
        ("GET /api/v4/spot/tickers", {"public-10s": 1}),
        ("GET /api/v4/spot/order_book?currency_pair=BTC_USDT", {"public-10s": 1}),
        ("GET /api/v4/futures/usdt/contracts/BTC_USDT", {"public-10s": 1}),
        ("GET /api/v4/spot/accounts", {"private-10s": 1}),
        ("GET /api/v4/futures/usdt/positions", {"private-10s": 1}),
        ("GET /api/v4/unified/accounts", {"slow-10s": 1}),
        ("POST /api/v4/unified/loans", {"slow-10s": 10}),
        ("GET /api/v4/wallet/total_balance", {"wallet-10s": 1}),
        ("POST /api/v4/withdrawals", {"withdrawals-3s": 1}),
        ("POST /api/v4/spot/orders", {"spot-orders-1s": 1}),
        ("PATCH /api/v4/spot/orders/1?currency_pair=BTC_USDT", {"spot-orders-1s": 1}),
        ("DELETE /api/v4/spot/orders/1", {"spot-cancels-1s": 1}),
        ("POST /api/v4/futures/usdt/orders", {"futures-orders-1s": 1}),
        ("PUT /api/v4/futures/usdt/orders/1", {"futures-orders-1s": 1}),
        ("DELETE /api/v4/futures/usdt/orders/1", {"futures-cancels-1s": 1}),
        ("DELETE /api/v4/spot/price_orders/1", {"private-10s": 1}),
    ],
)
def test_costs(provider: Provider, line: str, cost: dict[str, int]) -> None:
    """Placing and amending share a pool, cancels have their own."""
    assert charges(provider, line) == cost


@pytest.mark.parametrize(
    ("line", "body", "cost"),
    [
        ("POST /api/v4/futures/usdt/batch_orders", [{}] * 4, {"futures-orders-1s": 4}),
        ("POST /api/v4/spot/cancel_batch_orders", [{}] * 4, {"spot-cancels-1s": 4}),
        ("POST /api/v4/futures/usdt/batch_cancel_orders", ["1", "2"], {"futures-cancels-1s": 2}),
    ],
)
def test_batches(provider: Provider, line: str, body: Any, cost: dict[str, int]) -> None:
    """A batch counts its orders."""
    assert charges(provider, line, body=body) == cost


def test_each_market_has_its_own_orders(provider: Provider) -> None:
    """The market is named by the body when placing and by the query when amending; both spend on one ledger."""
    line = "POST /api/v4/spot/orders"
    keys = [plan(provider, line, body={"currency_pair": pair}).charges[0].key for pair in ("BTC_USDT", "ETH_USDT")]
    keys.append(plan(provider, "PATCH /api/v4/spot/orders/1?currency_pair=BTC_USDT").charges[0].key)
    assert keys[0] == keys[2] == "gate/spot-orders-1s/account:anonymous,market:BTC_USDT"
    assert keys[1] == "gate/spot-orders-1s/account:anonymous,market:ETH_USDT"


def test_a_batch_over_two_markets(provider: Provider) -> None:
    """Each market is charged for no less than its own orders."""
    body = [{"currency_pair": pair} for pair in ("BTC_USDT", "BTC_USDT", "ETH_USDT")]
    found = plan(provider, "POST /api/v4/spot/batch_orders", body=body)
    spent = {charge.key.rpartition(":")[2]: charge.cost for charge in found.charges}
    assert spent["BTC_USDT"] >= 2
    assert spent["ETH_USDT"] >= 1


def test_an_order_number_makes_no_endpoint(provider: Provider) -> None:
    """Paths that differ by a number or a contract only share the pool of their template."""
    lines = [f"GET /api/v4/futures/usdt/orders/{n}" for n in (1, 2)]
    lines += [f"GET /api/v4/spot/orders/{n}" for n in (1, 2)]
    keys = [plan(provider, line).charges[0].key for line in lines]
    assert keys[0] == keys[1]
    assert keys[2] == keys[3]
    assert keys[0] != keys[2]


def test_each_endpoint_has_its_own_pool(provider: Provider) -> None:
    """Two endpoints do not share, whatever their parameters."""
    keys = {plan(provider, f"GET /api/v4/futures/usdt/{name}").charges[0].key for name in ("tickers", "contracts")}
    assert len(keys) == 2


def test_cancels_are_critical(provider: Provider) -> None:
    """Also those that are posted."""
    for line in ("POST /api/v4/spot/cancel_batch_orders", "POST /api/v4/futures/usdt/countdown_cancel_all"):
        assert plan(provider, line).priority is Priority.CRITICAL


def headers(remain: int, *, limit: int = 200, reset: int = NOW // 1_000_000) -> dict[str, str]:
    """The usage headers of an answer."""
    return {
        "x_gate_ratelimit_requests_remain": str(remain),
        "x_gate_ratelimit_limit": str(limit),
        "x_gate_ratelimit_reset_timestamp": str(reset),
    }


def test_usage_headers(provider: Provider) -> None:
    """What remains is turned into what is used; a reset of "now" says nothing, one ahead holds an empty pool."""
    found = plan(provider, "GET /api/v4/spot/tickers")
    key = found.charges[0].key
    answer = told(provider, found, 200, **headers(150))
    assert (answer.used, answer.full, answer.blocks, answer.learned) == ({key: 50}, (), (), {})
    answer = told(provider, found, 200, **headers(0, reset=NOW // 1_000_000 + 4000))
    assert answer.used == {key: 200}
    assert [(b.scope, until(b, NOW)) for b in answer.blocks] == [(key, NOW + 4 * SECOND)]


def test_size_is_learned_for_one_pool(provider: Provider) -> None:
    """One endpoint's size is not taken for that of all others."""
    answer = told(provider, plan(provider, "GET /api/v4/spot/tickers"), 200, **headers(70, limit=80))
    assert set(answer.used.values()) == {10}
    known = provider.with_learned(answer.learned)
    sizes = [plan(known, f"GET /api/v4/spot/{name}").charges[0].limit.capacity for name in ("tickers", "trades")]
    assert sizes == [80, 200]


@pytest.mark.parametrize(("status", "label"), [(429, "TOO_MANY_REQUESTS"), (400, "TOO_FAST")])
def test_refusals(provider: Provider, status: int, label: str) -> None:
    """A refusal names no pool: the one that the call spends is full, until the stated reset."""
    found = plan(provider, "POST /api/v4/futures/usdt/orders")
    key = found.charges[0].key
    answer = told(provider, found, status, {"label": label, "message": "Request Rate Limit Exceeded"})
    assert (answer.outcome, answer.full) == (Outcome.THROTTLED, (key,))
    reset = NOW // 1_000_000 + 2500
    answer = told(provider, found, status, {"label": label}, x_gate_ratelimit_reset_timestamp=str(reset))
    assert [(b.scope, until(b, NOW)) for b in answer.blocks] == [(key, NOW + 2500 * SECOND // 1000)]


def test_other_errors(provider: Provider) -> None:
    """Other labels are the caller's."""
    answer = told(provider, plan(provider, "POST /api/v4/spot/orders"), 400, {"label": "BALANCE_NOT_ENOUGH"})
    assert (answer.outcome, answer.full) == (Outcome.BAD_REQUEST, ())
