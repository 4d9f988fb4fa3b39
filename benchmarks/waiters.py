"""Very many tasks that wait for one limit at the same time."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.contenders import taker
from benchmarks.measure import child

__all__ = ["CAPACITY", "PERIOD", "Crowd", "crowd"]

CAPACITY, PERIOD = 5000, 1.0
"""The limit, a bucket: five thousand at once and five thousand a second. PERIOD is in seconds."""
PATIENCE = 60.0
"""Seconds after which a contender is stopped."""


class Crowd(NamedTuple):
    """How a crowd got through: how many, in how many seconds, with how many seconds of one core."""

    through: int
    seconds: float
    cpu: float


async def _crowd(name: str, count: int, folder: Path) -> Crowd:
    take = taker(name, "bucket", CAPACITY, PERIOD, folder)
    through = 0

    async def one() -> None:
        nonlocal through
        settle = await take()
        settle(200, {})
        through += 1

    (await take())(200, {})  # whatever a contender makes on its first use is not the crowd's
    begun, cpu = time.perf_counter(), time.process_time()
    try:
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*(one() for _ in range(count)))
    except TimeoutError:
        pass
    return Crowd(through, time.perf_counter() - begun, time.process_time() - cpu)


def _run(name: str, count: int) -> Crowd:
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_crowd(name, count, Path(folder)))


def crowd(name: str, count: int) -> Crowd | None:
    """Send a crowd through one contender, in a process of its own; None if even stopping it took too long."""
    found: Crowd | None = child(_run, name, count, timeout=2 * PATIENCE)
    return found
