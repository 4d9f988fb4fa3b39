"""Helper threads, and a worker that uses a store over the network without blocking its callers.

A signal handler raises its exception in the main thread, between any two Python instructions. `threading` is written in
Python. So a `Thread` whose start is interrupted may exist and never run, and an interrupted `Event` may stay locked for good.
`Helper` and `Nudge` use single calls into the interpreter instead.

Code on an event loop must not ask a store over the network. So a gate asks its store for a worker, and gives it all work that
may wait. The worker of a store that answers at once works in the caller's thread.
"""

from __future__ import annotations

import logging
import threading
import time
from _thread import allocate_lock, get_ident, start_new_thread
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeVar

from ratekeeper.errors import StoreUnavailable

__all__ = ["Background", "Helper", "Nudge", "Worker"]

T = TypeVar("T")

_LOG: Final = logging.getLogger("ratekeeper")
_THREADS: Final = 4
"""Threads of a worker at most; what they request at the same time shares a round trip."""
_MOST: Final = 10_000
"""Most queued pieces of work; more are refused."""
_IDLE: Final = 5.0
"""Seconds without work after which a thread ends."""


class Helper:
    """A thread that runs a function. It does not keep the program from ending."""

    __slots__ = ("_ident", "_running")

    def __init__(self, target: Callable[..., object], *arguments: Any) -> None:
        self._running = allocate_lock()
        self._running.acquire()
        self._ident = start_new_thread(self._run, (target, arguments))

    def _run(self, target: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        try:
            target(*arguments)
        finally:
            self._running.release()

    def is_alive(self) -> bool:
        """Whether the function has not returned yet."""
        return self._running.locked()

    def join(self, timeout: float) -> None:
        """Wait until the function has returned, for `timeout` seconds at most. It does not wait for itself."""
        if get_ident() != self._ident and self._running.acquire(timeout=timeout):
            self._running.release()


class Nudge:
    """Signals a helper thread that it has work; several signals before it looks count as one."""

    __slots__ = ("_queue",)

    def __init__(self) -> None:
        self._queue: SimpleQueue[None] = SimpleQueue()

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
        except Empty:
            return False
        return True

    def clear(self) -> None:
        """Discard earlier signals."""
        while not self._queue.empty():
            self.wait(0.0)


class Worker:
    """Does work on a store that answers at once: in the caller's thread, before `start` or `later` return."""

    def start(self, topic: str, work: Callable[[], T]) -> T | Future[T]:
        """Do work whose result the caller wants.

        Args:
            topic: what the work changes. Work on one topic runs in the order in which it was given.
            work: what to do.

        Returns:
            The result, or its future. The future raises StoreUnavailable if the queue is full or the worker was closed.
        """
        return work()

    def later(self, topic: str, work: Callable[[], object]) -> None:
        """Do work for which no caller waits. Arguments as for `start`."""
        work()

    def close(self, timeout: float) -> None:
        """Finish the work already given, for `timeout` seconds at most, and accept no more."""

    def after_fork(self) -> None:
        """Forget the parent's threads and work after a fork, in the child."""


class Background(Worker):
    """Does work on a store over the network, in a few threads of its own that end when idle."""

    def __init__(self) -> None:
        self.after_fork()

    def after_fork(self) -> None:
        self._lock = threading.RLock()  # a finalizer may give work during garbage collection
        self._lines: dict[str, deque[tuple[Future[Any], Callable[[], Any]]]] = {}
        self._ready: SimpleQueue[str] = SimpleQueue()
        """A topic for each piece of work that was given."""
        self._running: set[str] = set()
        self._count = self._threads = 0
        self._closed = False
        self._told = False

    def start(self, topic: str, work: Callable[[], T]) -> Future[T]:
        done: Future[T] = Future()
        with self._lock:
            if self._closed or self._count >= _MOST:
                why = "the gate was closed" if self._closed else "too much waits for the store"
                done.set_exception(StoreUnavailable(why))
                return done
            self._lines.setdefault(topic, deque()).append((done, work))
            self._count += 1
            self._ready.put(topic)
            more = self._threads < min(_THREADS, len(self._lines))
            self._threads += more
        if more:
            try:
                Helper(self._run)
            except RuntimeError:  # the interpreter ends
                self._threads -= 1
                done.cancel()
        return done

    def later(self, topic: str, work: Callable[[], object]) -> None:
        self.start(topic, work).add_done_callback(self._tell)

    def close(self, timeout: float) -> None:
        ends = time.monotonic() + timeout
        while (self._lines or self._running) and time.monotonic() < ends:
            time.sleep(0.002)
        with self._lock:
            self._closed = True
            left = [done for line in self._lines.values() for done, _ in line]
            self._lines.clear()
            for _ in range(self._threads):
                self._ready.put("")
        for done in left:
            if done.set_running_or_notify_cancel():
                done.set_exception(StoreUnavailable("the gate was closed"))

    def _run(self) -> None:
        """Run one thread."""
        while True:
            try:
                topic = self._ready.get(timeout=_IDLE)
            except Empty:
                with self._lock:
                    if self._ready.empty():
                        self._threads -= 1
                        return
                continue
            with self._lock:
                if self._closed:
                    self._threads -= 1
                    return
                if topic in self._running:
                    continue  # the thread that works on the topic does this too
                self._running.add(topic)
            while (piece := self._next(topic)) is not None:
                done, work = piece
                if done.set_running_or_notify_cancel():
                    try:
                        done.set_result(work())
                    except BaseException as error:  # noqa: BLE001 - goes to the waiting caller, or to the log
                        done.set_exception(error)

    def _next(self, topic: str) -> tuple[Future[Any], Callable[[], Any]] | None:
        with self._lock:
            line = self._lines.get(topic)
            if line:
                self._count -= 1
                return line.popleft()
            self._lines.pop(topic, None)
            self._running.discard(topic)
            return None

    def _tell(self, done: Future[Any]) -> None:
        """Log once that a piece of work failed."""
        error = None if done.cancelled() else done.exception()
        if error is not None and not self._told and not self._closed:
            self._told = True
            _LOG.warning("ratekeeper: something could not be written into the store", exc_info=error)
