"""Deribit against the table that its file was made from."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.bundled import NOW, charges, plan, told

from ratekeeper.ledger.limit import SECOND, Window
from ratekeeper.rules.book import Rulebook
from ratekeeper.rules.call import Outcome, Priority
from ratekeeper.rules.provider import Provider


@pytest.fixture(scope="module")
def provider() -> Provider:
    """Deribit."""
    return Rulebook.load().provider("deribit")


def test_limits(provider: Provider) -> None:
    """Credits that come back steadily: 20 calls a second with bursts of 100, 5 orders a second with bursts of 20."""
    assert {
        name: (limit.capacity, limit.refill, limit.period // SECOND, limit.window, limit.scope)
        for name, limit in provider.limits.items()
    } == {
        "credits": (50000, 10000, 1, Window.BUCKET, ("account",)),
        "public-credits": (50000, 10000, 1, Window.BUCKET, ("ip",)),
        "subscribe-credits": (30000, 10000, 1, Window.BUCKET, ("account",)),
        "matching": (20, 5, 1, Window.BUCKET, ("account",)),
        "ws-connections": (32, 0, 0, Window.SLOTS, ("ip",)),
    }


@pytest.mark.parametrize(
    ("method", "cost"),
    [
        ("public/get_order_book", {"public-credits": 500}),
        ("public/subscribe", {"subscribe-credits": 3000}),
        ("private/get_positions", {"credits": 500}),
        ("private/get_open_orders", {"credits": 500}),
        ("private/buy", {"matching": 1}),
        ("private/edit", {"matching": 1}),
        ("private/mass_quote", {"matching": 1}),
        ("private/cancel", {"matching": 1}),
        ("private/cancel_all_by_currency", {"matching": 1}),
    ],
)
def test_costs_in_every_dialect(provider: Provider, method: str, cost: dict[str, int]) -> None:
    """A method costs the same as a path, as JSON-RPC over HTTP and over a websocket."""
    for line in (f"GET /api/v2/{method}", f"POST /api/v2/{method}", f"WS /{method}"):
        assert charges(provider, line) == cost
    assert charges(provider, "POST /api/v2", body={"jsonrpc": "2.0", "method": method, "params": {}}) == cost


@pytest.mark.parametrize(
    ("line", "body"),
    [
        ("GET /api/v2/private/cancel?order_id=1", None),
        ("POST /api/v2", {"method": "private/cancel_all"}),
        ("WS /private/cancel_by_label", None),
    ],
)
def test_cancels_are_critical(provider: Provider, line: str, body: Any) -> None:
    """Cancels go first in every dialect."""
    assert plan(provider, line, body=body).priority is Priority.CRITICAL


def test_unknown_methods(provider: Provider) -> None:
    """A body without a method is charged as a private call."""
    assert charges(provider, "POST /api/v2") == {"credits": 500}


def test_owner_is_the_key_in_the_header(provider: Provider) -> None:
    """The signature changes with every call; the key within it does not."""

    def key(header: str) -> str:
        return plan(provider, "GET /api/v2/private/buy", headers={"Authorization": header}).charges[0].key

    first = key("deri-hmac-sha256 id=k1,ts=1,sig=aa,nonce=1")
    assert first == key("deri-hmac-sha256 id=k1,ts=2,sig=bb,nonce=2")
    assert first != key("deri-hmac-sha256 id=k2,ts=2,sig=bb,nonce=2")
    assert key("Basic azE6czE=") not in {first, key("Bearer t1")}
    assert key("Bearer t1") == key("Bearer t2") == "deribit/matching/account:anonymous"


@pytest.mark.parametrize(
    ("line", "full"),
    [
        ("GET /api/v2/public/ticker", "public-credits"),
        ("GET /api/v2/public/subscribe", "subscribe-credits"),
        ("GET /api/v2/private/get_positions", "credits"),
        ("GET /api/v2/private/buy", "matching"),
    ],
)
@pytest.mark.parametrize("status", [200, 400, 429])
def test_refusals(provider: Provider, status: int, line: str, full: str) -> None:
    """10028 names no pool: the one that the call spends is full."""
    body = {"jsonrpc": "2.0", "error": {"code": 10028, "message": "too_many_requests"}}
    found = told(provider, plan(provider, line), status, body)
    assert found.outcome is Outcome.THROTTLED
    assert [key.split("/")[1] for key in found.full] == [full]


def test_other_errors(provider: Provider) -> None:
    """Other errors are the caller's."""
    found = told(provider, plan(provider, "GET /api/v2/private/buy"), 400, {"error": {"code": -32602}})
    assert (found.outcome, found.full) == (Outcome.BAD_REQUEST, ())


def test_clock(provider: Provider) -> None:
    """The server's time in milliseconds."""
    found = told(provider, plan(provider, "GET /api/v2/public/get_time"), 200, {"result": 1795220621250})
    assert found.server_time == (NOW + SECOND // 4, NOW + SECOND // 4 + SECOND // 1000)
