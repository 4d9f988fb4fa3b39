"""How a provider says no, told from the refusals of its rule file: an answer that the file itself recognises."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from ratekeeper.rules.call import Answer, Outcome
from ratekeeper.rules.denial import worded, write_instant
from ratekeeper.rules.times import duration

from .incoming import Failure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ratekeeper.rules.denial import Envelope
    from ratekeeper.rules.schema import Refusal as Rule

    from .accounting import StrictLimit
    from .incoming import Arrival
    from .options import Live
    from .tariff import Tariff

__all__ = ["Refused", "Refuser", "write_instant"]

SECOND = 1_000_000_000
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
        tariff: the limits in force.
        envelope: how its bodies look.
        options: whether refusals say when to come back.
    """

    def __init__(self, tariff: Tariff, envelope: Envelope, options: Live) -> None:
        self._options = options
        self._tariff = tariff
        self._file = tariff.provider.file
        self._envelope = envelope
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
        if rule is None:
            return Failure(429, self._envelope.failed.encode(), until=until)
        penalty = None
        if rule.hold and rule.block and self._tariff.owner(arrival.plan, rule.block):
            ban = self._options.ban
            penalty = (rule.block, self._tariff.stretched(duration(rule.hold)) if ban is None else int(ban * SECOND))
            until = max(until, arrival.now + penalty[1])
        return self.answer(rule, chosen.status, until, arrival.now, limit=limit, penalty=penalty)

    def banned(self, rule: Rule, arrival: Arrival, until: int) -> Refused:
        """The answer to an address that is banned until `until` (ns)."""
        status = (rule.status or [403])[0]
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
    ) -> Refused:
        """An answer that `rule` describes; `until` (ns) is what its hints name, 0 for no hint.

        Hints that are texts belong to some refusals only; those of the whole file are given if `texts` is set.
        """
        until = until if self._options.retry_after else 0
        headers, body = worded(self._file, self._envelope, rule, until, now, limit=limit, texts=texts)
        return Refused(rule, limit, status, msgspec.json.encode(body), headers=headers, penalty=penalty)

    def _recognised(self, arrival: Arrival, rule: Rule, failure: Failure) -> bool:
        """Whether the rule file takes the answer for what `rule` says."""
        answer = Answer(failure.status, failure.headers, failure.body)
        told = self._tariff.provider.feedback(arrival.plan, answer, now=arrival.now)
        return told.outcome is Outcome(rule.outcome)

    def _choose(self, arrival: Arrival, limit: StrictLimit, until: int) -> _Chosen:
        for rule in self._candidates(limit):
            for status in sorted(rule.status, key=lambda each: each != 429) or (429,):
                try:
                    made = self.answer(rule, status, until, arrival.now, limit=limit)
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
        rules = [rule for rule in rules if not rule.limits and rule.outcome != "banned"]
        yield from (rule for rule in rules if rule.block and rule.block in limit.scope)
        yield from (rule for rule in rules if not rule.block)
