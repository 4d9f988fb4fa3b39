"""Flows written once for threads and for tasks: generators that yield the functions to call, and their drivers."""

from __future__ import annotations

import functools
import time
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Final, TypeAlias, TypeVar

from ratekeeper.errors import StoreError
from ratekeeper.stores.worker import Pending, Worker

__all__ = [
    "Steps",
    "apart",
    "drive",
    "drive_async",
    "on_asyncio",
    "pausing",
    "waiting",
    "within",
]

_LONGEST: Final = 30.0
"""A flow waits at most this many seconds for the store's worker."""

T = TypeVar("T")
Steps: TypeAlias = Generator[Callable[[], Any], Any, T]
"""A flow yields the functions to call. The asyncio driver awaits what each function returns."""


def drive(steps: Steps[T]) -> T:
    """Run a flow in this thread."""
    try:
        step = next(steps)
        while True:
            try:
                value = step()
            except BaseException as error:  # noqa: BLE001 - handed to the flow, which raises it again
                step = steps.throw(error)
            else:
                step = steps.send(value)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


async def drive_async(steps: Steps[T]) -> T:
    """Run a flow on asyncio."""
    try:
        step = next(steps)
        while True:
            try:
                value = await step()
            except BaseException as error:  # noqa: BLE001 - also a cancellation: the flow raises it again
                step = steps.throw(error)
            else:
                step = steps.send(value)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


def waiting(
    blocking: Callable[[], Any], awaiting: Callable[[], Awaitable[Any]] | None, *, is_async: bool
) -> Callable[[], Any]:
    """Return the step that a flow yields to wait.

    Args:
        blocking: waits in a thread.
        awaiting: waits on asyncio; None: a worker thread runs `blocking`.
        is_async: whether `drive_async` drives the flow. On another event loop (httpx also runs on trio) a worker thread
            waits.
    """
    if not is_async:
        return blocking
    if awaiting is not None and on_asyncio():
        return awaiting
    return functools.partial(_elsewhere, blocking)


def apart(worker: Worker, topic: str, work: Callable[[], T], otherwise: T, *, is_async: bool) -> Steps[T]:
    """Run `work` on the store's worker; return its result.

    Args:
        worker, topic, work: see `Worker.start`.
        otherwise: the result if the worker cannot run it in time: it has too much to do, or the gate is closed.
        is_async: as for `waiting`.
    """
    got = worker.start(topic, work)
    if isinstance(got, Pending):
        try:
            got = yield waiting(
                functools.partial(got.result, _LONGEST),
                functools.partial(got.result_async, _LONGEST),
                is_async=is_async,
            )
        except StoreError:
            return otherwise
    return got


def pausing(seconds: float, *, is_async: bool) -> Callable[[], Any]:
    """Return the step that a flow yields to sleep."""
    return waiting(functools.partial(time.sleep, seconds), functools.partial(_sleep, seconds), is_async=is_async)


async def _sleep(seconds: float) -> None:
    import asyncio

    await asyncio.sleep(seconds)


def within(steps: Steps[T], seconds: float, late: Callable[[], Exception]) -> Steps[T]:
    """Limit a flow, driven by `drive_async` on asyncio, to `seconds`.

    Raises:
        Exception: the error from `late`, inside the flow, when the time has passed.
    """
    ends = time.monotonic() + seconds
    try:
        step = next(steps)
        while True:
            try:
                value = yield functools.partial(_in_time, step, ends, late)
            except BaseException as error:  # noqa: BLE001 - handed to the flow, which raises it again
                step = steps.throw(error)
            else:
                step = steps.send(value)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


async def _in_time(step: Callable[[], Awaitable[Any]], ends: float, late: Callable[[], Exception]) -> Any:
    import asyncio

    try:
        async with asyncio.timeout(max(0.0, ends - time.monotonic())) as time_left:
            return await step()
    except TimeoutError as error:
        if time_left.expired():
            raise late() from error
        raise


def on_asyncio() -> bool:
    """Whether an asyncio event loop runs here, and not another kind."""
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def _elsewhere(wait: Callable[[], Any]) -> Any:
    """Wait in a worker thread: of asyncio, or of anyio on other event loops."""
    if on_asyncio():
        import asyncio

        return await asyncio.to_thread(wait)
    from anyio import to_thread

    return await to_thread.run_sync(wait)
