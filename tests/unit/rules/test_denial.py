"""The answer that a provider gives to a caller it has shut out, made from its rule file."""

from __future__ import annotations

import json
from functools import cache

import pytest
from tests.support.calls import sample_calls

from ratekeeper.rules.book import DATA, Rulebook
from ratekeeper.rules.call import Answer, Call, Outcome
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
        ("binance-usdm", Call("GET", "/fapi/v1/time"), "ban", 418, {"code": -1003}),
        ("binance-spot", Call("GET", "/api/v3/time"), "ban", 418, {"code": -1003}),
        ("binance-usdm", Call("GET", "/fapi/v1/time"), "pause", 429, {"code": -1003, "msg": "why"}),
        ("bybit", Call("GET", "/v5/position/list"), "ban", 403, {"retMsg": "access too frequent"}),
        ("bybit", Call("GET", "/v5/position/list"), "throttle", 200, {"retCode": 10006}),
        ("okx", Call("GET", "/api/v5/market/ticker"), "ban", 429, {"code": "50011", "msg": "why"}),
        ("kraken", Call("POST", "/0/private/Balance"), "ban", 200, {"error": ["EGeneral:Temporary lockout"]}),
        ("kraken", Call("POST", "/0/private/Balance"), "pause", 200, {"error": ["EAPI:Rate limit exceeded (why)"]}),
        ("kucoin", Call("GET", "/api/v1/accounts"), "throttle", 429, {"code": "429000"}),
    ],
)
def test_denials_look_as_the_provider_writes_them(
    name: str, call: Call, kind: str, status: int, body: dict[str, object]
) -> None:
    """Status, code and envelope of some that are known well."""
    rules = provider(name)
    made = rules.denial(rules.plan(call), kind, f"{name}/ip:default", END, NOW, "why")
    assert made.status == status
    assert body.items() <= json.loads(made.body).items()


def test_programs_find_the_end_of_a_ban_where_they_look_for_it() -> None:
    """Binance's text holds it in Unix milliseconds, never too early."""
    rules = provider("binance-spot")
    made = rules.denial(rules.plan(Call("GET", "/api/v3/time")), "ban", "binance-spot/ip:default", END, NOW, "why")
    text = json.loads(made.body)["msg"]
    assert f"IP banned until {END // 1_000_000}." in text
    rules = provider("kucoin")
    made = rules.denial(rules.plan(Call("GET", "/api/v1/accounts")), "throttle", "kucoin/ip:default", END, NOW, "why")
    assert made.headers["gw-ratelimit-reset"] == "74600"


def test_where_nobody_knows_the_end() -> None:
    """Ask again in a minute; no hint says anything else."""
    rules = provider("kucoin")
    made = rules.denial(rules.plan(Call("GET", "/api/v1/accounts")), "pause", "*", 0, NOW, "paused\nby \u00e9")
    assert (made.headers["Retry-After"], made.headers["X-Ratekeeper-Reason"]) == ("60", "paused by ?")
    assert "gw-ratelimit-reset" not in made.headers


def test_a_provider_without_refusals_answers_429() -> None:
    """Nothing is known of its words: HTTP's own."""
    rules = provider("coinbase-exchange")
    bare = Provider(
        type(rules.file)(**{**{f: getattr(rules.file, f) for f in rules.file.__struct_fields__}, "refusals": []})
    )
    made = bare.denial(bare.plan(Call("GET", "/time")), "ban", "coinbase-exchange/ip:default", END, NOW, "why")
    assert (made.status, json.loads(made.body)) == (429, {"message": "why"})
