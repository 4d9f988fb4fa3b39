"""Bundled rule files in table tests: a call written as one line becomes its charges, an answer its feedback."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ratekeeper.ledger.limit import SECOND
from ratekeeper.rules.call import Answer, Feedback, Identity, Plan, Request
from ratekeeper.rules.handling import Single
from ratekeeper.rules.provider import Provider
from ratekeeper.rules.reading import listed

__all__ = ["NOW", "WHO", "ask", "call_of", "charges", "key", "matches", "plan", "safe", "single", "told"]

NOW = 1_795_220_621 * SECOND
"""The instant of all answers, Unix ns."""
WHO = Identity(secret=b"test")


def plan(provider: Provider, line: str, *, body: Any = None, headers: Mapping[str, str] | None = None) -> Plan:
    """The plan of ``METHOD /path?name=value&…``."""
    method, _, target = line.partition(" ")
    path, _, query = target.partition("?")
    params = dict(pair.split("=", 1) for pair in query.split("&")) if query else {}
    return provider.plan(Request(method, path, params, body, headers), WHO)


def charges(provider: Provider, line: str, *, body: Any = None) -> dict[str, int]:
    """Limit -> units of a call that a route must know."""
    found = plan(provider, line, body=body)
    assert found.route, f"{line} has no route"
    return {charge.limit.name: charge.cost for charge in found.charges}


def told(provider: Provider, found: Plan, status: int, body: Any = b"", **headers: str) -> Feedback:
    """Feedback to an answer; underscores of header names stand for hyphens, a body that is no text is sent as JSON."""
    content = body if isinstance(body, bytes | str) else msgspec.json.encode(body)
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return provider.feedback(found, Answer(status, names, content), now=NOW)


def matches(provider: Provider) -> list[str]:
    """Every ``METHOD /template`` of the file, once."""
    return list(dict.fromkeys(match for rule in provider.file.routes for match in listed(rule.match)))


def call_of(line: str, *, body: Any = None, headers: dict[str, str] | None = None) -> Request:
    """A call from ``METHOD /path?name=value``."""
    method, _, target = line.partition(" ")
    path, _, query = target.partition("?")
    params = dict(pair.split("=", 1) for pair in query.split("&")) if query else None
    return Request(method, path, params, body, headers)


def safe(provider: Provider, line: str, **rest: Any) -> bool:
    """Whether a call may be made twice."""
    call = call_of(line, **rest)
    return provider.handling.safe(call, provider.plan(call, WHO))


def ask(provider: Provider, line: str, **rest: Any) -> str:
    """The call that tells what became of one."""
    call = call_of(line, **rest)
    return provider.handling.ask(call, provider.plan(call, WHO))


def key(provider: Provider, line: str, **rest: Any) -> bytes | None:
    """Under which the answer to a call is kept."""
    call = call_of(line, **rest)
    return provider.handling.key(call, provider.plan(call, WHO))


def single(provider: Provider, line: str, **rest: Any) -> Single | None:
    """How a call could be merged."""
    call = call_of(line, **rest)
    return provider.handling.single(call, provider.plan(call, WHO))
