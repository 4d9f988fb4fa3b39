"""Several processes that take permits on one shared limit as fast as they can."""

from __future__ import annotations

import tempfile
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.contenders import shared_permits
from benchmarks.measure import spawn

__all__ = ["Rush", "rush"]


class Rush(NamedTuple):
    """Permits a second: of all processes together, of the slowest and of the fastest; and the longest single permit."""

    total: float
    slowest: float
    fastest: float
    worst: float
    """Seconds."""


def _process(name: str, folder: Path, seconds: float, start: Barrier, pipe: Any) -> None:
    take = shared_permits(name, folder)
    for _ in range(20):
        take()
    start.wait()
    count, worst, begun = 0, 0.0, time.perf_counter()
    last, end = begun, begun + seconds
    while last < end:
        take()
        now = time.perf_counter()
        worst = max(worst, now - last)
        last = now
        count += 1
    pipe.send((count / (last - begun), worst))


def rush(name: str, processes: int, seconds: float) -> Rush:
    """Let so many processes contend for so long."""
    with tempfile.TemporaryDirectory() as folder:
        start = spawn.Barrier(processes)
        pipes = [spawn.Pipe() for _ in range(processes)]
        running = [
            spawn.Process(target=_process, args=(name, Path(folder), seconds, start, theirs), daemon=True)
            for _, theirs in pipes
        ]
        for process in running:
            process.start()
        try:
            found = [ours.recv() if ours.poll(seconds + 60) else (0.0, seconds + 60) for ours, _ in pipes]
        finally:
            for process in running:
                process.kill()
                process.join()
    rates = [rate for rate, _ in found]
    return Rush(sum(rates), min(rates), max(rates), max(worst for _, worst in found))
