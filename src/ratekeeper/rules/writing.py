"""A rule file as TOML text: exact (`parse` gives the same `File` back), and made to be read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import date
from typing import Any, Final

import msgspec

from ratekeeper.rules.schema import File

__all__ = ["inline", "to_toml"]

_WIDTH: Final = 120


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
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _text(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Mapping):
        return f"{{ {', '.join(_pairs(value))} }}" if value else "{}"
    parts = [_value(each) for each in value]
    line = f"[{', '.join(parts)}]"
    # Only a list may go over several lines in TOML, and only one of texts is ever long here.
    if len(line) <= _WIDTH or not all(isinstance(each, str) for each in value):
        return line
    return "[\n" + "".join(f"    {part},\n" for part in parts) + "]"


def _text(text: str) -> str:
    # JSON's escapes are TOML's, but for the one control character that JSON leaves as it is.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")
