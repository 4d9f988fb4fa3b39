"""The base of every ledger: it counts units in flight and units spent, and decides which members may take the rest.

A provider counts a request at the instant it arrives, which this side never sees. So a ledger holds the cost from `take`
(before the request is sent) until `settle` (after its answer). Each window kind decides how long the settled cost stays.
Every verb keeps `room` up to date, so the usual decision is one comparison.

Pure: the instant is an argument, integers only, no clock, no I/O, no randomness.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final

from ratekeeper.ledger.limit import Instant, Limit
from ratekeeper.ledger.shares import (
    AGED,
    KEEP_UPPER,
    NOBODY,
    Row,
    Upper,
    Who,
    above,
    fair_lack,
    merge,
    note_burst,
    reach,
    wanted_next,
)

__all__ = ["NEVER", "UNKNOWN", "Ledger"]

NEVER: Final = -2
"""The cost is above the limit."""
UNKNOWN: Final = -1
"""Units come free when a permit in flight settles; no instant can be computed. A number below `NEVER` means the same, and
that this cannot happen before the steady instant of the opposite sign."""
FAR: Final = 1 << 62
CALM: Final = 99
"""Below every class."""


class Ledger:
    """State of one limit for one owner. Subclasses define how settled units leave again.

    Attributes:
        limit: the rule in force.
        room: units free: usable - used - inflight (- what is set aside). May be negative after a limit shrank.
        used: units settled that still count.
        inflight: units taken and not settled.
        tally: running total that never falls, a mark for feedback: units settled (fixed windows), or units that have left
            again (all other kinds).
        turn: steady instant (ns) from which `advance` must run before `room` is read.
        early: steady instant (ns) from which units taken may count in the next window too (fixed windows only).
        probed: last steady instant (ns) at or after `early` at which units were taken.
        trial: steady instant (ns) until which a window may not have begun although it seems so; until one call has tried it,
            the ledger keeps back what the window before holds. 0: no trial.
        era: number of the (pseudo-)window in which the members' rows count.
        hot: last era in which a call was refused.
        floor: room that must remain for a grant on the fast path, to a caller whose class is not below `calm`.
        calm: the highest class with recent demand; lower classes must leave it its expected demand.
        rows: per (member, class), its use and demand; see `shares.Row`.
    """

    __slots__ = (
        "calm", "early", "era", "floor", "hot", "inflight", "limit", "probed", "room", "rows", "tally", "trial", "turn",
        "used",
    )  # fmt: skip
    aligned: ClassVar[bool] = False
    """Whether eras are the windows themselves (fixed windows), whose rows end with them."""
    rises: ClassVar[bool] = False
    """Whether settling at the reserved cost increases the room (slots: yes)."""
    melts: ClassVar[bool] = False
    """Whether units reserved for others shrink towards the end of a window (else they are kept while the others wait)."""

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.used = self.inflight = self.tally = self.turn = self.probed = self.trial = 0
        self.early = FAR
        self.era = -1
        self.hot = -9
        self.calm = CALM
        self.rows: dict[Who, Row] = {}
        self.room = limit.usable
        self.floor = limit.usable * KEEP_UPPER // 100

    # -- methods of each kind --------------------------------------------------------------------------------------

    def advance(self, now: Instant) -> None:
        """Bring the state up to `now`: drop units that no longer count."""
        raise NotImplementedError

    def frees(self, units: int, now: Instant) -> int:
        """Return the steady instant (ns) at which `units` more than now will be free, or unknown (see `UNKNOWN`)."""
        raise NotImplementedError

    def left(self, now: Instant, pressing: bool) -> tuple[int, int]:
        """Return the part of the window still to come, as a fraction (numerator, denominator); called only where `melts`.

        Args:
            now: the instant.
            pressing: whether upper classes have demand; then the window counts to its latest possible end.
        """
        raise NotImplementedError

    def over(self) -> int:
        """Return the steady instant (ns) from which nothing that the ledger holds counts, but for units in flight and waiting
        notes. The provider's clock does not matter: a whole period has passed since the last unit was spent."""
        raise NotImplementedError

    def dump_own(self) -> list[int]:
        """Return the kind's own numbers, for `codec`."""
        return []

    def load_own(self, own: list[int]) -> None:
        """Inverse of `dump_own`; runs after the shared numbers are in place."""

    def rests_at(self) -> int:
        """Return the steady instant (ns) from which the ledger is at rest: if nothing is taken before, a new one in its place
        decides the same. `FAR` while units are in flight."""
        if self.inflight:
            return FAR
        return max([self.over(), *(row[5] for row in self.rows.values() if row[3])])

    # -- deciding --------------------------------------------------------------------------------------------------

    def available_at(self, cost: int, who: Who, now: Instant, ahead: int = 0) -> int:
        """Return when `who` may take `cost` units.

        Args:
            cost: units.
            who: (member, class) of the caller.
            now: the instant; `advance` has run for it.
            ahead: units for which an older call of the same process waits on this ledger.

        Returns:
            0 if now; else a steady instant in ns, unknown (see `UNKNOWN`) or `NEVER`.
        """
        if cost > self.limit.usable:
            return NEVER
        if not cost:
            return 0
        lack = fair_lack(self, who, now) if self.era - self.hot <= 1 else 0
        if not who[1] & 7:
            return self._opens(cost, NOBODY, lack, ahead, now)
        upper = above(self, who[1], now.mono)
        found = self._opens(cost, upper, lack, ahead, now)
        for later in (1, 2):
            edge = (self.era + later) * self.limit.period
            if not upper.even or found <= edge or self.aligned:
                break
            # In a window without eras, less demand is expected from the next era on, and then none.
            upper = above(self, who[1], now.mono, later)
            found = max(edge, self._opens(cost, upper, lack, ahead, now))
        return found

    def _opens(self, cost: int, upper: Upper, lack: int, ahead: int, now: Instant) -> int:
        """`available_at`, given what the caller must leave to upper classes and to other members of its class."""
        if not self.melts:
            return self.opens_flow(cost, upper, max(lack, ahead), now)
        spare, most = self.room - cost, self.limit.usable - cost
        if spare == most:
            return 0  # nothing else is taken: that must be enough
        if spare < 0:
            return self.frees(cost, now)
        to_come, span = self.left(now, bool(upper.even or upper.blocked))
        long = reach(spare, upper, lack, most, span)
        if to_come <= long:
            return 0
        end = self.frees(cost, now)
        return end if end < 0 else min(end, now.mono + to_come - long)

    def opens_flow(self, cost: int, upper: Upper, others: int, now: Instant) -> int:
        """`available_at` where units come back continuously.

        Args:
            cost: units.
            upper: the demand of upper classes.
            others: units to leave to other members of the class and to older calls.
            now: the instant.
        """
        raise NotImplementedError

    def take(self, cost: int, who: Who, now: Instant) -> None:
        """Put `cost` units in flight for `who`, after the decision."""
        mono = now[0]
        self.inflight += cost
        self.room -= cost
        if self.trial and cost and self.room < 0:
            self.try_one(now)
        if mono >= self.early:
            self.probed = mono
        try:
            row = self.rows[who]
        except KeyError:
            row = self._row(who)
        row[0] += cost
        if row[3]:
            row[3] = max(0, row[3] - cost)
        if not self.rises:
            note_burst(row, cost, mono, self.limit.period)

    def try_one(self, now: Instant) -> None:
        """Note that the units taken exceed what is certainly there; only during a `trial`."""

    def _row(self, who: Who) -> Row:
        """Return the row of `who`; create it if missing."""
        row = self.rows.get(who)
        if row is None:
            row = self.rows[who] = [0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]
            if who[1] < min(self.calm, AGED):
                self.calm = who[1]
        return row

    def refused(self, who: Who, head: int, backlog: int, until: int, weight: int) -> None:
        """Note that `who` wanted units and had to wait.

        Args:
            who: (member, class).
            head: cost of its next call, units.
            backlog: all units for which it waits here; 0 removes the note.
            until: steady instant (ns) at which the note expires, in case its author vanishes.
            weight: the member's share in fairness.
        """
        row = self._row(who)
        if backlog:
            self.hot = self.era
            self.floor = FAR
            row[2] |= 1
        row[3], row[4], row[5], row[6] = backlog, min(head, backlog), until, weight

    def missed(self, who: Who, units: int, waiting: int, mono: int) -> None:
        """Note that calls of `who` gave up.

        Args:
            who: (member, class).
            units: their cost.
            waiting: units for which its other calls still wait.
            mono: steady ns.
        """
        row = self._row(who)
        row[3] = min(row[3], waiting)
        if units:
            row[7] += units
            if not self.rises:
                note_burst(row, units, mono, self.limit.period)

    # -- settling --------------------------------------------------------------------------------------------------

    def settle(self, reserved: int, actual: int, at: Instant) -> None:
        """Turn `reserved` units in flight into `actual` units spent, at `at` at the latest; `advance` has run."""
        self.inflight -= reserved
        self.used += actual
        self.room += reserved - actual

    def lapse(self, reserved: int, at: Instant, now: Instant) -> None:
        """Count `reserved` units in flight as spent because no outcome will be reported; if they arrived, it was by `at`."""
        self.settle(reserved, reserved, at)

    def recount(self, inflight: int, mono: int, *, spent: bool = True) -> None:
        """Set the units in flight to `inflight`, the sum over the permits. A surplus counts as spent at steady instant
        `mono`, in this window and in the next; not `spent`: it was certainly never sent."""
        more = self.inflight - inflight
        if more < 0:
            self.inflight -= more
            self.room += more
        elif more and not spent:
            self.refund(more)
        elif more:
            at = mono if self.early == FAR else max(mono, self.early)
            self.lapse(more, Instant(at, at, at), Instant(at, at, at))

    def returned(self, who: Who, units: int, mono: int, *, spent: bool) -> None:
        """Note that `units` of `who` are no longer in flight. For `spent` units the call is needed only if the ledger
        `rises`."""
        row = self.rows.get(who)
        if row is not None and row[0] and not spent:
            left = max(0, row[0] - units)
            if not self.rises:
                row[11] = row[11] * left // row[0]
            row[0] = left

    def refund(self, reserved: int) -> None:
        """Give back `reserved` units in flight that were certainly never sent."""
        self.inflight -= reserved
        self.room += reserved

    def observe(self, used: int, sent: Instant, mark: int, reserved: int, actual: int, now: Instant) -> int:
        """Apply the provider's used-counter; call after `settle` of the same request.

        Args:
            used: the counter, units, as the answer states it.
            sent: instant at which the request was reserved.
            mark: `tally` at that instant.
            reserved, actual: cost of this request as reserved and as settled, units.
            now: instant of the answer.

        Returns:
            Units of foreign traffic found: the provider counted them and this ledger did not.
        """
        # Until just now this request was held at `reserved`, so it can explain that much of the counter. So can units that
        # have left since the counter was read.
        foreign = used - (self.used + self.inflight + max(0, reserved - actual) + self.tally - mark)
        if foreign <= 0:
            return 0
        self.spend(foreign, now)
        return foreign

    def spend(self, units: int, now: Instant) -> None:
        """Count `units` that another program spent."""
        self.settle(0, units, now)

    def fill(self, now: Instant) -> None:
        """The provider reports this limit as used up: leave no room until its window moves on."""
        missing = self.limit.usable - self.used - self.inflight
        if missing > 0:
            self.spend(missing, now)

    def confirm(self, sent: Instant) -> None:
        """A call that was reserved at `sent` was answered and not refused; called only during a `trial`."""

    def overrun(self, sent: Instant, now: Instant, stated: bool) -> None:
        """The provider refused a call that was reserved at `sent`, because this limit is used up. If it `stated` for how
        long, a block holds the limit, and the ledger does nothing."""
        if not stated:
            self.fill(now)

    def doubt(self, now: Instant) -> None:
        """The clock that dated windows was wrong; `now` uses the right one. Forget no spent units early."""

    def adopt(self, limit: Limit, now: Instant) -> None:
        """Follow a limit that changed live (same kind); spent units stay spent."""
        self.room += limit.usable - self.limit.usable
        if limit.period != self.limit.period:
            self.hot = -9  # eras are counted anew
        self.limit = limit
        self.cool()
        self.turn = 0

    # -- eras ------------------------------------------------------------------------------------------------------

    def _past(self, row: Row, asked: int) -> list[int]:
        """Return a row's last five numbers for the next era; the row asked for `asked` units in this one."""
        return [row[9], row[10], 0, row[11] // asked if asked else row[12], 0]

    def cool(self) -> None:
        """Set `floor` by recent refusals, and `calm` by recent demand."""
        self.calm = min([priority for _, priority in self.rows if priority < AGED], default=CALM)
        self.floor = FAR if self.era - self.hot <= 1 else self.limit.usable * KEEP_UPPER // 100

    def inherit(self, heirs: Mapping[int, int], mono: int) -> None:
        """Merge the rows of members that ended, whose number would grow without end in a long window.

        Args:
            heirs: member -> the member whose row gets its row.
            mono: steady ns.
        """
        for (member, priority), row in list(self.rows.items()):
            heir = heirs.get(member, member)
            if heir == member or self.rises or (row[3] and row[5] > mono):
                continue
            del self.rows[member, priority]
            if (heir, priority) in self.rows:
                merge(self.rows[heir, priority], row)
            else:
                self.rows[heir, priority] = row

    def enter(self, era: int, mono: int) -> None:
        """Begin `era`: units taken in the last one become the past; silent members are forgotten."""
        if era == self.era:
            return
        following = era == self.era + 1
        rows: dict[Who, Row] = {}
        for who, row in self.rows.items():
            taken, _, flags, blocked, head, until, weight, given, _ = row[:9]
            if until <= mono:
                blocked = 0
            if not following:
                taken = flags = given = 0
            asked = taken + given
            if asked or flags & 1 or blocked:
                wanted = wanted_next(self, row) if following else 0
                rows[who] = [
                    0,
                    taken,
                    (flags & 1) << 1,
                    blocked,
                    head,
                    until,
                    weight,
                    0,
                    wanted,
                    *self._past(row, asked),
                ]
        self.rows = rows
        self.era = era
        self.cool()
