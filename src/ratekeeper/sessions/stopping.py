"""Calls of user code, each with a deadline; and stopping any component, whatever its `stop` is.

Coroutines run on the program's event loop. Each plain function runs in a thread of its own, so one that hangs blocks nothing
else.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, Final, TypeVar

from ratekeeper.rules.secrets import redact

__all__ = ["Loop", "Work", "halt", "in_thread", "stop_all", "stop_all_async", "to_the_end"]

_LOG: Final = logging.getLogger("ratekeeper")
_T = TypeVar("_T")


class Loop:
    """An event loop for coroutines: the program's own, or one made in a thread when the first coroutine needs it."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._loop = loop
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def get(self) -> asyncio.AbstractEventLoop:
        """Return the running loop."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=self._loop.run_forever, name="ratekeeper-sessions-loop", daemon=True
                )
                self._thread.start()
            return self._loop

    def nudge(self) -> None:
        """Make the loop handle what another thread gave it, such as a `Task.cancel`."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(lambda: None)

    def close(self) -> None:
        """End the loop if this object made it."""
        if self._thread is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(5.0)
            if not self._thread.is_alive():
                self._loop.close()


class Work:
    """One call of `function`, started at once. It may be a coroutine function, or return an awaitable.

    Attributes:
        error: what it raised, once `done`; None if it returned.
        result: what it returned.
        cancelled: whether it ended because it was cancelled.
    """

    def __init__(
        self, function: Callable[..., Any], *args: Any, loop: Loop, on_end: Callable[[], None] | None = None
    ) -> None:
        self.error: BaseException | None = None
        self.result: Any = None
        self.cancelled = False
        self._ended = threading.Event()
        self._on_end = on_end
        self._loop = loop
        self._task: asyncio.Task[Any] | None = None
        self._kept: asyncio.Task[None] | None = None  # the loop itself holds its tasks only weakly
        self._given_up = False
        if inspect.iscoroutinefunction(function):
            self._on_loop(function, *args)
        else:
            threading.Thread(
                target=self._in_thread, args=(function, *args), name="ratekeeper-session", daemon=True
            ).start()

    @property
    def done(self) -> bool:
        """Whether the call ended, in any way."""
        return self._ended.is_set()

    def wait(self, timeout: float) -> bool:
        """Wait for its end; returns whether it ended within `timeout` seconds."""
        return self._ended.wait(timeout)

    def cancel(self) -> None:
        """Cancel it if it is a coroutine. A function in a thread must check for itself whether to stop."""
        self._given_up = True
        task = self._task
        if task is not None:
            try:
                self._loop.get().call_soon_threadsafe(task.cancel)
            except RuntimeError:  # the loop is closed, and the task with it
                self._end()

    def _in_thread(self, function: Callable[..., Any], *args: Any) -> None:
        try:
            self.result = function(*args)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the supervisor decides what follows
            self.error = error
        self._loop.nudge()
        if inspect.isawaitable(self.result):
            waiting = self.result

            async def awaited() -> Any:
                return await waiting

            self._on_loop(awaited)
        else:
            self._end()

    def _on_loop(self, function: Callable[..., Any], *args: Any) -> None:
        async def run() -> None:
            self._task = asyncio.current_task()
            try:
                if not self._given_up:
                    self.result = await function(*args)
            except asyncio.CancelledError:
                self.cancelled = True  # not passed on: no code awaits this task
            except BaseException as error:  # noqa: BLE001 - see above
                self.error = error
            finally:
                self._task = None
                self._end()

        def begin() -> None:
            self._kept = loop.create_task(run(), name="ratekeeper-session")

        try:
            loop = self._loop.get()
            loop.call_soon_threadsafe(begin)
        except RuntimeError as error:  # the loop is closed
            self.error = error
            self._end()

    def _end(self) -> None:
        self._ended.set()
        if self._on_end is not None:
            self._on_end()


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
    """Stop components in reverse order, each with a deadline of `within` seconds.

    A component that raises or hangs is logged, and the rest are stopped all the same. A plain `stop` is called in a thread.

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
    """`stop_all` for async code: coroutines run on this event loop. A cancelled caller still waits for the end."""
    loop = Loop(asyncio.get_running_loop())
    return await to_the_end(in_thread(lambda: stop_all(things, within, loop)))


def in_thread(function: Callable[[], _T]) -> asyncio.Future[_T]:
    """Call `function` in a thread of its own, because the loop's executor may be full of calls that hang."""
    done: Future[_T] = Future()

    def run() -> None:
        try:
            done.set_result(function())
        except BaseException as error:  # noqa: BLE001 - goes to the awaiting caller
            done.set_exception(error)

    threading.Thread(target=run, name="ratekeeper-sessions-stop", daemon=True).start()
    return asyncio.wrap_future(done)


async def to_the_end(work: asyncio.Future[_T]) -> _T:
    """Await `work`, which has a deadline of its own, even if this task is cancelled meanwhile; raise the cancellation
    afterwards."""
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return work.result()
