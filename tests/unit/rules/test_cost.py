"""Costs: bands, presence, counts, cases, formulas."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from ratekeeper.rules.call import Call
from ratekeeper.rules.cost import compile_cost, evaluate, references
from ratekeeper.rules.schema import Cost

KLINES = {"by": "limit", "bands": [[99, 1], [499, 2], [1000, 5]], "above": 10, "missing": 5}
TICKERS = [{"has": "symbol", "cost": 2}, {"count": "symbols", "bands": [[20, 2], [100, 40]], "above": 80}, 80]
TICKER = [{"has": "symbol", "cost": 4}, {"count": "symbols", "each": 4, "max": 200}, 200]
TYPES = {"by": "body.type", "cases": {"book": 1, "candles": 2}, "other": 20, "missing": 30}
ORDERS = {"count": "body.orders", "base": 1, "each": 1, "per": 40, "missing": 1}


def cost_of(raw: Any, params: dict[str, Any] | None = None, body: Any = None) -> int | None:
    """What a call costs by a rule as TOML would hold it."""
    return evaluate(compile_cost(msgspec.convert(raw, Cost)), Call("GET", "/", params, body))


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
