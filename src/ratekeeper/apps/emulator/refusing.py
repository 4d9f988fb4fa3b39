"""How a provider says no, in an answer that its rule file recognises; and whom it bans for going on after refusals."""

from __future__ import annotations

from dataclasses import dataclass, field
from string import Template
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from ratekeeper.rules.call import Answer, Outcome
from ratekeeper.rules.denial import interval, put, worded
from ratekeeper.rules.times import duration

from .incoming import Failure

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ratekeeper.rules.denial import Envelope
    from ratekeeper.rules.schema import Refusal as Rule

    from .accounting import StrictLimit
    from .incoming import Arrival
    from .limit_table import LimitTable
    from .options import Live

__all__ = ["Address", "Bans", "Refused", "Refuser"]

SECOND = 1_000_000_000
_LONGEST = 3 * 86_400 * SECOND
"""Three days: the longest ban that Binance states."""
_NO = Outcome.THROTTLED, Outcome.BANNED, Outcome.QUOTA_GONE


class _Chosen(NamedTuple):
    """The rule that a refusal follows, and the status it comes with; no rule for a plain 429."""

    rule: Rule | None
    status: int


class Refused(Failure):
    """A refusal that follows a rule of the file."""

    def __init__(self, rule: Rule, limit: StrictLimit | None, status: int, body: bytes, **more: Any) -> None:
        super().__init__(status, body, bans=rule.outcome == "banned", **more)
        self.rule = rule
        self.limit = limit


class Refuser:
    """Makes refusals in the words of one provider.

    Args:
        limits: the limits in force.
        envelope: how its bodies look.
        options: whether refusals say when to come back.
        texts: the texts of refusals, by the unit of the full limit (``*``: any other), with ``$capacity``, ``$unit``,
            ``$number``, ``$span`` and ``$ip``; a limit without a text gets that of its rule.
    """

    def __init__(self, limits: LimitTable, envelope: Envelope, options: Live, texts: Mapping[str, str]) -> None:
        self._options = options
        self._limits = limits
        self._file = limits.provider.file
        self._envelope = envelope
        self._texts = texts
        self._chosen: dict[tuple[str, str], _Chosen] = {}
        bans = [rule for rule in self._file.refusals if rule.outcome == "banned" and not rule.close]
        self.ban = next((rule for rule in bans if rule.block == "ip"), bans[0] if bans else None)
        """The rule of bans, if the file knows any."""

    def throttled(self, arrival: Arrival, limit: StrictLimit, until: int) -> Failure:
        """The refusal of a request that found `limit` full; units come back at `until` (ns)."""
        key = (limit.name, arrival.plan.route)
        chosen = self._chosen.get(key)
        if chosen is None:
            chosen = self._chosen[key] = self._choose(arrival, limit, until)
        rule = chosen.rule
        words = self._text(limit, arrival.ip)
        if rule is None:
            body: Any = msgspec.json.decode(self._envelope.failed)
            if words:
                body = put(body, self._envelope.message, words)
            return Failure(429, msgspec.json.encode(body), until=until)
        penalty = None
        if rule.hold and rule.block and self._limits.owner(arrival.plan, rule.block):
            ban = self._options.ban
            penalty = (rule.block, self._limits.stretched(duration(rule.hold)) if ban is None else int(ban * SECOND))
            until = max(until, arrival.now + penalty[1])
        return self.answer(rule, chosen.status, until, arrival.now, limit=limit, penalty=penalty, words=words)

    def banned(self, rule: Rule, arrival: Arrival, until: int) -> Refused:
        """The answer to an address that is banned until `until` (ns)."""
        status = (rule.status or [403])[0]
        if self._envelope.banned:
            words = self._envelope.banned_text(arrival.ip, until)
            return self.answer(rule, status, until, arrival.now, words=words)
        said = self.answer(rule, status, until, arrival.now, texts=True)
        # Some text hints are the mark of another refusal.
        return said if self._recognised(arrival, rule, said) else self.answer(rule, status, until, arrival.now)

    def answer(
        self,
        rule: Rule,
        status: int,
        until: int,
        now: int,
        *,
        limit: StrictLimit | None = None,
        penalty: tuple[str, int] | None = None,
        texts: bool = False,
        words: str = "",
    ) -> Refused:
        """An answer that `rule` describes; `until` (ns) is what its hints name, 0 for no hint.

        Hints that are texts belong to some refusals only; those of the whole file are given if `texts` is set. `words` are
        said instead of what would be made up for the rule.
        """
        until = until if self._options.retry_after else 0
        headers, body = worded(self._file, self._envelope, rule, until, now, limit=limit, texts=texts, words=words)
        return Refused(rule, limit, status, msgspec.json.encode(body), headers=headers, penalty=penalty)

    def _text(self, limit: StrictLimit, ip: str) -> str:
        """The text of a refusal for a full `limit`; ``""``: the rule tells it."""
        text = self._texts.get(limit.unit) or self._texts.get("*", "")
        if not text:
            return ""
        word, number = interval(limit.period)
        span = "minute" if (word, number) == ("MINUTE", 1) else f"{number} {word}"
        return Template(text).substitute(capacity=limit.capacity, unit=word, number=number, span=span, ip=ip)

    def _recognised(self, arrival: Arrival, rule: Rule, failure: Failure) -> bool:
        """Whether the rule file takes the answer for what `rule` says."""
        answer = Answer(failure.status, failure.headers, failure.body)
        told = self._limits.provider.feedback(arrival.plan, answer, now=arrival.now)
        return told.outcome is Outcome(rule.outcome)

    def _choose(self, arrival: Arrival, limit: StrictLimit, until: int) -> _Chosen:
        words = self._text(limit, arrival.ip)
        for rule in self._candidates(limit):
            for status in sorted(rule.status, key=lambda each: each != 429) or (429,):
                try:
                    made = self.answer(rule, status, until, arrival.now, limit=limit, words=words)
                except ValueError:  # no text can be made up for its expression
                    continue
                if self._recognised(arrival, rule, made):
                    return _Chosen(rule, status)
        return _Chosen(None, 429)

    def _candidates(self, limit: StrictLimit) -> Iterator[Rule]:
        """The rules that could speak of `limit`: a penalty box of the whole address, those that name it, its unit, …"""
        rules = [rule for rule in self._file.refusals if Outcome(rule.outcome) in _NO and not rule.close]
        if limit.scope == ("ip",):
            yield from (rule for rule in rules if rule.outcome == "banned" and rule.block == "ip" and rule.hold)
        yield from (rule for rule in rules if limit.name in rule.limits)
        yield from (rule for rule in rules if limit.unit in rule.limits)
        if self._texts:  # the rules without limits mean something else here
            return
        rules = [rule for rule in rules if not rule.limits and rule.outcome != "banned"]
        yield from (rule for rule in rules if rule.block and rule.block in limit.scope)
        yield from (rule for rule in rules if not rule.block)


@dataclass(slots=True)
class Address:
    """What the emulator remembers of one source address."""

    ip: str
    arrivals: int = 0
    throttled: int = 0
    """Refusals for a limit that was full."""
    shut_out: int = 0
    """Refusals because of a ban."""
    strikes: int = 0
    """Refusals since it was last calm or banned."""
    last_strike: int = 0
    banned_until: int = 0
    cause: Failure | None = None
    """The answer with which the ban began, if it was a refusal."""
    bans: list[tuple[int, int]] = field(default_factory=list)
    """Every ban so far: from, until."""


class Bans:
    """Counts refusals per address and bans at the threshold; every further ban of an address lasts twice as long.

    Args:
        after: refusals at which a ban begins; 0 never bans.
        first: nanoseconds of the first ban of an address.
        calm: nanoseconds without a refusal after which the strikes are forgotten (the bans are not).
    """

    def __init__(self, *, after: int, first: int, calm: int) -> None:
        self.after = after
        self.first = first
        self.calm = calm
        self._addresses: dict[str, Address] = {}

    def address(self, ip: str) -> Address:
        """The record of `ip`, made when first seen."""
        found = self._addresses.get(ip)
        if found is None:
            found = self._addresses[ip] = Address(ip)
        return found

    def all(self) -> list[Address]:
        """Every address seen so far."""
        return list(self._addresses.values())

    def strike(self, address: Address, now: int) -> bool:
        """Note one refusal; true if it was one too many and a ban begins."""
        if now - address.last_strike > self.calm:
            address.strikes = 0
        address.last_strike = now
        address.strikes += 1
        if not self.after or address.strikes < self.after:
            return False
        self.ban(address, now, min(_LONGEST, self.first << min(len(address.bans), 40)))
        return True

    @staticmethod
    def ban(address: Address, now: int, span: int, cause: Failure | None = None) -> None:
        """Ban `address` for `span` nanoseconds from `now`."""
        address.strikes = 0
        address.cause = cause
        address.banned_until = now + span
        address.bans.append((now, now + span))
