"""The half that all adapters share: from an HTTP request to a permit, and from its fate back to the permit.

An `Attempt` is one request with its permit; a `Governor` opens attempts and waits for them. The whole of a call, with all
that is done around it, is in `headgate.adapters._errand`. Flows are written once, as generators (`headgate.gate.steps`).

Where two layers of one program are both governed (ccxt above aiohttp, our transport above a patched one), the upper
one hands its attempt down with `Attempt.below`; the first real request for the same host takes it (`take`) and is not
charged again. Redirects, resends and retries find nothing to take and are charged.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from headgate.adapters._wire import Outbound, in_family, surely_unsent, unconnected
from headgate.errors import DeadlineExceeded, Rejected, SignatureWouldExpire
from headgate.gate.errand import tried_of
from headgate.gate.fates import described
from headgate.gate.steps import Steps, drive, drive_async, waiting
from headgate.ledger.limit import SECOND, Window, parted
from headgate.policy.retry import Tried
from headgate.rules.call import Outcome

if TYPE_CHECKING:
    from headgate.gate.gate import Gate
    from headgate.gate.permit import Permit
    from headgate.pools.address import Address
    from headgate.rules.call import Call, Feedback, Priority
    from headgate.rules.provider import Provider

__all__ = ["Attempt", "Family", "Governor", "Steps", "drive", "drive_async", "leaving", "peek", "take"]

log = logging.getLogger("headgate")

SIGNATURE_MARGIN = 0.25
"""Seconds before a signature goes stale by which the request must have left: its own way to the server."""

PASSES = "headgate: a call to %s passes ungoverned"

T = TypeVar("T")
Family: TypeAlias = Callable[[], type[Exception]]
"""Gives the base error of a client library, imported only when it is needed."""

_above: ContextVar[Attempt | None] = ContextVar("headgate_above", default=None)


class Attempt:
    """One governed request: its permit, and what is still to be told about it.

    Attributes:
        netloc: the host it is for.
        observed_above: true if the layer that opened it also sees its answer; layers below then only let it pass.
        elsewhere: true once it failed for want of a connection, and another address is there to try.
        told: what its answer told, once it came and was looked at.
        fate: what became of it without an answer.
        open: the permit of what is held as long as a connection is open, where that is kept apart from the rest.
        text: headers and body of a good answer, where only the adapter's lower half sees them.
    """

    def __init__(
        self,
        governor: Governor,
        provider: Provider,
        outbound: Outbound,
        call: Call,
        *,
        resigned: bool,
        roams: bool,
        timeout: float | None = None,
        apart: bool = False,
    ) -> None:
        self._governor = governor
        self._provider = provider
        self._outbound = outbound
        self._call = call
        self._timeout = timeout
        self._signed_until = None if resigned else provider.signed_until(self._call)
        self._permit: Permit | None = None
        self._done = False
        self._spare = [True]
        self._roams = roams
        self._apart = apart
        self.open: Permit | None = None
        self.netloc = outbound.netloc
        self.observed_above = True
        self.slots = False
        self.elsewhere = False
        self.told: Feedback | None = None
        self._told_at = 0.0
        self._left = 0.0
        self.fate: Outcome | None = None
        self.text: tuple[dict[str, str], str] | None = None

    # --- waiting ------------------------------------------------------------------------------------------------

    def wait(self, *, is_async: bool) -> Steps[None]:
        """Waits until the request may leave."""
        gate, call = self._governor.gate, self._call
        known = self._provider, self._outbound.base_url
        yield waiting(
            functools.partial(gate.first_contact, *known),
            functools.partial(gate.first_contact_async, *known),
            is_async=is_async,
        )
        ask = functools.partial(
            gate.permit,
            self._provider,
            call.method,
            call.path,
            params=call.params,
            body=call.body,
            headers=call.headers,
            priority=self._governor.priority,
            timeout=self._patience(),
            roams=self._roams,
        )
        permit = ask()
        try:
            if self._apart and not permit.roams:
                slots, rest = parted(permit.plan.charges)
                if slots and rest:
                    held = ask()
                    held.plan, permit.plan = replace(held.plan, charges=slots), replace(permit.plan, charges=rest)
                    yield waiting(held.acquire, held.acquire_async, is_async=is_async)
                    self.open = held
            yield waiting(permit.acquire, permit.acquire_async, is_async=is_async)
        except BaseException as error:
            if self.open is not None:
                self.open.refund()
            if isinstance(error, DeadlineExceeded):
                raise self._explained(error) from None
            raise
        self._permit = permit
        self._left = time.monotonic()
        self.slots = any(charge.limit.window is Window.SLOTS for charge in permit.plan.charges)

    def _patience(self) -> float | None:
        """Seconds it may wait: never beyond a signature that it already carries."""
        longest = self._governor.timeout
        if self._timeout is not None:
            longest = self._timeout if longest is None else min(longest, self._timeout)
        if self._signed_until is None:
            return longest
        # The provider judges by its own clock: by the latest that it can be there.
        now = self._governor.gate.times.now(self._provider.namespace).hi
        left = (self._signed_until - now) / SECOND - SIGNATURE_MARGIN
        return min(max(0.0, left), self._governor.gate.max_wait if longest is None else longest)

    def _explained(self, error: DeadlineExceeded) -> Rejected:
        """A deadline that only the signature set is reported as what it is."""
        if self._signed_until is None:
            return error
        return SignatureWouldExpire(
            f"already signed, and stale before it may leave: {error}. Sign after the gate"
            " (as headgate.adapters.ccxt does), widen the signing window, or spend less",
            limit=error.limit,
            scope=error.scope,
            retry_at=error.retry_at,
        )

    # --- layers -------------------------------------------------------------------------------------------------

    @contextmanager
    def below(self, *, observed_above: bool = True) -> Iterator[None]:
        """Hands this attempt to the first request for the same host that is made inside the block, or hands it on."""
        self.observed_above = observed_above
        handed_on = not self._spare
        if handed_on:
            self._spare.append(True)
        token = _above.set(self)
        try:
            yield
        finally:
            _above.reset(token)
            if handed_on:
                self._spare.clear()

    def taken(self) -> bool:
        """Takes the attempt, once, whatever the number of threads. True for whoever gets it."""
        try:
            self._spare.pop()
        except IndexError:
            return False
        return True

    @property
    def spare(self) -> bool:
        """True while nobody has taken it."""
        return bool(self._spare)

    def carry(self, send: Callable[[], Any], observe: Callable[[Attempt, Any], Steps[Any]]) -> Steps[Any]:
        """Sends, and tells the fate whatever happens."""
        try:
            with self.below():
                response = yield send
            return (yield from observe(self, response))
        except BaseException as error:
            self.failed(error)
            raise

    # --- fate ---------------------------------------------------------------------------------------------------

    def wants_body(self, status: int) -> bool:
        """True if the answer's body tells something: which refusal this is, what it cost, or the provider's limits."""
        return not self._done and self._permit is not None and self._provider.wants_body(self._permit.plan, status)

    def answered(self, status: int, headers: Mapping[str, str], body: bytes | str | None = None) -> None:
        """The answer came. Only the first word on the fate counts; later ones do nothing."""
        self._tell(functools.partial(self._settle, status, headers, body))

    def _settle(self, status: int, headers: Mapping[str, str], body: bytes | str | None, permit: Permit) -> None:
        self.told, self._told_at = permit.settle(status, headers, body), time.monotonic()

    def failed(self, error: BaseException, *, unsent: bool = False) -> None:
        """No answer came: the cost comes back if the request surely never left, else it stays charged."""
        if self._done:
            return
        self.fate = Outcome.NETWORK
        if unconnected(error):
            self._tell(lambda permit: setattr(self, "elsewhere", permit.unreachable()))
        elif unsent or surely_unsent(error):
            self.unsent()
        else:
            self.fate = Outcome.UNKNOWN
            self._tell(lambda permit: permit.unknown())

    def unsent(self) -> None:
        """Nothing was sent after all (no connection, an answer from a cache, another host)."""
        self._tell(lambda permit: permit.refund())

    def streaming(self) -> None:
        """More of the answer arrived: whoever holds a slot still reads."""
        if self._permit is not None and not self._done:
            self._permit.renew()

    def tried(self, error: BaseException | None) -> Tried | None:
        """What became of it, for whoever decides what follows; `error` is what the client raised, if it did."""
        if self.fate is not None:
            said = described(error, time.monotonic() - self._left, self.netloc) if error is not None else ""
            return Tried(self.fate, self.fate is Outcome.UNKNOWN, reason=said)
        return tried_of(self.told, self._told_at)

    @property
    def longest(self) -> float | None:
        """Seconds that it may take from when it is sent; None: as long as its client lets it."""
        return self._governor.gate.policies.attempt_timeout

    @property
    def waited(self) -> float:
        """Seconds it waited for its permit."""
        return 0.0 if self._permit is None else self._permit.waited

    @property
    def egress(self) -> Address | None:
        """The address it must be sent from; ``None`` if the system chooses."""
        if self._permit is None or not self._roams or self._permit.egress.plain:
            return None
        return self._permit.egress

    @property
    def done(self) -> bool:
        """True once its fate is told."""
        return self._done

    def _tell(self, verb: Callable[[Permit], object]) -> None:
        """Bookkeeping must never break a call that has its answer; the permit's lease ends by itself."""
        if self._done or self._permit is None:
            return
        self._done = True
        try:
            verb(self._permit)
        except Exception:
            log.warning("headgate: could not record the fate of a call to %s", self.netloc, exc_info=True)


class Governor:
    """How one adapter reaches its gate.

    Args:
        gate: the gate to ask; ``None`` is the process's shared one, made on first use.
        priority: class of every call through this adapter; ``None`` leaves it to the context and the route.
        lenient: for an unchanged program: an unexpected error of ours is logged and the request passes ungoverned.
            `Rejected` is never swallowed.
        timeout: seconds that a call may wait; ``None``: the gate's `max_wait`.
    """

    __slots__ = ("_gate", "lenient", "priority", "timeout")

    def __init__(
        self,
        gate: Gate | None = None,
        *,
        priority: Priority | int | str | None = None,
        lenient: bool = False,
        timeout: float | None = None,
    ) -> None:
        self._gate = gate
        self.priority = priority
        self.lenient = lenient
        self.timeout = timeout

    @property
    def gate(self) -> Gate:
        """The gate that is asked."""
        if self._gate is not None:
            return self._gate
        from headgate.gate.gate import Gate

        return Gate.shared()

    def knows(self, netloc: str, path: str) -> bool:
        """True if there are rules for a host."""
        return self._leniently(netloc, lambda: self.gate.book.for_host(netloc, path)) is not None

    def match(self, outbound: Outbound | None) -> Provider | None:
        """The rules for a request; None: it passes."""
        if outbound is None:
            return None
        return self._leniently(outbound.netloc, lambda: self.gate.match(outbound.netloc, outbound.path))

    def begin(
        self,
        outbound: Outbound | None,
        family: Family,
        *,
        is_async: bool,
        resigned: bool = False,
        roams: bool = False,
        timeout: float | None = None,
        apart: bool = False,
        known: tuple[Provider, Call] | None = None,
    ) -> Steps[Attempt | None]:
        """Opens a request's attempt and waits for it; ``None`` if its host has no rules.

        Args:
            outbound: the request; ``None`` (no host) passes.
            family: the client library's own base error; a refusal is raised as both.
            is_async: whether the steps are driven by `drive_async`.
            resigned: the caller signs after the wait, so a signature seen now does not matter.
            roams: the request will leave from `leaving`; without it the default address is meant.
            timeout: seconds it may wait, if less than the governor says.
            apart: what is held while a connection is open gets a permit of its own (`Attempt.open`), for the rest is
                spent with the answer.
            known: its rules and what they see of it, if the caller has them.
        """
        rules = known[0] if known is not None else self.match(outbound)
        if outbound is None or rules is None:
            return None
        call = known[1] if known is not None else outbound.call()
        attempt = self._leniently(
            outbound.netloc,
            lambda: Attempt(self, rules, outbound, call, resigned=resigned, roams=roams, timeout=timeout, apart=apart),
        )
        if attempt is None:
            return None
        try:
            yield from attempt.wait(is_async=is_async)
        except Rejected as error:
            raise in_family(error, family) from None
        except Exception:
            if not self.lenient:
                raise
            log.warning(PASSES, outbound.netloc, exc_info=True)
            return None
        return attempt

    def _leniently(self, netloc: str, ask: Callable[[], T]) -> T | None:
        try:
            return ask()
        except Exception:
            if not self.lenient:
                raise
            log.warning(PASSES, netloc, exc_info=True)
            return None


def peek(netloc: str) -> Attempt | None:
    """The attempt that a layer above has already opened for this host, if it is still to be spent."""
    attempt = _above.get()
    return attempt if attempt is not None and attempt.netloc == netloc and attempt.spare else None


def leaving(netloc: str) -> Address | None:
    """The address from which the request to this host must leave that is being sent now; ``None``: the system's choice."""
    attempt = _above.get()
    return attempt.egress if attempt is not None and attempt.netloc == netloc else None


def take(netloc: str) -> Attempt | None:
    """Takes that attempt. Whoever gets one sends without a new charge, and observes unless `observed_above`."""
    attempt = peek(netloc)
    return attempt if attempt is not None and attempt.taken() else None
