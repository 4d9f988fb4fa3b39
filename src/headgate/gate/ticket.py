"""A waiting call, and why it need not wait at all."""

from __future__ import annotations

import asyncio
import threading
import time

from headgate.errors import Blocked, BreakerOpen, CannotFit, DeadlineExceeded, Rejected
from headgate.gate.contact import CONTACT
from headgate.gate.emergency import spoken
from headgate.ledger.decide import Refusal
from headgate.ledger.limit import SECOND
from headgate.policy.breaker import OPEN
from headgate.rules.call import Plan
from headgate.stores.records import Grant
from headgate.waiting.queue import Waiter

__all__ = ["Ticket", "check", "too_late"]


class Ticket(Waiter):
    """A waiting call of a thread or a task.

    Attributes:
        plan: what it is for.
        grant: the permit, once it has it.
        error: why it never will.
        movable: whether it would rather be refused than wait for the end of a block: there are other addresses.
    """

    __slots__ = ("error", "event", "future", "grant", "loop", "movable", "plan")

    def __init__(self, plan: Plan, klass: int, arrived: int, deadline: int) -> None:
        super().__init__(plan.charges, klass, arrived, deadline, plan.scopes)
        self.plan = plan
        self.grant: Grant | None = None
        self.error: Exception | None = None
        self.event: threading.Event | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.future: asyncio.Future[None] | None = None
        self.movable = False


def check(ticket: Ticket, no: Refusal, now: int) -> None:
    """Refuse a call at once that cannot be served by its deadline.

    Args:
        ticket: of the call.
        no: what holds it now.
        now: steady ns.

    Raises:
        Rejected: with the reason.
    """
    wall = time.time()
    if no.never:
        cost, limit = next((c.cost, c.limit) for c in ticket.charges if c.key == no.key)
        why = f"more than {no.key} ever allows ({limit.usable})"
        raise CannotFit(
            f"{ticket.plan.route or ticket.plan.provider} costs {cost} {limit.unit}, {why}"
            + (f": {limit.place}" if limit.place else ""),
            limit=limit.name,
            scope=no.key,
        )
    moves = ticket.movable and no.kind not in ("limit", CONTACT)
    in_time = no.opens <= ticket.deadline and not moves and no.kind != OPEN
    if in_time or (no.unknown and no.kind == "limit") or no.kind == CONTACT:
        return  # in time, or whoever settles, or asks the provider for its limits, will wake us
    at = wall + (no.opens - now) / SECOND if no.opens - now < 1 << 61 else None
    wait = "until it is resumed" if at is None else f"for {(no.opens - now) / SECOND:.1f} s"
    kept = max(0, ticket.deadline - now) / SECOND
    if no.kind == OPEN:
        text = f"the breaker of {spoken(no.key)} is open {wait}: {no.reason}"
        raise BreakerOpen(text, limit=no.kind, scope=no.key, retry_at=at)
    if no.kind != "limit":
        text = f"{spoken(no.key)} is shut {wait} ({no.kind}{': ' + no.reason if no.reason else ''})"
        raise Blocked(f"{text}; the call would wait {kept:.1f} s at most", limit=no.kind, scope=no.key, retry_at=at)
    name = no.key.split("/")[1] if "/" in no.key else no.key
    raise DeadlineExceeded(
        f"{no.key} has no room {wait}; the call would wait {kept:.1f} s at most",
        limit=name,
        scope=no.key,
        retry_at=at,
    )


def too_late(ticket: Ticket) -> Rejected:
    """The error of a call whose deadline has passed."""
    why = ticket.lane.why if ticket.lane is not None else None
    key = why.key if isinstance(why, Refusal) else ""
    waited = (ticket.deadline - ticket.arrived) / SECOND
    return DeadlineExceeded(f"no permit within {waited:.1f} s ({key or 'queue'} had no room)", scope=key)
