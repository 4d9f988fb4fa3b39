"""Reads rule files, with errors that name file, key and remedy; finds what does not fit a type; writes rule files."""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from datetime import date
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Final, Literal, TypeVar, Union, get_args, get_origin

import msgspec

from ratekeeper.errors import RuleError
from ratekeeper.rules.schema import File, Head
from ratekeeper.typed import converted

__all__ = [
    "faults",
    "inline",
    "parse",
    "parse_head",
    "read",
    "read_head",
    "text_of",
    "to_toml",
    "toml_of",
]

T = TypeVar("T")
_WIDTH: Final = 120
"""Columns of a rule file that is written."""
_WORDS: Final = {str: "a string", int: "a whole number", float: "a number", bool: "true or false", date: "a date"}
_LONGEST: Final = 40
"""Characters of a wrong value that are repeated."""
_DEEPEST: Final = 64
"""Tables and lists inside each other in a file at most."""
_TOKEN: Final = re.compile(
    r"""\"{3}(?:\\.|[^\\])*?\"{3}|'{3}.*?'{3}|"(?:\\.|[^"\\\n])*"|'[^'\n]*'|\#[^\n]*|[\[\]{}\n]""", re.DOTALL
)
"""Strings, comments, brackets and line ends of a TOML file."""
_PAGE: Final = "docs/reference/rules-format.md"
_HINT: Final = "Give the path of a TOML rule file"


def read(path: Path) -> File:
    """The rule file at `path`, converted but not yet checked for meaning."""
    return parse(text_of(path, _HINT), str(path))


def read_head(path: Path) -> Head:
    """Only the keys before the first table, which say whose calls the file is about. Cheap."""
    return parse_head(text_of(path, _HINT), str(path))


def parse(text: str, file: str = "") -> File:
    """The rule file in `text`; `file` names it in errors."""
    return _convert(toml_of(text, file), File, file)


def parse_head(text: str, file: str = "") -> Head:
    """The head of the rule file in `text`."""
    first_table = re.search(r"^\s*\[", text, re.MULTILINE)
    raw = toml_of(text[: first_table.start()] if first_table else text, file)
    return _convert({key: raw[key] for key in Head.__struct_fields__ if key in raw}, Head, file)


def text_of(path: Path, hint: str) -> str:
    """The text of a file; `hint` tells in errors what to do where there is none.

    Raises:
        RuleError: it cannot be read.
    """
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise RuleError(f"cannot be read: {error.strerror}. {hint}", file=str(path)) from None
    except UnicodeDecodeError:
        raise RuleError("cannot be read: it is not UTF-8. Save it as UTF-8", file=str(path)) from None


def toml_of(text: str, file: str) -> dict[str, Any]:
    """What a text in TOML holds; `file` names it in errors.

    Raises:
        RuleError: it is not TOML, or goes beyond our bounds.
    """
    deep = _deep_line(text)
    try:
        found = {} if deep else tomllib.loads(text)
    except ValueError as error:  # not TOML, or a number of thousands of digits
        told = re.search(r"\(at line (\d+), column \d+\)", str(error))
        line = int(told[1]) if told else text.count("\n") + 1
        raise RuleError(f"is not TOML: {error}. Correct that line", file=file, line=line) from None
    if deep or _too_deep(found):
        line = deep or next((at for at, each in enumerate(text.split("\n"), 1) if each.count(".") >= _DEEPEST), 0)
        reason = f"has more than {_DEEPEST} tables or lists inside each other. Nothing here needs so many"
        raise RuleError(reason, file=file, line=line)
    return found


def _deep_line(text: str) -> int:
    """The line on which brackets first stand too deep inside each other; 0: none. The parser would run out of its stack."""
    depth, line = 0, 1
    for sign in _TOKEN.findall(text):
        if sign in "[{":
            depth += 1
            if depth > _DEEPEST:
                return line
        elif sign in "]}":
            depth -= 1
        else:
            line += sign.count("\n")
    return 0


def _too_deep(value: object) -> bool:
    level: list[object] = [value]
    for _ in range(_DEEPEST + 1):
        tables = [each for each in level if isinstance(each, dict)]
        level = [inner for each in tables for inner in each.values()]
        level += [inner for each in level if isinstance(each, list) for inner in each]
        if not level:
            return False
    return True


def _convert(raw: dict[str, Any], kind: type[T], file: str) -> T:
    try:
        return converted(raw, kind)
    except msgspec.ValidationError as error:
        key, told = next(faults(raw, kind, page=_PAGE), ("$", f"{error}. See {_PAGE}"))
        raise RuleError(told, file=file, key=key) from None


# --- what does not fit a type ---------------------------------------------------------------------------------------


def faults(value: object, kind: Any, path: str = "$", *, page: str) -> Iterator[tuple[str, str]]:
    """Everything about `value` that does not fit the msgspec type `kind`: path, and what is wrong with its remedy.

    A `msgspec.Meta` on a type may say what is expected (its title) and the remedy (its description); elsewhere the remedy is
    the `page` of the documentation.
    """
    shape = _shape(value, kind)
    if isinstance(value, dict) and _is_struct(shape):
        yield from _in_struct(value, shape, path, page)
    elif isinstance(value, dict) and get_origin(shape) is dict:
        for name, each in value.items():
            yield from faults(name, get_args(shape)[0], f"{path}.{name}", page=page)
            yield from faults(each, get_args(shape)[1], f"{path}.{name}", page=page)
    elif isinstance(value, list) and get_origin(shape) is list:
        for at, each in enumerate(value):
            yield from faults(each, get_args(shape)[0], f"{path}[{at}]", page=page)
    elif isinstance(value, list) and get_origin(shape) is tuple and len(value) == len(get_args(shape)):
        for at, (each, part) in enumerate(zip(value, get_args(shape), strict=True)):
            yield from faults(each, part, f"{path}[{at}]", page=page)
    else:
        try:
            converted(value, kind)
        except msgspec.ValidationError:
            remedy = next((meta.description for meta in _metas(kind) if meta.description), f"See {page}.")
            yield path, f"expected {_expected(kind)}, got {_shown(value)}.{_near(value, kind)} {remedy}"


def _in_struct(value: dict[str, Any], shape: Any, path: str, page: str) -> Iterator[tuple[str, str]]:
    wrong = list(_in_fields(value, shape, path, page))
    yield from wrong
    if not wrong and hasattr(shape, "__post_init__"):
        try:
            converted(value, shape)
        except msgspec.ValidationError as error:  # each field fits, but not all of them together
            yield path, f"{error}. See {page}."


def _in_fields(value: dict[str, Any], shape: Any, path: str, page: str) -> Iterator[tuple[str, str]]:
    fields = {field.encode_name: field for field in msgspec.structs.fields(shape)}
    for name, each in value.items():
        if name in fields:
            yield from faults(each, fields[name].type, f"{path}.{name}", page=page)
        else:
            near = difflib.get_close_matches(name, fields, n=1)
            remedy = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(fields)}."
            yield f"{path}.{name}", f"no such key. {remedy}"
    for name, field in fields.items():
        if field.required and name not in value:
            yield path, f"{name!r} is missing. Add it. See {page}."


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
    choices = _choices(kind)
    if choices:
        return f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
    if _is_struct(kind) or get_origin(kind) is dict:
        return "a table"
    return "a list" if get_origin(kind) is list else _WORDS.get(kind, "something else")


def _choices(kind: Any) -> list[str]:
    """The values of a type that has but a few."""
    if get_origin(kind) is Literal:
        return [str(word) for word in get_args(kind)]
    return [str(each.value) for each in kind] if isinstance(kind, type) and issubclass(kind, Enum) else []


def _near(value: object, kind: Any) -> str:
    choices = [word for member in _members(_bare(kind)) for word in _choices(_bare(member))]
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


# --- writing --------------------------------------------------------------------------------------------------------


def to_toml(file: File, comment: str = "") -> str:
    """`file` as TOML; each line of `comment` stands above it.

    Written here because a rule file has few shapes and a writer for all of TOML would be one more dependency.
    """
    raw: dict[str, Any] = msgspec.to_builtins(file, builtin_types=(date,))
    raw["format"] = file.format
    lines = [f"# {line}".rstrip() for line in comment.splitlines()]
    tables = {key: value for key, value in raw.items() if _tables(value)}
    lines += [f"{key} = {_value(raw[key])}" for key in ("format", *raw) if key not in tables and key != "format"]
    lines.insert(len(comment.splitlines()), f"format = {file.format}")
    for key, value in tables.items():
        if isinstance(value, list):
            for each in value:
                lines += ["", f"[[{key}]]", *_pairs(each)]
        elif value and all(isinstance(each, Mapping) for each in value.values()) and key != "owners":
            for name, each in value.items():
                lines += ["", f"[{key}.{_key(name)}]", *_pairs(each)]
        else:
            lines += ["", f"[{key}]", *_pairs(value)]
    return "\n".join(lines) + "\n"


def inline(value: Any) -> str:
    """One value of a rule file, such as a cost, as TOML on one line."""
    return _value(msgspec.to_builtins(value, builtin_types=(date,)))


def _tables(value: Any) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, list) and any(isinstance(each, Mapping) for each in value))


def _pairs(table: Mapping[str, Any]) -> list[str]:
    return [f"{_key(key)} = {_value(value)}" for key, value in table.items()]


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _quoted(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, Mapping):
        return f"{{ {', '.join(_pairs(value))} }}" if value else "{}"
    parts = [_value(each) for each in value]
    line = f"[{', '.join(parts)}]"
    # Only a list may go over several lines in TOML, and only one of texts is ever long here.
    if len(line) <= _WIDTH or not all(isinstance(each, str) for each in value):
        return line
    return "[\n" + "".join(f"    {part},\n" for part in parts) + "]"


def _quoted(text: str) -> str:
    # JSON's escapes are TOML's, but for the one control character that JSON leaves as it is.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")
