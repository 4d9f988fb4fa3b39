"""The demo's stage: an emulator, three programs in processes of their own, and somebody who watches."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType

from ratekeeper.apps.demo.figures import PROGRAMS, Half, Plan, measure
from ratekeeper.apps.emulator.child import Emulator
from ratekeeper.apps.state import as_data, read_state

__all__ = ["Programs", "perform"]

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
    state = None if home is None else as_data(*read_state(home))
    measure(half, plan, begin, emulator.stats(), state)
