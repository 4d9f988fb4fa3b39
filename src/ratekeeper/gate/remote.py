"""The waiting room for a remote store: only the helper thread talks to the store, for all callers at once.

A call that no permit batch of this process can serve waits in its lane. The next round trip asks for all waiting calls. So
an event loop never waits for the network, and a busier process needs fewer round trips per permit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar, Final, NamedTuple

from ratekeeper.errors import StoreError
from ratekeeper.gate.context import Context
from ratekeeper.gate.room import WaitingRoom, unbroken
from ratekeeper.gate.settling import Settling
from ratekeeper.gate.ticket import Ticket
from ratekeeper.ledger.decide import Refusal
from ratekeeper.ledger.limit import SECOND
from ratekeeper.rules.call import Plan
from ratekeeper.stores.records import Ask, Grant
from ratekeeper.waiting.queue import Lane, Queue

__all__ = ["RemoteRoom"]

_BATCH: Final = 256
"""One round trip asks for at most this many calls."""
_PACE: Final = SECOND // 100
"""A refused lane asks again after this at the earliest, ns, so that several calls go at once."""
_AGAIN: Final = SECOND // 10
"""The room tries a failed store without a fallback again after this, ns."""


class _Group(NamedTuple):
    """Calls of one plan at the head of a lane, and their request to the store."""

    lane: Lane
    tickets: list[Ticket]
    ask: Ask


class RemoteRoom(WaitingRoom):
    """The waiting calls of a gate whose store grants permits in batches (`Store.together`)."""

    GRACE: ClassVar[float] = 2.0

    def __init__(self, context: Context, settling: Settling) -> None:
        super().__init__(context, settling)
        self._refused_at = 0
        self._stale = False
        """Whether units came back during a round trip, so that its refusals may be out of date."""

    def ask(
        self, plan: Plan, priority: int, timeout: float, block_wait: float, *, probe: bool = False
    ) -> Grant | Ticket:
        queue = self._queue
        if self._times.knows(plan.provider) and (not queue.count or not queue.busy(plan.charges)):
            got = self._store.draw(plan.charges, self._who[priority], self._now(plan.provider))
            if got is not None:
                return got
        now = time.monotonic_ns()
        ticket = Ticket(plan, priority, now, timeout, block_wait)
        try:
            return self._stand(ticket, None, now, probe)
        except BaseException:
            self.abandon(ticket)
            raise

    def released(self, keys: Iterable[str]) -> None:
        if self._queue.count:
            self._served_after(lambda queue: queue.released(keys, self._refused_at + _PACE))

    @unbroken
    def _served_after(self, change: Callable[[Queue], bool]) -> None:
        if change(self._queue):
            self._stale = True
            self._set_alarm()

    def tick(self, rung: bool) -> float:
        """Make round trips until no lane is due. The helper thread calls it."""
        if rung:
            self.look()
        more = True
        while more:
            now = time.monotonic_ns()
            more = self._round_trip(now)
            with self._lock:
                self._expire(now)
        return super().tick(False)

    def _round_trip(self, now: int) -> bool:
        """Ask for the lanes that are due. Return whether there were any."""
        with self._lock:
            groups = self._pick(now)
            self._stale = False
        if groups:
            answers = self._carry([group.ask for group in groups], now)
            self._hand_out(groups, answers, now)
        return bool(groups)

    @unbroken
    def _hand_out(self, groups: list[_Group], answers: list[Sequence[Grant] | Refusal], now: int) -> None:
        self._deliver(self._apply(groups, answers, now))

    def _serve(self, now: int) -> None:
        """Do nothing: only `tick` serves, without the lock."""

    def _carry(self, asks: Sequence[Ask], now: int) -> list[Sequence[Grant] | Refusal]:
        try:
            return self._store.reserve_all(asks, self._now)
        except StoreError as error:
            later = Refusal(
                asks[0].charges[0].key if asks[0].charges else "", now + _AGAIN, unknown=True, reason=str(error)
            )
            return [later] * len(asks)

    def _pick(self, now: int) -> list[_Group]:
        """Return the heads of all lanes that are due, best first; calls of one plan together."""
        groups: list[_Group] = []
        left = _BATCH
        for number, lane in enumerate(self._queue.ready(now), 1):
            backlog, ahead = self._queue.backlog(lane), self._queue.ahead(lane, now)
            who = self._who[lane.standing(now)]
            mine: list[_Group] = []
            for waiter in lane.waiters:
                if not waiter.waiting:
                    continue
                assert isinstance(waiter, Ticket)
                if left <= 0:
                    break
                left -= 1
                if mine and mine[-1].ask.charges is waiter.charges:
                    mine[-1].tickets.append(waiter)
                else:
                    plan = waiter.plan
                    ask = Ask(
                        plan.provider, plan.charges, waiter.scopes, who, self._weight, dict(backlog), ahead, lane=number
                    )
                    mine.append(_Group(lane, [waiter], ask))
                for charge in waiter.charges:
                    backlog[charge.key] -= charge.cost
            groups += [group._replace(ask=group.ask._replace(most=len(group.tickets))) for group in mine]
            if left <= 0:
                break
        return groups

    def _apply(self, groups: list[_Group], answers: list[Sequence[Grant] | Refusal], now: int) -> list[Ticket]:
        """Hand out grants and record refusals. Return the tickets that are done."""
        done: list[Ticket] = []
        refused: set[int] = set()
        for group, answer in zip(groups, answers, strict=True):
            lane = group.lane
            if isinstance(answer, Refusal):
                if id(lane) not in refused:
                    refused.add(id(lane))
                    self._refused(lane, answer, now, done)
                continue
            grants = list(answer)
            for ticket in group.tickets:
                if grants and ticket.waiting:
                    ticket.grant = grants.pop(0)
                    self._queue.served(ticket, now)
                    done.append(ticket)
            if len(answer) < len(group.tickets):  # more units come soon: let several accumulate
                self._refused_at = now
                lane.available_at = max(lane.available_at, now + _PACE)
            for grant in grants:  # its caller gave up meanwhile
                self.settling.refunded(grant)
        return done

    def _refused(self, lane: Lane, no: Refusal, now: int, done: list[Ticket]) -> None:
        self._refused_at = now
        lane.available_at, lane.why = max(no.available_at, now + _PACE), no
        if self._stale and no.kind == "limit":
            lane.available_at = now + _PACE
        self._turn_away(lane, no, now, done)
