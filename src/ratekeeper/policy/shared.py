"""Small records that all processes share beside the ledgers, and how each changes. Pure: instants are arguments.

The present is an `Instant` whose `mono` is this machine's steady clock, and whose `lo` and `hi` are bounds of it on the
store's steady clock. Records are dated on the store's; what a function is given or returns counts on this machine's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Final, NamedTuple, TypeAlias

from msgspec import Meta

from ratekeeper.ledger.limit import SECOND, Instant

__all__ = [
    "WARNINGS",
    "Bans",
    "Claim",
    "Count",
    "Steady",
    "Trouble",
    "age",
    "banned",
    "claimed",
    "held",
    "renewed",
    "seconds",
]

Count: TypeAlias = Annotated[int, Meta(ge=0, lt=1 << 32)]
"""How often something happened. A greater number is garbled."""
Steady: TypeAlias = Annotated[float, Meta(ge=-1e15, le=1e15)]
"""Steady seconds of the store's clock."""

WARNINGS: Final = 3
"""Refusals by the provider after which an address is left."""
_CALM: Final = 600 * SECOND
"""Without trouble for so long, warnings are forgotten, ns; failures and rests after the longest rest on top."""
_AFTER_WARNINGS: Final = (60 * SECOND, 900 * SECOND)
_AFTER_FAILURE: Final = (5 * SECOND, 300 * SECOND)
"""First and longest rest; each further one is twice as long, ns."""
_LONGEST_CLAIM: Final = 400 * 86_400 * SECOND
"""No task is claimed for longer, ns: what says so was garbled."""
_MOST_STEPS: Final = 24
"""Steps of the ladder of bans: more than any file needs to come to its longest."""


def seconds(now: Instant) -> float:
    """The present in steady seconds of the store's clock, as far as this machine knows it."""
    return (now.lo + now.hi) / (2 * SECOND)


def age(at: int, now: Instant) -> int:
    """The age of the instant `at` (steady ns of the store), in ns: the longest that the bounds of the clock allow. Negative
    for an instant before a reboot, which sets the clock back."""
    return now.hi - at


class Claim(NamedTuple):
    """A task that one process has claimed.

    Attributes:
        until: steady ns of the store from which others may claim it.
    """

    until: int


def held(claim: Claim | None, now: Instant) -> int:
    """The steady ns until which a task is claimed, the latest that the bounds of the clock allow; 0: it is free."""
    if claim is None or not now.lo < claim.until < now.lo + _LONGEST_CLAIM:
        return 0
    return claim.until - now.lo + now.mono


def claimed(claim: Claim | None, now: Instant, until: int) -> tuple[Claim, Claim | int]:
    """Claim a task until the steady ns `until`. Returns the record, and the claim if it is ours, else the steady ns until
    which another process has it."""
    taken = held(claim, now)
    if claim is not None and taken:
        return claim, taken
    ours = Claim(until - now.mono + now.hi)
    return ours, ours


def renewed(claim: Claim | None, now: Instant, until: int) -> tuple[Claim | None, None]:
    """Extend a claim to the steady ns `until`. One that has ended or was given back stays free."""
    return (Claim(until - now.mono + now.hi) if held(claim, now) else None), None


class Bans(NamedTuple):
    """Bans of one scope whose end was not stated.

    Attributes:
        began: when the last one was met, steady ns of the store.
        counted: until when each makes the next ones longer.
    """

    began: int = 0
    counted: tuple[int, ...] = ()


def banned(bans: Bans | None, now: Instant, sent: int, length: Callable[[int], int]) -> tuple[Bans, int]:
    """A call was answered with such a ban: longer for those who were banned before.

    Args:
        bans: what is known.
        now: the present.
        sent: steady ns at which the call was sent: one that left before the last ban was met tells nothing new.
        length: of a ban after so many others, ns. Each counts for as long as the longest lasts after its end.

    Returns:
        The record, and the length of the ban in ns; 0: it is the one we know of.
    """
    bans = bans or Bans()
    if sent - now.mono + now.lo < bans.began <= now.hi:
        return bans, 0
    counted = tuple([until for until in bans.counted if now.lo < until])[-_MOST_STEPS:]
    span = length(min(len(counted), _MOST_STEPS - 1))
    return Bans(now.lo, (*counted, now.hi + span + length(_MOST_STEPS))), span


class Trouble(NamedTuple):
    """How an address fares at a provider.

    Attributes:
        number: warnings, or failures to connect, that are not forgotten.
        rests: how often it rested for them.
        at: when the last came, steady ns of the store.
    """

    number: Count = 0
    rests: Count = 0
    at: int = 0

    def still(self, now: Instant) -> Trouble:
        """What of it is not forgotten."""
        old = age(self.at, now)
        if old < 0:
            return Trouble()
        # A rest is itself calm: how many there were must outlive the longest.
        forgotten = old > _CALM + _AFTER_WARNINGS[1]
        return Trouble(0 if old > _CALM else self.number, 0 if forgotten else self.rests, self.at)

    def warned(self, now: Instant) -> tuple[Trouble, tuple[int, int]]:
        """After a further warning: the record, and the warnings so far with the rest that follows in ns (0: none)."""
        count, rests, _ = self.still(now)
        if count + 1 < WARNINGS:
            return Trouble(count + 1, rests, now.lo), (count + 1, 0)
        return Trouble(0, rests + 1, now.lo), (WARNINGS, _rest(_AFTER_WARNINGS, rests))

    def failed(self, now: Instant) -> tuple[Trouble, int]:
        """After a further failure to connect: the record, and the rest that follows, ns."""
        count, rests, _ = self.still(now)
        return Trouble(count + 1, rests + 1, now.lo), _rest(_AFTER_FAILURE, rests)


def _rest(lengths: tuple[int, int], rests: int) -> int:
    first, longest = lengths
    return min(longest, first << min(rests, 20))
