"""Exceptions that a signal's handler raises, anywhere in our code: the same process goes on using its gate."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import faulthandler, json, random, signal, sys, time
from ratekeeper import Gate
class Stop(Exception): pass
armed = False
def handler(*_):
    global armed
    if armed:
        armed = False
        raise Stop
signal.signal(signal.SIGALRM, handler)
random.seed(int(sys.argv[1]))
faulthandler.dump_traceback_later(60, exit=True)
gate = Gate(learn=False)
def one():
    with gate.permit("binance-spot", "GET", "/api/v3/time", timeout=5) as permit:
        permit.settle(status=200, headers={})
one()
stops, calls, others, end = 0, 0, [], time.time() + float(sys.argv[2])
while time.time() < end:
    try:
        armed = True
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00002, 0.0006))
        one()
        calls += 1
    except Stop:
        stops += 1
    except Exception as error:
        others.append(repr(error))
    armed = False
    signal.setitimer(signal.ITIMER_REAL, 0)
begun = time.time()
for _ in range(50):
    one()
print(json.dumps({"stops": stops, "calls": calls, "others": others[:3], "took": time.time() - begun}))
"""
WIDE = """
[providers.binance-spot.limits.weight-1m]
capacity = 10000000
[providers.binance-spot.limits.requests-5m]
capacity = 10000000
"""


@pytest.mark.parametrize("store", ["host://", "memory://"])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_soft_time_limit_breaks_nothing(store: str, seed: int, tmp_path: Path) -> None:
    """Struck hundreds of times at random moments, it raises nothing but what the handler raised, hangs nowhere, and serves
    fifty calls afterwards without a wait."""
    config = tmp_path / "ratekeeper.toml"
    config.write_text(WIDE)
    env = {"RATEKEEPER_HOME": str(tmp_path / "h"), "RATEKEEPER_STORE": store, "RATEKEEPER_CONFIG": str(config)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(seed), "2"],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["others"] == []
    assert told["stops"] > 20
    assert told["took"] < 4
