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
        carry: units settled so late that they may count in a later window too.
        late: latest server instant (ns) at which one of them can have arrived.
        stamp: steady instant (ns) by which all of them had arrived: a period after it no window can hold them any more,
            whatever a clock says.
        foreign: units of other programs found in this window (they are part of `used`).
        expected: units of other programs expected in a whole window; what has not been seen of them is set aside.
        seen: latest server instant (ns) in this window at which a used-counter told us about others.
    """

    __slots__ = ("carry", "expected", "foreign", "late", "seen", "stamp")
    base: ClassVar[int] = 1
    melts: ClassVar[bool] = True

    def __init__(self, limit: Limit) -> None:
        super().__init__(limit)
        self.carry = self.late = self.stamp = self.foreign = self.expected = self.seen = 0

    def advance(self, now: Instant) -> None:
        period, origin = self.limit.period, self.limit.origin
        era = (now.lo - origin) // period
        if era > self.era:
            self._forecast(period)
            last = (self.late - origin) // period
            # Clocks may be corrected by more than a window at once: it is `late` that tells, not how many windows went by.
            self.used = self.carry if last >= era and now.mono < self.stamp + period + (period >> 12) else 0
            self.carry = self.used if last > era else 0
            self.enter(era, now.mono)
        self._place()

    def _place(self) -> None:
        self.turn = (self.era + 1) * self.limit.period + self.limit.origin
        self.room = self.limit.usable - self.used - self.inflight - max(0, self.expected - self.foreign)

    def _hold(self, now: Instant, late: int) -> None:
        """Let all that is spent count in any window up to server instant `late`."""
        self.carry, self.late, self.stamp = self.used, max(self.late, late), now.mono

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
        self._return(now)
        return super().opens(cost, who, now)

    def _return(self, now: Instant) -> None:
        """Written by somebody whose clock is ahead of all that ours could be: keep what is spent, leave the future."""
        if now.hi < self.turn - self.limit.period:
            self._hold(now, self.turn - 1)
            self.era = (now.lo - self.limit.origin) // self.limit.period
            self._place()

    def frees(self, units: int, now: Instant) -> int:
        return now.mono + max(1, self.turn - now.lo)

    def left(self, now: Instant) -> tuple[int, int]:
        # More than all of it, if others see this window sooner than we do.
        return max(self.turn - now.lo, 0), self.limit.period

    def settle(self, reserved: int, actual: int, at: Instant) -> None:
        self.inflight -= reserved
        self.used += actual
        self.tally += actual
        self.room += reserved - actual
        if at.hi >= self.turn or self.late >= self.turn:
            self.carry += actual
            self.late, self.stamp = max(self.late, at.hi), max(self.stamp, at.mono)

    def lapse(self, reserved: int, at: Instant, now: Instant) -> None:
        begin = self.turn - self.limit.period
        if at.hi < begin <= now.lo:  # surely counted in a window that is over
            self.refund(reserved)
        else:
            self.settle(reserved, reserved, at)

    def observe(self, used: int, sent: Instant, mark: int, reserved: int, actual: int, now: Instant) -> int:
        period, origin = self.limit.period, self.limit.origin
        if not (sent.lo - origin) // period == (now.hi - origin) // period == self.era:
            return 0  # the counter may speak of another window than ours
        bound = used + self.tally - mark - actual
        self.seen = max(self.seen, now.lo)
        foreign = max(0, used - (self.used + self.inflight + max(0, reserved - actual)))
        if foreign:
            self.used += foreign
            self.foreign += foreign
            self.tally += foreign
        elif bound < self.used:
            self.used = bound
            self.foreign = min(self.foreign, bound)
        self._place()
        return foreign

    def doubt(self, now: Instant) -> None:
        self._hold(now, now.hi)
        self._return(now)

    def adopt(self, limit: Limit, now: Instant) -> None:
        if (limit.period, limit.origin) != (self.limit.period, self.limit.origin):
            self._hold(now, now.hi)
            self.era = (now.lo - limit.origin) // limit.period
            self.expected = self.expected * limit.period // self.limit.period
            self.hot = -9
        self.limit = limit
        self.cool()
        self._place()

    def dump_own(self) -> list[int]:
        return [self.carry, self.late, self.stamp, self.foreign, self.expected, self.seen]

    def load_own(self, own: list[int]) -> None:
        self.carry, self.late, self.stamp, self.foreign, self.expected, self.seen = own
        self._place()


class First(Ledger):
    """Window that starts with the first request to arrive after the last one ended (KuCoin's kind).

    Its start is known only within bounds: not before the first request left, not after the first answer came.

    Attributes:
        begun: earliest possible start, steady ns; 0 when no window can be open.
        anchor: latest possible start, steady ns; 0 until an answer proves it.
        carry: units settled so late that they may count in the next window.
        last: steady instant (ns) of the latest settle; what was sent had arrived by then.
        owed: units in flight when the last window ended. Their answers prove nothing of the next one's start: only when
            more than this has been answered, one of the answers is to a request sent since.
    """

    __slots__ = ("anchor", "begun", "carry", "last", "owed")
    melts: ClassVar[bool] = True

    def __init__(self, limit: Limit) -> None:
        super().__init__(limit)
        self.begun = self.anchor = self.carry = self.last = self.owed = 0
        self.turn = FAR

    def advance(self, now: Instant) -> None:
        period = self.limit.period
        self.enter(now.mono // period, now.mono)
        if self.anchor and now.mono >= self.anchor + period:
            # Over, surely. The next began no sooner than this one can have ended; that it has begun is not known yet.
            self.tally += self.used - self.carry
            self.used, self.carry = self.carry, 0
            self.anchor, self.owed = 0, self.inflight
            self.begun += period
            self._close()
        if not (self.anchor or self.inflight) and now.mono >= self.last + period:
            self.tally += self.used
            self.used = self.carry = self.begun = 0  # all that was sent arrived a period ago
        self._place()

    def _close(self) -> None:
        """If nothing can have arrived since `begun`, no window is open."""
        if not (self.anchor or self.inflight) and self.last < self.begun:
            self.begun = 0

    def _place(self) -> None:
        self.turn = min(self._ends() or FAR, (self.era + 1) * self.limit.period)
        self.room = self.limit.usable - self.used - self.inflight

    def _ends(self) -> int:
        """Steady instant (ns) by which the window is surely over; 0: unknown."""
        begin = self.anchor or (0 if self.inflight else self.last)
        return begin + self.limit.period if begin else 0

    def take(self, cost: int, who: Who, now: Instant) -> None:
        super().take(cost, who, now)
        if not self.begun:
            self.begun = now.mono

    def settle(self, reserved: int, actual: int, at: Instant) -> None:
        self._spent(reserved, actual, at)
        self.owed -= reserved
        if self.owed < 0 and not self.anchor:
            self.anchor = at.mono
        self._place()

    def lapse(self, reserved: int, at: Instant, now: Instant) -> None:
        self._spent(reserved, reserved, at)  # it may never have arrived: it proves no window
        self._place()

    def _spent(self, reserved: int, actual: int, at: Instant) -> None:
        super().settle(reserved, actual, at)
        if reserved or actual:
            self.last = max(self.last, at.mono)
            if not self.begun or not reserved:  # others may have begun the window
                self.begun = min(self.begun or at.mono, at.mono - self.limit.period)
            if at.mono >= self.begun + self.limit.period:
                self.carry += actual

    def refund(self, reserved: int) -> None:
        super().refund(reserved)
        self._close()
        self._place()

    def frees(self, units: int, now: Instant) -> int:
        end = self._ends()
        return max(now.mono + 1, end) if end else UNKNOWN

    def left(self, now: Instant) -> tuple[int, int]:
        # What is kept melts so early that the last of it is answered before the window can end: what is in flight over
        # the end blurs the next one's beginning.
        period = self.limit.period
        end = 2 * self.begun + period - self.anchor if self.anchor else self._ends() or now.mono + period
        return max(end - now.mono, 0), period

    def dump_own(self) -> list[int]:
        return [self.begun, self.anchor, self.carry, self.last, self.owed]

    def load_own(self, own: list[int]) -> None:
        self.begun, self.anchor, self.carry, self.last, self.owed = own
        self._place()
