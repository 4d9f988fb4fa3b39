"""How limits, refusals and bans are worded."""

from __future__ import annotations

import re

import pytest

from ratekeeper.apps.emulator.accounting import Refusal, StrictLimit
from ratekeeper.apps.emulator.incoming import Fault
from ratekeeper.apps.emulator.wording import Wording, check_key, check_signed, interval

SECOND = 1_000_000_000
NOW = 1_800_000_000_000
SIGNED = {"timestamp": str(NOW), "signature": "s"}


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(5, ("SECOND", 5)), (60, ("MINUTE", 1)), (300, ("MINUTE", 5)), (3_600, ("HOUR", 1)), (86_400, ("DAY", 1))],
)
def test_intervals_take_the_largest_unit_that_fits(seconds: int, expected: tuple[str, int]) -> None:
    """As in ``rateLimits`` and in header names."""
    assert interval(seconds * SECOND) == expected


def test_header_names_follow_the_interval_in_force() -> None:
    """A minute is 1M, a window of five seconds 5S; pools that no header reports have none."""
    wording = Wording(futures=True)
    assert wording.usage_header(StrictLimit("w", "weight", 1, 60 * SECOND)) == "X-MBX-USED-WEIGHT-1M"
    assert wording.usage_header(StrictLimit("w", "weight", 1, 5 * SECOND)) == "X-MBX-USED-WEIGHT-5S"
    assert wording.usage_header(StrictLimit("o", "orders", 1, 10 * SECOND)) == "X-MBX-ORDER-COUNT-10S"
    assert wording.usage_header(StrictLimit("s", "sapi-uid", 1, 60 * SECOND)) == "X-SAPI-USED-UID-WEIGHT-1M"
    assert wording.usage_header(StrictLimit("f", "funding", 1, 300 * SECOND)) is None


@pytest.mark.parametrize("futures", [False, True])
def test_a_ban_says_until_when(futures: bool) -> None:
    """Parsers look for ``until`` and thirteen digits."""
    fault = Wording(futures=futures).banned("127.0.0.1", NOW * 1_000_000)
    assert (fault.status, fault.code) == (418, -1003)
    found = re.search(r"until (\d{13})\.", fault.text)
    assert found is not None
    assert int(found[1]) == NOW


def test_refusals_name_the_limit() -> None:
    """Weight is -1003 and orders are -1015, both with the number and the interval."""
    wording = Wording(futures=False)
    weight = wording.throttled(Refusal(StrictLimit("w", "weight", 6_000, 60 * SECOND), 1), "127.0.0.1")
    assert (weight.status, weight.code) == (429, -1003)
    assert "current limit is 6000 request weight per 1 MINUTE" in weight.text
    orders = wording.throttled(Refusal(StrictLimit("o", "orders", 50, 10 * SECOND), 1), "127.0.0.1")
    assert (orders.status, orders.code) == (429, -1015)
    assert "50 orders per 10 SECOND" in orders.text
    usdm = Wording(futures=True).throttled(Refusal(StrictLimit("w", "weight", 2_400, 60 * SECOND), 1), "127.0.0.1")
    assert "limit of IP(127.0.0.1) is 2400 requests per minute" in usdm.text


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"timestamp": ""}, -1102),
        ({"signature": ""}, -1102),
        ({"timestamp": "soon"}, -1100),
        ({"timestamp": str(NOW - 5_001)}, -1021),
        ({"timestamp": str(NOW + 1_001)}, -1021),
        ({"timestamp": str(NOW - 900), "recvWindow": "800"}, -1021),
        ({"recvWindow": "60001"}, -1131),
    ],
)
def test_a_signed_call_must_be_fresh(changes: dict[str, str], code: int) -> None:
    """Five seconds back, one second ahead, or what `recvWindow` says."""
    with pytest.raises(Fault) as wrong:
        check_signed({**SIGNED, **changes}, NOW)
    assert wrong.value.code == code


def test_a_fresh_signed_call_passes() -> None:
    """The signature itself is not verified."""
    check_signed(SIGNED, NOW)
    check_signed({**SIGNED, "timestamp": str(NOW - 30_000), "recvWindow": "60000"}, NOW)


def test_a_missing_key_is_unauthorised() -> None:
    """As on the real exchange, with 401."""
    check_key("k" + "1")
    with pytest.raises(Fault) as wrong:
        check_key("")
    assert (wrong.value.status, wrong.value.code) == (401, -2014)
