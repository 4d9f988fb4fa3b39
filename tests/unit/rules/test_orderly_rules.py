"""Orderly: pools by key, user and address; the Public Info API, whose cost lies in the body and whose headers tell."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.bundled import NOW, charges, plan, told
from tests.support.ends import until

from ratekeeper.ledger.limit import SECOND
from ratekeeper.rules.book import Rulebook
from ratekeeper.rules.call import Outcome, Priority, Request
from ratekeeper.rules.provider import Provider

QUERY = "POST /v1/public/query"
MILLI = SECOND // 1000
POOL = "orderly/query-1m/ip:default"


@pytest.fixture(scope="module")
def orderly() -> Provider:
    """The bundled rules."""
    return Rulebook.load().provider("orderly")


@pytest.mark.parametrize(
    ("line", "cost", "size"),
    [
        ("GET /v1/public/futures", "ip-10-1s", (10, 1)),
        ("GET /v1/public/funding_rate/PERP_BTC_USDC", "ip-30-1s", (30, 1)),
        ("GET /v1/public/system_info", "ip-1-1s", (1, 1)),
        ("GET /v1/tv/kline_history", "ip-5-10s", (5, 10)),
        ("POST /v1/order", "key-10-1s", (10, 1)),
        ("DELETE /v1/order?order_id=1", "key-10-1s", (10, 1)),
        ("GET /v1/order/12", "key-10-1s", (10, 1)),
        ("GET /v1/orderbook/PERP_BTC_USDC", "key-10-1s", (10, 1)),
        ("POST /v1/batch-order", "key-1-1s", (1, 1)),
        ("POST /v1/algo/order", "key-1-1s", (1, 1)),
        ("POST /v1/settle_pnl", "key-1-1s", (1, 1)),
        ("PUT /v1/algo/order", "key-5-1s", (5, 1)),
        ("GET /v1/positions", "user-30-10s", (30, 10)),
        ("GET /v1/position/PERP_BTC_USDC", "user-30-10s", (30, 10)),
        ("GET /v1/funding_fee/history", "user-20-60s", (20, 60)),
        ("GET /v1/client/info", "key-10-60s", (10, 60)),
        ("GET /v1/volume/user/daily", "key-10-60s", (10, 60)),
        ("POST /v1/client/leverages", "user-5-60s", (5, 60)),
        ("GET /v1/client/aggregate/positions", "key-1-60s", (1, 60)),
    ],
)
def test_costs(orderly: Provider, line: str, cost: str, size: tuple[int, int]) -> None:
    """Each endpoint has its pool."""
    assert charges(orderly, line) == {cost: 1}
    limit = orderly.limits[cost]
    assert (limit.capacity, limit.period // SECOND) == size


def test_keys_and_accounts(orderly: Provider) -> None:
    """Two keys of one account have pools of their own, but share those that count per user."""
    headers = [{"orderly-account-id": "a1", "orderly-key": key} for key in ("k1", "k2")]
    for line, pools in (("POST /v1/order", 2), ("GET /v1/positions", 1)):
        assert len({plan(orderly, line, headers=each).charges[0].key for each in headers}) == pools


@pytest.mark.parametrize(
    ("kind", "weight"),
    [
        ("orderbook", 1),
        ("candles", 2),
        ("whaleContext", 3),
        ("topAddresses", 10),
        ("platformPositions", 20),
        ("new", 20),
    ],
)
def test_query(orderly: Provider, kind: str, weight: int) -> None:
    """The field `type` of the body decides; what is not known is reserved at the dearest."""
    assert charges(orderly, QUERY, body={"type": kind}) == {"query-1m": weight}


def test_query_without_weight(orderly: Provider) -> None:
    """Asking for the state of the limit is free; a body that was not read costs the dearest."""
    assert charges(orderly, QUERY, body={"type": "rateLimitStatus"}) == {}
    assert charges(orderly, QUERY) == {"query-1m": 20}


def test_headers(orderly: Provider) -> None:
    """Limit, rest, reset in milliseconds, and what this call cost."""
    found = plan(orderly, QUERY, body={"type": "positions"})
    headers = {
        "x_ratelimit_limit": "1200",
        "x_ratelimit_remaining": "1100",
        "x_ratelimit_reset": str((NOW + 20 * SECOND) // MILLI),
        "x_ratelimit_weight": "5",
    }
    answer = told(orderly, found, 200, {"success": True}, **headers)
    assert (answer.used, answer.actual, answer.learned, answer.blocks) == ({POOL: 100}, {POOL: 5}, {}, ())
    answer = told(orderly, found, 200, {"success": True}, **{**headers, "x_ratelimit_remaining": "0"})
    assert [(b.scope, until(b, NOW)) for b in answer.blocks] == [(POOL, NOW + 20 * SECOND)]
    assert told(orderly, found, 200, **{**headers, "x_ratelimit_limit": "2400"}).learned == {
        "query-1m": (2400, 60 * SECOND)
    }


def test_query_refusal(orderly: Provider) -> None:
    """It says in two ways when to come back: the later one counts."""
    found = plan(orderly, QUERY, body={"type": "candles"})
    body = {"success": False, "code": "RATE_LIMIT_EXCEEDED", "retry_after": (NOW + 9 * SECOND) // MILLI}
    answer = told(orderly, found, 429, body, retry_after="8")
    assert (answer.outcome, answer.full) == (Outcome.THROTTLED, (POOL,))
    assert [(b.scope, until(b, NOW)) for b in answer.blocks] == [(POOL, NOW + 9 * SECOND)]


@pytest.mark.parametrize(
    ("status", "body", "outcome", "full"),
    [
        (429, {"success": False, "code": -1003, "message": "rate limit"}, Outcome.THROTTLED, ["key-10-1s"]),
        (429, "", Outcome.THROTTLED, ["key-10-1s"]),
        (400, {"success": False, "code": -1005}, Outcome.BAD_REQUEST, []),
        (503, "", Outcome.OVERLOADED, []),
    ],
)
def test_refusals(orderly: Provider, status: int, body: Any, outcome: Outcome, full: list[str]) -> None:
    """A refusal is of the endpoint's pool, and lasts to the end of its window."""
    found = told(orderly, plan(orderly, "POST /v1/order"), status, body)
    assert (found.outcome, [key.split("/")[1] for key in found.full]) == (outcome, full)
    assert {block.scope.split("/")[1] for block in found.blocks} == ({"key-10-1s"} if status == 503 else set())


def test_signature(orderly: Provider) -> None:
    """Milliseconds in a header."""
    headers = {"orderly-timestamp": str(NOW // MILLI), "orderly-signature": "s"}
    assert orderly.signed_until(Request("POST", "/v1/order", headers=headers)) == NOW + 30 * SECOND


def test_priorities(orderly: Provider) -> None:
    """Cancels first."""
    lines = ("DELETE /v1/orders", "POST /v1/order/cancel_all_after", "PUT /v1/order", "GET /v1/positions", QUERY)
    found = [plan(orderly, line).priority for line in lines]
    assert found == [Priority.CRITICAL, Priority.CRITICAL, Priority.HIGH, Priority.NORMAL, Priority.LOW]


@pytest.mark.parametrize("host", ["api.orderly.org", "api-evm.orderly.org"])
def test_hosts(host: str) -> None:
    """Both hosts share the ledgers."""
    found = Rulebook.load().for_host(host, "/v1/public/info")
    assert found is not None
    assert found.namespace == "orderly"


@pytest.mark.parametrize(
    ("status", "body"), [(403, {"success": False, "code": -1, "message": "no"}), (403, b""), (418, b"")]
)
def test_a_ban_of_the_address(orderly: Provider, status: int, body: Any) -> None:
    """Statuses that its documentation does not know shut the address, for all routes, longer each time."""
    found = told(orderly, plan(orderly, "GET /v1/positions"), status, body)
    assert found.outcome is Outcome.BANNED
    assert [(block.scope, block.kind, block.wait) for block in found.blocks] == [("orderly/ip:default", "ban", None)]
