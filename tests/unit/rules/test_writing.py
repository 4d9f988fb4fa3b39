"""Rule files as TOML text."""

from __future__ import annotations

from pathlib import Path

import pytest

from ratekeeper.rules.book import DATA
from ratekeeper.rules.files import parse, read
from ratekeeper.rules.schema import Condition, Term
from ratekeeper.rules.writing import inline, to_toml


@pytest.mark.parametrize("path", sorted(DATA.glob("*.toml")), ids=lambda path: path.stem)
def test_round_trip(path: Path) -> None:
    """Every bundled file survives being written and read."""
    file = read(path)
    assert parse(to_toml(file), path.name) == file


def test_text_is_exact() -> None:
    """Quotes, controls, keys that need quotes, and long lists over several lines."""
    text = to_toml(read(DATA / "binance-usdm.toml"), "first\n\nthird")
    assert text.startswith("# first\n#\n# third\nformat = 1\nname = ")
    assert all(len(line) < 400 for line in text.splitlines())
    assert inline({"a b": 'say "x"\t\x7f\\', "c": [1, True, 2.5]}) == (
        '{ "a b" = "say \\"x\\"\\t\\u007F\\\\", c = [1, true, 2.5] }'
    )
    assert inline({"body.type": Condition(one_of=["a"])}) == '{ "body.type" = { one_of = ["a"] } }'
    assert inline(Term(by="limit", bands=[(9, 1)], missing=2)) == '{ by = "limit", bands = [[9, 1]], missing = 2 }'
