"""ratekeeper.rules.secrets: what was seen in a request is struck out wherever it comes back."""

from __future__ import annotations

import base64
import html
import json
import time
from typing import Any
from urllib.parse import quote, quote_plus

import pytest

from ratekeeper.rules.call import Request
from ratekeeper.rules.secrets import concealed, holds, redact, secrets_of, struck


def seen(path: str = "/a", params: Any = None, body: Any = None, headers: Any = None) -> frozenset[str]:
    """The secrets of a request."""
    return secrets_of(Request("GET", path, params, body, headers))


BASIC = "Basic " + base64.b64encode(b"me@x:p4s$").decode()


@pytest.mark.parametrize(
    ("request_", "secret"),
    [
        ({"headers": {"X-MBX-APIKEY": "k3y"}}, "k3y"),
        ({"headers": {"Authorization": "Bearer ab1"}}, "ab1"),
        ({"headers": {"authorization": BASIC}}, "p4s$"),
        ({"headers": {"authorization": BASIC}}, "me@x"),
        ({"headers": {"authorization": BASIC}}, BASIC.split()[1]),
        ({"headers": {"OK-ACCESS-PASSPHRASE": "open"}}, "open"),
        ({"headers": {"Cookie": "lang=en; sid=a1b2c3"}}, "a1b2c3"),
        ({"headers": {"Authorization": "AWS4 Credential=AKIA12/x, Signature=fe12ab"}}, "fe12ab"),
        ({"params": {"symbol": "BTCUSDT", "signature": "a1b"}}, "a1b"),
        ({"params": {"apiKey": ["k-1", "k-2"]}}, "k-2"),
        ({"params": {"token": "abcd1234"}}, "abcd1234"),
        ({"body": {"auth": [{"apiSecret": "s/1"}]}}, "s/1"),
        ({"body": {"credentials": {"user": "bob1"}}}, "bob1"),
        ({"path": "/bot12:AbC/getMe"}, "12:AbC"),
        ({"path": "/ws/pqia91ma19a5s61cv6a81va65"}, "pqia91ma19a5s61cv6a81va65"),
        ({"path": "/api-key/aB1/x"}, "aB1"),
        ({"path": "/token/a%2F1"}, "a/1"),
    ],
)
def test_where_secrets_stand(request_: dict[str, Any], secret: str) -> None:
    """In headers, parameters, JSON and paths, of any length from three characters."""
    assert secret in seen(**request_)


def test_what_is_no_secret() -> None:
    """Symbols, words, counts and coins stay readable."""
    assert not seen("/fapi/v1/klines/BTCUSDT", {"symbol": "BTCUSDT", "token": "USDC", "signatureMethod": "HmacSHA256"},
                    {"max_tokens": 1000, "model": "m", "stream_key": True}, {"accept": "json", "x-version": "2"})  # fmt: skip
    assert seen(headers={"x-uid": "u99"}) == frozenset()
    assert secrets_of(Request("GET", "/", headers={"X-UID": "u99"}), ["x-uid"]) == {"u99"}


def test_one_of_a_body_that_has_no_end() -> None:
    """Only so many values are looked at."""
    begun = time.process_time()
    seen(body={"a": [{"apiKey": "x" * 9}] * 500_000})
    assert time.process_time() - begun < 2


FORMS = {
    "plain": lambda secret: secret,
    "query": lambda secret: quote(secret, safe=""),
    "path": quote,
    "form": quote_plus,
    "lower": lambda secret: quote(secret, safe="").lower(),
    "twice": lambda secret: quote(quote(secret, safe=""), safe=""),
    "json": lambda secret: json.dumps(secret)[1:-1],
    "slashes": lambda secret: json.dumps(secret)[1:-1].replace("/", "\\/"),
    "unicode": lambda secret: json.dumps(secret, ensure_ascii=False)[1:-1],
    "repr": lambda secret: repr(secret)[1:-1],
    "html": html.escape,
    "base64": lambda secret: base64.b64encode(secret.encode()).decode(),
    "upper": str.upper,
}


@pytest.mark.parametrize("secret", ["abc", 'a"/b', "p&s w<rd", "ключ/1", "k" * 19, "s3cr3t+/=" * 9])
@pytest.mark.parametrize("form", FORMS)
def test_in_whatever_form_they_come_back(secret: str, form: str) -> None:
    """Alone or amid a word."""
    shown = FORMS[form](secret)
    for text in (f"bad key {shown}!", f"x{shown}y", f'{{"msg": "no {shown}"}}', shown):
        told = redact(text, [secret])
        assert shown.lower() not in told.lower()
        assert "[...]" in told


def test_short_ones_are_struck_out_beside_their_names_alone() -> None:
    """Else nothing would be left of a text; names are struck out without any request, too."""
    assert seen(params={"signature": "1"}, headers={"X-API-Key": "ab"}) == frozenset()
    for text in ("signature=1&a=1", '{"apiKey":"1", "code": -1121}', "X-MBX-APIKEY: 1", "password = '1'",
                 '{\\"secret\\": \\"1\\"}', "Authorization: Basic 1", "access_token=1"):  # fmt: skip
        told = redact(text)
        assert "[...]" in told
        assert "1" not in told.replace("a=1", "").replace("-1121", "")
    assert redact("-1003: 1 of 11 symbols") == "-1003: 1 of 11 symbols"


def test_words_about_secrets_stay() -> None:
    """What a provider says of a key, and not the key."""
    for text in (
        "Signature for this request is not valid.",
        "API-key format invalid.",
        "invalid token",
        "max_tokens=1000",
    ):
        assert redact(text) == text


def test_users_of_addresses() -> None:
    """Basic authentication in a URL."""
    assert redact("GET https://me:pw@h.test/a failed") == "GET https://[...]@h.test/a failed"


def test_a_secret_at_the_end_of_what_is_looked_at() -> None:
    """A text that is cut leaves no beginning of a secret; a huge one takes no time."""
    secret = "s3" * 12
    for before in range(4096 - len(secret), 4097):
        assert "s3s3" not in struck(" " * before + secret, [secret])
    for text in ("a" * 1_000_000, "key=" * 250_000, "://" * 300_000, "apikey-" * 100_000, 'token\\"' * 100_000):
        begun = time.process_time()
        assert len(redact(text, [secret])) <= 200
        assert time.process_time() - begun < 2


def test_a_content_that_holds_one() -> None:
    """An answer that quotes its request."""
    assert holds(b'{"key": "a%2Fb1"}', ["a/b1"])
    assert not holds(b'{"key": "a%2Fb1"}', ["a/b2"])


def test_a_path_without_its_keys() -> None:
    """The same key has the same name; what is no key stays."""
    path = concealed("/bot12:AbC/get/BTC", b"k")
    assert path == concealed("/bot12:AbC/get/BTC", b"k") != concealed("/bot12:AbC/get/BTC", b"l")
    assert "AbC" not in path
    assert path.endswith("/get/BTC")
    assert concealed("/api/v3/klines", b"k") == "/api/v3/klines"
