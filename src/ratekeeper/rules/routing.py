"""Finds the route of a call, and what it costs. A rule file is compiled once; all its providers share the result."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from ratekeeper.rules.call import Request
from ratekeeper.rules.reading import Reader, count, listed, number, reader, text
from ratekeeper.rules.schema import Condition, Cost, Costs, File, LimitRule, Route, RouteRule, Scalar, Term

__all__ = [
    "Amount",
    "CompiledRoute",
    "Router",
    "compile_cost",
    "evaluate",
    "references",
    "spread",
]

_MOST_KNOWN: Final = 4096
"""Paths whose route is remembered."""
_LONGEST_KNOWN: Final = 120
"""Characters of a path that is remembered."""
_MOST_VALUES: Final = 256
"""Values of one parameter whose cost is remembered."""

Test = Callable[[Request], bool]

Amount = int | Callable[[Request], int | None]
"""A constant, or a function of the call; None where no term applies."""


class CompiledRoute:
    """One route, ready to be asked.

    Attributes:
        label: unique name; the match, with ``#2`` behind where several routes share one.
        rule: what the file says.
        costs: amounts reserved, by limit name.
        ok, failed: actual amounts by limit name, where they differ.
        tests: conditions beyond method and path; all must hold.
        own_path: endpoints below a ``*`` are told apart by the real path.
    """

    __slots__ = ("costs", "failed", "label", "match", "ok", "own_path", "rule", "tests")

    def __init__(self, rule: Route, match: str, label: str, limits: Mapping[str, LimitRule], every: Costs) -> None:
        self.rule = rule
        self.match = match
        self.label = label
        common = {} if match.startswith("WS") else every
        self.costs = {**spread(common, limits), **spread(rule.cost, limits)}
        self.ok = spread(rule.ok, limits)
        self.failed = spread(rule.failed, limits)
        self.tests: tuple[Test, ...] = (
            tuple(_test(name, wanted) for name, wanted in rule.where.items()) if isinstance(rule, RouteRule) else ()
        )
        self.own_path = not match or match.endswith("*")


class Router:
    """Finds the route of a call: one look-up for a plain path, a short walk for templates."""

    __slots__ = ("_fitting", "default", "labels", "plain", "templates")

    def __init__(self, file: File) -> None:
        self.default = CompiledRoute(file.default, "", "", file.limits, file.every)
        self.labels: dict[str, CompiledRoute] = {"": self.default}
        self._fitting: dict[tuple[str, str], tuple[CompiledRoute, ...]] = {}  # of paths seen, the templates that fit
        self.plain: dict[tuple[str, str], tuple[CompiledRoute, ...]] = {}
        self.templates: dict[str, list[tuple[tuple[str, ...], tuple[CompiledRoute, ...]]]] = {}
        grouped: dict[str, list[CompiledRoute]] = {}
        for rule in file.routes:
            for match in listed(rule.match):
                routes = grouped.setdefault(match, [])
                label = f"{match} #{len(routes) + 1}" if routes else match
                route = CompiledRoute(rule, match, label, file.limits, file.every)
                routes.append(route)
                self.labels[label] = route
        for match, routes in grouped.items():
            method, _, path = match.partition(" ")
            if "{" in path or path.endswith("*"):
                self.templates.setdefault(method, []).append((tuple(path.split("/")), tuple(routes)))
            else:
                self.plain[method, path] = tuple(routes)

    def find(self, call: Request) -> CompiledRoute:
        """The route of `call`; the default one if none knows it."""
        method = call.method.upper()
        candidates = self.plain.get((method, call.path)) or self._template(method, call.path)
        for route in candidates:
            for test in route.tests:
                if not test(call):
                    break
            else:
                return route
        return self.default

    def _template(self, method: str, path: str) -> tuple[CompiledRoute, ...]:
        known = self._fitting.get((method, path))
        if known is not None:
            return known
        segments = path.split("/")
        best: tuple[int, tuple[CompiledRoute, ...]] = (-1, ())
        for template, routes in self.templates.get(method, ()):
            fixed = _fit(template, segments)
            if fixed > best[0]:
                best = (fixed, routes)
        if len(path) <= _LONGEST_KNOWN:
            if len(self._fitting) >= _MOST_KNOWN:
                self._fitting.clear()
            self._fitting[method, path] = best[1]
        return best[1]


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

    def holds(call: Request) -> bool:
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
        if condition.least is None and condition.most is None:
            return True
        size = number(value)
        if size is None or (condition.least is not None and size < condition.least):
            return False
        return condition.most is None or size <= condition.most

    return holds


# --- costs ----------------------------------------------------------------------------------------------------------


def evaluate(amount: Amount, call: Request) -> int | None:
    """The units that `call` costs; None if the rule does not say."""
    return amount if isinstance(amount, int) else amount(call)


def compile_cost(cost: Cost) -> Amount:
    """A constant when nothing depends on the call, so that plans of such routes can be made once."""
    if isinstance(cost, int):
        return cost
    if isinstance(cost, list):
        return _first([compile_cost(each) for each in cost])
    amount = _head(cost)
    if cost.times:
        return _multiplied(amount, reader(cost.times))
    return amount


def references(cost: Cost | list[Cost]) -> list[str]:
    """All references that a cost reads."""
    if isinstance(cost, int):
        return []
    if isinstance(cost, list):
        return [name for each in cost for name in references(each)]
    own = [name for name in (cost.by, cost.count, cost.has, cost.times, cost.age) if name]
    return own + references(cost.sum) + references(cost.largest)


def _head(term: Term) -> Amount:
    if term.age:
        # Only the program that placed an order knows its age, and that may be another one: the dearest is charged.
        return max([each for _, each in term.bands] + [term.above or 0, term.missing or 0])
    if term.sum:
        return _together([compile_cost(each) for each in term.sum], sum)
    if term.largest:
        return _together([compile_cost(each) for each in term.largest], max)
    if term.has:
        return _presence(reader(term.has), term.cost or 0, term.missing)
    if term.cases:
        return _case(reader(term.by), term)
    if term.count:
        return _scaled(reader(term.count), count, term)
    return _scaled(reader(term.by), number, term)


def _first(amounts: list[Amount]) -> Amount:
    def first(call: Request) -> int | None:
        for amount in amounts:
            value = evaluate(amount, call)
            if value is not None:
                return value
        return None

    return first


def _together(amounts: list[Amount], join: Callable[[list[int]], int]) -> Amount:
    def together(call: Request) -> int | None:
        values = [value for amount in amounts if (value := evaluate(amount, call)) is not None]
        return join(values) if values else None

    return together


def _multiplied(amount: Amount, read: Reader) -> Amount:
    def multiplied(call: Request) -> int | None:
        value = evaluate(amount, call)
        factor = number(read(call))
        return value if value is None or factor is None else value * max(factor, 0)

    return multiplied


def _presence(read: Reader, present: int, missing: int | None) -> Amount:
    return lambda call: missing if read(call) is None else present


def _case(read: Reader, term: Term) -> Amount:
    cases = term.cases
    other = max(cases.values()) if term.other is None else term.other

    def case(call: Request) -> int | None:
        value = read(call)
        return term.missing if value is None else cases.get(text(value), other)

    return case


def _scaled(read: Reader, measure: Callable[[object], int | None], term: Term) -> Amount:
    scale = _bands(term) if term.bands else _line(term)
    # A value that is no number is taken for the dearest: too much is refunded by feedback, too little is a refusal.
    dearest = max([each for _, each in term.bands] + [term.above or 0]) if term.bands else (term.max or term.base)
    missing = term.missing
    known: dict[str, int] = {}  # programs ask with few different values

    def scaled(call: Request) -> int | None:
        value = read(call)
        if value is None:
            return missing
        plain = isinstance(value, str)
        if plain and value in known:
            return known[value]
        size = measure(value)
        units = dearest if size is None else scale(size)
        if plain and len(value) <= 32 and len(known) < _MOST_VALUES:
            known[value] = units
        return units

    return scaled


def _bands(term: Term) -> Callable[[int], int]:
    bands = term.bands
    above = bands[-1][1] if term.above is None else term.above

    def bands_of(size: int) -> int:
        for edge, units in bands:
            if size <= edge:
                return units
        return above

    return bands_of


def _line(term: Term) -> Callable[[int], int]:
    base, each, per, most = term.base, term.each or 0, term.per, term.max

    def line(size: int) -> int:
        units = base + each * (max(size, 0) // per)
        return units if most is None else min(units, most)

    return line
