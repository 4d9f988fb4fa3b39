"""Helper threads, and a worker that uses a store over the network without blocking its callers.

A signal handler raises its exception in the main thread, between any two Python instructions. `threading` is written in
Python. So a `Thread` whose start is interrupted may exist and never run, and an interrupted `Event` or `Future` may stay
locked for good. `Helper`, `Nudge`, `Parked` and `Pending` use single calls into the interpreter instead.

gevent and eventlet replace the functions of `_thread`, perhaps after this file was imported. So every use looks them up.

Code on an event loop must not ask a store over the network. So a gate asks its store for a worker, and gives it all work that
may wait. The worker of a store that answers at once works in the caller's thread.
"""

from __future__ import annotations

import _thread
import logging
import queue
import select
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

from ratekeeper.errors import RatekeeperError, StoreUnavailable

__all__ = ["Background", "Helper", "Nudge", "Parked", "Pending", "Worker", "death", "green", "log_death"]

T = TypeVar("T")

_LOG: Final = logging.getLogger("ratekeeper")
_THREADS: Final = 4
"""Threads of a worker at most; what they request at the same time shares a round trip."""
_MOST: Final = 10_000
"""Most queued pieces of work; more are refused."""
_IDLE: Final = 5.0
"""Seconds without work after which a thread ends."""
_FIRST_PAUSE: Final = 0.05
_LAST_PAUSE: Final = 5.0
"""Seconds before a helper thread that failed goes on, at first and later."""
_LOOK: Final = 1.0
"""A waiter looks by itself this often, s: whoever was to wake it may have been interrupted."""
_STEADY: Final = 60.0
"""A helper thread that ran for this many seconds since its last failure counts as sound again."""


def green() -> str:
    """Return the library that runs this program's threads as greenlets: ``gevent``, ``eventlet`` or ``""``.

    Raises:
        RatekeeperError: the library has replaced only a part of what waits, so a waiting call would stop every greenlet.
    """
    replaced: dict[str, Callable[..., Any]] = {
        "threads": _thread.start_new_thread,
        "time.sleep": time.sleep,
        "sockets": socket.socket,
        "select": select.select,
    }
    libraries = {what: _library(of) for what, of in replaced.items()}
    found = set(libraries.values())
    if len(found) == 1:
        return found.pop()
    library = max(found)
    plain = " and ".join(what for what, of in libraries.items() if of != library)
    patch = "gevent.monkey.patch_all()" if library == "gevent" else f"{library}.monkey_patch()"
    raise RatekeeperError(
        f"{library} has replaced a part of the standard library, but not {plain}, so a call that waits would stop the whole"
        f" program: call {patch} without arguments, in the first line of the program"
    )


def _library(function: Callable[..., Any]) -> str:
    name = str(getattr(function, "__module__", "")).partition(".")[0]
    return name if name in ("gevent", "eventlet") else ""


def log_death(name: str, error: BaseException) -> None:
    """Log that a helper thread failed, without the error's text, which may hold a secret."""
    _LOG.warning("ratekeeper: %s", death(name, error))


def death(name: str, error: BaseException) -> str:
    """Return one sentence for people: what failed, and where."""
    trace, place = error.__traceback__, ""
    while trace is not None:
        place = f" at {trace.tb_frame.f_globals.get('__name__', '?')}:{trace.tb_lineno}"
        trace = trace.tb_next
    return f"the helper thread {name!r} failed ({type(error).__name__}{place}) and is started again"


class Helper:
    """A thread that runs a function. It does not keep the program from ending.

    Args:
        target, *arguments: the function, and what it gets.
        name: of a thread that must not end before its function returns. If the function raises, this is reported, and the
            function is called again after a pause that grows. Empty: the function runs once, because its caller
            handles its errors.
        died: called with the name and the error, once for failures that follow each other.
    """

    __slots__ = ("_died", "_ident", "_name", "_running")

    def __init__(
        self,
        target: Callable[..., object],
        *arguments: Any,
        name: str = "",
        died: Callable[[str, BaseException], object] = log_death,
    ) -> None:
        self._name, self._died = name, died
        self._running = _thread.allocate_lock()
        self._running.acquire()
        self._ident = _thread.start_new_thread(self._run, (target, arguments))

    def _run(self, target: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        failures, last = 0, 0.0
        try:
            while True:
                try:
                    target(*arguments)
                    return
                except BaseException as error:
                    # A greenlet that is killed must end; whoever needs it sees that and starts another.
                    if not self._name or sys.is_finalizing() or type(error).__name__ == "GreenletExit":
                        raise
                    failures = failures + 1 if time.monotonic() - last < _STEADY else 1
                    if failures == 1:
                        self._tell(error)
                time.sleep(min(_LAST_PAUSE, _FIRST_PAUSE * 2 ** (failures - 1)))
                last = time.monotonic()
        finally:
            self._running.release()

    def _tell(self, error: BaseException) -> None:
        try:
            self._died(self._name, error)
        except BaseException:  # noqa: BLE001 - the program's handler may raise anything
            log_death(self._name, error)

    @property
    def current(self) -> bool:
        """Whether the caller runs in this thread."""
        return _thread.get_ident() == self._ident

    def is_alive(self) -> bool:
        """Whether the thread has not ended yet."""
        return self._running.locked()

    def join(self, timeout: float) -> None:
        """Wait until the thread has ended, for `timeout` seconds at most. It does not wait for itself."""
        if not self.current and self._running.acquire(True, timeout):
            self._running.release()


class Nudge:
    """Signals a helper thread that it has work; several signals before it looks count as one."""

    __slots__ = ("_queue",)

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[None] = queue.SimpleQueue()

    def set(self) -> None:
        """Signal that there is work."""
        if self._queue.empty():
            self._queue.put(None)

    def is_set(self) -> bool:
        """Whether a signal is set that the thread has not taken yet."""
        return not self._queue.empty()

    def wait(self, timeout: float) -> bool:
        """Wait for a signal, for `timeout` seconds at most, and take it. False: there is no work."""
        try:
            self._queue.get(timeout=timeout)
        except queue.Empty:
            return False
        return True

    def clear(self) -> None:
        """Discard earlier signals."""
        while not self._queue.empty():
            self.wait(0.0)


class Parked:
    """A one-time event for threads and tasks of one process. Any number of them wait until `release`, each to its deadline.

    Attributes:
        released: whether `release` was called.
    """

    __slots__ = ("_futures", "_guard", "_locks", "released")

    def __init__(self) -> None:
        self.released = False
        self._guard = threading.RLock()  # a finalizer may release it during garbage collection
        self._locks: list[Any] = []
        self._futures: list[tuple[Any, Any]] = []

    def release(self) -> None:
        """Wake all waiters. Any thread may call it."""
        with self._guard:
            self.released = True
            for lock in self._locks:
                if lock.locked():
                    lock.release()
            futures, self._futures = self._futures, []
        for loop, future in futures:
            try:
                loop.call_soon_threadsafe(_done, future)
            except RuntimeError:
                pass  # the loop is closed: no task waits there any more

    def wait(self, timeout: float) -> bool:
        """Wait in this thread for `timeout` seconds at most. False: not released yet."""
        ends = time.monotonic() + timeout
        lock = _thread.allocate_lock()
        lock.acquire()
        try:
            with self._guard:
                self._locks.append(lock)
            while not self.released and (left := ends - time.monotonic()) > 0:
                lock.acquire(True, min(left, _LOOK))
        finally:
            with self._guard:
                self._locks = [each for each in self._locks if each is not lock]
        return self.released

    async def wait_async(self, timeout: float) -> bool:
        """Do the same as `wait` on asyncio."""
        import asyncio

        ends = time.monotonic() + timeout
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        with self._guard:
            self._futures.append((loop, future))
        try:
            while not self.released and (left := ends - time.monotonic()) > 0:
                await asyncio.wait([future], timeout=min(left, _LOOK))
        finally:
            with self._guard:
                self._futures = [each for each in self._futures if each[1] is not future]
        return self.released


def _done(future: Any) -> None:
    if not future.done():
        future.set_result(None)


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
