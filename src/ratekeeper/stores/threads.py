"""Helper threads, and what wakes them: safe under signals, and under gevent and eventlet.

A signal handler raises its exception in the main thread, between any two Python instructions. `threading` is written in
Python. So a `Thread` whose start is interrupted may exist and never run, and an interrupted `Event` or `Future` may stay
locked for good. `Helper`, `Nudge` and `Parked` use single calls into the interpreter instead.

gevent and eventlet replace the functions of `_thread`, perhaps after this file was imported. So every use looks them up.
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
from collections.abc import Callable
from typing import Any, Final

from ratekeeper.errors import RatekeeperError

__all__ = ["Helper", "Nudge", "Parked", "death", "green", "log_death", "release"]

_LOG: Final = logging.getLogger("ratekeeper")
_FIRST_PAUSE: Final = 0.05
_LAST_PAUSE: Final = 5.0
"""Seconds before a helper thread that failed goes on, at first and later."""
_LOOK: Final = 1.0
"""A waiter looks by itself this often, s: whoever was to wake it may have been interrupted."""
_STEADY: Final = 60.0
"""A helper thread that ran for this many seconds since its last failure counts as sound again."""


def release(lock: Any) -> None:
    """Release a reentrant lock if this thread has it: an exception of a signal handler may strike just before or after it
    was taken."""
    try:
        lock.release()
    except RuntimeError:
        pass


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
