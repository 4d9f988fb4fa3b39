"""Reads refusals: which rule fits status, body and text, which limits and owners it names, when to come back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, Final

from ratekeeper.ledger.limit import SECOND, Limit, Window
from ratekeeper.rules.call import Answer, Block, Doubt, Feedback, Outcome, Plan
from ratekeeper.rules.reading import decoded, dig, sought
from ratekeeper.rules.reading import text as as_text
from ratekeeper.rules.routing import spread
from ratekeeper.rules.schema import File, Refusal, Retry
from ratekeeper.rules.times import (
    DAY,
    Standard,
    Wait,
    absurd,
    bounded,
    duration,
    interval_period,
    latest,
    read_standard,
    stated,
)
from ratekeeper.rules.unlisted import maybe_failed, read_door, read_unlisted

__all__ = ["Refusals", "reason_of"]

_MOST_TEXT: Final = 65_536
"""Bytes of a body that are read for signatures; refusals are short."""
_MOST_SEARCHED: Final = 4096
"""Characters of it in which patterns are sought: of those of a rule file some take time that grows with the square."""
_MAY_HAVE_ACTED: Final = frozenset({Outcome.OK, Outcome.OVERLOADED, Outcome.FAILED})
"""Errors after which a provider may still have done what was asked; the others are refusals."""
_TROUBLE: Final = frozenset({Outcome.OVERLOADED, Outcome.FAILED})
_SHUT_OUT: Final = frozenset({403, 418})
"""Statuses that, with a hint when to come back, refuse the caller and not the request: a firewall's, a ban's."""
_LONGEST: Final = 7 * DAY
"""Ns beyond which no standard header is believed. A rule file's `longest` bounds the provider's own hints."""
_USUAL_HINTS: Final = (
    Retry(body="retry_after", format="reset"),
    Retry(body="retryAfter", format="reset"),
    Retry(text=r"(?i)\buntil (\d{10}|\d{13})\b", format="reset"),
    Retry(text=r"(?i)\b(?:retry|again) (?:after|in) (\d{1,6}) ?s(?:ec\w*)?\b", format="seconds"),
)
"""Where an answer that no file lists may say when to come back: Cloudflare's error 1015, and others."""
_DOOR: Final = 10 * SECOND
"""Ns for which an address is held that a firewall turned away for the first time without a hint."""


class Refusals:
    """The refusals of one provider, in the order of its file."""

    def __init__(self, file: File, namespace: str, limits: Mapping[str, Limit]) -> None:
        self._refusals = file.refusals
        self._hints = file.hints.retry
        self._shortest = duration(file.hints.shortest)
        self._longest = duration(file.hints.longest)
        self._prefix = f"{namespace}/"
        self._limits = limits
        self._common = spread(file.every, file.limits).keys()
        self.odd_statuses = frozenset(
            [status for refusal in file.refusals for status in refusal.status if 0 < status < 400]
            + file.errors_under
            + ([200] if file.good else [])
        )
        """Statuses below 400 under which this provider refuses as well."""
        self.blocks_endpoint = any(refusal.block == "endpoint" for refusal in file.refusals)
        self._marks = {status: _marks(file.refusals, status) for status in self.odd_statuses}
        self._good = {path: frozenset(map(as_text, values)) for path, values in file.good.items()}
        self._good_mark = _good_mark(self._good)

    def read(self, plan: Plan, answer: Answer, now: int, result: Feedback) -> bool:
        """Classify `answer` into `result`. False if the provider does not charge a call it refuses so.

        Args:
            plan: of the call.
            answer: to it.
            now: what the server's clock shows at the earliest, Unix ns.
            result: what is written to.
        """
        if answer.status < 400 and not self._suspicious(answer):
            return True
        body, text = _opened(answer.body)
        if body is None and text.lstrip()[:1] in ("{", "["):
            result.unreadable = "body (no JSON within our bounds)"
        refusal = next((each for each in self._refusals if _matches(each, plan, answer.status, body, text)), None)
        if (refusal is None or not (refusal.body or refusal.text)) and read_door(answer, body, text):
            self._turned_away(plan, answer, body, text, now, result)
            return True
        if refusal is None:
            self._unlisted(plan, answer, body, text, now, result)
            return True
        result.outcome = Outcome(refusal.outcome)
        if result.outcome is Outcome.OK:
            return refusal.charged
        result.reason = _reason(answer.status, text)
        # A provider does not count what it turned away at the door.
        result.acted = (refusal.charged and result.outcome in _MAY_HAVE_ACTED) or _in_part(refusal, body)
        hints = self._hints if refusal.retry is None else refusal.retry
        standard = read_standard(answer.headers)
        wait = self._wait(hints, standard, answer.headers, body, text, now, result)
        hold = duration(refusal.hold) if refusal.hold else 0
        # Hints that are known to be wrong never shorten what is known.
        if wait is not None and refusal.retry == []:
            wait = wait._replace(after=max(wait.after, hold))
        result.wait = wait
        if refusal.limits or (result.outcome is Outcome.THROTTLED and not refusal.block):
            end = Wait(after=hold) if wait is None and hold else wait
            self._hold_limits(self._named(refusal, text, plan), plan, end, result)
        if refusal.block:
            self._hold_owner(refusal.block, plan, wait, hold, result)
        elif hold and result.outcome in _TROUBLE:
            self._pause(plan, result, hold)
        self._hold_at_all(plan, standard, result)
        return refusal.charged

    def _suspicious(self, answer: Answer) -> bool:
        """Whether a good answer is worth a closer look: refusals are short, and hold one of their codes or an error."""
        body = answer.body
        if not body or len(body) > _MOST_TEXT:
            return False
        raw = body.encode("utf-8", "replace") if isinstance(body, str) else body
        marks = self._marks[answer.status]
        return marks is None or any(mark in raw for mark in marks) or maybe_failed(raw, self._good_mark)

    def _turned_away(self, plan: Plan, answer: Answer, body: Any, text: str, now: int, result: Feedback) -> None:
        """Hold the address of a call that the layer in front of the provider turned away, whatever its route."""
        result.outcome, result.acted = Outcome.BANNED, False
        result.reason = f"a firewall answered: {_reason(answer.status, text)}"
        standard = read_standard(answer.headers)
        result.wait = self._wait([*self._hints, *_USUAL_HINTS], standard, answer.headers, body, text, now, result)
        self._hold_owner("ip", plan, result.wait, 0, result, first=_DOOR)

    def _unlisted(self, plan: Plan, answer: Answer, body: Any, text: str, now: int, result: Feedback) -> None:
        """Read an error that no rule of the file matches by its HTTP status and its words."""
        found = read_unlisted(answer, body, text, self._good)
        if found is None:
            return
        result.outcome = found.outcome
        result.reason = _reason(answer.status, text)
        standard = read_standard(answer.headers)
        if answer.status >= 400 or not found.ordinary:
            hints = self._hints if found.ordinary else [*self._hints, *_USUAL_HINTS]
            result.wait = self._wait(hints, standard, answer.headers, body, text, now, result)
        # An answer that says when to come back does not mean that the request is wrong.
        told = standard.retry_after is not None or (answer.status == 403 and standard.used_up is not None)
        if found.outcome is Outcome.BAD_REQUEST and told and result.wait is not None:
            result.outcome = Outcome.BANNED if answer.status in _SHUT_OUT else Outcome.THROTTLED
        if not found.ordinary or result.outcome is not found.outcome:
            result.unlisted = found.said
        result.acted = result.outcome in _MAY_HAVE_ACTED or found.in_part
        if found.outcome is Outcome.THROTTLED:
            limits = _shortest(charge.limit for charge in plan.charges)
            self._hold_limits(limits, plan, result.wait, result)
            if not limits:  # of slots alone: none is full for a time, but this was one too many
                self._pause(plan, result)
        self._hold_at_all(plan, standard, result)
        if found.outcome in _TROUBLE and not found.ordinary and not result.blocks:
            self._pause(plan, result)

    def _pause(self, plan: Plan, result: Feedback, hold: int = 0) -> None:
        """Hold what the call was charged on for a moment, though none of it is used up: of several limits those that fewer
        calls share, for the provider did not refuse the others."""
        wait = result.wait or Wait(after=hold or self._shortest)
        charges = [charge for charge in plan.charges if "~" not in charge.limit.name]
        charges = [charge for charge in charges if charge.limit.name not in self._common] or charges
        charges = [charge for charge in charges if charge.limit.scope != ("ip",)] or charges
        result.blocks += tuple(Block(charge.key, wait, "throttle", result.reason) for charge in charges)

    def _hold_at_all(self, plan: Plan, standard: Standard, result: Feedback) -> None:
        """Hold calls where the rules name nothing that a refusal holds: by its standard headers, and at least for the
        shortest wait after a throttled call.

        A service in trouble is held as a whole; any other refusal holds the address of the call.
        """
        if result.outcome in _TROUBLE and result.wait is not None and any(standard):
            self._hold_owner("provider", plan, result.wait, 0, result)
        elif result.outcome in {Outcome.THROTTLED, Outcome.BANNED} and not (result.blocks or result.full):
            self._hold_owner("ip", plan, result.wait, 0, result)

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
            limits = [limit for limit in self._limits.values() if limit.unit == word and not limit.place]
            result += [limit for limit in limits if limit.period == period] or _shortest(limits)
        return result

    def _hold_limits(self, limits: Iterable[Limit], plan: Plan, wait: Wait | None, result: Feedback) -> None:
        for limit in limits:
            keys = tuple(charge.key for charge in plan.charges if charge.limit.name == limit.name)
            result.full += keys
            if wait is not None:
                end = wait
            elif keys or not limit.period:
                continue
            else:
                # Not ours to fill, for this call did not spend on it; but it is full, so hold it for its window.
                end = _rest_of(limit)
            for key in keys or filter(None, (self.key(limit, plan),)):
                result.blocks += (Block(key, end, "throttle", result.reason),)

    def _hold_owner(
        self, owner: str, plan: Plan, wait: Wait | None, hold: int, result: Feedback, *, first: int = 0
    ) -> None:
        banned = result.outcome is Outcome.BANNED
        if wait is None and (hold or not banned):
            # A ban of no stated length: how long it is depends on how many there were (`Provider.ban_length`).
            wait = Wait(after=hold or self._shortest)
        if owner == "provider":
            scope: str | None = plan.provider
        else:
            start = f"{self._prefix}{owner}:"
            scope = next((each for each in plan.scopes if each.startswith(start)), None)
        if scope is not None:
            result.blocks += (Block(scope, wait, "ban" if banned else "throttle", result.reason, first),)

    def key(self, limit: Limit, plan: Plan) -> str:
        """The ledger of `limit` for the owners of `plan`, though it was not charged; "" if they do not tell."""
        owners = dict(each[len(self._prefix) :].partition(":")[::2] for each in plan.scopes if ":" in each)
        if not all(kind in owners for kind in limit.scope):
            return ""
        return f"{self._prefix}{limit.name}/" + ",".join(f"{kind}:{owners[kind]}" for kind in limit.scope)

    def _wait(
        self,
        hints: list[Retry],
        standard: Standard,
        headers: Mapping[str, str],
        body: Any,
        text: str,
        now: int,
        result: Feedback,
    ) -> Wait | None:
        """The latest that any hint names, within bounds: too late costs time, too early costs a ban.

        A hint that is too long to be meant counts as none, so that the wait is guessed and grows while calls are refused.
        """
        found: list[Wait | None] = []
        endless = 0
        named = [(_hint(hint, headers, body, text), self._longest) for hint in hints]
        for wait, longest in (*named, *((wait, _LONGEST) for wait in standard)):
            if wait is None:
                continue
            length = absurd(wait, max(longest, _LONGEST), now)
            endless = max(endless, length)
            if not length:
                found.append(bounded(wait, self._shortest, longest, now))
        if endless:
            used = "a wait that grows with each refusal"
            result.doubted += (Doubt("retry hint", f"no other try for {endless // DAY} days", used),)
        return latest(found)


def _opened(body: bytes | str | None) -> tuple[Any, str]:
    """The parsed JSON of a body, None if it cannot be had; and its beginning as text, in which signatures are then sought."""
    raw, text = _text_of(body)
    return decoded(raw), text


def _text_of(body: bytes | str | None) -> tuple[bytes, str]:
    raw = body[:_MOST_TEXT].encode("utf-8", "replace") if isinstance(body, str) else (body or b"")[:_MOST_TEXT]
    return raw, re.sub(r"\s+", " ", raw.decode("utf-8", "replace"))


def _marks(refusals: list[Refusal], status: int) -> tuple[bytes, ...] | None:
    """Of the refusals under a status below 400, the texts one of which such an answer must hold; None if any may do."""
    marks: list[bytes] = []
    for refusal in refusals:
        if status in refusal.status:
            if not refusal.body:
                return None
            marks += [as_text(each).encode() for each in next(iter(refusal.body.values()))]
    return tuple(dict.fromkeys(marks))


def _good_mark(good: Mapping[str, frozenset[str]]) -> re.Pattern[bytes] | None:
    """What finds the field that tells a good answer, in bytes; None if there is none at the top."""
    if len(good) != 1:
        return None
    ((path, values),) = good.items()
    shown = "|".join(map(re.escape, sorted(values)))
    return (
        None
        if "." in path
        else re.compile(rf'"{re.escape(path)}"\s{{0,8}}:\s{{0,8}}"?(?:{shown})"?\s{{0,8}}[,}}]'.encode())
    )


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


def _in_part(refusal: Refusal, body: Any) -> bool:
    """Whether only some parts of a call were refused, such as orders of a batch: the others may have been carried out."""
    for path, accepted in refusal.body.items():
        found = dig(body, tuple(path.split("."))) if "*" in path else None
        if isinstance(found, list) and not {as_text(each) for each in found} <= {as_text(each) for each in accepted}:
            return True
    return False


def _hint(hint: Retry, headers: Mapping[str, str], body: Any, text: str) -> Wait | None:
    if hint.header:
        value: Any = headers.get(hint.header)
    elif hint.body:
        value = _found(body, text, hint.body)
        value = value[0] if body is None and value else value
    else:
        found = re.search(hint.text, text[:_MOST_SEARCHED])
        value = found[1] if found else None
    return None if value is None else stated(value, hint.format)


def _shortest(limits: Iterable[Limit]) -> list[Limit]:
    """Of each unit, the limit with the shortest window: a longer one wrongly held would stop us for a day."""
    best: dict[str, Limit] = {}
    for limit in limits:
        if "~" in limit.name or limit.place:  # one of ours (smooth pacing) or of the user's, which no provider names
            continue
        if limit.window is not Window.SLOTS and (limit.unit not in best or limit.period < best[limit.unit].period):
            best[limit.unit] = limit
    return list(best.values())


def _rest_of(limit: Limit) -> Wait:
    """Until a limit has room again that is full: what is left of its window, or a minute of a window that slides."""
    if limit.window is Window.FIXED:
        return Wait(window=(limit.period, limit.origin))
    return Wait(after=min(limit.period, 60 * SECOND))


def reason_of(answer: Answer, secrets: Iterable[str] = ()) -> str:
    """One line for people of what an error says, without `secrets` and what else could be a key."""
    return _reason(answer.status, _text_of(answer.body)[1], secrets)


def _reason(status: int, text: str, secrets: Iterable[str] = ()) -> str:
    from ratekeeper.rules.secrets import redact  # for those who are refused

    return f"HTTP {status}: {redact(text, secrets)}" if text else f"HTTP {status}"
