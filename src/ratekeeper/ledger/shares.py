"""Priority and fairness among members: who may take the remaining units, with no central queue.

Each ledger keeps a row per member (process) and class: units taken and missed, the size of bursts, units waited for. The rows
determine how much a caller must leave free. It leaves the upper classes their expected demand (by their recent demand), at
least a fixed share and what they wait for. It leaves the other members of its class what they lack of their max-min fair
share.

In a window that ends (`Ledger.melts`) the reserve shrinks with the time still to come and is gone by the end, so no unit is
wasted. Where units come back continuously (sliding, bucket, slots), a caller leaves the upper classes the units that would
come back too late for them. It leaves every waiting member that was served less than itself what that member waits for.
"""

from __future__ import annotations

from typing import ClassVar, Final, NamedTuple, Protocol

from ratekeeper.ledger.limit import SECOND, Instant, Limit

__all__ = [
    "AGED", "KEEP_UPPER", "NOBODY", "Row", "Shared", "Upper", "Who", "above", "fair_lack", "merge", "note_burst", "note_peak",
    "reach", "reach_evenly", "wanted_next",
]  # fmt: skip

KEEP_UPPER: Final = 5
"""Per cent of a limit always kept for classes above the caller's; it shrinks to nothing where the window ends."""
_BURST: Final = SECOND // 10
"""Requests of a row within this much (ns), and within a 64th of the period, are one burst. A call whose window ends that soon
waits no longer than this, because the reserve for upper classes ends that much earlier."""
_SLOT_KEPT: Final = 5 * SECOND
"""For this long after its peak (ns) a row's slots are kept for it; over the same time again that reserve shrinks to
nothing."""
FOREVER: Final = 1 << 62
_MOST: Final = 1 << 52
"""The largest sum of squares, so that every store can hold it exactly."""
_SECOND: Final = SECOND
_STEEP: Final = 16
"""At the end of a window, the reserve for the last burst shrinks as if demand were this many times higher."""

AGED: Final = 8
"""Added to a class: the call goes as one of that class, and lower classes leave it what it waits for; but its units do not
count as demand of the class. It marks calls lifted because they waited long, first contacts, and units set aside."""

Who = tuple[int, int]
"""(member number, priority class: 0 is the highest; see `AGED`)."""
Row = list[int]
"""[taken in this era, taken in the last, refused (1: in this era, 2: in the last), waiting units, cost of the next waiting
call, steady ns at which the waiting note expires, weight, units given up in this era, demand of an earlier era (taken and
given up), units of the present burst, steady ns at which it began, sum of the squares of this era's bursts, mean burst of
the last era, steady ns of the first request in this era (0: none yet)]. For slots the last five are: units in flight,
steady ns of the peak, most units in flight lately, 0, 0. A list, because every transaction of a shared store packs and
unpacks it."""


class Shared(Protocol):
    """What this module needs of a ledger: its limit, and each row's use and demand."""

    limit: Limit
    rows: dict[Who, Row]
    melts: ClassVar[bool]


class Upper(NamedTuple):
    """The expected demand of the classes above a caller's.

    Attributes:
        share: the fixed share, units.
        blocked: units they wait for now.
        even: units they want in a whole period.
        burst: units they want at once (the mean, by units); for slots, those of them that they do not hold.
        falls: slots: steady ns at which `burst` falls if no call asks before; 0: `burst` is 0.
    """

    share: int
    blocked: int
    even: int
    burst: int
    falls: int = 0


NOBODY: Final = Upper(0, 0, 0, 0)


def above(ledger: Shared, priority: int, mono: int, later: int = 0) -> Upper:
    """Return the expected demand of the classes above `priority`, `later` eras ahead, if no call asks before."""
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
    """Return a row's demand for a whole period, given that it asked for `asked` units in this era.

    The row is assumed to continue at its pace, at most fourfold if it had demand before (twofold where nothing melts). A new
    demand counts from its first call on: its pace is taken over at least a second, and only up to a part of the limit.
    """
    limit, melts = ledger.limit, ledger.melts
    period, past = limit.period, row[10] - row[13]
    if row[8]:
        return max(row[8], asked * period // max(past, period // (4 if melts else 2)))
    past = min(max(past, period // (32 if melts else 8), _SECOND), period)
    return max(asked, min(asked * period // past, limit.usable // (2 if melts else 4)))


def wanted_next(ledger: Shared, row: Row) -> int:
    """Return a row's expected demand in the next era. Demand is random, so a quiet era only halves the expectation."""
    asked = row[0] + row[7]
    if not row[8] and ledger.limit.period:
        return _wanted(ledger, row, asked)
    return max(asked, (asked + row[8]) // 2)


def note_burst(row: Row, units: int, mono: int, period: int) -> None:
    """Note a request for `units`; requests within a moment form one burst."""
    since, burst = mono - row[10], row[9]
    if since >= _BURST or since * 64 >= period:
        burst, row[10] = 0, mono
    squares = row[11] + units * (2 * burst + units)
    row[11] = squares if squares < _MOST else _MOST
    row[9] = burst + units
    if not row[13]:
        row[13] = mono


def merge(row: Row, other: Row) -> None:
    """Add the use and the demand of `other` to `row`, where nothing rises. Neither has calls that wait."""
    for place in (0, 1, 7, 8, 9, 11):
        row[place] = min(row[place] + other[place], _MOST)
    row[2] |= other[2]
    row[10], row[12] = max(row[10], other[10]), max(row[12], other[12])
    row[13] = min(row[13], other[13]) if row[13] and other[13] else row[13] or other[13]


def _lately(row: Row, mono: int) -> int:
    """Slots: return the units in flight at the peak, less what has shrunk since."""
    age = mono - row[10]
    if age <= _SLOT_KEPT:
        return row[11]
    return -(-row[11] * (2 * _SLOT_KEPT - age) // _SLOT_KEPT) if age < 2 * _SLOT_KEPT else 0


def note_peak(row: Row, units: int, mono: int) -> None:
    """Slots: note that `units` were in flight, or wanted."""
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
    """Return the longest remaining time (ns) for which it is enough to leave `units`, where a window ends.

    Args:
        units: to be left.
        upper: the demand of the classes above.
        others: units that other members of the class want in a span.
        most: units to be left in a span at most, where there is no forecast.
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
    """The same where units come back after a whole period. Units left here lie idle, so the reserve is smaller."""
    if upper.even:
        return _reach(units, upper.share + upper.even, upper.burst, 0, period, 4)
    return ((units + 1) * period - 1) // upper.share if upper.share else FOREVER


def _reach(units: int, even: int, burst: int, others: int, span: int, part: int) -> int:
    # Demand of `m` units on average, in bursts of `b`, hardly ever exceeds m + 2 sqrt(m b) (half as much beyond m if `part`
    # is 4). The root lies just below the lowest of the lines m / a + a b.
    best = -1
    for a in (1, 2, 4, 8, 16):
        rest = units - a * burst
        if rest < 0:
            break
        best = max(best, ((rest + 1) * span - 1) // (even + even // (a * part) + others))
    return best


def fair_lack(ledger: Shared, who: Who, now: Instant) -> int:
    """Return the units that the caller must leave to the other members of its class."""
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
    # A member refused lately counts as wanting everything; any other as wanting what it took.
    wants = {m: usable if row[2] else max(row[0], row[1]) for m, row in peers.items()}
    if wants.keys() <= {member}:
        return 0
    wants[member] = usable
    weights = {m: row[6] for m, row in peers.items()}
    weights.setdefault(member, 1)
    lack = 0
    rest, heavy = usable, sum(weights.values())
    # Max-min: members that want least per weight get all they want, the others share the rest by weight.
    for m in sorted(wants, key=lambda m: wants[m] / weights[m]):
        share = min(wants[m], rest * weights[m] // heavy)
        rest -= share
        heavy -= weights[m]
        if m != member:
            lack += max(0, share - peers[m][0])
    return lack
