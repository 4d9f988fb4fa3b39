"""Routes: which rule a call falls under, compiled once per rule file and shared by all providers made from it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from ratekeeper.ledger.limit import Limit, Window
from ratekeeper.rules.call import Call, Priority
from ratekeeper.rules.cost import Amount, compile_cost
from ratekeeper.rules.reading import count, number, reader, text
from ratekeeper.rules.schema import Condition, Costs, File, LimitRule, Route, RouteRule, Scalar, Tier
from ratekeeper.rules.times import duration

__all__ = ["PRIORITIES", "CompiledRoute", "Router", "limit_of", "listed", "spread"]

PRIORITIES: Final = {
    "cancel": Priority.CRITICAL,
    "order": Priority.HIGH,
    "account": Priority.NORMAL,
    "other": Priority.NORMAL,
    "market": Priority.LOW,
}
"""Class of a route -> its default priority: strictly cancel > order > account > market data."""

Test = Callable[[Call], bool]


class CompiledRoute:
    """One route, ready to be asked.

    Attributes:
        label: unique name; the match, with ``#2`` behind where several routes share one.
        rule: what the file says.
        key: ``$.routes[3]``, for explanations.
        costs: amounts reserved, by limit name.
        ok, failed: actual amounts by limit name, where they differ.
        tests: conditions beyond method and path; all must hold.
        own_path: endpoints below a ``*`` are told apart by the real path.
    """

    __slots__ = ("costs", "failed", "key", "label", "match", "ok", "own_path", "rule", "tests")

    def __init__(
        self, rule: Route, match: str, label: str, key: str, limits: Mapping[str, LimitRule], every: Costs
    ) -> None:
        self.rule = rule
        self.match = match
        self.label = label
        self.key = key
        common = {} if match.startswith("WS") else every
        self.costs = {**spread(common, limits), **spread(rule.cost, limits)}
        self.ok = spread(rule.ok, limits)
        self.failed = spread(rule.failed, limits)
        self.tests: tuple[Test, ...] = (
            tuple(_test(name, wanted) for name, wanted in rule.where.items()) if isinstance(rule, RouteRule) else ()
        )
        self.own_path = not match or match.endswith("*")

    def admits(self, call: Call) -> bool:
        return all(test(call) for test in self.tests)


class Router:
    """Finds the route of a call: one look-up for a plain path, a short walk for templates."""

    __slots__ = ("default", "labels", "plain", "templates")

    def __init__(self, file: File) -> None:
        self.default = CompiledRoute(file.default, "", "", "$.default", file.limits, file.every)
        self.labels: dict[str, CompiledRoute] = {"": self.default}
        self.plain: dict[tuple[str, str], tuple[CompiledRoute, ...]] = {}
        self.templates: dict[str, list[tuple[tuple[str, ...], tuple[CompiledRoute, ...]]]] = {}
        grouped: dict[str, list[CompiledRoute]] = {}
        for index, rule in enumerate(file.routes):
            for match in listed(rule.match):
                routes = grouped.setdefault(match, [])
                label = f"{match} #{len(routes) + 1}" if routes else match
                route = CompiledRoute(rule, match, label, f"$.routes[{index}]", file.limits, file.every)
                routes.append(route)
                self.labels[label] = route
        for match, routes in grouped.items():
            method, _, path = match.partition(" ")
            if "{" in path or path.endswith("*"):
                self.templates.setdefault(method, []).append((tuple(path.split("/")), tuple(routes)))
            else:
                self.plain[method, path] = tuple(routes)

    def find(self, call: Call) -> CompiledRoute:
        """The route of `call`; the default one if none knows it."""
        method = call.method.upper()
        candidates = self.plain.get((method, call.path)) or self._template(method, call.path)
        return next((route for route in candidates if route.admits(call)), self.default)

    def _template(self, method: str, path: str) -> tuple[CompiledRoute, ...]:
        segments = path.split("/")
        best: tuple[int, tuple[CompiledRoute, ...]] = (-1, ())
        for template, routes in self.templates.get(method, ()):
            fixed = _fit(template, segments)
            if fixed > best[0]:
                best = (fixed, routes)
        return best[1]


def listed(texts: str | list[str]) -> list[str]:
    """One text or several, as a list; nothing for an empty one."""
    return ([texts] if texts else []) if isinstance(texts, str) else texts


def limit_of(name: str, rule: LimitRule, tier: str = "") -> Limit:
    """The ledger's limit of what the file says, for customers of one `tier`; "" for all others."""
    chosen = rule.tiers[tier] if tier else rule.capacity
    capacity, refill = (chosen.capacity, chosen.refill) if isinstance(chosen, Tier) else (chosen, 0)
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


def spread(costs: Costs, limits: Mapping[str, LimitRule]) -> dict[str, Amount]:
    """Costs by limit name. One keyed by a unit falls on every limit of it; one keyed by a limit's name wins."""
    result: dict[str, Amount] = {}
    for word, cost in costs.items():
        if word not in limits:
            amount = compile_cost(cost)
            result.update({name: amount for name, limit in limits.items() if limit.unit == word})
    result.update({word: compile_cost(cost) for word, cost in costs.items() if word in limits})
    return result


def _fit(template: tuple[str, ...], segments: list[str]) -> int:
    """How many fixed segments match, -1 if it does not fit: the most precise template wins."""
    rest = template[-1] == "*"
    if len(segments) < len(template) if rest else len(segments) != len(template):
        return -1
    fixed = 0
    for wanted, segment in zip(template[:-1] if rest else template, segments, strict=False):
        if wanted == segment:
            fixed += 1
        elif not wanted.startswith("{"):
            return -1
    return fixed


def _test(name: str, wanted: Scalar | list[Scalar] | Condition) -> Test:
    read = reader(name)
    condition = (
        wanted if isinstance(wanted, Condition) else Condition(one_of=wanted if isinstance(wanted, list) else [wanted])
    )
    accepted = {text(each) for each in condition.one_of}
    shape = re.compile(condition.matches) if condition.matches else None

    def holds(call: Call) -> bool:
        value = read(call)
        if condition.present is not None and (value is not None) != condition.present:
            return False
        if shape is not None:
            values = value if isinstance(value, list) else [] if value is None else [value]
            if not values or not all(shape.search(text(each)) for each in values):
                return False
        if condition.count:
            value = None if value is None else count(value)
        if accepted and (value is None or text(value) not in accepted):
            return False
        size = number(value)
        if condition.least is not None and (size is None or size < condition.least):
            return False
        return condition.most is None or (size is not None and size <= condition.most)

    return holds
