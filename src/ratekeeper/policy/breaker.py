"""When calls to a provider in trouble stop, and when a probe is sent. Pure: instants are arguments.

All processes share three facts: how many calls failed lately (`Outcomes`, a note in the store), whether the breaker is open
(a block of kind ``breaker``), and whether it wants probes (a block of kind ``probing``, which outlasts the first).
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, NamedTuple

import msgspec
from msgspec import Meta

from ratekeeper.policy.retry import backoff
from ratekeeper.policy.shared import Count, Steady
from ratekeeper.rules.call import Outcome

__all__ = ["OPEN", "PROBING", "Breaker", "Outcomes", "troubled"]

OPEN: Final = "breaker"
PROBING: Final = "probing"
"""Kinds of blocks. A block of the second kind holds no call by itself: the breaker's policy reads it."""

_TROUBLE: Final = frozenset({Outcome.OVERLOADED, Outcome.FAILED, Outcome.NETWORK, Outcome.UNKNOWN})


def troubled(outcome: Outcome) -> bool | None:
    """Whether an outcome shows that the provider is in trouble. None if it does not tell: throttled and banned calls, and a
    quota that is gone, are not the provider's trouble."""
    if outcome in _TROUBLE:
        return True
    return False if outcome in {Outcome.OK, Outcome.BAD_REQUEST} else None


class Outcomes(NamedTuple):
    """How many calls to one scope failed and worked lately, in all processes.

    Attributes:
        since: steady seconds at which the present span began.
        failed, worked: number of calls in it.
        trips: number of times that the breaker opened since a probe last succeeded.
        tripped: steady seconds at which it last opened.
    """

    since: Steady = 0.0
    failed: Count = 0
    worked: Count = 0
    trips: Count = 0
    tripped: Steady = 0.0


class Breaker(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a breaker opens, and for how long.

    Attributes:
        scope: whose calls stop together: those of one class (market, account, order) of a provider, all of the provider,
            or those that leave from one address.
        failures: failed calls within `span` that open it ...
        share: ... if they are at least this share of all calls in it.
        span: seconds that are looked back at.
        cooldown: seconds it stays open the first time.
        factor: by which that grows each time a probe fails.
        longest: seconds beyond which it does not grow.
        probes: calls at a time, of all processes together, that may feel whether the provider is back.
    """

    scope: Literal["class", "provider", "ip"] = "class"
    failures: Annotated[int, Meta(ge=1, title="a number from 1")] = 5
    share: Annotated[float, Meta(gt=0, le=1, title="a share above 0, at most 1")] = 0.5
    span: Annotated[float, Meta(gt=0, title="seconds above 0")] = 10.0
    cooldown: Annotated[float, Meta(gt=0, title="seconds above 0")] = 5.0
    factor: Annotated[float, Meta(ge=1, title="a factor from 1")] = 2.0
    longest: Annotated[float, Meta(gt=0, title="seconds above 0")] = 60.0
    probes: Annotated[int, Meta(ge=1, le=100, title="a number from 1 to 100")] = 1

    def scope_of(self, scopes: tuple[str, ...]) -> str:
        """The scope that shares one breaker, among those of a plan (the first is the provider)."""
        start = f"{scopes[0]}/{self.scope}:"
        return next((scope for scope in scopes if scope.startswith(start)), scopes[0])

    def after(self, health: Outcomes, failed: int, worked: int, now: float) -> tuple[Outcomes, float]:
        """The record after `failed` and `worked` more calls, and the seconds for which the breaker opens now (0: it does
        not)."""
        if health.trips and now < health.tripped + self._open_for(health.trips):
            return health, 0.0  # calls that were on their way when it opened: that is known already
        if not 0 <= now - health.since <= self.span:
            health = health._replace(since=now, failed=0, worked=0)
        health = health._replace(failed=health.failed + failed, worked=health.worked + worked)
        enough = health.failed >= self.failures and health.failed >= self.share * (health.failed + health.worked)
        if not (enough or (health.trips and failed)):
            return health, 0.0
        trips = health.trips + 1
        return Outcomes(now, 0, 0, trips, now), self._open_for(trips)

    def _open_for(self, trips: int) -> float:
        """Seconds for which it stays open the `trips`-th time in a row."""
        return backoff(trips, self.cooldown, self.factor, self.longest)
