"""In which limits and costs two rule files differ."""

from __future__ import annotations

from typing import NamedTuple

from ratekeeper.rules.call import Call
from ratekeeper.rules.explanation import describe
from ratekeeper.rules.files import inline
from ratekeeper.rules.numbers import limit_of
from ratekeeper.rules.provider import Provider
from ratekeeper.rules.routing import listed
from ratekeeper.rules.schema import File, Route

__all__ = ["Difference", "differences", "table"]


class Difference(NamedTuple):
    """One limit or route; an empty text where a file does not have it."""

    what: str
    ours: str
    theirs: str


def differences(ours: File, theirs: File, *, spacing: bool = False) -> list[Difference]:
    """What differs, limits first.

    Args:
        spacing: for files that count in other units: only routes that both know are compared, by how long a call without
            parameters keeps its tightest limit busy.
    """
    if spacing:
        one, other = _spacings(ours), _spacings(theirs)
        one = {name: text for name, text in one.items() if name in other}
        other = {name: text for name, text in other.items() if name in one}
        return _different(one, other)
    return _different(_limits(ours), _limits(theirs)) + _different(_costs(ours), _costs(theirs))


def table(found: list[Difference], ours: str, theirs: str) -> str:
    """The differences in columns."""
    rows = [Difference("", ours, theirs), *found]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return "\n".join(f"{row.what:<{widths[0]}}  {row.ours or '-':<{widths[1]}}  {row.theirs or '-'}" for row in rows)


def _different(ours: dict[str, str], theirs: dict[str, str]) -> list[Difference]:
    names = [*ours, *(name for name in theirs if name not in ours)]
    return [
        Difference(name, ours.get(name, ""), theirs.get(name, ""))
        for name in names
        if ours.get(name) != theirs.get(name)
    ]


def _limits(file: File) -> dict[str, str]:
    return {name: describe(limit_of(name, rule)) for name, rule in file.limits.items()}


def _costs(file: File) -> dict[str, str]:
    found = {"every call": _text(file, file.every), "unknown routes": _route(file, file.default)}
    for rule in file.routes:
        for match in listed(rule.match):
            where = f" where {inline(rule.where)}" if rule.where else ""
            found[match + where] = _route(file, rule)
    return found


def _route(file: File, rule: Route) -> str:
    parts = [_text(file, rule.cost)]
    parts += [f"{field} {_text(file, costs)}" for field in ("ok", "failed") if (costs := getattr(rule, field))]
    return ", ".join(parts)


def _text(file: File, costs: object) -> str:
    return inline(costs) if costs else "nothing"


def _spacings(file: File) -> dict[str, str]:
    """Milliseconds of its tightest limit that a call of each route takes."""
    provider = Provider(file)
    found = {}
    for rule in file.routes:
        for match in listed(rule.match):
            method, _, path = match.partition(" ")
            if not path.endswith("*") and not method.startswith("WS"):
                charges = provider.plan(Call(method, path)).charges
                times = [each.cost * each.limit.period / (each.limit.refill or each.limit.capacity) for each in charges]
                found[match] = f"{max(times, default=0) / 1e6:.5g} ms"
    return found
