"""How many calls go side by side, and how far apart, by how often one was refused lately. Pure: instants are arguments."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

__all__ = ["Congestion", "Crowding", "Going"]


class Crowding(NamedTuple):
    """How calls to one provider fared lately: steady seconds of the last refusals, oldest first."""

    refused: tuple[float, ...] = ()


class Going(NamedTuple):
    """How calls go on: so many side by side, each so many seconds after the one before it."""

    width: int
    gap: float


class Congestion(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many calls go side by side. The numbers of refusals are scenario D's; width and gaps are ours.

    Attributes:
        width: calls side by side while all is well.
        span: seconds that are looked back at.
        many: more refusals than this within the span: half as many side by side, `gap` apart.
        too_many: more than this: one at a time, `long_gap` apart.
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
