"""TOML whose every key has a line, and values judged one by one: what is wrong, where, and what to write instead.

tomllib tells no lines. But a TOML statement ends where its text parses by itself, so the file is read statement by
statement with tomllib itself: no second grammar that could disagree with it.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

__all__ = ["faults", "key_lines", "line_of"]

_DOCS = "See docs/reference/configuration.md."
_WORDS = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}
_LONGEST = 40
"""Characters of a wrong value that are repeated."""


def key_lines(text: str) -> dict[str, int]:
    """Where every key and table of valid TOML stands: its path, such as ``$.limits.calls.capacity``, and its line from 1.

    What is written inside one value (an inline table, an array over several lines) has the line on which that statement
    begins. Names are not quoted in paths, whatever they hold.
    """
    lines: dict[str, int] = {"$": 1}
    arrays: dict[str, int] = {}
    table, pending, first = "$", "", 1
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        pending += line + "\n"
        try:
            found = tomllib.loads(pending)
        except tomllib.TOMLDecodeError:
            continue  # the statement goes on
        if pending.lstrip().startswith("["):
            table = _header(found, first, lines, arrays)
        else:
            _note(found, table, first, lines)
        pending, first = "", number + 1
    return lines


def line_of(lines: Mapping[str, int], path: str) -> int:
    """The line of a path, or of the nearest table around it; 0 if nothing of it is in the file."""
    while path not in lines:
        path = path[: max(path.rfind("."), path.rfind("["), 0)] or "$"
    return 0 if path == "$" else lines[path]


def _header(found: Any, line: int, lines: dict[str, int], arrays: dict[str, int]) -> str:
    """Note a table's header, alone in `found`; return the table's path."""
    path = "$"
    while found:
        if isinstance(found, list):
            arrays[path] = arrays.get(path, -1) + 1
            path, found = f"{path}[{arrays[path]}]", found[0]
        else:
            name, found = next(iter(found.items()))
            path = f"{path}.{name}"
            if path in arrays and isinstance(found, dict):
                path = f"{path}[{arrays[path]}]"
        lines.setdefault(path, line)
    return path


def _note(value: Any, path: str, line: int, lines: dict[str, int]) -> None:
    lines.setdefault(path, line)
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inside:
        _note(each, f"{path}[{key}]" if isinstance(value, list) else f"{path}.{key}", line, lines)


def faults(value: object, kind: Any, path: str = "$") -> Iterator[tuple[str, str]]:
    """Everything about `value` that does not fit the msgspec type `kind`: path, and what is wrong with its remedy.

    A `msgspec.Meta` on a type may say what is expected (its title) and the remedy (its description).
    """
    shape = _shape(value, kind)
    if isinstance(value, dict) and _is_struct(shape):
        yield from _in_struct(value, shape, path)
    elif isinstance(value, dict) and get_origin(shape) is dict:
        for name, each in value.items():
            yield from faults(each, get_args(shape)[1], f"{path}.{name}")
    elif isinstance(value, list) and get_origin(shape) is list:
        for at, each in enumerate(value):
            yield from faults(each, get_args(shape)[0], f"{path}[{at}]")
    elif isinstance(value, list) and get_origin(shape) is tuple and len(value) == len(get_args(shape)):
        for at, (each, part) in enumerate(zip(value, get_args(shape), strict=True)):
            yield from faults(each, part, f"{path}[{at}]")
    else:
        try:
            msgspec.convert(value, kind)
        except msgspec.ValidationError:
            yield path, f"expected {_expected(kind)}, got {_shown(value)}.{_near(value, kind)} {_remedy(kind)}"


def _in_struct(value: dict[str, Any], shape: Any, path: str) -> Iterator[tuple[str, str]]:
    fields = {field.encode_name: field for field in msgspec.structs.fields(shape)}
    for name, each in value.items():
        if name in fields:
            yield from faults(each, fields[name].type, f"{path}.{name}")
        else:
            near = difflib.get_close_matches(name, fields, n=1)
            remedy = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(fields)}."
            yield f"{path}.{name}", f"no such key. {remedy}"
    for name, field in fields.items():
        if field.required and name not in value:
            yield path, f"{name!r} is missing. Add it. {_DOCS}"


def _members(kind: Any) -> tuple[Any, ...]:
    """The types of a union; else the one."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _bare(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _shape(value: object, kind: Any) -> Any:
    """The member of a union that is meant where a table or a list stands."""
    for member in map(_bare, _members(_bare(kind))):
        table = _is_struct(member) or get_origin(member) is dict
        if (isinstance(value, dict) and table) or (isinstance(value, list) and get_origin(member) in (list, tuple)):
            return member
    return None


def _metas(kind: Any) -> list[msgspec.Meta]:
    parts = [kind, *_members(_bare(kind))]
    return [each for part in parts if get_origin(part) is Annotated for each in get_args(part)[1:]]


def _expected(kind: Any) -> str:
    told = next((meta.title for meta in _metas(kind) if meta.title), None)
    return told or " or ".join(_word(_bare(member)) for member in _members(_bare(kind)) if member is not type(None))


def _word(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if _is_struct(kind) or get_origin(kind) is dict:
        return "a table"
    return "a list" if get_origin(kind) is list else _WORDS.get(kind, "something else")


def _remedy(kind: Any) -> str:
    return next((meta.description for meta in _metas(kind) if meta.description), _DOCS)


def _near(value: object, kind: Any) -> str:
    choices = [word for member in _members(_bare(kind)) if get_origin(member) is Literal for word in get_args(member)]
    near = difflib.get_close_matches(value, choices, n=1) if isinstance(value, str) else []
    return f" Did you mean {near[0]!r}?" if near else ""


def _shown(value: object) -> str:
    """A wrong value for people: short, and nothing of an address, which may hold a password."""
    if isinstance(value, dict | list):
        return "a table" if isinstance(value, dict) else "a list"
    if isinstance(value, str) and "://" in value:
        return "an address"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
