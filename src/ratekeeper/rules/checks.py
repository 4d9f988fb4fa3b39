"""Whether a rule file means something: long, because it looks at every table of the format.

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
from ratekeeper.rules.routing import listed, references
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
        _texts(file, "$")
        for part in (_head, _limits, _routes, _refusals, _learning, _handling):
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
        raise _Wrong(key, f"{name!r} names nothing", "Write $.NAME, in lower case for headers")
    if dot and root not in {"header", "answer", "body"}:
        raise _Wrong(key, f"{name!r} has an unknown root", "Use a parameter's name, body.…, header.… or answer.…")


def _duration(key: str, text: str, least: int = 1, examples: str = "500ms, 10s, 1m, 1h30m, 7d") -> None:
    """Empty, or a duration of at least so many ns."""
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
    if name != name.lower():
        raise _Wrong(key, f"{name!r} has capital letters", "Write header names in lower case")


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


def _texts(value: object, key: str) -> None:
    """Look at every text below `value` that `_TEXTS` names. Costs are left to `_check_costs`."""
    inside: Iterable[tuple[str, object]] = ()
    if isinstance(value, Rule):
        judges = _TEXTS.get(type(value), {})
        for field, judge in judges.items():
            for text in listed(getattr(value, field)):
                judge(f"{key}.{field}", text)
        if not isinstance(value, Term):
            inside = ((f".{field}", getattr(value, field)) for field in value.__struct_fields__ if field not in judges)
    elif isinstance(value, dict):
        inside = ((f".{name}", each) for name, each in value.items())
    elif isinstance(value, list):
        inside = ((f"[{index}]", each) for index, each in enumerate(value))
    for step, each in inside:
        if isinstance(each, Rule | dict | list):
            _texts(each, key + step)


# --- tables -------------------------------------------------------------------------------------------------------


def _head(file: File) -> None:
    for index, host in enumerate(file.hosts):
        if host != host.lower() or "/" in host or ":" in host:
            raise _Wrong(
                f"$.hosts[{index}]",
                f"{host!r} is not a plain host name",
                "Write it in lower case, without scheme, port and path",
            )
    for kind, owner in file.owners.items():
        key = f"$.owners.{kind}"
        if kind in {"ip", "endpoint", "connection"}:
            raise _Wrong(key, f"the owner {kind!r} is built in", "Choose another name")
        if sum(map(bool, (owner.header, owner.value, owner.setting))) != 1:
            raise _Wrong(key, "an owner needs exactly one of header, value, setting", "Keep one of them")
        if kind in {"account", "key"} and not owner.header and owner.setting != "account":
            raise _Wrong(key, f"{kind!r} is told by a secret", "Name the request headers that hold it in `header`")


def _limits(file: File) -> None:
    if not file.limits:
        raise _Wrong("$.limits", "there is no limit", "Add at least one table [limits.NAME]")
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
    if bool(rule.period) == (rule.window is Window.SLOTS):
        need = "has no period" if rule.period else "needs a period"
        raise _Wrong(
            f"{key}.period", f"a {rule.window} limit {need}", 'Write for example period = "1m", or none for slots'
        )
    if rule.refill and rule.window is not Window.BUCKET:
        raise _Wrong(f"{key}.refill", "only a bucket refills", 'Write window = "bucket", or leave refill out')
    if rule.lifetime and not rule.refill:
        raise _Wrong(
            f"{key}.lifetime", "nothing says what remains when it is empty", 'Add window = "bucket" and `refill`'
        )
    if rule.origin and rule.window is not Window.FIXED:
        raise _Wrong(
            f"{key}.origin", "only a fixed window has an origin", 'Write window = "fixed", or leave origin out'
        )
    if rule.unit in file.limits and file.limits[rule.unit] is not rule:
        remedy = "Rename one: costs could not tell them apart"
        raise _Wrong(f"{key}.unit", f"{rule.unit!r} is also the name of a limit", remedy)


def _scope(file: File, rule: LimitRule, key: str) -> None:
    scope = listed(rule.scope)
    for kind in scope:
        if kind not in BUILT_IN and kind not in file.owners:
            remedy = f"Use one of {_words(BUILT_IN | set(file.owners))}, or add [owners.{kind}]"
            raise _Wrong(key, f"unknown owner {kind!r}", remedy)
        if kind in {"account", "key"} and kind not in file.owners:
            raise _Wrong(key, f"nothing says which header tells the {kind}", f"Add [owners.{kind}] with `header`")
    if not scope or len(set(scope)) != len(scope):
        raise _Wrong(key, "a scope names each kind of owner once", "List every kind one time")


def _routes(file: File) -> None:
    for key, costs, actual in _costs(file):
        _check_costs(file, key, costs, actual=actual)
    _sourced(file, "$.default", file.default.source, file.source)
    seen: set[tuple[str, str]] = set()
    unconditional: dict[str, str] = {}
    for index, rule in enumerate(file.routes):
        key = f"$.routes[{index}]"
        _sourced(file, key, rule.source, file.source)
        if not rule.match:
            raise _Wrong(f"{key}.match", "the route matches nothing", 'Write match = "GET /path"')
        for match in listed(rule.match):
            _match(f"{key}.match", match)
            same = re.sub(r"\{[^}/]*\}", "{}", match)
            if same in unconditional or (same, str(rule.where)) in seen:
                first = unconditional.get(same, "an earlier route")
                remedy = "Remove one, or put the one with `where` first"
                raise _Wrong(f"{key}.match", f"{match!r} is taken by {first} already", remedy)
            if not rule.where:
                unconditional[same] = key
            seen.add((same, str(rule.where)))
        for name, wanted in rule.where.items():
            _reference(f"{key}.where.{name}", name)
            if wanted in ([], Condition()):
                raise _Wrong(f"{key}.where.{name}", "the condition is empty", "Say what the value must be")


def _match(key: str, match: str) -> None:
    method, blank, place = match.partition(" ")
    if method not in _METHODS or not blank or not place.startswith("/") or " " in place or "*" in place[:-1]:
        remedy = f"Use one of {_words(_METHODS)}, a blank, a path; `*` only as the last segment"
        raise _Wrong(key, f"{match!r} is not METHOD /path", remedy)
    if place.endswith("*") and not place.endswith("/*"):
        raise _Wrong(key, f"{match!r}: `*` must be a whole segment", "Write /*")


def _refusals(file: File) -> None:
    units = {limit.unit for limit in file.limits.values()}
    owners = BUILT_IN | set(file.owners) | {"provider", "class"}
    for index, refusal in enumerate(file.refusals):
        key = f"$.refusals[{index}]"
        if not any((refusal.status, refusal.body, refusal.text, refusal.close)):
            raise _Wrong(key, "the refusal matches every answer", "Set status, body, text or close")
        if any(status < 400 for status in refusal.status) and not (refusal.body or refusal.text):
            raise _Wrong(key, "an answer below 400 is a refusal only by its body", "Add `body` or `text`")
        if refusal.interval and re.compile(refusal.interval).groups != 2:
            remedy = r"Write one for the number, one for the word: per (\d+) (\w+)"
            raise _Wrong(f"{key}.interval", "two groups are needed", remedy)
        for word in refusal.limits:
            _known(f"{key}.limits", word, units | set(file.limits), "no limit has the name or the unit")
        if refusal.block:
            _known(f"{key}.block", refusal.block, owners, "unknown owner")
            if not refusal.hold and refusal.outcome != "banned":
                remedy = 'Add for example hold = "30s"'
                raise _Wrong(f"{key}.hold", "nothing says for how long when no hint does", remedy)
        _retry(f"{key}.retry", refusal.retry or [])
    _retry("$.hints.retry", file.hints.retry)


def _retry(key: str, hints: list[Retry]) -> None:
    for index, hint in enumerate(hints):
        if sum(map(bool, (hint.header, hint.body, hint.text))) != 1:
            raise _Wrong(f"{key}[{index}]", "a hint names exactly one of header, body, text", "Keep one of them")
        if hint.text and re.compile(hint.text).groups < 1:
            remedy = r"Write for example until (\d{13})"
            raise _Wrong(f"{key}[{index}].text", "a group around the instant is needed", remedy)


def _learning(file: File) -> None:
    units = {limit.unit for limit in file.limits.values()}
    for index, learn in enumerate(file.learn):
        key = f"$.learn[{index}]"
        if learn.rows is None and not learn.clock:
            raise _Wrong(key, "there is nothing to learn", "Set `rows` or `clock`")
        if learn.rows is not None and bool(learn.type) == bool(learn.limit_name):
            raise _Wrong(key, "the rows need exactly one of type, limit_name", "Say how to tell which limit is meant")
        for word in learn.units.values():
            _known(f"{key}.units", word, units, "no limit counts")
        if learn.limit_name:
            _known(f"{key}.limit_name", learn.limit_name, file.limits, "unknown limit")


def _handling(file: File) -> None:
    """``[keep]``, ``apart``, ``[[merges]]``, ``[[lookups]]``."""
    routes = {match for route in file.routes for match in listed(route.match)}
    for pattern, span in file.keep.items():
        if not any(fnmatchcase(each, pattern) for each in routes):
            remedy = "Write a route's `match`, or shell wildcards over several"
            raise _Wrong(f"$.keep.{pattern}", f"{pattern!r} fits no route", remedy)
        _duration(f"$.keep.{pattern}", span or " ", 0, "30s, 1h, or 0s for never")
    for index, name in enumerate(file.apart):
        _header(f"$.apart[{index}]", name)
    for index, merge in enumerate(file.merges):
        key = f"$.merges[{index}]"
        if not merge.match.startswith("GET "):
            raise _Wrong(f"{key}.match", "only reads can be merged", "Write GET /path")
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
        if name not in lookup.params:
            raise _Wrong(f"{key}.needed", f"{name!r} is not among `params`", f"Use {_words(lookup.params)}")


def _known_route(key: str, match: str, routes: set[str]) -> None:
    if match not in routes:
        raise _Wrong(key, f"{match!r} is no route of this file", "Write it as in a route's `match`")


def _sourced(file: File, key: str, source: str | list[str], fallback: str | list[str] | None = None) -> None:
    """Tags that exist; where there is a `fallback`, at least one in either."""
    tags = listed(source) or listed(fallback or "")
    if not tags and fallback is not None:
        remedy = "Name a tag of [sources] here or as the file's `source`"
        raise _Wrong(f"{key}.source", "the numbers have no source", remedy)
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
            if (name.partition(".")[0] == "answer") != actual:
                remedy = "`cost` reads the call; `ok` and `failed` read answer.…"
                raise _Wrong(key, f"{name!r} cannot be known here", remedy)
        if not actual and not _total(cost):
            remedy = "Add `missing`, or a number at the end of the list"
            raise _Wrong(key, "the cost is not stated for every call", remedy)


def _term(key: str, term: Term) -> None:
    heads = [field for field in _HEADS if getattr(term, field)]
    if len(heads) != 1:
        remedy = "Nest terms in a list, sum or largest to combine them"
        raise _Wrong(key, f"a cost names exactly one of {', '.join(_HEADS)}", remedy)
    edges = [edge for edge, _ in term.bands]
    if edges != sorted(set(edges)):
        raise _Wrong(key, "the edges of `bands` must rise", "Sort them; an edge belongs to its own band")
    scales = [bool(term.bands), bool(term.cases), term.each is not None]
    head = heads[0]
    wanted = {"by": 1, "count": 1, "age": 1, "has": 0, "sum": 0, "largest": 0, "estimate": sum(scales)}[head]
    if sum(scales) != wanted or (term.cases and head != "by"):
        scale = "one of bands, cases, each" if wanted else "no bands, cases or each"
        raise _Wrong(key, f"`{head}` goes with {scale}", "Keep one scale")
    if (term.cost is not None) != (head == "has"):
        raise _Wrong(key, "`cost` and `has` belong together", "Write {has = …, cost = …, missing = …}")


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
