"""Three unchanged programs while ``Date`` is wrong: ``make soak-clocks``, or ``python -m benchmarks.soak_clocks``.

Each world has an exchange of its own, whose ``Date`` is off by so much, its counters shown or not, near or far away, and
three programs of its own under ``ratekeeper run`` with their state folder. All worlds live at the same time, on real minutes.
Shown: what was refused, bans, how often another program was suspected, and how much of each full minute was used. Exit status
1 if a world breaks its `Case.law`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from rich.console import Console
from rich.table import Table
from tests.support.server import Server
from tests.support.strict import StrictServer

from ratekeeper.apps.demo.stage import Programs
from ratekeeper.testing import Emulator

__all__ = ["OFFSETS", "Case", "Emulated", "Exchange", "Outcome", "Schedule", "live", "main"]

OFFSETS = (-1.5, -0.4, -0.05, 0.05, 0.4, 1.5)
"""Seconds that ``Date`` is ahead of the clock that counts."""
FAR: dict[str, Any] = {"latency": (200.0, 1500.0), "hang": 0.025, "loss": 0.025}
"""0.2 to 1.5 s each way, and one call in twenty is never answered, counted or not."""
STARTING = 120.0
"""Seconds that all interpreters of all worlds may take at the most."""


@dataclass(frozen=True)
class Case:
    """One world.

    Attributes:
        offset: ``Date`` less the clock that counts, seconds.
        counters: whether answers tell what is used.
        far: whether the exchange is far away and does not answer every call.
        store: ``host`` or ``redis``.
        strict: served by `StrictServer` instead of the emulator.
        options: further options of the emulator.
        least: share of each judged window that must be used; None: as it is on real minutes.
    """

    offset: float
    counters: bool = True
    far: bool = False
    store: str = "host"
    strict: bool = False
    options: tuple[tuple[str, Any], ...] = ()
    least: float | None = None

    @property
    def name(self) -> str:
        """As a table or a test shows it."""
        words = [
            f"{self.offset:+.2f}",
            "counters" if self.counters else "none",
            "far" if self.far else "near",
            self.store,
        ]
        return " ".join(
            [*words, *(["strict"] if self.strict else []), *(f"{name}={value}" for name, value in self.options)]
        )

    @property
    def law(self) -> tuple[int, float]:
        """At most so many times a refusal, and at least this share of each full window.

        Without counters only a refusal can teach that the edge lies elsewhere. Calls that were under way at that moment may
        share its fate. It costs the rest of its window, and of the next one what is carried over.
        """
        least = 0.9 if self.far or not self.counters else 0.98
        return 0 if self.counters else 1, least if self.least is None else self.least


@dataclass(frozen=True)
class Schedule:
    """When a world is judged.

    Attributes:
        window: seconds of the window; `capacity` is its weight.
        skip: whole windows in which the edge may be learned; the window in which the programs start comes before.
        judged: whole windows after these.
        spare: how many of these may fall short because the machine had other things to do.
        workers: threads or tasks of each program.
        lead: an edge comes so many seconds after the exchange has started, whatever this machine's clock says; 0: whenever.
    """

    window: int = 60
    capacity: int = 2400
    skip: int = 2
    judged: int = 3
    spare: int = 0
    workers: int = 6
    lead: float = 0.0

    @property
    def longest(self) -> float:
        """Seconds after which programs end whatever happens."""
        return STARTING + (self.skip + self.judged + 2) * self.window


@dataclass
class Outcome:
    """What happened in a world: instants in Unix seconds of the clock that counts."""

    case: Case
    schedule: Schedule
    refused: list[float] = field(default_factory=list)
    bans: int = 0
    shares: list[float] = field(default_factory=list)
    """Of the judged windows."""
    early: list[float] = field(default_factory=list)
    """Of the windows before them."""
    begin: float = 0.0
    """When the judged windows began."""
    suspected: int = 0
    """How often a program said that another program spends."""

    def faults(self) -> list[str]:
        """What breaks the law; nothing if all is well."""
        most, least = self.case.law
        found = [f"{self.bans} bans"] * bool(self.bans)
        trip = 4.0 if self.case.far else 0.3
        times = [at for at, last in zip(self.refused, [0.0, *self.refused], strict=False) if at - last > trip]
        if len(times) > most:
            begin = self.refused[0]
            found.append(
                f"{len(self.refused)} refused, at +{', +'.join(f'{at - begin:.2f}' for at in self.refused[:12])} s"
            )
        lessons = [] if self.case.counters else [int((at - self.begin) // self.schedule.window) for at in self.refused]
        taught = {number + more for number in lessons for more in (0, 1)}
        short = [share for number, share in enumerate(self.shares) if number not in taught and share < least]
        if len(short) > self.schedule.spare:
            found.append("shares " + ", ".join(f"{share:.1%}" for share in self.shares))
        return found + [f"another program suspected {self.suspected} times"] * bool(self.suspected)


class Exchange(Protocol):
    """What the worlds need of an exchange, whoever counts."""

    url: str
    hosts: str

    def now(self) -> float:
        """The clock that counts, Unix seconds."""

    def served(self) -> int:
        """How many of the programs have got an answer."""

    def accepted(self) -> dict[int, int]:
        """Weight that was let through, by the number of the window."""

    def refused(self) -> list[float]:
        """Instants of refusals, Unix seconds."""

    def bans(self) -> int:
        """How many bans began."""


class Emulated:
    """The emulator, which writes down every arrival."""

    def __init__(self, emulator: Emulator, log: Path, window: int) -> None:
        self.emulator, self._log, self._window = emulator, log, window
        self.url, self.hosts = emulator.url, emulator.hosts

    def now(self) -> float:
        return float(self.emulator.stats()["now"])

    def served(self) -> int:
        clients = self.emulator.stats()["clients"]
        return sum(row["accepted"] > 0 for name, row in clients.items() if name.endswith("_bot"))

    def accepted(self) -> dict[int, int]:
        rows = self.emulator.windows(complete=False)
        return {round(row["start"] / self._window): row["accepted"] for row in rows}

    def refused(self) -> list[float]:
        self.emulator.stats()  # has the log written
        rows = map(json.loads, self._log.read_text().splitlines())
        return [row["t"] for row in rows if row["status"] in (418, 429)]

    def bans(self) -> int:
        return int(self.emulator.stats()["totals"]["bans"])


class _Strict:
    def __init__(self, server: StrictServer) -> None:
        self._server = server
        self.url, self.hosts = server.url, server.hosts

    def now(self) -> float:
        return time.time()

    def served(self) -> int:
        return sum(count > 0 for name, count in self._server.clients.items() if name.endswith("_bot"))

    def accepted(self) -> dict[int, int]:
        return dict(self._server.accepted)

    def refused(self) -> list[float]:
        return list(self._server.refused)

    def bans(self) -> int:
        return len(self._server.bans)


def open_exchange(case: Case, schedule: Schedule, folder: Path, stack: ExitStack) -> Exchange:
    """The exchange of a world."""
    if case.strict:
        strict = StrictServer(schedule.capacity, schedule.window, offset=case.offset, counters=case.counters)
        return _Strict(stack.enter_context(strict))
    skew = schedule.window - (time.time() + schedule.lead) % schedule.window if schedule.lead else 0.0
    options = {"skew": skew, **(FAR if case.far else {}), **dict(case.options)}
    log = folder / "arrivals.jsonl"
    emulator = Emulator(
        "binance-usdm", window=schedule.window, capacity=schedule.capacity, date_offset=case.offset,
        usage_headers=case.counters, log=log, start_timeout=60, **options,
    )  # fmt: skip
    return Emulated(stack.enter_context(emulator), log, schedule.window)


def live(
    case: Case,
    folder: Path,
    schedule: Schedule,
    *,
    ready: Callable[[], object] = lambda: None,
    meanwhile: Callable[[Exchange, ExitStack], object] = lambda _exchange, _stack: None,
) -> Outcome:
    """Run one world to its end.

    Args:
        case: which.
        folder: where its state, its log and what its programs say may lie.
        schedule: how long, and when it is judged.
        ready: called when all three programs are served; waits for other worlds, so that their start does not disturb.
        meanwhile: called at the first edge after that, before the windows to be skipped, with a stack that closes at the end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    said, window = folder / "said.txt", schedule.window
    with ExitStack() as stack:
        exchange = open_exchange(case, schedule, folder, stack)
        more = {"RATEKEEPER_STORE": stack.enter_context(Server(folder / "server")).url} if case.store == "redis" else {}
        programs = Programs(
            exchange.url,
            schedule.longest,
            schedule.workers,
            hosts=exchange.hosts,
            home=folder / "home",
            more=more,
            errors=said,
        )
        stack.enter_context(programs)
        end = time.monotonic() + STARTING
        while exchange.served() < len(programs.running):
            if time.monotonic() > end:
                raise TimeoutError(
                    f"{case.name}: {exchange.served()} programs were served; they said: {said.read_text()}"
                )
            time.sleep(0.2)
        ready()
        first = int(exchange.now() // window) + 1
        time.sleep(max(0.0, first * window - exchange.now()))
        during = stack.enter_context(ExitStack())
        meanwhile(exchange, during)
        begin, after = first + schedule.skip, first + schedule.skip + schedule.judged
        time.sleep(max(0.0, after * window - exchange.now()) + 0.1)
        programs.close()
        during.close()
        accepted = exchange.accepted()
        shares = {number: accepted.get(number, 0) / schedule.capacity for number in range(first, after)}
        return Outcome(
            case,
            schedule,
            exchange.refused(),
            exchange.bans(),
            [shares[number] for number in range(begin, after)],
            [shares[number] for number in range(first, begin)],
            begin * window,
            said.read_text().count("another program spends"),
        )


def _cases(stores: Sequence[str]) -> Iterator[Case]:
    for store in stores:
        for counters in (True, False):
            yield from (Case(offset, counters, store=store) for offset in OFFSETS)
            yield from (Case(offset, counters, far=True, store=store) for offset in (-1.5, 1.5))


def main(arguments: Sequence[str] | None = None) -> bool:
    """Run all worlds and print the table; returns whether all was well."""
    parser = argparse.ArgumentParser(description="Three programs on real minutes while Date is wrong.")
    parser.add_argument("--minutes", type=int, default=6, help="full minutes, the first two of which are not judged")
    parser.add_argument("--stores", default="host", help="host, redis or host,redis: each store is sixteen worlds more")
    chosen = parser.parse_args(arguments)
    schedule = Schedule(judged=max(1, chosen.minutes - 2))
    cases = list(_cases(chosen.stores.split(",")))
    console = Console(width=140)
    console.print(f"{len(cases)} worlds, three programs each, {chosen.minutes} full minutes", highlight=False)
    with TemporaryDirectory() as folder, ThreadPoolExecutor(len(cases)) as pool:
        started = [pool.submit(live, case, Path(folder) / str(number), schedule) for number, case in enumerate(cases)]
        outcomes = [one.result() for one in started]
    table = Table(
        "offset", "counters", "delays", "store", "refused", "bans", "suspected", "share of each full minute", "law"
    )
    for outcome in outcomes:
        case = outcome.case
        shares = " ".join(f"{share:.1%}" for share in outcome.shares)
        early = " ".join(f"({share:.1%})" for share in outcome.early)
        table.add_row(
            f"{case.offset:+.2f} s", "yes" if case.counters else "no", "0.2-1.5 s, 5 % lost" if case.far else "none",
            case.store, str(len(outcome.refused)), str(outcome.bans), str(outcome.suspected), f"{early} {shares}",
            "broken" if outcome.faults() else "kept",
        )  # fmt: skip
    console.print(table)
    return not any(outcome.faults() for outcome in outcomes)


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
