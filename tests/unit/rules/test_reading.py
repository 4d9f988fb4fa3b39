"""References and what they read; owners: whose limit a call spends, without showing secrets."""

from __future__ import annotations

import hmac
from collections import UserDict
from types import MappingProxyType
from typing import Any

import httpx
import pytest
from multidict import CIMultiDict
from requests.structures import CaseInsensitiveDict
from urllib3 import HTTPHeaderDict

from ratekeeper.rules.call import Headers, Identity, Request
from ratekeeper.rules.reading import count, dig_json, digest, header, number, owner_of, reader, scope_text, text
from ratekeeper.rules.schema import Owner


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
    """Request headers are found by lower-case name in a plain mapping of any case, and in those of the client libraries."""
    for kind in (dict, UserDict, MappingProxyType, httpx.Headers, CaseInsensitiveDict, CIMultiDict, HTTPHeaderDict):
        assert header(kind({"X-MBX-APIKEY": "k1"}), "x-mbx-apikey") == "k1"
        assert header(kind({"X-MBX-APIKEY": "k1"}), "x-other") is None
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


# --- Owners. --------------------------------------------------------------------------------------------------------

OWNERS = {"account": Owner(header=["x-key", "authorization"]), "key": Owner(header="x-key")}


def ask(kind: str, call: Request, identity: Identity | None = None, **owners: Owner) -> str:
    """The owner of `kind` for a call."""
    return owner_of(kind, {**OWNERS, **owners})(call, identity or Identity(), "GET/x")


def test_digest_is_keyed() -> None:
    """A key appears as 12 hex digits of an HMAC-SHA256 that depends on the store's secret."""
    assert digest(b"s1", "k1") == hmac.new(b"s1", b"k1", "sha256").hexdigest()[:12]
    assert digest(b"s1", "k1") != digest(b"s2", "k1")
    assert "k1" not in digest(b"s1", "k1")


def test_account_and_key() -> None:
    """The identity's account goes first, then the first header that is there; without any it is anonymous."""
    call = Request("GET", "/x", headers={"X-Key": "k1"})
    assert ask("account", call) == ask("key", call) == digest(b"", "k1")
    assert ask("account", call, Identity(account="main")) == "main"
    assert ask("key", call, Identity(account="main")) == digest(b"", "k1")
    assert ask("account", Request("GET", "/x", headers={"authorization": "k2"})) == digest(b"", "k2")
    assert ask("account", Request("GET", "/x")) == "anonymous"


def test_values() -> None:
    """An owner may be a parameter, a part of it, or a pool that its value belongs to."""
    call = Request("POST", "/", {"instId": "BTC-USD-261225"}, {"model": "opus-4-7"})
    assert ask("instrument", call, instrument=Owner(value="instId")) == "BTC-USD-261225"
    assert ask("family", call, family=Owner(value="instId", pattern=r"^([A-Z]+-[A-Z]+)")) == "BTC-USD"
    assert ask("whole", call, whole=Owner(value="instId", pattern=r"\d+")) == "261225"
    assert ask("pool", call, pool=Owner(value="body.model", names={"opus-4-*": "opus-4", "*": "rest"})) == "opus-4"
    assert ask("instrument", Request("GET", "/"), instrument=Owner(value="instId")) == "none"
    assert ask("connection", Request("WS-SEND", "/ws", {"connection": "c1"})) == "c1"


def test_built_in() -> None:
    """The address is the identity's egress, the endpoint what the route says."""
    assert ask("ip", Request("GET", "/"), Identity(egress="vpn")) == "vpn"
    assert ask("endpoint", Request("GET", "/")) == "GET/x"


def test_names_are_fit_for_keys() -> None:
    """Commas and blanks cannot forge a second owner, and endless names are cut without becoming one."""
    forged = ask("instrument", Request("GET", "/", {"i": "A,ip:other\n"}), instrument=Owner(value="i"))
    assert "," not in forged
    assert "\n" not in forged
    first, second = (ask("i", Request("GET", "/", {"i": "x" * 500 + end}), i=Owner(value="i")) for end in "ab")
    assert len(first) <= 80
    assert first != second


def test_scope_text() -> None:
    """Several owners are joined by commas."""
    assert scope_text((("ip", "default"), ("endpoint", "GET/x"))) == "ip:default,endpoint:GET/x"


def test_first_reference_that_is_there() -> None:
    """An owner may stand in several places; the first that is filled counts."""
    owner = Owner(value=["instId", "body.instId", "body.*.instId"])
    assert ask("i", Request("GET", "/", {"instId": "A"}, {"instId": "B"}), i=owner) == "A"
    assert ask("i", Request("POST", "/", None, {"instId": "B"}), i=owner) == "B"
    assert ask("i", Request("POST", "/", None, [{"instId": "C"}]), i=owner) == "C"
    assert ask("i", Request("POST", "/", None, []), i=owner) == "none"


def test_several_owners_of_one_kind() -> None:
    """A batch may belong to several; each name is made fit for a key by itself."""
    owner = Owner(value="body.*.instId", pattern=r"^\w+-\w+")
    batch = [{"instId": "ETH-USD-1"}, {"instId": "BTC-USD-2"}, {"instId": "ETH-USD-3"}, {"side": "buy"}]
    assert ask("i", Request("POST", "/", None, batch), i=owner) == "BTC-USD,ETH-USD,ETH-USD"
    forged = [{"instId": "A,ip:x"}, {"instId": "B"}]
    assert ask("i", Request("POST", "/", None, forged), i=Owner(value="body.*.instId")) == "A_ip:x,B"
