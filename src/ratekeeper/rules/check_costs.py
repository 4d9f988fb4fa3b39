"""Whether costs mean something, and what a file asks for that this version cannot evaluate."""

from __future__ import annotations

from collections.abc import Iterator

from ratekeeper.errors import RuleError
from ratekeeper.rules.check_values import Wrong, reference, words
from ratekeeper.rules.routing import references
from ratekeeper.rules.schema import Cost, Costs, File, Term

__all__ = ["check_costs", "refuse_unready", "unready"]

_HEADS = ("by", "count", "has", "sum", "largest", "estimate", "age")


def check_costs(file: File, key: str, costs: Costs, *, actual: bool = False) -> None:
    units = {limit.unit for limit in file.limits.values()}
    for word, cost in costs.items():
        if word not in file.limits and word not in units:
            raise Wrong(
                f"{key}.{word}",
                f"no limit has the name or the unit {word!r}",
                f"Use one of {words(units | set(file.limits))}",
            )
        for term in _terms(cost):
            _term(f"{key}.{word}", term)
        for name in references(cost):
            reference(f"{key}.{word}", name)
            if (name.partition(".")[0] == "answer") != actual:
                raise Wrong(
                    f"{key}.{word}",
                    f"{name!r} cannot be known here",
                    "`cost` reads the call; `ok` and `failed` read answer.…",
                )
        if not actual and not _total(cost):
            raise Wrong(
                f"{key}.{word}",
                "the cost is not stated for every call",
                "Add `missing`, or a number at the end of the list",
            )


def _term(key: str, term: Term) -> None:
    heads = [field for field in _HEADS if getattr(term, field)]
    if len(heads) != 1:
        raise Wrong(
            key,
            f"a cost names exactly one of {', '.join(_HEADS)}",
            "Nest terms in a list, sum or largest to combine them",
        )
    edges = [edge for edge, _ in term.bands]
    if edges != sorted(set(edges)):
        raise Wrong(key, "the edges of `bands` must rise", "Sort them; an edge belongs to its own band")
    scales = [bool(term.bands), bool(term.cases), term.each is not None]
    head = heads[0]
    wanted = {"by": 1, "count": 1, "age": 1, "has": 0, "sum": 0, "largest": 0, "estimate": sum(scales)}[head]
    if sum(scales) != wanted or (term.cases and head != "by"):
        raise Wrong(
            key,
            f"`{head}` goes with {'one of bands, cases, each' if wanted else 'no bands, cases or each'}",
            "Keep one scale",
        )
    if (term.cost is not None) != (head == "has"):
        raise Wrong(key, "`cost` and `has` belong together", "Write {has = …, cost = …, missing = …}")


def _total(cost: Cost) -> bool:
    if isinstance(cost, int):
        return True
    if isinstance(cost, list):
        return bool(cost) and _total(cost[-1])
    if cost.sum or cost.largest:
        return any(map(_total, cost.sum + cost.largest))
    return cost.missing is not None or bool(cost.estimate or cost.age)


def _terms(cost: Cost | list[Cost]) -> Iterator[Term]:
    if isinstance(cost, list):
        for each in cost:
            yield from _terms(each)
    elif isinstance(cost, Term):
        yield cost
        yield from _terms(cost.sum)
        yield from _terms(cost.largest)


def _all_costs(file: File) -> Iterator[tuple[str, Costs]]:
    yield "$.every", file.every
    for key, rule in [("$.default", file.default), *((f"$.routes[{i}]", rule) for i, rule in enumerate(file.routes))]:
        for field in ("cost", "ok", "failed"):
            yield f"{key}.{field}", getattr(rule, field)


def unready(file: File) -> list[tuple[str, str]]:
    """What `file` needs that this version cannot evaluate: (key, what). Only what would be unsafe to ignore."""
    found: list[tuple[str, str]] = []
    for name, limit in file.limits.items():
        later = ("zone", "calendar", "hours")
        found += [(f"$.limits.{name}.{field}", field) for field in later if getattr(limit, field)]
    settings = [kind for kind, owner in file.owners.items() if owner.setting and kind != "account"]
    found += [(f"$.owners.{kind}.setting", "setting") for kind in settings]
    for key, costs in _all_costs(file):
        for word, cost in costs.items():
            for term in _terms(cost):
                found += [(f"{key}.{word}", field) for field in ("estimate",) if getattr(term, field)]
    if file.ramp is not None:
        found.append(("$.ramp", "ramp"))
    return found


def refuse_unready(file: File, path: str = "") -> None:
    """Raise `RuleError` if `file` needs what this version cannot evaluate: ignoring it could break a limit."""
    for key, what in unready(file):
        remedy = "Express it with what is there, or wait for the release that brings it"
        raise RuleError(f"`{what}` is part of the format, but not evaluated yet. {remedy}", file=path, key=key)
