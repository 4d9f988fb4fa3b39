"""Settlement after a call: the gate settles or refunds the permit and applies what the response tells."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from ratekeeper.gate.context import Context
from ratekeeper.gate.pacing import Pacing
from ratekeeper.ledger.limit import SECOND, Instant, Window
from ratekeeper.policy.counters import Counters
from ratekeeper.policy.shared import Bans, banned
from ratekeeper.pools.pool import Choice
from ratekeeper.rules.call import Answer, Block, Doubt, Feedback, Outcome, Plan, Request
from ratekeeper.rules.times import Wait
from ratekeeper.stores.inforce import DOUBTED
from ratekeeper.stores.records import AS_RESERVED, LEASE, Answered, Grant, Settlement
from ratekeeper.stores.worker import Pending

if TYPE_CHECKING:
    from ratekeeper.rules.provider import Provider

__all__ = ["LINGER", "Settling"]

LINGER: Final = 10 * SECOND
"""A request may still arrive for this long after its caller gave up, ns. After that the gate counts it as spent."""

_TROUBLE: Final = frozenset({Outcome.OVERLOADED, Outcome.FAILED})
"""Outcomes that tell of trouble inside the provider."""
_TRIED: Final = 60 * SECOND
"""A ledger is held for this long at most, ns, because of a statement that cannot be meant. After that calls try it."""
_DOUBTED: Final = 86_400 * SECOND
"""For this long after that, ns, the same kind of statement does not hold the ledger again, in any process."""

_BANS: Final = 400 * 86_400 * SECOND
"""The store keeps records of earlier bans for this long at most, ns."""


class Settling:
    """Settles and refunds the permits of one gate."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._store = context.store
        self._worker = context.worker
        self._times = context.times
        self._events = context.events
        self._pacing = Pacing(context)
        self._counters = Counters()

    def settled(self, grant: Grant) -> None:
        """Settle at the reserved cost; the gate knows nothing of a response."""
        self.after(grant.namespace, self._store.settle(grant, self._times.now(grant.namespace)))

    def refunded(self, grant: Grant) -> None:
        """Refund the permit of a request that was never sent."""
        self.after(grant.namespace, self._store.refund(grant, self._times.now(grant.namespace)))

    def lingers(self, grant: Grant) -> None:
        """Keep the cost of a request without a response: it may still arrive (for at most one period), then it is spent."""
        periods = [charge.limit.period for charge in grant.charges if charge.limit.period]
        self._store.hold(grant, time.monotonic_ns() + min([LINGER, *periods]))

    def renew(self, grant: Grant) -> None:
        """Extend a lease, but write only after a third of it has passed."""
        mono = time.monotonic_ns()
        if grant.lease - mono < LEASE * 2 // 3:
            self._store.hold(grant, mono + LEASE)

    def after(self, namespace: str, done: Answered) -> None:
        """Wake the calls that can go now, and report spending by programs outside Ratekeeper. A remote store calls this
        later, from its own thread, perhaps after the gate is gone."""
        if done.wake:
            self._store.wake(done.wake)
        if done.released:
            self._context.released(done.released)
        for key, units in done.foreign.items():
            self._events.say_seldom(
                "foreign", key, 60.0,
                f"another program spends on {key}: {units} units that no program under Ratekeeper sent; room is made for it",
                namespace, limit=key, units=units,
            )  # fmt: skip

    def answered(
        self,
        rules: Provider,
        plan: Plan,
        grant: Grant,
        answer: Answer | None,
        costs: Mapping[str, int] | None,
        *,
        waited: bool = False,
        request: Request | None = None,
    ) -> Feedback:
        """Settle with the response: real cost, used-counters, clock, refusals, bans, learned limits. `waited`: the call
        waited for its permit, so a paced limit may grow. `request`: the call, whose secrets the provider may quote."""
        namespace = plan.provider
        now = self._times.now(namespace)
        told = Feedback() if answer is None else rules.feedback(plan, answer, now=now.lo)
        if told.reason and answer is not None:
            self._conceal(rules, told, answer, request)
        if told.server_time is not None:
            contradicted, now = self._times.learn(namespace, grant.sent.mono, told.server_time)
            if contradicted:
                self._store.doubt(namespace, now)
                self._events.say("clock", "its clock is not what this machine's clock says", namespace)
        if told.doubted or told.unreadable:
            self._doubt(rules, plan, told, now)
        if costs:
            _count(plan, costs, told)
        if told.learned and self._store.learn(namespace, told.learned):
            self._say_learned(namespace, told.learned)
        if told.used and (
            untrue := self._counters.untrue(plan.charges, told.used, told.actual, grant.sent.mono, now.mono)
        ):
            self._leave_out(namespace, told, untrue)
        # If the provider states when to come back, the limit is blocked for exactly that long.
        stated = told.wait is not None
        more = told.actual or told.used or told.full
        settlement = Settlement(told.actual, told.used, told.full, stated) if more else AS_RESERVED
        done = self._store.settle(grant, now, settlement)
        if stated or told.blocks or told.outcome is not Outcome.OK:
            self._obey(rules, plan, grant, told, now)
        if told.outcome is Outcome.OK and (known := self._store.learned.get(namespace)):
            self._pacing.went_well(rules, plan, known, grant.sent.mono, waited=waited)
        if done.released or done.wake or done.foreign:
            self.after(namespace, done)
        return told

    def remember(self, request: Request | None, names: Iterable[str] = ()) -> frozenset[str]:
        """Return the secrets of a request that failed, and keep them out of what is said later. `names`: of headers that
        hold one."""
        if request is None:
            return frozenset()
        from ratekeeper.rules.secrets import secrets_of  # for those whose calls fail

        secrets = secrets_of(request, names)
        self._events.secrets.add(secrets)
        return secrets

    def _conceal(self, rules: Provider, told: Feedback, answer: Answer, request: Request | None) -> None:
        """Strike the secrets of a request out of what the provider says when it refuses."""
        from ratekeeper.rules.reading import listed
        from ratekeeper.rules.refusal import reason_of

        owners = rules.file.owners.values()
        secrets = self.remember(request, [name for owner in owners for name in listed(owner.header)])
        if secrets:
            said = told.reason
            told.reason = said.partition("HTTP ")[0] + reason_of(answer, secrets)
            if told.unlisted and told.reason != said:
                told.unlisted = f"HTTP {answer.status}"
            told.blocks = tuple(
                replace(block, reason=told.reason) if block.reason == said else block for block in told.blocks
            )

    def _obey(self, rules: Provider, plan: Plan, grant: Grant, told: Feedback, now: Instant) -> None:
        """Apply the blocks and the refusal of a response. `now`: on the clock that this response has corrected."""
        told.retry_in = None if told.wait is None else told.wait.length(now)
        told.held = self._hold(rules, plan, told, grant, now)
        if told.unlisted:
            self._say_unlisted(plan, told)
        if told.outcome is Outcome.THROTTLED:
            self._throttled(plan, told)
            self._pacing.throttled(rules, plan, told)
        elif told.outcome is Outcome.OVERLOADED:
            route = plan.route
            self._events.say("overloaded", f"{route} was not served: {told.reason}", plan.provider, route=route)

    def fared(self, choice: Choice, told: Feedback) -> None:
        """Record what a response says about the address of its call."""
        if told.outcome is Outcome.THROTTLED:
            self._context.egress.refused(choice)
        elif told.outcome is not Outcome.BANNED:
            self._context.egress.worked(choice, told.used)

    def _hold(self, rules: Provider, plan: Plan, told: Feedback, grant: Grant, now: Instant) -> int:
        """Block calls as the response says; return the longest block, ns.

        If the provider states no length, the gate guesses one. The guess grows while the provider goes on refusing.
        """
        held = 0
        guessed = told.outcome is Outcome.THROTTLED and told.wait is None
        for block in told.blocks:
            wait = block.wait
            if wait is None:
                held = max(held, self._ban(rules, block, grant.sent.mono, now))
                continue
            length = wait.length(now)
            if guessed:
                length = self._pacing.longer(plan.provider, block.scope, length, grant.sent.mono, now.mono)
            elif told.outcome in _TROUBLE and told.wait is None:
                length = self._pacing.moment(plan.provider, block.scope, length, grant.sent.mono, now.mono)
            held = max(held, length)
            self._shut(rules.namespace, block, length, now)
        if guessed:
            for key, filled in _filled(plan, told, now).items():
                length = self._pacing.longer(plan.provider, key, 0, grant.sent.mono, now.mono, filled=filled)
                held = max(held, length, filled)
                if length > filled:
                    self._shut(rules.namespace, Block(key, None, "throttle", told.reason), length, now)
        return held

    def _shut(self, namespace: str, block: Block, length: int, now: Instant) -> None:
        if length <= 0:
            return
        # Calls in flight when the block began get the same end: report it once.
        alike = [
            state for state in self._store.blocks.states() if (state.scope, state.kind) == (block.scope, block.kind)
        ]
        news = now.mono + length > max((state.ends() for state in alike), default=0) + SECOND
        self._store.block(block.scope, length, block.kind, block.reason, now.mono, time.time_ns())
        if news:
            self._context.rouse()
        if block.kind == "ban" and news:
            self._events.say(
                "banned", f"{block.scope} is banned for {length / SECOND:.0f} s: {block.reason}", namespace,
                scope=block.scope, seconds=length / SECOND,
            )  # fmt: skip

    def _ban(self, rules: Provider, block: Block, sent: int, now: Instant) -> int:
        """Block calls for a ban without a stated end; repeated bans last longer. Return the least length, ns; 0: the ban is
        already known."""
        for state in self._store.blocks.states():
            # Calls in flight when the ban began get the same response: that is one ban, not many.
            if state.scope == block.scope and state.kind == "ban" and sent < state.ends():
                return 0
        ladder = functools.partial(rules.ban_length, first=block.first)
        topic, least = f"ban:{block.scope}{':unlisted' if block.first else ''}", 0

        def shut() -> int:
            length = self._store.update(topic, Bans, lambda old, now: banned(old, now, sent, ladder), _BANS)
            if length > least:
                self._shut(rules.namespace, block, length, now)
            return length

        done = self._worker.start(topic, shut)
        if not isinstance(done, Pending):
            return done
        # This thread does not wait for a remote store. But the ban holds and is reported at once.
        least = ladder()
        self._shut(rules.namespace, block, least, now)
        return least

    def _leave_out(self, namespace: str, told: Feedback, untrue: tuple[tuple[str, int], ...]) -> None:
        """Leave out used-counters that do not show calls of this process."""
        for key, calls in untrue:
            stated = f"{told.used.pop(key)} units used, without {calls} calls that it served"
            if calls > 2:
                self._say_doubted(namespace, Doubt(f"use of {key.partition('/')[2]}", stated, "our own count"))

    def _doubt(self, rules: Provider, plan: Plan, told: Feedback, now: Instant) -> None:
        """Report what cannot be read, and statements that cannot be meant.

        In case such a statement is true after all, its ledger is held for one period, at most a minute. Then calls try what
        holds instead. All processes hold it once a day, however often it is stated.
        """
        if told.unreadable:
            self._say_unreadable(rules.namespace, told)
        for doubt in told.doubted:
            if doubt.hold:
                length = min(next((c.limit.period for c in plan.charges if c.key == doubt.hold), 0) or _TRIED, _TRIED)
                row, present = DOUBTED + doubt.about, now.mono + sum(self._store.skew()) // 2
                held = self._store.learned.get(rules.namespace, {}).get(row, (0, -_DOUBTED))[1]
                if not present - _DOUBTED < held <= present + _TRIED:
                    self._store.learn(rules.namespace, {row: (1, present + length)})
                    reason = f"the provider states {doubt.stated}, which is doubted"
                    self._shut(rules.namespace, Block(doubt.hold, None, "limit", reason), length, now)
            self._say_doubted(rules.namespace, doubt)

    def _say_doubted(self, namespace: str, doubt: Doubt) -> None:
        place, stated, used = doubt.about, doubt.stated, doubt.used
        self._events.say_seldom(
            "doubted", f"{namespace} {place}", _DOUBTED / SECOND,
            f"{place}: the provider states {stated}, which cannot be meant; {used} holds instead", namespace,
            place=place, stated=stated, used=used,
        )  # fmt: skip

    def _say_unreadable(self, namespace: str, told: Feedback) -> None:
        self._events.say_seldom(
            "unreadable", f"{namespace}: {told.unreadable}", math.inf,
            f"an answer cannot be read in part: {told.unreadable}; the rest of it counts", namespace,
            part=told.unreadable,
        )  # fmt: skip

    def _say_unlisted(self, plan: Plan, told: Feedback) -> None:
        held = f"; such calls wait {told.held / SECOND:.1f} s" if told.held else ""
        what = f"{plan.route or 'a call'} got an error that the rule file does not list"
        self._events.say_seldom(
            "unlisted refusal", f"{plan.provider}: {told.unlisted}", math.inf,
            f"{what}, taken as {told.outcome}: {told.reason}{held}", plan.provider,
            route=plan.route, refusal=told.unlisted, outcome=str(told.outcome), seconds=told.held / SECOND,
        )  # fmt: skip

    def _say_learned(self, namespace: str, learned: Mapping[str, tuple[int, int]]) -> None:
        limits = ", ".join(
            f"{name} {capacity} per {period / SECOND:g} s" for name, (capacity, period) in learned.items()
        )
        self._events.say("learned", f"limits as the provider states them: {limits}", namespace, limits=dict(learned))

    def _throttled(self, plan: Plan, told: Feedback) -> None:
        """Report a refusal although the ledgers had room. If the provider never states its time, its windows may lie
        anywhere, so the clock uncertainty grows."""
        edges = [charge.limit.period for charge in plan.charges if charge.limit.window is Window.FIXED]
        if edges:
            self._times.clock(plan.provider).widen(min(edges) // 2)
        wait = f"; such calls wait {told.held / SECOND:.1f} s" if told.held else ""
        self._events.say(
            "throttled", f"{plan.route or 'a call'} was refused: {told.reason}{wait}", plan.provider,
            route=plan.route, seconds=told.held / SECOND,
        )  # fmt: skip


def _count(plan: Plan, costs: Mapping[str, int], told: Feedback) -> None:
    """Set the real cost of a call where the sender knows better than the rules: by limit name or unit."""
    for charge in plan.charges:
        cost = costs.get(charge.limit.name, costs.get(charge.limit.unit))
        if cost is not None:
            told.actual[charge.key] = cost


def _filled(plan: Plan, told: Feedback, now: Instant) -> dict[str, int]:
    """Return the limits that a refusal has filled, and in how many ns each has room for the same call again."""
    found = dict.fromkeys(told.full, 0)
    for key, limit, cost in plan.charges:
        if key not in found or not limit.period:
            continue
        if limit.window is Window.FIXED:
            found[key] = Wait(window=(limit.period, limit.origin)).length(now)
        elif limit.window is Window.BUCKET:
            found[key] = limit.period * cost // (limit.refill or limit.capacity)
        else:
            found[key] = limit.period
    return found
