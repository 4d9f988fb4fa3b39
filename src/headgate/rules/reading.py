"""References: how a rule names a value of a call or of an answer, and how that value is read.

``symbol`` is a parameter; ``body.type`` a field of the JSON body (``body`` the whole of it); ``header.x-key`` a request
header; ``answer.usage.total`` a field of the JSON answer; ``body.*.id`` that field of every item of a list. One grammar
for costs, conditions, owners and signatures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from headgate.rules.call import Call

__all__ = ["Reader", "count", "dig", "dig_json", "header", "number", "reader", "text"]

Reader = Callable[[Call], Any]
"""Reads one value; None when it is absent. An empty string counts as absent, as servers treat it."""


def reader(reference: str) -> Reader:
    """The function that reads `reference`. ``answer.…`` reads the `Call.body` that the caller puts the answer into."""
    root, _, rest = reference.partition(".")
    if root == "header":
        return lambda call: header(call.headers, rest)
    if root in {"body", "answer"}:
        steps = tuple(rest.split(".")) if rest else ()
        return lambda call: dig(call.body, steps)

    def param(call: Call) -> Any:
        value = call.params.get(reference) if call.params else None
        return None if value == "" else value

    return param


def dig(value: Any, steps: tuple[str, ...]) -> Any:
    """Follow `steps` through mappings and, where a step is a number, lists. None when something is missing.

    A ``*`` stands for every item of a list: the result is the list of what the rest of the steps finds in them.
    """
    for at, step in enumerate(steps):
        if isinstance(value, Mapping):
            value = value.get(step)
        elif isinstance(value, list) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        elif isinstance(value, list) and step == "*":
            found = [each for item in value if (each := dig(item, steps[at + 1 :])) is not None]
            return found or None
        else:
            return None
    return value


def dig_json(body: bytes | str | None, path: str) -> Any:
    """The value at a dotted `path` of a JSON text, without building the rest of it (exchangeInfo has megabytes).

    None when the text is not JSON or has no such field.
    """
    if not body:
        return None
    try:
        raw: Any = body
        for step in path.split(".") if path else ():
            if step.isdecimal():
                items = msgspec.json.decode(raw, type=list[msgspec.Raw])
                raw = items[int(step)] if int(step) < len(items) else None
            else:
                raw = msgspec.json.decode(raw, type=dict[str, msgspec.Raw]).get(step)
            if raw is None:
                return None
        return msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeError):
        return None


def header(headers: Mapping[str, str] | None, name: str) -> str | None:
    """A request header by its lower-case name, whatever mapping the caller has."""
    if not headers:
        return None
    value = headers.get(name)
    if value is None:
        value = next((each for key, each in headers.items() if key.lower() == name), None)
    return value or None


def text(value: Any) -> str:
    """A value as the wire would show it: booleans as ``true``/``false``, a list of one as that one."""
    if isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool):
        return "true" if value else "false"
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def number(value: Any) -> int | None:
    """A whole number, rounded up; None if it is none."""
    if isinstance(value, str) and value.isdecimal() and value.isascii():
        return int(value[:18])
    if isinstance(value, (bool, type(None))):
        return None
    try:
        return value if isinstance(value, int) else -int(-float(text(value)) // 1)
    except (ValueError, OverflowError):
        return None


def count(value: Any) -> int:
    """How many items a list parameter holds: JSON text ``["A","B"]``, comma text, a sequence, or repeated keys."""
    if isinstance(value, (list, tuple, set, frozenset)):
        if len(value) != 1:
            return len(value)
        (value,) = value
    if isinstance(value, bytes):
        value = text(value)
    if not isinstance(value, str):
        return 1
    value = value.strip()
    if value.startswith("["):
        try:
            return len(msgspec.json.decode(value, type=list[msgspec.Raw]))
        except msgspec.MsgspecError:
            pass  # not JSON after all: count the commas, which is never fewer
    return value.count(",") + 1 if value else 0
