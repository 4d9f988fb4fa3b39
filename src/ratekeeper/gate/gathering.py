"""Many calls of one kind: side by side, one failure alone, fewer at a time while the provider refuses."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from ratekeeper.policy.congestion import Congestion, Crowding, Going

if TYPE_CHECKING:
    from ratekeeper.gate.events import Event, Events
    from ratekeeper.gate.gate import Gate

__all__ = ["Gathered", "Jams", "Traffic", "gather_bounded", "gather_each", "map_bounded"]

I = TypeVar("I")  # noqa: E741 - an item
T = TypeVar("T")
_JAMS = ("throttled", "overloaded")
"""Events that mean: too much at once."""


@dataclass(frozen=True, slots=True)
class Gathered(Generic[I, T]):
    """What became of one item: a `value`, or an `error`."""

    item: I
    value: T | None = None
    error: Exception | None = None

    @property
    def ok(self) -> bool:
        """Whether it worked."""
        return self.error is None


class Traffic:
    """How calls to one provider go, for all that gather from it. Thread-safe."""

    def __init__(self, congestion: Congestion | None = None) -> None:
        self.congestion = congestion or Congestion()
        self._crowding = Crowding()
        self._lock = threading.Lock()
        self._started = 0.0

    def refused(self) -> None:
        """The provider said that it is too much."""
        with self._lock:
            self._crowding = self.congestion.refused(self._crowding, time.monotonic())

    def going(self) -> Going:
        """How to go on now."""
        return self.congestion.going(self._crowding, time.monotonic())

    def admit(self, running: int) -> float:
        """Lets one more start. Returns 0 if it may, else the seconds after which to ask again; less than 0: when one of
        those that run has ended."""
        with self._lock:
            now = time.monotonic()
            going = self.congestion.going(self._crowding, now)
            if running >= going.width:
                return -1.0
            if now < self._started + going.gap:
                return self._started + going.gap - now
            self._started = now
            return 0.0


class Jams:
    """The traffic of every provider, as one gate hears of it."""

    def __init__(self, events: Events) -> None:
        self._traffic: dict[str, Traffic] = {}
        self._lock = threading.Lock()
        self._events = events
        self._heard = False

    def of(self, provider: str, congestion: Congestion | None = None) -> Traffic:
        """The traffic of a provider (its namespace). The first to ask decides how it is regulated."""
        with self._lock:
            if not self._heard:
                self._events.on(self._hear)
                self._heard = True
            return self._traffic.setdefault(provider, Traffic(congestion))

    def _hear(self, event: Event) -> None:
        traffic = self._traffic.get(event.provider)
        if traffic is not None and event.kind in _JAMS:
            traffic.refused()


async def gather_bounded(
    function: Callable[[I], Awaitable[T]],
    items: Iterable[I] | AsyncIterable[I],
    *,
    gate: Gate | None = None,
    provider: str = "",
    congestion: Congestion | None = None,
    jam: Callable[[Exception], bool] | None = None,
) -> list[Gathered[I, T]]:
    """Call `function` for every item, so many side by side, and return what became of each, in their order.

    Args:
        function: makes one call.
        items: any iterable, also an asynchronous one; no more is taken from it than is worked on.
        gate, provider: whose refusals to follow; all that gather from one provider through one gate share them.
        congestion: how many side by side, and when fewer.
        jam: whether an error means that it was too much at once, where no gate tells.

    An error of one item is that item's alone. Cancelled, it cancels what runs and awaits its end.
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
    """`gather_bounded`, one after the other as they are done, in the order of the items: for inputs without an end. At most
    twice as many as go side by side are held, so a slow one in front holds the others up for a while."""
    traffic = _traffic(gate, provider, congestion)
    source = _each(items)
    tasks: deque[asyncio.Task[Gathered[I, T]]] = deque()
    more = True

    async def one(item: I) -> Gathered[I, T]:
        try:
            return Gathered(item, value=await function(item))
        except Exception as error:  # noqa: BLE001 - handed to the caller with its item
            if jam is not None and jam(error):
                traffic.refused()
            return Gathered(item, error=error)

    try:
        while more or tasks:
            while tasks and tasks[0].done():
                yield tasks.popleft().result()
            running = [task for task in tasks if not task.done()]
            full = not more or len(tasks) >= 2 * traffic.congestion.width
            pause = -1.0 if full else traffic.admit(len(running))
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
                # Full of what is done behind a slow one: only that one lets it go on.
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
    """`gather_each` with threads. Closed early, it waits for what runs and starts nothing more."""
    traffic = _traffic(gate, provider, congestion)
    source = iter(items)
    futures: deque[Future[Gathered[I, T]]] = deque()
    more = True

    def one(item: I) -> Gathered[I, T]:
        try:
            return Gathered(item, value=function(item))
        except Exception as error:  # noqa: BLE001 - handed to the caller with its item
            if jam is not None and jam(error):
                traffic.refused()
            return Gathered(item, error=error)

    with ThreadPoolExecutor(traffic.congestion.width, thread_name_prefix="ratekeeper-map") as threads:
        while more or futures:
            while futures and futures[0].done():
                yield futures.popleft().result()
            running = [future for future in futures if not future.done()]
            full = not more or len(futures) >= 2 * traffic.congestion.width
            pause = -1.0 if full else traffic.admit(len(running))
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


def _traffic(gate: Gate | None, provider: str, congestion: Congestion | None) -> Traffic:
    if gate is None or not provider:
        return Traffic(congestion)
    return gate.jams.of(gate.provider(provider).namespace, congestion)


async def _each(items: Iterable[I] | AsyncIterable[I]) -> AsyncIterator[I]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
