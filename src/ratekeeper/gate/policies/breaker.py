"""Circuit breakers: which calls may pass, and the outcomes that all processes share through the store."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from typing import Any, ClassVar, Final, TypeVar

from ratekeeper.errors import BreakerOpen, Rejected
from ratekeeper.gate.call import Call, Next, Policy
from ratekeeper.gate.context import Context
from ratekeeper.gate.steps import Steps, apart
from ratekeeper.ledger.limit import SECOND, Instant
from ratekeeper.policy.breaker import OPEN, PROBING, Breaker, Outcomes, troubled
from ratekeeper.policy.shared import seconds
from ratekeeper.rules.call import Outcome, Plan
from ratekeeper.rules.handling import class_of
from ratekeeper.stores.blocks import EMERGENCY

__all__ = ["Breakers", "close"]

T = TypeVar("T")

_PROBE: Final = 30 * SECOND
"""A probe may take this long before another replaces it, ns."""
_KEPT: Final = 86_400 * SECOND
"""The outcomes of a scope that nobody calls are kept for this long, ns."""
_LOOK, _CLOSER_LOOK = SECOND, SECOND // 20
"""A process reads the outcomes of others again after this, ns: while it knows of no block, and while it knows of one."""
_AFTERWARDS: Final = 600.0
"""A breaker requires a probe for this many seconds after its cooldown. Without a call for that long the gate forgets it."""


class Breakers(Policy):
    """The breakers of one gate."""

    when_overriding: ClassVar[bool] = True

    def __init__(self, context: Context, settings: Breaker) -> None:
        self._context = context
        self._store = context.store
        self._settings = settings
        self._lock = threading.Lock()
        self._looked = -_LOOK
        self._counted: dict[str, list[int]] = {}
        """By scope: the numbers of [failed, successful] calls that the store does not have yet."""

    def around(self, call: Call, plan: Plan, ask: Next) -> Steps[Any]:
        """Make the call if it may pass, and record its outcome."""
        probe = yield from self._admit(plan, is_async=call.is_async)
        try:
            response = yield from ask(call, plan)
        except BaseException as error:
            if isinstance(error, Exception) and not isinstance(error, Rejected) and call.tried is not None:
                yield from self._note(plan, call.tried.outcome, probe, is_async=call.is_async)
            elif probe:
                self.release(probe)
            raise
        outcome = call.tried.outcome if call.tried is not None else Outcome.OK
        yield from self._note(plan, outcome, probe, is_async=call.is_async)
        return response

    def _admit(self, plan: Plan, *, is_async: bool) -> Steps[str]:
        """Let a call pass. Cancels and calls of an operator override always pass. Return the probe's topic if the call is a
        probe, else ``""``.

        Raises:
            BreakerOpen: the breaker is open.
        """
        now = time.monotonic_ns()
        due = now - self._looked >= (_CLOSER_LOOK if self._store.blocks else _LOOK)
        if not (due or self._store.blocks) or _passes(plan):
            return ""
        scope = self._settings.scope_of(plan.scopes)
        if due:
            # A new or idle process knows of no block yet, and the store itself stops no call whose scope needs a probe.
            self._looked = now
            yield from self._apart(scope, functools.partial(self._store.get, _health(scope), Outcomes), None, is_async)
        if not self._store.blocks:
            return ""
        names = {scope, _probing(scope)}
        ends = {state.kind: state for state in self._store.blocks.states() if state.scope in names}
        if OPEN in ends and ends[OPEN].ends() > now:
            raise self._refusal(scope, ends[OPEN].reason, ends[OPEN].ends() - now)
        if PROBING not in ends or ends[PROBING].ends() <= now:
            return ""
        topic: str = yield from self._apart(scope, functools.partial(self._claim, scope), "", is_async)
        if not topic:
            raise self._refusal(scope, f"{ends[PROBING].reason}; a probe is under way", SECOND)
        return topic

    def _claim(self, scope: str) -> str:
        topics = [f"probe:{number}:{scope}" for number in range(self._settings.probes)]
        return next((topic for topic in topics if not self._store.claim(topic, _PROBE)), "")

    def _note(self, plan: Plan, outcome: Outcome, probe: str, *, is_async: bool) -> Steps[None]:
        """Record the outcome of a call. A call that always passes opens no breaker."""
        trouble = troubled(outcome)
        if trouble and _passes(plan):
            return
        scope = self._settings.scope_of(plan.scopes)
        if trouble:
            yield from self._apart(
                scope, functools.partial(self._failed, scope, plan.provider, outcome), None, is_async
            )
        elif trouble is False:
            with self._lock:
                self._counted.setdefault(scope, [0, 0])[1] += 1
            if probe:
                yield from self._apart(scope, functools.partial(self._recovered, scope, plan.provider), None, is_async)
        if probe:
            self.release(probe)

    def release(self, probe: str) -> None:
        """Count a probe as over, sent or not. Never waits."""
        scope = probe.split(":", 2)[2]
        self._context.worker.later(scope, functools.partial(self._store.release, probe, _PROBE))

    def _failed(self, scope: str, provider: str, outcome: Outcome) -> None:
        with self._lock:
            counted = self._counted.setdefault(scope, [0, 0])
            counted[0] += 1
            failed, worked = counted
            del self._counted[scope]

        def count(old: Outcomes | None, now: Instant) -> tuple[Outcomes, tuple[Outcomes, float]]:
            health, length = self._settings.after(old or Outcomes(), failed, worked, seconds(now))
            return health, (health, length)

        health, length = self._store.update(_health(scope), Outcomes, count, _KEPT)
        if length:
            reason = f"the provider is in trouble ({outcome})"
            self._context.block(scope, length, OPEN, reason)
            self._context.block(_probing(scope), length + _AFTERWARDS, PROBING, reason)
            self._context.events.say(
                "breaker", f"the breaker of {scope} is open for {length:.0f} s: {reason}", provider,
                scope=scope, seconds=length, trips=health.trips,
            )  # fmt: skip

    def _recovered(self, scope: str, provider: str) -> None:
        close(self._context, scope)
        self._context.events.say(
            "breaker closed", f"the breaker of {scope} is closed: a probe succeeded", provider, scope=scope
        )

    def _apart(self, scope: str, work: Callable[[], T], otherwise: T, is_async: bool) -> Steps[T]:
        return apart(self._context.worker, scope, work, otherwise, is_async=is_async)

    @staticmethod
    def _refusal(scope: str, reason: str, left: int) -> BreakerOpen:
        seconds = left / SECOND
        return BreakerOpen(
            f"the breaker of {scope} is open for {seconds:.1f} s: {reason}",
            limit=OPEN,
            scope=scope,
            retry_at=time.time() + seconds,
            seconds=seconds,
            reason=reason,
        )


def close(context: Context, scope: str) -> bool:
    """Close a breaker and forget its outcomes. False: it was not open and required no probe."""
    context.store.update(_health(scope), Outcomes, lambda *_: (None, None))
    gone = [context.unblock(scope, OPEN), context.unblock(_probing(scope), PROBING)]
    return any(gone)


def _passes(plan: Plan) -> bool:
    """Whether a call is a cancel or part of an operator override."""
    return EMERGENCY in plan.scopes or class_of(plan) == "cancel"


def _health(scope: str) -> str:
    return f"breaker:{scope}"


def _probing(scope: str) -> str:
    """Return a scope that no plan has, so that the need for a probe alone holds no call."""
    return f"{scope}/probing"
