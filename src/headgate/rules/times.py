"""Durations and instants in every way providers write them. Pure; all results in integer nanoseconds."""

from __future__ import annotations

import calendar
import re
from datetime import UTC, datetime
from typing import Final, Literal

from headgate.ledger.limit import SECOND

__all__ = ["DAY", "TimeFormat", "duration", "http_date", "instant", "interval_name", "interval_period"]

MINUTE: Final = 60 * SECOND
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR

TimeFormat = Literal[
    "seconds", "milliseconds", "duration", "epoch-s", "epoch-ms", "rfc3339", "http-date", "retry-after"
]
"""How a header or a body field writes "until when". ``retry-after`` is seconds or an HTTP date."""

_UNITS: Final = {"ms": SECOND // 1000, "s": SECOND, "m": MINUTE, "h": HOUR, "d": DAY, "w": 7 * DAY}
_MONTHS: Final = {name: number for number, name in enumerate(calendar.month_abbr) if name}
_LONGEST: Final = 64
"""Characters of an instant at most; whatever is longer names none."""
_PART = r"(\d+(?:\.\d+)?)(ms|[smhdw])"


def duration(text: str) -> int:
    """Nanoseconds in ``10s``, ``500ms``, ``1h30m``, ``2m59.56s``, ``7d``. Raises ValueError for anything else."""
    text = text.strip()
    if not re.fullmatch(f"(?:{_PART})+", text):
        raise ValueError(f"{text!r} is not a duration")
    return sum(round(float(number) * _UNITS[unit]) for number, unit in re.findall(_PART, text))


def interval_name(period: int) -> str:
    """A period as it stands in header names: ``1m``, ``10s``, ``1d``, ``5s``. Whole numbers of the largest unit."""
    for letter, size in (("d", DAY), ("h", HOUR), ("m", MINUTE), ("s", SECOND)):
        if period >= size and period % size == 0:
            return f"{period // size}{letter}"
    return f"{period // (SECOND // 1000)}ms"


def interval_period(word: str, number: int = 1) -> int:
    """Nanoseconds of ``number`` times SECOND, MINUTE, HOUR or DAY (any case, plural or first letter); 0 if unknown."""
    return number * _UNITS.get(word[:1].lower(), 0) if word[:1].isalpha() and number > 0 else 0


def http_date(text: str) -> int | None:
    """Unix seconds of ``Sun, 06 Nov 1994 08:49:37 GMT``; None if it is anything else. Five times faster than email."""
    try:
        return calendar.timegm(
            (
                int(text[12:16]),
                _MONTHS[text[8:11]],
                int(text[5:7]),
                int(text[17:19]),
                int(text[20:22]),
                int(text[23:25]),
            )
        )
    except (ValueError, KeyError):
        return None


def instant(value: object, form: TimeFormat, now: int) -> int | None:
    """Unix nanoseconds named by `value` as seen at `now` (Unix ns); None if it cannot be read.

    Not clamped: whoever takes advice from a server bounds it (see the rule file's ``[hints]``).
    """
    text = str(value).strip()
    if len(text) > _LONGEST:
        return None
    try:
        if form == "seconds":
            return now + round(float(text) * SECOND)
        if form == "milliseconds":
            return now + round(float(text) * _UNITS["ms"])
        if form == "duration":
            return now + duration(text)
        if form == "epoch-s":
            return round(float(text) * SECOND)
        if form == "epoch-ms":
            return int(text) * _UNITS["ms"]
        if form == "rfc3339":
            moment = datetime.fromisoformat(text)
            return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * SECOND)
        if form == "retry-after" and not text[:1].isalpha():
            return now + round(float(text) * SECOND)
    except (ValueError, OverflowError):
        return None
    seconds = http_date(text)
    return None if seconds is None else seconds * SECOND
