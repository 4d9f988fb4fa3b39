"""Whether a call is made again, and when: by what became of it, not by its status. Pure: instants and dice are arguments."""

from __future__ import annotations

from typing import Annotated, Final, NamedTuple

import msgspec
from msgspec import Meta

from ratekeeper.rules.call import Outcome

__all__ = ["Again", "Budget", "Repeat", "Retry", "Stop", "Tried", "backoff"]

_FINAL: Final = {
    Outcome.QUOTA_GONE: "the quota is gone, which no retry brings back",
    Outcome.MONEY_GONE: "the account's money is gone, which no retry brings back",
    Outcome.BAD_REQUEST: "the provider says that the request itself is wrong",
}


class Tried(NamedTuple):
    """What became of one attempt.

    Attributes:
        outcome: its class.
        acted: whether the provider may have done what was asked.
        retry_at: steady seconds before which the provider wants no other try; None if it did not say.
        held: whether a limit or a block now holds the next attempt by itself until it may pass.
        reason: one line for people, without secrets.
        until: steady seconds until which it is held, as far as is known.
    """

    outcome: Outcome
    acted: bool = True
    retry_at: float | None = None
    held: bool = False
    reason: str = ""
    until: float = 0.0


class Repeat(NamedTuple):
    """What is known of a call that may be made again.

    Attributes:
        safe: making it twice does no more than making it once (reads, cancels, orders with an idempotency key).
        begun: steady seconds at which it was first asked for.
        deadline: steady seconds after which its answer is of no use.
    """

    safe: bool
    begun: float
    deadline: float


class Again(NamedTuple):
    """The call is made again after `delay` seconds."""

    delay: float


class Stop(NamedTuple):
    """The call is not made again, for `reason`.

    Attributes:
        plain: the caller gets the answer as it is.
        unknown: the provider may have acted or not.
    """

    reason: str
    plain: bool = False
    unknown: bool = False


Seconds = Annotated[float, Meta(ge=0, title="seconds from 0")]
Factor = Annotated[float, Meta(ge=0, title="a factor from 0")]


class Retry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often and how soon a failed call is made again.

    Attributes:
        attempts: tries in all.
        first: seconds of the first backoff, before jitter.
        factor: by which the backoff grows from try to try.
        longest: seconds beyond which it does not grow.
        backoff: seconds of each backoff instead of `first`, `factor` and `longest`; the last one is repeated.
        jitter: each backoff is multiplied by a number drawn between these two. None: between 0 and 1 (full jitter); with
            `backoff`, none.
        attempt_timeout: seconds that one attempt may take from when it is sent. A call that was cut off so was sent: it is
            made again only if that is safe.
        deadline: seconds from asking to the last retry; None: the gate's `max_wait`.
        budget: retries allowed per call made by this process, in the long run, so that retries never storm.
        reserve: retries per second allowed on top, so that a quiet process may retry at all.
    """

    attempts: Annotated[int, Meta(ge=1, le=100, title="tries from 1 to 100")] = 6
    first: Seconds = 1.0
    factor: Annotated[float, Meta(ge=1, title="a factor from 1")] = 2.0
    longest: Seconds = 32.0
    backoff: Annotated[tuple[Seconds, ...], Meta(max_length=100, title="a list of seconds from 0")] = ()
    jitter: Annotated[tuple[Factor, Factor], Meta(title="two factors from 0")] | None = None
    attempt_timeout: Annotated[float, Meta(gt=0, title="seconds above 0")] | None = None
    deadline: Annotated[float, Meta(gt=0, title="seconds above 0")] | None = None
    budget: Annotated[float, Meta(ge=0, title="retries per call, from 0")] = 0.2
    reserve: Annotated[float, Meta(ge=0, title="retries per second, from 0")] = 1.0

    def next(self, call: Repeat, tried: Tried, nth: int, now: float, dice: float) -> Again | Stop:
        """What follows an attempt that did not succeed.

        Args:
            call: what is known of the call.
            tried: what became of the attempt.
            nth: which one it was, from 1.
            now: steady seconds.
            dice: a random number from 0 to 1.
        """
        if tried.outcome in _FINAL:
            return Stop(_FINAL[tried.outcome], plain=True)
        if tried.acted and not call.safe:
            return Stop("the provider may have acted, and making it twice could do it twice", unknown=True)
        if nth >= self.attempts:
            return Stop(f"{nth} tries are all it gets")
        delay = self._delay(tried, nth, now, dice)
        if now + delay > call.deadline:
            return Stop(f"the next try, in {delay:.1f} s, would come after the deadline")
        return Again(delay)

    def _delay(self, tried: Tried, nth: int, now: float, dice: float) -> float:
        if tried.held:
            return 0.0  # the gate holds it to the very instant
        if tried.retry_at is not None:
            return max(0.0, tried.retry_at - now)
        return self.pause(nth, dice)

    def pause(self, nth: int, dice: float, *, spread: tuple[float, float] = (0.0, 1.0), least: float = 0.0) -> float:
        """Seconds to wait after the `nth` failure in a row.

        Args:
            nth: from 1.
            dice: a random number from 0 to 1.
            spread: the jitter where the user has said nothing of it.
            least: seconds of the first wait at least, from which the next ones grow.
        """
        if self.backoff:
            bound = max(least, self.backoff[min(nth, len(self.backoff)) - 1])
        else:
            bound = backoff(nth, max(self.first, least), self.factor, max(self.longest, least))
        low, high = sorted(self.jitter) if self.jitter else ((1.0, 1.0) if self.backoff else spread)
        return bound * (low + dice * (high - low))


def backoff(nth: int, first: float, factor: float, longest: float) -> float:
    """The bound of the backoff after the `nth` failure, in seconds."""
    if first <= 0:
        return 0.0
    try:
        return min(longest, first * factor ** (nth - 1))
    except OverflowError:
        return longest


class Budget:
    """Retries that a process may make: a share of its calls, and a few per second. Not thread-safe: its owner locks."""

    __slots__ = ("_at", "_most", "_retry", "_units")

    MOST: Final = 10.0
    """Seconds of `Retry.reserve`, or as many retries, that may be saved up."""

    def __init__(self, retry: Retry, now: float) -> None:
        self._retry = retry
        self._most = max(self.MOST, self.MOST * retry.reserve)
        self._units = self._most if retry.budget or retry.reserve else 0.0
        self._at = now

    def call(self) -> None:
        """A call is made for the first time."""
        self._units = min(self._most, self._units + self._retry.budget)

    def take(self, now: float) -> bool:
        """Whether one more retry may be made now; if so it is paid for."""
        self._units = min(self._most, self._units + max(0.0, now - self._at) * self._retry.reserve)
        self._at = now
        if self._units < 1:
            return False
        self._units -= 1
        return True
