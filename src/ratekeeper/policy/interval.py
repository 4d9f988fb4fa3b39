"""How often a poller asks, and how many calls run side by side: by the errors and refusals of late.

Pure: instants and dice are arguments.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

__all__ = ["Congestion", "Crowding", "Going", "Interval", "Rhythm"]


class Rhythm(NamedTuple):
    """The present rhythm of a poller.

    Attributes:
        seconds: the present interval.
        failed: whether each of the last polls failed, oldest first.
    """

    seconds: float
    failed: tuple[bool, ...] = ()


class Interval(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far polls lie apart, in seconds from start to start.

    Attributes:
        shortest: the interval while all is well.
        longest: the interval beyond which it does not grow.
        errors: more failed polls than this among the last `look` double the interval with each further failure.
        look: number of last polls that count.
        calm: this many polls in a row without an error halve the interval; then the count begins again.
        jitter: share of the interval by which a poll is moved at random, both ways, so that many programs do not ask at
            one moment.
    """

    shortest: Annotated[float, Meta(gt=0, title="seconds above 0")] = 30.0
    longest: Annotated[float, Meta(gt=0, title="seconds above 0")] = 300.0
    errors: Annotated[int, Meta(ge=0, title="a number from 0")] = 5
    look: Annotated[int, Meta(ge=1, le=1000, title="polls from 1 to 1000")] = 10
    calm: Annotated[int, Meta(ge=1, le=1000, title="polls from 1 to 1000")] = 2
    jitter: Annotated[float, Meta(ge=0, lt=1, title="a share from 0, below 1")] = 0.1

    def __post_init__(self) -> None:
        if self.longest < self.shortest:
            raise ValueError(f"longest ({self.longest:g} s) is below shortest ({self.shortest:g} s)")
        if max(self.errors + 1, self.calm) > self.look:
            raise ValueError(
                f"look ({self.look} polls) is too short to see more than {self.errors} errors, or the calm"
            )

    def begin(self) -> Rhythm:
        """The rhythm of a new poller."""
        return Rhythm(self.shortest)

    def after(self, rhythm: Rhythm, failed: bool | None) -> Rhythm:
        """The rhythm after one more poll; `failed` None: the poll was not made."""
        if failed is None:
            return rhythm
        last = (*rhythm.failed, failed)[-self.look :]
        if failed:
            longer = rhythm.seconds * 2 if sum(last) > self.errors else rhythm.seconds
            return Rhythm(min(longer, self.longest), last)
        if rhythm.seconds > self.shortest and len(last) >= self.calm and not any(last[-self.calm :]):
            return Rhythm(max(rhythm.seconds / 2, self.shortest), ())
        return Rhythm(rhythm.seconds, last)

    def due(self, rhythm: Rhythm, begun: float, now: float, dice: float, not_before: float = 0.0) -> float:
        """When the next poll is due, in steady seconds. What is late already is due now, once: lateness never piles up.

        Args:
            rhythm: where the poller stands.
            begun: when the last poll began, steady seconds.
            now: the present, steady seconds.
            dice: a random number from 0 to 1.
            not_before: steady seconds before which it must not be made.
        """
        moved = rhythm.seconds * (1 + self.jitter * (2 * dice - 1))
        return max(begun + moved, now, not_before)


class Crowding(NamedTuple):
    """The last refusals of one provider: steady seconds, oldest first."""

    refused: tuple[float, ...] = ()


class Going(NamedTuple):
    """How calls go on: `width` of them side by side, each `gap` seconds after the one before it."""

    width: int
    gap: float


class Congestion(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many calls run side by side.

    Attributes:
        width: calls side by side while few are refused.
        span: seconds for which a refusal counts.
        many: more refusals than this within the span halve the width and put `gap` between two calls.
        too_many: more than this leave one call at a time, `long_gap` after the one before it.
        gap, long_gap: seconds from one start to the next.
    """

    width: Annotated[int, Meta(ge=1, title="a number from 1")] = 10
    span: Annotated[float, Meta(gt=0, title="seconds above 0")] = 60.0
    many: Annotated[int, Meta(ge=0, title="a number from 0")] = 5
    too_many: Annotated[int, Meta(ge=0, le=10_000, title="a number from 0")] = 10
    gap: Annotated[float, Meta(ge=0, title="seconds from 0")] = 0.2
    long_gap: Annotated[float, Meta(ge=0, title="seconds from 0")] = 1.0

    def __post_init__(self) -> None:
        if self.too_many < self.many:
            raise ValueError(f"too_many ({self.too_many}) is below many ({self.many})")

    def refused(self, crowding: Crowding, now: float) -> Crowding:
        """The state after one more refusal. No more are remembered than make a difference."""
        return Crowding((*crowding.refused, now)[-(self.too_many + 1) :])

    def going(self, crowding: Crowding, now: float) -> Going:
        """How to go on now. Refusals older than the span no longer count, so it comes back by itself."""
        lately = sum(1 for at in crowding.refused if now - at < self.span)
        if lately > self.too_many:
            return Going(1, self.long_gap)
        if lately > self.many:
            return Going(max(1, self.width // 2), self.gap)
        return Going(self.width, 0.0)
