"""Reading rule files: errors name the file, the key and the remedy."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest

from ratekeeper.config.file import read_settings
from ratekeeper.errors import RuleError
from ratekeeper.rules.book import DATA
from ratekeeper.rules.files import faults, inline, parse, parse_head, read, read_head, to_toml, toml_of
from ratekeeper.rules.schema import Condition, Term

GOOD = """
format = 1
name = "test"
title = "Test"
source = "S"
[sources]
S = { title = "t", read = 2026-11-20, confidence = "D" }
[limits.calls-1m]
unit = "calls"
capacity = 10
period = "1m"
[limits.other]
unit = "calls"
capacity = 10
period = "1m"
[default]
[[routes]]
match = "GET /a"
cost = { calls = 1 }
[[routes]]
match = "GET /b"
[routes.cost]
calls = { by = "n", bands = [[1, 2]], missing = 1 }
"""


def test_good() -> None:
    """A good file is read as it stands."""
    assert parse(GOOD).limits["calls-1m"].capacity == 10


@pytest.mark.parametrize(
    ("old", "new", "key", "words"),
    [
        ('name = "test"', "", "$", "'name' is missing. Add it."),
        ('name = "test"', 'name = "A b"', "$.name", "a name of a-z, 0-9, dots and dashes"),
        ("format = 1", "format = 2", "$.format", "2"),
        (
            "capacity = 10\nperiod",
            'capacity = "x"\nperiod',
            "$.limits.calls-1m.capacity",
            'a whole number from 1, got "x"',
        ),
        ("capacity = 10\nperiod", "capacity = 0\nperiod", "$.limits.calls-1m.capacity", "a whole number from 1, got 0"),
        ("[limits.other]\nunit", "[limits.other]\nunits = 1\nunit", "$.limits.other", "Did you mean 'unit'?"),
        ("[limits.other]\nunit", '[limits.other]\nwindow = "leaky"\nunit', "$.limits.other.window", "leaky"),
        (
            "[limits.other]\nunit",
            '[limits.other]\nwindow = "fixd"\nunit',
            "$.limits.other.window",
            "Did you mean 'fixed'?",
        ),
        ("[limits.other]", "[limits.Other]", "$.limits.Other", "expected a name of a-z, 0-9, dots and dashes"),
        ("bands = [[1, 2]]", "bands = [[1, -2]]", "$.routes[1].cost.calls", "bands"),
        ("bands = [[1, 2]]", "band = [[1, 2]]", "$.routes[1].cost.calls", "Did you mean 'bands'?"),
        ('confidence = "D"', 'confidence = "Z"', "$.sources.S.confidence", "Z"),
        ("read = 2026-11-20, ", "", "$.sources.S", "'read' is missing. Add it."),
        ("[default]", '[default]\nclass = "buy"', "$.default.class", "buy"),
    ],
)
def test_wrong(old: str, new: str, key: str, words: str) -> None:
    """Each mistake is found at its key, also inside tables with free keys, and the message helps."""
    assert old in GOOD
    with pytest.raises(RuleError) as caught:
        parse(GOOD.replace(old, new, 1), "my.toml")
    assert caught.value.file == "my.toml"
    assert caught.value.key == key or caught.value.key.startswith(f"{key}.")
    assert words in str(caught.value) or words in caught.value.key
    assert str(caught.value).startswith(f"my.toml at {caught.value.key}: ")


def test_first_of_two_culprits() -> None:
    """With the same mistake twice one real key is named."""
    with pytest.raises(RuleError) as caught:
        parse(GOOD.replace("capacity = 10", "capacity = 0"))
    assert caught.value.key in {"$.limits.calls-1m.capacity", "$.limits.other.capacity"}


def test_not_toml() -> None:
    """A syntax error names the line."""
    with pytest.raises(RuleError, match=r"my\.toml:3: is not TOML: .*line 3"):
        parse("a = 1\n\nb = ?\n", "my.toml")


def test_unreadable(tmp_path: Path) -> None:
    """A missing file and one that is no text are rule errors as well."""
    with pytest.raises(RuleError, match="cannot be read"):
        read(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RuleError, match="cannot be read"):
        read_head(tmp_path / "binary.toml")


def test_head() -> None:
    """The head is read without the rest, whatever the rest is."""
    head = parse_head('name = "test"\nhosts = ["a.example",\n "b.example"]\n[limits]\nnonsense')
    assert (head.name, head.hosts, head.paths) == ("test", ["a.example", "b.example"], [])


# --- Rule files as TOML text. ----------------------------------------------------------------------------------------


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


# --- Values judged one by one. ---------------------------------------------------------------------------------------


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    """A table with a key that must be there."""

    size: Annotated[int, msgspec.Meta(ge=1, title="a size", description="Write 1 or more.")]
    kind: Literal["big", "small"] = "big"


class Outer(msgspec.Struct, forbid_unknown_fields=True):
    """A table of tables."""

    inner: dict[str, Inner] = {}
    either: str | Inner = ""
    names: str | list[str] = ""
    part: float | None = None


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        ({"inner": {"a": {"size": 1}}, "either": {"size": 2}, "names": ["x"], "part": 1}, []),
        ({"inner": {"a": {"size": 0}}}, ["$.inner.a.size: expected a size, got 0. Write 1 or more."]),
        ({"inner": {"a": {"size": 1, "kind": "bg"}}}, ["$.inner.a.kind: expected one of big, small, got"]),
        ({"inner": {"a": {"sise": 1}}}, ["$.inner.a.sise: no such key. Did you", "$.inner.a: 'size' is missing."]),
        ({"inner": {"a": {"size": 1}, "b": 2}}, ["$.inner.b: expected a table, got 2."]),
        ({"either": {"size": "x"}}, ['$.either.size: expected a size, got "x".']),
        ({"either": 1}, ["$.either: expected a string or a table, got 1."]),
        ({"names": ["a", 2]}, ["$.names[1]: expected a string, got 2."]),
        ({"names": {}}, ["$.names: expected a string or a list, got a table."]),
        ({"part": "redis://me:word@host"}, ["$.part: expected a number, got an address."]),
        ({"part": "x" * 100}, [f'$.part: expected a number, got "{"x" * 39}….']),
        ({"inner": [], "more": 1}, ["$.inner: expected a table, got a list", "$.more: no such key. There are: inner"]),
    ],
)  # fmt: skip
def test_all_faults_are_found(raw: dict[str, Any], told: list[str]) -> None:
    """Each with its path, what was expected, what is there and what to write; nothing is found in what is right."""
    found = [f"{path}: {text}" for path, text in faults(raw, Outer, page="a page")]
    assert len(found) == len(told)
    assert [text for text, start in zip(found, told, strict=True) if not text.startswith(start)] == []


DEEP = {
    "lists": ("\nsource = " + "[" * 1000 + "]" * 1000, 2),
    "lists over lines": ("source = " + "[\n" * 1000 + "]" * 1000, 65),
    "tables in a line": ("source = " + "{a = " * 1000 + "1" + "}" * 1000, 1),
    "lists and tables": ("source = " + "[{a=" * 500 + "1" + "}]" * 500, 1),
    "a table": ("\n\n[" + ".".join(["a"] * 1000) + "]\nb = 1", 3),
    "a list of tables": ("[[" + ".".join(["a"] * 1000) + "]]\nb = 1", 1),
    "a key": (".".join(["a"] * 1000) + " = 1", 1),
    "what does not end": ("source = " + "[" * 1000, 1),
    "many headers": ("\n".join("[[" + ".".join(["a"] * depth) + "]]" for depth in range(1, 200)), 65),
}


@pytest.mark.parametrize("deep", DEEP)
def test_what_is_too_deep(deep: str) -> None:
    """It is one error that names the line, and never a crash, however full the stack is."""
    text, line = DEEP[deep]
    for read_text in (parse, lambda text, file: read_settings_of(text)):
        with pytest.raises(RuleError, match="has more than 64 tables or lists inside each other") as caught:
            read_text(text, "f.toml")
        assert caught.value.line == line


def read_settings_of(text: str) -> None:
    """As a configuration."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "ratekeeper.toml"
        file.write_text(text)
        read_settings(file)


@pytest.mark.parametrize(
    "text",
    [
        "source = " + "[" * 60 + "]" * 60,
        'a = "' + "[" * 999 + "\"\nb = '" + "{" * 999 + "'",
        "# " + "[" * 999 + "\na = 1",
        'a = """\n' + "[" * 999 + '\n\\""" """\nb = 1',
        "a = '''\n" + "[" * 999 + "\n'''\nb = 1",
        "\n".join("[t" + str(at) + "]" for at in range(999)),
    ],
)
def test_what_only_looks_deep(text: str) -> None:
    """Brackets in strings and comments, and many tables side by side."""
    assert toml_of(text, "") is not None


def test_a_number_of_thousands_of_digits() -> None:
    """No crash either."""
    with pytest.raises(RuleError, match="is not TOML"):
        toml_of("a = 1" + "0" * 5000, "f.toml")
