"""Ledgers whose window begins and ends: fixed to the server's clock, and fixed from the first request."""

from __future__ import annotations

from typing import ClassVar

from headgate.ledger.base import FAR, UNKNOWN, Ledger
from headgate.ledger.limit import Instant, Limit
from headgate.ledger.shares import Who

__all__ = ["First", "Fixed"]


class Fixed(Ledger):
    """Window aligned to the server's clock. Rolls only when it is surely over; what may already lie in the next is carried.

    Attributes:
        carry: units settled so late that they may count in the next window too.
        foreign: units of other programs found in this window (they are part of `used`).
        expected: units of other programs expected in a whole window; what has not been seen of them is set aside.
        seen: latest server instant (ns) in this window at which a used-counter told us about others.
    """

    __slots__ = ("carry", "expected", "foreign", "seen")
    base: ClassVar[int] = 1
    melts: ClassVar[bool] = True

    def __init__(self, limit: Limit) -> None:
        super().__init__(limit)
        self.carry = self.foreign = self.expected = self.seen = 0

    def advance(self, now: Instant) -> None:
        period, origin = self.limit.period, self.limit.origin
        era = (now.lo - origin) // period
        if era > self.era:
            self._forecast(period)
            self.used = self.carry if era == self.era + 1 else 0
            self.carry = 0
            self.enter(era, now.mono)
        self._place()

    def _place(self) -> None:
        self.turn = (self.era + 1) * self.limit.period + self.limit.origin
        self.room = self.limit.usable - self.used - self.inflight - max(0, self.expected - self.foreign)

    def _forecast(self, period: int) -> None:
        """From what others spent in the window that ends, expect what they will spend in the next."""
        if self.foreign or self.expected:
            begin = self.turn - period
            # Evidence may end early in the window: the rest is taken to go on at the same rate, at most fourfold.
            witnessed = max(self.seen - begin, period // 4) if self.seen else period
            sample = self.foreign * period // min(witnessed, period)
            sample += sample // 10
            # A programme that fell silent is believed gone only slowly, a quarter a window.
            self.expected = min(max(sample, self.expected * 3 // 4), self.limit.usable * 9 // 10)
            if self.expected * 200 < self.limit.usable:
                self.expected = 0
        self.foreign = self.seen = 0

    def opens(self, cost: int, who: Who, now: Instant, ahead: int = 0) -> int:
        if (now.hi - self.limit.origin) // self.limit.period < self.era:
            # Written by somebody whose clock is ahead of all that ours could be. Keep what is spent, leave the future.
            self.era = (now.lo - self.limit.origin) // self.limit.period
            self.carry = self.used
            self._place()
        return super().opens(cost, who, now)

    def frees(self, units: int, now: Instant) -> int:
        return now.mono + max(1, self.turn - now.lo)

    def left(self, now: Instant) -> tuple[int, int]:
        return min(max(self.turn - now.lo, 0), self.limit.period), self.limit.period

    def settle(self, reserved: int, actual: int, at: Instant) -> None:
        self.inflight -= reserved
        if at.hi < self.turn - self.limit.period:  # surely counted in a window that is over
            self.room += reserved
            return
        self.used += actual
        self.settled += actual
        self.room += reserved - actual
        if at.hi >= self.turn:
            self.carry += actual

    def observe(self, used: int, sent: Instant, mark: int, reserved: int, actual: int, now: Instant) -> int:
        period, origin = self.limit.period, self.limit.origin
        if not (sent.lo - origin) // period == (now.hi - origin) // period == self.era:
            return 0  # the counter may speak of another window than ours
        bound = used + self.settled - mark - actual
        self.seen = max(self.seen, now.lo)
        foreign = max(0, used - (self.used + self.inflight + max(0, reserved - actual)))
        if foreign:
            self.used += foreign
            self.foreign += foreign
            self.settled += foreign
        elif bound < self.used:
            self.used = bound
            self.foreign = min(self.foreign, bound)
        self._place()
        return foreign

    def doubt(self) -> None:
        self.carry = max(self.carry, self.used)

    def adopt(self, limit: Limit, now: Instant) -> None:
        if (limit.period, limit.origin) != (self.limit.period, self.limit.origin):
            self.era = (now.lo - limit.origin) // limit.period
            self.carry = self.used
            self.expected = self.expected * limit.period // self.limit.period
            self.hot = -9
        self.limit = limit
        self.cool()
        self._place()

    def dump_own(self) -> list[int]:
        return [self.carry, self.foreign, self.expected, self.seen]

    def load_own(self, own: list[int]) -> None:
        self.carry, self.foreign, self.expected, self.seen = own
        self._place()


class First(Ledger):
    """Window that starts with the first request to arrive after the last one ended (KuCoin's kind).

    Its start is known only within bounds: not before the first request left, not after the first answer came.

    Attributes:
        begun: earliest possible start, steady ns; 0 when no window is open.
        anchor: latest possible start, steady ns; 0 until an answer proves it.
        carry: units settled so late that they may count in the next window.
    """

    __slots__ = ("anchor", "begun", "carry")
    melts: ClassVar[bool] = True

    def __init__(self, limit: Limit) -> None:
        super().__init__(limit)
        self.begun = self.anchor = self.carry = 0
        self.turn = FAR

    def advance(self, now: Instant) -> None:
        period = self.limit.period
        self.enter(now.mono // period, now.mono)
        if self.anchor and now.mono >= self.anchor + period:
            self.used, self.carry = self.carry, 0
            if self.used or self.inflight:
                # The next window may have started as early as the old one can have ended; nothing proves it yet,
                # unless nothing is in flight any more: then it started by now at the latest.
                self.begun += period
                self.anchor = 0 if self.inflight else now.mono
            else:
                self.begun = self.anchor = 0
        self._place()

    def _place(self) -> None:
        self.turn = min(self.anchor + self.limit.period if self.anchor else FAR, (self.era + 1) * self.limit.period)
        self.room = self.limit.usable - self.used - self.inflight

    def take(self, cost: int, who: Who, now: Instant) -> None:
        super().take(cost, who, now)
        if not self.begun:
            self.begun = max(1, now.mono)

    def settle(self, reserved: int, actual: int, at: Instant) -> None:
        super().settle(reserved, actual, at)
        if not self.begun:
            self.begun = max(1, at.mono)
        if not self.anchor:
            self.anchor = max(1, at.mono)
            self._place()
        if at.mono >= self.begun + self.limit.period:
            self.carry += actual

    def refund(self, reserved: int) -> None:
        super().refund(reserved)
        if not (self.inflight or self.used):
            self.begun = self.anchor = 0

    def frees(self, units: int, now: Instant) -> int:
        if not self.anchor:
            return UNKNOWN
        return max(now.mono + 1, self.anchor + self.limit.period)

    def left(self, now: Instant) -> tuple[int, int]:
        if not self.anchor:
            return self.limit.period, self.limit.period
        return min(max(self.anchor + self.limit.period - now.mono, 0), self.limit.period), self.limit.period

    def dump_own(self) -> list[int]:
        return [self.begun, self.anchor, self.carry]

    def load_own(self, own: list[int]) -> None:
        self.begun, self.anchor, self.carry = own
        self._place()
