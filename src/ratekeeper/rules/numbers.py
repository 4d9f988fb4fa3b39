"""Finds the number that holds for a limit: the file's, the tier's, the user's own, or the one the provider states."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from ratekeeper.errors import RuleError
from ratekeeper.ledger.limit import Limit, Window
from ratekeeper.rules.reading import dig, listed, whole
from ratekeeper.rules.times import DAY, duration, interval_name, interval_period

if TYPE_CHECKING:
    from ratekeeper.rules.schema import File, Learn, LimitRule

__all__ = [
    "CAP",
    "UNADJUSTED",
    "Adjustments",
    "Cap",
    "Plausible",
    "believable",
    "capped",
    "chosen",
    "in_force",
    "learn_rows",
    "limit_of",
    "match_rows",
    "per",
    "smoothed",
]

CAP = "~cap"
"""Ends the name of a limit that caps one program's part of another."""

_SLICES = 10
"""Parts of a window over which smooth pacing spreads its budget: a burst is a tenth of it."""
_MOST = 10**12
"""A capacity beyond this is a mistake, not a limit."""
_MOST_DRAINED = 4 * 10**9
"""The same for a bucket, whose ledger counts billionths of a unit in 64 bits."""
_LONGEST = 366 * DAY
_FACTOR: Final = 500
"""A stated capacity is plausible up to this many times the rule file's, and down to this part of it."""
_MANY: Final = 10
"""Where the rule file allows this many units or more, a stated limit of one unit is not plausible."""
_PERIODS: Final = 100
"""A stated period is plausible up to this many times the rule file's, or a day."""

T = TypeVar("T")


class Cap(NamedTuple):
    """How much of a limit one program may spend.

    Attributes:
        program: its name.
        units: in every window of the limit, all processes of that name together.
        place: where the configuration says so.
    """

    program: str
    units: int
    place: str


class Adjustments(NamedTuple):
    """What the user changes of the rule file of one provider.

    Attributes:
        tiers: limit, or ``*`` for all that have it -> name of the customer's tier.
        overrides: limit -> a number of the user's own: (capacity in units, period in ns; 0 keeps it).
        headroom: limit, or ``*`` for all others -> what to leave unused: units, or per cent as in ``"10%"``.
        smooth: whether the budget of each window is spread evenly over it (`smoothed`).
        caps: limit -> how much of it this program may spend.
    """

    tiers: Mapping[str, str] = {}
    overrides: Mapping[str, tuple[int, int]] = {}
    headroom: Mapping[str, int | str] = {}
    smooth: bool = False
    caps: Mapping[str, Cap] = {}


UNADJUSTED: Final = Adjustments()


def limit_of(name: str, rule: LimitRule, tier: str = "") -> Limit:
    """The ledger's limit of what the file says, for customers of one `tier`; "" for all others."""
    chosen = rule.tiers[tier] if tier else rule.capacity
    capacity, refill = (chosen, 0) if isinstance(chosen, int) else (chosen.capacity, chosen.refill)
    return Limit(
        name=name,
        unit=rule.unit,
        capacity=capacity,
        period=duration(rule.period) if rule.window is not Window.SLOTS else 0,
        window=rule.window,
        scope=tuple(listed(rule.scope)),
        headroom=rule.headroom,
        refill=refill or rule.refill * capacity // rule.capacity,
        origin=duration(rule.origin) if rule.origin else 0,
        lasting=rule.lifetime,
    )


def chosen(file: File, adjustments: Adjustments) -> dict[str, Limit]:
    """The limits of `file` by name, before the provider states others (`in_force`).

    A tier takes the place of the file's number, one of the user's own that of either. Headroom is taken off last.

    Raises:
        RuleError: a name that does not exist, or a number that leaves nothing.
    """
    limits = _tiered(file, adjustments.tiers)
    for name, (capacity, period) in adjustments.overrides.items():
        limits[name] = _own(file.name, limits, name, capacity, period)
    headroom = dict(adjustments.headroom)
    if "*" in headroom:
        headroom = dict.fromkeys(limits, headroom.pop("*")) | headroom
    for name, wish in headroom.items():
        limits[name] = _with_headroom(file.name, limits, name, wish)
    return limits


def smoothed(limit: Limit) -> Limit | None:
    """A second limit that spreads the budget of a window evenly: its part in each part of the window. None where there is
    nothing to spread: slots, buckets, budgets too small to be parted."""
    slices = min(_SLICES, limit.usable)
    if limit.window in {Window.SLOTS, Window.BUCKET} or slices < 2 or limit.period < slices:
        return None
    return Limit(
        name=f"{limit.name}~smooth",
        unit=limit.unit,
        capacity=-(-limit.usable // slices),
        period=limit.period // slices,
        window=Window.SLIDING,
        scope=limit.scope,
    )


def capped(limit: Limit, cap: Cap) -> Limit:
    """A second limit that keeps one program to its part of `limit`, of all owners together."""
    # Nobody knows where windows of the other kinds begin, so no span of one period may hold more.
    known = limit.window in {Window.FIXED, Window.SLOTS}
    return Limit(
        name=f"{limit.name}{CAP}",
        unit=limit.unit,
        capacity=cap.units,
        period=limit.period,
        window=limit.window if known else Window.SLIDING,
        scope=("program",),
        origin=limit.origin,
        own=True,
        place=f"program {cap.program!r} may spend {cap.units} of {limit.name}, says {cap.place}",
    )


def _tiered(file: File, tiers: Mapping[str, str]) -> dict[str, Limit]:
    key = f"$.tiers.{file.name}"
    for name, tier in tiers.items():
        known = {each for limit in file.limits.values() for each in limit.tiers}
        if name != "*":
            _limit(file.name, file.limits, name, f"{key}.{name}")
            known = set(file.limits[name].tiers)
        if tier not in known:
            has = f"Choose one of {', '.join(sorted(known))}" if known else "It has none: leave it out"
            raise RuleError(f"{file.name} has no tier {tier!r} there. {has}", key=f"{key}.{name}")
    result = {}
    for name, rule in file.limits.items():
        tier = tiers.get(name, tiers.get("*", ""))
        result[name] = limit_of(name, rule, tier if tier in rule.tiers else "")
    return result


def _own(provider: str, limits: Mapping[str, Limit], name: str, capacity: int, period: int) -> Limit:
    key = f"$.limits.{provider}.{name}"
    limit = _limit(provider, limits, name, key)
    try:
        refill = max(limit.refill * capacity // limit.capacity, min(limit.refill, 1))
        return replace(limit, capacity=capacity, period=period or limit.period, headroom=0, refill=refill, own=True)
    except ValueError as error:
        raise RuleError(
            f"{error}. Write at least one unit, and a period only for limits that have one", key=key
        ) from None


def _with_headroom(provider: str, limits: Mapping[str, Limit], name: str, wish: int | str) -> Limit:
    """A limit that leaves `wish` unused: units, or per cent as in ``"10%"``."""
    key = f"$.headroom.{provider}.{name}"
    limit = _limit(provider, limits, name, key)
    try:
        units = wish if isinstance(wish, int) else int(limit.capacity * float(wish.removesuffix("%")) / 100)
        return replace(limit, headroom=units)
    except ValueError:
        raise RuleError(
            f"{wish!r} leaves nothing or means nothing. Write units below {limit.capacity}, or per cent as in '10%'",
            key=key,
        ) from None


def _limit(provider: str, limits: Mapping[str, T], name: str, key: str) -> T:
    if name not in limits:
        raise RuleError(f"{provider} has no such limit. It has: {', '.join(limits)}", key=key)
    return limits[name]


# --- what the provider states ---------------------------------------------------------------------------------------


def believable(capacity: int, period: int, window: Window | None = None) -> bool:
    """Whether a stated limit can be meant: `capacity` in units, `period` in ns (0: of no window)."""
    return 1 <= capacity <= (_MOST_DRAINED if window is Window.BUCKET else _MOST) and 0 <= period <= _LONGEST


class Plausible(NamedTuple):
    """The numbers that a provider may state for one limit. What lies outside is doubted: it is told, and not believed.

    A capacity that is lower than the rule file's and lies inside is obeyed like any other.

    Attributes:
        least, most: bounds of the capacity, units.
        shortest, longest: bounds of the period, ns; 0 for slots.
    """

    least: int
    most: int
    shortest: int
    longest: int

    @classmethod
    def of(cls, rule: LimitRule) -> Plausible:
        """The bounds for a limit of a rule file, whatever tier the customer has."""
        known = [rule.capacity, *(each if isinstance(each, int) else each.capacity for each in rule.tiers.values())]
        least = max(-(-min(known) // _FACTOR), 2 if min(known) >= _MANY else 1)
        # A budget for life grows with all that its owner ever did, so it has no upper bound of its own.
        most = _MOST_DRAINED if rule.lifetime else max(known) * _FACTOR
        period = duration(rule.period) if rule.window is not Window.SLOTS else 0
        return cls(least, most, period // _FACTOR, max(DAY, period * _PERIODS) if period else 0)

    def holds(self, capacity: int, period: int) -> bool:
        """Whether a stated limit may be meant: `capacity` in units, `period` in ns (0: none is stated)."""
        return self.least <= capacity <= self.most and (not period or self.shortest <= period <= self.longest)


def per(capacity: int, unit: str, period: int) -> str:
    """A limit in words: ``2400 weight per 1m``; ``5 slots`` without a period."""
    return f"{capacity} {unit} per {interval_name(period)}" if period else f"{capacity} {unit}"


def in_force(limit: Limit, ledger: str, learned: Mapping[str, tuple[int, int]]) -> Limit:
    """The limit that holds on one ledger: with the provider's numbers where it states some.

    A number of the user's own gives way only to one that allows less. Headroom and refill keep their share of the capacity,
    but for a `lasting` refill. Numbers that no limit can have are not believed.

    Args:
        limit: as the file and the user have it.
        ledger: limit and scope, ``orders-1s/account:3fa1c0de9b12``; or the limit alone, for all its ledgers.
        learned: by ledger or limit, what the provider stated: (capacity in units, period in ns; 0 keeps it). A ledger's own
            number goes before the limit's.
    """
    numbers = learned.get(ledger) or learned.get(limit.name)
    if numbers is None:
        return limit
    capacity, period = numbers[0], numbers[1] or limit.period
    if limit.own and capacity * max(limit.period, 1) >= limit.capacity * max(period, 1):
        return limit
    headroom = limit.headroom * capacity // limit.capacity
    refill = limit.refill
    if refill and not limit.lasting:
        refill = max(1, refill * capacity // limit.capacity)
    try:
        return replace(limit, capacity=capacity, period=period, headroom=headroom, refill=refill)
    except ValueError:
        return limit


class _Row(NamedTuple):
    """One stated limit; `capacity` None and `period` (ns) 0 if the row names none; `used` -1 if it does not count."""

    capacity: int | None
    period: int
    used: int


def learn_rows(
    rows: Any,
    learn: Learn,
    limits: Mapping[str, Limit],
    believes: Callable[[Limit, int, int], bool] = lambda limit, capacity, period: believable(
        capacity, period, limit.window
    ),
) -> tuple[dict[str, tuple[int, int]], dict[str, int]]:
    """What `rows` state: (limit name -> (capacity, period ns), limit name -> used units). Unreadable rows are ignored.

    Args:
        rows: a list, or one row.
        learn: how they are written.
        limits: by name, as they are in force. The user's own further limits are none of the provider's.
        believes: whether a limit may have a stated capacity (units) and period (ns).
    """
    by_unit: dict[str, list[_Row]] = {}
    for raw in rows if isinstance(rows, list) else [rows]:
        row = _row(raw, learn)
        unit = learn.units.get(str(dig(raw, tuple(learn.type.split("."))))) if learn.type else ""
        if row is not None and unit is not None:
            by_unit.setdefault(unit, []).append(row)
    learned: dict[str, tuple[int, int]] = {}
    used: dict[str, int] = {}
    for unit, found in by_unit.items():
        candidates = [
            limit
            for limit in limits.values()
            if (limit.unit == unit if unit else limit.name == learn.limit_name)
            and not (limit.window is Window.SLOTS or limit.place)
        ]
        for limit, row in match_rows(candidates, found):
            if row.capacity is not None:
                numbers = (row.capacity, row.period or limit.period)
                if believes(limit, *numbers):
                    learned[limit.name] = numbers
            if row.used >= 0:
                used[limit.name] = row.used
    return learned, used


def match_rows(limits: list[Limit], rows: list[_Row]) -> list[tuple[Limit, _Row]]:
    """Pair limits and rows of one unit: the same interval first, what is left by length of interval."""
    pairs: list[tuple[Limit, _Row]] = []
    limits = sorted(limits, key=lambda limit: limit.period)
    rows = sorted(rows, key=lambda row: row.period)
    for limit in list(limits):
        same = next((row for row in rows if row.period in (limit.period, 0)), None)
        if same is not None:
            pairs.append((limit, same))
            limits.remove(limit)
            rows.remove(same)
    return pairs + list(zip(limits, rows, strict=False))


def _row(raw: Any, learn: Learn) -> _Row | None:
    capacity = _whole(raw, learn.limit) if learn.limit else None
    used = _whole(raw, learn.used) if learn.used else -1
    period = _period(raw, learn) if learn.interval else 0
    if period is None or used is None or (learn.limit and capacity is None):
        return None
    return _Row(capacity, period, used)


def _period(raw: Any, learn: Learn) -> int | None:
    word = dig(raw, tuple(learn.interval.split(".")))
    number = _whole(raw, learn.number) if learn.number else 1
    if not isinstance(word, str) or number is None:
        return None
    try:
        period = duration(word) * number if word[:1].isdecimal() else interval_period(word, number)
    except (ValueError, OverflowError):
        return None
    return period if period > 0 else None


def _whole(raw: Any, path: str) -> int | None:
    return whole(dig(raw, tuple(path.split("."))))
