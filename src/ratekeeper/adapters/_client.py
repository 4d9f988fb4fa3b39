"""One call of a client library from end to end (long because a call is one object), with all that is done around it.

A client library is described by a subclass of `ClientCall`: how it reads an answer (`read_body`), holds one that is
streamed (`hold_slot`), makes one (`answer`) and labels it (`label`), and how it makes another request of its own (`other`).
Its module adds how a request is read (`Outbound`), how it leaves from an address, and where the hooks are. Each request of
a governed client comes in at `enter`. Flows are written once, as generators (`ratekeeper.gate.steps`).
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from ratekeeper.adapters._governor import Family, Governor, refused
from ratekeeper.adapters._wire import Outbound, in_family, kept_headers, netloc_of, stale
from ratekeeper.errors import Blocked, CallFailed, DeadlineExceeded, RatekeeperError, Rejected
from ratekeeper.gate import priorities
from ratekeeper.gate.call import CURRENT, Call, HandedDown, Reply, Served, take
from ratekeeper.gate.policies.retry import unknown
from ratekeeper.gate.steps import Steps, on_asyncio, waiting, within
from ratekeeper.ledger.limit import SECOND, parted
from ratekeeper.policy.freshness import Service
from ratekeeper.rules.call import Outcome

if TYPE_CHECKING:
    from ratekeeper.gate.gate import Gate
    from ratekeeper.gate.permit import Permit
    from ratekeeper.pools.address import Address
    from ratekeeper.rules.call import Request
    from ratekeeper.rules.provider import Provider

__all__ = ["ClientCall", "OuterCall", "begin", "denied", "enter", "leaving", "run"]

C = TypeVar("C", bound="ClientCall")

SIGNATURE_MARGIN = 0.25
"""Seconds before a signature goes stale by which the request must have left: its own way to the server."""


class ClientCall(Call):
    """A request of a client library.

    Args:
        governor: whose gate is asked.
        outbound: the request, as the rules see it.
        rules: of its host.
        native: the same in the client's own form, whatever that is.
        send: sends one. Called with `native`; returns the client's answer, or an awaitable of it if `is_async`.
        family: the client's base error; a refusal is raised as both.
        is_async: whether the flow is driven by `drive_async`.
        any_address: whether the request leaves from `Call.egress`; else the default address is meant.
        apart: whether what is held while a connection is open gets a permit of its own (`held`), for the rest is spent with
            the answer.
        request: the request as the rules see it, if the caller has it.

    Attributes:
        held: the permit of what is held as long as a connection is open, where that is kept apart from the rest.
    """

    STATUS: ClassVar[str] = "status"
    """The attribute of an answer that holds its status."""
    held: Permit | None = None
    resigned = False
    """Whether the caller signs after the wait, so that a signature seen now does not matter."""

    def __init__(
        self,
        governor: Governor,
        outbound: Outbound,
        rules: Provider,
        native: Any,
        send: Callable[[Any], Any],
        *,
        family: Family,
        is_async: bool,
        any_address: bool = False,
        apart: bool = False,
        request: Request | None = None,
    ) -> None:
        super().__init__(rules, outbound.request() if request is None else request, is_async, outbound.netloc)
        self.governor = governor
        self.outbound = outbound
        self.native = native
        self.send = send
        self.family = family
        self.any_address = any_address
        self.apart = apart

    def another(self: C, outbound: Outbound, native: Any) -> C:
        """Another request, sent as this one is."""
        return type(self)(
            self.governor, outbound, self.rules, native, self.send,
            family=self.family, is_async=self.is_async, any_address=self.any_address,
        )  # fmt: skip

    # -- what a client library says --------------------------------------------------------------------------------

    @staticmethod
    def shorten_timeouts(native: Any, longest: float) -> None:
        """Let no step of sending a request take longer than `longest` seconds, where the client has a place for that."""

    def read_body(self, response: Any) -> Steps[tuple[bytes | None, Any]]:
        """The body of an answer, without its content encoding (None if that cannot be had), and an answer that its user can
        still read in any way."""
        raise NotImplementedError

    def hold_slot(self, owner: Call, response: Any) -> bool:
        """Have an answer keep the slot of `owner` until its last byte, or until its reader leaves (`Call.until_read`); False:
        nothing more will come."""
        return False

    def fails_over(self, error: Exception) -> bool:
        """Whether a failed attempt is made from the next address: it was surely never sent, and there is one."""
        return self.elsewhere

    def blocked_answer(self, block: Blocked) -> Steps[Any]:
        """What an unchanged program sees of a call that a block holds: an answer as the provider would give it."""
        return self.answer(self.denied(block), Served(Service.REFUSED))
        yield

    def blocked_error(self, error: Rejected | CallFailed, block: Blocked) -> Exception:
        """The error that a program sees which has asked for the gate: `error` with that answer."""
        if self.answers:
            error.response = self.answer(self.denied(block), Served(Service.REFUSED))  # type: ignore[union-attr]
        return error

    # -- one attempt -----------------------------------------------------------------------------------------------

    def once(self, owner: Call) -> Steps[Any]:
        """Send one attempt, and tell its fate, whatever happens. `owner`: the call whose permit it spends, this one or one
        of a layer above."""
        if owner.longest is not None:
            self.shorten_timeouts(self.native, owner.longest)
        owner.observed_above, spare = True, owner._spare
        if not spare:  # taken from a layer above, and handed on
            spare.append(True)
        try:
            token = CURRENT.set(owner)  # as `HandedDown` does it: this is the way of every call
            try:
                # In a thread there is nobody to hand the waiting to: each step of a flow costs a frame for every layer.
                if self.is_async:
                    response = yield functools.partial(self.send, self.native)
                else:
                    response = self.send(self.native)
            finally:
                CURRENT.reset(token)
                spare.clear()
            return (yield from self.observe(owner, response))
        except BaseException as error:
            spare.clear()  # also where a signal's handler struck before the block that clears it
            owner.failed(error)
            raise

    def send_ungoverned(self) -> Steps[Any]:
        """Send without the gate: nobody has rules, or the user lets calls pass when something is wrong inside it."""
        return (yield functools.partial(self.send, self.native))

    def observe(self, owner: Call, response: Any) -> Steps[Any]:
        """Tell the gate what came back; returns it, still unread."""
        status, headers = getattr(response, self.STATUS), response.headers
        if owner.wants_body(status):
            body, response = yield from self.read_body(response)
            owner.answered(status, headers, body)
        elif not owner.slots or not self.hold_slot(owner, response):
            owner.answered(status, headers)
        return response

    def begin(self, timeout: float | None) -> Steps[bool]:
        """Wait for leave to send one attempt, for so many seconds if that is less than the governor says; False: it passes
        ungoverned, for the user has said so.

        Raises:
            Rejected: it may not be sent; also of the client's family.
        """
        governor: Governor | None = self.governor
        while governor is not None:
            try:
                yield from self.wait(governor, timeout)
                return True
            except Rejected as error:
                raise in_family(error, self.family) from None
            except Exception as error:
                if governor is not self.governor:
                    raise refused(error, self.outbound.netloc, self.family) from error
                governor = governor.instead(error, self.outbound.netloc, self.family)
        return False

    def wait(self, governor: Governor, timeout: float | None) -> Steps[None]:
        """`begin` with one gate."""
        gate, rules, request, is_async = governor.gate, self.rules, self.request, self.is_async
        if not gate.acquainted(rules):
            known = rules, self.outbound.base_url
            yield waiting(
                functools.partial(gate.first_contact, *known),
                functools.partial(gate.first_contact_async, *known),
                is_async=is_async,
            )
        signed_until = None if self.resigned else rules.signed_until(request)
        longest = block_wait = None
        if self.patient or signed_until is not None or timeout is not None or governor.timeout is not None:
            longest, block_wait = self._patience(governor, signed_until, timeout)
        permit = gate.permit_for(
            rules,
            request,
            priority=governor.priority,
            timeout=longest,
            block_wait=block_wait,
            any_address=self.any_address,
        )
        held: Permit | None = None
        try:
            if self.apart and not permit.any_address:
                slots, rest = parted(permit.plan.charges)
                if slots and rest:
                    held = permit.part(slots, rest)
                    yield waiting(held.acquire, held.acquire_async, is_async=is_async)
            if not permit.at_once():
                yield waiting(permit.acquire, permit.acquire_async, is_async=is_async)
        except BaseException as error:
            permit.give_up()
            if held is not None:
                held.give_up()
            if isinstance(error, DeadlineExceeded) and signed_until is not None:
                raise stale(error) from None  # a deadline that only the signature set is reported as what it is
            raise
        address = permit.egress
        egress = address if self.any_address and (address.bind or address.proxy) else None
        self.held = held
        self.permitted(permit, egress, gate.attempt_timeout)

    def _patience(
        self, governor: Governor, signed_until: int | None, timeout: float | None
    ) -> tuple[float | None, float]:
        """Seconds it may wait in all, never beyond a signature that it already carries; and for the end of a block."""
        gate, longest = governor.gate, governor.timeout
        block_wait = math.inf if longest is not None or self.patient else gate.max_block_wait
        if timeout is not None:
            longest = timeout if longest is None else min(longest, timeout)
        if signed_until is None:
            return longest, block_wait
        # The provider judges by its own clock: by the latest that it can be there.
        left = (signed_until - gate.times.now(self.rules.namespace).hi) / SECOND - SIGNATURE_MARGIN
        return min(max(0.0, left), gate.max_wait if longest is None else longest), block_wait

    # -- what the policies ask -------------------------------------------------------------------------------------

    def attempt(self, timeout: float | None) -> Steps[Any]:
        """One attempt; where no connection can be made from one address, nothing was sent, and it goes from the next."""
        while True:
            if not (yield from self.begin(timeout)):
                return (yield from self.send_ungoverned())
            if self.leaving is not None:
                self.leaving()
            steps, longest = self.once(self), self.longest
            if longest is not None and self.is_async and on_asyncio():
                # What is not on asyncio is cut off by its client's own timeouts.
                steps = within(steps, longest, functools.partial(self.late, longest))
            try:
                response = yield from steps
            except BaseException as error:
                self.tried = self.became(error)
                if not (isinstance(error, Exception) and self.fails_over(error)):
                    raise
            else:
                self.tried = self.became(None)
                return response

    def uncertain(self, error: Exception) -> Exception:
        """What is raised in place of an error of the only attempt: where nobody knows what became of a call that must not be
        repeated, that is what it says."""
        if self.tried is None or self.tried.outcome is not Outcome.UNKNOWN:
            return error
        plan = self.governor.gate.plan(self.rules, self.request)
        if self.rules.handling.safe(self.request, plan):
            return error
        return self.fail(unknown(self, plan, [f"{self.tried.outcome}: {self.tried.reason}"]), error)

    def read(self, response: Any) -> Steps[tuple[Reply | None, Any]]:
        """See `Call.read`."""
        body, response = yield from self.read_body(response)
        if body is None:
            return None, response
        return Reply(getattr(response, self.STATUS), kept_headers(response.headers.items()), body), response

    def label(self, response: Any, served: Served) -> None:
        """See `Call.label`."""
        response.headers.update(served.headers())

    def fail(self, error: RatekeeperError, cause: BaseException | None) -> Exception:
        """Also of the client's family: of the very kind that came from below, if one did."""
        kind = type(cause) if isinstance(cause, Exception) and not isinstance(cause, RatekeeperError) else None
        return in_family(error, self.family if kind is None else lambda: kind)

    def denied(self, block: Blocked) -> Reply:
        """What the provider would answer to the call, which a block holds."""
        return denied(self.governor.gate, self.rules, self.request, block)


class OuterCall(ClientCall):
    """A request as a layer above the HTTP library makes it: the answer is seen below, by whoever takes the attempt."""

    def once(self, owner: Call) -> Steps[Any]:
        """See `ClientCall.once`."""
        if self.longest is not None:
            self.shorten_timeouts(self.native, self.longest)
        try:
            with HandedDown(self, observed_above=False):
                response = (yield self.dispatch) if self.is_async else self.dispatch()
        except BaseException as error:
            self.failed(error, unsent=self.spare and self.kept_back(error))
            raise
        if self.spare:
            self.untaken(response)
        return response

    def dispatch(self) -> Any:
        """Send the request, from the address of `egress` where the layer below cannot see to that."""
        return self.send(self.native)

    def kept_back(self, error: BaseException) -> bool:
        """Whether an error means that nothing was sent, where nobody below has taken the attempt."""
        return True

    def untaken(self, response: Any) -> None:
        """Tell the fate of an attempt that nobody below has taken, although the call succeeded."""
        self.unsent()


def leaving(scheme: str, host: str, port: int | None) -> Address | None:
    """The address from which the request to this host must leave that is being sent now; None: the system's choice."""
    call = CURRENT.get()
    if call is None or call.egress is None or call.netloc != netloc_of(scheme, host, port):
        return None
    return call.egress


def enter(
    kind: type[ClientCall],
    governor: Governor,
    outbound: Outbound | None,
    native: Any,
    send: Callable[[Any], Any],
    *,
    family: Family,
    is_async: bool,
    any_address: bool = False,
    replayable: bool = True,
) -> Steps[Any]:
    """A request that reaches a governed client, from end to end; returns what the client shows its user.

    It passes if its host has no rules. One that a layer above has waited for is sent, and observed where that layer does
    not see its answer. Any other waits here, with all that is done around a call.

    Args:
        kind: the library's description.
        outbound: the request; None (no host can be told) passes.
        replayable: whether it can be sent more than once (its body is not a stream).
        governor, native, send, family, is_async, any_address: as for `ClientCall`.
    """
    above = None if outbound is None else take(outbound.netloc)
    rules = None if above is None else above.rules
    if above is None and outbound is not None:
        try:
            rules = governor.gate.match(outbound.netloc, outbound.path)
        except Exception as error:  # noqa: BLE001 - raised there if it is not ours
            rules = governor.match_anyhow(outbound, family, error)
    if outbound is None or rules is None:
        return _plainly(send, native)
    if above is not None and above.observed_above:
        if above.longest is not None:
            kind.shorten_timeouts(native, above.longest)
        return _plainly(send, native)
    known = None if above is None else above.request
    call = kind(
        governor,
        outbound,
        rules,
        native,
        send,
        family=family,
        is_async=is_async,
        any_address=any_address,
        request=known,
    )
    call.replayable = replayable
    return run(call) if above is None else call.once(above)


def _plainly(send: Callable[[Any], Any], native: Any) -> Steps[Any]:
    return (yield functools.partial(send, native))


def begin(
    governor: Governor,
    outbound: Outbound | None,
    family: Family,
    *,
    is_async: bool,
    any_address: bool = False,
    apart: bool = False,
) -> Steps[ClientCall | None]:
    """Waits for leave to send a request that its caller sends and observes by itself. None: it passes.

    Args:
        governor, outbound, family, is_async, any_address, apart: as for `ClientCall`.

    Raises:
        Rejected: it may not be sent; also of `family`.
    """
    rules = governor.match(outbound, family)
    if outbound is None or rules is None:
        return None
    call = ClientCall(
        governor,
        outbound,
        rules,
        None,
        _nothing,
        family=family,
        is_async=is_async,
        any_address=any_address,
        apart=apart,
    )
    return call if (yield from call.begin(None)) else None


def _nothing(native: Any) -> None:
    """What sends, where the caller does."""


def run(call: ClientCall) -> Steps[Any]:
    """The call with all that is done around it; returns what its client shows its user.

    A call that a block holds for longer than it waits is told so in the form of its client: an unchanged program gets the
    answer that the provider would give, one that has asked for the gate an error that is `Blocked` and holds that answer.
    """
    governor, dials = call.governor, call.request.method.startswith("WS")
    try:
        pipeline = None if dials else governor.gate.pipeline  # whoever keeps a websocket alive dials again by himself
    except Exception as error:
        if not governor.excuses(error):
            raise
        pipeline = None
    try:
        if pipeline is None:
            return (yield from call.attempt(None))
        call.urgent = priorities.urgent(governor.priority)
        return (yield from pipeline.run(call))
    except Exception as error:
        if pipeline is None and (instead := call.uncertain(error)) is not error:
            raise instead from error
        block = error if isinstance(error, Blocked) else error.__cause__
        if not isinstance(error, Rejected | CallFailed) or not isinstance(block, Blocked) or dials:
            raise
        if governor.lenient:
            return (yield from call.blocked_answer(block))
        raise call.blocked_error(error, block) from error.__cause__


def denied(gate: Gate, rules: Provider, request: Request, block: Blocked) -> Reply:
    """What the provider would answer to a request that a block holds."""
    until = 0 if block.retry_at is None else int(block.retry_at * SECOND)
    made = rules.denial(gate.plan(rules, request), block.kind, block.scope, until, time.time_ns(), str(block))
    return Reply(made.status, tuple(made.headers.items()), made.body)
