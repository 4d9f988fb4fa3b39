"""A text that a regular expression finds: refusals are told by expressions, and the emulator must say such a text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from re import _constants as codes  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

__all__ = ["sample"]


def sample(pattern: str, group: str = "") -> str:
    """A short text in which `pattern` is found; its first group reads `group` if that is given.

    Raises:
        ValueError: the expression uses something that is not understood here, such as back-references.
    """
    text = "".join(_written(parser.parse(pattern), group))
    if re.search(pattern, text) is None:
        raise ValueError(f"found no text for the expression {pattern!r}")
    return text


def _written(parsed: Iterable[tuple[Any, Any]], group: str) -> Iterable[str]:
    for code, value in parsed:
        if code is codes.LITERAL:
            yield chr(value)
        elif code is codes.IN:
            yield _one_of(value)
        elif code is codes.ANY:
            yield " "
        elif code in (codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT):
            least, _, inner = value
            yield "".join(_written(inner, group)) * least
        elif code is codes.SUBPATTERN:
            number, _, _, inner = value
            yield group if number == 1 and group else "".join(_written(inner, group))
        elif code is codes.BRANCH:
            yield "".join(_written(value[1][0], group))
        elif code is codes.ATOMIC_GROUP:
            yield "".join(_written(value, group))
        elif code is codes.NOT_LITERAL:
            yield "a" if value != ord("a") else "b"
        elif code in (codes.AT, codes.ASSERT_NOT):
            yield ""  # whether the text keeps to it is seen at the end
        else:
            raise ValueError(f"an expression with {code} is not understood here")


def _one_of(choices: list[tuple[Any, Any]]) -> str:
    code, value = choices[0]
    if code is codes.LITERAL:
        return chr(value)
    if code is codes.RANGE:
        return chr(value[0])
    samples = {codes.CATEGORY_DIGIT: "1", codes.CATEGORY_WORD: "a", codes.CATEGORY_SPACE: " "}
    if code is codes.CATEGORY:
        return samples.get(value, "-")
    return "~"  # a negated set: hardly any excludes this
