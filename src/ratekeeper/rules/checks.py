"""Whether a rule file means something: names that exist, routes that differ, numbers that have a source."""

from __future__ import annotations

import re

from ratekeeper.errors import RuleError
from ratekeeper.ledger.limit import Window
from ratekeeper.rules.check_costs import check_costs
from ratekeeper.rules.check_handling import check_handling
from ratekeeper.rules.check_values import Wrong, a_duration, a_regex, lower_case, reference, words
from ratekeeper.rules.routing import limit_of, listed
from ratekeeper.rules.schema import Condition, File, LimitRule, Refusal, Retry, Route, Sourced
from ratekeeper.rules.scopes import BUILT_IN

__all__ = ["check"]

_METHODS = {
    *("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"),
    *("WS", "WS-CONNECT", "WS-SEND", "WS-SUBSCRIBE"),
}


def check(file: File, path: str = "") -> None:
    """Raise `RuleError` for the first thing in `file` that cannot be meant; `path` names the file in it."""
    try:
        for part in (_head, _limits, _routes, _refusals, _learning, _times, check_handling):
            part(file)
    except Wrong as wrong:
        raise RuleError(f"{wrong.what}. {wrong.remedy}", file=path, key=wrong.key) from None


def _head(file: File) -> None:
    for index, host in enumerate(file.hosts):
        if host != host.lower() or "/" in host or ":" in host:
            raise Wrong(
                f"$.hosts[{index}]",
                f"{host!r} is not a plain host name",
                "Write it in lower case, without scheme, port and path",
            )
    for kind, owner in file.owners.items():
        key = f"$.owners.{kind}"
        if kind in {"ip", "endpoint", "connection"}:
            raise Wrong(key, f"the owner {kind!r} is built in", "Choose another name")
        if sum(map(bool, (owner.header, owner.value, owner.setting))) != 1:
            raise Wrong(key, "an owner needs exactly one of header, value, setting", "Keep one of them")
        if kind in {"account", "key"} and not owner.header and owner.setting != "account":
            raise Wrong(key, f"{kind!r} is told by a secret", "Name the request headers that hold it in `header`")
        for name in listed(owner.header):
            lower_case(f"{key}.header", name)
        for name in listed(owner.value):
            reference(f"{key}.value", name)
        a_regex(f"{key}.pattern", owner.pattern)


def _limits(file: File) -> None:
    if not file.limits:
        raise Wrong("$.limits", "there is no limit", "Add at least one table [limits.NAME]")
    for name, rule in file.limits.items():
        key = f"$.limits.{name}"
        _sourced(file, rule, key)
        if bool(rule.period) == (rule.window is Window.SLOTS):
            need = "has no period" if rule.period else "needs a period"
            raise Wrong(
                f"{key}.period", f"a {rule.window} limit {need}", 'Write for example period = "1m", or none for slots'
            )
        _window(file, rule, key)
        _scope(file, rule, key)
        try:
            for tier in ("", *rule.tiers):
                limit_of(name, rule, tier)
        except ValueError as error:
            raise Wrong(key, str(error), "Correct the numbers") from None


def _window(file: File, rule: LimitRule, key: str) -> None:
    for field in ("period", "origin"):
        a_duration(f"{key}.{field}", getattr(rule, field))
    if rule.refill and rule.window is not Window.BUCKET:
        raise Wrong(f"{key}.refill", "only a bucket refills", 'Write window = "bucket", or leave refill out')
    if rule.lifetime and not rule.refill:
        raise Wrong(
            f"{key}.lifetime", "nothing says what remains when it is empty", 'Add window = "bucket" and `refill`'
        )
    if rule.origin and rule.window is not Window.FIXED:
        raise Wrong(f"{key}.origin", "only a fixed window has an origin", 'Write window = "fixed", or leave origin out')
    if rule.unit in file.limits and file.limits[rule.unit] is not rule:
        raise Wrong(
            f"{key}.unit",
            f"{rule.unit!r} is also the name of a limit",
            "Rename one: costs could not tell them apart",
        )


def _scope(file: File, rule: LimitRule, key: str) -> None:
    scope = listed(rule.scope)
    for kind in scope:
        if kind not in BUILT_IN and kind not in file.owners:
            raise Wrong(
                f"{key}.scope",
                f"unknown owner {kind!r}",
                f"Use one of {words(BUILT_IN | set(file.owners))}, or add [owners.{kind}]",
            )
        if kind in {"account", "key"} and kind not in file.owners:
            raise Wrong(
                f"{key}.scope", f"nothing says which header tells the {kind}", f"Add [owners.{kind}] with `header`"
            )
    if not scope or len(set(scope)) != len(scope):
        raise Wrong(f"{key}.scope", "a scope names each kind of owner once", "List every kind one time")
    headers = rule.headers
    for field in ("used", "remaining", "limit", "reset", "cost"):
        lower_case(f"{key}.headers.{field}", getattr(headers, field).replace("{interval}", ""))


def _routes(file: File) -> None:
    seen: set[tuple[str, str]] = set()
    unconditional: dict[str, str] = {}
    check_costs(file, "$.every", file.every)
    _route(file, "$.default", file.default)
    for index, rule in enumerate(file.routes):
        key = f"$.routes[{index}]"
        _route(file, key, rule)
        if not rule.match:
            raise Wrong(f"{key}.match", "the route matches nothing", 'Write match = "GET /path"')
        for match in listed(rule.match):
            method, blank, place = match.partition(" ")
            if method not in _METHODS or not blank or not place.startswith("/") or " " in place or "*" in place[:-1]:
                raise Wrong(
                    f"{key}.match",
                    f"{match!r} is not METHOD /path",
                    f"Use one of {words(_METHODS)}, a blank, a path; `*` only as the last segment",
                )
            if place.endswith("*") and not place.endswith("/*"):
                raise Wrong(f"{key}.match", f"{match!r}: `*` must be a whole segment", "Write /*")
            same = re.sub(r"\{[^}/]*\}", "{}", match)
            if same in unconditional or (same, str(rule.where)) in seen:
                first = unconditional.get(same, "an earlier route")
                raise Wrong(
                    f"{key}.match",
                    f"{match!r} is taken by {first} already",
                    "Remove one, or put the one with `where` first",
                )
            if not rule.where:
                unconditional[same] = key
            seen.add((same, str(rule.where)))
        for name, wanted in rule.where.items():
            reference(f"{key}.where.{name}", name)
            if wanted in ([], Condition()):
                raise Wrong(f"{key}.where.{name}", "the condition is empty", "Say what the value must be")
            if isinstance(wanted, Condition):
                a_regex(f"{key}.where.{name}.matches", wanted.matches)


def _route(file: File, key: str, rule: Route) -> None:
    _sourced(file, rule, key)
    check_costs(file, f"{key}.cost", rule.cost)
    for field in ("ok", "failed"):
        check_costs(file, f"{key}.{field}", getattr(rule, field), actual=True)


def _refusals(file: File) -> None:
    units = {limit.unit for limit in file.limits.values()}
    owners = BUILT_IN | set(file.owners) | {"provider", "class"}
    for index, refusal in enumerate(file.refusals):
        key = f"$.refusals[{index}]"
        if not any((refusal.status, refusal.body, refusal.text, refusal.close)):
            raise Wrong(key, "the refusal matches every answer", "Set status, body, text or close")
        if any(status < 400 for status in refusal.status) and not (refusal.body or refusal.text):
            raise Wrong(key, "an answer below 400 is a refusal only by its body", "Add `body` or `text`")
        a_regex(f"{key}.text", refusal.text)
        _interval(key, refusal)
        for word in refusal.limits:
            if word not in units and word not in file.limits:
                raise Wrong(
                    f"{key}.limits",
                    f"no limit has the name or the unit {word!r}",
                    f"Use one of {words(units | set(file.limits))}",
                )
        if refusal.block and refusal.block not in owners:
            raise Wrong(f"{key}.block", f"unknown owner {refusal.block!r}", f"Use one of {words(owners)}")
        if refusal.block and not refusal.hold and refusal.outcome != "banned":
            raise Wrong(f"{key}.hold", "nothing says for how long when no hint does", 'Add for example hold = "30s"')
        a_duration(f"{key}.hold", refusal.hold)
        _retry(f"{key}.retry", refusal.retry or [])
    _retry("$.hints.retry", file.hints.retry)


def _interval(key: str, refusal: Refusal) -> None:
    a_regex(f"{key}.interval", refusal.interval)
    if refusal.interval and re.compile(refusal.interval).groups != 2:
        raise Wrong(
            f"{key}.interval", "two groups are needed", r"Write one for the number, one for the word: per (\d+) (\w+)"
        )


def _retry(key: str, hints: list[Retry]) -> None:
    for index, hint in enumerate(hints):
        if sum(map(bool, (hint.header, hint.body, hint.text))) != 1:
            raise Wrong(f"{key}[{index}]", "a hint names exactly one of header, body, text", "Keep one of them")
        lower_case(f"{key}[{index}].header", hint.header)
        a_regex(f"{key}[{index}].text", hint.text)
        if hint.text and re.compile(hint.text).groups < 1:
            raise Wrong(
                f"{key}[{index}].text", "a group around the instant is needed", r"Write for example until (\d{13})"
            )


def _learning(file: File) -> None:
    units = {limit.unit for limit in file.limits.values()}
    for index, learn in enumerate(file.learn):
        key = f"$.learn[{index}]"
        if learn.rows is None and not learn.clock:
            raise Wrong(key, "there is nothing to learn", "Set `rows` or `clock`")
        if learn.rows is not None and bool(learn.type) == bool(learn.limit_name):
            raise Wrong(key, "the rows need exactly one of type, limit_name", "Say how to tell which limit is meant")
        for word in learn.units.values():
            if word not in units:
                raise Wrong(f"{key}.units", f"no limit counts {word!r}", f"Use one of {words(units)}")
        if learn.limit_name and learn.limit_name not in file.limits:
            raise Wrong(f"{key}.limit_name", f"unknown limit {learn.limit_name!r}", f"Use one of {words(file.limits)}")


def _times(file: File) -> None:
    texts = {"$.hints.shortest": file.hints.shortest, "$.hints.longest": file.hints.longest}
    texts |= {"$.ban.first": file.ban.first, "$.ban.longest": file.ban.longest}
    if file.signing is not None:
        texts |= {"$.signing.default": file.signing.default, "$.signing.longest": file.signing.longest}
        for field in ("timestamp", "signature", "window"):
            reference(f"$.signing.{field}", getattr(file.signing, field))
    for kind, socket in file.socket.items():
        texts |= {
            f"$.socket.{kind}.{field}": getattr(socket, field) for field in ("lifetime", "ping_every", "drop_after")
        }
    for key, text in texts.items():
        a_duration(key, text)


def _sourced(file: File, rule: Sourced, key: str) -> None:
    tags = listed(rule.source) or listed(file.source)
    if not tags:
        raise Wrong(
            f"{key}.source", "the numbers have no source", "Name a tag of [sources] here or as the file's `source`"
        )
    for tag in tags:
        if tag not in file.sources:
            raise Wrong(
                f"{key}.source", f"unknown source {tag!r}", f"Add it to [sources], or use one of {words(file.sources)}"
            )
