"""Bybit v5: pools by user and second whose headers tell, a category that decides, the penalty box of the address."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.bundled import NOW, charges, plan, told
from tests.support.ends import until

from ratekeeper.ledger.limit import SECOND
from ratekeeper.rules.book import Rulebook
from ratekeeper.rules.call import Outcome, Priority, Request
from ratekeeper.rules.provider import Provider

CREATE = "POST /v5/order/create"
LINEAR = {"category": "linear", "symbol": "BTCUSDT"}
MILLI = SECOND // 1000


@pytest.fixture(scope="module")
def bybit() -> Provider:
    """The bundled rules."""
    return Rulebook.load().provider("bybit")


@pytest.mark.parametrize(
    ("line", "body", "cost"),
    [
        (CREATE, {"category": "spot"}, {"create-spot-1s": 1}),
        (CREATE, LINEAR, {"create-1s": 1}),
        (CREATE, None, {"create-1s": 1}),
        ("POST /v5/order/amend", LINEAR, {"amend-1s": 1}),
        ("POST /v5/order/cancel", {"category": "spot"}, {"cancel-spot-1s": 1}),
        ("POST /v5/order/cancel", LINEAR, {"cancel-1s": 1}),
        ("POST /v5/order/create-batch", {"category": "linear", "request": [LINEAR] * 4}, {"batch-1s": 4}),
        ("GET /v5/order/realtime?category=linear", None, {"user-50-1s": 1}),
        ("GET /v5/position/list?category=linear", None, {"user-10-1s": 1}),
        ("GET /v5/account/wallet-balance", None, {"user-50-1s": 1}),
        ("GET /v5/market/kline?symbol=BTCUSDT", None, {}),
        ("GET /v5/market/time", None, {}),
    ],
)
def test_costs(bybit: Provider, line: str, body: Any, cost: dict[str, int]) -> None:
    """Every HTTP call counts on the address; private ones on their endpoint's pool too."""
    assert charges(bybit, line, body=body) == {"ip-5s": 1, **cost}


def test_limits(bybit: Provider) -> None:
    """The documented numbers."""
    names = ("create-1s", "create-spot-1s", "amend-1s", "cancel-1s", "cancel-spot-1s", "user-50-1s")
    assert [bybit.limits[name].capacity for name in names] == [10, 20, 10, 10, 20, 50]
    assert {bybit.limits[name].period for name in names} == {SECOND}
    assert (bybit.limits["ip-5s"].capacity, bybit.limits["ip-5s"].period) == (600, 5 * SECOND)


def test_websockets_are_apart(bybit: Provider) -> None:
    """Connecting spends connects, not calls."""
    assert charges(bybit, "WS-CONNECT /v5/public/linear") == {"ws-connects-5m": 1, "ws-connections": 1}


def usage(status: int, *, limit: int = 10, reset: int = NOW) -> dict[str, str]:
    """The usage headers of an answer."""
    return {
        "x_bapi_limit": str(limit),
        "x_bapi_limit_status": str(status),
        "x_bapi_limit_reset_timestamp": str(reset // MILLI),
    }


def test_headers(bybit: Provider) -> None:
    """What remains becomes what is used; a reset of "now" is none, one ahead holds the empty pool."""
    found = plan(bybit, CREATE, body=LINEAR)
    key = "bybit/create-1s/account:anonymous"
    answer = told(bybit, found, 200, {"retCode": 0}, **usage(7))
    assert (answer.outcome, answer.used, answer.blocks, answer.learned) == (Outcome.OK, {key: 3}, (), {})
    answer = told(bybit, found, 200, {"retCode": 0}, **usage(0))
    assert (answer.used, answer.full, answer.blocks) == ({key: 10}, (), ())
    answer = told(bybit, found, 200, {"retCode": 0}, **usage(0, reset=NOW + 400 * MILLI))
    assert [(b.scope, until(b, NOW)) for b in answer.blocks] == [(key, NOW + 400 * MILLI)]


def test_size_is_learned_for_one_endpoint(bybit: Provider) -> None:
    """The size of one endpoint's pool is not that of its siblings, nor of another account."""
    found = plan(bybit, "GET /v5/order/realtime")
    answer = told(bybit, found, 200, {"retCode": 0}, **usage(15, limit=20))
    assert answer.learned == {"user-50-1s/account:anonymous,endpoint:GET/v5/order/realtime": (20, SECOND)}
    assert answer.used == {found.charges[1].key: 5}
    known = bybit.with_learned(answer.learned)
    lines = ("GET /v5/order/realtime", "GET /v5/account/wallet-balance")
    assert [plan(known, line).charges[1].limit.capacity for line in lines] == [20, 50]
    again = told(known, plan(known, "GET /v5/order/realtime"), 200, {"retCode": 0}, **usage(15, limit=20))
    assert again.learned == {}


@pytest.mark.parametrize("headers", [{}, {"x_bapi_limit_reset_timestamp": str(NOW // MILLI)}])
def test_throttled_without_a_reset(bybit: Provider, headers: dict[str, str]) -> None:
    """10006 comes under HTTP 200, sometimes without the header: the endpoint's pool is full, the address is not."""
    answer = told(
        bybit, plan(bybit, CREATE, body=LINEAR), 200, {"retCode": 10006, "retMsg": "Too many visits!"}, **headers
    )
    assert (answer.outcome, answer.full) == (Outcome.THROTTLED, ("bybit/create-1s/account:anonymous",))
    assert all(b.scope in answer.full and until(b, NOW) <= NOW + SECOND for b in answer.blocks)


def test_throttled_until(bybit: Provider) -> None:
    """With a reset that lies ahead the pool is held until then."""
    answer = told(bybit, plan(bybit, CREATE, body=LINEAR), 200, {"retCode": 10006}, **usage(0, reset=NOW + 3 * SECOND))
    assert {until(b, NOW) for b in answer.blocks} == {NOW + 3 * SECOND}


@pytest.mark.parametrize(
    ("line", "status", "body", "outcome", "full"),
    [
        ("GET /v5/market/kline", 200, {"retCode": 10006}, Outcome.THROTTLED, ["ip-5s"]),
        (CREATE, 200, {"retCode": 10018}, Outcome.THROTTLED, ["ip-5s"]),
        (CREATE, 200, {"retCode": 10429}, Outcome.OVERLOADED, []),
        (CREATE, 429, "", Outcome.OVERLOADED, []),
        (CREATE, 200, {"retCode": 110007, "retMsg": "insufficient"}, Outcome.BAD_REQUEST, []),
        (CREATE, 200, {"retCode": 0, "result": {"orderLinkId": "10006"}}, Outcome.OK, []),
        (CREATE, 503, "", Outcome.OVERLOADED, []),
    ],
)
def test_refusals(bybit: Provider, line: str, status: int, body: Any, outcome: Outcome, full: list[str]) -> None:
    """Each code means its own pool; protection of the system means none."""
    found = told(bybit, plan(bybit, line, body=LINEAR), status, body)
    assert (found.outcome, [key.split("/")[1] for key in found.full]) == (outcome, full)


def test_penalty_box(bybit: Provider) -> None:
    """HTTP 403 shuts the address for ten minutes, whatever a header says; another 403 does not."""
    found = plan(bybit, "GET /v5/market/tickers")
    answer = told(bybit, found, 403, "403, access too frequent", **usage(0, reset=NOW + SECOND))
    assert answer.outcome is Outcome.BANNED
    assert [(b.scope, until(b, NOW), b.kind) for b in answer.blocks] == [
        ("bybit/ip:default", NOW + 600 * SECOND, "ban")
    ]
    assert told(bybit, found, 403, "forbidden in your country").outcome is Outcome.BAD_REQUEST


def test_signature(bybit: Provider) -> None:
    """Timestamp and window are headers; five seconds where none is sent."""
    headers = {"X-BAPI-TIMESTAMP": str(NOW // MILLI), "X-BAPI-SIGN": "s"}
    assert bybit.signed_until(Request("POST", "/v5/order/create", headers=headers)) == NOW + 5 * SECOND
    wide = {**headers, "X-BAPI-RECV-WINDOW": "20000"}
    assert bybit.signed_until(Request("POST", "/v5/order/create", headers=wide)) == NOW + 20 * SECOND


def test_priorities(bybit: Provider) -> None:
    """Cancels first, market data last."""
    found = [plan(bybit, line).priority for line in ("POST /v5/order/cancel-all", CREATE, "GET /v5/market/tickers")]
    assert found == [Priority.CRITICAL, Priority.HIGH, Priority.LOW]


def test_clock(bybit: Provider) -> None:
    """Answers state the time in milliseconds."""
    found = told(bybit, plan(bybit, "GET /v5/market/time"), 200, {"retCode": 0, "time": NOW // MILLI})
    assert found.server_time == (NOW, NOW + MILLI)


@pytest.mark.parametrize("host", ["api.bybit.com", "api.bytick.com", "api.bybit.eu"])
def test_hosts(host: str) -> None:
    """The pool of the address is one over all hosts."""
    found = Rulebook.load().for_host(host, "/v5/market/time")
    assert found is not None
    assert found.namespace == "bybit"
