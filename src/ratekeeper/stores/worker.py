"""Helper threads, and the work on a store that they do where it takes a trip over the network.

An exception that a signal's handler raises strikes the main thread between any two instructions of Python. What `threading`
is made of is Python: a `Thread` whose start is struck may exist and never run, an `Event` that is struck may stay locked for
good. So `Helper` and `Nudge` stand on single calls into the interpreter.

Whoever asks a store that is a network away must not stand on an event loop. So a gate asks its store for a worker, and has
it do whatever may wait. Of a store that answers at once, the worker does it in the caller's thread.
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
"""Threads of a worker at most: what they ask for at the same time travels together."""
_MOST: Final = 10_000
"""Pieces of work that wait at most; more are refused."""
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
        """Wait until it has returned, for `timeout` seconds at most. It does not wait for itself."""
        if get_ident() != self._ident and self._running.acquire(timeout=timeout):
            self._running.release()


class Nudge:
    """Tells a helper thread that there is something to do; any number of times before it looks count as one."""

    __slots__ = ("_queue",)

    def __init__(self) -> None:
        self._queue: SimpleQueue[None] = SimpleQueue()

    def set(self) -> None:
        """There is something to do."""
        if self._queue.empty():
            self._queue.put(None)

    def is_set(self) -> bool:
        """Whether nobody has looked since."""
        return not self._queue.empty()

    def wait(self, timeout: float) -> bool:
        """Wait for it, for `timeout` seconds at most, and take it. False: there is nothing to do."""
        try:
            self._queue.get(timeout=timeout)
        except Empty:
            return False
        return True

    def clear(self) -> None:
        """Nothing that was told before counts."""
        while not self._queue.empty():
            self.wait(0.0)


class Worker:
    """Does work on a store that answers at once: in the caller's thread, before `start` or `later` return."""

    def start(self, topic: str, work: Callable[[], T]) -> T | Future[T]:
        """Do something whose result somebody wants.

        Args:
            topic: what it changes. Work on one topic is done in the order in which it was given.
            work: what to do.

        Returns:
            The result, or that of later. The latter is a StoreUnavailable if there is too much to do, or the worker was
            closed.
        """
        return work()

    def later(self, topic: str, work: Callable[[], object]) -> None:
        """Do something for which nobody waits. Arguments as for `start`."""
        work()

    def close(self, timeout: float) -> None:
        """Do what was given already, for `timeout` seconds at most, and no more after that."""

    def after_fork(self) -> None:
        """In a child process: the parent's threads and work are not ours."""


class Background(Worker):
    """Does work on a store that is a network away: in a few threads of its own, that end when there is nothing to do."""

    def __init__(self) -> None:
        self.after_fork()

    def after_fork(self) -> None:
        self._lock = threading.RLock()  # what is collected as garbage in the middle may have work to give
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
        """One thread."""
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
                    continue  # whoever is at it does this too
                self._running.add(topic)
            while (piece := self._next(topic)) is not None:
                done, work = piece
                if done.set_running_or_notify_cancel():
                    try:
                        done.set_result(work())
                    except BaseException as error:  # noqa: BLE001 - told to whoever waits, or in the log
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
        """Say once that something came to nothing."""
        error = None if done.cancelled() else done.exception()
        if error is not None and not self._told and not self._closed:
            self._told = True
            _LOG.warning("ratekeeper: something could not be written into the store", exc_info=error)
