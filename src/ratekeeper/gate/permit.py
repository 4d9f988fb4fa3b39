"""A permit for one attempt of a call: how it is waited for, and how its outcome is reported."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING

from ratekeeper.gate.room import WaitingRoom
from ratekeeper.gate.ticket import Ticket
from ratekeeper.ledger.shares import AGED
from ratekeeper.pools.address import Address
from ratekeeper.pools.pool import Choice
from ratekeeper.rules.call import Answer, Feedback, Plan
from ratekeeper.stores.records import Grant

if TYPE_CHECKING:
    from ratekeeper.ledger.limit import Charge
    from ratekeeper.rules.provider import Provider

__all__ = ["Permit"]


class Permit:
    """A permit for one attempt. Enter it (``with`` or ``async with``) to wait for it; then say what became of it.

    Exactly one of `settle`, `refund`, `unreachable` and `unknown` should be called; left without one, the permit is
    settled at its reserved cost, or `unknown` if an exception left the block. Safe to cancel at any point.

    Attributes:
        plan: what it charges.
        egress: the address to send from, once it is held.
        waited: seconds it waited.
    """

    __slots__ = (
        "_block_wait",
        "_choice",
        "_deadline",
        "_grant",
        "_priority",
        "_provider",
        "_room",
        "_ticket",
        "egress",
        "plan",
        "waited",
    )

    def __init__(
        self,
        room: WaitingRoom,
        provider: Provider,
        plan: Plan,
        priority: int,
        timeout: float,
        block_wait: float,
        egress: Address,
        choice: Choice | None = None,
    ) -> None:
        self._room = room
        self._provider = provider
        self._priority = priority
        self._deadline = timeout
        self._block_wait = block_wait
        self._grant: Grant | None = None
        self._choice = choice
        self._ticket: Ticket | None = None
        self.plan = plan
        self.egress = egress
        self.waited = 0.0

    def aside(self) -> Permit:
        """It goes first like the others of its class, but is no demand: nothing is kept free for more of its kind."""
        self._priority |= AGED
        return self

    def part(self, charges: tuple[Charge, ...], rest: tuple[Charge, ...]) -> Permit:
        """A permit of its own for some of the charges of this one, which keeps the rest. Both are still to be acquired."""
        plan = self.plan
        self.plan = replace(plan, charges=rest)
        return Permit(
            self._room, self._provider, replace(plan, charges=charges), self._priority, self._deadline, self._block_wait,
            self.egress,
        )  # fmt: skip

    # -- waiting ---------------------------------------------------------------------------------------------------

    def at_once(self) -> bool:
        """Ask for the permit, without waiting. False: `acquire` or `acquire_async` waits for it.

        Raises:
            Rejected: see `ratekeeper.errors`; nothing was charged.
        """
        if self._grant is not None:
            raise RuntimeError("this permit is held already: one permit is for one attempt")
        if self._choice is not None or self._ticket is not None:
            return False
        got = self._room.ask(self.plan, self._priority, self._deadline, self._block_wait)
        if isinstance(got, Grant):
            self._grant = got
            return True
        self._ticket = got
        return False

    def acquire(self) -> None:
        """Wait for the permit in this thread. Raises as `at_once` does."""
        if self.at_once():
            return
        ticket, self._ticket = self._ticket, None
        begun = time.monotonic()
        if ticket is None:
            assert self._choice is not None
            self._failover(self._choice)
        else:
            self._grant = self._room.wait(ticket)
        self.waited = time.monotonic() - begun

    async def acquire_async(self) -> None:
        """Wait for the permit without blocking the event loop. Raises as `at_once` does."""
        if self.at_once():
            return
        ticket, self._ticket = self._ticket, None
        begun = time.monotonic()
        if ticket is None:
            assert self._choice is not None
            await self._failover_async(self._choice)
        else:
            self._grant = await self._room.wait_async(ticket)
        self.waited = time.monotonic() - begun

    def give_up(self) -> None:
        """Nobody waits for it any more, or uses it: everything comes back."""
        ticket, self._ticket = self._ticket, None
        if ticket is not None:
            self._room.abandon(ticket)
        self.refund()

    def _failover(self, choice: Choice) -> None:
        """`acquire` where there are several addresses."""
        from ratekeeper.gate.failover import failover  # for those who have several addresses

        room = self._room
        steps = failover(room, self._room.depths, choice, self._priority, self._deadline, self._block_wait)
        try:
            ticket = next(steps)
            while True:
                try:
                    grant = room.wait(ticket)
                except BaseException as error:  # noqa: BLE001 - also an interrupt: the flow raises it again
                    ticket = steps.throw(error)
                else:
                    ticket = steps.send(grant)
        except StopIteration as end:
            self._settled_on(choice, end.value)

    async def _failover_async(self, choice: Choice) -> None:
        """The same without blocking the event loop."""
        from ratekeeper.gate.failover import failover  # for those who have several addresses

        room = self._room
        steps = failover(room, self._room.depths, choice, self._priority, self._deadline, self._block_wait)
        try:
            ticket = next(steps)
            while True:
                try:
                    grant = await room.wait_async(ticket)
                except BaseException as error:  # noqa: BLE001 - also a cancellation: the flow raises it again
                    ticket = steps.throw(error)
                else:
                    ticket = steps.send(grant)
        except StopIteration as end:
            self._settled_on(choice, end.value)

    def _settled_on(self, choice: Choice, grant: Grant) -> None:
        self._grant, self.egress, self.plan = grant, choice.address, choice.plan(choice.address)

    def __enter__(self) -> Permit:
        self.acquire()
        return self

    async def __aenter__(self) -> Permit:
        await self.acquire_async()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._grant is not None:
            if error is None:
                self.settle()
            else:
                self.unknown()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._grant is not None:
            if error is None:
                self.settle()
            else:
                self.unknown()

    # -- afterwards ------------------------------------------------------------------------------------------------

    @property
    def any_address(self) -> bool:
        """Whether several addresses are there, of which one is chosen when it is acquired."""
        return self._choice is not None

    @property
    def held(self) -> bool:
        """Whether it is granted and nobody has said what became of it."""
        return self._grant is not None

    def settle(
        self,
        status: int = 0,
        headers: Mapping[str, str] | None = None,
        body: bytes | str | None = None,
        *,
        costs: Mapping[str, int] | None = None,
    ) -> Feedback:
        """The answer came.

        Args:
            status: HTTP status; 0 if there is nothing to learn from the answer.
            headers: of the answer; a plain dict may be in any case.
            body: a small body, if it was read.
            costs: real cost by limit name or unit, if the caller knows better than the rules.

        Returns:
            What the answer told.
        """
        grant, self._grant = self._grant, None
        if grant is None:
            return Feedback()
        if not status and costs is None:
            self._room.settling.settled(grant)
            return Feedback()
        if type(headers) is dict:
            headers = {name.lower(): value for name, value in headers.items()}
        answer = Answer(status, headers or {}, body) if status else None
        told = self._room.settling.answered(self._provider, self.plan, grant, answer, costs, waited=self.waited > 0)
        if self._choice is not None and answer is not None:
            self._room.settling.fared(self._choice, told)
        return told

    def refund(self) -> None:
        """It was surely never sent: everything comes back."""
        grant, self._grant = self._grant, None
        if grant is not None:
            self._room.settling.refunded(grant)

    def unreachable(self) -> bool:
        """No connection could be made from its address: everything comes back, and the address is left for a while.

        Returns:
            Whether the call can be made from another address.
        """
        held = self._grant is not None
        self.refund()
        return held and self._choice is not None and self._room.egress.unreachable(self._choice)

    def unknown(self) -> None:
        """It was sent, but no answer came: it may still arrive, so it stays charged for a while and then counts as spent."""
        grant, self._grant = self._grant, None
        if grant is not None:
            self._room.settling.lingers(grant)

    def renew(self) -> None:
        """It still goes on (a stream): hold it for longer. Cheap to call often."""
        grant = self._grant
        if grant is not None:
            self._room.settling.renew(grant)
