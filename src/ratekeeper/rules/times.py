"""Reads durations, instants, and the standard headers that say when to come back, as servers write them.

All results are integer nanoseconds. Nothing here knows what time it is.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Final, Literal, NamedTuple

from ratekeeper.ledger.limit import SECOND, Instant

__all__ = [
    "DAY",
    "Standard",
    "TimeFormat",
    "Wait",
    "absurd",
    "bounded",
    "date_name",
    "duration",
    "http_date",
    "instant",
    "interval_name",
    "interval_period",
    "latest",
    "read_standard",
    "stated",
]

MINUTE: Final = 60 * SECOND
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR

TimeFormat = Literal[
    "seconds", "milliseconds", "duration", "epoch-s", "epoch-ms", "rfc3339", "http-date", "retry-after", "reset"
]
"""How a header or a body field writes "until when". ``retry-after`` is seconds or an HTTP date; ``reset`` is seconds, or
an epoch in seconds or milliseconds, told apart by its size."""

_UNITS: Final = {"ms": SECOND // 1000, "s": SECOND, "m": MINUTE, "h": HOUR, "d": DAY, "w": 7 * DAY}
_MONTHS: Final = {name: at for at, name in enumerate("Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(), 1)}  # noqa: SIM905
_LONGEST: Final = 64
"""Characters of an instant at most; whatever is longer names none."""
_EPOCH_S: Final = 1e9
"""A number of seconds from here on (31 years) is an instant since 1970, ..."""
_EPOCH_MS: Final = 1e11
"""... and from here on one in milliseconds."""
_TIMES: Final = 4
"""A wait of more than this many times the longest is not moved to the longest: nobody can mean it."""
_NUMBER: Final = r"\s*[0-9]{1,20}(?:\.[0-9]{0,20})?(?:[eE][0-9]{1,3})?\s*"
_TIME = "(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
_RFC_850: Final = rf"[A-Z][a-z]+day, (?P<day>[0-9]{{2}})-(?P<month>[A-Z][a-z]{{2}})-(?P<year>[0-9]{{2}}) {_TIME} GMT"
_ASCTIME: Final = rf"[A-Z][a-z]{{2}} (?P<month>[A-Z][a-z]{{2}}) (?P<day>[ 0-9][0-9]) {_TIME} (?P<year>[0-9]{{4}})"
_SPAN: Final = r"(\d+(?:\.\d+)?)(ms|[smhdw])"
_SPANS: Final = f"(?:{_SPAN})+"
_LONGEST_HEADER: Final = 4096
_ITEM: Final = r'(?:"(?:[^"\\]|\\.)*"|[^",])+'
_PART: Final = r'(?:"(?:[^"\\]|\\.)*"|[^";])+'
_COUNT: Final = r"[0-9]{1,15}(?:\.[0-9]{0,15})?"


def duration(text: str) -> int:
    """Nanoseconds in ``10s``, ``500ms``, ``1h30m``, ``2m59.56s``, ``7d``. Raises ValueError for anything else."""
    text = text.strip()
    if not re.fullmatch(_SPANS, text):
        raise ValueError(f"{text!r} is not a duration")
    return sum(round(float(number) * _UNITS[unit]) for number, unit in re.findall(_SPAN, text))


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
    """Unix seconds of an HTTP date in any of the three forms of RFC 9110 (5.6.7); None if it is anything else.

    ``Sun, 06 Nov 1994 08:49:37 GMT`` is read five times faster than by email's parser. A year of two digits is one from
    1970 to 2069.
    """
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
        return _old_date(text)


def date_name(moment: int) -> str:
    """An instant (Unix ns) as a date; beyond the years that dates have, as a number."""
    try:
        return f"{datetime.fromtimestamp(moment // SECOND, UTC):%Y-%m-%d %H:%M:%S}"
    except (OSError, OverflowError, ValueError):
        return f"{moment // SECOND} s since 1970"


def _old_date(text: str) -> int | None:
    """``Sunday, 06-Nov-94 08:49:37 GMT`` (RFC 850) and ``Sun Nov  6 08:49:37 1994`` (asctime)."""
    found = re.fullmatch(_RFC_850, text) or re.fullmatch(_ASCTIME, text)
    if found is None:
        return None
    year, month = int(found["year"]), _MONTHS.get(found["month"])
    if len(found["year"]) == 2:
        year += 1900 if year >= 70 else 2000
    if month is None:
        return None
    try:
        return calendar.timegm((year, month, *(int(found[name]) for name in ("day", "hour", "minute", "second"))))
    except ValueError:
        return None


class Wait(NamedTuple):
    """How long something lasts, as an answer says it: the latest of what is set.

    A length is kept as a length. As an instant of the server's clock it would be shortened or stretched by what the same
    answer teaches about that clock.

    Attributes:
        after: ns from the arrival of the answer.
        at: an instant of the server's clock, Unix ns; 0: none.
        window: period and origin (ns) of a fixed window of the server's clock whose end is meant; (0, 0): none.
    """

    after: int = 0
    at: int = 0
    window: tuple[int, int] = (0, 0)

    def length(self, now: Instant) -> int:
        """Ns from `now`, the arrival of the answer: the longest that the uncertainty of the server's clock allows."""
        ends = [self.after]
        if self.at:
            ends.append(self.at - now.lo)
        period, origin = self.window
        if period:
            ends.append(now.hi + period - (now.hi - origin) % period - now.lo)
        return max(ends)


def stated(value: object, form: TimeFormat) -> Wait | None:
    """What `value` says in the format `form`; None if that cannot be read, or is nothing to wait for (0, below 0, NaN).

    The result is not clamped: callers bound it (see the rule file's ``[hints]``).
    """
    text = str(value).strip()
    if len(text) > _LONGEST:
        return None
    if form == "retry-after" and text[:1].isalpha():
        form = "http-date"
    try:
        if form == "seconds":
            return _lasting(float(text) * SECOND)
        if form == "milliseconds":
            return _lasting(float(text) * _UNITS["ms"])
        if form == "duration":
            return _lasting(duration(text))
        if form == "epoch-s":
            return _until(float(text) * SECOND)
        if form == "epoch-ms":
            return _until(int(text) * _UNITS["ms"])
        if form == "rfc3339":
            moment = datetime.fromisoformat(text)
            return _until((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * SECOND)
        if form in {"retry-after", "reset"}:
            # A header that was sent twice arrives as a list: the latest holds.
            numbers = [float(part) for part in text.split(",") if re.fullmatch(_NUMBER, part)]
            return _seconds_or_epoch(max(numbers)) if numbers else None
    except (ValueError, OverflowError):
        return None
    seconds = http_date(text)
    return None if seconds is None else _until(seconds * SECOND)


def instant(value: object, form: TimeFormat, now: int) -> int | None:
    """Unix nanoseconds named by `value` as seen at `now` (Unix ns); None if it cannot be read."""
    wait = stated(value, form)
    return None if wait is None else wait.at or now + wait.after


def latest(waits: Iterable[Wait | None]) -> Wait | None:
    """The wait that ends with the last of these; None if there is none."""
    known = [wait for wait in waits if wait is not None]
    if not known:
        return None
    return Wait(max(wait.after for wait in known), max(wait.at for wait in known))


def absurd(wait: Wait, longest: int, seen: int) -> int:
    """How long a wait is (ns) that is too long to be meant: several times as long as the longest; 0 for any other.

    `seen` is the server's clock (Unix ns) at the earliest.
    """
    length = max(wait.after, wait.at - seen if wait.at else 0)
    return length if length > _TIMES * longest else 0


def bounded(wait: Wait, shortest: int, longest: int, seen: int) -> Wait | None:
    """A wait within bounds (ns). None if its instant has passed by `seen`, the server's clock (Unix ns) at the earliest."""
    if not wait.after and wait.at <= seen:
        return None
    return Wait(min(max(wait.after, shortest), longest), min(wait.at, seen + longest))


def _seconds_or_epoch(number: float) -> Wait | None:
    """Seconds; or what only an instant can be, for some providers write one where seconds are due."""
    if number < _EPOCH_S:
        return _lasting(number * SECOND)
    if number < _EPOCH_MS:
        return _until(number * SECOND)
    return _until(number * _UNITS["ms"]) if number < _EPOCH_MS * 1000 else _lasting(number * SECOND)


def _lasting(length: float) -> Wait | None:
    return Wait(after=round(length)) if length > 0 else None


def _until(moment: float) -> Wait | None:
    return Wait(at=round(moment)) if moment > 0 else None


class Standard(NamedTuple):
    """What headers of the HTTP standards say in one answer: any server may send them, whatever its rule file knows.

    ``Retry-After`` (RFC 9110) is seconds or a date. The rate limit headers of the IETF draft come in three forms:
    ``RateLimit-Limit: 100, 100;w=60`` with ``-Remaining`` and ``-Reset``; ``RateLimit: limit=100, remaining=0, reset=30``;
    and ``RateLimit: "default";r=0;t=30`` with ``RateLimit-Policy: "default";q=100;w=60``.

    Attributes:
        retry_after: of ``Retry-After``; None if it is missing or cannot be read.
        used_up: until a quota that is used up is there again; None if no quota is used up.
    """

    retry_after: Wait | None
    used_up: Wait | None


def read_standard(headers: Mapping[str, str]) -> Standard:
    """Read the standard headers of an answer. Headers that cannot be read are left out; nothing is raised."""
    given = headers.get("retry-after")
    return Standard(
        None if given is None else stated(given, "retry-after"), latest((_three(headers), _fields(headers)))
    )


def _three(headers: Mapping[str, str]) -> Wait | None:
    """``RateLimit-Remaining`` and ``-Reset``. Without a reset, the window of the policy is the longest it can take."""
    reset, remaining = headers.get("ratelimit-reset"), headers.get("ratelimit-remaining")
    if remaining is not None and _number(remaining) != 0:
        return None
    if reset is not None:
        return stated(reset, "reset")
    if remaining is None:
        return None
    policies = _items(headers.get("ratelimit-limit")) + _items(headers.get("ratelimit-policy"))
    return latest(_seconds(parameters.get("w")) for _, parameters in policies[:2])


def _fields(headers: Mapping[str, str]) -> Wait | None:
    """The structured field ``RateLimit``, and its older form, a dictionary."""
    items = _items(headers.get("ratelimit"))
    windows = {name: parameters.get("w") for name, parameters in _items(headers.get("ratelimit-policy"))}
    older = dict(name.split("=", 1) for name, _ in items if "=" in name and name[0] != '"')
    if older:
        return _seconds(older.get("reset")) if _number(older.get("remaining")) == 0 else None
    return latest(
        _seconds(parameters.get("t") or windows.get(name))
        for name, parameters in items
        if _number(parameters.get("r")) == 0
    )


def _items(header: str | None) -> list[tuple[str, dict[str, str]]]:
    """The members of a structured field: (item, parameters), names in lower case and without spaces."""
    found = []
    for item in re.findall(_ITEM, (header or "")[:_LONGEST_HEADER]):
        head, *rest = [part.strip() for part in re.findall(_PART, item)] or [""]
        pairs = (part.partition("=") for part in rest)
        found.append((head.lower(), {name.strip().lower(): value.strip() for name, _, value in pairs}))
    return found


def _number(text: str | None) -> float | None:
    return float(text) if text is not None and re.fullmatch(_COUNT, text.strip()) else None


def _seconds(text: str | None) -> Wait | None:
    return None if text is None else stated(text, "reset")
