"""Hyperliquid against the table that its file was made from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.support.bundled import charges, plan, told

from ratekeeper.errors import RuleError
from ratekeeper.ledger.limit import SECOND, Window
from ratekeeper.rules.book import Rulebook
from ratekeeper.rules.call import Identity, Outcome, Priority, Request
from ratekeeper.rules.provider import Provider
from ratekeeper.rules.schema import File


@pytest.fixture(scope="module")
def provider() -> Provider:
    """Hyperliquid."""
    return Rulebook.load().provider("hyperliquid")


def test_limits(provider: Provider) -> None:
    """Weight for each address of the machine, a budget for each wallet, and the pools of websockets."""
    assert {
        name: (limit.capacity, limit.period // SECOND, limit.window, limit.scope)
        for name, limit in provider.limits.items()
    } == {
        "weight-1m": (1200, 60, Window.SLIDING, ("ip",)),
        "address": (10000, 10, Window.BUCKET, ("account",)),
        "ws-messages-1m": (2000, 60, Window.SLIDING, ("ip",)),
        "ws-connects-1m": (30, 60, Window.SLIDING, ("ip",)),
        "ws-connections": (10, 0, Window.SLOTS, ("ip",)),
        "ws-subscriptions": (1000, 0, Window.SLOTS, ("ip",)),
        "ws-posts": (100, 0, Window.SLOTS, ("ip",)),
    }
    assert provider.limits["address"].refill == 1


@pytest.mark.parametrize(
    ("kind", "weight"),
    [
        *[(kind, 2) for kind in ("l2Book", "allMids", "clearinghouseState", "orderStatus", "spotClearinghouseState")],
        ("userRole", 60),
        ("meta", 20),
        ("openOrders", 20),
        ("candleSnapshot", 104),
        ("userFills", 121),
        ("fundingHistory", 121),
        (None, 20),
    ],
)
def test_info_weights(provider: Provider, kind: str | None, weight: int) -> None:
    """One path, the weight by the body's type; histories reserve what their longest answer costs."""
    assert charges(provider, "POST /info", body={"type": kind} if kind else None) == {"weight-1m": weight}


@pytest.mark.parametrize(
    ("kind", "items", "weight"),
    [
        ("userFills", 0, 21),
        ("userFills", 19, 21),
        ("userFills", 20, 22),
        ("userFills", 2000, 121),
        ("candleSnapshot", 59, 21),
        ("candleSnapshot", 60, 22),
        ("candleSnapshot", 5000, 104),
    ],
)
def test_histories_are_settled_by_their_answer(provider: Provider, kind: str, items: int, weight: int) -> None:
    """What comes back says what it cost."""
    found = plan(provider, "POST /info", body={"type": kind})
    assert provider.wants_body(found, 200)
    actual = told(provider, found, 200, [{"n": n} for n in range(items)]).actual
    assert actual.get("hyperliquid/weight-1m/ip:default", found.charges[0].cost) == weight


def test_a_history_without_a_body_stays_reserved(provider: Provider) -> None:
    """Where the answer was not read, the dearest stays charged."""
    assert told(provider, plan(provider, "POST /info", body={"type": "userFills"}), 200).actual == {}


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ({"type": "order", "orders": [{}]}, {"weight-1m": 1, "address": 1}),
        ({"type": "order", "orders": [{}] * 39}, {"weight-1m": 1, "address": 39}),
        ({"type": "order", "orders": [{}] * 40}, {"weight-1m": 2, "address": 40}),
        ({"type": "order", "orders": [{}] * 80}, {"weight-1m": 3, "address": 80}),
        ({"type": "cancel", "cancels": [{}] * 41}, {"weight-1m": 2, "address": 41}),
        ({"type": "cancelByCloid", "cancels": [{}]}, {"weight-1m": 1, "address": 1}),
        ({"type": "batchModify", "modifies": [{}] * 5}, {"weight-1m": 1, "address": 5}),
        ({"type": "scheduleCancel"}, {"weight-1m": 1, "address": 1}),
        ({"type": "updateLeverage"}, {"weight-1m": 1, "address": 1}),
        ({}, {"weight-1m": 1, "address": 1}),
    ],
)
def test_exchange_costs(provider: Provider, action: dict[str, Any], expected: dict[str, int]) -> None:
    """A batch of n costs 1 + floor(n / 40) of weight and n of the wallet's budget."""
    assert charges(provider, "POST /exchange", body={"action": action, "nonce": 1}) == expected


@pytest.mark.parametrize("kind", ["cancel", "cancelByCloid", "scheduleCancel", "twapCancel"])
def test_cancels_are_critical(provider: Provider, kind: str) -> None:
    """Cancels go first although they share the path of orders."""
    assert plan(provider, "POST /exchange", body={"action": {"type": kind}}).priority is Priority.CRITICAL


def test_wallets_are_named_by_the_configuration(provider: Provider) -> None:
    """The signature does not say whose call it is: nameless callers share one budget, named ones have their own."""
    call = Request("POST", "/exchange", None, {"action": {"type": "order", "orders": [{}]}})
    keys = [provider.plan(call, Identity(account=name)).charges[1].key for name in ("", "w1", "w2")]
    assert keys == [f"hyperliquid/address/account:{name}" for name in ("anonymous", "w1", "w2")]


def test_budget_is_learned(provider: Provider) -> None:
    """userRateLimit states what the wallet may and did send; the trickle stays at one request in 10 s."""
    found = plan(provider, "POST /info", body={"type": "userRateLimit", "user": "0x1"})
    assert provider.wants_body(found, 200)
    body = {"cumVlm": "2854574.59", "nRequestsUsed": 2890, "nRequestsCap": 2864574}
    answer = told(provider, found, 200, body)
    key = "hyperliquid/address/account:anonymous"
    assert answer.used == {key: 2890}
    assert answer.actual == {key: 0}
    assert answer.learned == {"address/account:anonymous": (2864574, 10 * SECOND)}
    limit = plan(provider.with_learned(answer.learned), "POST /exchange").charges[1].limit
    assert (limit.capacity, limit.refill, limit.period) == (2864574, 1, 10 * SECOND)


def test_nobody_asks_for_limits_at_first_contact(provider: Provider) -> None:
    """The budget can only be asked for with a wallet's address, which only the program knows."""
    assert provider.learn_route is None


def test_refusals(provider: Provider) -> None:
    """429 is the weight; an empty budget comes as text under HTTP 200."""
    order = plan(provider, "POST /exchange", body={"action": {"type": "order", "orders": [{}]}})
    found = told(provider, order, 429, "null")
    assert (found.outcome, found.full) == (Outcome.THROTTLED, ("hyperliquid/weight-1m/ip:default",))
    words = "Too many cumulative requests sent (37986 > 10436) for cumulative volume traded $437.92."
    found = told(provider, order, 200, {"status": "err", "response": words})
    assert (found.outcome, found.full) == (Outcome.THROTTLED, ("hyperliquid/address/account:anonymous",))
    found = told(provider, order, 200, {"status": "err", "response": "Order has zero size."})
    assert (found.outcome, found.full) == (Outcome.BAD_REQUEST, ())
    found = told(provider, order, 200, {"status": "ok", "response": {"type": "order"}})
    assert (found.outcome, found.full, found.blocks) == (Outcome.OK, (), ())


def test_a_budget_for_life_needs_a_trickle(file_of: Callable[[str], File]) -> None:
    """Without one nobody could ever call again when it is empty."""
    words = '[limits.calls-1m]\nunit = "calls"\ncapacity = 9\nperiod = "10s"\nwindow = "bucket"\nlifetime = true\n'
    assert file_of(words + "refill = 1").limits["calls-1m"].lifetime
    with pytest.raises(RuleError, match="what remains when it is empty"):
        file_of(words)
