"""Helper threads, and how they are told of something to do. What a signal's handler raises breaks neither.

Such an exception strikes the main thread between any two instructions of Python. What `threading` is made of is Python: a
`Thread` whose start is struck may exist and never run, an `Event` that is struck may stay locked for good. What is here
stands on single calls into the interpreter.
"""

from __future__ import annotations

from _thread import allocate_lock, get_ident, start_new_thread
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

__all__ = ["Helper", "Nudge"]


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
