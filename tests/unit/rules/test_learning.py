"""Limits learned from what the provider states."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from ratekeeper.ledger.limit import SECOND, Limit, Window
from ratekeeper.rules.learning import learn_rows
from ratekeeper.rules.schema import Learn

LEARN = Learn(
    route="GET /info",
    rows="rateLimits",
    type="rateLimitType",
    units={"REQUEST_WEIGHT": "weight", "ORDERS": "orders"},
    interval="interval",
    number="intervalNum",
    limit="limit",
    used="",
)
LIMITS = {
    limit.name: limit
    for limit in [
        Limit("weight-1m", "weight", 2400, 60 * SECOND),
        Limit("orders-10s", "orders", 300, 10 * SECOND),
        Limit("orders-1m", "orders", 1200, 60 * SECOND),
        Limit("slots", "orders", 5, 0, Window.SLOTS),
    ]
}


def row(kind: Any, interval: Any, number: Any, limit: Any, **more: Any) -> dict[str, Any]:
    """A row as Binance writes it."""
    return {"rateLimitType": kind, "interval": interval, "intervalNum": number, "limit": limit, **more}


def learned(*rows: Any) -> dict[str, tuple[int, float]]:
    """Limit -> (capacity, seconds) of what rows state."""
    found, _ = learn_rows(list(rows), LEARN, LIMITS)
    return {name: (capacity, period / SECOND) for name, (capacity, period) in found.items()}


def test_same_interval() -> None:
    """Rows go to the limits with their interval, in any order, and other types are left alone."""
    rows = [row("ORDERS", "MINUTE", 1, 900), row("ORDERS", "SECOND", 10, 100), row("RAW_REQUESTS", "MINUTE", 5, 61000)]
    assert learned(*rows, row("REQUEST_WEIGHT", "MINUTE", 1, 6000)) == {
        "orders-10s": (100, 10),
        "orders-1m": (900, 60),
        "weight-1m": (6000, 60),
    }


def test_other_interval() -> None:
    """One row and one limit belong together although the interval differs."""
    assert learned(row("REQUEST_WEIGHT", "SECOND", 5, 200)) == {"weight-1m": (200, 5)}


def test_by_length() -> None:
    """What has no equal is paired by length of interval."""
    rows = [row("ORDERS", "SECOND", 6, 60), row("ORDERS", "SECOND", 1, 10)]
    assert learned(*rows) == {"orders-10s": (10, 1), "orders-1m": (60, 6)}
    assert learned(row("ORDERS", "MINUTE", 1, 900), row("ORDERS", "SECOND", 5, 50)) == {
        "orders-1m": (900, 60),
        "orders-10s": (50, 5),
    }


@pytest.mark.parametrize(
    "bad",
    [
        row("REQUEST_WEIGHT", "MINUTE", 1, 0),
        row("REQUEST_WEIGHT", "MINUTE", 1, -5),
        row("REQUEST_WEIGHT", "MINUTE", 1, 10**15),
        row("REQUEST_WEIGHT", "MINUTE", 1, None),
        row("REQUEST_WEIGHT", "MINUTE", 1, True),
        row("REQUEST_WEIGHT", "MINUTE", 1, 12.5),
        row("REQUEST_WEIGHT", "MINUTE", 0, 100),
        row("REQUEST_WEIGHT", "MINUTE", None, 100),
        row("REQUEST_WEIGHT", "EON", 1, 100),
        row("REQUEST_WEIGHT", None, 1, 100),
        row("REQUEST_WEIGHT", "DAY", 5000, 100),
        row(["REQUEST_WEIGHT"], "MINUTE", 1, 100),
        {},
        None,
        "text",
    ],
)
def test_absurd_rows(bad: Any) -> None:
    """Absurd rows are ignored, and the good ones beside them are not."""
    assert learned(bad) == {}
    assert learned(bad, row("ORDERS", "SECOND", 10, 7)) == {"orders-10s": (7, 10)}


@pytest.mark.parametrize("rows", [None, "text", 5, {}, []])
def test_no_rows(rows: Any) -> None:
    """An answer without rows teaches nothing."""
    assert learn_rows(rows, LEARN, LIMITS) == ({}, {})


def test_named_limit_and_counter() -> None:
    """An answer may be its own row, name no type, write numbers as text, and count."""
    learn = Learn(route="POST /info", rows="", limit_name="weight-1m", limit="cap", used="used")
    assert learn_rows({"cap": "500", "used": 20}, learn, LIMITS) == (
        {"weight-1m": (500, 60 * SECOND)},
        {"weight-1m": 20},
    )


def test_counter_only() -> None:
    """Rows may count without stating a limit."""
    learn = msgspec.structs.replace(LEARN, limit="", used="count")
    rows = [row("ORDERS", "SECOND", 10, 300, count=12), row("ORDERS", "MINUTE", 1, 1200, count=40)]
    assert learn_rows(rows, learn, LIMITS) == ({}, {"orders-10s": 12, "orders-1m": 40})
