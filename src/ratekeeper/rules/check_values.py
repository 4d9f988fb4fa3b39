"""Checks of single values in a rule file."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ratekeeper.rules.times import duration

__all__ = ["Wrong", "a_duration", "a_regex", "lower_case", "reference", "words"]


class Wrong(Exception):
    """What is wrong at a key, and the remedy."""

    def __init__(self, key: str, what: str, remedy: str) -> None:
        super().__init__(what)
        self.key, self.what, self.remedy = key, what, remedy


def reference(key: str, name: str) -> None:
    """A reference names something that exists in its root."""
    root, dot, rest = name.partition(".")
    if (root == "header" and (not rest or rest != rest.lower())) or (dot and not rest):
        raise Wrong(key, f"{name!r} names nothing", f"Write {root}.NAME, in lower case for headers")
    if dot and root not in {"header", "answer", "body"}:
        raise Wrong(key, f"{name!r} has an unknown root", "Use a parameter's name, body.…, header.… or answer.…")


def a_duration(key: str, text: str) -> None:
    """Empty, or a positive duration."""
    try:
        if text and duration(text) <= 0:
            raise ValueError
    except ValueError:
        raise Wrong(key, f"{text!r} is not a duration", "Write for example 500ms, 10s, 1m, 1h30m, 7d") from None


def a_regex(key: str, text: str) -> None:
    """A regular expression that compiles."""
    try:
        re.compile(text)
    except re.error as error:
        raise Wrong(
            key, f"not a regular expression: {error}", "Correct it; in TOML put it in 'single quotes'"
        ) from None


def lower_case(key: str, name: str) -> None:
    """A header name, which is looked up in lower case."""
    if name != name.lower():
        raise Wrong(key, f"{name!r} has capital letters", "Write header names in lower case")


def words(names: Iterable[str]) -> str:
    """A sorted list for an error message."""
    return ", ".join(sorted(names))
