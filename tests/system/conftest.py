"""What the system tests share: programs under ``headgate run``, and what the emulator saw of them.

Windows are 5 s long here: the emulator's list of limits declares them, and Headgate learns them from it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from headgate.apps.demo.stage import Programs
from headgate.testing import Emulator

WINDOW, CAPACITY, WORKERS = 5, 1000, 4
STARTING = 2.0
"""Seconds that three interpreters may take until all of them ask."""


class World:
    """One emulator, one state folder, and programs under ``headgate run``.

    Attributes:
        emulator: the exchange.
        home: the state folder.
        said: file of what the programs write to stderr, Headgate's warnings among it.
    """

    def __init__(self, folder: Path, stack: ExitStack, **options: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.home = folder / "home"
        self.said = folder / "said.txt"
        self._log = folder / "arrivals.jsonl"
        self._stack = stack
        settings = {"window": WINDOW, "capacity": CAPACITY, "log": str(self._log), **options}
        self.emulator = stack.enter_context(Emulator("binance-usdm", **settings))

    def start(self, seconds: float, **options: Any) -> Programs:
        """The three programs, or those named in `options`, for so many seconds."""
        settings = {"hosts": self.emulator.hosts, "home": self.home, "workers": WORKERS, "errors": self.said, **options}
        return self._stack.enter_context(Programs(self.emulator.url, seconds, **settings))

    def run(self, seconds: float, **options: Any) -> list[float]:
        """Run programs to their end; returns the share used of each whole window in which all were awake."""
        begin = self.now()
        self.start(seconds, **options).wait(seconds + 30)
        return self.shares(begin + STARTING, begin + seconds)

    def now(self) -> float:
        """The emulator's time."""
        return float(self.emulator.stats()["now"])

    def shares(self, begin: float, end: float) -> list[float]:
        """The share used of each whole window between two instants of the emulator's clock."""
        used = {row["start"]: row for row in self.emulator.windows()}
        first = -(-begin // WINDOW) * WINDOW
        starts = [first + number * WINDOW for number in range(int((end - first) // WINDOW))]
        return [used[start]["accepted"] / used[start]["capacity"] if start in used else 0.0 for start in starts]

    def arrivals(self, *statuses: int) -> list[float]:
        """Instants at which calls arrived that got one of these statuses."""
        self.emulator.stats()  # has the log written
        rows = [json.loads(line) for line in self._log.read_text().splitlines()]
        return [row["t"] for row in rows if row["status"] in statuses]

    def next_edge(self) -> float:
        """Sleep until a window begins; returns the emulator's time then."""
        now = self.now()
        time.sleep(WINDOW - now % WINDOW)
        return now - now % WINDOW + WINDOW

    def refused(self) -> tuple[int, int]:
        """How many calls were answered with 429, and with 418."""
        totals = self.emulator.stats()["totals"]
        return totals["throttled"], totals["banned"]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Callable[..., World]]:
    """Makes a `World` with the given options of the emulator; its programs end with the test."""
    with ExitStack() as stack:
        yield lambda **options: World(tmp_path, stack, **options)
