"""Exceptions that a signal's handler raises, anywhere in our code: the same process goes on using its gate, and no permit is
lost. The programs raise thousands of them at random instants."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.origin import Origin
from tests.support.server import Server

RULES = """
format = 1
name = "shop"
title = "A provider whose windows are short, so that what lingers is soon over"
hosts = ["shop.test"]
source = "T"
[sources]
T = { title = "made for these tests", read = 2026-11-20, confidence = "D" }
[limits.sliding-1s]
unit = "weight"
capacity = 1000000
period = "1s"
window = "sliding"
scope = "ip"
[limits.fixed-1s]
unit = "requests"
capacity = 1000000
period = "1s"
window = "fixed"
scope = "ip"
[limits.slots]
unit = "slots"
capacity = 10000
window = "slots"
scope = "ip"
[limits.burst]
unit = "burst"
capacity = 30
refill = 3000
period = "1s"
window = "bucket"
scope = "ip"
[default]
class = "market"
cost = { weight = 1, requests = 1, slots = 1 }
[[routes]]
match = "GET /waits"
class = "market"
cost = { weight = 1, slots = 1, burst = 2 }
"""

STORM = """
import faulthandler, json, random, signal, sys, time
class Stop(KeyboardInterrupt): pass
armed = careful = False
def handler(number, frame):
    global armed
    # Clients and asyncio may not survive it: then it strikes in our code alone.
    if armed and careful and not frame.f_globals.get("__name__", "").startswith("ratekeeper."):
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00001, 0.0002))
    elif armed:
        armed = False
        raise Stop
signal.signal(signal.SIGALRM, handler)
random.seed(int(sys.argv[1]))
faulthandler.dump_traceback_later(80, exit=True)
def storm(one, seconds, most):
    one()
    begun = time.perf_counter()
    for _ in range(20):
        one()
    usual = max(0.00005, (time.perf_counter() - begun) / 20)
    stops, calls, others, end = 0, 0, [], time.monotonic() + seconds
    while (time.monotonic() < end or stops <= 10) and stops < most:
        try:
            try:
                globals()["armed"] = True
                signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00001, 1.5 * usual))
                one()
                calls += 1
            finally:
                globals()["armed"] = False
                signal.setitimer(signal.ITIMER_REAL, 0)
        except Stop:
            stops += 1
        except Exception as error:
            others.append(repr(error))
    begun = time.monotonic()
    for _ in range(50):
        one()
    return {"stops": stops, "calls": calls, "others": others[:3], "took": time.monotonic() - begun}
"""

ALONE = """
from ratekeeper import Gate
gate = Gate(sys.argv[2], rules=[sys.argv[3]], learn=False)
def one():
    with gate.permit("shop", "GET", "/", timeout=5) as permit:
        permit.settle(status=200, headers={})
def waits():
    with gate.permit("shop", "GET", "/waits", timeout=5) as permit:
        permit.settle()
def in_a_task():
    import asyncio
    async def main():
        async def call():
            async with gate.permit("shop", "GET", "/waits", timeout=5) as permit:
                await asyncio.sleep(0)
                permit.settle()
        await asyncio.gather(call(), call(), call())
    asyncio.run(main())
found = [storm(one, 0.6, 2000), storm(waits, 0.6, 2000)]
careful = True
found.append(storm(in_a_task, 0.6, 2000))
end = time.monotonic() + 8
while True:  # what had no outcome lingers for one period
    time.sleep(0.2)
    one(), waits()
    time.sleep(0.1)
    read = gate.read()
    held = {view.key: view.inflight for view in read.ledgers if view.inflight}
    if not held and not read.permits or time.monotonic() > end:
        break
print(json.dumps({"storms": found, "held": held, "permits": read.permits, "waiting": gate.room.count}))
gate.close()
"""

UNCHANGED = """
import requests
careful = True
session = requests.Session()
found = storm(lambda: session.get(sys.argv[2], timeout=5).raise_for_status(), float(sys.argv[3]), 2000)
from ratekeeper import Gate
gate, far = Gate.shared(), time.monotonic_ns() + 20 * 10**9
held = [grant.id for grant in gate.store._grants.values() if grant.lease > far]
print(json.dumps({"storms": [found], "held": held}))
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A real Redis or Valkey server."""
    with Server(tmp_path / "server") as made:
        yield made


def told(command: list[str], env: dict[str, str]) -> dict[str, Any]:
    """Run a program; returns what it found. It raised nothing but what its handler raised, and served fifty calls after each
    storm without a wait."""
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "helper thread" not in done.stderr, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    for storm in found["storms"]:
        assert storm["others"] == []
        assert storm["took"] < 8
        assert storm["stops"] > 10
    return found


@pytest.mark.parametrize("store", ["memory://", "host://", "redis://"])
def test_a_soft_time_limit_breaks_nothing(store: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Calls that go at once, calls that wait and tasks: whatever was half taken is given back, and nothing stays in flight
    beyond the linger of calls without an outcome."""
    rules = tmp_path / "shop.toml"
    rules.write_text(RULES)
    url = request.getfixturevalue("server").url if store == "redis://" else store
    command = [sys.executable, "-c", STORM + ALONE, "1", url, str(rules)]
    found = told(command, {"RATEKEEPER_HOME": str(tmp_path / "h")})
    assert (found["held"], found["permits"], found["waiting"]) == ({}, 0, 0)


def test_a_soft_time_limit_breaks_no_unchanged_program(tmp_path: Path) -> None:
    """Under `ratekeeper run`, with a session that is used again after each."""
    command = [sys.executable, "-m", "ratekeeper", "run", "--", sys.executable, "-c", STORM + UNCHANGED, "1"]
    with Origin() as origin:
        env = {
            **os.environ,
            "RATEKEEPER_HOME": str(tmp_path / "h"),
            "RATEKEEPER_STORE": "memory://",
            "RATEKEEPER_HOSTS": f"{origin.place}=binance-usdm",
        }
        found = told([*command, origin.url + "/fapi/v1/time", "1.5"], env)
    assert found["held"] == []
