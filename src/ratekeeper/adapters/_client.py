"""One call of a client library from end to end, with all policies (long because a call is one object).

A subclass of `ClientCall` describes a client library: how it reads a response (`read_body`), holds a streamed one
(`hold_slot`), makes one (`answer`) and labels it (`label`), and how it makes another request (`other`). The library's
module adds how to read a request (`Outbound`), how to send it from an address, and the hooks. Each request of a governed
client enters at `enter`. Flows are generators (`ratekeeper.gate.steps`).
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from ratekeeper.adapters._governor import Family, Governor, refused
from ratekeeper.adapters._wire import Outbound, in_family, kept_headers, netloc_of, stale
from ratekeeper.errors import (
    Blocked,
    CallFailed,
    DeadlineExceeded,
    RatekeeperError,
    Rejected,
    SignatureWouldExpire,
)
from ratekeeper.gate import priorities
from ratekeeper.gate.call import CURRENT, Call, HandedDown, Reply, Served, take
from ratekeeper.gate.policies.retry import unknown
from ratekeeper.gate.steps import Steps, on_asyncio, waiting, within
from ratekeeper.ledger.limit import SECOND, parted
from ratekeeper.policy.freshness import Service
from ratekeeper.rules.call import Outcome

if TYPE_CHECKING:
    from ratekeeper.gate.gate import Gate
    from ratekeeper.gate.nonces import InOrder
    from ratekeeper.gate.permit import Permit
    from ratekeeper.pools.address import Address
    from ratekeeper.rules.call import Request
    from ratekeeper.rules.provider import Provider

__all__ = ["ClientCall", "OuterCall", "begin", "denied", "enter", "leaving", "run"]

C = TypeVar("C", bound="ClientCall")

SIGNATURE_MARGIN = 0.25
"""Seconds before a signature expires by which the request must leave: its travel time to the server."""


class ClientCall(Call):
    """A request of a client library.

    Args:
        governor: of the gate to ask.
        outbound: the request.
        rules: of its host.
        native: the same request in the client's own form.
        send: sends `native`; returns the client's response, or an awaitable of it if `is_async`.
        family: the client's base error; a refusal belongs to both families.
        is_async: whether `drive_async` drives the flow.
        any_address: whether the request leaves from `Call.egress`; if not, from the default address.
        apart: whether the slots of an open connection get their own permit (`held`), because the response settles the
            rest.
        request: the request as the rules see it, if the caller has it.

    Attributes:
        held: the separate permit for the slots of an open connection, if `apart`.
    """

    STATUS: ClassVar[str] = "status"
    """The name of a response's status attribute."""
    held: Permit | None = None
    in_order: InOrder | None = None
    """The place of the last attempt among the calls of its key, if their order matters."""
    resigned = False
    """Whether the caller signs after the wait, so that the present signature does not matter."""

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
        """Make another call that is sent like this one."""
        return type(self)(
            self.governor, outbound, self.rules, native, self.send,
            family=self.family, is_async=self.is_async, any_address=self.any_address,
        )  # fmt: skip

    # -- what a client library implements --------------------------------------------------------------------------

    @staticmethod
    def shorten_timeouts(native: Any, longest: float) -> None:
        """Limit each client timeout of a request to `longest` seconds, if the client has such timeouts."""

    def read_body(self, response: Any) -> Steps[tuple[bytes | None, Any]]:
        """Return the body of a response without its content encoding (None: not available), and a response that the program
        can still read in any way."""
        raise NotImplementedError

    def hold_slot(self, owner: Call, response: Any) -> bool:
        """Keep the slot of `owner` until the program has read the response or dropped it (`Call.until_read`). False: no more
        data will come."""
        return False

    def fails_over(self, error: Exception) -> bool:
        """Whether to repeat a failed attempt from the next address: it was surely never sent, and there is one."""
        return self.elsewhere

    def blocked_answer(self, block: Blocked) -> Steps[Any]:
        """Return the response that an unchanged program gets for a blocked call: the one that the provider would give."""
        return self.answer(self.denied(block), Served(Service.REFUSED))
        yield

    def blocked_error(self, error: Rejected | CallFailed, block: Blocked) -> Exception:
        """Return the error that a program with an explicit gate gets: `error`, with that response."""
        if self.answers:
            error.response = self.answer(self.denied(block), Served(Service.REFUSED))  # type: ignore[union-attr]
        return error

    # -- one attempt -----------------------------------------------------------------------------------------------

    def once(self, owner: Call) -> Steps[Any]:
        """Send one attempt and always report its outcome. `owner`: the call whose permit it spends, this one or one of an
        upper layer."""
        if owner.longest is not None:
            self.shorten_timeouts(self.native, owner.longest)
        owner.observed_above, spare = True, owner._spare
        if not spare:  # taken from an upper layer, and handed on
            spare.append(True)
        try:
            token = CURRENT.set(owner)  # inlines `HandedDown`, because every call comes here
            try:
                # A thread has no event loop to yield to, and each step of a flow costs a frame for every layer.
                if self.is_async:
                    response = yield functools.partial(self.send, self.native)
                else:
                    response = self.send(self.native)
            finally:
                CURRENT.reset(token)
                spare.clear()
            return (yield from self.observe(owner, response))
        except BaseException as error:
            spare.clear()  # again, because a signal handler may raise before the inner block
            owner.failed(error)
            raise

    def send_ungoverned(self) -> Steps[Any]:
        """Send without the gate: there are no rules, or the user prefers ungoverned calls after an internal error."""
        return (yield functools.partial(self.send, self.native))

    def observe(self, owner: Call, response: Any) -> Steps[Any]:
        """Report the response to the gate; return it, still unread."""
        status, headers = getattr(response, self.STATUS), response.headers
        if owner.wants_body(status):
            body, response = yield from self.read_body(response)
            owner.answered(status, headers, body)
        elif not owner.slots or not self.hold_slot(owner, response):
            owner.answered(status, headers)
        return response

    def begin(self, timeout: float | None) -> Steps[bool]:
        """Wait for a permit for one attempt, at most `timeout` seconds and the governor's timeout. False: the call passes
        ungoverned, because the user has set that.

        Raises:
            Rejected: the gate refused the call; the error is also of the client's family.
        """
        governor: Governor | None = self.governor
        while governor is not None:
            try:
                ordered = self.rules.nonce is not None and not self.resigned
                yield from self._wait_in_order(governor, timeout) if ordered else self.wait(governor, timeout)
                return True
            except Rejected as error:
                raise in_family(error, self.family) from None
            except Exception as error:
                if governor is not self.governor:
                    raise refused(error, self.outbound.netloc, self.family) from error
                governor = governor.instead(error, self.outbound.netloc, self.family)
        return False

    def wait(self, governor: Governor, timeout: float | None) -> Steps[None]:
        """Do the same as `begin` with one gate."""
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
            if signed_until is not None:
                self._check_signature(governor, signed_until)
            if self.apart and not permit.any_address:
                slots, rest = parted(permit.plan.charges)
                if slots and rest:
                    held = permit.part(slots, rest)
                    yield waiting(held.acquire, held.acquire_async, is_async=is_async)
            if self.in_order is not None:
                yield from self.in_order.permitted(permit, gate.max_wait if longest is None else longest)
            elif not permit.at_once():
                yield waiting(permit.acquire, permit.acquire_async, is_async=is_async)
            if signed_until is not None:
                self._check_signature(governor, signed_until)
            address = permit.egress
            egress = address if self.any_address and (address.bind or address.proxy) else None
            self.held = held
            self.permitted(permit, egress, gate.attempt_timeout)
        except BaseException as error:
            permit.give_up()
            if held is not None:
                held.give_up()
            if signed_until is not None and isinstance(error, DeadlineExceeded):
                self._check_deadline(governor, signed_until, longest, error)
            raise

    def _wait_in_order(self, governor: Governor, timeout: float | None) -> Steps[None]:
        """Do the same as `wait`, where calls of one key must leave in the order of their nonces."""
        gate = governor.gate
        priority = gate.permit_for(self.rules, self.request, priority=governor.priority).priority
        in_order = self.in_order = gate.nonces.of(self.rules, self.request, priority, is_async=self.is_async)
        try:
            if in_order is not None:
                yield from in_order.enter()  # at once, because a first contact or a wait may change who comes first
            yield from self.wait(governor, timeout)
        except BaseException:
            if in_order is not None:
                in_order.over(unsent=True)
            raise

    def _patience(
        self, governor: Governor, signed_until: int | None, timeout: float | None
    ) -> tuple[float | None, float]:
        """Return the seconds to wait in all (never beyond the expiry of a signature), and for the end of a block."""
        gate, longest = governor.gate, governor.timeout
        block_wait = math.inf if longest is not None or self.patient else gate.max_block_wait
        if timeout is not None:
            longest = timeout if longest is None else min(longest, timeout)
        if signed_until is None:
            return longest, block_wait
        left = self._signature_left(governor, signed_until)
        return min(max(0.0, left), gate.max_wait if longest is None else longest), block_wait

    def _signature_left(self, governor: Governor, signed_until: int) -> float:
        """Return the seconds for which a signed request may still be held back."""
        # The provider uses its own clock, so count from the latest time that it may show.
        return (signed_until - governor.gate.times.now(self.rules.namespace).hi) / SECOND - SIGNATURE_MARGIN

    def _check_signature(self, governor: Governor, signed_until: int) -> None:
        """Raise SignatureWouldExpire if the signature has expired, by the likeliest time of the provider's clock: by the
        latest one, a fresh request with a short window could never leave."""
        now = governor.gate.times.now(self.rules.namespace)
        left = signed_until - (now.lo + now.hi) // 2
        if left <= 0:
            raise stale(self.rules.signing_window(self.request), left / SECOND)

    def _check_deadline(
        self, governor: Governor, signed_until: int, longest: float | None, error: DeadlineExceeded
    ) -> None:
        """Raise SignatureWouldExpire instead of `error`, unless the caller has set an earlier deadline than the signature."""
        left = self._signature_left(governor, signed_until)
        if longest is None or left <= longest:
            raise stale(self.rules.signing_window(self.request), left, error) from None

    @property
    def signature_left(self) -> float | None:
        """See `Call.signature_left`."""
        if self.in_order is not None and self.in_order.spent:
            return -math.inf  # its nonce is used up
        signed_until = None if self.resigned else self.rules.signed_until(self.request)
        return None if signed_until is None else self._signature_left(self.governor, signed_until)

    # -- what policies call ----------------------------------------------------------------------------------------

    def attempt(self, timeout: float | None) -> Steps[Any]:
        """Make one attempt. If an address gets no connection, nothing was sent, so try the next address."""
        last: Exception | None = None
        while True:
            try:
                governed = yield from self.begin(timeout)
                if governed and self.leaving is not None:
                    yield from self.leaving()
                steps, longest = self.once(self), self.longest
                if longest is not None and self.is_async and on_asyncio():
                    # Off asyncio, the client's own timeouts end the attempt.
                    steps = within(steps, longest, functools.partial(self.late, longest))
            except BaseException as error:
                self.unsent()  # an interrupt may strike between the permit and the request
                if last is not None and isinstance(error, SignatureWouldExpire):
                    raise last from last.__cause__  # what the last address brought
                raise
            if not governed:
                return (yield from self.send_ungoverned())
            try:
                response = yield from steps
            except BaseException as error:
                self.failed(error)  # does nothing if `once` has reported it
                self.tried = self.became(error)
                if not (isinstance(error, Exception) and self.fails_over(error)):
                    raise
                last = error
            else:
                self.tried = self.became(None)
                return response

    def uncertain(self, error: Exception) -> Exception:
        """Return the error to raise for an error of the only attempt: `OutcomeUnknown` if the provider may have acted and a
        repeat is unsafe. It may have acted if no answer came, or one that tells of trouble inside it."""
        if self.tried is None or not self.tried.acted or self.tried.outcome is Outcome.OK:
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
        """Convert an error into the client's family: into the class of `cause` if the client raised one."""
        kind = type(cause) if isinstance(cause, Exception) and not isinstance(cause, RatekeeperError) else None
        return in_family(error, self.family if kind is None else lambda: kind)

    def denied(self, block: Blocked) -> Reply:
        """Return what the provider would answer to the blocked call."""
        return denied(self.governor.gate, self.rules, self.request, block)


class OuterCall(ClientCall):
    """A request of a layer above the HTTP library. The lower layer that takes the attempt sees the response."""

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
        """Send the request, from the address `egress` if the lower layer cannot choose it."""
        return self.send(self.native)

    def kept_back(self, error: BaseException) -> bool:
        """Whether an error means that nothing was sent, if no lower layer has taken the attempt."""
        return True

    def untaken(self, response: Any) -> None:
        """Report a successful attempt that no lower layer has taken."""
        self.unsent()


def leaving(scheme: str, host: str, port: int | None) -> Address | None:
    """Return the address for the request to this host that is being sent now; None: the system chooses."""
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
    """Handle a request of a governed client from end to end; return the client's response.

    The request passes if its host has no rules. If an upper layer has waited for it, this layer sends it, and observes the
    response if the upper layer does not see it. Any other request waits here, with all policies.

    Args:
        kind: the library's description.
        outbound: the request; None (no known host) passes.
        replayable: whether the request can be sent more than once (its body is not a stream).
        governor, native, send, family, is_async, any_address: as for `ClientCall`.
    """
    above = None if outbound is None else take(outbound.netloc)
    rules = None if above is None else above.rules
    if above is None and outbound is not None:
        try:
            rules = governor.gate.match(outbound.netloc, outbound.path)
        except Exception as error:  # noqa: BLE001 - the callee raises it if it is not ours
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
    """Wait for a permit for a request that the caller itself sends and observes. None: the request passes.

    Args:
        governor, outbound, family, is_async, any_address, apart: as for `ClientCall`.

    Raises:
        Rejected: the gate refused it; the error is also of `family`.
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
    """Do nothing: the caller sends."""


def run(call: ClientCall) -> Steps[Any]:
    """Make a call with all policies; return the client's response.

    If a block lasts longer than the call waits, an unchanged program gets the response that the provider would give. A
    program with an explicit gate gets a `Blocked` error that holds this response.
    """
    governor, dials = call.governor, call.request.method.startswith("WS")
    try:
        pipeline = None if dials else governor.gate.pipeline  # a program with a websocket redials by itself
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
    """Return what the provider would answer to a blocked request."""
    until = 0 if block.retry_at is None else int(block.retry_at * SECOND)
    made = rules.denial(gate.plan(rules, request), block.kind, block.scope, until, time.time_ns(), str(block))
    return Reply(made.status, tuple(made.headers.items()), made.body)
