"""Costs in the shapes of ccxt's tables."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ratekeeper.rules.call import Request
from ratekeeper.rules.ccxt_costs import capped, cost_of, dearer, dearest
from ratekeeper.rules.routing import compile_cost, evaluate
from ratekeeper.rules.schema import Term

BANDS = {"cost": 1, "byLimit": [[50, 2], [100, 5]]}
FALLING = {"cost": 1, "noSymbolAndNoSymbols": 40, "byNumberOfSymbols": [[101, 40], [21, 20], [0, 1]]}


def cost(config: dict[str, Any], params: dict[str, Any], body: Any = None, computed: Any = 0) -> int | None:
    """What a call costs, at a spacing of a millisecond: in thousandths."""
    entry = SimpleNamespace(config=config, api=["public"], method="GET", path="x")
    sample = SimpleNamespace(rateLimit=1, calculate_rate_limiter_cost=lambda *_: computed)
    return evaluate(compile_cost(cost_of(entry, sample)), Request("GET", "/x", params, body))


@pytest.mark.parametrize(
    ("config", "params", "wanted"),
    [
        ({}, {}, 1),
        ({"cost": 0}, {}, 0),
        ({"cost": 1.0001}, {}, 1.001),  # rounded up, never down
        ({"cost": 2, "noSymbol": 40}, {"symbol": "A"}, 2),
        ({"cost": 2, "noSymbol": 40}, {}, 40),
        (BANDS, {}, 1),
        (BANDS, {"limit": 50}, 2),
        (BANDS, {"limit": 51}, 5),
        (BANDS, {"limit": 5000}, 5),
        ({**BANDS, "noSymbol": 9}, {"limit": 100}, 9),
        (FALLING, {"symbol": "A"}, 1),
        (FALLING, {}, 40),
        (FALLING, {"symbols": ",".join("A" * 20)}, 1),
        (FALLING, {"symbols": ",".join("A" * 21)}, 20),
        (FALLING, {"symbols": ",".join("A" * 101)}, 40),
        ({"cost": 1, "v3": 7}, {}, 7),  # who knows when it applies
    ],
)
def test_shapes(config: dict[str, Any], params: dict[str, Any], wanted: float) -> None:
    """Each modifier as ccxt means it; several together count as the dearest."""
    assert cost(config, params) == round(wanted * 1000)


def test_by_value_in_a_body() -> None:
    """A value that selects the cost may stand in the query or in the JSON body; an unknown one costs the usual."""
    config = {"cost": 20, "byType": {"l2Book": 2}}
    assert cost(config, {"type": "l2Book"}) == cost(config, {}, {"type": "l2Book"}) == 2000
    assert cost(config, {}, {"type": "other"}) == cost(config, {}) == 20_000


def test_computed() -> None:
    """A class that computes costs itself is asked, where the table alone says nothing."""
    assert cost({"cost": 1}, {}, computed=10) == 10_000
    assert cost({"cost": 1}, {}, computed=None) == 1000


def test_dearest_and_capped() -> None:
    """The most a call can cost, also deep inside, and the same with a bound."""
    term = Term(largest=[Term(has="a", cost=5, missing=70), [Term(by="b", bands=[(9, 90)], above=20), 30]])
    assert dearest(term) == 90
    assert dearest(capped(term, 25)) == 25
    assert dearest(dearer(term, 100)) == 100 and dearer(3, 4) == 4 and dearer(term, term) is term
