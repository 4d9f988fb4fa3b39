"""Limits as the provider states them at run time: which of the rule file's they are, and which number is in force."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from ratekeeper.ledger.limit import Limit, Window
from ratekeeper.rules.reading import dig, whole
from ratekeeper.rules.schema import Learn
from ratekeeper.rules.times import DAY, duration, interval_period

__all__ = ["believable", "in_force", "learn_rows", "match_rows"]

_MOST = 10**12
"""A capacity beyond this is a mistake, not a limit."""
_MOST_DRAINED = 4 * 10**9
"""The same for a bucket, whose ledger counts billionths of a unit in 64 bits."""
_LONGEST = 366 * DAY


def believable(capacity: int, period: int, window: Window | None = None) -> bool:
    """Whether a stated limit can be meant: `capacity` in units, `period` in ns (0: of no window)."""
    return 1 <= capacity <= (_MOST_DRAINED if window is Window.BUCKET else _MOST) and 0 <= period <= _LONGEST


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
    """One stated limit; `period` in ns, 0 if the row names none; `used` -1 if it does not count."""

    capacity: int
    period: int
    used: int


def learn_rows(
    rows: Any, learn: Learn, limits: Mapping[str, Limit]
) -> tuple[dict[str, tuple[int, int]], dict[str, int]]:
    """What `rows` state: (limit name -> (capacity, period ns), limit name -> used units). Absurd rows are ignored."""
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
            if (limit.unit == unit if unit else limit.name == learn.limit_name) and limit.window is not Window.SLOTS
        ]
        for limit, row in match_rows(candidates, found):
            if row.capacity and believable(row.capacity, row.period, limit.window):
                learned[limit.name] = (row.capacity, row.period or limit.period)
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
    capacity = _whole(raw, learn.limit) if learn.limit else 0
    used = _whole(raw, learn.used) if learn.used else -1
    period = _period(raw, learn) if learn.interval else 0
    if period is None or capacity is None or used is None:
        return None
    if (learn.limit and not believable(capacity, period)) or used > _MOST:
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
    return period if 0 < period <= _LONGEST else None


def _whole(raw: Any, path: str) -> int | None:
    return whole(dig(raw, tuple(path.split("."))))
