"""The half that all adapters share: from an HTTP request to a permit and back (long because an attempt is one object).

An `Attempt` is one request with its permit; a `Governor` (`ratekeeper.adapters._governor`) opens it and waits for it. The
whole of a call, with all that is done around it, is in `ratekeeper.adapters._errand`. Flows are written once, as generators
(`ratekeeper.gate.steps`).

Where two layers of one program are both governed (ccxt above aiohttp, our transport above a patched one), the upper
one hands its attempt down with `Attempt.below`; the first real request for the same host takes it (`take`) and is not
charged again. Redirects, resends and retries find nothing to take and are charged.
"""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

from ratekeeper.adapters._wire import Outbound, stale, surely_unsent, unconnected
from ratekeeper.errors import DeadlineExceeded
from ratekeeper.gate.errand import tried_of
from ratekeeper.gate.fates import described
from ratekeeper.gate.steps import Steps, drive, drive_async, waiting
from ratekeeper.ledger.limit import SECOND, Window, parted
from ratekeeper.policy.retry import Tried
from ratekeeper.rules.call import Outcome
from ratekeeper.stores.faults import ours

if TYPE_CHECKING:
    from ratekeeper.adapters._governor import Governor
    from ratekeeper.gate.permit import Permit
    from ratekeeper.pools.address import Address
    from ratekeeper.rules.call import Call, Feedback
    from ratekeeper.rules.provider import Provider

__all__ = ["Attempt", "Family", "Steps", "drive", "drive_async", "leaving", "peek", "take"]

log = logging.getLogger("ratekeeper")

SIGNATURE_MARGIN = 0.25
"""Seconds before a signature goes stale by which the request must have left: its own way to the server."""

Family: TypeAlias = Callable[[], type[Exception]]
"""Gives the base error of a client library, imported only when it is needed."""

_above: ContextVar[Attempt | None] = ContextVar("ratekeeper_above", default=None)


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
        patient: bool = False,
        apart: bool = False,
    ) -> None:
        self._governor = governor
        self._provider = provider
        self._outbound = outbound
        self._call = call
        self._timeout = timeout
        self._patient = patient
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
        timeout, block_wait = self._patience()
        ask = functools.partial(
            gate.permit,
            self._provider,
            call.method,
            call.path,
            params=call.params,
            body=call.body,
            headers=call.headers,
            priority=self._governor.priority,
            timeout=timeout,
            block_wait=block_wait,
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
            if isinstance(error, DeadlineExceeded) and self._signed_until is not None:
                raise stale(error) from None  # a deadline that only the signature set is reported as what it is
            raise
        self._permit = permit
        self._left = time.monotonic()
        self.slots = any(charge.limit.window is Window.SLOTS for charge in permit.plan.charges)

    def _patience(self) -> tuple[float | None, float]:
        """Seconds it may wait in all, never beyond a signature that it already carries; and for the end of a block."""
        gate, longest = self._governor.gate, self._governor.timeout
        asked = longest is not None or self._patient
        if self._timeout is not None:
            longest = self._timeout if longest is None else min(longest, self._timeout)
        block_wait = math.inf if asked else gate.max_block_wait
        if self._signed_until is None:
            return longest, block_wait
        # The provider judges by its own clock: by the latest that it can be there.
        now = gate.times.now(self._provider.namespace).hi
        left = (self._signed_until - now) / SECOND - SIGNATURE_MARGIN
        return min(max(0.0, left), gate.max_wait if longest is None else longest), block_wait

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
        except Exception as error:
            if not ours(error):
                raise
            log.warning("ratekeeper: could not record the fate of a call to %s", self.netloc, exc_info=True)


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
