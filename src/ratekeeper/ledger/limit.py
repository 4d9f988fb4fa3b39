"""A limit: an amount of a unit per window for a scope. Values only; no clock, no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

__all__ = ["SECOND", "Charge", "Instant", "Limit", "Window", "parted"]

SECOND = 1_000_000_000
"""Nanoseconds in a second. All instants and periods in the ledger are integer nanoseconds."""


class Window(StrEnum):
    """How the span of a limit moves."""

    FIXED = "fixed"
    """Aligned to the server's clock: edges at whole multiples of the period since the epoch (plus `origin`)."""
    FIRST = "first"
    """Starts with the first request that arrives after the last window ended."""
    SLIDING = "sliding"
    """Every span of one period, wherever it starts. Safe for a provider whose algorithm is unknown."""
    BUCKET = "bucket"
    """Leaks at a steady rate: `refill` units a period, never more than `capacity` at once."""
    SLOTS = "slots"
    """A number of permits held at the same time; no period."""


@dataclass(frozen=True, slots=True)
class Limit:
    """One rule of a provider, as the ledger needs it.

    Attributes:
        name: unique within the provider, such as ``weight-1m``.
        unit: what is counted: ``weight``, ``requests``, ``orders``, ``tokens``, ``slots``...
        capacity: the published number, in units; for a bucket, its size (the burst).
        period: nanoseconds; 0 for slots.
        window: how the span moves.
        scope: the kinds of owner that together name one ledger: ``("ip",)``, ``("account", "instrument")``...
        headroom: units left unused on purpose.
        refill: bucket only: units that come back per period; 0 means `capacity`.
        origin: fixed only: nanoseconds by which the edges lie after whole multiples of the period.
        own: the number is the user's own, so what the provider states does not simply replace it. Not compared: limits that
            differ only in this are equal.
        lasting: bucket only: `refill` stays the same when the provider states another capacity; not compared.
        place: for a number that is no provider's: whose it is and where it is written, for people; not compared.
    """

    name: str
    unit: str
    capacity: int
    period: int
    window: Window = Window.FIXED
    scope: tuple[str, ...] = ("ip",)
    headroom: int = 0
    refill: int = 0
    origin: int = 0
    own: bool = field(default=False, compare=False)
    lasting: bool = field(default=False, compare=False)
    place: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if self.capacity < 1:
            raise ValueError(f"limit {self.name}: capacity must be at least 1, not {self.capacity}")
        if (self.period < 1) != (self.window is Window.SLOTS):
            raise ValueError(f"limit {self.name}: a {self.window} limit cannot have a period of {self.period} ns")
        if not 0 <= self.headroom < self.capacity:
            raise ValueError(f"limit {self.name}: headroom {self.headroom} leaves nothing of {self.capacity}")

    @property
    def usable(self) -> int:
        """Units that may be spent: the capacity without the headroom."""
        return self.capacity - self.headroom


class Instant(NamedTuple):
    """One moment, on this machine's steady clock and, with doubt, on the server's clock. All in nanoseconds.

    The true server time lies in ``[lo, hi]``. A window is over when even `lo` is past its edge; something may
    already count in the next window when `hi` is.
    """

    mono: int
    lo: int
    hi: int


class Charge(NamedTuple):
    """The cost of one call on one limit of one owner."""

    key: str
    """The ledger's key: ``provider/limit/scope``, the same in every process."""
    limit: Limit
    cost: int
    """Units, not negative. 0 is allowed (it only requires that the owner is not blocked)."""


def parted(charges: tuple[Charge, ...]) -> tuple[tuple[Charge, ...], tuple[Charge, ...]]:
    """Split charges into those held while something is open (slots), and the rest."""
    held = tuple(charge for charge in charges if charge.limit.window is Window.SLOTS)
    return held, tuple(charge for charge in charges if charge.limit.window is not Window.SLOTS)
