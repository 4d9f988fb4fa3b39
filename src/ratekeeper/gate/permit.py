"""A permit for one attempt of a call: how a program waits for it, and how it reports the outcome."""

from __future__ import annotations

import _thread
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, Protocol

from ratekeeper.errors import StoreError
from ratekeeper.gate.room import WaitingRoom
from ratekeeper.gate.ticket import Ticket
from ratekeeper.ledger.shares import AGED
from ratekeeper.pools.address import Address
from ratekeeper.pools.pool import Choice
from ratekeeper.rules.call import Answer, Feedback, Plan, Request
from ratekeeper.stores.records import Grant

if TYPE_CHECKING:
    from ratekeeper.errors import Rejected
    from ratekeeper.ledger.limit import Charge
    from ratekeeper.rules.provider import Provider

__all__ = ["Ordered", "Permit"]


class Ordered(Protocol):
    """The place of an attempt among the calls of its key (`ratekeeper.gate.nonces`)."""

    def over(self, *, unsent: bool) -> None:
        """Let the next call go. `unsent`: surely nothing was sent."""


class Permit:
    """A permit for one attempt. Enter it (``with`` or ``async with``) to wait for it; then report the outcome.

    Call exactly one of `settle`, `refund`, `unreachable` and `unknown`. Without one, the block settles the permit at its
    reserved cost, or calls `unknown` if an exception leaves the block. Safe to cancel at any point.

    Attributes:
        plan: the charges.
        egress: the address to send from, once the permit is held.
        in_order: the place of the attempt among the calls of its key, once it is held; None: their order does not matter.
        waited: seconds that the permit waited.
    """

    __slots__ = (
        "_block_wait",
        "_choice",
        "_deadline",
        "_grant",
        "_priority",
        "_provider",
        "_request",
        "_room",
        "_standing",
        "_ticket",
        "egress",
        "in_order",
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
        request: Request | None = None,
    ) -> None:
        self._room = room
        self._provider = provider
        self._priority = priority
        self._deadline = timeout
        self._block_wait = block_wait
        self._grant: Grant | None = None
        self._choice = choice
        self._ticket: Ticket | None = None
        self._standing: Ticket | None = None
        self.in_order: Ordered | None = None
        self._request = request
        self.plan = plan
        self.egress = egress
        self.waited = 0.0

    def aside(self) -> Permit:
        """Keep the priority, but do not count as demand: the ledgers keep no units free for more such permits."""
        self._priority |= AGED
        return self

    def part(self, charges: tuple[Charge, ...], rest: tuple[Charge, ...]) -> Permit:
        """Split some charges off into a new permit; this one keeps the rest. Both still need `acquire`."""
        plan = self.plan
        self.plan = replace(plan, charges=rest)
        return Permit(
            self._room, self._provider, replace(plan, charges=charges), self._priority, self._deadline, self._block_wait,
            self.egress,
        )  # fmt: skip

    # -- waiting ---------------------------------------------------------------------------------------------------

    def at_once(self) -> bool:
        """Ask for the permit without waiting. False: `acquire` or `acquire_async` waits for it.

        Raises:
            Rejected: see `ratekeeper.errors`; the gate charged nothing.
        """
        if self._grant is not None:
            self._held_already()
        if self._choice is not None or self._ticket is not None:
            return False
        room, thread = self._room, _thread.get_ident()
        room.handed[thread] = None
        try:
            got = room.ask(self.plan, self._priority, self._deadline, self._block_wait)
            if isinstance(got, Grant):
                self._grant = got
                return True
            self._ticket = self._standing = got
        except BaseException:
            # An interrupt may strike before the permit arrives here.
            self._grant = self._grant or room.handed.get(thread)
            self.give_up()
            raise
        return False

    def wait_within(self, seconds: float) -> None:
        """Wait for the permit at most so long: the caller has waited for something else before."""
        self._deadline = max(0.0, min(self._deadline, seconds))

    def refuse(self, error: Rejected) -> None:
        """Refuse the permit to a caller that waits for it, in any thread. Nothing happens if it does not wait any more."""
        if self._standing is not None:
            self._room.refuse(self._standing, error)

    @staticmethod
    def _held_already() -> NoReturn:
        raise RuntimeError("this permit is held already: one permit is for one attempt")

    def acquire(self) -> None:
        """Wait for the permit in this thread. Raises as `at_once` does."""
        if self._grant is not None:
            self._held_already()
        try:
            if self.at_once():
                return
            ticket, begun = self._ticket, time.monotonic()
            if ticket is None:
                assert self._choice is not None
                self._failover(self._choice)
            else:
                self._grant = self._room.wait(ticket)
                self._ticket = None
            self.waited = time.monotonic() - begun
        except BaseException:
            self.give_up()
            raise

    async def acquire_async(self) -> None:
        """Wait for the permit without blocking the event loop. Raises as `at_once` does."""
        if self._grant is not None:
            self._held_already()
        try:
            if self.at_once():
                return
            ticket, begun = self._ticket, time.monotonic()
            if ticket is None:
                assert self._choice is not None
                await self._failover_async(self._choice)
            else:
                self._grant = await self._room.wait_async(ticket)
                self._ticket = None
            self.waited = time.monotonic() - begun
        except BaseException:
            self.give_up()
            raise

    def give_up(self) -> None:
        """Give up a permit that no caller waits for or uses; refund everything."""
        ticket, self._ticket = self._ticket, None
        if ticket is not None:
            self._room.abandon(ticket)
            if ticket.grant is self._grant:
                self._grant = None
        self.refund()

    def _failover(self, choice: Choice) -> None:
        """Do the same as `acquire` if there are several addresses."""
        from ratekeeper.gate.failover import failover  # needed only with several addresses

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
        """Do the same without blocking the event loop."""
        from ratekeeper.gate.failover import failover  # needed only with several addresses

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
        if self._grant is not None:
            self._held_already()
        try:
            self.acquire()
        except BaseException:  # also one that struck when the permit was held already: no `__exit__` follows
            self.give_up()
            raise
        return self

    async def __aenter__(self) -> Permit:
        if self._grant is not None:
            self._held_already()
        try:
            await self.acquire_async()
        except BaseException:
            self.give_up()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._grant is not None:
                if error is None:
                    self.settle()
                else:
                    self.unknown()
        except BaseException:
            self.unknown()  # does nothing if the outcome was reported
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._grant is not None:
                if error is None:
                    self.settle()
                else:
                    self.unknown()
        except BaseException:
            self.unknown()  # does nothing if the outcome was reported
            raise

    # -- afterwards ------------------------------------------------------------------------------------------------

    @property
    def priority(self) -> int:
        """The priority of the call; lower numbers go first."""
        return self._priority % AGED

    @property
    def available_at(self) -> int:
        """Steady ns at which the limits may let the waiting call pass; 0: it does not wait, or nobody knows."""
        lane = None if self._standing is None else self._standing.lane
        return 0 if lane is None else lane.available_at

    @property
    def any_address(self) -> bool:
        """Whether the gate chooses one of several addresses when it grants the permit."""
        return self._choice is not None

    @property
    def held(self) -> bool:
        """Whether the permit is granted and has no reported outcome."""
        return self._grant is not None

    def settle(
        self,
        status: int = 0,
        headers: Mapping[str, str] | None = None,
        body: bytes | str | None = None,
        *,
        costs: Mapping[str, int] | None = None,
    ) -> Feedback:
        """Settle the permit with its response.

        Args:
            status: HTTP status; 0 if the response tells nothing.
            headers: of the response; names in a plain dict may have any case.
            body: a small body, if the caller has read it.
            costs: real cost by limit name or unit, if the caller knows better than the rules.

        Returns:
            The feedback from the response.
        """
        grant, self._grant = self._grant, None
        if grant is None:
            return Feedback()
        if self.in_order is not None:
            self.in_order.over(unsent=False)
        try:
            if not status and costs is None:
                self._room.settling.settled(grant)
                return Feedback()
            if type(headers) is dict:
                headers = {name.lower(): value for name, value in headers.items()}
            answer = Answer(status, headers or {}, body) if status else None
            told = self._room.settling.answered(
                self._provider, self.plan, grant, answer, costs, waited=self.waited > 0, request=self._request
            )
            if self._choice is not None and answer is not None:
                self._room.settling.fared(self._choice, told)
            return told
        except BaseException:
            self._again(self._room.settling.lingers, grant)
            raise

    @staticmethod
    def _again(report: Callable[[Grant], None], grant: Grant) -> None:
        """Report an outcome whose report was interrupted. The store ends a permit only once."""
        try:
            report(grant)
        except StoreError:
            pass  # the permit ends with its lease

    def refund(self) -> None:
        """Refund everything: the request was surely never sent."""
        grant, self._grant = self._grant, None
        if self.in_order is not None:
            self.in_order.over(unsent=True)
        if grant is not None:
            try:
                self._room.settling.refunded(grant)
            except BaseException:
                self._again(self._room.settling.refunded, grant)
                raise

    def unreachable(self) -> bool:
        """Refund everything and avoid the address for a while: no connection could be made from it.

        Returns:
            Whether the call can be made from another address.
        """
        held = self._grant is not None
        self._room.settling.remember(self._request)
        self.refund()
        return held and self._choice is not None and self._room.egress.unreachable(self._choice)

    def unknown(self) -> None:
        """Report a request without a response: it may still arrive, so it stays charged for a while, then counts as spent."""
        grant, self._grant = self._grant, None
        if self.in_order is not None:
            self.in_order.over(unsent=False)
        if grant is not None:
            try:
                self._room.settling.remember(self._request)
                self._room.settling.lingers(grant)
            except BaseException:
                self._again(self._room.settling.lingers, grant)
                raise

    def renew(self) -> None:
        """Extend the lease of a call that still runs (a stream). Cheap to call often."""
        grant = self._grant
        if grant is not None:
            self._room.settling.renew(grant)
