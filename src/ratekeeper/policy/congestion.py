"""How many calls run side by side, and how far apart they start, by the refusals of late. Pure: instants are arguments."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

__all__ = ["Congestion", "Crowding", "Going"]


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
