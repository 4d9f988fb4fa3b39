"""A session's job: its `Run`, the meaning of its errors, and its health while it runs."""

from __future__ import annotations

import inspect
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

from ratekeeper.errors import Blocked
from ratekeeper.rules.secrets import redact
from ratekeeper.sessions.restarts import Failure, Restart

__all__ = ["Run", "Vitals", "failure_of", "shown", "takes_one"]

_MINUTE: Final = 60.0
_MOST: Final = 1000
"""Errors remembered; a limit above this never triggers."""


class Run:
    """One run of a session, passed to its job.

    A job in a thread ends when `wait` returns True or `stopping` is set; a coroutine is cancelled.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self.stopping = threading.Event()
        self._wake = wake
        self._beat = time.monotonic()
        self._errors: deque[float] = deque()

    def beat(self) -> None:
        """Report that the session is alive; see `Restart.stalled_after`."""
        self._beat = time.monotonic()

    def error(self) -> None:
        """Count an error that the job survived; see `Restart.errors_per_minute`."""
        self._errors.append(time.monotonic())
        self._wake()

    def wait(self, seconds: float) -> bool:
        """For threads: wait; True if the session must stop."""
        return self.stopping.wait(seconds)

    def tell(self, vitals: Vitals) -> Vitals:
        """Return `vitals` updated with what the job reported since."""
        vitals = vitals.beaten(self._beat)
        while self._errors:
            vitals = vitals.erred(self._errors.popleft())
        return vitals


def takes_one(call: Callable[..., Any]) -> bool:
    """Whether a job takes its `Run` as a parameter."""
    try:
        parameters = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(
        each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD, each.VAR_POSITIONAL) for each in parameters
    )


def shown(text: str, secrets: Iterable[str] = ()) -> str:
    """Return a job's error text in a form that may be stored: one line, without `secrets`, in characters that a file can
    hold."""
    return redact(text, secrets).encode("utf-8", "replace").decode()


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield the errors behind an error: a group's members, and what it was raised from."""
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        while error.__cause__ is not None and not isinstance(error, Blocked):
            error = error.__cause__
        yield error


def failure_of(error: BaseException, secrets: Iterable[str] = ()) -> Failure:
    """Classify an error: the session's own fault, or a ban, a pause or a breaker held it. `secrets`: not to be quoted."""
    text = shown(f"{type(error).__name__}: {error}", secrets)
    leaves = list(_leaves(error))
    if not all(isinstance(each, Blocked) for each in leaves):
        return Failure(type(error).__name__, text)
    ends = [each.retry_at for each in leaves if isinstance(each, Blocked)]
    known = [end for end in ends if end is not None]
    return Failure(type(error).__name__, text, excused=True, retry_at=max(known) if len(known) == len(ends) else None)


@dataclass(frozen=True, slots=True)
class Vitals:
    """What is known of a session since its start.

    Attributes:
        beat: steady seconds of its start, or of its last sign of life.
        failed: failed checks in a row.
        passed: whether a check has passed since the start.
        checked: steady seconds of the last check, or of the start.
        reason: why the last check failed.
        errors: steady seconds of its latest errors.
    """

    beat: float
    checked: float
    failed: int = 0
    passed: bool = False
    reason: str = ""
    errors: tuple[float, ...] = field(default=())

    def beaten(self, now: float) -> Vitals:
        """Return the state after a sign of life."""
        return replace(self, beat=max(self.beat, now))

    def erred(self, now: float) -> Vitals:
        """Return the state after an error that the session survived."""
        return replace(self, errors=(*(at for at in self.errors if at > now - _MINUTE), now)[-_MOST:])

    def after(self, problem: str | None, now: float, excused: bool = False) -> Vitals:
        """Return the state after a check; `problem` None: healthy. A check held by a ban or a pause changes nothing."""
        if excused:
            return replace(self, checked=now)
        if problem is None:
            return replace(self, checked=now, failed=0, passed=True, reason="")
        return replace(self, checked=now, failed=self.failed + 1, reason=problem)

    def verdict(self, settings: Restart, now: float) -> Failure | None:
        """Return why the session is abnormal; None if it is not."""
        if self.failed >= settings.failures:
            return Failure("check", f"{self.failed} health checks in a row failed: {self.reason}")
        if settings.stalled_after is not None and now - self.beat >= settings.stalled_after:
            return Failure("stalled", f"no sign of life for {now - self.beat:.0f} s")
        if settings.errors_per_minute is not None:
            lately = sum(at > now - _MINUTE for at in self.errors)
            if lately > settings.errors_per_minute:
                return Failure("errors", f"{lately} errors in a minute")
        return None

    def check_due(self, settings: Restart, began: float) -> float:
        """Return the steady seconds of the next check: soon after a start, to verify it; then at the set interval."""
        if not self.passed and not self.failed and self.checked == began:
            return began + min(settings.proven, settings.check_every)
        return self.checked + settings.check_every

    def next_look(self, settings: Restart, began: float, checks: bool) -> float:
        """Return the steady seconds at which the verdict may change without a report from the job; infinite if never."""
        looks = [math.inf]
        if checks:
            looks.append(self.check_due(settings, began))
        if settings.stalled_after is not None:
            looks.append(self.beat + settings.stalled_after)
        return min(looks)

    def proven(self, settings: Restart, began: float, now: float, checks: bool) -> bool:
        """Whether a started session counts as recovered."""
        return now - began >= settings.proven and (self.passed or not checks) and self.verdict(settings, now) is None
