"""What is done around a governed call, from the outside in: kept answers, batches, retries under a breaker, the permit."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, TypeVar

from ratekeeper.gate.batches import Batches
from ratekeeper.gate.breakers import Breakers
from ratekeeper.gate.context import Context
from ratekeeper.gate.errand import Errand
from ratekeeper.gate.steps import Steps
from ratekeeper.gate.trying import Trying
from ratekeeper.policy.breaker import Breaker
from ratekeeper.policy.freshness import Cache
from ratekeeper.policy.policies import Batch
from ratekeeper.policy.retry import Retry
from ratekeeper.rules.handling import class_of
from ratekeeper.stores.blocks import EMERGENCY

if TYPE_CHECKING:
    from ratekeeper.gate.answers import Answers

__all__ = ["Pipeline"]

P = TypeVar("P")


class Pipeline:
    """The policies of one gate at work."""

    def __init__(self, context: Context) -> None:
        self._context, policies = context, context.policies
        breaker, retry = _settings(policies.breaker, Breaker), _settings(policies.retry, Retry)
        cache, batch = _settings(policies.cache, Cache), _settings(policies.batch, Batch)
        self._trying = Trying(context, retry, Breakers(context, breaker) if breaker else None)
        self._answers = _answers(context, cache) if cache else None
        self._batches = Batches(context, batch, self._trying) if batch else None

    def run(self, errand: Errand) -> Steps[Any]:
        """One call with all that is done around it; returns what its client shows its user."""
        plan = self._context.plans.plan(errand.rules, errand.call)
        by_hand = EMERGENCY in plan.scopes  # a person acts on what is true now
        make = functools.partial((self._trying if by_hand else self._batches or self._trying).make, errand, plan)
        if self._answers is None or by_hand:
            return (yield from make())
        return (yield from self._answers.give(errand, plan, make))

    def keeps(self, errand: Errand) -> bool:
        """Whether the answer to a call may come from the shelf, or with another's."""
        plan = self._context.plans.plan(errand.rules, errand.call)
        return self._answers is not None and class_of(plan) == "market"

    def close(self) -> None:
        """Let go of what is kept."""
        if self._answers is not None:
            self._answers.close()


def _answers(context: Context, cache: Cache) -> Answers:
    from ratekeeper.gate.answers import Answers  # with its shelf: for those who keep answers

    return Answers(context, cache)


def _settings(said: bool | P, kind: type[P]) -> P | None:
    return kind() if said is True else (said or None) if not isinstance(said, bool) else None
