"""Durations and instants in the providers' dialects."""

from __future__ import annotations

import pytest

from headgate.ledger.limit import SECOND
from headgate.rules.times import duration, http_date, instant, interval_name, interval_period

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
