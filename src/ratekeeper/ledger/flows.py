"""Ledgers whose units come back continuously: sliding window, bucket, slots."""

from __future__ import annotations

from itertools import accumulate
from typing import ClassVar, Final

from ratekeeper.ledger.base import FAR, UNKNOWN, Ledger
from ratekeeper.ledger.limit import SECOND, Instant, Limit
from ratekeeper.ledger.shares import Row, Upper, Who, note_peak, reach_evenly

__all__ = ["Bucket", "Sliding", "Slots"]

_RING: Final = 64
"""A sliding window is kept in at most about this many pieces; charges within a piece leave with its last one."""
_SLOT_ERA: Final = 60 * SECOND
"""Slots have no window; for fairness, units taken count by the minute."""
_NANO: Final = 1_000_000_000


class Sliding(Ledger):
    """Every span of one period: a charge leaves one period after it was settled (it arrived no later than that).

    Attributes:
        marks: ``[last settle instant, units, first settle instant, ...]`` flat, oldest first.
    """

    __slots__ = ("marks",)

    def __init__(self, limit: Limit) -> None:
        super().__init__(limit)
        self.marks: list[int] = []

    def advance(self, now: Instant) -> None:
        marks, period = self.marks, self.limit.period
        gone = 0
        while gone < len(marks) and marks[gone] + period <= now.mono:
            self.used -= marks[gone + 1]
            self.tally += marks[gone + 1]
            gone += 3
        if gone:
            del marks[:gone]
        self.enter(now.mono // period, now.mono)
        self._place()

    def _place(self) -> None:
        self.turn = (self.era + 1) * self.limit.period
        if self.marks:
            self.turn = min(self.turn, self.marks[0] + self.limit.period)
        self.room = self.limit.usable - self.used - self.inflight

    def settle(self, reserved: int, actual: int, at: Instant) -> None:
        super().settle(reserved, actual, at)
        if not actual:
            return
        marks = self.marks
        when = max(at.mono, marks[-3]) if marks else at.mono
        if marks and when - marks[-1] < self.limit.period // _RING:
            marks[-3] = when
            marks[-2] += actual
        else:
            marks += (when, actual, when)
            if len(marks) == 3:
                self._place()

    def over(self) -> int:
        return max((self.era + 2) * self.limit.period, self.marks[-3] + self.limit.period if self.marks else 0)

    def recount(self, inflight: int, mono: int, *, spent: bool = True) -> None:
        # `used` is the sum of the marks; an exception may have struck between the changes of both.
        unmarked = self.used - sum(self.marks[1::3])
        self.used -= unmarked
        self.room += unmarked
        if unmarked > 0:
            self.settle(0, unmarked, Instant(mono, mono, mono))
        super().recount(inflight, mono, spent=spent)

    def opens_flow(self, cost: int, upper: Upper, others: int, now: Instant) -> int:
        # Upper classes may want their units evenly over a period. So this keeps, for any time to come, the units that would
        # come back too late for them. Units taken now come back after a whole period. Little lies idle where units come back
        # steadily.
        period, usable, pieces = self.limit.period, self.limit.usable, len(self.marks) // 3
        spare = self.room - cost
        free = spare - others
        ends = [mark + period for mark in self.marks[::3]]
        released = [0, *accumulate(self.marks[1::3])]
        melted = [0] * (pieces + 1)  # from when on enough comes back by the end of each piece and of all later ones
        for i in range(pieces - 1, -1, -1) if upper.share or upper.even else ():
            melted[i] = max(melted[i + 1], ends[i] - reach_evenly(free + released[i], upper, period))
        for i in range(pieces + 1):
            available_at = ends[i - 1] if i else now.mono
            if spare + released[i] < usable - cost:  # else nothing is taken at all: that must be enough
                if free + released[i] < upper.blocked or free + self.used < max(upper.share, upper.even):
                    continue
                available_at = max(available_at, melted[i])
            if i == pieces or available_at < ends[i]:
                return available_at if available_at > now.mono else 0
        return -(now.mono + period)  # units in flight leave one period after they settle, which may be now

    def dump_own(self) -> list[int]:
        return self.marks

    def load_own(self, own: list[int]) -> None:
        self.marks = own
        self._place()


class Bucket(Ledger):
    """Leaky counter: settled units drain steadily; units in flight are held in full.

    Attributes:
        level: units not drained, in billionths of a unit (so that rounding never favours us by a whole unit).
        at: steady instant (ns) up to which it has drained.
    """

    __slots__ = ("at", "level")

    def __init__(self, limit: Limit) -> None:
        super().__init__(limit)
        self.level = self.at = 0

    def advance(self, now: Instant) -> None:
        if now.mono > self.at:
            rate, period = _NANO * self._refill(), self.limit.period
            drained = (now.mono - self.at) * rate // period
            # Advance only by the time accounted for: a caller that checks every microsecond must not keep a slow bucket full.
            self.at = now.mono if drained >= self.level else self.at - (-drained * period // rate)
            self.level = max(0, self.level - drained)
        self.enter(now.mono // self.limit.period, now.mono)
        before = self.used
        self._place()
        self.tally += before - self.used

    def _refill(self) -> int:
        return self.limit.refill or self.limit.capacity

    def _place(self) -> None:
        self.used = -(-self.level // _NANO)
        self.room = self.limit.usable - self.used - self.inflight
        self.turn = 0  # it drains continuously

    def settle(self, reserved: int, actual: int, at: Instant) -> None:
        self.inflight -= reserved
        self.level += actual * _NANO
        self._place()

    def over(self) -> int:
        drained = self.at - (-self.level * self.limit.period // (_NANO * self._refill()))
        return max((self.era + 2) * self.limit.period, drained)

    def frees(self, units: int, now: Instant) -> int:
        level, used, sign = self.level, self.used, 1
        if units > used:  # units in flight drain only after they settle, which may be now
            level, used, sign = level + self.inflight * _NANO, used + self.inflight, -1
        if units > used:
            return UNKNOWN
        over = level - (used - units) * _NANO
        rate = _NANO * self._refill()
        return sign * max(now.mono + 1, self.at - (-over * self.limit.period // rate))

    def opens_flow(self, cost: int, upper: Upper, others: int, now: Instant) -> int:
        # Upper classes live on the refill. So this keeps room only for their bursts above it, more as their demand nears the
        # refill rate. Nothing lies idle for that while the bucket is not empty.
        rate, usable = self._refill(), self.limit.usable
        even = upper.share + upper.even
        ahead = min(upper.burst + 3 * upper.burst * even // max(rate - even, rate // 8, 1), usable // 2)
        keep = min(max(upper.share, upper.blocked, ahead) + others, usable - cost)
        return 0 if self.room - cost >= keep else self.frees(cost + keep - self.room, now)

    def dump_own(self) -> list[int]:
        return [self.level, self.at]

    def load_own(self, own: list[int]) -> None:
        self.level, self.at = own
        self._place()


class Slots(Ledger):
    """A number of permits at once. Settled units are free again at once; only the caller knows when it will settle."""

    __slots__ = ()
    rises: ClassVar[bool] = True

    def advance(self, now: Instant) -> None:
        self.enter(now.mono // _SLOT_ERA, now.mono)
        self.turn = (self.era + 1) * _SLOT_ERA

    def take(self, cost: int, who: Who, now: Instant) -> None:
        super().take(cost, who, now)
        row = self.rows[who]
        row[9] += cost
        note_peak(row, row[9], now.mono)

    def missed(self, who: Who, units: int, waiting: int, mono: int) -> None:
        super().missed(who, units, waiting, mono)
        row = self.rows[who]
        note_peak(row, row[9] + units, mono)

    def returned(self, who: Who, units: int, mono: int, *, spent: bool) -> None:
        super().returned(who, units, mono, spent=spent)
        row = self.rows.get(who)
        if row is not None:
            note_peak(row, row[9], mono)
            row[9] = max(0, row[9] - units)

    def settle(self, reserved: int, actual: int, at: Instant) -> None:
        self.refund(reserved)
        self.tally += reserved

    def over(self) -> int:
        return (self.era + 2) * _SLOT_ERA

    def frees(self, units: int, now: Instant) -> int:
        return UNKNOWN

    def opens_flow(self, cost: int, upper: Upper, others: int, now: Instant) -> int:
        # Keep nothing for classes without recent demand.
        spare = self.room - cost
        if spare >= min(max(upper.burst, upper.blocked) + others, self.limit.usable - cost):
            return 0
        return -upper.falls if upper.falls and spare >= 0 else UNKNOWN

    def _past(self, row: Row, asked: int) -> list[int]:
        return row[9:]

    def fill(self, now: Instant) -> None:
        """Do nothing: another program holds the slots, and nothing here can tell for how long."""

    def load_own(self, own: list[int]) -> None:
        self.turn = (self.era + 1) * _SLOT_ERA if self.era >= 0 else -FAR
