"""Owners: whose limit a call spends, without showing secrets."""

from __future__ import annotations

import hmac

from ratekeeper.rules.call import Identity, Request
from ratekeeper.rules.schema import Owner
from ratekeeper.rules.scopes import digest, owner_of, scope_text

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
