"""What the system tests share: programs under ``ratekeeper run``, and what the emulator saw of them.

Windows are 5 s long here: the emulator's list of limits declares them, and Ratekeeper learns them from it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.support.awake import served, until_served
from tests.support.stood import Stood
from tests.support.warm import governed

from ratekeeper.apps.demo.stage import Programs
from ratekeeper.testing import Emulator

WINDOW, CAPACITY, WORKERS = 5, 1000, 4
LONG = 90
"""Seconds after which programs end whatever happens; tests end them long before."""


class World:
    """One emulator, one state folder, and programs under ``ratekeeper run``.

    Attributes:
        emulator: the exchange.
        home: the state folder.
        said: file of what the programs write to stderr, Ratekeeper's warnings among it.
    """

    def __init__(self, folder: Path, stack: ExitStack, **options: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.home = folder / "home"
        self.said = folder / "said.txt"
        self._log = folder / "arrivals.jsonl"
        self._stack = stack
        settings = {"window": WINDOW, "capacity": CAPACITY, "log": str(self._log), **options}
        self.emulator = stack.enter_context(Emulator("binance-usdm", **settings))
        self._stood = stack.enter_context(Stood())
        self._ahead = self.now() - time.time()

    def start(self, *, asleep: bool = False, **options: Any) -> Programs:
        """The three programs, or those named in `options`; returns when all of them are served, or at once (`asleep`)."""
        settings = {"hosts": self.emulator.hosts, "home": self.home, "workers": WORKERS, "errors": self.said, **options}
        before = served(self.emulator)
        programs = self._stack.enter_context(Programs(self.emulator.url, LONG, **settings))
        if not asleep:
            until_served(self.emulator, len(programs.running), before)
        return programs

    def run(self, windows: int, **options: Any) -> list[float]:
        """Run programs for so many whole windows in which all of them are awake; returns the share used of each."""
        with self.start(**options):
            begin = self.next_edge()
            time.sleep(windows * WINDOW)
        return self.shares(begin, begin + windows * WINDOW)

    def now(self) -> float:
        """The emulator's time."""
        return float(self.emulator.stats()["now"])

    def shares(self, begin: float, end: float) -> list[float]:
        """The same, and the part of each window in which the machine let nobody here run: nobody could use that."""
        first = -(-begin // WINDOW) * WINDOW - self._ahead
        return [
            share + self._stood.share(first + number * WINDOW, first + (number + 1) * WINDOW)
            for number, share in enumerate(self.used(begin, end))
        ]

    def used(self, begin: float, end: float) -> list[float]:
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


@pytest.fixture(scope="module")
def warm_programs() -> Iterator[None]:
    """Programs under ``ratekeeper run`` do not wait for imports either: for tests of what they do once they run."""
    with governed():
        yield


@pytest.fixture
def warm_program() -> Iterator[None]:
    """The same for one test, where others of its module start fresh ones."""
    with governed():
        yield


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Callable[..., World]]:
    """Makes a `World` with the given options of the emulator; its programs end with the test."""
    with ExitStack() as stack:
        yield lambda name="world", **options: World(tmp_path / name, stack, **options)
