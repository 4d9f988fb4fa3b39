"""Refusals made from rule files: each must be what the file itself takes for a refusal."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from tests.support.calls import sample_calls

from ratekeeper.apps.emulator.incoming import Arrival
from ratekeeper.apps.emulator.limit_table import LimitTable
from ratekeeper.apps.emulator.options import LimitChange, Options
from ratekeeper.apps.emulator.refusing import Bans, Refused, Refuser
from ratekeeper.apps.emulator.templates import Sheet
from ratekeeper.rules.book import DATA, Rulebook
from ratekeeper.rules.call import Answer, Outcome, Request
from ratekeeper.rules.denial import Envelope, write_instant
from ratekeeper.rules.times import instant

SECOND = 1_000_000_000
NOW = 1_763_694_000 * SECOND
NAMES = sorted(path.stem for path in DATA.glob("*.toml"))
NO = (Outcome.THROTTLED, Outcome.BANNED, Outcome.QUOTA_GONE)


def refuser(name: str, **options: Any) -> tuple[LimitTable, Refuser]:
    """The limits of a provider, and what refuses in its name."""
    chosen = Options(provider=name, **options)
    limits = LimitTable(Rulebook.load().provider(name), chosen)
    return limits, Refuser(limits, Envelope.of(name), chosen, Sheet.of(name).full)


def arrival(limits: LimitTable, call: Request) -> Arrival:
    """The call as it arrives at `NOW`."""
    plan, charges = limits.plan(call, "127.0.0.1", "a1")
    return Arrival(call.method, call.path, {}, plan, charges, "127.0.0.1", "", "a1", NOW)


@pytest.mark.parametrize("name", NAMES)
def test_every_limit_of_every_route_is_refused_in_words_the_rules_know(name: str) -> None:
    """Whatever limit is full, the client's rules see a refusal, and never an error of the caller."""
    limits, made = refuser(name)
    seen = 0
    for call, _ in sample_calls(limits.provider):
        request = arrival(limits, call)
        for charge in request.charges:
            failure = made.throttled(request, charge.limit, NOW + 2 * SECOND)
            answer = Answer(failure.status, failure.headers, failure.body)
            told = limits.provider.feedback(request.plan, answer, now=NOW)
            assert told.outcome in NO, (charge.limit.name, failure.status, failure.body)
            seen += 1
    assert seen > 0


@pytest.mark.parametrize(
    ("name", "call", "limit", "status", "body"),
    [
        ("okx", Request("GET", "/api/v5/market/ticker"), "ip-20-2s", 429, {"code": "50011"}),
        ("bybit", Request("GET", "/v5/position/list"), "user-10-1s", 200, {"retCode": 10006}),
        ("kraken", Request("POST", "/0/private/Balance"), "calls", 200, {"error": ["EAPI:Rate limit exceeded"]}),
        ("kucoin", Request("GET", "/api/v1/accounts"), "management-30s", 429, {"code": "429000"}),
        ("binance-coinm", Request("GET", "/dapi/v1/time"), "weight-1m", 429, {"code": -1003}),
    ],
)
def test_refusals_look_as_the_provider_writes_them(
    name: str, call: Request, limit: str, status: int, body: dict[str, Any]
) -> None:
    """Status, code and envelope of some that are known well."""
    limits, made = refuser(name)
    request = arrival(limits, call)
    assert limit in [charge.limit.name for charge in request.charges]
    failure = made.throttled(request, limits.by_name[limit], NOW + SECOND)
    assert failure.status == status
    assert body.items() <= json.loads(failure.body).items()


def test_the_penalty_box_of_an_address_is_shortened_with_its_window() -> None:
    """Bybit shuts an address out for ten minutes; with a window of a tenth it is one minute, or what `ban` says."""
    call = Request("GET", "/v5/position/list")
    for options, seconds in (
        ({}, 600),
        ({"scale": 0.1}, 60),
        ({"ban": 3.0}, 3),
    ):
        limits, made = refuser("bybit", **options)
        failure = made.throttled(arrival(limits, call), limits.by_name["ip-5s"], NOW + SECOND)
        assert isinstance(failure, Refused)
        assert (failure.status, failure.bans, failure.penalty) == (403, True, ("ip", seconds * SECOND))


def test_no_hint_where_none_is_wanted() -> None:
    """``--no-retry-after`` keeps all of them silent."""
    call = Request("GET", "/dapi/v1/time")
    for wanted in (True, False):
        limits, made = refuser("binance-coinm", retry_after=wanted)
        failure = made.throttled(arrival(limits, call), limits.by_name["weight-1m"], NOW + 2 * SECOND)
        assert failure.headers == ({"retry-after": "2"} if wanted else {})


@pytest.mark.parametrize(
    "form", ["seconds", "milliseconds", "duration", "epoch-s", "epoch-ms", "rfc3339", "http-date", "retry-after"]
)
def test_an_instant_is_never_named_too_early(form: Any) -> None:
    """What is written reads back as the instant, or up to a second later."""
    wanted = NOW + 1_234_567_890
    read = instant(write_instant(form, wanted, NOW), form, NOW)
    assert read is not None
    assert 0 <= read - wanted <= SECOND


def test_shorter_rules_say_so_in_every_place() -> None:
    """Periods, penalties and bans of the served rules are those in force; the file stays valid and keeps its costs."""
    limits, _ = refuser("bybit", scale=0.1, limits=(LimitChange("user-50-1s", 7, 0.25),))
    file = limits.rules()
    assert (file.limits["ip-5s"].period, file.limits["ip-5s"].capacity) == ("500ms", 600)
    assert (file.limits["user-50-1s"].period, file.limits["user-50-1s"].capacity) == ("250ms", 7)
    assert file.routes == limits.provider.file.routes
    assert "60s" in [refusal.hold for refusal in file.refusals]


@pytest.mark.parametrize("name", ["binance-spot", "binance-usdm", "binance-coinm"])
def test_a_ban_says_until_when(name: str) -> None:
    """Parsers look for ``until`` and thirteen digits."""
    limits, made = refuser(name)
    assert made.ban is not None
    failure = made.banned(made.ban, arrival(limits, Request("GET", "/x")), NOW)
    told = json.loads(failure.body)
    assert (failure.status, failure.bans, told["code"]) == (418, True, -1003)
    found = re.search(r"until (\d{13})\.", told["msg"])
    assert found is not None
    assert int(found[1]) == NOW // 1_000_000


def test_refusals_of_binance_name_the_limit() -> None:
    """Weight is -1003 and orders are -1015, both with the number and the interval."""

    def refused(name: str, limit: str) -> tuple[int, int, str]:
        limits, made = refuser(name)
        failure = made.throttled(arrival(limits, Request("GET", "/x")), limits.by_name[limit], NOW + SECOND)
        told = json.loads(failure.body)
        return failure.status, told["code"], told["msg"]

    status, code, text = refused("binance-spot", "weight-1m")
    assert (status, code) == (429, -1003)
    assert "current limit is 6000 request weight per 1 MINUTE" in text
    status, code, text = refused("binance-spot", "orders-10s")
    assert (status, code) == (429, -1015)
    assert "50 orders per 10 SECOND" in text
    assert "limit of IP(127.0.0.1) is 2400 requests per minute" in refused("binance-usdm", "weight-1m")[2]


def test_an_address_is_banned_at_the_threshold_and_longer_each_time() -> None:
    """Two minutes, then four, then eight."""
    bans = Bans(after=3, first=120 * SECOND, calm=60 * SECOND)
    address = bans.address("127.0.0.1")
    now = 0
    for length in (120, 240, 480):
        now += 10_000 * SECOND
        assert [bans.strike(address, now) for _ in range(3)] == [False, False, True]
        assert address.banned_until == now + length * SECOND


def test_a_ban_never_lasts_more_than_three_days() -> None:
    """The doubling ends at the longest ban that Binance states."""
    bans = Bans(after=1, first=120 * SECOND, calm=60 * SECOND)
    address = bans.address("127.0.0.1")
    for number in range(60):
        assert bans.strike(address, number)
    assert address.bans[-1][1] - address.bans[-1][0] == 3 * 86_400 * SECOND


def test_a_calm_time_forgets_the_strikes() -> None:
    """Single refusals that lie far apart are no defiance."""
    bans = Bans(after=2, first=SECOND, calm=60 * SECOND)
    address = bans.address("127.0.0.1")
    assert not any(bans.strike(address, number * 61 * SECOND) for number in range(10))


def test_zero_never_bans_and_addresses_are_apart() -> None:
    """With a threshold of 0 nobody is banned; one address's strikes are not another's."""
    bans = Bans(after=0, first=SECOND, calm=SECOND)
    assert not any(bans.strike(bans.address("a"), 0) for _ in range(100))
    assert bans.address("b").strikes == 0
    assert {address.ip for address in bans.all()} == {"a", "b"}
