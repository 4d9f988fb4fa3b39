"""The demo's stage: an emulator, three programs in processes of their own, and the figures of what happened.

The figures come from what the emulator counted and what the store knows.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

from ratekeeper.apps.emulator.child import Emulator
from ratekeeper.apps.state import read_state

__all__ = ["PROGRAMS", "Half", "Plan", "Program", "Programs", "as_json", "measure", "perform"]

PROGRAMS = ("ccxt_bot", "requests_bot", "httpx_bot")
CAPACITY = 2400
"""Weight per window: the published number."""
FOLDER = Path(__file__).parent / "programs"
LATENCY = (60.0, 110.0)
"""Milliseconds each way, as to an exchange on another continent."""
AHEAD = 1.5
"""Seconds that must be left before a window's edge for a half to begin with it."""
STOP = 0.05
"""Seconds before a half's end at which the programs are stopped, so that none spends from the next window."""
LOOK = 0.2
"""Seconds between two looks."""


@dataclass(frozen=True)
class Plan:
    """How the demo runs.

    Attributes:
        window: seconds of the weight window.
        windows: whole windows in each half.
        workers: threads or tasks of each program.
        real: whether the window is the published minute.
    """

    window: int
    windows: int
    workers: int
    real: bool = False

    @property
    def seconds(self) -> int:
        """Length of a half."""
        return self.window * self.windows


@dataclass(frozen=True)
class Program:
    """One program's part. `weight` was let through, `waiting` stands at the gate now (weight)."""

    name: str
    answered: int = 0
    weight: int = 0
    throttled: int = 0
    banned: int = 0
    waiting: int = 0


@dataclass
class Half:
    """One half: the three programs without Ratekeeper, or with it.

    Attributes:
        governed: with Ratekeeper.
        seconds: how much of it is over.
        capacity: weight per window.
        level: weight used in the present window.
        windows: share of the budget used, for each complete window, 0 to 1.
        programs: the three programs.
        throttled, banned: calls answered with 429, with 418.
        bans: how often the address was banned.
        banned_seconds: how long it was shut out, so far.
        banned_for: seconds until the present ban ends; 0: none.
        waits: by class: calls that waited, mean and longest wait in seconds.
        before: weight that each program had got when the present (at the end: the last) window began.
        trace: for the picture: (second, share of the window used, what was seen: "" or "429" or "418").
    """

    governed: bool
    seconds: float = 0.0
    capacity: int = 0
    level: int = 0
    windows: list[float] = field(default_factory=list)
    programs: list[Program] = field(default_factory=list)
    throttled: int = 0
    banned: int = 0
    bans: int = 0
    banned_seconds: float = 0.0
    banned_for: float = 0.0
    waits: dict[str, dict[str, float]] = field(default_factory=dict)
    before: dict[str, int] = field(default_factory=dict)
    trace: list[tuple[float, float, str]] = field(default_factory=list)

    @property
    def answered(self) -> int:
        """Calls that were let through."""
        return sum(program.answered for program in self.programs)

    @property
    def budget_used(self) -> float:
        """Share of the budget used over the complete windows, 0 to 1."""
        return sum(self.windows) / len(self.windows) if self.windows else 0.0

    def share(self, program: Program) -> float:
        """Part of the weight let through in this (at the end: the last) window that the program got, 0 to 1."""
        total = sum(each.weight - self.before.get(each.name, 0) for each in self.programs)
        return (program.weight - self.before.get(program.name, 0)) / max(1, total)

    def as_data(self) -> dict[str, Any]:
        """The figures as JSON types."""
        return {
            "seconds": round(self.seconds, 1),
            "budget_used": round(self.budget_used, 4),
            "windows": [round(share, 4) for share in self.windows],
            "calls": self.answered + self.throttled + self.banned,
            "answered": self.answered,
            "throttled": self.throttled,
            "banned": self.banned,
            "bans": self.bans,
            "banned_seconds": round(self.banned_seconds, 1),
            "programs": {
                each.name: {
                    "answered": each.answered,
                    "weight": each.weight,
                    "share_of_last_window": round(self.share(each), 4),
                    "throttled": each.throttled,
                    "banned": each.banned,
                }
                for each in self.programs
            },
            "waits": self.waits,
        }


def measure(half: Half, plan: Plan, begin: float, stats: dict[str, Any], state: dict[str, Any] | None) -> None:
    """Bring a half up to date.

    Args:
        half: is changed.
        plan: how the demo runs.
        begin: Unix seconds at which the half began, a window's edge.
        stats: of the emulator, fresh for this half.
        state: of the store, as `ratekeeper status` has it; None without Ratekeeper.
    """
    now, throttled = stats["now"], half.throttled
    seconds = min(plan.seconds, max(0.0, now - begin))
    if seconds < plan.seconds and seconds // plan.window > half.seconds // plan.window:
        half.before = {each.name: each.weight for each in half.programs}
    half.seconds = seconds
    main = stats["limits"][stats["main"]]
    half.capacity = main["capacity"]
    used = {row["start"]: row["accepted"] for row in stats["windows"] if row["limit"] == stats["main"]}
    starts = [begin + number * plan.window for number in range(plan.windows)]
    half.windows = [used.get(start, 0) / half.capacity for start in starts if start + plan.window <= now]
    half.level = used.get(now - now % plan.window, 0)
    waiting = _waiting(state) if state else {}
    half.programs = [_program(name, stats["clients"].get(name, {}), waiting.get(name, 0)) for name in PROGRAMS]
    half.throttled, half.banned, half.bans = (stats["totals"][name] for name in ("throttled", "banned", "bans"))
    bans = [ban for address in stats["ips"].values() for ban in address["bans"]]
    end = begin + half.seconds
    half.banned_seconds = sum(max(0.0, min(until, end) - since) for since, until in bans)
    half.banned_for = max([until - now for _, until in bans if until > now], default=0.0)
    half.waits = state["waits"] if state else {}
    seen = "418" if half.banned_for else "429" if half.throttled > throttled else ""
    if now < begin + plan.seconds:
        half.trace.append((half.seconds, half.level / half.capacity, seen))


def _program(name: str, counts: dict[str, int], waiting: int) -> Program:
    throttled, banned = counts.get("throttled", 0), counts.get("banned", 0)
    answered = counts.get("arrivals", 0) - throttled - banned
    return Program(name, answered, counts.get("accepted", 0), throttled, banned, waiting)


def _waiting(state: dict[str, Any]) -> dict[str, int]:
    """Weight that waits, by program, on the main limit."""
    found: dict[str, int] = {}
    for limit in state["limits"]:
        for spender in limit["spenders"]:
            name = spender["process"].partition(".")[0]
            found[name] = max(found.get(name, 0), spender["waiting"])
    return found


def as_json(plan: Plan, bare: Half, governed: Half) -> dict[str, Any]:
    """Both halves, and under what rules."""
    limit = {"capacity": governed.capacity, "unit": "weight"}
    return {
        "provider": "binance-usdm",
        "budget": {**limit, "seconds": plan.window},
        "plan": asdict(plan),
        "without_ratekeeper": bare.as_data(),
        "with_ratekeeper": governed.as_data(),
    }


class Programs:
    """Some of the three programs, running. Use it in a ``with`` block: none of them outlives it.

    Args:
        url: of the emulator.
        seconds: how long they run, if nothing stops them before.
        workers: threads or tasks of each.
        hosts: what `Emulator.hosts` says; None: without Ratekeeper.
        home: the state folder under Ratekeeper.
        names: which ones.
        options: further arguments of ``ratekeeper run``.
        more: further environment.
    """

    def __init__(
        self,
        url: str,
        seconds: float,
        workers: int,
        *,
        hosts: str | None,
        home: Path | None = None,
        names: Sequence[str] = PROGRAMS,
        options: Sequence[str] = (),
        more: Mapping[str, str] | None = None,
        errors: Path | None = None,
    ) -> None:
        env = {name: value for name, value in os.environ.items() if not name.startswith("RATEKEEPER_")}
        env |= more or {}
        before: list[str] = []
        if hosts is not None:
            env |= {"RATEKEEPER_HOSTS": hosts, "RATEKEEPER_HOME": str(home)}
            before = [sys.executable, "-m", "ratekeeper", "run", *options, "--"]
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        with open(errors or os.devnull, "ab") as said:  # noqa: PTH123 - devnull is no path of ours
            for number, name in enumerate(names):
                program = str(FOLDER / f"{name}.py")
                self.running[f"{name}-{number}"] = subprocess.Popen(  # noqa: S603 - our own programs
                    [*before, sys.executable, program, url, str(seconds), str(workers)],
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=said,
                    start_new_session=True,  # Ctrl-C reaches them through us, and only once
                )

    def wait(self, timeout: float) -> None:
        """Wait until all have ended by themselves. Raises `subprocess.TimeoutExpired`."""
        end = time.monotonic() + timeout
        for child in self.running.values():
            child.wait(max(0.0, end - time.monotonic()))

    def kill(self, name: str) -> None:
        """Kill one (``kill -9``), whatever it is doing."""
        child = self.running.pop(name)
        child.kill()
        child.wait()

    def close(self) -> None:
        """Stop them all, at once."""
        for child in self.running.values():
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
        for child in self.running.values():
            child.wait()

    def __enter__(self) -> Programs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def perform(plan: Plan, show: Callable[[Half, Half, float], None]) -> tuple[Half, Half]:
    """Run both halves.

    Args:
        plan: how.
        show: called at every look with both halves, and with the seconds until the first begins.

    Returns:
        The half without Ratekeeper and the half with it.
    """
    bare, governed = Half(governed=False), Half(governed=True)
    with ExitStack() as stack:
        home = Path(stack.enter_context(TemporaryDirectory(prefix="ratekeeper-demo-")))
        window, capacity = (None, None) if plan.real else (plan.window, CAPACITY)
        first, second = (
            stack.enter_context(Emulator("binance-usdm", window=window, capacity=capacity, latency=LATENCY))
            for _ in range(2)
        )
        begin = _next_edge(plan.window)
        while (left := begin - time.time()) > 0:
            show(bare, governed, left)
            time.sleep(min(LOOK, left))
        _play(plan, first, None, bare, begin, lambda: show(bare, governed, 0.0))
        first.close()
        _play(plan, second, home, governed, begin + plan.seconds, lambda: show(bare, governed, 0.0))
    return bare, governed


def _next_edge(window: int) -> float:
    """The next edge of a window that leaves time to make ready."""
    now = time.time() + AHEAD
    return now - now % window + window


def _play(
    plan: Plan, emulator: Emulator, home: Path | None, half: Half, begin: float, show: Callable[[], None]
) -> None:
    """One half, until its last window is over."""
    end = begin + plan.seconds
    hosts = None if home is None else emulator.hosts
    with Programs(emulator.url, plan.seconds + 10, plan.workers, hosts=hosts, home=home):
        while (left := end - STOP - time.time()) > 0:
            time.sleep(min(LOOK, left))
            _look(plan, emulator, home, half, begin)
            show()
    time.sleep(max(0.0, end - time.time()))
    _look(plan, emulator, home, half, begin)


def _look(plan: Plan, emulator: Emulator, home: Path | None, half: Half, begin: float) -> None:
    state = None if home is None else read_state(home)
    measure(half, plan, begin, emulator.stats(), state)
