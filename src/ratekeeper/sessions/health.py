"""Whether a running session is healthy: failed checks in a row, stalls, errors. Pure: steady seconds are arguments."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Final

from ratekeeper.sessions.restarts import Failure, Restart

__all__ = ["Health"]

_MINUTE: Final = 60.0
_MOST: Final = 1000
"""Errors that are remembered; a limit above this is as good as none."""


@dataclass(frozen=True, slots=True)
class Health:
    """What is known of a session since it was started.

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

    def beaten(self, now: float) -> Health:
        """After a sign of life."""
        return replace(self, beat=max(self.beat, now))

    def erred(self, now: float) -> Health:
        """After an error that the session met and survived."""
        return replace(self, errors=(*(at for at in self.errors if at > now - _MINUTE), now)[-_MOST:])

    def after(self, problem: str | None, now: float, excused: bool = False) -> Health:
        """After a check; `problem` None: all is well. One that a ban or a pause held says nothing either way."""
        if excused:
            return replace(self, checked=now)
        if problem is None:
            return replace(self, checked=now, failed=0, passed=True, reason="")
        return replace(self, checked=now, failed=self.failed + 1, reason=problem)

    def verdict(self, settings: Restart, now: float) -> Failure | None:
        """Why it is abnormal; None if it is not."""
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
        """Steady seconds of the next check: soon after a start, to know whether it worked; then every so often."""
        if not self.passed and not self.failed and self.checked == began:
            return began + min(settings.proven, settings.check_every)
        return self.checked + settings.check_every

    def next_look(self, settings: Restart, began: float, checks: bool) -> float:
        """Steady seconds at which something may have changed without anybody saying so; infinite if never."""
        looks = [math.inf]
        if checks:
            looks.append(self.check_due(settings, began))
        if settings.stalled_after is not None:
            looks.append(self.beat + settings.stalled_after)
        return min(looks)

    def proven(self, settings: Restart, began: float, now: float, checks: bool) -> bool:
        """Whether a started session counts as recovered."""
        return now - began >= settings.proven and (self.passed or not checks) and self.verdict(settings, now) is None
