"""The demo's figures from what the emulator counted."""

from __future__ import annotations

from typing import Any

import pytest

from ratekeeper.apps.demo.stage import Half, Plan, as_json, measure

PLAN = Plan(window=10, windows=2, workers=4)
BEGIN = 1_000.0


def stats(now: float, **more: Any) -> dict[str, Any]:
    """What an emulator says at `now` that has let 90 of 100 through in the first window."""
    return {
        "now": now,
        "main": "weight-1m",
        "limits": {"weight-1m": {"capacity": 100}},
        "windows": [
            {"limit": "weight-1m", "start": BEGIN, "accepted": 90},
            {"limit": "orders-10s", "start": BEGIN, "accepted": 7},
        ],
        "clients": {
            "ccxt_bot": {"arrivals": 9, "accepted": 60, "throttled": 1, "banned": 2},
            "httpx_bot": {"arrivals": 3, "accepted": 30, "throttled": 0, "banned": 0},
        },
        "totals": {"throttled": 1, "banned": 2, "bans": 1},
        "ips": {"127.0.0.1": {"bans": [[BEGIN + 4, BEGIN + 24]]}},
        **more,
    }


def test_in_the_middle() -> None:
    """A window counts when it is over; the ban that holds now is told with its end."""
    half = Half(governed=False)
    measure(half, PLAN, BEGIN, stats(BEGIN + 5), None)
    assert (half.seconds, half.level, half.windows, half.budget_used) == (5, 90, [], 0)
    assert (half.banned_seconds, half.banned_for) == (1, 19)
    assert half.trace == [(5, 0.9, "418")]


def test_at_the_end() -> None:
    """A window in which nothing was let through counts as empty; a ban counts to the end of the half only."""
    half = Half(governed=False)
    measure(half, PLAN, BEGIN, stats(BEGIN + 20.3), None)
    assert half.windows == [0.9, 0.0]
    assert half.budget_used == pytest.approx(0.45)
    assert half.banned_seconds == 16
    assert [(each.name, each.answered, round(half.share(each), 2)) for each in half.programs] == [
        ("ccxt_bot", 6, 0.67),
        ("requests_bot", 0, 0.0),
        ("httpx_bot", 3, 0.33),
    ]
    assert not half.trace


def test_shares_are_those_of_the_last_window() -> None:
    """What a program got in the windows before does not count: there the others may have been asleep."""
    half = Half(governed=True)
    for now, weights in ((9.9, (60, 0, 30)), (10.1, (62, 4, 34)), (19.9, (90, 30, 60)), (20.1, (90, 30, 60))):
        names = ("ccxt_bot", "requests_bot", "httpx_bot")
        clients = {name: {"arrivals": 1, "accepted": weight} for name, weight in zip(names, weights, strict=True)}
        measure(half, PLAN, BEGIN, stats(BEGIN + now, clients=clients), None)
    assert [half.share(each) for each in half.programs] == pytest.approx([1 / 3] * 3)


def test_what_waits_comes_from_the_store() -> None:
    """Weight that stands at the gate, by program, and the waits by class."""
    spenders = [{"process": "httpx_bot.py[17]", "waiting": 40}, {"process": "ccxt_bot.py[18]", "waiting": 0}]
    waits = {"low": {"calls": 3, "mean_seconds": 1.0, "longest_seconds": 2.0}}
    half = Half(governed=True)
    measure(half, PLAN, BEGIN, stats(BEGIN + 5), {"limits": [{"spenders": spenders}], "waits": waits})
    assert {each.name: each.waiting for each in half.programs} == {"ccxt_bot": 0, "requests_bot": 0, "httpx_bot": 40}
    found = as_json(PLAN, Half(governed=False), half)
    assert found["with_ratekeeper"]["waits"] == waits
    assert found["with_ratekeeper"]["calls"] == 12
    assert found["without_ratekeeper"]["calls"] == 0
