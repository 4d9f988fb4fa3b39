"""Who goes first, and fair parts, across processes that know nothing of each other."""

from __future__ import annotations

import http.client
import random
import time
from collections.abc import Callable
from pathlib import Path

from headgate import Gate, Priority

from .conftest import WINDOW, World

SPENDER = str(Path(__file__).parents[1] / "support" / "spender")
BUDGET = 2400


def test_critical_calls_go_at_once_through_a_saturated_budget(world: Callable[..., World]) -> None:
    """Beside low-class demand of many times the budget, 2 % of critical calls wait under 100 ms, and nothing is wasted."""
    here = world(capacity=BUDGET)
    here.start(names=[SPENDER] * 2, workers=16, options=["--priority", "low"])
    begin = here.next_edge()
    dice = random.Random(7)
    every = WINDOW / (0.02 * BUDGET)  # a critical call costs 1
    waits: list[float] = []
    connection = http.client.HTTPConnection(here.emulator.url.removeprefix("http://"), timeout=10)
    with Gate(home=here.home, hosts=here.emulator.hosts) as gate:
        while here.now() < begin + 3 * WINDOW:
            time.sleep(dice.expovariate(1 / every))
            with gate.permit("binance-usdm", "GET", "/fapi/v1/time", priority=Priority.CRITICAL) as permit:
                waits.append(permit.waited)
                connection.request("GET", "/fapi/v1/time")
                answer = connection.getresponse()
                permit.settle(answer.status, dict(answer.getheaders()), answer.read())
    connection.close()
    waits.sort()
    shares = here.shares(begin, here.now())
    assert here.refused() == (0, 0)
    assert len(waits) > 60
    assert waits[int(len(waits) * 0.99)] < 0.1, waits[-5:]
    assert len(shares) >= 2
    assert min(shares) >= 0.95, shares


def test_equal_programs_get_equal_parts(world: Callable[..., World]) -> None:
    """Three equal processes, each wanting several times the budget, are within 10 % of each other."""
    here = world()
    here.start(names=[SPENDER] * 3, workers=6)
    here.next_edge()
    time.sleep(WINDOW - 0.4)  # what a window holds is long spent; nothing is under way
    before = _spent(here)
    time.sleep(2 * WINDOW)
    after = _spent(here)
    parts = [after[name] - before[name] for name in after]
    assert here.refused() == (0, 0)
    assert len(parts) == 3
    assert max(parts) <= 1.1 * min(parts), parts
    assert sum(parts) >= 0.95 * 2 * 1000, parts


def _spent(here: World) -> dict[str, int]:
    clients = here.emulator.stats()["clients"]
    return {name: counts["accepted"] for name, counts in clients.items() if name.startswith("spender")}
