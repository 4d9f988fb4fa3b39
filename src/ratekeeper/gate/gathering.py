"""Many concurrent calls of one kind: an error affects one item only, and fewer calls run while the provider refuses."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from ratekeeper.gate.congestion import CongestionControl
from ratekeeper.policy.interval import Congestion

if TYPE_CHECKING:
    from ratekeeper.gate.gate import Gate

__all__ = ["Gathered", "gather_bounded", "gather_each", "map_bounded"]

I = TypeVar("I")  # noqa: E741 - an item
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Gathered(Generic[I, T]):
    """The result of one item: a `value` or an `error`."""

    item: I
    value: T | None = None
    error: Exception | None = None

    @property
    def ok(self) -> bool:
        """Whether the call succeeded."""
        return self.error is None


async def gather_bounded(
    function: Callable[[I], Awaitable[T]],
    items: Iterable[I] | AsyncIterable[I],
    *,
    gate: Gate | None = None,
    provider: str = "",
    congestion: Congestion | None = None,
    jam: Callable[[Exception], bool] | None = None,
) -> list[Gathered[I, T]]:
    """Call `function` for every item concurrently; return the results in the order of the items.

    Args:
        function: makes one call.
        items: any iterable, also an asynchronous one. The function takes items only as it needs them.
        gate, provider: the gate and provider whose refusals to follow. All gather loops of both share one control.
        congestion: how many calls run at once, and when fewer.
        jam: whether an error means too many calls at once, if no gate reports it.

    An error affects its own item only. On cancellation it cancels the running calls and awaits their end.
    """
    return [
        each
        async for each in gather_each(function, items, gate=gate, provider=provider, congestion=congestion, jam=jam)
    ]


async def gather_each(
    function: Callable[[I], Awaitable[T]],
    items: Iterable[I] | AsyncIterable[I],
    *,
    gate: Gate | None = None,
    provider: str = "",
    congestion: Congestion | None = None,
    jam: Callable[[Exception], bool] | None = None,
) -> AsyncIterator[Gathered[I, T]]:
    """Yield the results of `gather_bounded` as they are done, in the order of the items: for endless inputs. It holds at
    most twice as many items as run at once, so a slow first item delays the others for a while."""
    control = _control(gate, provider, congestion)
    source = _each(items)
    tasks: deque[asyncio.Task[Gathered[I, T]]] = deque()
    more = True

    async def one(item: I) -> Gathered[I, T]:
        try:
            return Gathered(item, value=await function(item))
        except Exception as error:  # noqa: BLE001 - handed to the caller with its item
            if jam is not None and jam(error):
                control.refused()
            return Gathered(item, error=error)

    try:
        while more or tasks:
            while tasks and tasks[0].done():
                yield tasks.popleft().result()
            running = [task for task in tasks if not task.done()]
            full = not more or len(tasks) >= 2 * control.congestion.width
            pause = -1.0 if full else control.admit(len(running))
            if pause == 0.0:
                try:
                    item = await anext(source)
                except StopAsyncIteration:
                    more = False
                else:
                    tasks.append(asyncio.ensure_future(one(item)))
            elif pause > 0.0:
                await asyncio.sleep(pause)
            elif tasks and not tasks[0].done():
                # All later items are done; only the slow first one makes room.
                await asyncio.wait([tasks[0]] if full else running, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def map_bounded(
    function: Callable[[I], T],
    items: Iterable[I],
    *,
    gate: Gate | None = None,
    provider: str = "",
    congestion: Congestion | None = None,
    jam: Callable[[Exception], bool] | None = None,
) -> Iterator[Gathered[I, T]]:
    """Do the same as `gather_each` with threads. If closed early, it waits for the running calls and starts no more."""
    control = _control(gate, provider, congestion)
    source = iter(items)
    futures: deque[Future[Gathered[I, T]]] = deque()
    more = True

    def one(item: I) -> Gathered[I, T]:
        try:
            return Gathered(item, value=function(item))
        except Exception as error:  # noqa: BLE001 - handed to the caller with its item
            if jam is not None and jam(error):
                control.refused()
            return Gathered(item, error=error)

    with ThreadPoolExecutor(control.congestion.width, thread_name_prefix="ratekeeper-map") as threads:
        while more or futures:
            while futures and futures[0].done():
                yield futures.popleft().result()
            running = [future for future in futures if not future.done()]
            full = not more or len(futures) >= 2 * control.congestion.width
            pause = -1.0 if full else control.admit(len(running))
            if pause == 0.0:
                try:
                    item = next(source)
                except StopIteration:
                    more = False
                else:
                    futures.append(threads.submit(one, item))
            elif pause > 0.0:
                time.sleep(pause)
            elif futures and not futures[0].done():
                wait([futures[0]] if full else running, return_when=FIRST_COMPLETED)


def _control(gate: Gate | None, provider: str, congestion: Congestion | None) -> CongestionControl:
    if gate is None or not provider:
        return CongestionControl(congestion)
    return gate.congestion.of(gate.provider(provider).namespace, congestion)


async def _each(items: Iterable[I] | AsyncIterable[I]) -> AsyncIterator[I]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
