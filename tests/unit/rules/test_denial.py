"""The answer that a provider gives to a caller it has shut out, made from its rule file."""

from __future__ import annotations

import json
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest
from tests.support.calls import sample_calls

from ratekeeper.rules import denial
from ratekeeper.rules.book import DATA, Rulebook
from ratekeeper.rules.call import Answer, Outcome, Request
from ratekeeper.rules.denial import Envelope, filled, put, sample
from ratekeeper.rules.files import read
from ratekeeper.rules.provider import Provider

SECOND = 1_000_000_000
NOW = 1_763_694_000 * SECOND + 250_000_000
END = NOW + 74_600_000_000
NAMES = sorted(path.stem for path in DATA.glob("*.toml"))


@cache
def provider(name: str) -> Provider:
    """Its rules."""
    return Rulebook.load().provider(name)


@pytest.mark.parametrize("kind", ["ban", "throttle", "pause", "breaker"])
@pytest.mark.parametrize("name", NAMES)
def test_every_provider_refuses_in_a_form_that_its_own_rules_know(name: str, kind: str) -> None:
    """Its clients take it for a refusal; the wait is in whole seconds, rounded up, and the reason is there for people."""
    rules = provider(name)
    banned = {refusal.outcome for refusal in rules.file.refusals}
    for call, _ in sample_calls(rules):
        plan = rules.plan(call)
        if not plan.route or plan.route.startswith("WS"):
            continue
        made = rules.denial(plan, kind, f"{name}/ip:default", END, NOW, "shut (why)")
        assert (made.headers["Retry-After"], made.headers["X-Ratekeeper-Reason"]) == ("75", "shut (why)")
        assert "retry-after" not in made.headers
        json.loads(made.body)
        headers = {header.lower(): value for header, value in made.headers.items()}
        told = rules.feedback(plan, Answer(made.status, headers, made.body), now=NOW)
        expected = Outcome.BANNED if kind == "ban" and "banned" in banned else Outcome.THROTTLED
        assert told.outcome is expected, (plan.route, made)


@pytest.mark.parametrize(
    ("name", "call", "kind", "status", "body"),
    [
        ("binance-usdm", Request("GET", "/fapi/v1/time"), "ban", 418, {"code": -1003}),
        ("binance-spot", Request("GET", "/api/v3/time"), "ban", 418, {"code": -1003}),
        ("binance-usdm", Request("GET", "/fapi/v1/time"), "pause", 429, {"code": -1003, "msg": "why"}),
        ("bybit", Request("GET", "/v5/position/list"), "ban", 403, {"retMsg": "access too frequent"}),
        ("bybit", Request("GET", "/v5/position/list"), "throttle", 200, {"retCode": 10006}),
        ("okx", Request("GET", "/api/v5/market/ticker"), "ban", 429, {"code": "50011", "msg": "why"}),
        ("kraken", Request("POST", "/0/private/Balance"), "ban", 200, {"error": ["EGeneral:Temporary lockout"]}),
        ("kraken", Request("POST", "/0/private/Balance"), "pause", 200, {"error": ["EAPI:Rate limit exceeded (why)"]}),
        ("kucoin", Request("GET", "/api/v1/accounts"), "throttle", 429, {"code": "429000"}),
    ],
)
def test_denials_look_as_the_provider_writes_them(
    name: str, call: Request, kind: str, status: int, body: dict[str, object]
) -> None:
    """Status, code and envelope of some that are known well."""
    rules = provider(name)
    made = rules.denial(rules.plan(call), kind, f"{name}/ip:default", END, NOW, "why")
    assert made.status == status
    assert body.items() <= json.loads(made.body).items()


def test_programs_find_the_end_of_a_ban_where_they_look_for_it() -> None:
    """Binance's text holds it in Unix milliseconds, never too early."""
    rules = provider("binance-spot")
    made = rules.denial(rules.plan(Request("GET", "/api/v3/time")), "ban", "binance-spot/ip:default", END, NOW, "why")
    text = json.loads(made.body)["msg"]
    assert f"IP banned until {END // 1_000_000}." in text
    rules = provider("kucoin")
    made = rules.denial(
        rules.plan(Request("GET", "/api/v1/accounts")), "throttle", "kucoin/ip:default", END, NOW, "why"
    )
    assert made.headers["gw-ratelimit-reset"] == "74600"


def test_where_nobody_knows_the_end() -> None:
    """Ask again in a minute; no hint says anything else."""
    rules = provider("kucoin")
    made = rules.denial(rules.plan(Request("GET", "/api/v1/accounts")), "pause", "*", 0, NOW, "paused\nby \u00e9")
    assert (made.headers["Retry-After"], made.headers["X-Ratekeeper-Reason"]) == ("60", "paused by ?")
    assert "gw-ratelimit-reset" not in made.headers


def test_a_provider_without_refusals_answers_429() -> None:
    """Nothing is known of its words: HTTP's own."""
    rules = provider("coinbase-exchange")
    bare = Provider(
        type(rules.file)(**{**{f: getattr(rules.file, f) for f in rules.file.__struct_fields__}, "refusals": []})
    )
    made = bare.denial(bare.plan(Request("GET", "/time")), "ban", "coinbase-exchange/ip:default", END, NOW, "why")
    assert (made.status, json.loads(made.body)) == (429, {"message": "why"})


# --- Texts made up for regular expressions. --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pattern",
    [
        "plain",
        r"(?i)too many requests",
        r"until (\d{13})",
        r"(\d*)\s*(SECOND|MINUTE)",
        r"(?i)<html|<!doctype|waf",
        r"\bIP\b",
        r"[^a-z]x[A-C]+",
        r"a(?!b)c",
        r"^a.c\w{2,3}?$",
    ],
)
def test_the_text_is_found(pattern: str) -> None:
    """Whatever is made up matches its own expression."""
    assert re.search(pattern, sample(pattern))


def test_the_first_group_reads_as_asked() -> None:
    """That is where a text names an instant."""
    assert sample(r"banned until (\d{13})\.", "1763694000000") == "banned until 1763694000000."


@pytest.mark.parametrize("pattern", ["(?=ahead)x", r"(a)\1", "a(?!b)b"])
def test_what_is_not_understood_is_said(pattern: str) -> None:
    """No wrong text goes out."""
    with pytest.raises(ValueError, match=r"not understood|found no text"):
        sample(pattern)


@pytest.mark.parametrize("path", sorted(DATA.glob("*.toml")), ids=lambda path: path.stem)
def test_every_refusal_of_the_rule_files_can_be_said(path: object) -> None:
    """The expressions that are in use are all understood."""
    for rule in read(path).refusals:  # type: ignore[arg-type]
        if rule.text:
            assert re.search(rule.text, sample(rule.text))


# --- How providers wrap their answers. -------------------------------------------------------------------------------


DATED = 1_763_694_000_123_456_789
TABLE = tomllib.loads(Path(denial.__file__).with_name("envelopes.toml").read_text("utf-8"))


@pytest.mark.parametrize("name", sorted(TABLE))
def test_every_envelope_is_json_of_a_provider_with_rules(name: str) -> None:
    """No typing error in the table: all bodies decode, and the provider exists."""
    assert (DATA / f"{name}.toml").exists()
    envelope = Envelope.of(name)
    for template in (envelope.ok, envelope.failed, *envelope.routes.values()):
        json.loads(filled(template, DATED))


def test_the_time_is_filled_in() -> None:
    """Seconds to nanoseconds, and the ISO form."""
    assert filled("$s $ms $us $ns $iso", DATED).decode().split() == [
        "1763694000",
        "1763694000123",
        "1763694000123456",
        "1763694000123456789",
        "2025-11-21T03:00:00.123Z",
    ]


def test_values_are_put_where_paths_lead() -> None:
    """Tables and lists are made on the way; what is there stays."""
    assert put({"a": 1}, "b.c", 2) == {"a": 1, "b": {"c": 2}}
    assert put({"error": []}, "error.0", "no") == {"error": ["no"]}
    assert put(None, "a.1", "x") == {"a": [None, "x"]}
    assert put([], "", "whole") == "whole"


def test_an_unknown_provider_has_a_plain_one() -> None:
    """A user's own rule file is answered with an empty object."""
    assert Envelope.of("mine").ok == "{}"
