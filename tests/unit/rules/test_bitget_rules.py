"""Bitget: a pool per endpoint and second with a header that tells the rest, and the address's minute with its penalty."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.bundled import NOW, charges, plan, told
from tests.support.ends import until

from ratekeeper.ledger.limit import SECOND
from ratekeeper.rules.book import Rulebook
from ratekeeper.rules.call import Outcome, Priority, Request
from ratekeeper.rules.numbers import Adjustments
from ratekeeper.rules.provider import Provider

PLACE = "POST /api/v2/mix/order/place-order"
TICKERS = "GET /api/v2/mix/market/tickers"
REFUSED = {"code": "429", "msg": "Too Many Requests", "requestTime": NOW // 1_000_000, "data": None}


@pytest.fixture(scope="module")
def bitget() -> Provider:
    """The bundled rules."""
    return Rulebook.load().provider("bitget")


@pytest.mark.parametrize(
    ("line", "cost"),
    [
        (PLACE, "order-1s"),
        ("POST /api/v2/spot/trade/place-order", "order-1s"),
        ("POST /api/v2/spot/trade/batch-orders", "batch-1s"),
        ("POST /api/v2/mix/order/batch-place-order", "batch-1s"),
        ("POST /api/v2/mix/order/cancel-order", "user-10-1s"),
        ("POST /api/v2/mix/order/cancel-all-orders", "user-10-1s"),
        ("POST /api/v2/mix/order/close-positions", "user-1-1s"),
        ("GET /api/v2/spot/trade/orderInfo", "user-20-1s"),
        ("GET /api/v2/spot/account/info", "user-1-1s"),
        ("GET /api/v2/mix/account/accounts", "user-10-1s"),
        ("GET /api/v2/mix/account/sub-account-assets", "user-1-10s"),
        ("GET /api/v2/mix/position/all-position", "user-5-1s"),
        ("GET /api/v2/mix/position/single-position", "user-10-1s"),
        ("POST /api/v2/mix/account/set-leverage", "user-5-1s"),
        (TICKERS, "ip-20-1s"),
        ("GET /api/v2/spot/market/fills", "ip-10-1s"),
        ("GET /api/v2/spot/public/coins", "ip-3-1s"),
        ("GET /api/v2/public/time", "ip-20-1s"),
        ("GET /api/mix/v1/market/ticker", "v1-1s"),
        ("POST /api/spot/v1/trade/orders", "v1-1s"),
    ],
)
def test_costs(bitget: Provider, line: str, cost: str) -> None:
    """Each endpoint has its pool, and all of them count on the address."""
    assert charges(bitget, line) == {"ip-1m": 1, cost: 1}


def test_endpoints_are_apart(bitget: Provider) -> None:
    """Two endpoints of one class do not share, two accounts neither; the address's pool is shared by all."""
    lines = ("GET /api/v2/mix/order/detail", "GET /api/v2/mix/order/fills")
    pairs = [plan(bitget, line, headers={"ACCESS-KEY": key}).charges for line in lines for key in ("k1", "k2")]
    assert len({pair[0].key for pair in pairs}) == 1
    assert len({pair[1].key for pair in pairs}) == 4


def test_v1_is_marked(bitget: Provider) -> None:
    """Numbers of v1 are guesses, and say so."""
    found = bitget.explain(Request("GET", "/api/mix/v1/market/ticker"))
    assert [share.provenance.confidence for share in found.limits if share.name == "v1-1s"] == ["?"]
    assert found.cost.confidence == "?"


def test_rest_is_told_by_a_header_called_used(bitget: Provider) -> None:
    """The value is what remains in this second, whatever the name says."""
    found = plan(bitget, TICKERS)
    key = "bitget/ip-20-1s/ip:default,endpoint:GET/api/v2/mix/market/tickers"
    answer = told(bitget, found, 200, {"code": "00000"}, x_mbx_used_remain_limit="19")
    assert (answer.outcome, answer.used, answer.full, answer.blocks) == (Outcome.OK, {key: 1}, (), ())
    answer = told(bitget, found, 200, {"code": "00000"}, x_mbx_used_remain_limit="0")
    assert (answer.used, answer.full, answer.blocks) == ({key: 20}, (), ())


@pytest.mark.parametrize(
    ("line", "status", "body", "outcome", "full"),
    [
        (TICKERS, 429, REFUSED, Outcome.THROTTLED, ["ip-20-1s"]),
        (PLACE, 429, REFUSED, Outcome.THROTTLED, ["order-1s"]),
        (PLACE, 429, "", Outcome.THROTTLED, ["order-1s"]),
        (PLACE, 200, {"code": 429, "msg": "too many"}, Outcome.THROTTLED, ["order-1s"]),
        (PLACE, 400, {"code": "22035", "msg": "frequent"}, Outcome.THROTTLED, ["order-1s"]),
        ("POST /api/v2/mix/order/cancel-order", 400, {"code": "45129"}, Outcome.THROTTLED, ["user-10-1s"]),
        (PLACE, 400, {"code": "40010", "msg": "Request timed out"}, Outcome.FAILED, []),
        (PLACE, 200, {"code": "45001", "msg": ""}, Outcome.FAILED, []),
        (PLACE, 200, {"code": "40604", "msg": ""}, Outcome.OVERLOADED, []),
        (PLACE, 200, {"code": "1001", "msg": ""}, Outcome.THROTTLED, ["order-1s"]),
        (PLACE, 200, {"code": "50009", "msg": ""}, Outcome.THROTTLED, ["order-1s"]),
        (PLACE, 400, {"code": "45110", "msg": "less than the minimum amount"}, Outcome.BAD_REQUEST, []),
        (PLACE, 400, {"code": "30001"}, Outcome.BAD_REQUEST, []),
        (PLACE, 400, {"code": "30007"}, Outcome.BAD_REQUEST, []),
        (PLACE, 200, {"code": "00000", "data": {"orderId": "429"}}, Outcome.OK, []),
        ("WS-SEND /v2/ws/public", 200, {"event": "error", "code": 30006}, Outcome.THROTTLED, ["ws-messages-1s"]),
        ("WS-SEND /v2/ws/public", 200, {"event": "error", "code": 30007}, Outcome.THROTTLED, ["ws-messages-1s"]),
    ],
)
def test_refusals(bitget: Provider, line: str, status: int, body: Any, outcome: Outcome, full: list[str]) -> None:
    """The string "429" is the endpoint's; 30007 means a limit on a websocket and a wrong header over REST."""
    found = told(bitget, plan(bitget, line), status, body)
    assert (found.outcome, [key.split("/")[1] for key in found.full]) == (outcome, full)
    held = {block.scope.split("/")[1] for block in found.blocks}
    assert held == ({"order-1s"} if outcome in {Outcome.FAILED, Outcome.OVERLOADED} else set())


def test_penalty_box(bitget: Provider) -> None:
    """A refusal of the address shuts it for five minutes."""
    answer = told(bitget, plan(bitget, TICKERS), 429, {"code": "429", "msg": "Too many requests from this IP"})
    assert answer.outcome is Outcome.BANNED
    assert [(b.scope, until(b, NOW), b.kind) for b in answer.blocks] == [
        ("bitget/ip:default", NOW + 300 * SECOND, "ban")
    ]


def test_leaders(bitget: Provider) -> None:
    """Who leads in copy trading has one order a second."""
    leader = Provider(bitget.file, adjustments=Adjustments({"*": "leader"}))
    assert [leader.limits[name].capacity for name in ("order-1s", "batch-1s", "user-10-1s")] == [1, 1, 10]


def test_signature(bitget: Provider) -> None:
    """Milliseconds in a header, good for 30 seconds."""
    headers = {"ACCESS-TIMESTAMP": str(NOW // 1_000_000), "ACCESS-SIGN": "s"}
    assert bitget.signed_until(Request("POST", PLACE.split()[1], headers=headers)) == NOW + 30 * SECOND


def test_priorities(bitget: Provider) -> None:
    """Cancels first, also those of v1."""
    lines = ("POST /api/v2/mix/order/cancel-order", "POST /api/mix/v1/order/cancel-order", PLACE, TICKERS)
    found = [plan(bitget, line).priority for line in lines]
    assert found == [Priority.CRITICAL, Priority.CRITICAL, Priority.HIGH, Priority.LOW]


def test_websockets(bitget: Provider) -> None:
    """Connecting, subscribing and sending have pools of their own."""
    assert charges(bitget, "WS-CONNECT /v2/ws/public") == {"ws-connects-5m": 1, "ws-connections": 1}
    assert charges(bitget, "WS-SUBSCRIBE /v2/ws/public", body={"op": "subscribe", "args": [{}, {}, {}]}) == {
        "ws-subscriptions-1h": 3,
        "ws-channels": 3,
    }
