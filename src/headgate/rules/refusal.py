"""How providers say no: signatures over status, body and text; what they name; when to come back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, Final

from headgate.ledger.limit import SECOND, Limit, Window
from headgate.rules.call import Answer, Block, Feedback, Outcome, Plan
from headgate.rules.reading import decoded, dig, sought
from headgate.rules.reading import text as as_text
from headgate.rules.routing import spread
from headgate.rules.schema import File, Refusal, Retry
from headgate.rules.times import duration, instant, interval_period

__all__ = ["Refusals", "redact"]

_MOST_TEXT: Final = 65_536
"""Bytes of a body that are read for signatures; refusals are short."""
_MOST_SEARCHED: Final = 4096
"""Characters of it in which patterns are sought: of those of a rule file some take time that grows with the square."""
_MAY_HAVE_ACTED: Final = frozenset({Outcome.OK, Outcome.OVERLOADED, Outcome.FAILED})
"""Errors after which a provider may still have done what was asked; the others are refusals."""
_RETRY_AFTER: Final = Retry(header="retry-after", format="retry-after")


class Refusals:
    """The refusals of one provider, in the order of its file."""

    def __init__(self, file: File, namespace: str, limits: Mapping[str, Limit]) -> None:
        self._refusals = file.refusals
        self._hints = file.hints.retry or [_RETRY_AFTER]
        self._shortest = duration(file.hints.shortest)
        self._longest = duration(file.hints.longest)
        self._prefix = f"{namespace}/"
        self._limits = limits
        self._common = spread(file.every, file.limits).keys()
        self.odd_statuses = frozenset(
            status for refusal in file.refusals for status in refusal.status if 0 < status < 400
        )
        """Statuses below 400 under which this provider refuses as well."""
        self.blocks_endpoint = any(refusal.block == "endpoint" for refusal in file.refusals)
        self._marks = {status: _marks(file.refusals, status) for status in self.odd_statuses}

    def read(self, plan: Plan, answer: Answer, now: int, result: Feedback) -> bool:
        """Classify `answer` into `result`. False if the provider does not charge a call it refuses so."""
        if answer.status < 400 and not _suspicious(answer.body, self._marks[answer.status]):
            return True
        body, text = _opened(answer.body)
        if body is None and text.lstrip()[:1] in ("{", "["):
            result.unreadable = "body (no JSON within our bounds)"
        refusal = next((each for each in self._refusals if _matches(each, plan, answer.status, body, text)), None)
        if refusal is None:
            if answer.status >= 400:
                self._unknown(plan, answer, body, text, now, result)
            return True
        result.outcome = Outcome(refusal.outcome)
        if result.outcome is not Outcome.OK:
            result.reason = _reason(answer.status, text)
            # A provider does not count what it turned away at the door.
            result.acted = refusal.charged and result.outcome in _MAY_HAVE_ACTED
        retry = self._hints if refusal.retry is None else refusal.retry
        until = self._until(retry, answer.headers, body, text, now)
        result.retry_in = None if until is None else until - now
        if refusal.limits or (result.outcome is Outcome.THROTTLED and not refusal.block):
            end = now + duration(refusal.hold) if until is None and refusal.hold else until
            self._hold_limits(self._named(refusal, text, plan), plan, end, now, result)
        if refusal.block:
            self._hold_owner(refusal, plan, until, now, result)
        return refusal.charged

    def bare(self, plan: Plan, status: int, result: Feedback) -> None:
        """Classify a refusal of which nothing but the status can be read."""
        answer = Answer(status, {}, None)
        refusal = next((each for each in self._refusals if _matches(each, plan, status, None, "")), None)
        result.blocks, result.full = (), ()
        if refusal is None:
            self._unknown(plan, answer, None, "", 0, result)
            return
        result.outcome = Outcome(refusal.outcome)
        result.reason = _reason(status, "")
        if refusal.block:
            self._hold_owner(refusal, plan, None, 0, result)

    def _unknown(self, plan: Plan, answer: Answer, body: Any, text: str, now: int, result: Feedback) -> None:
        """An error that no signature knows: what HTTP says."""
        result.reason = _reason(answer.status, text)
        until = self._until(self._hints, answer.headers, body, text, now)
        result.retry_in = None if until is None else until - now
        if answer.status == 429:
            result.outcome = Outcome.THROTTLED
            self._hold_limits(_shortest(charge.limit for charge in plan.charges), plan, until, now, result)
        elif answer.status in {503, 529}:
            result.outcome = Outcome.OVERLOADED
        elif answer.status >= 500 or answer.status == 408:
            result.outcome = Outcome.FAILED
        else:
            result.outcome = Outcome.BAD_REQUEST
        result.acted = result.outcome in _MAY_HAVE_ACTED

    def _named(self, refusal: Refusal, text: str, plan: Plan) -> list[Limit]:
        """The limits that a refusal says are used up: of each unit, the window it names or else the shortest.

        One that names nothing means, in the same way, what this call was charged beyond what every call is.
        """
        if not refusal.limits:
            charged = [charge.limit for charge in plan.charges]
            return _shortest([limit for limit in charged if limit.name not in self._common] or charged)
        period = 0
        if refusal.interval and (found := re.search(refusal.interval, text[:_MOST_SEARCHED])):
            period = interval_period(found[2], int(found[1] or 1))
        result: list[Limit] = []
        for word in refusal.limits:
            if word in self._limits:
                result.append(self._limits[word])
                continue
            limits = [limit for limit in self._limits.values() if limit.unit == word]
            result += [limit for limit in limits if limit.period == period] or _shortest(limits)
        return result

    def _hold_limits(self, limits: Iterable[Limit], plan: Plan, until: int | None, now: int, result: Feedback) -> None:
        for limit in limits:
            keys = tuple(charge.key for charge in plan.charges if charge.limit.name == limit.name)
            result.full += keys
            if until is not None:
                end = until
            elif keys or not limit.period:
                continue
            else:
                # Not ours to fill, for this call did not spend on it; but it is full, so hold it for its window.
                end = _window_end(limit, now)
            for key in keys or filter(None, (self.key(limit, plan),)):
                result.blocks += (Block(key, end, "throttle", result.reason),)

    def _hold_owner(self, refusal: Refusal, plan: Plan, until: int | None, now: int, result: Feedback) -> None:
        banned = result.outcome is Outcome.BANNED
        if until is None:
            # A ban of no stated length: how long it is depends on how many there were (`Provider.ban_length`).
            length = duration(refusal.hold) if refusal.hold else 0 if banned else self._shortest
            until = now + length if length else 0
        if refusal.block == "provider":
            scope: str | None = plan.provider
        else:
            start = f"{self._prefix}{refusal.block}:"
            scope = next((each for each in plan.scopes if each.startswith(start)), None)
        if scope is not None:
            result.blocks += (Block(scope, until, "ban" if banned else "throttle", result.reason),)

    def key(self, limit: Limit, plan: Plan) -> str:
        """The ledger of `limit` for the owners of `plan`, though it was not charged; "" if they do not tell."""
        owners = dict(each[len(self._prefix) :].partition(":")[::2] for each in plan.scopes if ":" in each)
        if not all(kind in owners for kind in limit.scope):
            return ""
        return f"{self._prefix}{limit.name}/" + ",".join(f"{kind}:{owners[kind]}" for kind in limit.scope)

    def _until(self, retry: list[Retry], headers: Mapping[str, str], body: Any, text: str, now: int) -> int | None:
        """The latest instant that any hint names, within bounds: too late costs time, too early costs a ban."""
        instants = [moment for hint in retry if (moment := _hint(hint, headers, body, text, now)) is not None]
        if not instants:
            return None
        return min(max(*instants, now + self._shortest), now + self._longest)


def redact(text: str) -> str:
    """`text` on one line, shortened, with everything that could be a key struck out."""
    text = re.sub(r"[A-Za-z0-9_\-+/=]{20,}", "[...]", " ".join(text.split()))
    return text if len(text) <= 200 else text[:197] + "..."


def _opened(body: bytes | str | None) -> tuple[Any, str]:
    """The parsed JSON of a body, None if it cannot be had; and its beginning as text, in which signatures are then sought."""
    raw = body[:_MOST_TEXT].encode("utf-8", "replace") if isinstance(body, str) else (body or b"")[:_MOST_TEXT]
    return decoded(raw), re.sub(r"\s+", " ", raw.decode("utf-8", "replace"))


def _marks(refusals: list[Refusal], status: int) -> tuple[bytes, ...] | None:
    """Of the refusals under a status below 400, the texts one of which such an answer must hold; None if any may do."""
    marks: list[bytes] = []
    for refusal in refusals:
        if status in refusal.status:
            if not refusal.body:
                return None
            marks += [as_text(each).encode() for each in next(iter(refusal.body.values()))]
    return tuple(dict.fromkeys(marks))


def _suspicious(body: bytes | str | None, marks: tuple[bytes, ...] | None) -> bool:
    """Whether a good answer is worth a closer look: refusals are short, and hold one of their codes."""
    if not body or len(body) > _MOST_TEXT:
        return False
    raw = body.encode("utf-8", "replace") if isinstance(body, str) else body
    return marks is None or any(mark in raw for mark in marks)


def _found(body: Any, text: str, path: str) -> Any:
    """The value at a dotted path of the body; of one that could not be parsed, all values of such a field, or None."""
    return dig(body, tuple(path.split("."))) if body is not None else sought(text, path) or None


def _matches(refusal: Refusal, plan: Plan, status: int, body: Any, text: str) -> bool:
    if refusal.close or (refusal.status and status not in refusal.status):
        return False
    if refusal.routes and not any(fnmatchcase(plan.route, shape) for shape in refusal.routes):
        return False
    for path, accepted in refusal.body.items():
        value = _found(body, text, path)
        found = {as_text(each) for each in value} if isinstance(value, list) else {as_text(value)}
        if value is None or found.isdisjoint(as_text(each) for each in accepted):
            return False
    return not refusal.text or re.search(refusal.text, text[:_MOST_SEARCHED]) is not None


def _hint(hint: Retry, headers: Mapping[str, str], body: Any, text: str, now: int) -> int | None:
    if hint.header:
        value: Any = headers.get(hint.header)
    elif hint.body:
        value = _found(body, text, hint.body)
        value = value[0] if body is None and value else value
    else:
        found = re.search(hint.text, text[:_MOST_SEARCHED])
        value = found[1] if found else None
    return None if value is None else instant(value, hint.format, now)


def _shortest(limits: Iterable[Limit]) -> list[Limit]:
    """Of each unit, the limit with the shortest window: a longer one wrongly held would stop us for a day."""
    best: dict[str, Limit] = {}
    for limit in limits:
        if "~" in limit.name:  # of our own making (smooth pacing): no provider speaks of it
            continue
        if limit.window is not Window.SLOTS and (limit.unit not in best or limit.period < best[limit.unit].period):
            best[limit.unit] = limit
    return list(best.values())


def _window_end(limit: Limit, now: int) -> int:
    if limit.window is Window.FIXED:
        return now + limit.period - (now - limit.origin) % limit.period
    return now + min(limit.period, 60 * SECOND)


def _reason(status: int, text: str) -> str:
    return f"HTTP {status}: {redact(text)}" if text else f"HTTP {status}"
