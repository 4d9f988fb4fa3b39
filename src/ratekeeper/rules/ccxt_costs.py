"""Turns costs as ccxt's tables write them into microseconds of the spacing between calls that they stand for."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import msgspec

from ratekeeper.rules.schema import Cost, Term

__all__ = ["capped", "cost_of", "dearer", "dearest"]


def cost_of(entry: Any, sample: Any) -> Cost:
    """What one entry of a table costs.

    ``{"cost": 1, "noSymbol": 40, "byLimit": [[99, 1], [499, 5]], "byType": {"l2Book": 2}}`` are the shapes in use: the
    usual cost, one without some parameters, bands over a parameter or over the length of a list, and one by value. Where
    several stand together, the dearest counts, which is what ccxt would charge or more. A number of any other name is
    taken for a cost that could apply. Where a class computes costs itself, a call without parameters is asked as well.
    """
    config = entry.config or {}
    base = config.get("cost", 1)
    terms: list[tuple[str, Any]] = []
    for key, value in config.items():
        if key == "cost":
            continue
        if isinstance(value, int | float) and not _after(key, "no"):
            base = max(base, value)
        else:
            terms.append((key, value))
    if not terms:
        base = max(base, _computed(entry, sample))

    def units(cost: float) -> int:
        return max(0, math.ceil(round(cost * float(sample.rateLimit) * 1000, 3)))

    made = [_term(key, value, units(base), units) for key, value in terms]
    return units(base) if not made else made[0] if len(made) == 1 else Term(largest=made)


def dearest(cost: Cost) -> int:
    """The most that a call can cost."""
    numbers: list[int] = []

    def note(number: int) -> int:
        numbers.append(number)
        return number

    _each(cost, note)
    return max(numbers)


def capped(cost: Cost, most: int) -> Cost:
    """The same, but nowhere more than `most`."""
    return _each(cost, lambda number: min(number, most))


def dearer(one: Cost, other: Cost) -> Cost:
    """Whichever is dearer for the call at hand."""
    if isinstance(one, int) and isinstance(other, int):
        return max(one, other)
    return one if one == other else Term(largest=[one, other])


def _each(cost: Cost, change: Callable[[int], int]) -> Cost:
    """`cost` with every number of units in it changed."""
    if isinstance(cost, int):
        return change(cost)
    if isinstance(cost, list):
        return [_each(each, change) for each in cost]  # type: ignore[misc]  # no list stands directly in a list
    return msgspec.structs.replace(
        cost,
        largest=[_each(each, change) for each in cost.largest],
        bands=[(edge, change(number)) for edge, number in cost.bands],
        cases={name: change(number) for name, number in cost.cases.items()},
        **{
            field: change(number)
            for field in ("above", "other", "cost", "missing")
            if (number := getattr(cost, field)) is not None
        },
    )


def _computed(entry: Any, sample: Any) -> float:
    try:
        cost = sample.calculate_rate_limiter_cost(entry.api, entry.method, entry.path, {}, entry.config)
    except Exception:  # noqa: BLE001 - some want parameters
        return 0
    return cost if isinstance(cost, int | float) else 0


def _after(key: str, word: str) -> str:
    """``symbol`` of ``noSymbol``; empty if the key does not begin with the word."""
    rest = key.removeprefix(word) if key.startswith(word) else ""
    return rest[:1].lower() + rest[1:] if rest[:1].isupper() else ""


def _term(key: str, value: Any, base: int, units: Callable[[float], int]) -> Cost:
    """One modifier as a cost that is stated for every call."""
    absent, measure = _after(key, "no"), _after(key, "by")
    if absent and isinstance(value, int | float):
        # The parameter may travel in the query, in a form or in a JSON body.
        names = [name[:1].lower() + name[1:] for name in absent.split("AndNo")]
        present = [Term(has=f"{root}{name}", cost=base) for name in names for root in ("", "body.")]
        return [*present, units(value)]
    if measure and isinstance(value, dict):
        cases = {name: units(cost) for name, cost in value.items()}
        return [
            Term(by=measure, cases=cases, other=base),
            Term(by=f"body.{measure}", cases=cases, other=base),
            base,
        ]
    if measure and isinstance(value, list):
        counted = _after(measure, "numberOf")
        bands, above = _bands([(int(edge), units(cost)) for edge, cost in value], base)
        if counted:
            return Term(count=counted, bands=bands, above=above, missing=base)
        return Term(by=measure, bands=bands, above=above, missing=base)
    return base


def _bands(rows: list[tuple[int, int]], base: int) -> tuple[list[tuple[int, int]], int]:
    """Rising rows are "up to this edge", beyond the last the usual cost; falling ones are "from this on"."""
    if rows == sorted(rows):
        return rows, max(base, rows[-1][1])
    rows.sort()
    return [(after - 1, cost) for (_, cost), (after, _) in pairwise(rows)], rows[-1][1]
