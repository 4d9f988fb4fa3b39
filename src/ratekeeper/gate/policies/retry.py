"""Retries: the policy repeats a call until it succeeds, until a repeat is unsafe, or until it gives up."""

from __future__ import annotations

import functools
import random
import threading
import time
from dataclasses import dataclass
from typing import Any, ClassVar

from ratekeeper.errors import CallFailed, OutcomeUnknown, Rejected, RetriesExhausted, SignatureWouldExpire
from ratekeeper.gate.call import Call, Next, Policy
from ratekeeper.gate.context import Context
from ratekeeper.gate.steps import Steps, pausing
from ratekeeper.ledger.limit import SECOND
from ratekeeper.policy.retry import Again, Budget, Repeat, Retry, Stop, Tried
from ratekeeper.rules.call import Outcome, Plan

__all__ = ["Retries", "unknown"]

_NONE = Retry(attempts=1)


class Retries(Policy):
    """The retries of one gate, and their shared budget.

    Args:
        context: of the gate.
        retry: the settings; None: the policy repeats nothing, and failures go to the caller as they are.
    """

    when_overriding: ClassVar[bool] = True

    def __init__(self, context: Context, retry: Retry | None) -> None:
        self._context = context
        self._events = context.events
        self._max_wait = context.max_wait
        self._retry = retry
        self._budget = Budget(retry or _NONE, time.monotonic())
        self._lock = threading.Lock()

    def around(self, call: Call, plan: Plan, ask: Next) -> Steps[Any]:
        """Make the call; return the client's response.

        Raises:
            Rejected: the call was not sent.
            RetriesExhausted, OutcomeUnknown: the call was sent and failed.
        """
        begun = time.monotonic()
        retry = self._retry or _NONE
        deadline = begun + (retry.deadline or self._max_wait)
        call.patient = retry.deadline is not None
        repeat = Repeat(call.replayable and call.rules.handling.safe(call.request, plan), begun, deadline)
        story: list[str] = []
        last: _Brought | None = None
        pause = 0.0
        with self._lock:
            self._budget.call()
        while True:
            try:
                if pause:
                    yield pausing(pause, is_async=call.is_async)
                response, error = yield from self._once(call, plan, deadline, story, ask)
            except BaseException as late:
                if last is not None and isinstance(late, SignatureWouldExpire):
                    return self._expired(call, plan, last, story, str(late))
                if not isinstance(late, GeneratorExit):  # the program has dropped the whole call
                    yield from _dropped(call, last)
                raise
            tried = call.tried or Tried(Outcome.OK)
            if tried.outcome is Outcome.OK:
                if error is not None:
                    raise error
                return response
            failed = time.monotonic()
            story.append(f"{tried.outcome}{': ' + tried.reason.rstrip('.') if tried.reason else ''}")
            verdict = self._verdict(retry, call, repeat, tried, len(story))
            if isinstance(verdict, Stop):
                return self._stop(call, plan, verdict, story, response, error, begun)
            delay = max(verdict.delay, self._held(plan, tried))
            left = call.signature_left
            last = _Brought(response, error, tried)
            if left is not None and delay > left:
                why = f"the next try, in {delay:.1f} s, would come when its signature is not valid any more"
                return self._expired(call, plan, last, story, why)
            if left is None or call.slots:  # else its answer is kept until the next attempt is sure to leave
                yield from _dropped(call, last)
                last = None
            self._events.say(
                "retry", f"{plan.route or 'a call'} is made again in {delay:.2f} s: {story[-1]}", plan.provider,
                route=plan.route, attempt=len(story) + 1, outcome=str(tried.outcome), delay=delay,
            )  # fmt: skip
            call.leaving = functools.partial(_left, call, story, failed, last)
            pause = verdict.delay

    def _held(self, plan: Plan, tried: Tried) -> float:
        """Return the known seconds for which the gate will hold the next attempt: because of the last response, or because
        of a block such as a ban."""
        now = time.monotonic_ns()
        held = tried.until - now / SECOND
        if not self._context.egress.pools:  # else the call may leave from another address
            no = self._context.store.blocks.against(plan.scopes, plan.charges, now)
            if no is not None and not no.unknown:
                held = max(held, (no.available_at - now) / SECOND)
        return held

    def _once(
        self, call: Call, plan: Plan, deadline: float, story: list[str], ask: Next
    ) -> Steps[tuple[Any, Exception | None]]:
        """Make one attempt; return a response or an error."""
        call.tried = None
        call.within = None if self._retry is None else max(0.0, deadline - time.monotonic())
        try:
            return (yield from ask(call, plan)), None
        except Rejected as error:
            if not story or isinstance(error, SignatureWouldExpire):
                raise call.fail(error, None) from None
            raise call.fail(self._gave_up(plan, story, str(error)), error) from error
        except Exception as error:
            if call.tried is None:
                raise  # not a network error: a bug in the caller's own code
            return None, error

    def _verdict(self, retry: Retry, call: Call, repeat: Repeat, tried: Tried, nth: int) -> Again | Stop:
        now = time.monotonic()
        verdict = retry.next(repeat, tried, nth, now, random.random())
        if isinstance(verdict, Again):
            if not call.replayable:
                return Stop("its body is a stream, which is gone", plain=True)
            with self._lock:
                if not self._budget.take(now):
                    return Stop("this process has made so many retries that more would only add to the trouble")
        return verdict

    def _stop(
        self,
        call: Call,
        plan: Plan,
        verdict: Stop,
        story: list[str],
        response: Any,
        error: Exception | None,
        begun: float,
    ) -> Any:
        if verdict.unknown and (error is not None or self._retry is not None):
            self._events.say(
                "unknown", f"{plan.route or 'a call'}: nobody knows whether it was carried out", plan.provider
            )
            raise call.fail(unknown(call, plan, story, response), error) from error
        if self._retry is None or verdict.plain:
            if error is not None:
                raise error
            return response
        why = f"{verdict.reason} ({time.monotonic() - begun:.1f} s in all)"
        raise call.fail(self._gave_up(plan, story, why, response), error) from error

    def _expired(self, call: Call, plan: Plan, last: _Brought, story: list[str], why: str) -> Any:
        """End a signed call whose next attempt would come too late with what the last one brought, as without retries."""
        call.tried, call.leaving = last.tried, None
        self._gave_up(plan, story, why)
        if last.error is not None:
            raise last.error from last.error.__cause__
        return last.response

    def _gave_up(self, plan: Plan, story: list[str], why: str, response: object = None) -> RetriesExhausted:
        tries = "; ".join(f"{nth}. {each}" for nth, each in enumerate(story, 1))
        text = f"{plan.route or 'a call'} failed: {tries}. {why}"
        self._events.say("gave up", text, plan.provider, route=plan.route, tries=len(story))
        return RetriesExhausted(text, route=plan.route, tries=tuple(story), response=response)


@dataclass(slots=True)
class _Brought:
    """What the last attempt brought: a response or an error."""

    response: Any
    error: Exception | None
    tried: Tried


def _dropped(call: Call, last: _Brought | None) -> Steps[None]:
    """Give back the connection of the last response, which the program will not see."""
    if last is not None and last.response is not None:
        response, last.response = last.response, None
        yield from call.discard(response)


def _left(call: Call, story: list[str], failed: float, last: _Brought | None) -> Steps[None]:
    """Note how long the next attempt has waited, for its backoff, a ban or a limit. Called when it leaves."""
    call.leaving = None
    story[-1] += f" (again after {time.monotonic() - failed:.2f} s)"
    yield from _dropped(call, last)


def unknown(call: Call, plan: Plan, story: list[str], response: object = None) -> CallFailed:
    """Return the error for a call whose outcome is unknown."""
    ask = call.rules.handling.ask(call.request, plan)
    remedy = f"Ask {ask}" if ask else "Look at the open orders and at what was filled"
    what = f"{plan.route or 'a call'} may have been carried out, and was not made again: {story[-1]}"
    told = f"{what}. {remedy} before you repeat it"
    return OutcomeUnknown(told, route=plan.route, tries=tuple(story), response=response, ask=ask)
