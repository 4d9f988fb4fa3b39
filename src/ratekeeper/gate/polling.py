"""Pollers: they repeat one call in intervals, less often after errors, on asyncio or in a thread."""

from __future__ import annotations

import inspect
import logging
import random
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

from ratekeeper.config.resolution import configure
from ratekeeper.errors import Rejected
from ratekeeper.policy.interval import Interval
from ratekeeper.stores.threads import Helper, Parked

if TYPE_CHECKING:
    from ratekeeper.gate.gate import Gate

__all__ = ["Poller"]

T = TypeVar("T")
_LOG: Final = logging.getLogger("ratekeeper")


class Poller(Generic[T]):
    """Calls a function in intervals that grow after errors (`Interval`). Polls never overlap, and late ones never pile up.

    Args:
        function: makes one poll; a coroutine function for `run_async` and iteration, a plain one for `run` and `start`.
        interval: seconds and errors; None: that of ``[pollers.NAME]`` in the configuration, else 30 to 300 s.
        name: of this poller in the configuration; ``""``: it is one of ``[pollers."*"]``.
        gate: whose configuration is meant; None: that of the environment.
        on: called with each response.
        on_error: called with each error; None: the poller only logs it.

    A poll that Ratekeeper itself refused (`Rejected`) does not count as an error of the provider; the next poll waits for its
    `retry_at`. A poller runs once: after `stop` make another.

    Raises:
        RuleError: the configuration is wrong.
    """

    def __init__(
        self,
        function: Callable[[], Any],
        interval: Interval | None = None,
        *,
        name: str = "",
        gate: Gate | None = None,
        on: Callable[[T], object] | None = None,
        on_error: Callable[[Exception], object] | None = None,
    ) -> None:
        self._function = function
        if interval is None:
            stated = configure().settings.pollers if gate is None else gate.pollers
            interval = stated.get(name or "*") or stated.get("*")
        self._interval = interval or Interval()
        self._on, self._on_error = on, on_error
        self._rhythm = self._interval.begin()
        self._parked = Parked()
        self._running = threading.Lock()
        self._thread: Helper | None = None

    @property
    def seconds(self) -> float:
        """The present interval."""
        return self._rhythm.seconds

    def run(self) -> None:
        """Poll in this thread until `stop`.

        Raises:
            RuntimeError: the poller runs already.
        """
        with self._once():
            while not self._parked.released:
                begun, not_before, failed = time.monotonic(), 0.0, cast("bool | None", False)
                try:
                    answer = self._function()
                except Exception as error:  # noqa: BLE001 - counted, reported, and tried again
                    failed, not_before = self._judge(error)
                else:
                    self._tell(self._on, answer)
                self._parked.wait(self._pause(begun, failed, not_before))

    def start(self) -> Poller[T]:
        """Call `run` in a new thread."""
        self._thread = Helper(self.run)
        return self

    async def run_async(self) -> None:
        """Poll on asyncio until `stop`, or until the task is cancelled. Raises as `run` does."""
        async for _ in self:
            pass

    async def __aiter__(self) -> AsyncIterator[T]:
        """Yield the responses as they come; count and skip errors. The next poll starts only after the program has taken the
        response."""
        with self._once():
            while not self._parked.released:
                begun, not_before, failed = time.monotonic(), 0.0, cast("bool | None", False)
                try:
                    answer = self._function()
                    if inspect.isawaitable(answer):
                        answer = await answer
                except Exception as error:  # noqa: BLE001 - counted, reported, and tried again
                    failed, not_before = self._judge(error)
                else:
                    self._tell(self._on, answer)
                    yield answer
                await self._parked.wait_async(self._pause(begun, failed, not_before))

    def stop(self, timeout: float = 10.0) -> bool:
        """Stop polling after the current poll. Any thread may call it.

        Args:
            timeout: seconds to wait for the thread that `start` made.

        Returns:
            Whether that thread has ended.
        """
        self._parked.release()
        if self._thread is None or self._thread.current:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _once(self) -> _Once:
        return _Once(self._running)

    def _judge(self, error: Exception) -> tuple[bool | None, float]:
        """Return whether the poll counts as failed, and the earliest steady seconds of the next poll."""
        self._tell(self._on_error, error)
        if not isinstance(error, Rejected):
            _LOG.debug("a poll failed: %s", type(error).__name__)
            return True, 0.0
        ahead = 0.0 if error.retry_at is None else error.retry_at - time.time()
        return None, time.monotonic() + max(0.0, ahead)

    def _pause(self, begun: float, failed: bool | None, not_before: float) -> float:
        self._rhythm = self._interval.after(self._rhythm, failed)
        now = time.monotonic()
        return self._interval.due(self._rhythm, begun, now, random.random(), not_before) - now

    def _tell(self, handler: Callable[[Any], object] | None, what: object) -> None:
        if handler is not None:
            try:
                handler(what)
            except Exception:  # noqa: BLE001 - the program's handler may raise anything
                _LOG.exception("a poller's handler failed")


class _Once:
    """Refuses to run a poller twice at the same time."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise RuntimeError("this poller runs already: polls must not overlap")

    def __exit__(self, *_: object) -> None:
        self._lock.release()
