"""How names and numbers fit a width."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from ratekeeper.apps.layout import columns, paragraph, shorten

HEADS = ("", "name", ("pid", "used"))
ROW = ("  a ", "b" * 30, ("123", "4 of 5"))


def test_a_name_keeps_both_its_ends() -> None:
    """They tell one account from another; control characters reach no terminal."""
    assert shorten("subaccount-0017", 9) == "suba…0017"
    assert shorten("short", 9) == "short"
    assert shorten("a\x1b[31mb\nc", 20) == "a [31mb c"
    assert shorten("帳戶帳戶帳戶帳戶", 7) == "帳戶…戶"
    assert shorten("long", 0) == "…"


def test_columns_beside_a_name() -> None:
    """The head before a name stays whole, like all other cells."""
    assert columns([HEADS, ROW], 40, right=(0,)) == [
        ["name                         pid  used"],
        ["  a bbbbbbbbbbb…bbbbbbbbbbb  123  4 of 5"],
    ]


def test_columns_below_a_name() -> None:
    """Where there is no room, each cell says what it is, and none is broken."""
    assert columns([HEADS, ROW, ("", "c", ("", "7"))], 26) == [
        ["name"], ["  a bbbbbbbbbbb…bbbbbbbbbb", "    pid 123  used 4 of 5"], ["c", "    used 7"],
    ]  # fmt: skip
    assert columns([HEADS, ROW], 20)[1] == ["  a bbbbbbbb…bbbbbbb", "    pid 123", "    used 4 of 5"]


def test_a_paragraph_breaks_between_words() -> None:
    """Never within a number."""
    out = StringIO()
    Console(file=out, width=20).print(paragraph("1,000 of it used, 2,000 more", 20))
    assert out.getvalue().splitlines() == ["    1,000 of it", "      used, 2,000", "      more"]
