"""Checks that a rule file makes sense (long because each table has its check).

Names must exist, routes must differ, numbers must have a source, and costs must be stated for every call.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Any, Final

from ratekeeper.errors import RuleError
from ratekeeper.ledger.limit import Window
from ratekeeper.rules import schema
from ratekeeper.rules.numbers import limit_of
from ratekeeper.rules.reading import BUILT_IN, listed
from ratekeeper.rules.routing import references
from ratekeeper.rules.times import duration

__all__ = ["check", "refuse_unready", "unready"]

_METHODS: Final = frozenset(
    "GET HEAD POST PUT PATCH DELETE OPTIONS WS WS-CONNECT WS-SEND WS-SUBSCRIBE".split()  # noqa: SIM905
)
_HEADS: Final = ("by", "count", "has", "sum", "largest", "estimate", "age")


def check(file: schema.File, path: str = "") -> None:
    """Raise `RuleError` for the first thing in `file` that cannot be meant; `path` names the file in it."""
    try:
        for part in (_each, _head, _limits, _routes, _names, _handling):
            part(file)
    except RuleError as error:
        raise RuleError(error.reason, file=path, key=error.key) from None


def unready(file: schema.File) -> list[tuple[str, str]]:
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


def refuse_unready(file: schema.File, path: str = "") -> None:
    """Raise `RuleError` if `file` needs what this version cannot evaluate: ignoring it could break a limit."""
    for key, what in unready(file):
        remedy = "Express it with what is there, or wait for the release that brings it"
        raise RuleError(f"`{what}` is part of the format, but not evaluated yet. {remedy}", file=path, key=key)


def _need(good: object, key: str, told: str) -> None:
    if not good:
        raise RuleError(told, key=key)


# --- single texts and tables ----------------------------------------------------------------------------------------


def _reference(key: str, name: str) -> None:
    """A reference names something that exists in its root."""
    root, dot, rest = name.partition(".")
    empty = (root == "header" and (not rest or rest != rest.lower())) or (dot and not rest)
    _need(not empty, key, f"{name!r} names nothing. Write {root}.NAME, in lower case for headers")
    told = f"{name!r} has an unknown root. Use a parameter's name, body.…, header.… or answer.…"
    _need(not dot or root in {"header", "answer", "body"}, key, told)


def _duration(key: str, text: str, least: int = 1, examples: str = "500ms, 10s, 1m, 1h30m, 7d") -> None:
    """Empty, or a duration of at least `least` ns."""
    try:
        if text and duration(text) < least:
            raise ValueError
    except ValueError:
        raise RuleError(f"{text!r} is not a duration. Write for example {examples}", key=key) from None


def _regex(key: str, text: str) -> None:
    """A regular expression that compiles."""
    try:
        re.compile(text)
    except re.error as error:
        told = f"not a regular expression: {error}. Correct it; in TOML put it in 'single quotes'"
        raise RuleError(told, key=key) from None


def _header(key: str, name: str) -> None:
    """A header name, which is looked up in lower case."""
    _need(name == name.lower(), key, f"{name!r} has capital letters. Write header names in lower case")


def _known(key: str, word: str, known: Iterable[str], what: str) -> None:
    """A word that is one of those that the file knows."""
    _need(word in known, key, f"{what} {word!r}. Use one of {_words(known)}")


def _words(names: Iterable[str]) -> str:
    """A sorted list for an error message."""
    return ", ".join(sorted(names))


_TEXTS: Final[dict[type[schema.Rule], dict[str, Callable[[str, str], None]]]] = {
    schema.Owner: {"header": _header, "value": _reference, "pattern": _regex},
    schema.LimitRule: {"period": _duration, "origin": _duration},
    schema.LimitHeaders: dict.fromkeys(("used", "remaining", "limit", "reset", "cost"), _header),
    schema.Condition: {"matches": _regex},
    schema.Refusal: {"text": _regex, "interval": _regex, "hold": _duration},
    schema.Retry: {"header": _header, "text": _regex},
    schema.Hints: {"shortest": _duration, "longest": _duration},
    schema.Ban: {"first": _duration, "longest": _duration},
    schema.Lookup: {"once": _reference},
    schema.Signing: {
        **dict.fromkeys(("timestamp", "signature", "window", "nonce", "key"), _reference),
        **dict.fromkeys(("default", "longest"), _duration),
    },
    schema.Socket: dict.fromkeys(("lifetime", "ping_every", "drop_after"), _duration),
}
"""What the texts in each table must be, by field."""


def _owner(key: str, owner: schema.Owner) -> None:
    one = sum(map(bool, (owner.header, owner.value, owner.setting))) == 1
    _need(one, key, "an owner needs exactly one of header, value, setting. Keep one of them")


def _limit(key: str, limit: schema.LimitRule) -> None:
    told = f"a {limit.window} limit {'has no period' if limit.period else 'needs a period'}"
    fits = bool(limit.period) != (limit.window is Window.SLOTS)
    _need(fits, f"{key}.period", f'{told}. Write for example period = "1m", or none for slots')
    told = 'only a bucket refills. Write window = "bucket", or leave refill out'
    _need(not limit.refill or limit.window is Window.BUCKET, f"{key}.refill", told)
    told = 'nothing says what remains when it is empty. Add window = "bucket" and `refill`'
    _need(limit.refill or not limit.lifetime, f"{key}.lifetime", told)
    told = 'only a fixed window has an origin. Write window = "fixed", or leave origin out'
    _need(not limit.origin or limit.window is Window.FIXED, f"{key}.origin", told)


def _refusal(key: str, refusal: schema.Refusal) -> None:
    some = refusal.status or refusal.body or refusal.text or refusal.close
    _need(some, key, "the refusal matches every answer. Set status, body, text or close")
    plain = refusal.body or refusal.text or all(status >= 400 for status in refusal.status)
    _need(plain, key, "an answer below 400 is a refusal only by its body. Add `body` or `text`")
    two = not refusal.interval or re.compile(refusal.interval).groups == 2
    told = r"two groups are needed. Write one for the number, one for the word: per (\d+) (\w+)"
    _need(two, f"{key}.interval", told)
    ends = not refusal.block or refusal.hold or refusal.outcome == "banned"
    _need(ends, f"{key}.hold", 'nothing says for how long when no hint does. Add for example hold = "30s"')


def _retry(key: str, hint: schema.Retry) -> None:
    one = sum(map(bool, (hint.header, hint.body, hint.text))) == 1
    _need(one, key, "a hint names exactly one of header, body, text. Keep one of them")
    grouped = not hint.text or re.compile(hint.text).groups
    _need(grouped, f"{key}.text", r"a group around the instant is needed. Write for example until (\d{13})")


def _signing(key: str, signing: schema.Signing) -> None:
    told = "`timestamp` and `signature` say together how long a call is valid. Write both, or none"
    _need(bool(signing.timestamp) == bool(signing.signature), key, told)
    told = "`nonce` and `key` say together which calls must leave in order. Write both, or none"
    _need(bool(signing.nonce) == bool(signing.key), key, told)
    _need(
        signing.signature or signing.nonce,
        key,
        "it says nothing. Write `timestamp` and `signature`, or `nonce` and `key`",
    )


def _learn(key: str, learn: schema.Learn) -> None:
    _need(learn.rows is not None or learn.clock, key, "there is nothing to learn. Set `rows` or `clock`")
    one = learn.rows is None or bool(learn.type) != bool(learn.limit_name)
    _need(one, key, "the rows need exactly one of type, limit_name. Say how to tell which limit is meant")


_TABLES: Final[dict[type[schema.Rule], Callable[[str, Any], None]]] = {
    schema.Owner: _owner,
    schema.LimitRule: _limit,
    schema.Refusal: _refusal,
    schema.Retry: _retry,
    schema.Learn: _learn,
    schema.Signing: _signing,
}
"""What each table must be by itself."""


def _each(file: schema.File) -> None:
    """What can be judged of a table without the others, and the sources of its numbers."""
    for key, table in _tables("$", file):
        for field, judge in _TEXTS.get(type(table), {}).items():
            for text in listed(getattr(table, field)):
                judge(f"{key}.{field}", text)
        if type(table) in _TABLES:
            _TABLES[type(table)](key, table)
        if isinstance(table, (schema.Sourced, schema.Merge, schema.Lookup, schema.Signing)):
            _sourced(file, key, table.source, file.source if isinstance(table, schema.Sourced) else None)


def _tables(key: str, value: object) -> Iterator[tuple[str, schema.Rule]]:
    """Every table in `value`, with its key."""
    inside: Iterable[tuple[str, object]] = ()
    if isinstance(value, schema.Rule):
        yield key, value
        names = zip(value.__struct_fields__, value.__struct_encode_fields__, strict=True)
        inside = ((f".{name}", getattr(value, field)) for field, name in names)
    elif isinstance(value, dict):
        inside = ((f".{name}", each) for name, each in value.items())
    elif isinstance(value, list):
        inside = ((f"[{index}]", each) for index, each in enumerate(value))
    for name, each in inside:
        yield from _tables(f"{key}{name}", each)


def _sourced(file: schema.File, key: str, source: str | list[str], fallback: str | list[str] | None) -> None:
    """Tags that exist; where there is a `fallback`, at least one in either."""
    tags = listed(source) or listed(fallback or "")
    told = "the numbers have no source. Name a tag of [sources] here or as the file's `source`"
    _need(tags or fallback is None, f"{key}.source", told)
    for tag in tags:
        told = f"unknown source {tag!r}. Add it to [sources], or use one of {_words(file.sources)}"
        _need(tag in file.sources, f"{key}.source", told)


# --- what depends on other tables -----------------------------------------------------------------------------------


def _head(file: schema.File) -> None:
    for index, host in enumerate(file.hosts):
        told = f"{host!r} is not a plain host name. Write it in lower case, without scheme, port and path"
        _need(host == host.lower() and not {"/", ":"} & set(host), f"$.hosts[{index}]", told)
    for kind, owner in file.owners.items():
        key = f"$.owners.{kind}"
        free = kind not in {"ip", "endpoint", "connection"}
        _need(free, key, f"the owner {kind!r} is built in. Choose another name")
        shown = kind not in {"account", "key"} or owner.header or owner.setting == "account"
        _need(shown, key, f"{kind!r} is told by a secret. Name the request headers that hold it in `header`")


def _limits(file: schema.File) -> None:
    _need(file.limits, "$.limits", "there is no limit. Add at least one table [limits.NAME]")
    for name, rule in file.limits.items():
        key = f"$.limits.{name}"
        told = f"{rule.unit!r} is also the name of a limit. Rename one: costs could not tell them apart"
        _need(file.limits.get(rule.unit, rule) is rule, f"{key}.unit", told)
        _scope(file, rule, f"{key}.scope")
        try:
            for tier in ("", *rule.tiers):
                limit_of(name, rule, tier)
        except ValueError as error:
            raise RuleError(f"{error}. Correct the numbers", key=key) from None


def _scope(file: schema.File, rule: schema.LimitRule, key: str) -> None:
    scope = listed(rule.scope)
    for kind in scope:
        known = BUILT_IN | set(file.owners)
        _need(kind in known, key, f"unknown owner {kind!r}. Use one of {_words(known)}, or add [owners.{kind}]")
        told = f"nothing says which header tells the {kind}. Add [owners.{kind}] with `header`"
        _need(kind not in {"account", "key"} or kind in file.owners, key, told)
    _need(
        scope and len(set(scope)) == len(scope), key, "a scope names each kind of owner once. List every kind one time"
    )


def _routes(file: schema.File) -> None:
    for key, costs, actual in _costs(file):
        _check_costs(file, key, costs, actual=actual)
    seen: set[tuple[str, str]] = set()
    unconditional: dict[str, str] = {}
    for index, rule in enumerate(file.routes):
        key = f"$.routes[{index}]"
        _need(rule.match, f"{key}.match", 'the route matches nothing. Write match = "GET /path"')
        for match in listed(rule.match):
            _match(f"{key}.match", match)
            same = re.sub(r"\{[^}/]*\}", "{}", match)
            free = same not in unconditional and (same, str(rule.where)) not in seen
            told = f"{match!r} is taken by {unconditional.get(same, 'an earlier route')} already"
            _need(free, f"{key}.match", f"{told}. Remove one, or put the one with `where` first")
            if not rule.where:
                unconditional[same] = key
            seen.add((same, str(rule.where)))
        for name, wanted in rule.where.items():
            place = f"{key}.where.{name}"
            _reference(place, name)
            _need(wanted not in ([], schema.Condition()), place, "the condition is empty. Say what the value must be")


def _match(key: str, match: str) -> None:
    method, blank, place = match.partition(" ")
    good = method in _METHODS and blank and place.startswith("/") and " " not in place and "*" not in place[:-1]
    told = f"Use one of {_words(_METHODS)}, a blank, a path; `*` only as the last segment"
    _need(good, key, f"{match!r} is not METHOD /path. {told}")
    _need(not place.endswith("*") or place.endswith("/*"), key, f"{match!r}: `*` must be a whole segment. Write /*")


def _names(file: schema.File) -> None:
    """Limits, units and owners that refusals and what is learned name."""
    units = {limit.unit for limit in file.limits.values()}
    owners = BUILT_IN | set(file.owners) | {"provider", "class"}
    for index, refusal in enumerate(file.refusals):
        for word in refusal.limits:
            _known(f"$.refusals[{index}].limits", word, units | set(file.limits), "no limit has the name or the unit")
        if refusal.block:
            _known(f"$.refusals[{index}].block", refusal.block, owners, "unknown owner")
    for index, learn in enumerate(file.learn):
        for word in learn.units.values():
            _known(f"$.learn[{index}].units", word, units, "no limit counts")
        if learn.limit_name:
            _known(f"$.learn[{index}].limit_name", learn.limit_name, file.limits, "unknown limit")


def _handling(file: schema.File) -> None:
    """``[keep]``, ``apart``, ``[[merges]]``, ``[[lookups]]``."""
    routes = {match for route in file.routes for match in listed(route.match)}

    def known(key: str, match: str) -> None:
        _need(match in routes, key, f"{match!r} is no route of this file. Write it as in a route's `match`")

    for pattern, span in file.keep.items():
        told = f"{pattern!r} fits no route. Write a route's `match`, or shell wildcards over several"
        _need(any(fnmatchcase(each, pattern) for each in routes), f"$.keep.{pattern}", told)
        _duration(f"$.keep.{pattern}", span or " ", 0, "30s, 1h, or 0s for never")
    for index, name in enumerate(file.apart):
        _header(f"$.apart[{index}]", name)
    for index, merge in enumerate(file.merges):
        only = merge.match.startswith("GET ")
        _need(only, f"$.merges[{index}].match", "only reads can be merged. Write GET /path")
        known(f"$.merges[{index}].match", merge.match)
        if merge.to:
            known(f"$.merges[{index}].to", f"GET {merge.to}")
    for index, lookup in enumerate(file.lookups):
        key = f"$.lookups[{index}]"
        for match in (*listed(lookup.match), lookup.route):
            known(f"{key}.{'route' if match is lookup.route else 'match'}", match)
        for name, where in lookup.params.items():
            if not (len(where) > 2 and where[0] == where[-1] == "'"):
                _reference(f"{key}.params.{name}", where)
        for name in lookup.needed:
            told = f"{name!r} is not among `params`. Use {_words(lookup.params)}"
            _need(name in lookup.params, f"{key}.needed", told)


# --- costs --------------------------------------------------------------------------------------------------------


def _costs(file: schema.File) -> Iterator[tuple[str, schema.Costs, bool]]:
    """All costs of a file: key, costs, and whether they are read from the answer."""
    yield "$.every", file.every, False
    rules: list[tuple[str, schema.Route]] = [("$.default", file.default)]
    rules += [(f"$.routes[{index}]", rule) for index, rule in enumerate(file.routes)]
    for key, rule in rules:
        yield f"{key}.cost", rule.cost, False
        yield f"{key}.ok", rule.ok, True
        yield f"{key}.failed", rule.failed, True


def _check_costs(file: schema.File, path: str, costs: schema.Costs, *, actual: bool) -> None:
    for word, cost in costs.items():
        key = f"{path}.{word}"
        if word not in file.limits:
            known = {limit.unit for limit in file.limits.values()} | set(file.limits)
            _known(key, word, known, "no limit has the name or the unit")
        for term in _terms(cost):
            _term(key, term)
        for name in references(cost):
            _reference(key, name)
            told = f"{name!r} cannot be known here. `cost` reads the call; `ok` and `failed` read answer.…"
            _need((name.split(".")[0] == "answer") == actual, key, told)
        told = "the cost is not stated for every call. Add `missing`, or a number at the end of the list"
        _need(actual or _total(cost), key, told)


def _term(key: str, term: schema.Term) -> None:
    heads = [field for field in _HEADS if getattr(term, field)]
    told = f"a cost names exactly one of {', '.join(_HEADS)}. Nest terms in a list, sum or largest to combine them"
    _need(len(heads) == 1, key, told)
    edges = [edge for edge, _ in term.bands]
    told = "the edges of `bands` must rise. Sort them; an edge belongs to its own band"
    _need(edges == sorted(set(edges)), key, told)
    scales = [bool(term.bands), bool(term.cases), term.each is not None]
    head = heads[0]
    wanted = {"by": 1, "count": 1, "age": 1, "has": 0, "sum": 0, "largest": 0, "estimate": sum(scales)}[head]
    told = f"`{head}` goes with {'one of bands, cases, each' if wanted else 'no bands, cases or each'}. Keep one scale"
    _need(sum(scales) == wanted and (head == "by" or not term.cases), key, told)
    both = (term.cost is not None) == (head == "has")
    _need(both, key, "`cost` and `has` belong together. Write {has = …, cost = …, missing = …}")


def _total(cost: schema.Cost) -> bool:
    """Whether it is stated for every call."""
    if isinstance(cost, int):
        return True
    if isinstance(cost, list):
        return bool(cost) and _total(cost[-1])
    if cost.sum or cost.largest:
        return any(map(_total, cost.sum + cost.largest))
    return cost.missing is not None or bool(cost.estimate or cost.age)


def _terms(cost: schema.Cost | list[schema.Cost]) -> Iterator[schema.Term]:
    if isinstance(cost, list):
        for each in cost:
            yield from _terms(each)
    elif isinstance(cost, schema.Term):
        yield cost
        yield from _terms(cost.sum)
        yield from _terms(cost.largest)
