"""Ledgers whose units come back all the time: sliding window, bucket, slots."""

from __future__ import annotations

from typing import ClassVar, Final

from headgate.ledger.base import FAR, UNKNOWN, Ledger
from headgate.ledger.limit import SECOND, Instant, Limit

__all__ = ["Bucket", "Sliding", "Slots"]

_RING: Final = 64
"""A sliding window is kept in at most about this many pieces; charges within a piece leave with its last one."""
_SLOT_ERA: Final = 60 * SECOND
"""Slots have no window; for fairness what was taken counts by the minute."""
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

    def frees(self, units: int, now: Instant) -> int:
        for i in range(0, len(self.marks), 3):
            units -= self.marks[i + 1]
            if units <= 0:
                return max(now.mono + 1, self.marks[i] + self.limit.period)
        return UNKNOWN

    def left(self, now: Instant) -> tuple[int, int]:
        if not self.marks:
            return 1, 1
        return min(max(self.marks[0] + self.limit.period - now.mono, 0), self.limit.period), self.limit.period

    def dump_own(self) -> list[int]:
        return self.marks

    def load_own(self, own: list[int]) -> None:
        self.marks = own
        self._place()


class Bucket(Ledger):
    """Leaky counter: settled units drain steadily; in flight they are held in full.

    Attributes:
        level: what has not drained, in billionths of a unit (so that rounding never favours us by a whole unit).
        at: steady instant (ns) up to which it has drained.
    """

    __slots__ = ("at", "level")

    def __init__(self, limit: Limit) -> None:
        super().__init__(limit)
        self.level = self.at = 0

    def advance(self, now: Instant) -> None:
        if now.mono > self.at:
            drained = (now.mono - self.at) * _NANO * self._refill() // self.limit.period
            self.level = max(0, self.level - drained)
            self.at = now.mono
        self.enter(now.mono // self.limit.period, now.mono)
        self._place()

    def _refill(self) -> int:
        return self.limit.refill or self.limit.capacity

    def _place(self) -> None:
        self.used = -(-self.level // _NANO)
        self.room = self.limit.usable - self.used - self.inflight
        self.turn = self.at + 1

    def settle(self, reserved: int, actual: int, at: Instant) -> None:
        self.inflight -= reserved
        self.settled += actual
        self.level += actual * _NANO
        self._place()

    def frees(self, units: int, now: Instant) -> int:
        over = self.level - (self.used - units) * _NANO
        if units > self.used:
            return UNKNOWN
        rate = _NANO * self._refill()
        return now.mono + max(1, -(-over * self.limit.period // rate))

    def dump_own(self) -> list[int]:
        return [self.level, self.at]

    def load_own(self, own: list[int]) -> None:
        self.level, self.at = own
        self._place()


class Slots(Ledger):
    """So many at once. What is settled is free again at once; when, only the holder knows."""

    __slots__ = ()
    rises: ClassVar[bool] = True

    def advance(self, now: Instant) -> None:
        self.enter(now.mono // _SLOT_ERA, now.mono)
        self.turn = (self.era + 1) * _SLOT_ERA

    def settle(self, reserved: int, actual: int, at: Instant) -> None:
        self.refund(reserved)

    def frees(self, units: int, now: Instant) -> int:
        return UNKNOWN

    def left(self, now: Instant) -> tuple[int, int]:
        return 0, 1  # nothing is kept for classes that do not ask

    def fill(self, now: Instant) -> None:
        """Somebody else holds the slots; nothing here can say for how long."""

    def load_own(self, own: list[int]) -> None:
        self.turn = (self.era + 1) * _SLOT_ERA if self.era >= 0 else -FAR
