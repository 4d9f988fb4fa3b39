"""What every ledger shares: units in flight, units spent, and who of the members may take the rest.

A provider counts a request at the instant it arrives, which nobody here ever sees. So a ledger holds the cost from the
moment of `take` (before it is sent) until `settle` (after it was answered), and each window kind decides how long the
settled cost stays. `room` is kept up to date by every verb, so that the usual decision is one comparison.

Pure: the instant is an argument, integers only, no clock, no I/O, no randomness.
"""

from __future__ import annotations

from typing import ClassVar, Final

from headgate.ledger.limit import Instant, Limit
from headgate.ledger.shares import KEEP_UPPER, Row, Who, fair_lack, upper_blocked

__all__ = ["NEVER", "UNKNOWN", "Ledger"]

NEVER: Final = -2
"""The cost is above the limit."""
UNKNOWN: Final = -1
"""It opens when somebody settles; no instant can be computed. Any number below `NEVER` says the same, and that it cannot be
before the steady instant of the opposite sign."""
FAR: Final = 1 << 62


class Ledger:
    """State of one limit for one owner. Subclasses say how settled units leave again.

    Attributes:
        limit: the rule in force.
        room: units free: usable - used - inflight (- what is set aside). May be negative after a limit shrank.
        used: units settled that still count.
        inflight: units taken and not settled.
        tally: running total that never falls, a mark for feedback: units settled (fixed windows), or units that have left
            again (all other kinds).
        turn: steady instant (ns) from which `advance` must run before `room` is read.
        early: steady instant (ns) from which what is taken may count in the next window too (fixed windows only).
        probed: last steady instant (ns) at or after `early` at which something was taken.
        trial: until this steady instant (ns) a window that seems to have begun may not have: what the one before holds is
            not given out before one call has tried it; 0: no need.
        era: number of the (pseudo-)window in which the members' rows count.
        hot: last era in which somebody was refused.
        floor: room that must remain for a grant without a closer look.
        rows: per (member, class), what it took and wants; see `shares.Row`.
    """

    __slots__ = (
        "early", "era", "floor", "hot", "inflight", "limit", "probed", "room", "rows", "tally", "trial", "turn", "used",
    )  # fmt: skip
    rises: ClassVar[bool] = False
    """Whether settling at the reserved cost leaves more room than before (slots: yes)."""
    melts: ClassVar[bool] = False
    """Whether what is kept back for others melts towards the end of a window (else it is kept while they wait)."""

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.used = self.inflight = self.tally = self.turn = self.probed = self.trial = 0
        self.early = FAR
        self.era = -1
        self.hot = -9
        self.rows: dict[Who, Row] = {}
        self.room = limit.usable
        self.floor = limit.usable * KEEP_UPPER // 100

    # -- what the kinds define -------------------------------------------------------------------------------------

    def advance(self, now: Instant) -> None:
        """Bring the state up to `now`: let go what no longer counts."""
        raise NotImplementedError

    def frees(self, units: int, now: Instant) -> int:
        """Steady instant (ns) at which `units` more than now will be free, or unknown (see `UNKNOWN`)."""
        raise NotImplementedError

    def left(self, now: Instant) -> tuple[int, int]:
        """Share of the window still to come, as a fraction (numerator, denominator); only asked where `melts`."""
        raise NotImplementedError

    def dump_own(self) -> list[int]:
        """The kind's own numbers, for `codec`."""
        return []

    def load_own(self, own: list[int]) -> None:
        """Inverse of `dump_own`; runs after the shared numbers are in place."""

    # -- deciding --------------------------------------------------------------------------------------------------

    def opens(self, cost: int, who: Who, now: Instant, ahead: int = 0) -> int:
        """When `cost` units may be taken by `who`.

        Args:
            cost: units.
            who: (member, class) that asks.
            now: the instant; `advance` has run for it.
            ahead: units that an older call of the same process waits for on this ledger.

        Returns:
            0 if now; else a steady instant in ns, unknown (see `UNKNOWN`) or `NEVER`.
        """
        if cost > self.limit.usable:
            return NEVER
        if not cost:
            return 0
        spare = self.room - cost
        upper = self.limit.usable * KEEP_UPPER // 100 if who[1] else 0
        blocked = upper_blocked(self.rows, who, now.mono) if who[1] else 0
        lack = fair_lack(self, who, now) if self.era - self.hot <= 1 else 0
        if self.melts:
            keep = min(max(upper, blocked) + lack, self.limit.usable - cost)
            to_come, span = self.left(now)
            if spare >= 0 and keep * to_come // span <= spare:
                return 0
            end = self.frees(cost, now)
            if spare < 0 or end < 0:
                return end
            # keep * left melts below spare + 1 when this much of the window is still to come
            return min(end, now.mono + to_come - ((spare + 1) * span - 1) // keep)
        return self.opens_flow(cost, upper, max(lack, ahead), blocked, now)

    def opens_flow(self, cost: int, upper: int, others: int, blocked: int, now: Instant) -> int:
        """`opens` where units come back all the time.

        Args:
            cost: units.
            upper: to be left to upper classes in any case.
            others: to be left to other members of the class and to older calls.
            blocked: what upper classes wait for.
            now: the instant.
        """
        keep = min(max(upper, blocked) + others, self.limit.usable - cost)
        if self.room - cost >= keep:
            return 0
        return self.frees(cost + keep - self.room, now)

    def take(self, cost: int, who: Who, now: Instant) -> None:
        """Put `cost` units in flight for `who`; the decision has been made."""
        self.inflight += cost
        self.room -= cost
        if now[0] >= self.early:
            self.probed = now[0]
        try:
            row = self.rows[who]
        except KeyError:
            row = self.rows[who] = [0, 0, 0, 0, 0, 0, 1]
        row[0] += cost
        if row[3]:
            row[3] = max(0, row[3] - cost)

    def refused(self, who: Who, head: int, backlog: int, until: int, weight: int) -> None:
        """Note that `who` wanted units and had to wait.

        Args:
            who: (member, class).
            head: cost of its next call, units.
            backlog: all that it waits for here, units; 0 takes the note away.
            until: steady instant (ns) at which the note is forgotten, should its author vanish.
            weight: the member's share in fairness.
        """
        row = self.rows.setdefault(who, [0, 0, 0, 0, 0, 0, 1])
        if backlog:
            self.hot = self.era
            self.floor = FAR
            row[2] |= 1
        row[3], row[4], row[5], row[6] = backlog, min(head, backlog), until, weight

    # -- settling --------------------------------------------------------------------------------------------------

    def settle(self, reserved: int, actual: int, at: Instant) -> None:
        """Turn `reserved` units in flight into `actual` units spent, at the latest at `at`; `advance` has run."""
        self.inflight -= reserved
        self.used += actual
        self.room += reserved - actual

    def lapse(self, reserved: int, at: Instant, now: Instant) -> None:
        """Nobody will say what became of `reserved` units in flight; if they ever arrived, it was by `at`."""
        self.settle(reserved, reserved, at)

    def recount(self, inflight: int, mono: int) -> None:
        """Hold what permits say is in flight, `inflight` units; what was held beyond that counts as spent at steady instant
        `mono`, in this window and in the next."""
        more = self.inflight - inflight
        if more < 0:
            self.inflight -= more
            self.room += more
        elif more:
            at = mono if self.early == FAR else max(mono, self.early)
            self.lapse(more, Instant(at, at, at), Instant(at, at, at))

    def refund(self, reserved: int) -> None:
        """Give back `reserved` units in flight that were surely never sent."""
        self.inflight -= reserved
        self.room += reserved

    def observe(self, used: int, sent: Instant, mark: int, reserved: int, actual: int, now: Instant) -> int:
        """Take the provider's used-counter into account; call after `settle` of the same request.

        Args:
            used: the counter, units, as the answer states it.
            sent: instant at which the request was reserved.
            mark: `tally` at that instant.
            reserved, actual: cost of this request as it was held and as it was settled, units.
            now: instant of the answer.

        Returns:
            Units of foreign traffic found: counted by the provider and not by us.
        """
        # Until a moment ago this request was held at `reserved`: so much of the counter it can explain. So can what has
        # left since the counter was read.
        foreign = used - (self.used + self.inflight + max(0, reserved - actual) + self.tally - mark)
        if foreign <= 0:
            return 0
        self.spend(foreign, now)
        return foreign

    def spend(self, units: int, now: Instant) -> None:
        """Count `units` that somebody else spent."""
        self.settle(0, units, now)

    def fill(self, now: Instant) -> None:
        """The provider says that this limit is used up: nothing is left until its window moves on."""
        missing = self.limit.usable - self.used - self.inflight
        if missing > 0:
            self.spend(missing, now)

    def confirm(self, sent: Instant) -> None:
        """A call that was reserved at `sent` was answered and not refused; only asked during a `trial`."""

    def overrun(self, sent: Instant, now: Instant, stated: bool) -> None:
        """The provider refused a call that was reserved at `sent`, because this limit is used up; if it `stated` for how
        long, a block holds it, and nothing more is made of it here."""
        if not stated:
            self.fill(now)

    def doubt(self, now: Instant) -> None:
        """The clock by which windows were told was wrong; `now` is by the right one. Let nothing spent be forgotten early."""

    def adopt(self, limit: Limit, now: Instant) -> None:
        """Follow a limit that changed live (same kind); what is spent stays spent."""
        self.room += limit.usable - self.limit.usable
        if limit.period != self.limit.period:
            self.hot = -9  # eras are counted anew
        self.limit = limit
        self.cool()
        self.turn = 0

    # -- eras ------------------------------------------------------------------------------------------------------

    def cool(self) -> None:
        """Set `floor` by whether somebody was refused lately."""
        self.floor = FAR if self.era - self.hot <= 1 else self.limit.usable * KEEP_UPPER // 100

    def enter(self, era: int, mono: int) -> None:
        """Begin `era`: what was taken in the last one becomes the past; silent members are forgotten."""
        if era == self.era:
            return
        following = era == self.era + 1
        rows: dict[Who, Row] = {}
        for who, (taken, _, flags, blocked, head, until, weight) in self.rows.items():
            if not following:
                taken = flags = 0
            if until <= mono:
                blocked = 0
            if taken or flags & 1 or blocked:
                rows[who] = [0, taken, (flags & 1) << 1, blocked, head, until, weight]
        self.rows = rows
        self.era = era
        self.cool()
