"""The edges of a fixed window, as bounds learned from the best evidence. They are never given without their uncertainty.

The clock that dates an answer is not always the clock that counts: an edge server writes the `Date`, and an engine behind it
may begin its minute earlier or later. So a fixed window keeps bounds of its own on the *counting clock*, as an offset from
steady time. They begin at a first doubt around the dates. One kind of evidence narrows them: a used-counter that drops
between two answers. An edge then lies after the first request was sent and before the second answer came. This evidence needs
no costs, and other programs cannot distort it, because a counter only falls when its window turns over. Contradicting
evidence widens the bounds again. Pure: instants are arguments, integer ns.
"""

from __future__ import annotations

from typing import Final

from ratekeeper.ledger.limit import SECOND, Instant

__all__ = ["Edges"]

FIRST_DOUBT: Final = 2 * SECOND
"""How far the counting clock may be from the dates, ns; half a period at most."""
BLIND_DOUBT: Final = SECOND // 4
"""The same without a used-counter, until a refusal contradicts it, ns; a twentieth of a period at most."""
_DRIFT: Final = 5_000
"""One part in this many: how fast the counting clock may leave the bounds (200 ppm)."""


class Edges:
    """Bounds of the clock by which a provider counts one fixed window.

    Attributes:
        lo, hi: bounds of (counting clock - steady clock), ns.
        doubt: how far from the dates an edge is possible now, ns: `whole` after the first counter or refusal.
        whole: the first doubt of this period, ns.
        peak: the highest used-counter since the last drop, units; 0: none.
        sent, told: steady instants between which the provider stated that counter, ns.
        mark: running total of the ledger when that call was sent.
        shown: number of the latest window that a drop has shown to have begun; 0: none.
    """

    __slots__ = ("doubt", "hi", "lo", "mark", "peak", "period", "sent", "shown", "told", "whole")

    def __init__(self, period: int) -> None:
        self.period = period
        self.whole = min(FIRST_DOUBT, period // 2)
        self.doubt = min(BLIND_DOUBT, period // 20)
        self.lo = self.hi = self.peak = self.sent = self.told = self.mark = self.shown = 0

    def dump(self) -> list[int]:
        """Return all that is known, for `codec`."""
        return [self.lo, self.hi, self.doubt, self.whole, self.peak, self.sent, self.told, self.mark, self.shown]

    def load(self, numbers: list[int]) -> None:
        """Inverse of `dump`."""
        self.lo, self.hi, self.doubt, self.whole, self.peak, self.sent, self.told, self.mark, self.shown = numbers

    @property
    def blind(self) -> bool:
        """Whether nothing has shown an edge yet, and no refusal has contradicted the dates."""
        return self.doubt < self.whole

    @property
    def lasts(self) -> int:
        """Return how long without an answer the bounds are narrower than the first doubt, ns."""
        return self.whole * _DRIFT

    @property
    def width(self) -> int:
        """Return the distance between the earliest and the latest possible edge, ns."""
        return self.hi - self.lo

    @property
    def _slack(self) -> int:
        """Return how far the clocks may move apart within a window, ns."""
        return self.period // _DRIFT

    @property
    def vague(self) -> bool:
        """Whether deliberate calls near an edge would narrow the bounds: not without counters, and not below a call's
        round-trip time."""
        return bool(self.told) and 240 * (self.width - 2 * (self.told - self.sent)) > self.period

    def begin(self, now: Instant) -> None:
        """Believe the dates within `doubt`."""
        self.lo, self.hi = self._low(now), self._high(now)
        self.peak = self.sent = self.told = self.mark = self.shown = 0

    def open(self, now: Instant) -> None:
        """Widen the bounds to the whole first doubt; a doubt that was whole already is doubled."""
        if self.doubt >= self.whole and self.lo <= self._low(now) and self.hi >= self._high(now):
            self.whole = min(2 * self.whole, self.period // 2)
        self.doubt = self.whole
        self.lo, self.hi = self._low(now), self._high(now)

    def _low(self, now: Instant) -> int:
        return now.lo - now.mono - self.doubt

    def _high(self, now: Instant) -> int:
        return now.hi - now.mono + self.doubt

    def dated(self, now: Instant) -> bool:
        """Clip the bounds to what the dates allow. Returns False if no instant agrees with both, because the clocks were set
        or the bounds were wrong. Then the dates are believed."""
        if 2 * self.doubt >= self.period:
            return True  # every instant of a period is possible: dates tell nothing
        low, high = self._low(now), self._high(now)
        agrees = low <= self.hi and high >= self.lo
        self.lo, self.hi = (max(low, self.lo), min(high, self.hi)) if agrees else (low, high)
        return agrees

    def drift(self, windows: int, now: Instant) -> None:
        """Widen the bounds for `windows` windows in which the clocks may have moved apart."""
        more = self._slack * windows
        self.lo, self.hi = self.lo - more, self.hi + more
        self.dated(now)

    def counter(self, used: int, sent: int, mark: int, now: int, origin: int) -> bool:
        """Apply a used-counter.

        Args:
            used: units, as the answer states them.
            sent, now: steady instants at which its request was reserved and its answer came.
            mark: running total of the ledger when it was reserved.
            origin: of the limit.

        Returns:
            False if the counter shows an edge outside the bounds.
        """
        agrees = True
        # Well below the peak, because the counters of a provider's machines may differ a little without an edge.
        if used < self.peak and 4 * used <= 3 * self.peak:
            if sent < self.told:
                return True  # in flight together: either may have arrived first
            if now - self.sent + 2 * self._slack >= self.period:
                sent = 0  # there is an edge in any case; the window that counted this request is unknown
            else:
                agrees = self._between(self.sent, now, origin)
        elif used < self.peak:
            return True
        self.peak, self.sent, self.told, self.mark = used, sent, now, mark
        return agrees

    def _between(self, after: int, before: int, origin: int) -> bool:
        """Narrow the bounds to an edge between two steady instants that are less than a period apart."""
        period, slack = self.period, self._slack
        number = ((after + before + self.lo + self.hi) // 2 - origin + period // 2) // period
        edge, self.shown = number * period + origin, number
        lo, hi = edge - before - slack, edge - after + slack
        if 2 * self.doubt >= period and self.width + hi - lo >= period:
            if hi - lo < self.width:  # every instant was possible
                self.lo, self.hi = lo, hi
            return True
        if lo + period <= self.hi or hi - period >= self.lo:
            return True  # it may be this edge or a neighbour
        if lo > self.hi or hi < self.lo:
            return False
        self.lo, self.hi = max(lo, self.lo), min(hi, self.hi)
        return True
