"""Headers of the HTTP standards that say when to come back: any server may send them, so they are read for every provider.

``Retry-After`` (RFC 9110) is seconds or a date. The rate limit headers of the IETF draft come in three forms:
``RateLimit-Limit: 100, 100;w=60`` with ``-Remaining`` and ``-Reset``; ``RateLimit: limit=100, remaining=0, reset=30``; and
``RateLimit: "default";r=0;t=30`` with ``RateLimit-Policy: "default";q=100;w=60``. Nothing here raises: what cannot be read
says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from ratekeeper.rules.times import Wait, latest, stated

__all__ = ["Standard", "read_standard"]

_LONGEST_HEADER: Final = 4096
_ITEM: Final = re.compile(r'(?:"(?:[^"\\]|\\.)*"|[^",])+')
_PART: Final = re.compile(r'(?:"(?:[^"\\]|\\.)*"|[^";])+')
_COUNT: Final = re.compile(r"[0-9]{1,15}(?:\.[0-9]{0,15})?")


class Standard(NamedTuple):
    """What the standard headers of one answer say.

    Attributes:
        retry_after: of ``Retry-After``; None if it is missing or says nothing.
        used_up: until a quota that is used up is there again; None if none is said to be used up.
    """

    retry_after: Wait | None
    used_up: Wait | None


def read_standard(headers: Mapping[str, str]) -> Standard:
    """Read them from the headers of an answer."""
    given = headers.get("retry-after")
    return Standard(
        None if given is None else stated(given, "retry-after"), latest((_three(headers), _fields(headers)))
    )


def _three(headers: Mapping[str, str]) -> Wait | None:
    """``RateLimit-Remaining`` and ``-Reset``. Without a reset, the window of the policy is the longest it can take."""
    reset, remaining = headers.get("ratelimit-reset"), headers.get("ratelimit-remaining")
    if remaining is not None and _number(remaining) != 0:
        return None
    if reset is not None:
        return stated(reset, "reset")
    if remaining is None:
        return None
    policies = _items(headers.get("ratelimit-limit")) + _items(headers.get("ratelimit-policy"))
    return latest(_seconds(parameters.get("w")) for _, parameters in policies[:2])


def _fields(headers: Mapping[str, str]) -> Wait | None:
    """The structured field ``RateLimit``, and its older form, a dictionary."""
    items = _items(headers.get("ratelimit"))
    windows = {name: parameters.get("w") for name, parameters in _items(headers.get("ratelimit-policy"))}
    older = dict(name.split("=", 1) for name, _ in items if "=" in name and name[0] != '"')
    if older:
        return _seconds(older.get("reset")) if _number(older.get("remaining")) == 0 else None
    return latest(
        _seconds(parameters.get("t") or windows.get(name))
        for name, parameters in items
        if _number(parameters.get("r")) == 0
    )


def _items(header: str | None) -> list[tuple[str, dict[str, str]]]:
    """The members of a structured field: (item, parameters), names in lower case and without spaces."""
    found = []
    for item in _ITEM.findall((header or "")[:_LONGEST_HEADER]):
        head, *rest = [part.strip() for part in _PART.findall(item)] or [""]
        pairs = (part.partition("=") for part in rest)
        found.append((head.lower(), {name.strip().lower(): value.strip() for name, _, value in pairs}))
    return found


def _number(text: str | None) -> float | None:
    return float(text) if text is not None and _COUNT.fullmatch(text.strip()) else None


def _seconds(text: str | None) -> Wait | None:
    return None if text is None else stated(text, "reset")
