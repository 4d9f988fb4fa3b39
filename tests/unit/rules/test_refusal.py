"""Refusals: what they are, what they name, and until when."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.support.ends import until

from ratekeeper.ledger.limit import SECOND
from ratekeeper.rules.call import Answer, Feedback, Outcome, Request
from ratekeeper.rules.provider import Provider
from ratekeeper.rules.secrets import redact

NOW = 1_795_220_621 * SECOND
DAY = 86_400 * SECOND
FRAGMENT = r"""
[owners]
account.header = "x-key"

[limits]
weight-1m = { unit = "weight", capacity = 1000, period = "1m", window = "fixed" }
orders-10s = { unit = "orders", capacity = 50, period = "10s", window = "fixed", scope = "account" }
orders-1d = { unit = "orders", capacity = 5000, period = "1d", window = "fixed", scope = "account" }

[[routes]]
match = "GET /w"
class = "market"
cost = { weight = 1 }

[[routes]]
match = "POST /order"
class = "order"
cost = { orders = 1 }

[[routes]]
match = "WS /order"
class = "order"
cost = { orders = 1 }

[hints]
shortest = "2s"
longest = "7d"
retry = [
    { header = "retry-after", format = "retry-after" },
    { text = 'until (\d{13})', format = "epoch-ms" },
    { body = "data.retryAfter", format = "epoch-ms" },
]

[ban]
first = "3m"

[[refusals]]
status = [418]
outcome = "banned"
block = "ip"

[[refusals]]
status = [403]
text = "too frequent"
outcome = "banned"
block = "ip"
hold = "10m"

[[refusals]]
body = { "error.code" = ["30007"] }
routes = ["WS*"]
outcome = "throttled"
limits = ["orders-10s"]

[[refusals]]
status = [429]
body = { code = [-1015] }
outcome = "throttled"
limits = ["orders"]
interval = '(\d*)\s*(SECOND|MINUTE|HOUR|DAY)'

[[refusals]]
status = [200, 429]
body = { code = ["50011"] }
outcome = "throttled"
limits = ["weight"]

[[refusals]]
status = [429]
text = "insufficient_quota"
outcome = "money gone"
block = "provider"
hold = "1h"
retry = []

[[refusals]]
status = [503]
body = { code = [-1008] }
outcome = "overloaded"
charged = false
"""
W, IP = "test/weight-1m/ip:default", "test/ip:default"
SHORT, LONG = "test/orders-10s/account:anonymous", "test/orders-1d/account:anonymous"


@pytest.fixture
def tell(provider_of: Callable[[str], Provider]) -> Callable[..., Feedback]:
    """Feedback to an answer of this page's provider."""
    provider = provider_of(FRAGMENT)

    def told(call: tuple[str, str], status: int, body: Any = None, **headers: str) -> Feedback:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return provider.feedback(provider.plan(Request(*call)), Answer(status, names, body), now=NOW)

    return told


def blocks(told: Feedback) -> list[tuple[str, float, str]]:
    """(scope, seconds from now, kind) of every block."""
    return [(block.scope, (until(block, NOW) - NOW) / SECOND, block.kind) for block in told.blocks]


def test_ban_with_a_header(tell: Callable[..., Feedback]) -> None:
    """A ban shuts the address for as long as the header says."""
    told = tell(("GET", "/w"), 418, b'{"code":-1003,"msg":"no"}', retry_after="600")
    assert told.outcome is Outcome.BANNED
    assert blocks(told) == [(IP, 600, "ban")]


def test_ban_in_the_text(tell: Callable[..., Feedback]) -> None:
    """A ban's end is read out of the text, and of several hints the latest counts."""
    text = b'{"code":-1003,"msg":"IP(192.0.2.1) banned until 1795221221000."}'
    assert blocks(tell(("GET", "/w"), 418, text)) == [(IP, 600, "ban")]
    assert blocks(tell(("GET", "/w"), 418, text, retry_after="60")) == [(IP, 600, "ban")]
    assert blocks(tell(("GET", "/w"), 418, text, retry_after="900")) == [(IP, 900, "ban")]


def test_ban_without_an_end(tell: Callable[..., Feedback]) -> None:
    """Where no end is stated, the signature's own time holds, or none is said: the ladder is for whoever counts bans."""
    assert [(block.scope, until(block, NOW)) for block in tell(("GET", "/w"), 418).blocks] == [(IP, 0)]
    assert blocks(tell(("GET", "/w"), 403, b"access too frequent")) == [(IP, 600, "ban")]


@pytest.mark.parametrize(
    ("hint", "seconds"),
    [("1", 2), ("0.001", 2), ("700000", 604800), ("2000000", 604800)],
)
def test_absurd_hints(tell: Callable[..., Feedback], hint: str, seconds: float) -> None:
    """Hints that are very short or beyond a week are moved to the bounds."""
    assert blocks(tell(("GET", "/w"), 418, retry_after=hint)) == [(IP, seconds, "ban")]


@pytest.mark.parametrize("hint", ["31536000", "99999999", "1e30", "Tue, 24 Nov 2036 00:00:00 GMT"])
@pytest.mark.parametrize("status", [418, 429, 503])
def test_a_hint_of_years_is_doubted(tell: Callable[..., Feedback], status: int, hint: str) -> None:
    """It is told and counts as no hint: the length of a ban is the ladder's, any other wait is guessed."""
    told = tell(("GET", "/w"), status, retry_after=hint)
    assert (told.wait, [doubt.about for doubt in told.doubted]) == (None, ["retry hint"])
    assert all(block.wait is None or block.wait.after <= 60 * SECOND for block in told.blocks)
    assert tell(("GET", "/w"), status, retry_after="-5").doubted == ()
    assert tell(("GET", "/w"), status, retry_after="1e400").wait is None


@pytest.mark.parametrize("hint", ["nan", "soon", "", "-5", "0", "1e999", "Sat, 21 Nov 2026 00:23:41 GMT"])
def test_unreadable_hints(tell: Callable[..., Feedback], hint: str) -> None:
    """What cannot be read, or has passed, is no hint: how long is then for whoever counts refusals."""
    assert [until(block, NOW) for block in tell(("GET", "/w"), 418, retry_after=hint).blocks] == [0]


def test_hint_in_the_body(tell: Callable[..., Feedback]) -> None:
    """A hint may be a field of the body, in epoch milliseconds."""
    told = tell(("GET", "/w"), 418, b'{"data":{"retryAfter":1795220721000}}')
    assert blocks(told) == [(IP, 100, "ban")]


def test_named_window(tell: Callable[..., Feedback]) -> None:
    """A refusal that names a window fills that one; the other windows of the unit stay as they are."""
    text = b'{"code":-1015,"msg":"Too many new orders; current limit is 50 orders per %s."}'
    assert tell(("POST", "/order"), 429, text % b"10 SECOND").full == (SHORT,)
    assert tell(("POST", "/order"), 429, text % b"DAY").full == (LONG,)
    assert tell(("POST", "/order"), 429, text % b"fortnight").full == (SHORT,)
    assert blocks(tell(("POST", "/order"), 429, text % b"10 SECOND", retry_after="4")) == [(SHORT, 4, "throttle")]


def test_named_limit_that_was_not_charged(tell: Callable[..., Feedback]) -> None:
    """A full limit that this call did not spend on is held for the rest of its window, if its owner is known."""
    told = tell(("POST", "/order"), 429, b'{"code":"50011"}')
    assert told.full == ()
    assert blocks(told) == [(W, 19, "throttle")]
    assert blocks(tell(("GET", "/w"), 429, b'{"code":-1015}')) == [(IP, 2, "throttle")]  # nobody's: the address waits


OWN = """
[owners]
account.header = "x-key"

[limits]
ip-1m = { unit = "calls", capacity = 100, period = "1m" }
place-2s = { unit = "orders", capacity = 60, period = "2s", scope = "account" }
account-2s = { unit = "orders", capacity = 100, period = "2s", scope = "account" }
slots = { unit = "slots", capacity = 2, window = "slots" }

[every]
ip-1m = 1

[[routes]]
match = "POST /order"
class = "order"
cost = { place-2s = 1, account-2s = 1, slots = 1 }

[[routes]]
match = "GET /open"

[[refusals]]
status = [200, 429]
body = { code = [50011], "data.*.sCode" = [50011] }
outcome = "throttled"

[[refusals]]
status = [429]
text = "address"
outcome = "throttled"
limits = ["ip-1m"]
hold = "5m"

[[refusals]]
status = [200]
text = "maintenance"
outcome = "overloaded"
"""


def test_nothing_named(provider_of: Callable[[str], Provider]) -> None:
    """A refusal that names nobody means the call's own pool: not what every call spends, and of equals the first."""
    provider = provider_of(OWN)
    body = b'{"code":50011,"data":[{"sCode":"0"},{"sCode":"50011"}]}'
    for call, full in (
        (("POST", "/order"), "test/place-2s/account:anonymous"),
        (("GET", "/open"), "test/ip-1m/ip:default"),
    ):
        for status in 200, 429:
            told = provider.feedback(provider.plan(Request(*call)), Answer(status, {}, body), now=NOW)
            assert (told.outcome, told.full, told.blocks) == (Outcome.THROTTLED, (full,), ())


def test_hold_of_a_limit(provider_of: Callable[[str], Provider]) -> None:
    """A pool that stays shut longer than its window is held for that long."""
    provider = provider_of(OWN)
    told = provider.feedback(provider.plan(Request("POST", "/order")), Answer(429, {}, b"this address"), now=NOW)
    assert told.full == ("test/ip-1m/ip:default",)
    assert blocks(told) == [("test/ip-1m/ip:default", 300, "throttle")]


def test_good_answers_are_looked_at_closely_only_for_a_reason(provider_of: Callable[[str], Provider]) -> None:
    """Under HTTP 200 every field must still match, text counts too, and what is too long is no refusal."""
    provider = provider_of(OWN)
    plan = provider.plan(Request("POST", "/order"))
    for body, outcome in [
        (b'{"code":0,"data":[{"sCode":"50011"}]}', "ok"),
        (b'{"id":50011}', "ok"),
        (b"down for maintenance", "overloaded"),
        (b"maintenance" + b" " * 70_000, "ok"),
        (b"", "ok"),
        (None, "ok"),
        ('{"code":"50011","data":[{"sCode":50011}]}', "throttled"),
    ]:
        assert provider.feedback(plan, Answer(200, {}, body), now=NOW).outcome == outcome


def test_refusal_with_status_200(tell: Callable[..., Feedback]) -> None:
    """A refusal may come as 200, and its code as text or number."""
    assert tell(("GET", "/w"), 200, b'{"code":"50011"}').outcome is Outcome.THROTTLED
    assert tell(("GET", "/w"), 200, b'{"code":50011}').full == (W,)
    assert tell(("GET", "/w"), 200, b'{"code":0}').outcome is Outcome.OK


def test_channel(tell: Callable[..., Feedback]) -> None:
    """One code means a refusal on one channel only."""
    body = b'{"error":{"code":30007}}'
    assert tell(("WS", "/order"), 400, body).full == (SHORT,)
    assert tell(("POST", "/order"), 400, body).outcome is Outcome.BAD_REQUEST


def test_whole_provider(tell: Callable[..., Feedback]) -> None:
    """A refusal may shut the whole provider, and hints that are known to be wrong are not heard."""
    told = tell(("GET", "/w"), 429, '{"error":{"type":"insufficient_quota"}}', retry_after="1")
    assert told.outcome is Outcome.MONEY_GONE
    assert blocks(told) == [("test", 3600, "throttle")]


def test_not_charged(tell: Callable[..., Feedback]) -> None:
    """An overload is no quota: nothing is full or held, and a call that was not counted costs nothing."""
    told = tell(("GET", "/w"), 503, b'{"code":-1008}')
    assert told.outcome is Outcome.OVERLOADED
    assert told.actual == {W: 0}
    assert (told.full, told.blocks) == ((), ())
    assert tell(("GET", "/w"), 503).actual == {}


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (400, "bad request"),
        (404, "bad request"),
        (418, "banned"),
        (429, "throttled"),
        (500, "failed"),
        (503, "overloaded"),
        (529, "overloaded"),
        (302, "ok"),
    ],
)
@pytest.mark.parametrize("body", [None, b"", b"<html>", b"\xff\xfe{", b'{"code":1}', "[]", b"null"])
def test_unknown_answers(tell: Callable[..., Feedback], status: int, outcome: str, body: Any) -> None:
    """An answer that no signature knows is judged by its status, whatever its body is."""
    if status == 429 and body == b"<html>":
        outcome = "banned"  # the layer in front of the provider gave it
    assert tell(("GET", "/w"), status, body).outcome == outcome


def test_unknown_429(tell: Callable[..., Feedback]) -> None:
    """A 429 that names nothing fills the shortest window of every unit the call spent on, and heeds the hint."""
    assert tell(("POST", "/order"), 429).full == (SHORT,)
    assert blocks(tell(("POST", "/order"), 429, retry_after="5")) == [(SHORT, 5, "throttle")]


def test_reason_has_no_secret(tell: Callable[..., Feedback]) -> None:
    """The reason is one short line, without anything that looks like a key."""
    secret = "A1b2" * 10
    told = tell(("GET", "/w"), 400, f'{{"msg":"bad key {secret}\nfor you"}}' + "x " * 500)
    assert secret not in told.reason
    assert "\n" not in told.reason
    assert len(told.reason) < 220
    assert redact(f"key={secret} ok") == "[...] ok"


def test_huge_body(tell: Callable[..., Feedback]) -> None:
    """A huge body is not searched to its end."""
    assert tell(("GET", "/w"), 403, b"x" * 1_000_000 + b"too frequent").outcome is Outcome.BAD_REQUEST
