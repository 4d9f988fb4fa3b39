"""A worker that uses a store over the network without blocking its callers.

Code on an event loop must not ask a store over the network. So a gate asks its store for a worker, and gives it all work that
may wait. The worker of a store that answers at once works in the caller's thread.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

from ratekeeper.errors import StoreUnavailable
from ratekeeper.stores.threads import Helper, Parked, log_death

__all__ = ["Background", "Pending", "Worker"]

T = TypeVar("T")

_LOG: Final = logging.getLogger("ratekeeper")
_THREADS: Final = 4
"""Threads of a worker at most; what they request at the same time shares a round trip."""
_MOST: Final = 10_000
"""Most queued pieces of work; more are refused."""
_IDLE: Final = 5.0
"""Seconds without work after which a thread ends."""


class Pending(Parked, Generic[T]):
    """Work that a thread of a worker does, and its result.

    Attributes:
        dropped: whether its caller gave up, so that a thread need not begin it.
    """

    __slots__ = ("_error", "_value", "dropped")

    def __init__(self, error: BaseException | None = None) -> None:
        super().__init__()
        self.dropped = False
        self._value: T | None = None
        self._error = error
        if error is not None:
            self.release()

    def finish(self, value: T | None = None, error: BaseException | None = None) -> None:
        """Give the result, or the error, to all waiters."""
        self._value, self._error = value, error
        self.release()

    def result(self, timeout: float) -> T:
        """Return the result; raise the error of the work. Waits for `timeout` seconds at most.

        Raises:
            StoreUnavailable: the time has passed, the queue was full, or the worker was closed.
        """
        self.wait(timeout)
        return self._got(timeout)

    async def result_async(self, timeout: float) -> T:
        """Do the same as `result` on asyncio. A cancelled task takes along what was not begun."""
        try:
            await self.wait_async(timeout)
        except BaseException:
            self.dropped = True
            raise
        return self._got(timeout)

    def _got(self, timeout: float) -> T:
        if not self.released:
            self.dropped = True
            raise StoreUnavailable(f"the store has not done it within {timeout:g} s")
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]


class Worker:
    """Does work on a store that answers at once: in the caller's thread, before `start` or `later` return."""

    def start(self, topic: str, work: Callable[[], T]) -> T | Pending[T]:
        """Do work whose result the caller wants.

        Args:
            topic: what the work changes. Work on one topic runs in the order in which it was given.
            work: what to do.

        Returns:
            The result, or what will have it. That raises StoreUnavailable if the queue is full or the worker was closed.
        """
        return work()

    def later(self, topic: str, work: Callable[[], object]) -> None:
        """Do work for which no caller waits. Arguments as for `start`."""
        work()

    def close(self, timeout: float) -> None:
        """Finish the work already given, for `timeout` seconds at most, and accept no more."""

    def after_fork(self) -> None:
        """Forget the parent's threads and work after a fork, in the child."""


class _Seat:
    """One thread of a `Background`. `over`: it takes no more work."""

    __slots__ = ("helper", "over")

    def __init__(self) -> None:
        self.helper: Helper | None = None
        self.over = False

    @property
    def ended(self) -> bool:
        """Whether another thread may take its place. One whose start was interrupted ends when it is idle."""
        return self.over or self.helper is None or not self.helper.is_alive()


class Background(Worker):
    """Does work on a store over the network, in a few threads of its own that end when idle. `died`: see `Helper`."""

    def __init__(self, died: Callable[[str, BaseException], object] = log_death) -> None:
        self._died = died
        self.after_fork()

    def after_fork(self) -> None:
        self._lock = threading.RLock()  # a finalizer may give work during garbage collection
        self._lines: dict[str, deque[tuple[Pending[Any], Callable[[], Any], bool]]] = {}
        self._ready: queue.SimpleQueue[str] = queue.SimpleQueue()
        """A topic for each piece of work that was given."""
        self._running: dict[str, _Seat] = {}
        """The topics at work, each with its thread."""
        self._count = 0
        self._threads: list[_Seat] = []
        self._closed = False
        self._told = False

    def start(self, topic: str, work: Callable[[], T]) -> Pending[T]:
        return self._give(topic, work, tell=False)

    def later(self, topic: str, work: Callable[[], object]) -> None:
        self._give(topic, work, tell=True)

    def _give(self, topic: str, work: Callable[[], T], *, tell: bool) -> Pending[T]:
        with self._lock:
            if self._closed or self._count >= _MOST:
                error = StoreUnavailable("the gate was closed" if self._closed else "too much waits for the store")
                if tell:
                    self._tell(error)
                return Pending(error)
            done: Pending[T] = Pending()
            self._lines.setdefault(topic, deque()).append((done, work, tell))
            self._count += 1
            self._ready.put(topic)
        try:
            self._start_threads()
        except RuntimeError:  # the interpreter ends
            done.dropped = True
        return done

    def _start_threads(self) -> None:
        """Start a thread if there is work for more. The place and the topics of a dead thread are free again."""
        with self._lock:
            for seat in self._threads:
                if seat.ended:
                    self._free(seat)
            self._threads = [seat for seat in self._threads if not seat.ended]
            if len(self._threads) < min(_THREADS, len(self._lines)):
                seat = _Seat()
                self._threads.append(seat)
                seat.helper = Helper(self._run, seat, name="worker", died=self._died)

    def close(self, timeout: float) -> None:
        ends = time.monotonic() + timeout
        while (self._lines or self._running) and time.monotonic() < ends:
            time.sleep(0.002)
        with self._lock:
            self._closed = True
            left = [done for line in self._lines.values() for done, *_ in line]
            self._lines.clear()
            for _ in self._threads:
                self._ready.put("")
        for done in left:
            done.finish(error=StoreUnavailable("the gate was closed"))

    def _run(self, seat: _Seat) -> None:
        """Run one thread."""
        self._free(seat)
        while True:
            try:
                topic = self._ready.get(timeout=_IDLE)
            except queue.Empty:
                with self._lock:
                    if self._ready.empty():
                        seat.over = True
                        return
                continue
            with self._lock:
                if self._closed:
                    seat.over = True
                    return
                if topic in self._running:
                    continue  # the thread that works on the topic does this too
                self._running[topic] = seat
            while (piece := self._next(topic)) is not None:
                done, work, tell = piece
                if done.dropped:
                    continue
                try:
                    done.finish(work())
                except BaseException as error:  # noqa: BLE001 - goes to the waiting caller, or to the log
                    done.finish(error=error)
                    if tell:
                        self._tell(error)

    def _free(self, seat: _Seat) -> None:
        """Let another thread go on with the topics of one that failed."""
        with self._lock:
            for topic in [topic for topic, of in self._running.items() if of is seat]:
                del self._running[topic]
                self._ready.put(topic)

    def _next(self, topic: str) -> tuple[Pending[Any], Callable[[], Any], bool] | None:
        with self._lock:
            line = self._lines.get(topic)
            if line:
                self._count -= 1
                return line.popleft()
            self._lines.pop(topic, None)
            self._running.pop(topic, None)
            return None

    def _tell(self, error: BaseException) -> None:
        """Log once that a piece of work failed."""
        if not self._told and not self._closed:
            self._told = True
            _LOG.warning("ratekeeper: something could not be written into the store", exc_info=error)
