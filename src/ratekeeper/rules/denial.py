"""Writes the answers that a provider gives to calls it refuses: words of its rule file, shapes of `envelopes.toml`.

Callers that are shut out get such an answer from us; the emulator gives them as the provider would.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from email.utils import formatdate
from functools import cache
from pathlib import Path
from re import _constants as codes  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from string import Template
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from ratekeeper.ledger.limit import SECOND, Limit
from ratekeeper.rules.call import Answer, Feedback, Outcome, Plan
from ratekeeper.rules.reading import dig
from ratekeeper.rules.schema import File, Refusal
from ratekeeper.rules.times import TimeFormat, interval_name
from ratekeeper.typed import converted

__all__ = ["Denial", "Denials", "Envelope", "filled", "interval", "put", "sample", "worded", "write_instant"]

_LOOK_AGAIN: Final = 60
"""Seconds after which to ask again where the end is not known (a pause that a person takes back)."""
_MOST_CHOSEN: Final = 4096
_PROVIDERS: Final = frozenset({"ban", "throttle"})
"""Kinds of blocks that the provider itself has announced."""
_UNITS: Final = (("DAY", 86_400), ("HOUR", 3_600), ("MINUTE", 60), ("SECOND", 1))


class _Full(Protocol):
    """What a refusal may tell of a limit that is full."""

    @property
    def capacity(self) -> int: ...
    @property
    def unit(self) -> str: ...
    @property
    def period(self) -> int: ...


class Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How one provider wraps its answers.

    Attributes:
        ok: JSON of an answer that says nothing but yes.
        failed: JSON that the fields of a refusal are put into.
        message: dotted path of a refusal's text in it.
        banned: the text of a ban: ``$until`` is its end in Unix ms, ``$ip`` the address in parentheses, or nothing.
        routes: answers of single routes, by method and template.
    """

    ok: str = "{}"
    failed: str = "{}"
    message: str = "message"
    banned: str = ""
    routes: dict[str, str] = {}

    @classmethod
    def of(cls, provider: str) -> Envelope:
        """The provider's envelope; a plain one for a provider that has none."""
        return _envelopes().get(provider, cls())

    def banned_text(self, ip: str, until: int) -> str:
        """The text for the address `ip` (``""``: unknown) that is banned until `until` (Unix ns)."""
        return Template(self.banned).substitute(ip=f"({ip})" if ip else "", until=until // 1_000_000)


@cache
def _envelopes() -> dict[str, Envelope]:
    text = Path(__file__).with_name("envelopes.toml").read_text("utf-8")
    return converted(tomllib.loads(text), dict[str, Envelope])


class Denial(NamedTuple):
    """An answer of HTTP that refuses a call."""

    status: int
    headers: dict[str, str]
    body: bytes


class Denials:
    """Denials in the words of one provider.

    Args:
        file: its rules.
        name: of the provider.
        limits: its limits by name.
        feedback: what such rules make of an answer (`Provider.feedback`).
    """

    def __init__(self, file: File, name: str, limits: Mapping[str, Limit], feedback: Callable[..., Feedback]) -> None:
        self._file = file
        self._limits = limits
        self._feedback = feedback
        self._envelope = Envelope.of(name)
        self._chosen: dict[tuple[str, str, str], tuple[Refusal | None, int]] = {}

    def make(self, plan: Plan, kind: str, scope: str, until: int, now: int, words: str) -> Denial:
        """What the provider would answer to a call that a block holds.

        A ban is answered as the provider answers one, anything else as it refuses a call for a limit that is used up; where
        the file knows no such refusal, with a plain 429. ``Retry-After`` tells the end in whole seconds, rounded up.

        Args:
            plan: of the call.
            kind, scope: of the block.
            until: its end, Unix ns; 0: it has none.
            now: Unix ns.
            words: why, for people: the text of the answer where the provider has no text of its own for it.
        """
        what = scope.removeprefix(f"{plan.provider}/").partition("/")[0]
        key = kind, what, plan.route
        chosen = self._chosen.get(key)
        if chosen is None:
            if len(self._chosen) >= _MOST_CHOSEN:
                self._chosen.clear()
            chosen = self._chosen[key] = self._choose(self._candidates(plan, kind, what), plan, kind, until, now, words)
        rule, status = chosen
        if rule is None:
            headers: dict[str, str] = {}
            body = put(msgspec.json.decode(self._envelope.failed), self._envelope.message, words)
        else:
            headers, body = self._worded(rule, kind, until, now, words)
        headers.pop("retry-after", None)
        wait = max(1, -(-(until - now) // SECOND)) if until else _LOOK_AGAIN
        headers |= {
            "Content-Type": "application/json",
            "Retry-After": str(wait),
            "X-Ratekeeper-Reason": " ".join(words.split()).encode("ascii", "replace").decode(),
        }
        return Denial(status, headers, msgspec.json.encode(body))

    def _candidates(self, plan: Plan, kind: str, what: str) -> list[Refusal]:
        """The refusals that may mean such a block: those that come as 429 first, then those that are closest to it."""
        rules = [rule for rule in self._file.refusals if not rule.close]
        limit = self._limits.get(what)
        owner = what.partition(":")[0]
        charged = {word for charge in plan.charges for word in (charge.limit.name, charge.limit.unit)}

        def distance(rule: Refusal) -> tuple[bool, int]:
            late = bool(rule.status) and 429 not in rule.status
            if limit is not None and (limit.name in rule.limits or limit.unit in rule.limits):
                return late, 0
            if limit is None and kind in _PROVIDERS and rule.block and rule.block == owner:
                return late, 1
            if not rule.limits and not rule.block:
                return late, 2
            return late, 3 if charged.intersection(rule.limits) else 4

        found = sorted((rule for rule in rules if rule.outcome == "throttled"), key=distance)
        if kind != "ban":
            return found
        bans = [rule for rule in rules if rule.outcome == "banned"]
        return [*sorted(bans, key=lambda rule: rule.block != owner), *found]

    def _choose(
        self, rules: list[Refusal], plan: Plan, kind: str, until: int, now: int, words: str
    ) -> tuple[Refusal | None, int]:
        """The first rule whose answer the file takes for what the rule says, and the status of it."""
        for rule in rules:
            usual = rule.status if rule.outcome == "banned" else sorted(rule.status, key=lambda each: each != 429)
            for status in usual or (429,):
                try:
                    headers, body = self._worded(rule, kind, until, now, words)
                except ValueError:  # no text can be made up for its expression
                    continue
                answer = Answer(status, headers, msgspec.json.encode(body))
                if self._feedback(plan, answer, now=now).outcome is Outcome(rule.outcome):
                    return rule, status
        return None, 429

    def _worded(self, rule: Refusal, kind: str, until: int, now: int, words: str) -> tuple[dict[str, str], Any]:
        if rule.outcome == "banned" and self._envelope.banned and until:
            words = self._envelope.banned_text("", until)
        elif rule.text and not re.search(rule.text, words):
            # Programs tell it by these words, where it has no code.
            alone = kind in _PROVIDERS and not rule.body
            words = sample(rule.text) if alone else f"{sample(rule.text)} ({words})"
        return worded(self._file, self._envelope, rule, until, now, words=words)


def worded(
    file: File,
    envelope: Envelope,
    rule: Refusal,
    until: int,
    now: int,
    *,
    limit: _Full | None = None,
    texts: bool = False,
    words: str = "",
) -> tuple[dict[str, str], Any]:
    """Headers (lower case) and decoded body of an answer that `rule` describes.

    Args:
        file, envelope: of the provider.
        rule: of the file.
        until: the instant that its hints name, Unix ns; 0: it gives no hint.
        now: Unix ns.
        limit: the one that is full.
        texts: whether hints of the whole file that are texts are given; they belong to some refusals only.
        words: the text, instead of one made up for the rule.

    Raises:
        ValueError: no text can be made up for its expression.
    """
    headers: dict[str, str] = {}
    body: Any = msgspec.json.decode(envelope.failed)
    text = words or (sample(rule.text) if rule.text else "")
    if rule.interval and limit is not None and not words:
        word, number = interval(limit.period)
        text += f" {limit.capacity} {limit.unit} per {number} {word}"
    retry = file.hints.retry if rule.retry is None else rule.retry
    for hint in retry if until else ():
        value = write_instant(hint.format, until, now)
        if hint.header:
            headers[hint.header] = value
        elif hint.body and (rule.retry or hint.body.partition(".")[0] in (body or {})):
            body = put(body, hint.body, int(value) if value.isdecimal() else value)
        elif hint.text and not words and (rule.retry or texts):
            text = f"{text} {sample(hint.text, value)}".strip()
    for path, accepted in rule.body.items():
        # Files compare as text; whether it is a number on the wire, the envelope shows.
        known = dig(body, tuple(path.split(".")))
        body = put(body, path, str(accepted[0]) if isinstance(known, str) else accepted[0])
    if text:
        # Where the file wants fixed words at the place of the message, the text goes beside it.
        place = envelope.message if envelope.message not in rule.body else "detail"
        body = put(body, place, text)
    return headers, body


def interval(period: int) -> tuple[str, int]:
    """A period in ns as Binance writes it: ``("MINUTE", 1)``, ``("SECOND", 10)``; ours: ``("1500ms", 1)``."""
    seconds, rest = divmod(period, SECOND)
    if rest:
        return interval_name(period), 1
    return next((name, seconds // length) for name, length in _UNITS if seconds % length == 0)


def write_instant(form: TimeFormat, instant: int, now: int) -> str:
    """`instant` as a header or a field names it, rounded up to what the form can show. All in Unix ns."""
    ahead = max(0, instant - now)
    match form:
        case "seconds" | "retry-after":
            return str(-(-ahead // SECOND))
        case "milliseconds":
            return str(-(-ahead // 1_000_000))
        case "duration":
            return f"{-(-ahead // 1_000_000)}ms"
        case "epoch-s":
            return str(-(-instant // SECOND))
        case "epoch-ms":
            return str(-(-instant // 1_000_000))
        case _:
            date = formatdate(-(-instant // SECOND), usegmt=True)
            return _rfc3339(instant) if form == "rfc3339" else date


def _rfc3339(instant: int) -> str:
    return datetime.fromtimestamp(-(-instant // SECOND), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def filled(template: str, now: int) -> bytes:
    """The template with the time `now` (Unix ns) in it."""
    if "$" not in template:
        return template.encode()
    iso = datetime.fromtimestamp(now // SECOND, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    units = {"s": now // SECOND, "ms": now // 1_000_000, "us": now // 1000, "ns": now}
    return Template(template).substitute(units, iso=f"{iso}.{now // 1_000_000 % 1000:03}Z").encode()


def put(body: Any, path: str, value: Any) -> Any:
    """`body` with `value` at a dotted path; a number names a place in a list. What is not there is made."""
    if not path:
        return value
    step, _, rest = path.partition(".")
    if step.isdecimal():
        rows = list(body) if isinstance(body, list) else []
        rows += [None] * (int(step) + 1 - len(rows))
        rows[int(step)] = put(rows[int(step)], rest, value)
        return rows
    return {**(body if isinstance(body, dict) else {}), step: put((body or {}).get(step), rest, value)}


def sample(pattern: str, group: str = "") -> str:
    """A short text in which `pattern` is found; its first group reads `group` if that is given.

    Raises:
        ValueError: the expression uses something that is not understood here, such as back-references.
    """
    text = "".join(_written(parser.parse(pattern), group))
    if re.search(pattern, text) is None:
        raise ValueError(f"found no text for the expression {pattern!r}")
    return text


def _written(parsed: Iterable[tuple[Any, Any]], group: str) -> Iterable[str]:
    for code, value in parsed:
        if code is codes.LITERAL:
            yield chr(value)
        elif code is codes.IN:
            yield _one_of(value)
        elif code is codes.ANY:
            yield " "
        elif code in (codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT):
            least, _, inner = value
            yield "".join(_written(inner, group)) * least
        elif code is codes.SUBPATTERN:
            number, _, _, inner = value
            yield group if number == 1 and group else "".join(_written(inner, group))
        elif code is codes.BRANCH:
            yield "".join(_written(value[1][0], group))
        elif code is codes.ATOMIC_GROUP:
            yield "".join(_written(value, group))
        elif code is codes.NOT_LITERAL:
            yield "a" if value != ord("a") else "b"
        elif code in (codes.AT, codes.ASSERT_NOT):
            yield ""  # whether the text keeps to it is seen at the end
        else:
            raise ValueError(f"an expression with {code} is not understood here")


def _one_of(choices: list[tuple[Any, Any]]) -> str:
    code, value = choices[0]
    if code is codes.LITERAL:
        return chr(value)
    if code is codes.RANGE:
        return chr(value[0])
    samples = {codes.CATEGORY_DIGIT: "1", codes.CATEGORY_WORD: "a", codes.CATEGORY_SPACE: " "}
    if code is codes.CATEGORY:
        return samples.get(value, "-")
    return "~"  # a negated set: hardly any excludes this
