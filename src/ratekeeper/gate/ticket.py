"""A waiting call (`Ticket`), and the checks that refuse a call which cannot be served in time."""

from __future__ import annotations

import asyncio
import time
from _thread import LockType as Lock
from typing import Final

from ratekeeper.errors import Blocked, BreakerOpen, CannotFit, DeadlineExceeded, Rejected
from ratekeeper.gate.override import PRIORITY_SCOPES, spoken
from ratekeeper.ledger.decide import Refusal
from ratekeeper.ledger.limit import SECOND
from ratekeeper.ledger.shares import AGED
from ratekeeper.policy.breaker import OPEN
from ratekeeper.rules.call import Plan
from ratekeeper.stores.blocks import CONTACT
from ratekeeper.stores.records import Grant
from ratekeeper.waiting.queue import Waiter

__all__ = ["Ticket", "check", "span", "too_late"]

_EVER: Final = 1 << 62
"""The end of a block without an end, steady ns."""
_FOREVER: Final = 10**9
"""A wait of this many seconds or more has no end."""


def span(seconds: float) -> int:
    """Convert a wait to ns. ``inf`` is longer than any block."""
    return _EVER if seconds >= _FOREVER else int(seconds * SECOND)


class Ticket(Waiter):
    """A waiting call of a thread or a task.

    Attributes:
        plan: the plan of the call.
        grant: the permit, once the store has granted it.
        error: why the call gets no permit.
        lock: the lock that the thread waits for. It is the interpreter's own lock, because an exception from a signal
            handler leaves it intact (it may break a `threading.Event`).
        movable: whether a block refuses the call at once, because there are other addresses.
        patience: ns; a block that ends later than this from now refuses the call.
        watch: the timer of a task; the call keeps its deadline by it, even if no helper thread does.
    """

    __slots__ = ("error", "future", "grant", "lock", "loop", "movable", "patience", "plan", "watch")

    def __init__(self, plan: Plan, priority: int, arrived: int, timeout: float, block_wait: float) -> None:
        scopes = (*plan.scopes, plan.provider + PRIORITY_SCOPES[priority % AGED])
        super().__init__(plan.charges, priority, arrived, min(arrived + span(timeout), _EVER), scopes)
        self.plan = plan
        self.patience = span(block_wait)
        self.grant: Grant | None = None
        self.error: Exception | None = None
        self.lock: Lock | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.future: asyncio.Future[None] | None = None
        self.movable = False
        self.watch: asyncio.TimerHandle | None = None

    @property
    def over(self) -> bool:
        """Whether the call has its permit, or gets none."""
        return self.grant is not None or self.error is not None


def check(ticket: Ticket, no: Refusal, now: int) -> None:
    """Refuse a call at once if it cannot be served by its deadline, or if the block ends too late for it.

    Args:
        ticket: the waiting call.
        no: the refusal that holds the call now.
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
    blocked = no.kind != "limit"
    moves = ticket.movable and blocked
    in_time = no.available_at <= ticket.deadline and not moves and no.kind != OPEN
    if blocked:
        in_time = in_time and no.available_at - now <= ticket.patience
    if in_time or (no.unknown and not blocked) or no.kind == CONTACT:
        return  # in time; or a settlement, or the process that reads the provider's limits, will wake the call
    left = (no.available_at - now) / SECOND if no.available_at - now < 1 << 61 else None
    at = None if left is None else wall + left
    wait = "until it is resumed" if left is None else f"for {left:.1f} s"
    kept = max(0, min(ticket.deadline - now, ticket.patience if blocked else _EVER)) / SECOND
    if no.kind == OPEN:
        text = f"the breaker of {spoken(no.key)} is open {wait}: {no.reason}"
        raise BreakerOpen(text, limit=no.kind, scope=no.key, retry_at=at, seconds=left, reason=no.reason)
    if blocked:
        text = f"{spoken(no.key)} is shut {wait} ({no.kind}{': ' + no.reason if no.reason else ''})"
        text += f"; the call would wait {kept:.1f} s at most"
        if no.kind == "pause":
            text += f". `ratekeeper resume {spoken(no.key)}` takes the pause back"
        raise Blocked(text, limit=no.kind, scope=no.key, retry_at=at, seconds=left, reason=no.reason)
    name = no.key.split("/")[1] if "/" in no.key else no.key
    raise DeadlineExceeded(
        f"{no.key} has no room {wait}; the call would wait {kept:.1f} s at most",
        limit=name,
        scope=no.key,
        retry_at=at,
    )


def too_late(ticket: Ticket) -> Rejected:
    """Return the error of a call whose deadline has passed."""
    why = ticket.lane.why if ticket.lane is not None else None
    key = why.key if isinstance(why, Refusal) else ""
    waited = (ticket.deadline - ticket.arrived) / SECOND
    return DeadlineExceeded(f"no permit within {waited:.1f} s ({key or 'queue'} had no room)", scope=key)
