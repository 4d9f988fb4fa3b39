"""The emulator's own strict count of what arrives.

It is written apart from `ratekeeper.ledger` on purpose and shares no line with it, so that a mistake in one is caught by the
other. It knows nothing of requests in flight, clock doubt or feedback: it counts at the instant of arrival, as a server does.
All instants and periods are integer nanoseconds of the emulator's clock; all costs are whole units.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


__all__ = [
    "BucketCounter",
    "Charge",
    "Counter",
    "FixedCounter",
    "Full",
    "Meter",
    "SlidingCounter",
    "SlotsCounter",
    "Span",
    "StrictLimit",
    "Tally",
]

KEPT_SPANS = 5_000
"""Windows of one tally that are remembered for the statistics."""


@dataclass(slots=True)
class StrictLimit:
    """One limit as the emulator enforces it; `capacity` and `period` may be changed while it runs.

    Attributes:
        name: the limit's name in the rule file.
        unit: what is counted.
        capacity: units; for a bucket its size.
        period: nanoseconds; 0 for slots.
        window: ``fixed``, ``first``, ``sliding``, ``bucket`` or ``slots``.
        scope: the kinds of owner that each have a tally of their own.
        origin: fixed only: nanoseconds by which the edges lie after whole multiples of the period.
        refill: bucket only: units that leak per period.
        counts_refused: whether a refused request is counted all the same, while `Meter.count_refused` is on.
        declared: the name under which the provider's own list of limits shows it; ``""`` if it does not.
    """

    name: str
    unit: str
    capacity: int
    period: int
    window: str = "fixed"
    scope: tuple[str, ...] = ("ip",)
    origin: int = 0
    refill: int = 0
    counts_refused: bool = False
    declared: str = ""


@dataclass(slots=True)
class Span:
    """What arrived in one window of one tally."""

    start: int
    capacity: int
    """Units that one period can give: for a bucket what comes back in it, so that a first burst shows more than all."""
    accepted: int = 0
    """Units of requests that were let through, less what was given back."""
    refused: int = 0
    """Units of requests that were refused."""
    calls: int = 0
    peak: int = 0
    """The highest count the limit ever showed in this window."""


class Counter(Protocol):
    """How much of a limit is used. `used` must be called with instants that do not go back within a window."""

    def used(self, now: int) -> int:
        """Units counted at `now`."""

    def add(self, now: int, cost: int) -> None:
        """Count `cost` units at `now`; a negative cost gives units back."""

    def free_at(self, now: int) -> int:
        """The instant at which units come back, as the server would tell a client that is refused now."""


class FixedCounter:
    """Windows with edges at whole multiples of the period, or (`first`) opened by the first request."""

    def __init__(self, limit: StrictLimit) -> None:
        self._limit = limit
        self._start = -1
        self._count = 0

    def _turn(self, now: int) -> None:
        limit = self._limit
        if limit.window == "first":
            if self._start < 0 or now - self._start >= limit.period:
                self._start, self._count = now, 0
            return
        start = now - (now - limit.origin) % limit.period
        if start != self._start:
            self._start, self._count = start, 0

    def used(self, now: int) -> int:
        self._turn(now)
        return self._count

    def add(self, now: int, cost: int) -> None:
        self._turn(now)
        self._count = max(0, self._count + cost)

    def free_at(self, now: int) -> int:
        self._turn(now)
        return self._start + self._limit.period


class SlidingCounter:
    """A log of every arrival: what lies a full period back has left."""

    def __init__(self, limit: StrictLimit) -> None:
        self._limit = limit
        self._log: deque[tuple[int, int]] = deque()
        self._sum = 0

    def used(self, now: int) -> int:
        horizon = now - self._limit.period
        while self._log and self._log[0][0] <= horizon:
            self._sum -= self._log.popleft()[1]
        return max(0, self._sum)

    def add(self, now: int, cost: int) -> None:
        self._log.append((now, cost))
        self._sum += cost

    def free_at(self, now: int) -> int:
        self.used(now)
        return self._log[0][0] + self._limit.period if self._log else now


class BucketCounter:
    """A counter that leaks at a steady rate. Kept in units times nanoseconds, so that no fraction is lost."""

    def __init__(self, limit: StrictLimit) -> None:
        self._limit = limit
        self._level = 0
        self._at = 0

    def _leak(self, now: int) -> None:
        rate = self._limit.refill or self._limit.capacity
        self._level = max(0, self._level - rate * max(0, now - self._at))
        self._at = now

    def used(self, now: int) -> int:
        self._leak(now)
        return -(-self._level // self._limit.period)

    def add(self, now: int, cost: int) -> None:
        self._leak(now)
        self._level = max(0, self._level + cost * self._limit.period)

    def free_at(self, now: int) -> int:
        rate = self._limit.refill or self._limit.capacity
        return now + -(-self._limit.period // rate)


class SlotsCounter:
    """A number of slots; a request holds its slots until the meter credits them."""

    def __init__(self) -> None:
        self._held = 0

    def used(self, now: int) -> int:
        return self._held

    def add(self, now: int, cost: int) -> None:
        self._held = max(0, self._held + cost)

    def free_at(self, now: int) -> int:
        return now


def _counter(limit: StrictLimit) -> Counter:
    match limit.window:
        case "fixed" | "first":
            return FixedCounter(limit)
        case "sliding":
            return SlidingCounter(limit)
        case "bucket":
            return BucketCounter(limit)
        case "slots":
            return SlotsCounter()
    raise ValueError(f"limit {limit.name}: unknown window {limit.window!r}")


@dataclass(slots=True)
class Tally:
    """One limit of one owner: its counter, and what arrived window by window."""

    limit: StrictLimit
    owner: str
    counter: Counter
    spans: deque[Span] = field(default_factory=lambda: deque(maxlen=KEPT_SPANS))

    def span(self, now: int) -> Span:
        """The window that holds `now`; for limits without aligned windows an aligned stretch of one period."""
        period = self.limit.period or 60_000_000_000
        start = now - (now - self.limit.origin) % period
        if not self.spans or self.spans[-1].start != start:
            self.spans.append(Span(start, self.limit.refill or self.limit.capacity))
        return self.spans[-1]


class Charge(NamedTuple):
    """What a request costs on one limit of one owner."""

    limit: StrictLimit
    owner: str
    cost: int


class Full(NamedTuple):
    """The limit that had no room, and when units come back (nanoseconds of the emulator's clock)."""

    limit: StrictLimit
    free_at: int


class Meter:
    """All tallies, and the one decision: let a request through, or refuse it.

    Attributes:
        count_refused: whether limits that count what they refused may do so.
    """

    def __init__(self) -> None:
        self.count_refused = True
        self._tallies: dict[tuple[str, str], Tally] = {}

    def tally(self, limit: StrictLimit, owner: str) -> Tally:
        """The tally of `owner` under `limit`, made when first asked for."""
        key = (limit.name, owner)
        found = self._tallies.get(key)
        if found is None:
            found = self._tallies[key] = Tally(limit, owner, _counter(limit))
        return found

    def arrive(self, now: int, charges: Iterable[Charge]) -> Full | None:
        """Count one request at the instant it arrives: on every limit, or on none but those that count refusals."""
        lines = [(self.tally(charge.limit, charge.owner), charge.cost) for charge in charges]
        full: Full | None = None
        for tally, cost in lines:
            limit = tally.limit
            if cost and tally.counter.used(now) + cost > limit.capacity:
                free_at = tally.counter.free_at(now)
                if full is None or free_at > full.free_at:
                    full = Full(limit, free_at)
        for tally, cost in lines:
            span = tally.span(now)
            span.calls += 1
            if full is None:
                span.accepted += cost
            else:
                span.refused += cost
            if full is None or (tally.limit.counts_refused and self.count_refused):
                tally.counter.add(now, cost)
                span.peak = max(span.peak, tally.counter.used(now))
        return full

    def credit(self, now: int, charges: Iterable[Charge]) -> None:
        """Give units back: a call that turned out to be free, an order that was filled, a slot that is free again."""
        for charge in charges:
            tally = self.tally(charge.limit, charge.owner)
            tally.counter.add(now, -charge.cost)
            if charge.limit.period:
                tally.span(now).accepted -= charge.cost

    def used(self, now: int, limit: StrictLimit, owner: str) -> int:
        """What the usage header of this limit would say at `now`, in units."""
        return self.tally(limit, owner).counter.used(now)

    def __iter__(self) -> Iterator[Tally]:
        return iter(self._tallies.values())
