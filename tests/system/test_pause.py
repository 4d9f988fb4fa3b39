"""The emergency stop: several processes trade over real HTTP; a pause stops their orders at once, and cancels pass."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.support.server import Server

from ratekeeper.testing import Emulator

pytestmark = pytest.mark.alone

TRADER = Path(__file__).parents[1] / "support" / "trader.py"
PROCESSES = 3
ORDER, CANCEL = "POST /fapi/v1/order", "DELETE /fapi/v1/order"
LATEST = 0.5
"""Seconds after the command's end at which an order may still arrive: 0.1 are promised, the rest is for a loaded machine."""
TIGHT = {"orders-10s": (20, 1.0)}
"""Every process always has calls waiting for the next window."""
WIDE = {"orders-10s": (1_000_000, 10.0), "orders-1m": (1_000_000, 60.0), "weight-1m": (1_000_000, 60.0)}
"""Nobody ever waits: permits are taken several at once, ahead of the calls."""


class Trading:
    """Traders at work against one emulator.

    Args:
        folder: for state and the emulator's log.
        stack: what is started ends with it.
        limits: of the emulator.
        store: ``RATEKEEPER_STORE``.
    """

    def __init__(self, folder: Path, stack: ExitStack, limits: dict[str, tuple[int, float]], store: str) -> None:
        self.log = folder / "arrivals"
        self.emulator = stack.enter_context(Emulator("binance-usdm", limits=limits, log=self.log))
        self.environment = {
            **os.environ,
            "RATEKEEPER_HOME": str(folder / "home"),
            "RATEKEEPER_STORE": store,
            "RATEKEEPER_HOSTS": self.emulator.hosts,
        }
        self.traders = [stack.enter_context(self._trader(number)) for number in range(PROCESSES)]

    def _trader(self, number: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(TRADER), self.emulator.url, f"key{number}", "4"]
        return subprocess.Popen(command, env=self.environment, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def ratekeeper(self, *arguments: str) -> float:
        """Run a command; returns the instant (Unix seconds) at which it was over."""
        done = subprocess.run(
            [sys.executable, "-m", "ratekeeper", *arguments], env=self.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return time.time()

    def arrivals(self, route: str, since: float = 0.0, until: float = 1e12) -> list[dict[str, object]]:
        """What arrived at the emulator on a route between two instants (Unix seconds)."""
        self.emulator.stats()  # writes the log out
        rows = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [row for row in rows if row["route"] == route and since < row["t"] <= until and row["status"] == 200]

    def accounts(self, route: str, since: float) -> int:
        """How many of the traders were heard of on a route."""
        return len({row["account"] for row in self.arrivals(route, since)})

    def end(self) -> None:
        """Let the traders finish."""
        for trader in self.traders:
            assert trader.stdin is not None
            trader.stdin.close()
        for trader in self.traders:
            trader.wait(timeout=30)


def until(true: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait for something that happens soon."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


@pytest.fixture(params=["host", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of a shared store."""
    if request.param == "host":
        yield "host://"
        return
    with Server(tmp_path / "server") as server:
        yield server.url


@pytest.mark.parametrize(("scope", "limits"), [("orders", TIGHT), ("everything", WIDE)], ids=["tight", "wide"])
def test_a_pause_stops_orders_of_all_processes_and_lets_cancels_pass(
    tmp_path: Path,
    store: str,
    scope: str,
    limits: dict[str, tuple[int, float]],
    record_property: Callable[[str, object], None],
) -> None:
    """After the command no order arrives any more, from whatever process or queue; cancels do; resumed, orders flow."""
    with ExitStack() as stack:
        trading = Trading(tmp_path, stack, limits, store)
        until(lambda: len(trading.arrivals(CANCEL)) >= 2 * PROCESSES and trading.accounts(CANCEL, 0) == PROCESSES)
        paused = trading.ratekeeper("pause", scope)
        time.sleep(2.5)  # windows turn meanwhile, and permit batches close
        before = time.time()
        resumed = trading.ratekeeper("resume", scope)
        until(lambda: trading.accounts(ORDER, resumed) == PROCESSES)
        trading.end()
        late = [float(str(row["t"])) - paused for row in trading.arrivals(ORDER, paused, before)]
        record_property("last order, seconds after the command", max(late, default=0.0))
        print(f"{store.partition(':')[0]} {scope}: last order {max(late, default=0.0):.3f} s after the command")
        assert [each for each in late if each > LATEST] == []
        assert trading.accounts(CANCEL, paused + LATEST) == PROCESSES
        assert len(trading.arrivals(CANCEL, paused + LATEST, before)) >= PROCESSES
        assert trading.emulator.stats()["totals"]["throttled"] == 0
