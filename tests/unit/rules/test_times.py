"""Durations and instants in the providers' dialects."""

from __future__ import annotations

import pytest

from ratekeeper.ledger.limit import SECOND, Instant
from ratekeeper.rules.times import (
    Wait,
    bounded,
    duration,
    http_date,
    instant,
    interval_name,
    interval_period,
    latest,
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
