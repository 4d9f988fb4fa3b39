"""References and what they read."""

from __future__ import annotations

from typing import Any

import pytest

from ratekeeper.rules.call import Headers, Request
from ratekeeper.rules.reading import count, dig_json, header, number, reader, text


@pytest.mark.parametrize(
    ("value", "items"),
    [
        ('["A","B"]', 2),
        (['["A","B","C"]'], 3),
        ("A,B,C", 3),
        ("A", 1),
        (["A", "B"], 2),
        (("A",), 1),
        ([], 0),
        ("[]", 0),
        ("", 0),
        ('[{"a":1,"b":2},{"a":3}]', 2),
        ('["A","B"', 2),
        (b'["A"]', 1),
        ({"symbol": "A"}, 1),
        (7, 1),
    ],
)
def test_count(value: Any, items: int) -> None:
    """A list is counted alike as JSON text, comma text, a sequence or repeated keys."""
    assert count(value) == items


@pytest.mark.parametrize(
    ("value", "result"),
    [
        ("100", 100),
        (100, 100),
        (["100"], 100),
        ("99.2", 100),
        (1.5, 2),
        ("x", None),
        (None, None),
        (True, None),
        ("", None),
        ([1, 2], None),
        ("inf", None),
    ],
)
def test_number(value: Any, result: int | None) -> None:
    """Whole numbers are read as servers would; fractions round up; nonsense is None."""
    assert number(value) == result


def test_reader() -> None:
    """Each root reads its own part of the call, and what is not there is None."""
    call = Request("POST", "/", {"limit": "5", "symbol": ""}, {"a": {"b": [1, {"c": 2}]}}, {"X-Kind": "k"})
    assert reader("limit")(call) == "5"
    assert reader("symbol")(call) is None
    assert reader("body.a.b.1.c")(call) == 2
    assert reader("body.a.b.7")(call) is None
    assert reader("body")(call) == {"a": {"b": [1, {"c": 2}]}}
    assert reader("header.x-kind")(call) == "k"
    assert reader("header.x-none")(call) is None
    assert reader("limit")(Request("GET", "/")) is None


def test_header_in_any_case() -> None:
    """Request headers are found by lower-case name in a plain dict of any case."""
    assert header({"X-MBX-APIKEY": "k1"}, "x-mbx-apikey") == "k1"
    assert header({"x-mbx-apikey": ""}, "x-mbx-apikey") is None
    assert header(None, "x") is None
    assert header(Headers({"x-mbx-apikey": "k1", "X-Other": "k2"}), "x-mbx-apikey") == "k1"
    assert header(Headers({"X-Other": "k2"}), "x-other") is None


def test_text() -> None:
    """Values are compared as the wire shows them."""
    assert [text(True), text(-1003), text("a"), text(["a"]), text(b"a")] == ["true", "-1003", "a", "a", "a"]


def test_dig_json() -> None:
    """A deep field is read without building the rest; broken or other JSON gives None."""
    assert dig_json(b'{"a":{"b":[1,2]},"c":3}', "a.b") == [1, 2]
    assert dig_json(b'{"a":1}', "") == {"a": 1}
    assert dig_json("[1]", "") == [1]
    assert dig_json(b'{"a":1}', "b") is None
    assert dig_json(b"[1]", "a") is None
    assert dig_json(b"<html>", "a") is None
    assert dig_json(None, "a") is None


def test_every_item() -> None:
    """A star reads a field of every item; items without it are left out, and nothing found is None."""
    read = reader("body.args.*.id")
    assert read(Request("WS", "/", None, {"args": [{"id": 1}, {}, {"id": 2}]})) == [1, 2]
    assert read(Request("WS", "/", None, {"args": [{}]})) is None
    assert read(Request("WS", "/", None, {"args": {"id": 1}})) is None
    assert read(Request("WS", "/", None, {"args": []})) is None


def test_dig_json_in_lists() -> None:
    """A number picks an item of a list; beyond its end there is nothing."""
    assert dig_json(b'{"data":[{"ts":"5"},{"ts":"6"}]}', "data.1.ts") == "6"
    assert dig_json(b'{"data":[]}', "data.0.ts") is None
    assert dig_json(b'{"data":{"0":1}}', "data.0") is None
