"""Calls made up from a rule file, so that every limit of it can be spent over real HTTP."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from ratekeeper.ledger.limit import Limit, Window
from ratekeeper.rules.call import Plan, Request
from ratekeeper.rules.provider import Provider
from ratekeeper.rules.reading import listed
from ratekeeper.rules.schema import Condition, RouteRule

SECOND = 1_000_000_000
INSTRUMENT = "BTC-USDT-SWAP"


@dataclass(frozen=True)
class Spend:
    """A call that a limit holds back before any other limit does.

    Attributes:
        call: what to send.
        limit: the limit, with the period that the test gives it.
        cost: units of it that one call takes.
    """

    call: Request
    limit: Limit
    cost: int

    @property
    def calls(self) -> int:
        """How many calls fit into the limit at once."""
        return self.limit.capacity // self.cost

    @property
    def rate(self) -> float:
        """Calls a second that the limit allows for long."""
        return (self.limit.refill or self.calls * self.cost) / self.cost / (self.limit.period / SECOND)


@dataclass(frozen=True)
class Pace:
    """How fast a test spends.

    Attributes:
        rate: calls a second that one limit should ask for.
        most: calls a second of all limits together.
        shortest, longest: seconds of a window that was shortened.
    """

    rate: float
    most: float
    shortest: float
    longest: float

    def distance(self, spend: Spend) -> float:
        """How far a call is from the size that fills a window at this pace: neither too cheap nor too dear."""
        wanted = self.rate * (self.shortest + self.longest) / 2
        return max(spend.calls / wanted, wanted / max(1, spend.calls))


def sample_calls(provider: Provider) -> Iterator[tuple[Request, Plan]]:
    """One call for every REST route that can be made up, with its plan."""
    file = provider.file
    secrets = [listed(owner.header)[0] for owner in file.owners.values() if owner.header]
    values = [name for owner in file.owners.values() for name in listed(owner.value)]
    for rule in file.routes:
        for match in listed(rule.match):
            method, _, template = match.partition(" ")
            if method.startswith("WS"):
                continue
            call = _fitting(rule, method, re.sub(r"\{[^}]*\}", "x1", template).replace("*", "any"), values)
            call = call._replace(headers=dict.fromkeys(secrets, "k" + "1"))
            plan = provider.plan(call)
            if plan.route.partition(" #")[0] == match:
                yield call, plan


def _fitting(rule: RouteRule, method: str, path: str, values: list[str]) -> Request:
    """A call that meets the conditions of a route. References of owners name one instrument."""
    params: dict[str, Any] = {}
    body: Any = None
    wanted: dict[str, Any] = {name: INSTRUMENT for name in values if name not in rule.where}
    for name, condition in rule.where.items():
        if (value := _meeting(condition)) is not None:
            wanted[name] = value
    for name, value in wanted.items():
        root, _, rest = name.partition(".")
        if root != "body":
            params[name] = value
        elif not rest:
            body = value
        elif method not in ("GET", "DELETE"):
            body = _put(body if isinstance(body, dict) else {}, rest, value)
    return Request(method, path, params, body)


def _put(tree: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    step, _, rest = path.partition(".")
    return {**tree, step: _put(tree.get(step) or {}, rest, value) if rest else value}


def _meeting(condition: Any) -> Any:
    """A value that meets a condition; None to leave the reference out."""
    if not isinstance(condition, Condition):
        return condition[0] if isinstance(condition, list) else condition
    if condition.present is False:
        return None
    if condition.one_of:
        return condition.one_of[0]
    size = condition.least if condition.least is not None else condition.most
    if condition.count:
        return [{"instId": INSTRUMENT}] * (size or 1)
    return INSTRUMENT if size is None else size


def spends(provider: Provider, pace: Pace) -> list[Spend]:
    """For the limits that a short test can fill, the calls that fill them; no two of them share a limit.

    Windows that last too long are shortened. Limits that many routes spend come first.
    """
    found: dict[str, Spend] = {}
    routes: Counter[str] = Counter()
    for call, plan in sample_calls(provider):
        for charge in plan.charges:
            routes[charge.limit.name] += 1
            spend = _shortened(Spend(call, charge.limit, charge.cost), pace)
            known = found.get(charge.limit.name)
            if spend is not None and (known is None or pace.distance(spend) < pace.distance(known)):
                found[charge.limit.name] = spend
    chosen: list[Spend] = []
    taken: set[str] = set()
    for spend in sorted(found.values(), key=lambda each: -routes[each.limit.name]):
        names = {charge.limit.name for charge in provider.plan(spend.call).charges}
        if not names & taken and sum(each.rate for each in (*chosen, spend)) <= pace.most:
            chosen.append(spend)
            taken |= names
    return chosen


def _shortened(spend: Spend, pace: Pace) -> Spend | None:
    limit = spend.limit
    if limit.window is Window.SLOTS or "connection" in limit.scope or not spend.calls:
        return None
    if limit.window is Window.BUCKET:
        # What it holds lasts for a second, so that it outlasts a pause of the machine.
        period = round(limit.period * spend.rate / min(pace.rate / 2.5, spend.calls))
        return replace(spend, limit=replace(limit, period=period)) if spend.calls <= 2 * pace.rate else None
    if limit.period <= pace.longest * SECOND:
        return spend
    seconds = max(pace.shortest, round(spend.calls / pace.rate, 1))
    return replace(spend, limit=replace(limit, period=round(seconds * SECOND))) if seconds <= pace.longest else None
