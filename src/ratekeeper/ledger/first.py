"""The ledger whose window begins with the first request to arrive."""

from __future__ import annotations

from typing import ClassVar

from ratekeeper.ledger.base import FAR, UNKNOWN, Ledger
from ratekeeper.ledger.limit import Instant, Limit
from ratekeeper.ledger.shares import Who

__all__ = ["First"]


class First(Ledger):
    """Window that starts with the first request to arrive after the last one ended (KuCoin's kind).

    Its start is known only within bounds: not before the first request left, not after the first answer came.

    Attributes:
        begun: earliest possible start, steady ns; 0 when no window can be open.
        anchor: latest possible start, steady ns; 0 until an answer proves it.
        carry: units settled so late that they may count in the next window.
        last: steady instant (ns) of the latest settle; what was sent had arrived by then.
        owed: units in flight when the last window ended. Their answers prove nothing about the next window's start. Only
            after more units than this are answered does one of the answers belong to a request sent since.
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
            # This window is certainly over. The next one began no sooner than this one can have ended; it may not have begun
            # yet.
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
        """Close the window if nothing can have arrived since `begun`."""
        if not (self.anchor or self.inflight) and self.last < self.begun:
            self.begun = 0

    def _place(self) -> None:
        self.turn = min(self._ends() or FAR, (self.era + 1) * self.limit.period)
        self.room = self.limit.usable - self.used - self.inflight

    def _ends(self) -> int:
        """Return the steady instant (ns) by which the window is certainly over; 0: unknown."""
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
        self._spent(reserved, reserved, at)  # the request may never have arrived: it proves no window
        self._place()

    def _spent(self, reserved: int, actual: int, at: Instant) -> None:
        super().settle(reserved, actual, at)
        if reserved or actual:
            self.last = max(self.last, at.mono)
            if not self.begun or not reserved:  # other programs may have begun the window
                self.begun = min(self.begun or at.mono, at.mono - self.limit.period)
            if at.mono >= self.begun + self.limit.period:
                self.carry += actual

    def refund(self, reserved: int) -> None:
        super().refund(reserved)
        self._close()
        self._place()

    def over(self) -> int:
        period = self.limit.period
        return max((self.era + 2) * period, max(self.anchor, self.last) + period)

    def frees(self, units: int, now: Instant) -> int:
        end = self._ends()
        return max(now.mono + 1, end) if end else UNKNOWN

    def left(self, now: Instant, pressing: bool) -> tuple[int, int]:
        # Reserved units shrink early enough that the last of them is answered before the window can end. Units in flight over
        # the end would blur the start of the next window.
        period = self.limit.period
        end = 2 * self.begun + period - self.anchor if self.anchor else self._ends() or now.mono + period
        return max(end - now.mono, 0), period

    def dump_own(self) -> list[int]:
        return [self.begun, self.anchor, self.carry, self.last, self.owed]

    def load_own(self, own: list[int]) -> None:
        self.begun, self.anchor, self.carry, self.last, self.owed = own
        self._place()
