"""How providers talk: bodies, headers and what is given back from the rule file; routes and errors from the data file."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from ratekeeper.apps.emulator.accounting import Meter
from ratekeeper.apps.emulator.incoming import Arrival, Failure, Fault
from ratekeeper.apps.emulator.limit_table import LimitTable
from ratekeeper.apps.emulator.options import Options
from ratekeeper.apps.emulator.state import venue_of
from ratekeeper.apps.emulator.venue import Venue, check_fresh
from ratekeeper.rules.book import DATA, Rulebook
from ratekeeper.rules.call import Answer, Outcome, Request
from ratekeeper.rules.provider import Provider

SECOND = 1_000_000_000
NOW = 1_763_694_000 * SECOND
MILLI = NOW // 1_000_000
OWN = ("binance-spot", "binance-usdm", "bitget", "orderly")
SIGNED = {"timestamp": str(MILLI), "signature": "s"}


def arrived(name: str, call: Request, **options: Any) -> tuple[LimitTable, Venue, Meter, Arrival]:
    """A call that was counted at `NOW`."""
    chosen = Options(provider=name, **options)
    limits = LimitTable(Rulebook.load().provider(name), chosen)
    plan, charges = limits.plan(call, "127.0.0.1", "a1")
    arrival = Arrival(call.method, call.path, {}, plan, charges, "127.0.0.1", "", "a1", NOW)
    meter = Meter()
    assert meter.arrive(NOW, charges) is None
    return limits, venue_of(limits, chosen), meter, arrival


@pytest.mark.parametrize(
    ("name", "path", "expected"),
    [
        ("okx", "/api/v5/public/time", {"data": [{"ts": "1763694000000"}]}),
        ("bybit", "/v5/market/time", {"time": 1763694000000}),
        ("binance-coinm", "/dapi/v1/time", {"serverTime": 1763694000000}),
        ("kraken", "/0/public/Time", {"result": {"unixtime": 1763694000}}),
        ("kucoin", "/api/v1/timestamp", {"data": 1763694000000}),
    ],
)
def test_the_time_is_told_in_the_providers_wrapping(name: str, path: str, expected: dict[str, Any]) -> None:
    """As clients of that exchange read it."""
    _, plain, meter, arrival = arrived(name, Request("GET", path, {}, None, {}))
    body, back = plain.carry_out(arrival, meter)
    told = json.loads(body)
    assert {key: told[key] for key in expected} == expected
    assert back == []


def test_limits_that_are_stated_are_those_in_force() -> None:
    """``exchangeInfo`` of COIN-M comes from `[[learn]]`: the rules read back what was set."""
    limits, plain, meter, arrival = arrived(
        "binance-coinm", Request("GET", "/dapi/v1/exchangeInfo"), window=5, capacity=99
    )
    body, _ = plain.carry_out(arrival, meter)
    told = limits.provider.feedback(arrival.plan, Answer(200, {}, body), now=NOW)
    assert told.learned["weight-1m"] == (99, 5 * SECOND)


def test_headers_report_as_the_file_says() -> None:
    """Bybit: what is left, the limit, and a reset that is "now" while there is room."""
    _, plain, meter, arrival = arrived("bybit", Request("GET", "/v5/position/list", {}, None, {}))
    capacity = next(charge.limit.capacity for charge in arrival.charges if charge.limit.name == "user-10-1s")
    headers = plain.reports(arrival, meter)
    assert headers["x-bapi-limit-status"] == str(capacity - 1)
    assert headers["x-bapi-limit"] == str(capacity)
    assert headers["x-bapi-limit-reset-timestamp"] == str(NOW // 1_000_000)


@pytest.mark.parametrize("name", sorted(path.stem for path in DATA.glob("*.toml")))
def test_trouble_is_never_a_refusal(name: str) -> None:
    """What answers 503 now and then is overloaded or failed to the rules, whatever the file says of it."""
    limits, plain, _, arrival = arrived(name, Request("GET", "/x", {}, None, {}))
    for seed in range(5):
        failure, _ = plain.trouble(random.Random(seed))
        told = limits.provider.feedback(arrival.plan, Answer(failure.status, failure.headers, failure.body), now=NOW)
        assert told.outcome in (Outcome.OVERLOADED, Outcome.FAILED), (failure.status, failure.body)


def venue(name: str) -> tuple[Provider, Venue, LimitTable]:
    """A venue and the rules that it keeps."""
    provider, options = Rulebook.load().provider(name), Options(provider=name)
    limits = LimitTable(provider, options)
    return provider, venue_of(limits, options), limits


@pytest.mark.parametrize("name", OWN)
def test_no_error_of_a_mistake_looks_like_a_refusal(name: str) -> None:
    """A bot that sends a wrong order is told so, and not that it is throttled or banned."""
    provider, shop, limits = venue(name)
    plan, _ = limits.plan(Request("POST", "/v1/order"), "127.0.0.1", "a")
    for word in shop.sheet.errors.values():
        body = json.dumps(shop.failed(word, MILLI)).encode()
        told = provider.feedback(plan, Answer(word.status, {}, body), now=NOW)
        assert told.outcome is Outcome.BAD_REQUEST, word


@pytest.mark.parametrize("name", OWN)
def test_good_answers_do_not_look_like_refusals(name: str) -> None:
    """The envelope of a good answer is a good answer to the rules."""
    provider, shop, limits = venue(name)
    plan, _ = limits.plan(Request("GET", "/v1/orders"), "127.0.0.1", "a")
    body = json.dumps(shop.sheet.fill("ok", data={"rows": []}, now=MILLI)).encode()
    assert provider.feedback(plan, Answer(200, {}, body), now=NOW).outcome is Outcome.OK


def test_every_fault_of_the_order_book_has_a_word() -> None:
    """Faults of an unknown code are told as wrong parameters."""
    _, shop, _ = venue("bitget")
    assert shop.word_for(Fault("symbol"), {"symbol": "X"}).text == "Parameter X does not exist"
    assert shop.word_for(Fault("notional"), {}).code == "45110"
    assert shop.word_for(Fault("?"), {}) == shop.sheet.errors["*"]


def test_a_path_without_rules_and_body_is_not_found() -> None:
    """ccxt tells by that that an account is no unified one."""
    _, shop, limits = venue("bitget")
    call = Request("GET", "/api/v3/account/settings")
    plan, charges = limits.plan(call, "127.0.0.1", "a")
    arrival = Arrival(call.method, call.path, {}, plan, charges, "127.0.0.1", "k1", "a", NOW)
    with pytest.raises(Failure) as missing:
        shop.carry_out(arrival, Meter())
    assert missing.value.status == 404


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"timestamp": ""}, -1102),
        ({"signature": ""}, -1102),
        ({"timestamp": "soon"}, -1100),
        ({"timestamp": str(MILLI - 5_001)}, -1021),
        ({"timestamp": str(MILLI + 1_001)}, -1021),
        ({"timestamp": str(MILLI - 900), "recvWindow": "800"}, -1021),
        ({"recvWindow": "60001"}, -1131),
    ],
)
def test_a_signed_call_must_be_fresh(changes: dict[str, str], code: int) -> None:
    """Five seconds back, one second ahead, or what `recvWindow` says."""
    with pytest.raises(Fault) as wrong:
        check_fresh({**SIGNED, **changes}, MILLI)
    assert venue("binance-spot")[1].word_for(wrong.value, {}).code == code


def test_a_fresh_signed_call_passes() -> None:
    """The signature itself is not verified."""
    check_fresh(SIGNED, MILLI)
    check_fresh({**SIGNED, "timestamp": str(MILLI - 30_000), "recvWindow": "60000"}, MILLI)


def test_a_missing_key_is_unauthorised() -> None:
    """As on the real exchange, with 401."""
    for name, path, code in (("binance-spot", "/api/v3/account", -2014), ("orderly", "/v1/positions", -1002)):
        _, shop, limits = venue(name)
        call = Request("GET", path)
        plan, charges = limits.plan(call, "127.0.0.1", "a")
        arrival = Arrival("GET", path, SIGNED, plan, charges, "127.0.0.1", "k1", "a", NOW)
        assert shop.carry_out(arrival, Meter())[0]
        with pytest.raises(Failure) as wrong:
            shop.carry_out(arrival._replace(key=""), Meter())
        assert (wrong.value.status, json.loads(wrong.value.body)["code"]) == (401, code)
