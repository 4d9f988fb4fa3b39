"""Durations and instants in the providers' dialects."""

from __future__ import annotations

import pytest

from ratekeeper.ledger.limit import SECOND, Instant
from ratekeeper.rules.book import Rulebook
from ratekeeper.rules.call import Answer, Feedback, Outcome, Request
from ratekeeper.rules.times import (
    Standard,
    Wait,
    absurd,
    bounded,
    duration,
    http_date,
    instant,
    interval_name,
    interval_period,
    latest,
    read_standard,
    real_period,
    stated,
)

NOW = 1_795_220_621 * SECOND


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10s", 10),
        ("500ms", 0.5),
        ("1m", 60),
        ("1h30m", 5400),
        ("2m59.56s", 179.56),
        ("6m0s", 360),
        ("7d", 604800),
        ("1w", 604800),
    ],
)
def test_duration(text: str, seconds: float) -> None:
    """Durations are read in every unit and mixture."""
    assert duration(text) == round(seconds * SECOND)


@pytest.mark.parametrize("text", ["", "10", "s", "-5s", "1y", "1m x", "1 m"])
def test_no_duration(text: str) -> None:
    """What is no duration is an error, not a guess."""
    with pytest.raises(ValueError, match="not a duration"):
        duration(text)


@pytest.mark.parametrize(
    ("period", "name"),
    [(60, "1m"), (10, "10s"), (86400, "1d"), (5, "5s"), (300, "5m"), (3600, "1h"), (90, "90s"), (0.5, "500ms")],
)
def test_interval_name(period: float, name: str) -> None:
    """A period is named in whole numbers of its largest unit, as header names do."""
    assert interval_name(round(period * SECOND)) == name


def test_interval_period() -> None:
    """Interval words are read in any case; unknown ones and absurd numbers give 0."""
    assert interval_period("MINUTE") == 60 * SECOND
    assert interval_period("second", 10) == 10 * SECOND
    assert interval_period("DAY") == 86400 * SECOND
    assert interval_period("", 1) == interval_period("EON") == interval_period("DAY", 0) == interval_period("5", 1) == 0


def test_http_date() -> None:
    """Date headers are read to the second; anything else is None."""
    assert http_date("Sat, 21 Nov 2026 00:23:41 GMT") == 1_795_220_621
    assert http_date("Sat, 21 Foo 2026 00:23:41 GMT") is None
    assert http_date("") is None


@pytest.mark.parametrize(
    ("value", "form", "offset"),
    [
        ("7", "seconds", 7),
        (7, "retry-after", 7),
        ("1.5", "retry-after", 1.5),
        ("Sat, 21 Nov 2026 00:23:51 GMT", "retry-after", 10),
        ("Sat, 21 Nov 2026 00:23:51 GMT", "http-date", 10),
        ("250", "milliseconds", 0.25),
        ("38.2s", "duration", 38.2),
        ("1795220631", "epoch-s", 10),
        ("1795220631000", "epoch-ms", 10),
        (1795220631000, "epoch-ms", 10),
        ("2026-11-21T00:23:51Z", "rfc3339", 10),
        ("2026-11-21 00:23:51", "rfc3339", 10),
        ("2026-11-21T02:23:51+02:00", "rfc3339", 10),
    ],
)
def test_instant(value: object, form: str, offset: float) -> None:
    """Every format names the same kind of instant: Unix nanoseconds."""
    assert instant(value, form, NOW) == NOW + round(offset * SECOND)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "form", ["seconds", "milliseconds", "duration", "epoch-s", "epoch-ms", "rfc3339", "http-date", "retry-after"]
)
@pytest.mark.parametrize("value", ["", "soon", "nan", "inf", None, "1e999"])
def test_no_instant(value: object, form: str) -> None:
    """Nonsense is None in every format and never raises."""
    assert instant(value, form, NOW) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("Sun, 06 Nov 1994 08:49:37 GMT", 784_111_777),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 784_111_777),
        ("Sun Nov  6 08:49:37 1994", 784_111_777),
        ("Saturday, 21-Nov-26 00:23:41 GMT", 1_795_220_621),
        ("Sunday, 06-Foo-94 08:49:37 GMT", None),
        ("Sun Nov  6 08:49:37 94", None),
    ],
)
def test_all_forms_of_dates(text: str, seconds: int | None) -> None:
    """The three forms of RFC 9110 are one instant; what only looks like one is none."""
    assert http_date(text) == seconds


def test_a_length_stays_a_length() -> None:
    """Whatever the clock is found to be; an instant takes the longest way that the doubt allows."""
    for doubt in (0, SECOND, 3600 * SECOND):
        now = Instant(7, NOW - doubt, NOW + doubt)
        assert Wait(after=3 * SECOND).length(now) == 3 * SECOND
        assert Wait(at=NOW + 3 * SECOND).length(now) == 3 * SECOND + doubt
        assert Wait(after=SECOND, at=NOW - 2 * doubt).length(now) == SECOND


def test_the_rest_of_a_window() -> None:
    """Up to the edge after the latest that the server's clock may show, from the earliest."""
    wait = Wait(window=(60 * SECOND, 0))
    begun = NOW - NOW % (60 * SECOND)
    assert wait.length(Instant(0, begun + 50 * SECOND, begun + 50 * SECOND)) == 10 * SECOND
    assert wait.length(Instant(0, begun + 59 * SECOND, begun + 61 * SECOND)) == 61 * SECOND


def test_latest_and_bounds() -> None:
    """Of several the last counts, however each is said; bounds move it, and what has passed is nothing."""
    both = latest([Wait(after=3 * SECOND), None, Wait(at=NOW + 5 * SECOND)])
    assert both == Wait(3 * SECOND, NOW + 5 * SECOND)
    assert latest([None]) is None
    assert bounded(Wait(after=1), SECOND, 60 * SECOND, NOW) == Wait(after=SECOND)
    assert bounded(Wait(after=10**30), SECOND, 60 * SECOND, NOW) == Wait(after=60 * SECOND)
    assert bounded(Wait(at=NOW + 10**30), SECOND, 60 * SECOND, NOW) == Wait(SECOND, NOW + 60 * SECOND)
    assert bounded(Wait(at=NOW), SECOND, 60 * SECOND, NOW) is None


@pytest.mark.parametrize(
    ("value", "wait"),
    [
        ("30", Wait(30 * SECOND)),
        ("1795220631", Wait(at=NOW + 10 * SECOND)),
        ("1795220631000", Wait(at=NOW + 10 * SECOND)),
    ],
)
def test_a_reset_is_told_by_its_size(value: str, wait: Wait) -> None:
    """Seconds, or an epoch in seconds or milliseconds."""
    assert stated(value, "reset") == wait


# --- Headers of the standards that say when to come back, in every form that servers send. ---------------------------


DATES = ("Sat, 21 Nov 2026 00:38:41 GMT", "Saturday, 21-Nov-26 00:38:41 GMT", "Sat Nov 21 00:38:41 2026")
"""Nine hundred seconds after `NOW`, in the three forms of RFC 9110."""
BOOK = Rulebook.load()
PROVIDERS = tuple(BOOK.names())


@pytest.mark.parametrize(
    ("value", "wait"),
    [
        ("3", Wait(3 * SECOND)),
        ("0.25", Wait(SECOND // 4)),
        (" 900 ", Wait(900 * SECOND)),
        ("3, 5", Wait(5 * SECOND)),
        ("1795221521", Wait(at=NOW + 900 * SECOND)),
        ("1795221521000", Wait(at=NOW + 900 * SECOND)),
        *((date, Wait(at=NOW + 900 * SECOND)) for date in DATES),
    ],
)
def test_retry_after(value: str, wait: Wait) -> None:
    """Seconds, decimals and all three dates; an epoch that somebody writes where seconds are due is told by its size."""
    assert read_standard({"retry-after": value}) == Standard(wait, None)


@pytest.mark.parametrize(
    "value", ["", "0", "-5", "-1e9", "nan", "inf", "1e999", "soon", "١٢", "1_000", "Sat, 99 Foo", '"']
)
@pytest.mark.parametrize("name", ["retry-after", "ratelimit-reset", "ratelimit", "ratelimit-policy", "ratelimit-limit"])
def test_garbage_says_nothing(name: str, value: str) -> None:
    """Nothing raises, and nothing is to be waited for."""
    assert read_standard({name: value}) == Standard(None, None)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"ratelimit-limit": "100", "ratelimit-remaining": "0", "ratelimit-reset": "30"}, 30),
        ({"ratelimit-remaining": "7", "ratelimit-reset": "30"}, None),
        ({"ratelimit-reset": "30"}, 30),
        ({"ratelimit-limit": "100, 100;w=60", "ratelimit-remaining": "0"}, 60),
        ({"ratelimit": "limit=100, remaining=0, reset=30"}, 30),
        ({"ratelimit": "limit=100, remaining=3, reset=30"}, None),
        ({"ratelimit": '"default";r=0;t=30'}, 30),
        ({"ratelimit": '"default"; r=0; t=30'}, 30),
        ({"ratelimit": '"default";r=5;t=30'}, None),
        ({"ratelimit": '"burst";r=0;t=2, "a;b, c=d";r=0;t=41, "day";r=900;t=80000'}, 41),
        ({"ratelimit": '"default";r=0', "ratelimit-policy": '"other";q=9;w=9, "default";q=100;w=60'}, 60),
        ({"ratelimit-policy": '"default";q=100;w=60'}, None),
    ],
)
def test_rate_limit_fields(headers: dict[str, str], seconds: int | None) -> None:
    """Only a quota that is used up is a reason to wait, until its reset or, at the longest, for its window."""
    expected = None if seconds is None else Wait(seconds * SECOND)
    assert read_standard(headers) == Standard(None, expected)


def refused(name: str, status: int, **headers: str) -> tuple[Feedback, list[str]]:
    """What a refusal of some call tells, and all that would hold the same call again."""
    provider = BOOK.provider(name)
    plan = provider.plan(Request("GET", "/an/unknown/path"))
    names = {key.replace("_", "-"): value for key, value in headers.items()}
    told = provider.feedback(plan, Answer(status, names, b"no"), now=NOW)
    return told, [*plan.scopes, *(charge.key for charge in plan.charges)]


@pytest.mark.parametrize("status", [403, 418, 420, 429, 500, 502, 503, 529])
@pytest.mark.parametrize("name", PROVIDERS)
def test_every_provider_and_refusal(name: str, status: int) -> None:
    """The same call is held for as long as the header says, whatever the rules make of the refusal."""
    for value in ("900", *DATES):
        told, mine = refused(name, status, retry_after=value)
        assert told.outcome in {Outcome.THROTTLED, Outcome.BANNED, Outcome.OVERLOADED, Outcome.FAILED}
        ends = [max(b.wait.after, b.wait.at - NOW) for b in told.blocks if b.wait is not None and b.scope in mine]
        assert max(ends, default=0) == 900 * SECOND


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_used_up_quota_is_held(name: str) -> None:
    """A 429 with the draft's fields holds the call as one with `Retry-After` does; the later of both counts."""
    told, mine = refused(name, 429, retry_after="2", ratelimit='"default";r=0;t=70')
    assert max(b.wait.after for b in told.blocks if b.wait is not None and b.scope in mine) == 70 * SECOND


def test_what_is_simply_wrong_stays_so() -> None:
    """A bad request without a word on when to come back holds nothing, and neither does one with quota left."""
    for headers in ({}, {"ratelimit": '"default";r=9;t=30'}, {"retry_after": "-1"}):
        told, _ = refused("binance-usdm", 403, **headers)
        assert (told.outcome, told.blocks) == (Outcome.BAD_REQUEST, ())


@pytest.mark.parametrize(
    ("name", "seconds", "told"),
    [
        ("weight-1m", 60, ""),
        ("weight-1m", 10, " (now per 10s)"),
        ("shop/weight-1h/ip:default", 5400, " (now per 90m)"),
        ("key-10-60s", 60, ""),
        ("ip-3-1s~smooth", 0.1, " (now per 100ms)"),
        ("calls", 10, ""),
        ("ccxt-50m", 60, " (now per 1m)"),
        ("slots-1m", 0, ""),
    ],
)
def test_the_real_period_of_a_limit(name: str, seconds: float, told: str) -> None:
    """It is told where the name tells another, however the name writes it."""
    assert real_period(name, round(seconds * SECOND)) == told


def test_a_wait_that_nobody_can_mean() -> None:
    """Several times the longest; a little more than the longest is only moved to it."""
    assert absurd(Wait(after=240 * SECOND), 60 * SECOND, NOW) == 0
    assert absurd(Wait(after=241 * SECOND), 60 * SECOND, NOW) == 241 * SECOND
    assert absurd(Wait(at=NOW + 500 * SECOND), 60 * SECOND, NOW) == 500 * SECOND
    assert absurd(Wait(at=NOW - 500 * SECOND), 60 * SECOND, NOW) == 0
