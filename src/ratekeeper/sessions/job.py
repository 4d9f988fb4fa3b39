"""What a session's job is given, and what its errors mean."""

from __future__ import annotations

import inspect
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from ratekeeper.errors import Blocked
from ratekeeper.rules.reading import redact
from ratekeeper.sessions.health import Health
from ratekeeper.sessions.restarts import Failure

__all__ = ["Run", "failure_of", "takes_one"]


class Run:
    """One life of a session: what its job is given.

    A job that runs in a thread ends when `wait` returns True or `stopping` is set; a coroutine is cancelled.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self.stopping = threading.Event()
        self._wake = wake
        self._beat = time.monotonic()
        self._errors: deque[float] = deque()

    def beat(self) -> None:
        """Tell that the session is alive; see `Restart.stalled_after`."""
        self._beat = time.monotonic()

    def error(self) -> None:
        """Count an error that the job survived; see `Restart.errors_per_minute`."""
        self._errors.append(time.monotonic())
        self._wake()

    def wait(self, seconds: float) -> bool:
        """For threads: wait; True if the session is to stop."""
        return self.stopping.wait(seconds)

    def tell(self, health: Health) -> Health:
        """`health` with what the job told since."""
        health = health.beaten(self._beat)
        while self._errors:
            health = health.erred(self._errors.popleft())
        return health


def takes_one(call: Callable[..., Any]) -> bool:
    """Whether a job wants its `Run`."""
    try:
        parameters = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(
        each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD, each.VAR_POSITIONAL) for each in parameters
    )


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors that an error stands for: a group's members, and what it was raised from."""
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        while error.__cause__ is not None and not isinstance(error, Blocked):
            error = error.__cause__
        yield error


def failure_of(error: BaseException) -> Failure:
    """What an error says of the session: its own fault, or that a ban, a pause or a breaker held it."""
    text = redact(f"{type(error).__name__}: {error}")
    leaves = list(_leaves(error))
    if not all(isinstance(each, Blocked) for each in leaves):
        return Failure(type(error).__name__, text)
    ends = [each.retry_at for each in leaves if isinstance(each, Blocked)]
    known = [end for end in ends if end is not None]
    return Failure(type(error).__name__, text, excused=True, retry_at=max(known) if len(known) == len(ends) else None)
