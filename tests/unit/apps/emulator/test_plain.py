"""A provider told from its rule file alone: bodies, headers, what is given back."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from ratekeeper.apps.emulator.accounting import Meter
from ratekeeper.apps.emulator.incoming import Arrival
from ratekeeper.apps.emulator.options import Options
from ratekeeper.apps.emulator.plain import Plain
from ratekeeper.apps.emulator.tariff import Tariff
from ratekeeper.rules.book import DATA, Rulebook
from ratekeeper.rules.call import Answer, Call, Outcome

SECOND = 1_000_000_000
NOW = 1_763_694_000 * SECOND


def arrived(name: str, call: Call, **options: Any) -> tuple[Tariff, Plain, Meter, Arrival]:
    """A call that was counted at `NOW`."""
    chosen = Options(provider=name, **options)
    tariff = Tariff(Rulebook.load().provider(name), chosen)
    plan, bills = tariff.plan(call, "127.0.0.1", "a1")
    arrival = Arrival(call.method, call.path, {}, plan, bills, "127.0.0.1", "", "a1", NOW)
    meter = Meter()
    assert meter.arrive(NOW, bills) is None
    return tariff, Plain(tariff, chosen), meter, arrival


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
    _, plain, meter, arrival = arrived(name, Call("GET", path, {}, None, {}))
    body, back = plain.carry_out(arrival, meter)
    told = json.loads(body)
    assert {key: told[key] for key in expected} == expected
    assert back == []


def test_limits_that_are_stated_are_those_in_force() -> None:
    """``exchangeInfo`` of COIN-M comes from `[[learn]]`: the rules read back what was set."""
    tariff, plain, meter, arrival = arrived(
        "binance-coinm", Call("GET", "/dapi/v1/exchangeInfo"), window=5, capacity=99
    )
    body, _ = plain.carry_out(arrival, meter)
    told = tariff.provider.feedback(arrival.plan, Answer(200, {}, body), now=NOW)
    assert told.learned["weight-1m"] == (99, 5 * SECOND)


def test_headers_report_as_the_file_says() -> None:
    """Bybit: what is left, the limit, and a reset that is "now" while there is room."""
    _, plain, meter, arrival = arrived("bybit", Call("GET", "/v5/position/list", {}, None, {}))
    capacity = next(bill.limit.capacity for bill in arrival.bills if bill.limit.name == "user-50-1s")
    headers = plain.reports(arrival, meter)
    assert headers["x-bapi-limit-status"] == str(capacity - 1)
    assert headers["x-bapi-limit"] == str(capacity)
    assert headers["x-bapi-limit-reset-timestamp"] == str(NOW // 1_000_000)


@pytest.mark.parametrize("name", sorted(path.stem for path in DATA.glob("*.toml")))
def test_trouble_is_never_a_refusal(name: str) -> None:
    """What answers 503 now and then is overloaded or failed to the rules, whatever the file says of it."""
    tariff, plain, _, arrival = arrived(name, Call("GET", "/x", {}, None, {}))
    for seed in range(5):
        failure, _ = plain.trouble(random.Random(seed))
        told = tariff.provider.feedback(arrival.plan, Answer(failure.status, failure.headers, failure.body), now=NOW)
        assert told.outcome in (Outcome.OVERLOADED, Outcome.FAILED), (failure.status, failure.body)
