"""The policies around a governed call, and their order, from the outside in::

    Cache      returns cached responses; one process makes the call for all
     Batch     collects single calls and makes them as one
      Retry    repeats a failed attempt where that is safe
       Breaker stops calls to a provider in trouble
        attempt (the client's): waits for the permit, sends, tells the gate the outcome

Each is a `Policy` that wraps the next. A new policy needs a file here, settings in `Policies`, its decisions in
`ratekeeper.policy`, and a place in the list below.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, TypeVar

from ratekeeper.gate.call import Call, Next, Policy
from ratekeeper.gate.context import Context
from ratekeeper.gate.policies.batch import Batching
from ratekeeper.gate.policies.breaker import Breakers
from ratekeeper.gate.policies.retry import Retries
from ratekeeper.gate.steps import Steps
from ratekeeper.policy.breaker import Breaker
from ratekeeper.policy.freshness import Cache
from ratekeeper.policy.policies import Batch
from ratekeeper.policy.retry import Retry
from ratekeeper.rules.call import Plan
from ratekeeper.rules.handling import class_of
from ratekeeper.stores.blocks import EMERGENCY

if TYPE_CHECKING:
    from ratekeeper.gate.policies.cache import Caching

__all__ = ["Pipeline"]

P = TypeVar("P")


class Pipeline:
    """The policies of one gate."""

    def __init__(self, context: Context) -> None:
        said = context.policies
        cache, batch = _settings(said.cache, Cache), _settings(said.batch, Batch)
        retry, breaker = _settings(said.retry, Retry), _settings(said.breaker, Breaker)
        self._plans = context.plans
        self.cache = _caching(context, cache) if cache else None
        order: list[Policy | None] = [
            self.cache,
            Batching(context, batch) if batch else None,
            Retries(context, retry),  # also without settings: it reports calls with an unknown outcome
            Breakers(context, breaker) if breaker else None,
        ]
        policies = [policy for policy in order if policy is not None]
        self._policies = policies
        self._usual = _chained(policies)
        self._overriding = _chained([policy for policy in policies if policy.when_overriding])

    def run(self, call: Call) -> Steps[Any]:
        """Make one call inside all policies; return the client's response."""
        plan = self._plans.plan(call.rules, call.request)
        around = self._overriding if EMERGENCY in plan.scopes else self._usual
        return (yield from around(call, plan))

    def keeps(self, call: Call) -> bool:
        """Whether the response to a call may come from the cache or from another call."""
        return self.cache is not None and class_of(self._plans.plan(call.rules, call.request)) == "market"

    def close(self) -> None:
        """Release the resources of the policies."""
        for policy in self._policies:
            policy.close()


def _attempt(call: Call, plan: Plan) -> Steps[Any]:
    return call.attempt(call.within)


def _chained(policies: list[Policy]) -> Next:
    """Wrap an attempt in the policies, the first outermost."""
    chain: Next = _attempt
    for policy in reversed(policies):
        chain = functools.partial(policy.around, ask=chain)
    return chain


def _caching(context: Context, cache: Cache) -> Caching:
    from ratekeeper.gate.policies.cache import Caching  # imports the response storage, so only where it is needed

    return Caching(context, cache)


def _settings(said: bool | P, kind: type[P]) -> P | None:
    return kind() if said is True else (said or None) if not isinstance(said, bool) else None
