"""Headers of the standards that say when to come back, in every form that servers send."""

from __future__ import annotations

import pytest

from ratekeeper.ledger.limit import SECOND
from ratekeeper.rules.book import Rulebook
from ratekeeper.rules.call import Answer, Call, Feedback, Outcome
from ratekeeper.rules.standard import Standard, read_standard
from ratekeeper.rules.times import Wait

NOW = 1_795_220_621 * SECOND
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
    plan = provider.plan(Call("GET", "/an/unknown/path"))
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
