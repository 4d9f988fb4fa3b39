"""How two rule files differ."""

from __future__ import annotations

from msgspec.structs import replace

from ratekeeper.apps.rules.difference import Difference, differences, table
from ratekeeper.rules.book import DATA
from ratekeeper.rules.files import parse, read
from ratekeeper.rules.routing import listed

OURS = read(DATA / "binance-usdm.toml")
OTHER_UNITS = """
format = 1
name = "other"
title = "The same exchange, counted in another unit"
source = "S"
[sources]
S = { title = "t", read = 2026-11-20, confidence = "C" }
[limits.pace]
unit = "pace"
capacity = 1000
period = "1s"
[default]
cost = { pace = 1 }
[[routes]]
match = ["GET /fapi/v1/ping", "GET /fapi/v1/nowhere"]
cost = { pace = 60 }
"""


def test_same() -> None:
    """A file does not differ from itself, in either way of comparing."""
    assert differences(OURS, OURS) == differences(OURS, OURS, spacing=True) == []


def test_limits_and_costs() -> None:
    """A changed capacity, a limit that is missing, a changed cost and a route that is new."""
    limits = {**OURS.limits, "weight-1m": replace(OURS.limits["weight-1m"], capacity=1200)}
    del limits["orders-1m"]
    at = next(index for index, rule in enumerate(OURS.routes) if "GET /fapi/v1/ping" in listed(rule.match))
    routes = [*OURS.routes]
    routes[at] = replace(routes[at], match="GET /fapi/v9/ping", cost={"weight": 3})
    found = {each.what: each for each in differences(OURS, replace(OURS, limits=limits, routes=routes))}
    assert found["weight-1m"].theirs == "1200 weight per 1m, fixed, per ip"
    assert found["orders-1m"].theirs == ""
    assert found["GET /fapi/v1/ping"].ours == "{ weight = 1 }" and found["GET /fapi/v1/ping"].theirs == ""
    assert found["GET /fapi/v9/ping"] == Difference("GET /fapi/v9/ping", "", "{ weight = 3 }")


def test_spacing() -> None:
    """Files that count in other units are compared by time, on the routes that both know."""
    (found,) = differences(OURS, parse(OTHER_UNITS), spacing=True)
    assert found == Difference("GET /fapi/v1/ping", "25 ms", "60 ms")  # 1 of 2400 in a minute; 60 of 1000 in a second


def test_table() -> None:
    """Columns, with the names above; a dash where one side has nothing."""
    text = table([Difference("weight-1m", "a", ""), Difference("GET /long/path", "", "b")], "ours", "theirs")
    assert text.splitlines() == [
        "                ours  theirs",
        "weight-1m       a     -",
        "GET /long/path  -     b",
    ]
