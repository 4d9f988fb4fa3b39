"""The ledger whose window begins and ends by the provider's clock."""

from __future__ import annotations

from typing import ClassVar, Final

from ratekeeper.ledger.base import Ledger
from ratekeeper.ledger.edge import Edges
from ratekeeper.ledger.limit import Instant, Limit
from ratekeeper.ledger.shares import Who

__all__ = ["Fixed"]

_LATER: Final = 4096
"""Carried units are forgotten one period after they had arrived, plus this part of a period for clocks that run unevenly."""


class Fixed(Ledger):
    """Window aligned to the server's clock. It rolls only when it is certainly over, and carries what may already lie in the
    next.

    `edges` bounds the edge. From `early` on the next window may have begun, at `roll` it certainly has.

    Attributes:
        edges: what is known of the counting clock.
        roll: steady instant (ns) at which this window is certainly over.
        carry: units settled so late that they may count in a later window too.
        late: latest instant of the counting clock (ns) at which one of them can have arrived.
        stamp: steady instant (ns) by which all of them had arrived: a period later no window can hold them any more, whatever
            a clock says.
        kept: units of `used` that were carried into this window; at steady instant `kept_until` no window holds them.
        again: units of `kept` that are part of `carry` too.
        held: during a trial, the most units that the window before holds if it is not over after all.
        least: the fewest units that it then holds.
        loose: units of `used` that the window before may hold instead.
        tried: steady instant (ns) at which the trial's call in flight was taken; 0: none is.
        foreign: units of other programs found in this window (they are part of `used`).
        expected: units of other programs expected in a whole window; those not seen yet are set aside.
        seen: latest steady instant (ns) in this window at which a used-counter showed other programs' use.
        finds: used-counters of this window that showed more of it than the counters before.
    """

    __slots__ = (
        "again", "carry", "edges", "expected", "finds", "foreign", "held", "kept", "kept_until", "late", "least", "loose",
        "roll", "seen", "stamp", "tried",
    )  # fmt: skip
    aligned: ClassVar[bool] = True
    melts: ClassVar[bool] = True

    def __init__(self, limit: Limit) -> None:
        super().__init__(limit)
        self.edges = Edges(limit.period)
        self.carry = self.late = self.stamp = self.foreign = self.expected = self.seen = 0
        self.kept = self.kept_until = self.again = self.held = self.tried = self.roll = 0
        self.least = self.loose = self.finds = 0

    # -- windows ---------------------------------------------------------------------------------------------------

    def advance(self, now: Instant) -> None:
        edges, period, origin = self.edges, self.limit.period, self.limit.origin
        if self.era == -1:
            edges.begin(now)
        elif not edges.dated(now):
            self._hold(now, now.mono + edges.hi)
        era = max((now.mono + edges.lo - origin) // period, edges.shown)
        if era > self.era:
            self._forecast(period)
            spent = self.used
            last = (self.late - origin) // period
            # A correction may move clocks by more than a window, so `late` decides, not the number of windows passed.
            self.kept_until = self.stamp + period + period // _LATER
            self.used = self.kept = self.carry if last >= era and now.mono < self.kept_until else 0
            self.carry = self.again = self.kept if last > era else 0
            self._end_trial()
            if edges.blind:
                # A ledger that begins within a window knows nothing earlier, but earlier calls may count there.
                begin = now.mono if self.era >= 0 else era * period + origin - edges.lo
                until = begin + min(2 * edges.whole, period // 2)
                if now.mono < until:
                    self.trial, self.held = until, spent - self.kept
                    self.least = max(0, self.held - self.loose)
            self.loose = self.kept + self.inflight
            edges.drift(era - self.era if self.era >= 0 else 0, now)
            self.enter(era, now.mono)
        elif self.kept and now.mono >= self.kept_until:
            self.used, self.carry = max(0, self.used - self.kept), max(0, self.carry - self.again)
            self.kept = self.again = 0
        if self.trial and now.mono >= self.trial:
            self._end_trial()
        self._place()

    def _place(self) -> None:
        end = (self.era + 1) * self.limit.period + self.limit.origin
        self.early, self.roll = end - self.edges.hi, end - self.edges.lo
        frees = self._frees()
        self.turn = min(frees, self.trial) if self.trial else frees
        self.room = self.limit.usable - self.used - self.inflight - max(0, self.expected - self.foreign)
        # The answer of the trial's call must always leave more room, so that it wakes the next.
        self.room -= self.held + bool(self.tried)

    def _end_trial(self) -> None:
        self.trial = self.held = self.least = self.tried = 0

    def _hold(self, now: Instant, late: int) -> None:
        """Let all spent units count in any window up to instant `late` of the counting clock."""
        self.used += self.held
        self.carry, self.late, self.stamp = self.used, max(self.late, late), now.mono
        self.kept = self.again = 0
        self._end_trial()

    def _return(self, now: Instant) -> None:
        """Correct a ledger written by a process whose clock is ahead of all that ours could be: keep what is spent, leave the
        future."""
        if now.mono < self.early - self.limit.period:
            end = self.roll + self.edges.lo
            self._hold(now, end - 1)
            self.era = (now.mono + self.edges.lo - self.limit.origin) // self.limit.period
            self._place()

    def _open(self, now: Instant) -> None:
        """Widen the edge to the whole first doubt: all spent units count on both sides of it."""
        self.edges.open(now)
        self._hold(now, now.mono + self.edges.hi)
        self._place()

    def _take_back(self, now: Instant, spent: int) -> None:
        """Undo a roll: the window before had not ended, and `spent` units counted in it.

        The units taken for another program's were our own, so nothing is set aside for it any more.
        """
        self.era -= 1
        self.foreign = self.expected = self.seen = self.finds = 0
        self._end_trial()
        self._open(now)
        self.used = max(self.used, spent)
        self._place()

    def _possible(self, now: Instant, doubt: int) -> int:
        """Return the steady instant (ns) up to which this window may not have begun, if its edge may lie `doubt` ns from the
        dates."""
        return self.era * self.limit.period + self.limit.origin - (now.lo - now.mono - doubt)

    def _forecast(self, period: int) -> None:
        """Forecast other programs' use in the next window from their use in the window that ends."""
        if self.foreign or self.expected:
            # Of the possible edges only a quarter lies later than this one. Safety does not depend on it.
            begin = self.roll - (self.roll - self.early) // 4 - period
            # Evidence may end early in the window: extrapolate it at the same rate, at most fourfold.
            witnessed = max(self.seen - begin, period // 4) if self.seen else period
            sample = self.foreign * period // min(witnessed, period)
            # The other program's next call may have been due: allow for one more of the pieces in which its use was found.
            sample = min(sample + sample // min(10, max(1, self.finds)), self.foreign * 44 // 10)
            # The expected use of a program that fell silent drops only slowly, by a quarter a window.
            self.expected = min(max(sample, self.expected * 3 // 4), self.limit.usable * 9 // 10)
            if self.expected * 200 < self.limit.usable:
                self.expected = 0
        self.foreign = self.seen = self.finds = 0

    # -- deciding --------------------------------------------------------------------------------------------------

    def available_at(self, cost: int, who: Who, now: Instant, ahead: int = 0) -> int:
        self.advance(now)
        self._return(now)
        available_at = super().available_at(cost, who, now)
        if available_at > 0 and self.trial:
            # The window before may not be over and may have no room left. So one call at a time goes until the answers show
            # that it is over.
            if self.tried:
                return -self.trial
            self.room += self.held
            available_at = super().available_at(cost, who, now)
            self.room -= self.held
            return available_at
        return available_at or (self._probe(cost, now) if cost else 0)

    def _probe(self, cost: int, now: Instant) -> int:
        """Return when a call may take some of the last few units: one in each quarter of the span where the edge may lie.

        While the edge is uncertain these units are kept for that span, because a counter shows an edge only to calls near it.
        """
        edges, usable = self.edges, self.limit.usable
        most = usable // 4 if 2 * edges.width >= self.limit.period else usable // 50
        keep = min(3, most // cost) * cost
        if self.room - cost >= keep or not edges.vague:
            return 0
        if now.mono < self.early:
            return self.early
        quarter = max(1, edges.width // 4)
        begin = self.early + (now.mono - self.early) // quarter * quarter
        return 0 if self.probed < begin else min(begin + quarter, self.roll)

    def frees(self, units: int, now: Instant) -> int:
        return max(now.mono + 1, self._frees())

    def _frees(self) -> int:
        """Return the first steady instant at which charged units are free again."""
        frees = min(self.roll, self.kept_until) if self.kept else self.roll
        return min(frees, self.trial) if self.held else frees

    def over(self) -> int:
        period = self.limit.period
        end = max(self.roll, self.stamp) + period + period // _LATER
        # A forecast of other programs, and what a refusal taught of the clock, stay for as long as bounds of an edge do: then
        # they have drifted as far apart as those of a new ledger. A counter teaches an edge anew with its first answer.
        learned = self.foreign or self.expected or not (self.edges.blind or self.edges.told)
        return end + self.edges.lasts if learned else end

    def left(self, now: Instant, pressing: bool) -> tuple[int, int]:
        # Unwanted reserved units are released before the next window can have begun: later they would be taken from that one.
        return max((self.roll if pressing else self.early) - now.mono, 0), self.limit.period

    def try_one(self, now: Instant) -> None:
        self.tried = now.mono
        self.room -= 1

    # -- settling --------------------------------------------------------------------------------------------------

    def settle(self, reserved: int, actual: int, at: Instant) -> None:
        mono = at[0]
        if late := mono >= self.early:  # computed first: an exception of a signal handler strikes only at a call
            last, stamp = max(self.late, mono + self.edges.hi), max(self.stamp, mono)
        self.inflight -= reserved
        self.used += actual
        self.tally += actual
        if mono < self.trial:
            self.loose += actual
        if reserved != actual:
            self.room += reserved - actual
        if late:
            if self.late < self.roll + self.edges.lo:
                self.carry = 0  # what was held before cannot be in the next window
            self.carry += actual
            self.late, self.stamp = last, stamp

    def lapse(self, reserved: int, at: Instant, now: Instant) -> None:
        period = self.limit.period
        if at.mono < self.early - period and now.mono >= self.roll - period:  # surely counted in a window that is over
            self.refund(reserved)
        else:
            self.settle(reserved, reserved, at)

    def observe(self, used: int, sent: Instant, mark: int, reserved: int, actual: int, now: Instant) -> int:
        edges, period = self.edges, self.limit.period
        if edges.blind:
            self._open(now)
        begin = self.roll - period
        before = edges.peak if begin - period <= edges.sent < begin and edges.shown < self.era else 0
        peak, since = edges.peak, self.tally - edges.mark
        if not edges.counter(used, sent.mono, mark, now.mono, self.limit.origin):
            self._open(now)
        if edges.peak < peak:
            # An edge has passed since the provider stated that counter: units settled before its call was sent count no more.
            self.used, self.carry, self.kept, self.again = min(self.used, since), min(self.carry, since), 0, 0
        self._place()
        if now.mono >= self.turn or edges.shown > self.era:
            self.advance(now)
        if sent.mono < self.roll - period or now.mono >= self.early:
            return 0  # the counter may describe another window than ours
        bound = used + self.tally - mark - actual
        foreign = max(0, used - (self.used + self.inflight + max(0, reserved - actual)))
        if foreign and before and used >= before:
            # The counter goes on. The difference is foreign only if no possible edge explains it. After a window that was
            # well used it is not foreign even then: the clocks are further apart than the first doubt.
            doubt = min(2 * edges.whole, period // 2) if 2 * before >= self.limit.usable else edges.whole
            if sent.mono < self._possible(now, doubt):
                self._take_back(now, bound)
                return 0
        self.kept = self.again = 0
        self.seen = max(self.seen, now.mono)
        if foreign:
            self.used += foreign
            self.foreign += foreign
            self.finds += 1
            self.tally += foreign
        elif bound < self.used:
            self.used = bound
            self.foreign = min(self.foreign, bound)
        self._place()
        return foreign

    def confirm(self, sent: Instant) -> None:
        if self.tried and sent.mono >= self.tried:
            # If the window before still counts, it also holds all units answered since, and it refused none.
            self.held = min(self.held, max(0, self.limit.capacity - (self.used - self.kept)))
            self.tried = 0
            if self.held < self.least or not self.held:
                self.loose = min(self.loose, self.limit.capacity - self.least)
                self._end_trial()
            self._place()

    def overrun(self, sent: Instant, now: Instant, stated: bool) -> None:
        edges, begin = self.edges, self.roll - self.limit.period
        if begin <= sent.mono < self._possible(now, edges.whole) and edges.shown < self.era:
            self._take_back(now, self.limit.usable)
            return
        if edges.blind:
            self._open(now)
        super().overrun(sent, now, stated)

    def doubt(self, now: Instant) -> None:
        self.edges.begin(now)
        self._hold(now, now.mono + self.edges.hi)
        self._place()
        self._return(now)

    def adopt(self, limit: Limit, now: Instant) -> None:
        if (limit.period, limit.origin) != (self.limit.period, self.limit.origin):
            blind = self.edges.blind
            self.edges = Edges(limit.period)
            if not blind:
                self.edges.doubt = self.edges.whole
            self.edges.begin(now)
            self._hold(now, now.mono + self.edges.hi)
            self.era = (now.mono + self.edges.lo - limit.origin) // limit.period
            self.expected = self.expected * limit.period // self.limit.period
            self.hot = -9
        self.limit = limit
        self.cool()
        self._place()

    def dump_own(self) -> list[int]:
        return [
            self.carry, self.late, self.stamp, self.foreign, self.expected, self.seen, self.kept, self.again, self.kept_until,
            self.held, self.trial, self.tried, self.probed, *self.edges.dump(), self.least, self.loose, self.finds,
        ]  # fmt: skip

    def load_own(self, own: list[int]) -> None:
        (
            self.carry, self.late, self.stamp, self.foreign, self.expected, self.seen, self.kept, self.again, self.kept_until,
            self.held, self.trial, self.tried, self.probed, *edges, self.least, self.loose, self.finds,
        ) = own  # fmt: skip
        self.edges.load(edges)
        self._place()
