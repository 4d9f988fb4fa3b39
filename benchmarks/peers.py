"""The peers, each used as its own documentation says, at the published limit and without a safety margin.

Where a library has several ways to do a thing, the one that suits the case best is taken: the fastest call where speed
is measured, the algorithm of the server where truth is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

__all__ = ["PEERS", "Settle", "Take", "keep", "permits", "shared_permits", "taker", "unlimited"]

Settle = Callable[[int, Mapping[str, str]], object]
"""Tells a contender the answer to its request: status and headers. The peers cannot make use of it."""
Take = Callable[[], Awaitable[Settle]]
"""Waits for leave to send one request."""

PEERS = ("aiolimiter", "pyrate-limiter", "limits", "throttled-py", "ccxt")
AMPLE = 10**9
"""A limit that no benchmark of speed reaches."""
SPANS = (1, 60, 3600)
"""Periods of the three limits, in seconds."""


def keep(status: int, headers: Mapping[str, str]) -> None:
    """Do nothing with an answer."""


async def unlimited() -> Settle:
    """Leave without a limit."""
    return keep


def permits(name: str, limits: int, folder: Path) -> Callable[[int], Awaitable[None]]:
    """A coroutine function that takes so many permits, each on `limits` ample limits, in one process, uncontended."""
    return {
        "aiolimiter": _aiolimiter_permits,
        "pyrate-limiter": _pyrate_permits,
        "limits": _limits_permits,
        "throttled-py": _throttled_permits,
        "ccxt": _ccxt_permits,
        "pyrate-limiter SQLite": partial(_sqlite_permits, folder),
    }[name](limits)


def _aiolimiter_permits(limits: int) -> Callable[[int], Awaitable[None]]:
    from aiolimiter import AsyncLimiter

    async def run(count: int) -> None:
        acquires = [AsyncLimiter(AMPLE, span).acquire for span in SPANS[:limits]]
        for _ in range(count):
            for acquire in acquires:
                await acquire()

    return run


def _pyrate_permits(limits: int) -> Callable[[int], Awaitable[None]]:
    from pyrate_limiter import Limiter, Rate

    async def run(count: int) -> None:
        # Several rates in one bucket are its own way to ask several limits at once.
        rates = [Rate(AMPLE * rank, span * 1000) for rank, span in enumerate(SPANS[:limits], 1)]
        with Limiter(rates) as limiter:
            for _ in range(count):
                limiter.try_acquire("k")

    return run


def _limits_permits(limits: int) -> Callable[[int], Awaitable[None]]:
    from limits import RateLimitItemPerSecond
    from limits.storage import MemoryStorage
    from limits.strategies import FixedWindowRateLimiter

    async def run(count: int) -> None:
        hit = FixedWindowRateLimiter(MemoryStorage()).hit
        items = [RateLimitItemPerSecond(AMPLE, span) for span in SPANS[:limits]]
        for _ in range(count):
            for item in items:
                hit(item, "k")

    return run


def _throttled_permits(limits: int) -> Callable[[int], Awaitable[None]]:
    from datetime import timedelta

    from throttled import MemoryStore, RateLimiterType, Throttled, rate_limiter

    async def run(count: int) -> None:
        store = MemoryStore()
        takes = [
            Throttled(
                key=f"k{span}",
                using=RateLimiterType.FIXED_WINDOW.value,
                quota=rate_limiter.per_duration(timedelta(seconds=span), AMPLE),
                store=store,
            ).limit
            for span in SPANS[:limits]
        ]
        for _ in range(count):
            for take in takes:
                take()

    return run


def _ccxt_permits(limits: int) -> Callable[[int], Awaitable[None]]:
    from ccxt.async_support.base.throttler import Throttler

    async def run(count: int) -> None:
        loop = asyncio.get_running_loop()
        takes = [Throttler({"refillRate": AMPLE, "capacity": AMPLE, "tokens": AMPLE}, loop) for _ in SPANS[:limits]]
        for _ in range(count):
            for take in takes:
                await take(1)

    return run


def _sqlite(file: Path, limits: int) -> Any:
    from pyrate_limiter import Limiter, Rate, SQLiteBucket

    # Short periods, so that its count of the rows in a window stays quick.
    rates = [Rate(AMPLE * rank, 1000 * rank) for rank in range(1, limits + 1)]
    return Limiter(SQLiteBucket.init_from_file(rates, db_path=str(file), use_file_lock=True))


def _sqlite_permits(folder: Path, limits: int) -> Callable[[int], Awaitable[None]]:
    async def run(count: int) -> None:
        with _sqlite(folder / f"pyrate-{time.perf_counter_ns()}.sqlite", limits) as limiter:
            for _ in range(count):
                limiter.try_acquire("k")

    return run


def shared_permits(folder: Path) -> Callable[[], Any]:
    """A blocking call that takes one permit on a limit shared by all processes which name the same folder.

    Only pyrate-limiter has that without a server: its SQLite bucket, with the file lock it asks for between processes.
    """
    limiter = _sqlite(folder / "pyrate.sqlite", 1)
    return lambda: limiter.try_acquire("k")


def taker(name: str, kind: str, capacity: int, period: float, folder: Path, *, shared: bool) -> Take:
    """A way to wait for leave under one limit, which several processes are to share if `shared` and if they can."""
    return {
        "aiolimiter": _aiolimiter,
        "pyrate-limiter": _pyrate,
        "limits": _limits,
        "throttled-py": _throttled,
        "ccxt": _ccxt,
    }[name](kind, capacity, period, folder, shared=shared)


def _aiolimiter(kind: str, capacity: int, period: float, folder: Path, *, shared: bool) -> Take:
    from aiolimiter import AsyncLimiter

    limiter = AsyncLimiter(capacity, period)

    async def take() -> Settle:
        await limiter.acquire()
        return keep

    return take


def _pyrate(kind: str, capacity: int, period: float, folder: Path, *, shared: bool) -> Take:
    from pyrate_limiter import (
        FixedWindow,
        InMemoryBucket,
        Limiter,
        Rate,
        SlidingWindowLog,
        SQLiteBucket,
        StateBucket,
        TokenBucket,
    )

    rates = [Rate(capacity, int(period * 1000))]
    algorithm = FixedWindow() if kind == "fixed" else SlidingWindowLog()
    if shared:
        path = str(folder / "pyrate.sqlite")
        limiter = Limiter(SQLiteBucket.init_from_file(rates, db_path=path, use_file_lock=True, algorithm=algorithm))
    elif kind == "bucket":
        limiter = Limiter(StateBucket(rates, algorithm=TokenBucket()))
    else:
        limiter = Limiter(InMemoryBucket(rates, algorithm=algorithm))

    async def take() -> Settle:
        await limiter.try_acquire_async("k")
        return keep

    return take


def _limits(kind: str, capacity: int, period: float, folder: Path, *, shared: bool) -> Take:
    from limits import RateLimitItemPerSecond
    from limits.aio.storage import MemoryStorage
    from limits.aio.strategies import FixedWindowRateLimiter, MovingWindowRateLimiter

    strategy = (FixedWindowRateLimiter if kind == "fixed" else MovingWindowRateLimiter)(MemoryStorage())
    item = RateLimitItemPerSecond(capacity, max(1, int(period)))

    async def take() -> Settle:
        # It does not wait by itself: sleep until the reset that it names, as its documentation shows.
        while not await strategy.hit(item, "k"):
            stats = await strategy.get_window_stats(item, "k")
            await asyncio.sleep(max(0.001, stats.reset_time - time.time()))
        return keep

    return take


def _throttled(kind: str, capacity: int, period: float, folder: Path, *, shared: bool) -> Take:
    from datetime import timedelta

    from throttled.asyncio import MemoryStore, RateLimiterType, Throttled, rate_limiter

    using = {
        "fixed": RateLimiterType.FIXED_WINDOW,
        "sliding": RateLimiterType.SLIDING_WINDOW,
        "bucket": RateLimiterType.TOKEN_BUCKET,
    }[kind]
    quota = rate_limiter.per_duration(timedelta(seconds=period), capacity)
    throttled = Throttled(key="k", using=using.value, quota=quota, store=MemoryStore(), timeout=3600)

    async def take() -> Settle:
        while (await throttled.limit()).limited:
            pass
        return keep

    return take


def _ccxt(kind: str, capacity: int, period: float, folder: Path, *, shared: bool) -> Take:
    from ccxt.async_support.base.throttler import Throttler

    gap = period * 1000 / capacity  # milliseconds between two requests
    leaky = {"refillRate": 1 / gap, "rateLimit": gap, "delay": 0.001, "capacity": 1, "tokens": 0}
    rolling = {"algorithm": "rollingWindow", "windowSize": period * 1000, "rateLimit": gap}
    throttler = Throttler(leaky if kind == "bucket" else rolling, asyncio.get_running_loop())

    async def take() -> Settle:
        await throttler(1)
        return keep

    return take
