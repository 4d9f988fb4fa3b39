"""Stopping anything: a `stop` that is sync or async, returns nothing or a coroutine, raises or hangs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any, Final, TypeVar

from ratekeeper.rules.reading import redact
from ratekeeper.sessions.work import Loop, Work

__all__ = ["halt", "stop_all", "stop_all_async", "to_the_end"]

_LOG: Final = logging.getLogger("ratekeeper")
_T = TypeVar("_T")


def halt(thing: Any, within: float, loop: Loop) -> str | None:
    """Call `thing.stop()`, or else `thing.aclose()` or `thing.close()`, or `thing` itself if it has none of them.

    Returns:
        What went wrong, in one line without secrets; None if it stopped. Nothing is raised.
    """
    found = next((getattr(thing, name) for name in ("stop", "aclose", "close") if hasattr(thing, name)), thing)
    if not callable(found):
        return f"{type(thing).__name__} has no stop"
    work = Work(found, loop=loop)
    if not work.wait(within):
        work.cancel()
        return f"its stop still hung after {within:g} s"
    if work.error is not None:
        return redact(f"its stop raised {type(work.error).__name__}: {work.error}")
    return None


def stop_all(things: Iterable[Any], within: float = 10.0, loop: Loop | None = None) -> list[str]:
    """Stop components in the reverse of their order, each with a deadline of `within` seconds.

    One that raises or hangs is logged, and the rest are stopped all the same. A plain `stop` is called in a thread.

    Returns:
        What went wrong, one line each; empty if all stopped.
    """
    own = loop or Loop()
    wrong = []
    try:
        for thing in reversed(list(things)):
            problem = halt(thing, within, own)
            if problem:
                wrong.append(f"{type(thing).__name__}: {problem}")
                _LOG.warning("%s", wrong[-1])
    finally:
        if loop is None:
            own.close()
    return wrong


async def stop_all_async(things: Iterable[Any], within: float = 10.0) -> list[str]:
    """`stop_all` for async code: coroutines run on this event loop. A cancelled caller waits for the end all the same."""
    loop = asyncio.get_running_loop()
    return await to_the_end(loop.run_in_executor(None, stop_all, things, within, Loop(loop)))


async def to_the_end(work: asyncio.Future[_T]) -> _T:
    """Await what has a deadline of its own, although this task may be cancelled meanwhile; that is told afterwards."""
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return work.result()
