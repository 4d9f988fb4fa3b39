"""Classes of calls: by block, and by the configuration's patterns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ratekeeper import Gate, Priority, priority

TEXT = """
priority = "low"
[priorities]
"shop" = "normal"
"shop/class:cancel" = "high"
"shop GET /b*" = "background"
"shop GET /big" = "critical"
"""


def test_the_most_precise_pattern_holds(new_gate: Callable[..., Gate], tmp_path: Path) -> None:
    """A route before a shape, a shape before a class of calls, that before the provider, that before the program's class;
    what the code says goes before all of them."""
    file = tmp_path / "ratekeeper.toml"
    file.write_text(TEXT)
    gate = new_gate(config=file)
    calls = {"GET /big": 0, "GET /burst": 4, "DELETE /order": 1, "GET /slot": 2, "GET /unknown": 2}
    found = {call: gate.permit("shop", *call.split())._priority for call in calls}
    assert found == calls
    assert gate.permit("binance-usdm", "POST", "/fapi/v1/order")._priority == Priority.LOW
    with priority("low"):
        assert gate.permit("shop", "GET", "/big")._priority == Priority.LOW
    assert gate.permit("shop", "GET", "/big", priority="high")._priority == Priority.HIGH


def test_patterns_hold_for_mapped_hosts_and_numbered_routes(new_gate: Callable[..., Gate], tmp_path: Path) -> None:
    """A host of the user's own is the same provider; a route that has several rules is one route."""
    file = tmp_path / "ratekeeper.toml"
    file.write_text('[priorities]\n"binance-usdm GET /fapi/v1/openOrders" = "background"\n')
    gate = new_gate(config=file, hosts={"127.0.0.1:9300": "binance-usdm"})
    labels = set()
    for params in ({}, {"symbol": "BTCUSDT"}):
        permit = gate.permit("binance-usdm", "GET", "/fapi/v1/openOrders", params=params)
        labels.add(permit.plan.route)
        assert permit._priority == Priority.BACKGROUND
    assert all(label.startswith("GET /fapi/v1/openOrders") for label in labels)
    assert permit.plan.provider == "binance-usdm@127.0.0.1:9300"
