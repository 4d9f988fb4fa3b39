"""The restart policy: when a failed session is started again. Pure: instants and dice are arguments.

Instants are Unix seconds, because the state must outlive the program. A wall clock that steps changes a wait by no more than
the wait's own length. Inside a running program the steady clock measures waits.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from ratekeeper.policy.retry import backoff

__all__ = ["Failure", "Pause", "Progress", "Recovery", "Restart", "after_failure", "remaining", "summary", "worked"]

_LATEST: Final = 5
"""Most recoveries of one kind considered, because old ones say little about today."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """How a session is watched and restarted. The defaults are our choices.

    Attributes:
        check_every: seconds from one health check to the next.
        check_timeout: seconds that a health check may take; one that takes longer has failed.
        failures: failed checks in a row that make a session abnormal.
        stalled_after: seconds without `Run.beat` that make it abnormal; None: not checked.
        errors_per_minute: `Run.error` above this many in a minute make it abnormal; None: not checked.
        attempts: starts in a row that may fail before the cooldown.
        cooldown: seconds of pause after them; then the attempts are counted anew.
        give_up: cooldowns in a row after which it stays failed; None: never.
        first: seconds of the first backoff's upper bound.
        factor: by which the bound grows from attempt to attempt.
        longest: seconds beyond which it does not grow.
        most: starts allowed in `span` seconds, for any reason.
        span: see `most`.
        proven: seconds a started session must run, and pass its checks, to count as recovered.
        end_is_failure: whether a job that returns has failed; else it has done its work.
        stop_within: seconds that stopping it may take.
    """

    check_every: float = 60.0
    check_timeout: float = 10.0
    failures: int = 3
    stalled_after: float | None = None
    errors_per_minute: int | None = None
    attempts: int = 5
    cooldown: float = 600.0
    give_up: int | None = None
    first: float = 1.0
    factor: float = 2.0
    longest: float = 60.0
    most: int = 10
    span: float = 600.0
    proven: float = 5.0
    end_is_failure: bool = False
    stop_within: float = 10.0

    def __post_init__(self) -> None:
        low = {"failures": 1, "attempts": 1, "most": 1, "factor": 1.0, "check_every": 0.01, "check_timeout": 0.01}
        for name in ("cooldown", "first", "longest", "span", "proven", "stop_within"):
            low[name] = 0.0
        for name, least in low.items():
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} must be at least {least:g}, not {getattr(self, name)!r}")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a session failed.

    Attributes:
        kind: groups recoveries for comparison: an error's class, ``check``, ``stalled``, ``errors``, ``ended``.
        reason: one line for people, without secrets.
        excused: a ban, a pause or a breaker held it: not its fault, so it costs no attempt.
        retry_at: Unix seconds at which that hold ends; None if unknown.
    """

    kind: str
    reason: str
    excused: bool = False
    retry_at: float | None = None


class Progress(msgspec.Struct, frozen=True):
    """The progress of a session's recovery; kept on disk.

    Attributes:
        attempts: starts in a row since it was last healthy or cooled down.
        cooldowns: cooldowns in a row since it was last healthy.
        starts: Unix seconds of the latest starts after failures, for `Restart.most`.
        until: Unix seconds of the end of the present wait; 0: none.
        length: seconds of that wait, so that a wrong clock cannot prolong it.
    """

    attempts: int = 0
    cooldowns: int = 0
    starts: tuple[float, ...] = ()
    until: float = 0.0
    length: float = 0.0


class Recovery(msgspec.Struct, frozen=True):
    """One start after a failure, and its result; kept on disk.

    Attributes:
        at: Unix seconds of the failure.
        kind, reason: of the failure (`Failure`).
        delay: seconds waited before this start.
        took: seconds from the first failure in the row to this start.
        attempt: number of the start in the row, from 1.
        ok: whether it was healthy afterwards.
    """

    at: float
    kind: str
    reason: str
    delay: float
    took: float
    attempt: int
    ok: bool


@dataclass(frozen=True, slots=True)
class Pause:
    """The reaction to a failure: wait `delay` seconds in `state`, then start again; ``failed``: do not."""

    state: Literal["recovering", "cooldown", "failed"]
    delay: float
    progress: Progress


def worked(history: Iterable[Recovery], kind: str) -> float:
    """Return the delay in seconds of the last successful recovery from this `kind` of failure; 0 if none succeeded lately."""
    same = [each for each in history if each.kind == kind][-_LATEST:]
    return next((each.delay for each in reversed(same) if each.ok), 0.0)


def after_failure(
    settings: Restart, progress: Progress, history: Iterable[Recovery], failure: Failure, now: float, dice: float
) -> Pause:
    """Return the reaction to a failure.

    The delay is drawn between 0 and a bound that doubles (full jitter). If a delay is known to have worked for this kind of
    failure, the bound starts there, and half of it is the minimum. So a session that always needs 20 s does not waste its
    attempts on the first three, and one that needs less by now finds out.

    Args:
        settings: the session's.
        progress: before this failure.
        history: its recoveries, oldest first.
        failure: what happened.
        now: Unix seconds.
        dice: a random number from 0 to 1.
    """
    starts = tuple(at for at in progress.starts if now - settings.span < at <= now)[-settings.most :]
    if failure.excused:
        hint = settings.check_every if failure.retry_at is None else max(0.0, failure.retry_at - now)
        return _pause("recovering", hint + dice * settings.first, progress, starts, now, settings)
    if progress.attempts >= settings.attempts:
        rested = msgspec.structs.replace(progress, attempts=0, cooldowns=progress.cooldowns + 1)
        if settings.give_up is not None and progress.cooldowns >= settings.give_up:
            return Pause("failed", 0.0, Progress(progress.attempts, progress.cooldowns, starts))
        return _pause("cooldown", settings.cooldown, rested, starts, now, settings)
    known = min(worked(history, failure.kind), settings.longest)
    nth = progress.attempts + 1
    bound = backoff(nth, max(settings.first, known), settings.factor, settings.longest)
    least = min(known / 2, bound)
    counted = msgspec.structs.replace(progress, attempts=nth)
    return _pause("recovering", least + dice * (bound - least), counted, starts, now, settings)


def _pause(
    state: Literal["recovering", "cooldown"],
    delay: float,
    progress: Progress,
    starts: tuple[float, ...],
    now: float,
    settings: Restart,
) -> Pause:
    if len(starts) >= settings.most:
        delay = max(delay, starts[0] + settings.span - now)  # the oldest start has left the span by then
    starts = (*starts, now + delay)[-settings.most :]
    return Pause(state, delay, Progress(progress.attempts, progress.cooldowns, starts, until=now + delay, length=delay))


def remaining(progress: Progress, now: float) -> float:
    """Return the seconds left of a wait that began before the program was restarted."""
    return min(max(0.0, progress.until - now), progress.length) if progress.until else 0.0


def summary(history: Iterable[Recovery]) -> tuple[float | None, float | None]:
    """Return the share of starts after a failure that succeeded, and the mean seconds from failure to such a start."""
    rows = list(history)
    good = [each.took for each in rows if each.ok]
    return (len(good) / len(rows) if rows else None), (sum(good) / len(good) if good else None)
