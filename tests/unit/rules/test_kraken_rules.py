"""Kraken spot and futures against the tables that their files were made from."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.bundled import NOW, charges, plan, told
from tests.support.ends import until

from ratekeeper.ledger.limit import SECOND, Window
from ratekeeper.rules.book import Rulebook
from ratekeeper.rules.call import Outcome, Priority, Request
from ratekeeper.rules.provider import Provider


@pytest.fixture(scope="module")
def spot() -> Provider:
    """Kraken spot."""
    return Rulebook.load().provider("kraken")


@pytest.fixture(scope="module")
def futures() -> Provider:
    """Kraken futures."""
    return Rulebook.load().provider("kraken-futures")


def test_counters_decay(spot: Provider) -> None:
    """Both counters are buckets: 15 that lose 0.33 a second for each key, 60 that lose 1 a second for each account."""
    seen = {
        name: (limit.capacity, limit.refill / (limit.period / SECOND), limit.window, limit.scope)
        for name, limit in spot.limits.items()
    }
    assert seen == {
        "calls": (15, 0.33, Window.BUCKET, ("key",)),
        "orders": (60, 1.0, Window.BUCKET, ("account",)),
        "public": (12, 10.0, Window.BUCKET, ("ip",)),
    }


@pytest.mark.parametrize(
    ("line", "cost"),
    [
        ("GET /0/public/Time", {"public": 10}),
        ("GET /0/public/Ticker?pair=XBTUSD", {"public": 10}),
        ("GET /0/public/Depth?pair=XBTUSD", {"public": 12}),
        ("GET /0/public/SomethingNew", {"public": 12}),
        ("POST /0/private/Balance", {"calls": 1}),
        ("POST /0/private/OpenOrders", {"calls": 1}),
        ("POST /0/private/Earn/Allocate", {"calls": 1}),
        ("POST /0/private/Ledgers", {"calls": 2}),
        ("POST /0/private/TradesHistory", {"calls": 2}),
        ("POST /0/private/AddOrder?pair=XBTUSD", {"orders": 1}),
        ("WS /add_order", {"orders": 1}),
        ("POST /0/private/AmendOrder?txid=O1", {"orders": 9}),
        ("POST /0/private/EditOrder?txid=O1", {"orders": 9}),
        ("POST /0/private/CancelOrder?txid=O1", {"orders": 8}),
        ("WS /cancel_order", {"orders": 8}),
        ("POST /0/private/CancelAll", {"calls": 1, "orders": 8}),
    ],
)
def test_spot_costs(spot: Provider, line: str, cost: dict[str, int]) -> None:
    """Orders spend on their own counter only; an age that nobody knows costs the dearest."""
    assert charges(spot, line) == cost


@pytest.mark.parametrize(
    ("line", "orders", "units"),
    [
        ("POST /0/private/AddOrderBatch", 3, 3),
        ("POST /0/private/CancelOrderBatch", 3, 24),
        ("POST /0/private/CancelOrderBatch", 50, 60),
    ],
)
def test_spot_batches(spot: Provider, line: str, orders: int, units: int) -> None:
    """A batch counts its orders, and never more than the counter holds."""
    assert charges(spot, line, body={"orders": ["O"] * orders}) == {"orders": units}


def test_cancels_are_critical(spot: Provider) -> None:
    """Cancels go before everything else."""
    assert plan(spot, "POST /0/private/CancelOrder?txid=O1").priority is Priority.CRITICAL


def test_keys_do_not_share(spot: Provider) -> None:
    """Each key has its own counter, which does not show the key."""
    keys = {
        plan(spot, "POST /0/private/Balance", headers={"API-Key": name}).charges[0].key for name in ("k1", "k2", "k1")
    }
    assert len(keys) == 2
    assert not [key for key in keys if "k1" in key]


REFUSALS: list[tuple[str, str, Outcome, tuple[str, ...], dict[str, int]]] = [
    ("POST /0/private/Balance", "EAPI:Rate limit exceeded", Outcome.THROTTLED, ("calls",), {"calls": 5, "account": 5}),
    ("GET /0/public/Depth", "EAPI:Rate limit exceeded", Outcome.THROTTLED, ("public",), {"public": 5, "ip": 5}),
    ("POST /0/private/AddOrder", "EOrder:Rate limit exceeded", Outcome.THROTTLED, ("orders",), {}),
    ("POST /0/private/Balance", "EService: Throttled: 1795220641", Outcome.THROTTLED, (), {"account": 20}),
    ("POST /0/private/AddOrder", "EService:Throttled: 1795220641", Outcome.THROTTLED, (), {"account": 20}),
    ("GET /0/public/Depth", "EService: Throttled: 1795220641", Outcome.THROTTLED, (), {"ip": 20}),
    ("POST /0/private/Balance", "EService: Throttled", Outcome.THROTTLED, (), {"account": 10}),
    ("POST /0/private/AddOrder", "EService:Unavailable", Outcome.OVERLOADED, (), {"orders": 1}),
    ("POST /0/private/AddOrder", "EService:Deadline elapsed", Outcome.FAILED, (), {"orders": 1}),
    ("POST /0/private/Balance", "EGeneral:Too many requests", Outcome.THROTTLED, ("calls",), {"calls": 5, "ip": 5}),
    ("GET /0/public/Depth", "EGeneral:Too many requests", Outcome.THROTTLED, ("public",), {"public": 5, "ip": 5}),
    ("POST /0/private/AddOrder", "EOrder:Insufficient funds", Outcome.BAD_REQUEST, (), {}),
]


@pytest.mark.parametrize(("line", "error", "outcome", "full", "blocks"), REFUSALS)
def test_spot_refusals(
    spot: Provider, line: str, error: str, outcome: Outcome, full: tuple[str, ...], blocks: dict[str, int]
) -> None:
    """Errors come under HTTP 200, in a list; each names its counter or whom to hold, and until when."""
    found = told(spot, plan(spot, line), 200, {"error": [error]})
    assert found.outcome is outcome
    assert tuple(key.split("/")[1] for key in found.full) == full
    assert {b.scope.split("/")[1].split(":")[0]: (until(b, NOW) - NOW) // SECOND for b in found.blocks} == blocks


def test_spot_lockout(spot: Provider) -> None:
    """A temporary lockout shuts the account, for it states no end and calls prolong it."""
    found = told(spot, plan(spot, "POST /0/private/Balance"), 200, {"error": ["EGeneral:Temporary lockout"]})
    assert found.outcome is Outcome.BANNED
    assert [(b.scope, b.kind) for b in found.blocks] == [("kraken/account:anonymous", "ban")]
    assert spot.file.ban.prolonged


def test_spot_success(spot: Provider) -> None:
    """An answer without errors is one, and the server's time is read from the one that states it."""
    found = told(spot, plan(spot, "GET /0/public/Time"), 200, {"error": [], "result": {"unixtime": 1795220621}})
    assert found.outcome is Outcome.OK
    assert found.server_time == (NOW, NOW + SECOND)
    assert (found.full, found.blocks) == ((), ())


@pytest.mark.parametrize(
    ("line", "body", "cost"),
    [
        ("POST /derivatives/api/v3/sendorder?symbol=PF_XBTUSD", None, {"cost-10s": 10}),
        ("POST /derivatives/api/v3/cancelorder?order_id=1", None, {"cost-10s": 10}),
        ("POST /derivatives/api/v3/batchorder", {"batchOrder": [{}] * 7}, {"cost-10s": 16}),
        ("POST /derivatives/api/v3/batchorder", None, {"cost-10s": 500}),
        ("GET /derivatives/api/v3/accounts", None, {"cost-10s": 2}),
        ("GET /derivatives/api/v3/openpositions", None, {"cost-10s": 25}),
        ("GET /derivatives/api/v3/tickers", None, {"public": 1}),
        ("GET /api/charts/v1/spot/PF_XBTUSD/1m", None, {"public": 1}),
    ],
)
def test_futures_costs(futures: Provider, line: str, body: Any, cost: dict[str, int]) -> None:
    """A batch costs 9 and one for each order; what is not documented costs a guess above that."""
    assert charges(futures, line, body=body) == cost


def test_futures_batch_as_form(futures: Provider) -> None:
    """A batch that comes as the text of a form field is never counted too low."""
    text = '{"batchOrder":[{"order":"send","symbol":"a"},{"order":"send","symbol":"b"}]}'
    call = Request("POST", "/derivatives/api/v3/batchorder", {"json": text})
    (charge,) = futures.plan(call).charges
    assert 11 <= charge.cost <= 500


def test_futures_refusal(futures: Provider) -> None:
    """The budget is named by a word, under whichever status."""
    for status in (200, 429):
        found = told(
            futures,
            plan(futures, "POST /derivatives/api/v3/sendorder"),
            status,
            {"result": "error", "error": "apiLimitExceeded"},
        )
        assert found.outcome is Outcome.THROTTLED
        assert found.full == ("kraken-futures/cost-10s/account:anonymous",)
    found = told(futures, plan(futures, "POST /derivatives/api/v3/sendorder"), 200, {"result": "error", "error": "x"})
    assert found.outcome is Outcome.BAD_REQUEST
