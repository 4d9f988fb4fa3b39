"""Programs on gevent and eventlet under `ratekeeper run`: their calls wait as in threads, or they are told what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ratekeeper.testing import Emulator

PATCHES = {
    "gevent": "import gevent.monkey; gevent.monkey.patch_all()",
    "eventlet": "import eventlet; eventlet.monkey_patch()",
}
SPAWN = {
    "gevent": "import gevent; gevent.joinall([gevent.spawn(calls, each) for each in range(6)])",
    "eventlet": "pool = eventlet.GreenPool(); [pool.spawn(calls, each) for each in range(6)]; pool.waitall()",
}
PROGRAM = """
import collections, json, sys, threading, time
import requests
seen, ticks = collections.Counter(), []
def calls(each):
    for _ in range(4):
        try:
            seen[requests.get(sys.argv[1], timeout=5).status_code] += 1
        except Exception as error:
            seen[f"{type(error).__name__}: {error}"] += 1
def tick():
    while True:
        ticks.append(time.monotonic())
        time.sleep(0.01)
threading.Thread(target=tick, daemon=True).start()
"""
TOLD = """
print(json.dumps({"seen": seen, "ticks": len(ticks)}))
"""


def run(program: str, emulator: Emulator, tmp_path: Path) -> tuple[dict[str, int], int]:
    """Run a program; returns how often it saw which status or error, and how often another greenlet had its turn."""
    env = {
        **os.environ,
        "RATEKEEPER_HOME": str(tmp_path / "home"),
        "RATEKEEPER_HOSTS": emulator.hosts,
        "EVENTLET_NO_GREENDNS": "yes",  # its resolver imports whatever HTTP client is installed, half replaced
    }
    done = subprocess.run(
        [sys.executable, "-m", "ratekeeper", "run", "--", sys.executable, "-c", program, f"{emulator.url}/fapi/v1/time"],
        env=env, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    told = json.loads(done.stdout)
    return told["seen"], told["ticks"]


@pytest.mark.parametrize("library", ["gevent", "eventlet"])
def test_greenlets_wait_as_threads_do(library: str, tmp_path: Path) -> None:
    """Six greenlets share a limit that is too small for them: all calls are served, none is throttled, and a greenlet that
    makes no calls goes on meanwhile."""
    with Emulator("binance-usdm", window=1, capacity=15) as emulator:
        seen, ticks = run(PATCHES[library] + PROGRAM + SPAWN[library] + TOLD, emulator, tmp_path)
    assert seen == {"200": 24}
    assert ticks > 10


def test_half_a_patch_is_refused_in_one_sentence(tmp_path: Path) -> None:
    """Where sockets are replaced and threads are not, one waiting call would stop all greenlets for good."""
    half = PATCHES["gevent"].replace("patch_all()", "patch_all(thread=False)")
    with Emulator("binance-usdm", window=1, capacity=15) as emulator:
        seen, _ = run(half + PROGRAM + SPAWN["gevent"] + TOLD, emulator, tmp_path)
    ((why, times),) = seen.items()
    assert times == 24
    assert "gevent has replaced a part of the standard library, but not threads" in why
    assert "call gevent.monkey.patch_all() without arguments" in why
