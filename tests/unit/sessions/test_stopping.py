"""Stopping components that no supervisor runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from ratekeeper.sessions.stopping import stop_all, stop_all_async


class Part:
    """A component whose stop is the given function."""

    def __init__(self, stop: Callable[[], Any]) -> None:
        self.stop = stop


def parts(done: list[str], hang: threading.Event) -> list[Any]:
    """Components of every kind, the first to be stopped last."""

    async def asynchronous() -> None:
        done.append("async")

    async def hanging() -> None:
        done.append("hangs async")
        await asyncio.Event().wait()

    def raising() -> None:
        done.append("raises")
        raise TypeError("object NoneType can't be used in 'await' expression")

    def waiting() -> None:
        done.append("hangs")
        hang.wait(10)

    return [
        Part(lambda: done.append("sync")),
        Part(asynchronous),
        Part(lambda: asynchronous()),
        lambda: done.append("function"),
        Part(raising),
        Part(waiting),
        Part(hanging),
        None,
    ]


def test_all_are_stopped() -> None:
    """In a thread and on a loop: the last first, whatever their stop is, and what went wrong is told."""
    for asynchronous in (False, True):
        done: list[str] = []
        hang = threading.Event()
        made = parts(done, hang)
        wrong = asyncio.run(stop_all_async(made, 0.1)) if asynchronous else stop_all(made, 0.1)
        hang.set()
        assert done == ["hangs async", "hangs", "raises", "function", "async", "async", "sync"]
        assert wrong == [
            "NoneType: NoneType has no stop",
            "Part: its stop still hung after 0.1 s",
            "Part: its stop still hung after 0.1 s",
            "Part: its stop raised TypeError: object NoneType can't be used in 'await' expression",
        ]


def test_stops_run_on_the_programs_loop() -> None:
    """A coroutine is awaited on the loop of its caller, where what it awaits was made."""

    async def main() -> None:
        loops: list[asyncio.AbstractEventLoop] = []

        async def stop() -> None:
            loops.append(asyncio.get_running_loop())

        assert await stop_all_async([Part(stop)]) == []
        assert loops == [asyncio.get_running_loop()]

    asyncio.run(main())
