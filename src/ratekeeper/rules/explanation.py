"""Explains what a call costs and why: plain values for `ratekeeper explain`, with source, date and confidence."""

from __future__ import annotations

import datetime as dt
from collections.abc import Container
from typing import TYPE_CHECKING

import msgspec

from ratekeeper.ledger.limit import SECOND, Limit, Window
from ratekeeper.rules.call import Plan, Request
from ratekeeper.rules.reading import listed
from ratekeeper.rules.schema import File, Route, Sourced
from ratekeeper.rules.times import interval_name

if TYPE_CHECKING:
    from ratekeeper.rules.handling import Handling

__all__ = [
    "GRADES",
    "Explanation",
    "LimitShare",
    "ProgramCap",
    "Provenance",
    "Witness",
    "describe",
    "explain",
    "provenance",
]

GRADES = {
    "D": "vendor documentation",
    "M": "measured",
    "S": "source code read",
    "C": "client code",
    "I": "issue thread",
    "O": "observed by third parties",
    "?": "weak or unconfirmed",
}


class Witness(msgspec.Struct, frozen=True):
    """One source of a number, with its own date and grade."""

    tag: str
    title: str
    read: dt.date
    confidence: str
    url: str = ""


class Provenance(msgspec.Struct, frozen=True):
    """Where a number comes from.

    `date` and `confidence` are those of the first source, the one the number was taken from: the date of one and the
    grade of another would together claim what nobody read. The others confirm or differ; `sources` tells each.
    """

    source: str
    """Tags of the file's ``[sources]``, joined by ``+``; "" for a limit of the user's own."""
    date: dt.date | None
    confidence: str
    sources: list[Witness]
    note: str = ""
    since: dt.date | None = None


class LimitShare(msgspec.Struct, frozen=True):
    """One limit and what the call takes of it."""

    name: str
    unit: str
    cost: int
    capacity: int
    period: float
    """Seconds; 0 for slots."""
    window: str
    scope: list[str]
    key: str
    provenance: Provenance
    learned: bool = False
    """The numbers were read from the provider, not from the file."""
    headroom: int = 0
    """Units of `capacity` that are left unused on purpose."""


class ProgramCap(msgspec.Struct, frozen=True):
    """How much of a limit one program may spend, all processes of its name together."""

    program: str
    limit: str
    units: int
    place: str
    """``FILE:LINE``."""


class Explanation(msgspec.Struct, frozen=True):
    """Everything the rules know of one call."""

    provider: str
    namespace: str
    title: str
    route: str
    known: bool
    """False: no route of the file matched and the file's default cost was taken."""
    route_class: str
    priority: str
    limits: list[LimitShare]
    cost: Provenance
    """Of the route's cost; each limit has its own."""
    feedback: bool
    blocked_by: list[str]
    kept: float | None = None
    """Seconds for which an answer is as good as a new one; None if the rules do not say."""
    merged: str = ""
    """``METHOD /path`` of the call as which it can be made together with others; ``""`` if it cannot."""
    twice: bool = False
    """Making it twice does no more than making it once."""
    caps: list[ProgramCap] = []
    """What programs may spend of these limits at most, by the configuration."""
    ask: str = ""
    """The call that tells what became of it, where that matters and is known."""


def explain(
    file: File, namespace: str, handling: Handling, rule: Route, call: Request, plan: Plan, learned: Container[str]
) -> Explanation:
    """The plan of a call with the provenance of every number.

    Args:
        file: the rules.
        namespace: of the provider.
        handling: of the provider.
        rule: the route of the call.
        call, plan: what is explained.
        learned: limits, or limits and scopes, whose numbers the provider stated.
    """
    shares = []
    for key, limit, cost in plan.charges:
        if "~" not in limit.name:  # others are of our own making
            shares.append(
                LimitShare(
                    name=limit.name,
                    unit=limit.unit,
                    cost=cost,
                    capacity=limit.capacity,
                    period=limit.period / SECOND,
                    window=limit.window.value,
                    scope=list(limit.scope),
                    key=key,
                    provenance=provenance(file, file.limits[limit.name], limit.place),
                    learned=limit.name in learned or key.partition("/")[2] in learned,
                    headroom=limit.headroom,
                )
            )
    single = handling.single(call, plan)
    return Explanation(
        provider=file.name,
        namespace=namespace,
        title=file.title,
        route=plan.route,
        known=bool(plan.route),
        route_class=rule.class_,
        priority=plan.priority.name.lower(),
        limits=shares,
        cost=provenance(file, rule),
        feedback=plan.feedback,
        blocked_by=list(plan.scopes),
        kept=handling.ttl(plan),
        merged=f"GET {single.path}" if single else "",
        twice=handling.safe(call, plan),
        ask=handling.ask(call, plan),
    )


def provenance(file: File, rule: Sourced, place: str = "") -> Provenance:
    """Source, date and grade of a rule; what it leaves out comes from the file, then from the source. `place` is that of
    a limit of the user's own."""
    if place:
        return Provenance("", None, "your own", [], note=place)
    tags = listed(rule.source) or listed(file.source)
    found = [(tag, file.sources[tag]) for tag in tags]
    sources = [Witness(tag, each.title, each.read, each.confidence, each.url) for tag, each in found]
    # A rule that names its own source is graded by that source, not by the file's blanket grade.
    inherited = None if listed(rule.source) else file.confidence
    return Provenance(
        source="+".join(tags),
        date=sources[0].read if sources else None,
        confidence=rule.confidence or inherited or (sources[0].confidence if sources else "?"),
        sources=sources,
        note=rule.note,
        since=rule.since,
    )


def describe(limit: Limit) -> str:
    """``2400 weight per 1m, fixed, per ip``."""
    span = "at once" if limit.window is Window.SLOTS else f"per {interval_name(limit.period)}, {limit.window}"
    return f"{limit.capacity} {limit.unit} {span}, per {' + '.join(limit.scope)}"
