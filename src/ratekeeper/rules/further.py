"""Adds the user's own further limits to a rule file, as if the file had them itself."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Final, TypeVar

from msgspec.structs import replace

from ratekeeper.errors import RuleError
from ratekeeper.ledger.limit import Window
from ratekeeper.rules.numbers import STATEABLE, Further, stateable
from ratekeeper.rules.reading import BUILT_IN, listed
from ratekeeper.rules.schema import Cost, Costs, File, LimitRule, Route, RouteRule, Term
from ratekeeper.rules.times import duration

__all__ = ["REQUESTS", "extended"]

REQUESTS: Final = "requests"
"""The unit of a further limit that counts each HTTP call as one, whatever the rule file counts."""

_R = TypeVar("_R", bound=Route)


def extended(file: File, further: Mapping[str, Further]) -> File:
    """`file` with further limits of the user's own, as if it had them itself.

    Raises:
        RuleError: a further limit does not fit the file.
    """
    limits = dict(file.limits)
    default, routes = file.default, list(file.routes)
    for name, limit in further.items():
        _fitting(file, name, limit)
        period = "" if limit.window is Window.SLOTS else limit.period
        limits[name] = LimitRule(
            unit=limit.unit,
            capacity=limit.capacity,
            period=period,
            window=limit.window,
            scope=list(limit.scope),
            note=f"your own limit, by {limit.place}",
        )
        # What counts one call may not count another of the same rule.
        routes = [
            replace(rule, match=match)
            for rule in routes
            for match in (listed(rule.match) if limit.routes or _mixed(rule) else [rule.match])
        ]
        routes = [_counting(file, rule, name, limit, listed(rule.match)) for rule in routes]
        default = _counting(file, default, name, limit, [])
    return replace(file, limits=limits, default=default, routes=routes)


def _mixed(rule: RouteRule) -> bool:
    """Whether a rule is both for calls and for messages of websockets."""
    return len({match.startswith("WS") for match in listed(rule.match)}) > 1


def _counting(file: File, rule: _R, name: str, limit: Further, matches: list[str]) -> _R:
    """`rule` with what its calls cost on a further limit."""
    websocket = any(match.startswith("WS") for match in matches)
    if limit.routes and not any(fnmatchcase(match, shape) for match in matches for shape in limit.routes):
        costs: list[Cost | None] = [0, None, None]
    elif limit.unit == REQUESTS:
        costs = [0 if websocket else 1, None, None]
    else:
        common = None if websocket else _counted(file, file.every, limit.unit)
        own = _counted(file, rule.cost, limit.unit)
        costs = [
            own if own is not None else common if common is not None else 0,
            _counted(file, rule.ok, limit.unit),
            _counted(file, rule.failed, limit.unit),
        ]
    cost, ok, failed = (
        before if more is None else {**before, name: more}
        for before, more in zip((rule.cost, rule.ok, rule.failed), costs, strict=True)
    )
    return replace(rule, cost=cost, ok=ok, failed=failed)


def _counted(file: File, costs: Costs, unit: str) -> Cost | None:
    """What `costs` say of a unit: its own cost, or the largest of its limits; None if nothing."""
    if unit in costs:
        return costs[unit]
    found = [cost for word, cost in costs.items() if word in file.limits and file.limits[word].unit == unit]
    if len(found) < 2:
        return found[0] if found else None
    return Term(largest=found)


def _fitting(file: File, name: str, limit: Further) -> None:
    for part, reason in _misfits(file, name, limit):
        key = f"$.limits.{file.name}.{name}"
        raise RuleError(reason, key=f"{key}.{part}" if part else key)


def _misfits(file: File, name: str, limit: Further) -> Iterator[tuple[str, str]]:
    """What is wrong with a further limit: the part at fault, and what to do."""
    units = {each.unit for each in file.limits.values()}
    if name in file.limits:
        told = "without unit, scope, window and routes to change that one, or choose another name for a further limit"
        yield "", f"{file.name} has a limit of that name. Write it {told}"
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name) or name in units | {REQUESTS}:
        yield "", "no name for a further limit: use a-z, 0-9, dots and dashes, and no name of a unit"
    if limit.unit not in units | {REQUESTS}:
        told = f"Write unit = {REQUESTS!r}, which counts each call as one, or one of {', '.join(sorted(units))}"
        yield "unit", f"{file.name} counts no {limit.unit!r}. {told}"
    if not limit.period and limit.window is not Window.SLOTS:
        yield "", "a further limit needs a period. Write for example period = '1m'"
    elif not stateable(limit.capacity, duration(limit.period or "1s"), limit.window):
        yield "", f"{limit.capacity} per {limit.period} is no limit. {STATEABLE}"
    known = BUILT_IN | set(file.owners)
    wrong = [kind for kind in limit.scope if kind not in known]
    if wrong or not limit.scope or len(set(limit.scope)) < len(limit.scope):
        yield "scope", f"unknown owner {', '.join(wrong)!r}. Use one or several of {', '.join(sorted(known))}"
    matches = [match for rule in file.routes for match in listed(rule.match)]
    for shape in limit.routes:
        if not any(fnmatchcase(match, shape) for match in matches):
            near = get_close_matches(shape, matches, n=1)
            told = (
                f"Did you mean {near[0]!r}?" if near else "`ratekeeper explain METHOD URL` shows the route of a call."
            )
            yield "routes", f"{file.name} has no route {shape!r}. {told}"
