"""Permits through one Redis or Valkey server: how many a second, and how many round trips each costs."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.server import Server

from benchmarks.measure import spawn
from benchmarks.ours import LIMIT, _gate
from benchmarks.peers import AMPLE

__all__ = ["FULL", "LOADED", "LOOPS", "TASKS", "Load", "load"]

TASKS = 64
LOOPS = ("ratekeeper", "limits", "pyrate-limiter")
"""One caller after the other, in a loop."""
REACHED = 5000
"""Permits a second of a limit that all want more of."""
FULL = f"ratekeeper, {TASKS} tasks, {REACHED:,} a second allowed"
LOADED = tuple(f"{name}, {TASKS} tasks" for name in LOOPS)
"""So many tasks of an event loop that ask at once."""

Once = Callable[[], object]
OnceAsync = Callable[[], Awaitable[object]]


class Load(NamedTuple):
    """What processes and their server did.

    Attributes:
        rate: permits a second, all processes together.
        trips: round trips per permit, as the server counts what it reads.
        busy: of the server, us per permit.
    """

    rate: float
    trips: float
    busy: float


def _loop(name: str, url: str, folder: Path) -> Once:
    if name == "ratekeeper":
        gate = _gate(folder, url, LIMIT.format(name="only", capacity=AMPLE, period=1, window="fixed", used=""))

        def take() -> None:
            with gate.permit("benchmark", "GET", "/"):
                pass

        return take
    if name == "limits":
        from limits import RateLimitItemPerSecond
        from limits.storage import RedisStorage
        from limits.strategies import FixedWindowRateLimiter

        hit, item = FixedWindowRateLimiter(RedisStorage(url)).hit, RateLimitItemPerSecond(AMPLE, 1)
        return lambda: hit(item, "k")
    from pyrate_limiter import Limiter, Rate, RedisBucket
    from redis import Redis

    # A short period, so that its count of the members in a window stays quick.
    limiter = Limiter(RedisBucket.init([Rate(AMPLE, 1000)], Redis.from_url(url), "bucket"))
    return lambda: limiter.try_acquire("k")


async def _task(name: str, url: str, folder: Path, capacity: int) -> OnceAsync:
    if name == "ratekeeper":
        # Nobody tells this server's clock: a bucket has no edge to be in doubt about.
        window = "fixed" if capacity == AMPLE else "bucket"
        gate = _gate(folder, url, LIMIT.format(name="only", capacity=capacity, period=1, window=window, used=""))

        async def take() -> None:
            async with gate.permit("benchmark", "GET", "/"):
                await asyncio.sleep(0)  # the call

        return take
    if name == "limits":
        from limits import RateLimitItemPerSecond
        from limits.aio.storage import RedisStorage
        from limits.aio.strategies import FixedWindowRateLimiter

        storage = RedisStorage(f"async+{url}", implementation="redispy")
        hit, item = FixedWindowRateLimiter(storage).hit, RateLimitItemPerSecond(AMPLE, 1)
        return lambda: hit(item, "k")
    from pyrate_limiter import Limiter, Rate, RedisBucket
    from redis.asyncio import Redis

    made: Any = RedisBucket.init([Rate(AMPLE, 1000)], Redis.from_url(url), "bucket")
    limiter = Limiter(await made)
    return lambda: limiter.try_acquire_async("k")


async def _many(name: str, url: str, folder: Path, seconds: float, start: Barrier) -> float:
    once, count = await _task(name.partition(",")[0], url, folder, REACHED if name == FULL else AMPLE), 0

    async def worker(end: float) -> None:
        nonlocal count
        while time.perf_counter() < end:
            await once()
            count += 1

    await asyncio.gather(*(worker(time.perf_counter() + 0.2) for _ in range(TASKS)))  # warm up
    start.wait()
    count, begun = 0, time.perf_counter()
    await asyncio.gather(*(worker(begun + seconds) for _ in range(TASKS)))
    return count / (time.perf_counter() - begun)


def _process(name: str, url: str, folder: Path, seconds: float, start: Barrier, pipe: Any) -> None:
    if name == FULL or name in LOADED:
        pipe.send(asyncio.run(_many(name, url, folder, seconds, start)))
        return
    once = _loop(name, url, folder)
    for _ in range(200):
        once()
    start.wait()
    count, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        once()
        count += 1
    pipe.send(count / (time.perf_counter() - begun))


def _one(name: str, processes: int, seconds: float) -> Load:
    import redis

    with tempfile.TemporaryDirectory() as made, Server(Path(made) / "server") as server:
        start = spawn.Barrier(processes + 1)
        pipes = [spawn.Pipe() for _ in range(processes)]
        running = [
            spawn.Process(
                target=_process, args=(name, server.url, Path(made) / str(n), seconds, start, theirs), daemon=True
            )
            for n, (_, theirs) in enumerate(pipes)
        ]
        for process in running:
            process.start()
        try:
            with redis.Redis(port=server.port) as client:
                start.wait(60)
                before = client.info()
                rates = [ours.recv() if ours.poll(seconds + 60) else 0.0 for ours, _ in pipes]
                after = client.info()
        finally:
            for process in running:
                process.kill()
                process.join()
        permits = max(1.0, sum(rates) * seconds)
        reads = after["total_reads_processed"] - before["total_reads_processed"]
        spent = sum(
            after[f"used_cpu_{kind}_main_thread"] - before[f"used_cpu_{kind}_main_thread"] for kind in ("user", "sys")
        )
        return Load(sum(rates), reads / permits, spent / permits * 1e6)


def load(names: tuple[str, ...], processes: int, seconds: float, rounds: int) -> dict[str, Load]:
    """The median of several rounds, in which the contenders take turns, each on a fresh server."""
    found: dict[str, list[Load]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            found[name].append(_one(name, processes, seconds))
    return {
        name: Load(*(statistics.median(column) for column in zip(*runs, strict=True))) for name, runs in found.items()
    }
