"""Who goes first, and fair parts, across processes that know nothing of each other."""

from __future__ import annotations

import http.client
import random
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlencode

import httpx
import pytest

from ratekeeper import Gate, Priority, SignatureWouldExpire
from ratekeeper.adapters.httpx import Transport
from ratekeeper.stores.records import LedgerView

from .conftest import WINDOW, World

pytestmark = [pytest.mark.alone, pytest.mark.usefixtures("warm_programs")]

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


def test_critical_signed_calls_never_fail_beside_a_crowd(world: Callable[..., World]) -> None:
    """Signed calls that need 25 % of the limit and cannot wait for a second leave at once beside thirty low tasks of another
    process, from the second whole minute (here 5 s) on; the tasks use all the rest."""
    here = world(capacity=600)
    here.start(names=[SPENDER], workers=30, options=["--priority", "low"])
    every = WINDOW * 5 / (0.25 * 600)
    took: list[float] = []
    failed: list[str] = []
    with (
        Gate(home=here.home, hosts=here.emulator.hosts, priority="critical") as gate,
        httpx.Client(transport=Transport(gate=gate), base_url=here.emulator.url, timeout=10) as client,
    ):
        client.get("/fapi/v1/time")  # the limits are learned
        begin = here.next_edge()
        start = time.monotonic()
        for number in range(int(3 * WINDOW / every)):
            time.sleep(max(0.0, start + number * every - time.monotonic()))
            counts = time.monotonic() > start + WINDOW
            query = urlencode({"timestamp": time.time_ns() // 1_000_000, "recvWindow": 1000, "signature": "0" * 64})
            asked = time.monotonic()
            try:
                client.get(f"/fapi/v2/balance?{query}", headers={"X-MBX-APIKEY": "k" * 12})
            except SignatureWouldExpire as error:
                failed += [str(error)] if counts else []
            else:
                took += [time.monotonic() - asked] if counts else []
    took.sort()
    here.next_edge()
    shares = here.shares(begin + WINDOW, begin + 3 * WINDOW)
    assert here.refused() == (0, 0)
    assert not failed, failed
    assert len(took) > 50
    assert took[len(took) * 95 // 100] < 0.3, took[-5:]
    assert len(shares) == 2
    assert min(shares) >= 0.96, shares


def test_a_program_keeps_to_its_part(world: Callable[..., World], tmp_path: Path) -> None:
    """Two processes of one name spend, together and exactly, what the configuration leaves to the program."""
    here = world()
    file = tmp_path / "ratekeeper.toml"
    file.write_text('[programs.collector]\nlimits = { "binance-usdm/weight-1m" = 200 }\n')
    here.start(names=[SPENDER] * 2, workers=8, options=["--name", "collector", "--config", str(file)])
    begin = here.next_edge()
    time.sleep(2 * WINDOW)
    here.emulator.stats()
    assert here.refused() == (0, 0)
    assert here.used(begin, begin + 2 * WINDOW) == [0.2, 0.2]
    assert {view.limit.capacity for view in _ledgers(here) if view.key.endswith("~cap/program:collector")} == {200}


def _ledgers(here: World) -> list[LedgerView]:
    with Gate(home=here.home, hosts=here.emulator.hosts) as gate:
        return gate.read().ledgers


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
