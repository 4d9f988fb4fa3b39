"""Who may take what is left: priority and fairness among members, with no central queue.

Beside each ledger stands a row per member (process) and class: what it took and missed, how much of it at once, what it
waits for. From the rows follows how much a caller must leave free: for the upper classes what they are expected to want,
by what they wanted lately, and at least a fixed share and what they wait for; for the other members of its own class what
they lack of their max-min fair share.

In a window that ends (`Ledger.melts`) what is kept falls with the time still to come: nothing is wasted, because what was
kept melts away by the end. Where units come back all the time (sliding, bucket, slots) a caller leaves the upper classes
what comes back too late for them, and every waiting member that has been served less what it waits for.
"""

from __future__ import annotations

from typing import ClassVar, Final, NamedTuple, Protocol

from ratekeeper.ledger.limit import SECOND, Instant, Limit

__all__ = [
    "AGED", "KEEP_UPPER", "NOBODY", "Row", "Shared", "Upper", "Who", "above", "fair_lack", "note_burst", "note_peak", "reach",
    "reach_evenly", "wanted_next",
]  # fmt: skip

KEEP_UPPER: Final = 5
"""Per cent of a limit kept for classes above the caller's in any case, melting where the window ends."""
_BURST: Final = SECOND // 10
"""What a row asks for within this much (ns), and within a 64th of the period, it asks for at once. A call whose window ends
that soon waits no longer than this: so much earlier, what is kept for upper classes has melted."""
_SLOT_KEPT: Final = 5 * SECOND
"""So long after its peak (ns) slots are kept for a row that had them; in as long again that melts away."""
FOREVER: Final = 1 << 62
_MOST: Final = 1 << 52
"""Squares are summed up to this, so that every store can hold them exactly."""
_SECOND: Final = SECOND
_STEEP: Final = 16
"""At the end of a window, what is kept of the last burst melts away as if so many times more were wanted."""

AGED: Final = 8
"""Added to a class: the call goes as one of that class, and those below leave it what it waits for; but what it takes is no
demand of the class. So are calls that were lifted because they waited for long, first contacts, and what is set aside."""

Who = tuple[int, int]
"""(member number, priority class: 0 is the highest; see `AGED`)."""
Row = list[int]
"""[taken in this era, taken in the last, refused (1: in this era, 2: in the last), waiting units, cost of the next
call that waits, steady ns at which the waiting note expires, weight, units given up in this era, wanted in an earlier era
(taken and given up), units of the present burst, steady ns at which it began, sum of the squares of this era's bursts,
mean burst of the last era, steady ns at which it first asked in this era (0: not yet)]. For slots the last five are: units
in flight, steady ns of the peak, most units in flight lately, 0, 0. A list, because it is packed and unpacked with every
transaction of a shared store."""


class Shared(Protocol):
    """What is shared out here: a limit, and who took and wants how much of it."""

    limit: Limit
    rows: dict[Who, Row]
    melts: ClassVar[bool]


class Upper(NamedTuple):
    """What the classes above a caller's are expected to want.

    Attributes:
        share: the fixed share, units.
        blocked: what they wait for now, units.
        even: what they want in a whole period, units.
        burst: what they want at once, units (the mean, by units); of slots, what they do not have of it.
        falls: slots: steady ns at which `burst` falls, should nobody ask; 0: it is nothing.
    """

    share: int
    blocked: int
    even: int
    burst: int
    falls: int = 0


NOBODY: Final = Upper(0, 0, 0, 0)


def above(ledger: Shared, priority: int, mono: int, later: int = 0) -> Upper:
    """What the classes above `priority` are expected to want, so many eras later, should nobody ask before."""
    limit, level = ledger.limit, priority & 7
    share, blocked, even, burst = limit.usable * KEEP_UPPER // 100, 0, 0, 0
    if not limit.period:
        return _above_slots(ledger, level, share, mono)
    for (_, other), row in ledger.rows.items():
        if other & 7 < level:
            waiting = row[3] if row[5] > mono else 0
            blocked += waiting
            asked = row[0] + row[7]
            if other & AGED or (later and not (asked or row[2] & 1 or waiting)) or later > 1:
                continue
            even += wanted_next(ledger, row) if later else _wanted(ledger, row, asked)
            burst = max(burst, row[11] // asked if asked else 0, 0 if later and asked else row[12])
    return Upper(share, blocked, min(even, limit.usable), min(burst, limit.usable))


def _wanted(ledger: Shared, row: Row, asked: int) -> int:
    """What a row wants in a whole period, of which it asked for `asked` units in this era.

    It is taken to go on at its pace. Of one that asked before, at most fourfold (twofold where nothing melts). A new demand
    is believed from its first call on: its pace as at least a second's, and for a part of the limit.
    """
    limit, melts = ledger.limit, ledger.melts
    period, past = limit.period, row[10] - row[13]
    if row[8]:
        return max(row[8], asked * period // max(past, period // (4 if melts else 2)))
    past = min(max(past, period // (32 if melts else 8), _SECOND), period)
    return max(asked, min(asked * period // past, limit.usable // (2 if melts else 4)))


def wanted_next(ledger: Shared, row: Row) -> int:
    """What a row is expected to want in the next era. Demand comes at random: a quiet era halves what was expected."""
    asked = row[0] + row[7]
    if not row[8] and ledger.limit.period:
        return _wanted(ledger, row, asked)
    return max(asked, (asked + row[8]) // 2)


def note_burst(row: Row, units: int, mono: int, period: int) -> None:
    """A row asks for so much; what it asks for within a moment is one burst."""
    since, burst = mono - row[10], row[9]
    if since >= _BURST or since * 64 >= period:
        burst, row[10] = 0, mono
    squares = row[11] + units * (2 * burst + units)
    row[11] = squares if squares < _MOST else _MOST
    row[9] = burst + units
    if not row[13]:
        row[13] = mono


def _lately(row: Row, mono: int) -> int:
    """Slots: units in flight at the peak, as far as that has not melted."""
    age = mono - row[10]
    if age <= _SLOT_KEPT:
        return row[11]
    return -(-row[11] * (2 * _SLOT_KEPT - age) // _SLOT_KEPT) if age < 2 * _SLOT_KEPT else 0


def note_peak(row: Row, units: int, mono: int) -> None:
    """Slots: so many units were in flight, or wanted."""
    if units >= _lately(row, mono):
        row[11], row[10] = units, mono


def _above_slots(ledger: Shared, level: int, share: int, mono: int) -> Upper:
    blocked = idle = falls = 0
    for (_, other), row in ledger.rows.items():
        if other & 7 < level:
            if row[3] and row[5] > mono:
                blocked += row[3]
            if other & AGED:
                continue
            peak = _lately(row, mono)
            if peak > row[9]:
                idle += peak - row[9]
                end = row[10] + 2 * _SLOT_KEPT - (peak - 1) * _SLOT_KEPT // row[11]
                falls = min(falls, end) if falls else end
    return Upper(share, blocked, 0, idle, falls)


def reach(units: int, upper: Upper, others: int, most: int, span: int) -> int:
    """Longest time to come (ns) for which it is enough to leave `units`, where a window ends.

    Args:
        units: to be left.
        upper: what the classes above want.
        others: what other members of the class want in a span, units.
        most: to be left in a span at most, where no forecast is.
        span: ns.
    """
    slope = min(max(upper.share, upper.blocked) + others, most)
    long = ((units + 1) * span - 1) // slope if slope else FOREVER
    if upper.even:
        even = upper.share + upper.even
        best = max(
            ((units + 1) * span - 1) // (_STEEP * even + others), _reach(units, even, upper.burst, others, span, 1)
        )
        long = min(long, best + min(_BURST, span >> 3))
    return long


def reach_evenly(units: int, upper: Upper, period: int) -> int:
    """The same where what is left comes back after a whole period. What is left here lies idle: it is less."""
    if upper.even:
        return _reach(units, upper.share + upper.even, upper.burst, 0, period, 4)
    return ((units + 1) * period - 1) // upper.share if upper.share else FOREVER


def _reach(units: int, even: int, burst: int, others: int, span: int, part: int) -> int:
    # Of `m` units on average, in bursts of `b`, hardly ever more than m + 2 sqrt(m b) are wanted (half as much beyond m if
    # `part` is 4). The root lies just below the lowest of the lines m / a + a b.
    best = -1
    for a in (1, 2, 4, 8, 16):
        rest = units - a * burst
        if rest < 0:
            break
        best = max(best, ((rest + 1) * span - 1) // (even + even // (a * part) + others))
    return best


def fair_lack(ledger: Shared, who: Who, now: Instant) -> int:
    """Units that must be left to the other members of the caller's class."""
    member, priority = who
    peers = {m: row for (m, k), row in ledger.rows.items() if k == priority}
    if not ledger.melts:
        mine = peers.get(member)
        served = mine[0] // mine[6] if mine else 0
        return sum(
            min(row[3], max(row[4], served * row[6] - row[0]))
            for m, row in peers.items()
            if m != member and row[3] and row[5] > now.mono and row[0] // row[6] < served
        )
    usable = ledger.limit.usable
    # Somebody refused lately is taken to want everything; anybody else what it took.
    wants = {m: usable if row[2] else max(row[0], row[1]) for m, row in peers.items()}
    if wants.keys() <= {member}:
        return 0
    wants[member] = usable
    weights = {m: row[6] for m, row in peers.items()}
    weights.setdefault(member, 1)
    lack = 0
    rest, heavy = usable, sum(weights.values())
    # Max-min: those who want least per weight are served in full, the others share what is left by weight.
    for m in sorted(wants, key=lambda m: wants[m] / weights[m]):
        share = min(wants[m], rest * weights[m] // heavy)
        rest -= share
        heavy -= weights[m]
        if m != member:
            lack += max(0, share - peers[m][0])
    return lack
