"""Costs: from what a rule file writes to a number, or to a function of the call that gives one."""

from __future__ import annotations

from collections.abc import Callable

from ratekeeper.rules.call import Call
from ratekeeper.rules.reading import Reader, count, number, reader, text
from ratekeeper.rules.schema import Cost, Term

__all__ = ["Amount", "compile_cost", "evaluate", "references"]

Amount = int | Callable[[Call], int | None]
"""A constant, or a function of the call; None where no term applies."""


def evaluate(amount: Amount, call: Call) -> int | None:
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
        # When an order was placed is known to whoever placed it, which may be another program: the dearest is charged.
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
    def first(call: Call) -> int | None:
        for amount in amounts:
            value = evaluate(amount, call)
            if value is not None:
                return value
        return None

    return first


def _together(amounts: list[Amount], join: Callable[[list[int]], int]) -> Amount:
    def together(call: Call) -> int | None:
        values = [value for amount in amounts if (value := evaluate(amount, call)) is not None]
        return join(values) if values else None

    return together


def _multiplied(amount: Amount, read: Reader) -> Amount:
    def multiplied(call: Call) -> int | None:
        value = evaluate(amount, call)
        factor = number(read(call))
        return value if value is None or factor is None else value * max(factor, 0)

    return multiplied


def _presence(read: Reader, present: int, missing: int | None) -> Amount:
    return lambda call: missing if read(call) is None else present


def _case(read: Reader, term: Term) -> Amount:
    cases = term.cases
    other = max(cases.values()) if term.other is None else term.other

    def case(call: Call) -> int | None:
        value = read(call)
        return term.missing if value is None else cases.get(text(value), other)

    return case


def _scaled(read: Reader, measure: Callable[[object], int | None], term: Term) -> Amount:
    scale = _bands(term) if term.bands else _line(term)
    # A value that is no number is taken for the dearest: too much is refunded by feedback, too little is a refusal.
    dearest = max([each for _, each in term.bands] + [term.above or 0]) if term.bands else (term.max or term.base)

    def scaled(call: Call) -> int | None:
        value = read(call)
        if value is None:
            return term.missing
        size = measure(value)
        return dearest if size is None else scale(size)

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
