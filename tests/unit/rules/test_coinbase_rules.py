"""Coinbase Advanced and Coinbase Exchange against the tables that their files were made from."""

from __future__ import annotations

import pytest
from tests.support.bundled import NOW, charges, plan, told

from ratekeeper.ledger.limit import SECOND, Window
from ratekeeper.rules.book import Rulebook
from ratekeeper.rules.call import Outcome
from ratekeeper.rules.provider import Provider


@pytest.fixture(scope="module")
def book() -> Rulebook:
    """The bundled rules."""
    return Rulebook.load()


@pytest.fixture
def advanced(book: Rulebook) -> Provider:
    """Coinbase Advanced."""
    return book.provider("coinbase")


@pytest.fixture
def exchange(book: Rulebook) -> Provider:
    """Coinbase Exchange."""
    return book.provider("coinbase-exchange")


def test_limits(advanced: Provider, exchange: Provider) -> None:
    """The sister's buckets have a burst; where no algorithm is named the window slides."""
    assert {
        name: (limit.capacity, limit.refill, limit.period / SECOND, limit.window, limit.scope)
        for provider in (advanced, exchange)
        for name, limit in provider.limits.items()
    } == {
        "private-1s": (30, 0, 1, Window.SLIDING, ("account",)),
        "public-1s": (10, 0, 1, Window.SLIDING, ("ip",)),
        "app-1h": (10000, 0, 3600, Window.SLIDING, ("key",)),
        "ws-connects-1s": (8, 0, 1, Window.SLIDING, ("ip",)),
        "ws-messages-1s": (8, 0, 1, Window.SLIDING, ("ip",)),
        "public": (15, 10, 1, Window.BUCKET, ("ip",)),
        "private": (30, 15, 1, Window.BUCKET, ("account",)),
    }


@pytest.mark.parametrize(
    ("line", "cost"),
    [
        ("GET /api/v3/brokerage/time", {"public-1s": 1}),
        ("GET /api/v3/brokerage/market/products/BTC-USD/candles", {"public-1s": 1}),
        ("GET /api/v3/brokerage/products/BTC-USD", {"private-1s": 1}),
        ("GET /api/v3/brokerage/accounts", {"private-1s": 1}),
        ("GET /api/v3/brokerage/orders/historical/batch", {"private-1s": 1}),
        ("POST /api/v3/brokerage/orders", {"private-1s": 1}),
        ("POST /api/v3/brokerage/orders/batch_cancel", {"private-1s": 1}),
        ("GET /v2/accounts", {"app-1h": 1}),
        ("WS-CONNECT /", {"ws-connects-1s": 1}),
        ("WS-SEND /", {"ws-messages-1s": 1}),
    ],
)
def test_advanced_costs(advanced: Provider, line: str, cost: dict[str, int]) -> None:
    """Public calls count by address, private ones by user, the older API by key."""
    assert charges(advanced, line) == cost


@pytest.mark.parametrize(
    ("line", "cost"),
    [
        ("GET /products/BTC-USD/book?level=2", {"public": 1}),
        ("GET /time", {"public": 1}),
        ("GET /wrapped-assets/CBETH/conversion-rate", {"public": 1}),
        ("POST /orders", {"private": 1}),
        ("DELETE /orders/1", {"private": 1}),
    ],
)
def test_exchange_costs(exchange: Provider, line: str, cost: dict[str, int]) -> None:
    """What is not public is private."""
    assert charges(exchange, line) == cost
    assert {c.limit.name: c.cost for c in plan(exchange, "GET /accounts").charges} == {"private": 1}


def test_bearer_tokens_tell_no_owner(advanced: Provider) -> None:
    """A token is made anew for each call, so nothing in it may make a ledger of its own."""
    line = "GET /api/v3/brokerage/accounts"
    keys = {plan(advanced, line, headers={"Authorization": f"Bearer token{n}"}).charges[0].key for n in range(3)}
    assert keys == {"coinbase/private-1s/account:anonymous"}


@pytest.mark.parametrize(
    ("line", "status", "body", "full"),
    [
        ("GET /api/v3/brokerage/accounts", 429, {"error": "rate_limit_exceeded", "message": "Too many"}, "private-1s"),
        ("GET /api/v3/brokerage/accounts", 429, "", "private-1s"),
        ("GET /api/v3/brokerage/market/products", 429, {"error": "resource_exhausted"}, "public-1s"),
        ("GET /api/v3/brokerage/market/products", 403, {"error": "resource_exhausted"}, "public-1s"),
        ("GET /v2/accounts", 429, {"errors": [{"id": "rate_limit_exceeded"}]}, "app-1h"),
    ],
)
def test_advanced_refusals(advanced: Provider, line: str, status: int, body: object, full: str) -> None:
    """The pool that the call spends is the one that is full."""
    found = told(advanced, plan(advanced, line), status, body)
    assert found.outcome is Outcome.THROTTLED
    assert [key.split("/")[1] for key in found.full] == [full]


def test_exchange_refusals(exchange: Provider) -> None:
    """The words name the pool, also where the status does not say it."""
    for status in (400, 429):
        found = told(exchange, plan(exchange, "POST /orders"), status, {"message": "Private rate limit exceeded"})
        assert (found.outcome, [key.split("/")[1] for key in found.full]) == (Outcome.THROTTLED, ["private"])
        found = told(exchange, plan(exchange, "GET /products"), status, {"message": "Public rate limit exceeded"})
        assert (found.outcome, [key.split("/")[1] for key in found.full]) == (Outcome.THROTTLED, ["public"])
    found = told(exchange, plan(exchange, "POST /orders"), 400, {"message": "Insufficient funds"})
    assert (found.outcome, found.full) == (Outcome.BAD_REQUEST, ())


def test_clocks(advanced: Provider, exchange: Provider) -> None:
    """Both state the server's time, with and without fractions."""
    body = {"epochSeconds": "1795220621", "epochMillis": "1795220621250"}
    found = told(advanced, plan(advanced, "GET /api/v3/brokerage/time"), 200, body)
    assert found.server_time == (NOW + SECOND // 4, NOW + SECOND // 4 + SECOND // 1000)
    found = told(exchange, plan(exchange, "GET /time"), 200, {"epoch": 1795220621.0})
    assert found.server_time == (NOW, NOW + SECOND)
