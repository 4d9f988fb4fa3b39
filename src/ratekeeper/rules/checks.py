"""Checks that a rule file makes sense: long, because it looks at every table of the format.

Names must exist, routes must differ, numbers must have a source, and costs must be stated for every call.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Final

from ratekeeper.errors import RuleError
from ratekeeper.ledger.limit import Window
from ratekeeper.rules.numbers import limit_of
from ratekeeper.rules.reading import listed
from ratekeeper.rules.routing import references
from ratekeeper.rules.schema import (
    Ban,
    Condition,
    Cost,
    Costs,
    File,
    Hints,
    LimitHeaders,
    LimitRule,
    Lookup,
    Owner,
    Refusal,
    Retry,
    Route,
    Rule,
    Signing,
    Socket,
    Term,
)
from ratekeeper.rules.scopes import BUILT_IN
from ratekeeper.rules.times import duration

__all__ = ["check", "refuse_unready", "unready"]

_METHODS: Final = {
    *("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"),
    *("WS", "WS-CONNECT", "WS-SEND", "WS-SUBSCRIBE"),
}
_HEADS: Final = ("by", "count", "has", "sum", "largest", "estimate", "age")


class _Wrong(Exception):
    """What is wrong at a key, and the remedy."""

    def __init__(self, key: str, what: str, remedy: str) -> None:
        super().__init__(what)
        self.key, self.what, self.remedy = key, what, remedy


def check(file: File, path: str = "") -> None:
    """Raise `RuleError` for the first thing in `file` that cannot be meant; `path` names the file in it."""
    try:
        for part in (_texts, _head, _limits, _routes, _refusals, _learning, _handling):
            part(file)
    except _Wrong as wrong:
        raise RuleError(f"{wrong.what}. {wrong.remedy}", file=path, key=wrong.key) from None


def unready(file: File) -> list[tuple[str, str]]:
    """What `file` needs that this version cannot evaluate: (key, what). Only what would be unsafe to ignore."""
    found: list[tuple[str, str]] = []
    for name, limit in file.limits.items():
        later = ("zone", "calendar", "hours")
        found += [(f"$.limits.{name}.{field}", field) for field in later if getattr(limit, field)]
    settings = [kind for kind, owner in file.owners.items() if owner.setting and kind != "account"]
    found += [(f"$.owners.{kind}.setting", "setting") for kind in settings]
    for key, costs, _ in _costs(file):
        for word, cost in costs.items():
            found += [(f"{key}.{word}", "estimate") for term in _terms(cost) if term.estimate]
    return found + ([("$.ramp", "ramp")] if file.ramp is not None else [])


def refuse_unready(file: File, path: str = "") -> None:
    """Raise `RuleError` if `file` needs what this version cannot evaluate: ignoring it could break a limit."""
    for key, what in unready(file):
        remedy = "Express it with what is there, or wait for the release that brings it"
        raise RuleError(f"`{what}` is part of the format, but not evaluated yet. {remedy}", file=path, key=key)


# --- single values ------------------------------------------------------------------------------------------------


def _reference(key: str, name: str) -> None:
    """A reference names something that exists in its root."""
    root, dot, rest = name.partition(".")
    if (root == "header" and (not rest or rest != rest.lower())) or (dot and not rest):
        raise _Wrong(key, f"{name!r} names nothing", f"Write {root}.NAME, in lower case for headers")
    if dot and root not in {"header", "answer", "body"}:
        raise _Wrong(key, f"{name!r} has an unknown root", "Use a parameter's name, body.…, header.… or answer.…")


def _duration(key: str, text: str, least: int = 1, examples: str = "500ms, 10s, 1m, 1h30m, 7d") -> None:
    """Empty, or a duration of at least `least` ns."""
    try:
        if text and duration(text) < least:
            raise ValueError
    except ValueError:
        raise _Wrong(key, f"{text!r} is not a duration", f"Write for example {examples}") from None


def _regex(key: str, text: str) -> None:
    """A regular expression that compiles."""
    try:
        re.compile(text)
    except re.error as error:
        raise _Wrong(
            key, f"not a regular expression: {error}", "Correct it; in TOML put it in 'single quotes'"
        ) from None


def _header(key: str, name: str) -> None:
    """A header name, which is looked up in lower case."""
    _need(name == name.lower(), key, f"{name!r} has capital letters", "Write header names in lower case")


def _need(good: object, key: str, what: str, remedy: str) -> None:
    if not good:
        raise _Wrong(key, what, remedy)


def _known(key: str, word: str, known: Iterable[str], what: str) -> None:
    """A word that is one of those that the file knows."""
    if word not in known:
        raise _Wrong(key, f"{what} {word!r}", f"Use one of {_words(known)}")


def _words(names: Iterable[str]) -> str:
    """A sorted list for an error message."""
    return ", ".join(sorted(names))


_TEXTS: Final[dict[type[Rule], dict[str, Callable[[str, str], None]]]] = {
    Owner: {"header": _header, "value": _reference, "pattern": _regex},
    LimitRule: {"period": _duration, "origin": _duration},
    LimitHeaders: dict.fromkeys(("used", "remaining", "limit", "reset", "cost"), _header),
    Condition: {"matches": _regex},
    Refusal: {"text": _regex, "interval": _regex, "hold": _duration},
    Retry: {"header": _header, "text": _regex},
    Hints: {"shortest": _duration, "longest": _duration},
    Ban: {"first": _duration, "longest": _duration},
    Lookup: {"once": _reference},
    Signing: {
        **dict.fromkeys(("timestamp", "signature", "window"), _reference),
        **dict.fromkeys(("default", "longest"), _duration),
    },
    Socket: dict.fromkeys(("lifetime", "ping_every", "drop_after"), _duration),
}
"""What the texts in each table must be, by field."""


def _texts(file: File) -> None:
    for key, table in _tables(file):
        for field, judge in _TEXTS[type(table)].items():
            for text in listed(getattr(table, field)):
                judge(f"{key}.{field}", text)


def _tables(file: File) -> Iterator[tuple[str, Rule]]:
    """Every table that has texts to look at."""
    yield from ((f"$.owners.{kind}", owner) for kind, owner in file.owners.items())
    for name, limit in file.limits.items():
        yield f"$.limits.{name}", limit
        yield f"$.limits.{name}.headers", limit.headers
    for index, route in enumerate(file.routes):
        for name, wanted in route.where.items():
            if isinstance(wanted, Condition):
                yield f"$.routes[{index}].where.{name}", wanted
    hints = [("$.hints", file.hints.retry)]
    for index, refusal in enumerate(file.refusals):
        yield f"$.refusals[{index}]", refusal
        hints.append((f"$.refusals[{index}]", refusal.retry or []))
    for key, retry in hints:
        yield from ((f"{key}.retry[{index}]", hint) for index, hint in enumerate(retry))
    yield "$.hints", file.hints
    yield "$.ban", file.ban
    if file.signing is not None:
        yield "$.signing", file.signing
    yield from ((f"$.socket.{kind}", socket) for kind, socket in file.socket.items())
    yield from ((f"$.lookups[{index}]", lookup) for index, lookup in enumerate(file.lookups))


# --- tables -------------------------------------------------------------------------------------------------------


def _head(file: File) -> None:
    for index, host in enumerate(file.hosts):
        plain = host == host.lower() and not {"/", ":"} & set(host)
        remedy = "Write it in lower case, without scheme, port and path"
        _need(plain, f"$.hosts[{index}]", f"{host!r} is not a plain host name", remedy)
    for kind, owner in file.owners.items():
        key = f"$.owners.{kind}"
        _need(
            kind not in {"ip", "endpoint", "connection"}, key, f"the owner {kind!r} is built in", "Choose another name"
        )
        told = sum(map(bool, (owner.header, owner.value, owner.setting)))
        _need(told == 1, key, "an owner needs exactly one of header, value, setting", "Keep one of them")
        shown = kind not in {"account", "key"} or owner.header or owner.setting == "account"
        _need(shown, key, f"{kind!r} is told by a secret", "Name the request headers that hold it in `header`")


def _limits(file: File) -> None:
    _need(file.limits, "$.limits", "there is no limit", "Add at least one table [limits.NAME]")
    for name, rule in file.limits.items():
        key = f"$.limits.{name}"
        _sourced(file, key, rule.source, file.source)
        _window(file, rule, key)
        _scope(file, rule, f"{key}.scope")
        try:
            for tier in ("", *rule.tiers):
                limit_of(name, rule, tier)
        except ValueError as error:
            raise _Wrong(key, str(error), "Correct the numbers") from None


def _window(file: File, rule: LimitRule, key: str) -> None:
    what = f"a {rule.window} limit {'has no period' if rule.period else 'needs a period'}"
    fits = bool(rule.period) != (rule.window is Window.SLOTS)
    _need(fits, f"{key}.period", what, 'Write for example period = "1m", or none for slots')
    fits = not rule.refill or rule.window is Window.BUCKET
    _need(fits, f"{key}.refill", "only a bucket refills", 'Write window = "bucket", or leave refill out')
    what, remedy = "nothing says what remains when it is empty", 'Add window = "bucket" and `refill`'
    _need(rule.refill or not rule.lifetime, f"{key}.lifetime", what, remedy)
    fits = not rule.origin or rule.window is Window.FIXED
    _need(fits, f"{key}.origin", "only a fixed window has an origin", 'Write window = "fixed", or leave origin out')
    what, remedy = f"{rule.unit!r} is also the name of a limit", "Rename one: costs could not tell them apart"
    _need(file.limits.get(rule.unit, rule) is rule, f"{key}.unit", what, remedy)


def _scope(file: File, rule: LimitRule, key: str) -> None:
    scope = listed(rule.scope)
    for kind in scope:
        if kind not in BUILT_IN and kind not in file.owners:
            remedy = f"Use one of {_words(BUILT_IN | set(file.owners))}, or add [owners.{kind}]"
            raise _Wrong(key, f"unknown owner {kind!r}", remedy)
        what, remedy = f"nothing says which header tells the {kind}", f"Add [owners.{kind}] with `header`"
        _need(kind not in {"account", "key"} or kind in file.owners, key, what, remedy)
    once = scope and len(set(scope)) == len(scope)
    _need(once, key, "a scope names each kind of owner once", "List every kind one time")


def _routes(file: File) -> None:
    for key, costs, actual in _costs(file):
        _check_costs(file, key, costs, actual=actual)
    _sourced(file, "$.default", file.default.source, file.source)
    seen: set[tuple[str, str]] = set()
    unconditional: dict[str, str] = {}
    for index, rule in enumerate(file.routes):
        key = f"$.routes[{index}]"
        _sourced(file, key, rule.source, file.source)
        _need(rule.match, f"{key}.match", "the route matches nothing", 'Write match = "GET /path"')
        for match in listed(rule.match):
            _match(f"{key}.match", match)
            same = re.sub(r"\{[^}/]*\}", "{}", match)
            free = same not in unconditional and (same, str(rule.where)) not in seen
            what = f"{match!r} is taken by {unconditional.get(same, 'an earlier route')} already"
            _need(free, f"{key}.match", what, "Remove one, or put the one with `where` first")
            if not rule.where:
                unconditional[same] = key
            seen.add((same, str(rule.where)))
        for name, wanted in rule.where.items():
            _reference(f"{key}.where.{name}", name)
            says = wanted not in ([], Condition())
            _need(says, f"{key}.where.{name}", "the condition is empty", "Say what the value must be")


def _match(key: str, match: str) -> None:
    method, blank, place = match.partition(" ")
    if method not in _METHODS or not blank or not place.startswith("/") or " " in place or "*" in place[:-1]:
        remedy = f"Use one of {_words(_METHODS)}, a blank, a path; `*` only as the last segment"
        raise _Wrong(key, f"{match!r} is not METHOD /path", remedy)
    whole = not place.endswith("*") or place.endswith("/*")
    _need(whole, key, f"{match!r}: `*` must be a whole segment", "Write /*")


def _refusals(file: File) -> None:
    units = {limit.unit for limit in file.limits.values()}
    owners = BUILT_IN | set(file.owners) | {"provider", "class"}
    for index, refusal in enumerate(file.refusals):
        key = f"$.refusals[{index}]"
        some = any((refusal.status, refusal.body, refusal.text, refusal.close))
        _need(some, key, "the refusal matches every answer", "Set status, body, text or close")
        told = refusal.body or refusal.text or all(status >= 400 for status in refusal.status)
        _need(told, key, "an answer below 400 is a refusal only by its body", "Add `body` or `text`")
        groups = re.compile(refusal.interval).groups if refusal.interval else 2
        remedy = r"Write one for the number, one for the word: per (\d+) (\w+)"
        _need(groups == 2, f"{key}.interval", "two groups are needed", remedy)
        for word in refusal.limits:
            _known(f"{key}.limits", word, units | set(file.limits), "no limit has the name or the unit")
        if refusal.block:
            _known(f"{key}.block", refusal.block, owners, "unknown owner")
            ends = refusal.hold or refusal.outcome == "banned"
            what, remedy = "nothing says for how long when no hint does", 'Add for example hold = "30s"'
            _need(ends, f"{key}.hold", what, remedy)
        _retry(f"{key}.retry", refusal.retry or [])
    _retry("$.hints.retry", file.hints.retry)


def _retry(key: str, hints: list[Retry]) -> None:
    for index, hint in enumerate(hints):
        one = sum(map(bool, (hint.header, hint.body, hint.text))) == 1
        _need(one, f"{key}[{index}]", "a hint names exactly one of header, body, text", "Keep one of them")
        grouped = not hint.text or re.compile(hint.text).groups
        remedy = r"Write for example until (\d{13})"
        _need(grouped, f"{key}[{index}].text", "a group around the instant is needed", remedy)


def _learning(file: File) -> None:
    units = {limit.unit for limit in file.limits.values()}
    for index, learn in enumerate(file.learn):
        key = f"$.learn[{index}]"
        _need(learn.rows is not None or learn.clock, key, "there is nothing to learn", "Set `rows` or `clock`")
        one = learn.rows is None or bool(learn.type) != bool(learn.limit_name)
        _need(one, key, "the rows need exactly one of type, limit_name", "Say how to tell which limit is meant")
        for word in learn.units.values():
            _known(f"{key}.units", word, units, "no limit counts")
        if learn.limit_name:
            _known(f"{key}.limit_name", learn.limit_name, file.limits, "unknown limit")


def _handling(file: File) -> None:
    """``[keep]``, ``apart``, ``[[merges]]``, ``[[lookups]]``."""
    routes = {match for route in file.routes for match in listed(route.match)}
    for pattern, span in file.keep.items():
        key = f"$.keep.{pattern}"
        fits = any(fnmatchcase(each, pattern) for each in routes)
        _need(fits, key, f"{pattern!r} fits no route", "Write a route's `match`, or shell wildcards over several")
        _duration(key, span or " ", 0, "30s, 1h, or 0s for never")
    for index, name in enumerate(file.apart):
        _header(f"$.apart[{index}]", name)
    for index, merge in enumerate(file.merges):
        key = f"$.merges[{index}]"
        _need(merge.match.startswith("GET "), f"{key}.match", "only reads can be merged", "Write GET /path")
        _known_route(f"{key}.match", merge.match, routes)
        if merge.to:
            _known_route(f"{key}.to", f"GET {merge.to}", routes)
        _sourced(file, key, merge.source)
    for index, lookup in enumerate(file.lookups):
        _lookup(f"$.lookups[{index}]", lookup, routes)
        _sourced(file, f"$.lookups[{index}]", lookup.source)


def _lookup(key: str, lookup: Lookup, routes: set[str]) -> None:
    for match in listed(lookup.match):
        _known_route(f"{key}.match", match, routes)
    _known_route(f"{key}.route", lookup.route, routes)
    for name, where in lookup.params.items():
        if not (len(where) > 2 and where[0] == where[-1] == "'"):
            _reference(f"{key}.params.{name}", where)
    for name in lookup.needed:
        given = name in lookup.params
        _need(given, f"{key}.needed", f"{name!r} is not among `params`", f"Use {_words(lookup.params)}")


def _known_route(key: str, match: str, routes: set[str]) -> None:
    _need(match in routes, key, f"{match!r} is no route of this file", "Write it as in a route's `match`")


def _sourced(file: File, key: str, source: str | list[str], fallback: str | list[str] | None = None) -> None:
    """Tags that exist; where there is a `fallback`, at least one in either."""
    tags = listed(source) or listed(fallback or "")
    remedy = "Name a tag of [sources] here or as the file's `source`"
    _need(tags or fallback is None, f"{key}.source", "the numbers have no source", remedy)
    for tag in tags:
        if tag not in file.sources:
            remedy = f"Add it to [sources], or use one of {_words(file.sources)}"
            raise _Wrong(f"{key}.source", f"unknown source {tag!r}", remedy)


# --- costs --------------------------------------------------------------------------------------------------------


def _costs(file: File) -> Iterator[tuple[str, Costs, bool]]:
    """All costs of a file: key, costs, and whether they are read from the answer."""
    yield "$.every", file.every, False
    rules: list[tuple[str, Route]] = [("$.default", file.default)]
    rules += [(f"$.routes[{index}]", rule) for index, rule in enumerate(file.routes)]
    for key, rule in rules:
        yield f"{key}.cost", rule.cost, False
        yield f"{key}.ok", rule.ok, True
        yield f"{key}.failed", rule.failed, True


def _check_costs(file: File, path: str, costs: Costs, *, actual: bool) -> None:
    for word, cost in costs.items():
        key = f"{path}.{word}"
        if word not in file.limits:
            known = {limit.unit for limit in file.limits.values()} | set(file.limits)
            _known(key, word, known, "no limit has the name or the unit")
        for term in _terms(cost):
            _term(key, term)
        for name in references(cost):
            _reference(key, name)
            there, remedy = name.split(".")[0] == "answer", "`cost` reads the call; `ok` and `failed` read answer.…"
            _need(there == actual, key, f"{name!r} cannot be known here", remedy)
        remedy = "Add `missing`, or a number at the end of the list"
        _need(actual or _total(cost), key, "the cost is not stated for every call", remedy)


def _term(key: str, term: Term) -> None:
    heads = [field for field in _HEADS if getattr(term, field)]
    what, remedy = (
        f"a cost names exactly one of {', '.join(_HEADS)}",
        "Nest terms in a list, sum or largest to combine them",
    )
    _need(len(heads) == 1, key, what, remedy)
    edges = [edge for edge, _ in term.bands]
    rise = edges == sorted(set(edges))
    _need(rise, key, "the edges of `bands` must rise", "Sort them; an edge belongs to its own band")
    scales = [bool(term.bands), bool(term.cases), term.each is not None]
    head = heads[0]
    wanted = {"by": 1, "count": 1, "age": 1, "has": 0, "sum": 0, "largest": 0, "estimate": sum(scales)}[head]
    what = f"`{head}` goes with {'one of bands, cases, each' if wanted else 'no bands, cases or each'}"
    _need(sum(scales) == wanted and (head == "by" or not term.cases), key, what, "Keep one scale")
    both = (term.cost is not None) == (head == "has")
    _need(both, key, "`cost` and `has` belong together", "Write {has = …, cost = …, missing = …}")


def _total(cost: Cost) -> bool:
    """Whether it is stated for every call."""
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
