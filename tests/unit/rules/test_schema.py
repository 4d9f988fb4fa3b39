"""The format's documentation: the schema is current, and every piece of TOML on the page is true."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ratekeeper.rules.checks import check, unready
from ratekeeper.rules.provider import Provider
from ratekeeper.rules.schema import File, schema_json

REFERENCE = Path(__file__).parents[3] / "docs" / "reference"
PAGE = (REFERENCE / "rules-format.md").read_text("utf-8")
SECTIONS = re.split(r"^#{2,3} +", PAGE, flags=re.MULTILINE)[1:]
SNIPPETS = [
    (section.split("\n")[0], "**Later**" in section, code)
    for section in SECTIONS
    for code in re.findall(r"```toml\n(.*?)```", section, re.DOTALL)
]


def completed(fragment: dict[str, Any]) -> dict[str, Any]:
    """A piece of the page with the least that a whole file needs; what the piece itself says stays."""
    source = {"title": "test", "read": "2026-11-20", "confidence": "D"}
    limit = {"unit": "calls", "capacity": 100, "period": "1m"}
    least = {"format": 1, "name": "test", "title": "Test", "limits": {"calls-1m": limit}, "default": {}}
    return {"source": "S", **least, **fragment, "sources": {"S": source, **fragment.get("sources", {})}}


def test_schema_is_current() -> None:
    """The stored JSON schema is what `ratekeeper rules schema` prints."""
    assert (REFERENCE / "rules.schema.json").read_bytes() == schema_json()


@pytest.mark.parametrize(("title", "later", "code"), SNIPPETS, ids=[f"{i}-{s[0][:40]}" for i, s in enumerate(SNIPPETS)])
def test_page(title: str, later: bool, code: str) -> None:
    """Each piece is valid; it can be used now unless its section says Later, and then it really cannot."""
    file = msgspec.convert(completed(tomllib.loads(code)), File)
    check(file, title)
    assert bool(unready(file)) == later, title
    if not later:
        assert Provider(file).limits


def test_page_is_complete() -> None:
    """Every field of the format occurs in the page's prose or TOML."""
    structs = [
        kind for kind in vars(__import__("ratekeeper.rules.schema", fromlist=["x"])).values() if isinstance(kind, type)
    ]
    fields = {name for kind in structs if issubclass(kind, msgspec.Struct) for name in kind.__struct_encode_fields__}
    assert {name for name in fields if not re.search(rf"\b{re.escape(name)}\b", PAGE)} == set()
