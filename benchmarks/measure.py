"""How things are measured: medians of interleaved rounds, and functions run in fresh processes."""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

__all__ = ["child", "interleaved", "spawn"]

spawn = multiprocessing.get_context("spawn")


def interleaved(runs: Mapping[str, Callable[[int], Awaitable[None]]], count: int, rounds: int) -> dict[str, float]:
    """Microseconds per permit: the median of several rounds, each of which gives every contender its turn.

    Taking turns spreads whatever else the machine does evenly over all of them.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():

            async def once(run: Callable[[int], Awaitable[None]] = run) -> float:
                await run(count // 10)  # warm up
                begun = time.perf_counter()
                await run(count)
                return time.perf_counter() - begun

            times[name].append(asyncio.run(once()) / count * 1e6)
    return {name: statistics.median(found) for name, found in times.items()}


def child(function: Callable[..., Any], *arguments: Any, timeout: float = 300.0) -> Any:
    """What a function returns when it runs alone in a fresh process; None if it takes longer than `timeout` seconds."""
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_call, args=(theirs, function, arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        return ours.recv() if ours.poll(timeout) else None
    except EOFError:
        raise RuntimeError(f"{function.__name__}{arguments} died") from None
    finally:
        process.kill()
        process.join()


def _call(pipe: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    pipe.send(function(*arguments))
