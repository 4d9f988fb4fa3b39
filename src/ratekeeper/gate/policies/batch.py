"""Batching: the policy collects single calls for a moment, makes one call for all, and splits the response."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any, ClassVar, Final

from ratekeeper.errors import RatekeeperError
from ratekeeper.gate.call import Call, Next, Policy, Reply, Served
from ratekeeper.gate.context import Context
from ratekeeper.gate.steps import Steps, pausing, waiting
from ratekeeper.policy.freshness import Service
from ratekeeper.policy.policies import Batch
from ratekeeper.rules.call import Plan
from ratekeeper.rules.handling import Single
from ratekeeper.stores.threads import Parked

__all__ = ["Batching"]

_LONGEST: Final = 120.0
"""A call waits at most this many seconds for its batch. Then it goes by itself."""


class _Collected:
    """The calls of one batch, from the first call to the response."""

    def __init__(self, name: str) -> None:
        self.names = {name}
        self.open = True
        self.done = Parked()
        self.replies: dict[str, Reply] = {}
        self.error: Exception | None = None


class Batching(Policy):
    """The batches of one gate. They collect the calls of this process."""

    when_overriding: ClassVar[bool] = False

    def __init__(self, context: Context, settings: Batch) -> None:
        self._context = context
        self._settings = settings
        self._lock = threading.Lock()
        self._collecting: dict[bytes, _Collected] = {}

    def around(self, call: Call, plan: Plan, ask: Next) -> Steps[Any]:
        """Make the call, alone or in a batch."""
        single = call.rules.handling.single(call.request, plan) if call.answers else None
        if single is None:
            return (yield from ask(call, plan))
        with self._lock:
            batch = self._collecting.get(single.group)
            first = batch is None or not batch.open
            if batch is None or not batch.open:
                batch = self._collecting[single.group] = _Collected(single.name)
            batch.names.add(single.name)
            if len(batch.names) >= min(self._settings.most, single.rule.most if single.rule.list_param else 1 << 30):
                batch.open = False
        if first:
            return (yield from self._lead(call, plan, single, batch, ask))
        yield waiting(
            lambda: batch.done.wait(_LONGEST), lambda: batch.done.wait_async(_LONGEST), is_async=call.is_async
        )
        if isinstance(batch.error, RatekeeperError):
            raise call.fail(batch.error, None) from batch.error  # as this client's users expect it
        if batch.error is not None:
            raise batch.error
        if single.name not in batch.replies:
            return (yield from ask(call, plan))
        call.service = Service.BATCHED
        return call.answer(batch.replies[single.name], Served(Service.BATCHED))

    def _lead(self, call: Call, plan: Plan, single: Single, batch: _Collected, ask: Next) -> Steps[Any]:
        try:
            yield pausing(self._settings.window, is_async=call.is_async)
            names = self._closed(single, batch)
            request = single.together(names)
            together = self._context.plans.plan(call.rules, request)
            whole = call.other(request) if len(names) > 1 and _cheaper(together, plan, len(names)) else None
            if whole is not None:
                yield from self._together(call, whole, together, single, batch, ask)
        except Exception as error:
            batch.error = error
            raise
        finally:
            self._closed(single, batch)
            batch.done.release()
        if single.name not in batch.replies:
            return (yield from ask(call, plan))
        call.service = Service.BATCHED
        return call.answer(batch.replies[single.name], Served(Service.BATCHED))

    def _closed(self, single: Single, batch: _Collected) -> set[str]:
        with self._lock:
            batch.open = False
            if self._collecting.get(single.group) is batch:
                del self._collecting[single.group]
            return batch.names

    def _together(
        self, call: Call, whole: Call, plan: Plan, single: Single, batch: _Collected, ask: Next
    ) -> Steps[None]:
        """Make one call for all. A caller whose item the response lacks makes its own call."""
        response = yield from ask(whole, plan)
        call.tried = whole.tried
        reply, response = yield from whole.read(response)
        yield from whole.discard(response)
        if reply is None or reply.status != 200:
            return
        parts = single.split(reply.body)
        batch.replies = {name: Reply(200, reply.headers, parts[name]) for name in batch.names if name in parts}
        self._context.events.say(
            "batched",
            f"{len(batch.replies)} calls were made as one: {plan.route}",
            plan.provider,
            calls=len(batch.names),
        )


def _cheaper(together: Plan, one: Plan, number: int) -> bool:
    """Whether one call for all costs no more on every limit than `number` single ones. It compares by limit name and not by
    ledger, because limits of an endpoint have ledgers of their own."""
    single: Counter[str] = Counter()
    for charge in one.charges:
        single[charge.limit.name] += charge.cost * number
    return all(charge.cost <= single[charge.limit.name] for charge in together.charges)
