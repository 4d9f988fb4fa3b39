"""Failover between several local addresses: try each, then wait for the one that has room first.

The flow is a generator that yields the tickets to wait with. `Permit` drives it for threads and for asyncio.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Final, TypeAlias

from ratekeeper.errors import Blocked, CannotFit, Rejected
from ratekeeper.gate.room import WaitingRoom
from ratekeeper.gate.ticket import Ticket
from ratekeeper.ledger.limit import SECOND
from ratekeeper.pools.address import Address
from ratekeeper.pools.pool import Choice
from ratekeeper.rules.call import Plan
from ratekeeper.stores.records import Grant
from ratekeeper.waiting.queue import Depths

__all__ = ["Steps", "failover"]

Steps: TypeAlias = Generator[Ticket, Grant, Grant]
"""The flow yields a ticket to wait with. The driver sends the grant or throws the refusal."""

_ALIKE: Final = 0.25
"""Seconds by which the expected times of two addresses must differ. Below it the shorter queue decides."""
_NEVER: Final = 1e12


def failover(
    room: WaitingRoom, depths: Depths, choice: Choice, priority: int, timeout: float, block_wait: float
) -> Steps:
    """Return a grant from the address that has room, or has it first. `Choice.address` names it. Arguments as for
    `WaitingRoom.ask`.

    Raises:
        Rejected: no address can serve the call by its deadline.
    """
    deadline = time.monotonic() + timeout
    while True:
        order = []
        for at, address in enumerate(choice):
            if choice.only:
                order.append((0.0, 0.0, at, address))
                break
            try:
                got = room.ask(choice.plan(address), priority, 0.0, 0.0, probe=True)
                grant = got if isinstance(got, Grant) else (yield got)
            except CannotFit:
                raise
            except Rejected as error:
                refused = error
            else:
                choice.took(address)
                return grant
            choice.full(address)
            line = depths.length(choice.scope(address))
            order.append((round(_opens(refused, choice.plan(address), line) / _ALIKE), line, at, address))
        order.sort(key=lambda entry: entry[:3])
        try:
            addresses = [entry[3] for entry in order]
            return (yield from _stand(room, depths, choice, priority, deadline, block_wait, addresses))
        except Blocked:
            # A ban hit the address while the call waited there: try all addresses again, unless no time is left.
            if choice.only or not choice.moved or time.monotonic() >= deadline:
                raise
            choice.moved = False


def _opens(refused: Rejected, plan: Plan, line: float) -> float:
    """Estimate when a new call would be served (Unix seconds). `line`: the queue ahead of it, in windows."""
    if refused.retry_at is None:
        return time.time() if not isinstance(refused, Blocked) else _NEVER
    period = min((charge.limit.period for charge in plan.charges if charge.limit.period), default=0)
    return refused.retry_at + int(line) * period / SECOND


def _stand(
    room: WaitingRoom,
    depths: Depths,
    choice: Choice,
    priority: int,
    deadline: float,
    block_wait: float,
    addresses: list[Address],
) -> Steps:
    """Wait at the first address that may serve the call in time."""
    first: Rejected | None = None
    for address in addresses:
        plan, scope = choice.plan(address), choice.scope(address)
        try:
            got = room.ask(plan, priority, max(0.0, deadline - time.monotonic()), block_wait, probe=first is not None)
        except CannotFit:
            raise
        except Rejected as error:
            first = first or error
            continue
        if isinstance(got, Ticket):
            share = max((charge.cost / charge.limit.usable for charge in plan.charges), default=0.0)
            got.movable = choice.moved = not choice.only
            depths.change(scope, share)
            try:
                got = yield got
            finally:
                depths.change(scope, -share)
        choice.took(address)
        return got
    assert first is not None
    raise first
