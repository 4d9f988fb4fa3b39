"""Which route a call falls under."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from ratekeeper.rules.call import Request
from ratekeeper.rules.routing import Router, compile_cost, evaluate, references, spread
from ratekeeper.rules.schema import Cost, File

FRAGMENT = """
[limits]
a-1s = { unit = "a", capacity = 10, period = "1s" }
a-1m = { unit = "a", capacity = 100, period = "1m" }
b-1m = { unit = "b", capacity = 100, period = "1m" }

[every]
b = 1

[[routes]]
match = "GET /order/{id}"
cost = { a = 1 }

[[routes]]
match = ["GET /order/{id}/fills", "GET /order/last"]
cost = { a = 2 }

[[routes]]
match = "GET /data/*"

[[routes]]
match = "GET /data/{kind}/deep/*"

[[routes]]
match = "POST /batch"
where = { body = { count = true, most = 1 } }

[[routes]]
match = "POST /batch"
where = { "body.0.type" = ["spot", "margin"], urgent = { present = true } }

[[routes]]
match = "POST /batch"

[[routes]]
match = "POST /only"
where = { size = { least = 5 } }

[[routes]]
match = "WS-SEND /ws"
cost = { a = 1 }
"""


@pytest.mark.parametrize(
    ("method", "path", "label"),
    [
        ("GET", "/order/17", "GET /order/{id}"),
        ("get", "/order/17", "GET /order/{id}"),
        ("GET", "/order/last", "GET /order/last"),
        ("GET", "/order/17/fills", "GET /order/{id}/fills"),
        ("GET", "/order/17/fills/more", ""),
        ("GET", "/data/a", "GET /data/*"),
        ("GET", "/data/a/b/c", "GET /data/*"),
        ("GET", "/data/a/deep/c", "GET /data/{kind}/deep/*"),
        ("GET", "/data", ""),
        ("DELETE", "/order/17", ""),
        ("WS-SEND", "/ws", "WS-SEND /ws"),
    ],
)
def test_match(file_of: Callable[[str], File], method: str, path: str, label: str) -> None:
    """Plain paths go before templates, the most precise template wins, the rest is the default."""
    assert Router(file_of(FRAGMENT)).find(Request(method, path)).label == label


def test_conditions(file_of: Callable[[str], File]) -> None:
    """Of several routes with one match the first whose conditions hold is taken, else the default."""
    router = Router(file_of(FRAGMENT))
    one, two = [{"type": "spot"}], [{"type": "spot"}] * 2
    assert router.find(Request("POST", "/batch", None, one)).label == "POST /batch"
    assert router.find(Request("POST", "/batch", {"urgent": 1}, two)).label == "POST /batch #2"
    assert router.find(Request("POST", "/batch", None, two)).label == "POST /batch #3"
    assert router.find(Request("POST", "/only", {"size": "5"})).label == "POST /only"
    assert router.find(Request("POST", "/only", {"size": "4"})).label == ""
    assert router.find(Request("POST", "/only")).label == ""


def test_spread(file_of: Callable[[str], File]) -> None:
    """A unit's cost falls on every limit of it; a limit's own name wins."""
    limits = file_of(FRAGMENT).limits
    assert spread({"a": 1}, limits) == {"a-1s": 1, "a-1m": 1}
    assert spread({"a-1s": 5, "a": 1}, limits) == {"a-1s": 5, "a-1m": 1}


def test_every(file_of: Callable[[str], File]) -> None:
    """What every HTTP call costs is charged on top, but not by websocket messages."""
    router = Router(file_of(FRAGMENT))
    assert router.find(Request("GET", "/order/1")).costs == {"b-1m": 1, "a-1s": 1, "a-1m": 1}
    assert router.find(Request("GET", "/unknown")).costs == {"b-1m": 1}
    assert router.find(Request("WS-SEND", "/ws")).costs == {"a-1s": 1, "a-1m": 1}


def test_shapes_of_values(file_of: Callable[[str], File]) -> None:
    """A value may have to look like something; of several, every one."""
    fragment = """
[[routes]]
match = "POST /order"
where = { "body.*.id" = { matches = '^[^-]+-[^-]+$' } }

[[routes]]
match = "POST /order"
where = { "body.id" = { matches = "SWAP" } }
"""
    router = Router(file_of(fragment))
    for body, label in [
        ([{"id": "A-B"}, {"id": "C-D"}], "POST /order"),
        ([{"id": "A-B"}, {"id": "C-D-E"}], ""),
        ([], ""),
        ({"id": "A-B-SWAP"}, "POST /order #2"),
        ({"id": "A-B"}, ""),
        (None, ""),
    ]:
        assert router.find(Request("POST", "/order", None, body)).label == label


# --- Costs: bands, presence, counts, cases, formulas. ----------------------------------------------------------------


KLINES = {"by": "limit", "bands": [[99, 1], [499, 2], [1000, 5]], "above": 10, "missing": 5}
TICKERS = [{"has": "symbol", "cost": 2}, {"count": "symbols", "bands": [[20, 2], [100, 40]], "above": 80}, 80]
TICKER = [{"has": "symbol", "cost": 4}, {"count": "symbols", "each": 4, "max": 200}, 200]
TYPES = {"by": "body.type", "cases": {"book": 1, "candles": 2}, "other": 20, "missing": 30}
ORDERS = {"count": "body.orders", "base": 1, "each": 1, "per": 40, "missing": 1}


def cost_of(raw: Any, params: dict[str, Any] | None = None, body: Any = None) -> int | None:
    """What a call costs by a rule as TOML would hold it."""
    return evaluate(compile_cost(msgspec.convert(raw, Cost)), Request("GET", "/", params, body))


@pytest.mark.parametrize(
    ("limit", "cost"),
    [
        (1, 1),
        (99, 1),
        (100, 2),
        ("499", 2),
        (500, 5),
        (1000, 5),
        (1001, 10),
        (1500, 10),
        (None, 5),
        ("", 5),
        ("x", 10),
        (-1, 1),
        (["1500"], 10),
    ],
)
def test_bands(limit: Any, cost: int) -> None:
    """Edges belong to their own band, absence has its own cost, and nonsense costs the most."""
    assert cost_of(KLINES, {"limit": limit}) == cost


def test_bands_without_above() -> None:
    """Beyond the last edge the last band goes on."""
    assert cost_of({"by": "n", "bands": [[5, 1], [10, 3]], "missing": 0}, {"n": 99}) == 3


@pytest.mark.parametrize(("items", "cost"), [(1, 2), (20, 2), (21, 40), (100, 40), (101, 80)])
def test_count_in_steps(items: int, cost: int) -> None:
    """The length of a list picks a band, however the list is written."""
    names = [f"S{i}" for i in range(items)]
    assert cost_of(TICKERS, {"symbols": names}) == cost
    assert cost_of(TICKERS, {"symbols": msgspec.json.encode(names).decode()}) == cost
    assert cost_of(TICKERS, {"symbols": ",".join(names)}) == cost


def test_first_that_applies() -> None:
    """In a list of terms the first whose parameter is there counts, and a number ends it."""
    assert cost_of(TICKERS, {"symbol": "A"}) == 2
    assert cost_of(TICKERS) == 80
    assert cost_of(TICKERS, {"symbol": ""}) == 80


@pytest.mark.parametrize(("items", "cost"), [(1, 4), (10, 40), (50, 200), (60, 200)])
def test_count_in_proportion(items: int, cost: int) -> None:
    """So much for each item, up to a cap."""
    assert cost_of(TICKER, {"symbols": [f"S{i}" for i in range(items)]}) == cost


def test_presence() -> None:
    """A parameter that is there makes one cost, its absence another."""
    rule = {"has": "symbol", "cost": 6, "missing": 80}
    assert cost_of(rule, {"symbol": "A"}) == 6
    assert cost_of(rule) == 80


def test_cases() -> None:
    """A value picks its cost; an unknown one takes `other`, or the dearest if there is none."""
    assert cost_of(TYPES, body={"type": "candles"}) == 2
    assert cost_of(TYPES, body={"type": "new"}) == 20
    assert cost_of(TYPES, body={}) == 30
    assert cost_of({"by": "x", "cases": {"true": 20, "false": 1}, "missing": 1}, {"x": "maybe"}) == 20
    assert cost_of({"by": "x", "cases": {"true": 20, "false": 1}, "missing": 1}, {"x": True}) == 20


@pytest.mark.parametrize(("items", "cost"), [(1, 1), (39, 1), (40, 2), (80, 3)])
def test_formula(items: int, cost: int) -> None:
    """base + each * floor(n / per)."""
    assert cost_of(ORDERS, body={"orders": list(range(items))}) == cost


def test_combinations() -> None:
    """Costs add up, the largest counts, and a factor multiplies."""
    two = [{"by": "a", "each": 1}, {"by": "b", "each": 1}]
    assert cost_of({"sum": two}, {"a": 3, "b": 4}) == 7
    assert cost_of({"sum": two}, {"b": 4}) == 4
    assert cost_of({"largest": [*two, 5]}, {"a": 3, "b": 9}) == 9
    assert cost_of({"largest": [*two, 5]}) == 5
    assert cost_of({"by": "a", "each": 1, "missing": 2, "times": "n"}, {"a": 3, "n": 4}) == 12
    assert cost_of({"by": "a", "each": 1, "missing": 2, "times": "n"}) == 2


def test_constant() -> None:
    """A number stays a number, so that its plan can be made once."""
    assert compile_cost(7) == 7


def test_references() -> None:
    """Everything a cost reads is known, at any depth."""
    rule = msgspec.convert(
        {"largest": [{"sum": [{"by": "a", "each": 1, "times": "t"}]}, {"has": "h", "cost": 1}, 3]}, Cost
    )
    assert references(rule) == ["a", "t", "h"]
