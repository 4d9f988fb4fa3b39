"""One governed call of a client library: the state and the methods that policies use, for every attempt of the call."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, TypeAlias

import msgspec

from ratekeeper.errors import RatekeeperError
from ratekeeper.gate.outcomes import described, surely_unsent, unconnected
from ratekeeper.gate.steps import Steps
from ratekeeper.ledger.limit import SECOND, Window
from ratekeeper.policy.freshness import Service
from ratekeeper.policy.retry import Tried
from ratekeeper.rules.call import Feedback, Outcome, Plan, Request
from ratekeeper.rules.reading import FAULTS
from ratekeeper.stores.faults import ours
from ratekeeper.typed import msgpack_decoder

if TYPE_CHECKING:
    from types import TracebackType

    from ratekeeper.gate.permit import Permit
    from ratekeeper.pools.address import Address
    from ratekeeper.rules.provider import Provider

__all__ = [
    "CURRENT",
    "WELL",
    "Call",
    "HandedDown",
    "Next",
    "Policy",
    "Reading",
    "Reply",
    "Served",
    "packed",
    "peek",
    "take",
    "tried_of",
    "unpacked",
]


WELL: Final = Tried(Outcome.OK)
"""The result of a successful attempt."""
_LOG: Final = logging.getLogger("ratekeeper")

CURRENT: ContextVar[Call | None] = ContextVar("ratekeeper_call", default=None)
"""The call that the innermost governed layer is sending now."""


class Reply(NamedTuple):
    """A response as the response cache stores it: status, headers without transport headers, decoded body."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class Served(NamedTuple):
    """Where a response came from, and its maximum age in seconds."""

    service: Service
    age: float = 0.0

    def headers(self) -> dict[str, str]:
        """Return the same as response headers: ``x-ratekeeper-answer: hit`` and ``x-ratekeeper-age: 0.417``."""
        age = {} if self.service is Service.REFUSED else {"x-ratekeeper-age": f"{max(0.0, self.age):.3f}"}
        return {"x-ratekeeper-answer": str(self.service), **age}


class Call(ABC):
    """One call, for its whole life. A call may take several attempts. Each client library has a subclass.

    Args:
        rules: the rules of the provider.
        request: the request.
        is_async: whether `drive_async` drives the flow of the call.
        netloc: the host of the request.

    Attributes:
        tried: the result of the last attempt, for the policies.
        urgent: whether the call has one of the two upper priorities, so that it never follows another call.
        service: where the response of this call came from.
        patient: whether the program has set the deadline, so that attempts also wait for the end of a block.
        within: seconds for which the next attempt may wait for a permit; None: the default.
        leaving: a flow to run when the next attempt has its permit and is about to be sent.
        permit: the permit of the current attempt; None before the first.
        slots: whether the attempt holds a slot of a concurrency limit until its response is read.
        observed_above: whether the layer that made the call also sees its response; lower layers then only forward it.
        egress: the address that the attempt must be sent from; None: the system chooses.
        longest: seconds that an attempt may take after it is sent; None: the client's own timeouts.
        elsewhere: whether the attempt found no connection and the gate has another address to try.
        told: the feedback from the response; None until the gate has evaluated it.
        fate: the outcome of an attempt that has no response.
    """

    tried: Tried | None = None
    urgent: bool = False
    service: Service = Service.FRESH
    patient: bool = False
    within: float | None = None
    leaving: Callable[[], Steps[None]] | None = None
    permit: Permit | None = None
    slots: bool = False
    observed_above: bool = True
    egress: Address | None = None
    longest: float | None = None
    elsewhere: bool = False
    told: Feedback | None = None
    fate: Outcome | None = None
    _spare: list[bool]
    _left: float
    _told_at: float

    replayable = True
    """Whether the request can be sent more than once (its body is not a stream)."""
    answers = True
    """Whether `read` and `answer` work here; without them the gate neither caches nor batches responses."""

    def __init__(self, rules: Provider, request: Request, is_async: bool, netloc: str = "") -> None:
        self.rules = rules
        self.request = request
        self.is_async = is_async
        self.netloc = netloc

    # -- what policies call ----------------------------------------------------------------------------------------

    @property
    def signature_left(self) -> float | None:
        """Seconds for which the request may still wait before its signature expires; below 0: it has expired, perhaps. None:
        it is not signed, or each attempt signs it anew."""
        return None

    @abstractmethod
    def attempt(self, timeout: float | None) -> Steps[Any]:
        """Wait for a permit (`timeout` seconds at most), send, tell the gate, set `tried`. Return the client's response or
        raise the client's error."""

    def read(self, response: Any) -> Steps[tuple[Reply | None, Any]]:
        """Read a whole response (None if the client cannot). Also return a response that the program can still read."""
        raise NotImplementedError

    def answer(self, reply: Reply, served: Served) -> Any:
        """Make a response of the client's own class."""
        raise NotImplementedError

    def label(self, response: Any, served: Served) -> None:
        """Write on a real response where it came from, if the client has a place for that."""

    def late(self, seconds: float) -> Exception:
        """Return the client's own error for an attempt that ran into its timeout of `seconds`."""
        return TimeoutError(f"no answer within {seconds:g} s")

    def other(self, request: Request) -> Call | None:
        """Make another call of the same client to the same host; None: this client cannot."""
        return None

    def discard(self, response: Any) -> Steps[None]:
        """Give back the connection of a response that the program will not see."""
        return
        yield

    def fail(self, error: RatekeeperError, cause: BaseException | None) -> Exception:
        """Convert a Ratekeeper error into one that the client's users expect."""
        return error

    # -- one attempt -----------------------------------------------------------------------------------------------

    def permitted(self, permit: Permit, egress: Address | None, longest: float | None) -> None:
        """Begin an attempt with a permit that is held. Arguments as the attributes."""
        if self.permit is not None:
            self.observed_above, self.elsewhere, self.slots = True, False, False
            self.told, self.fate = None, None
        self.permit, self.egress, self.longest = permit, egress, longest
        self._spare = [True]
        self._left = time.monotonic()
        for charge in permit.plan.charges:
            if charge.limit.window is Window.SLOTS:
                self.slots = True

    @property
    def done(self) -> bool:
        """Whether the gate knows the outcome of the attempt, or no attempt has begun."""
        return self.permit is None or not self.permit.held

    @property
    def spare(self) -> bool:
        """Whether no layer has taken the attempt yet."""
        return bool(self._spare)

    def taken(self) -> bool:
        """Take the attempt. Exactly one thread gets True."""
        try:
            self._spare.pop()
        except IndexError:
            return False
        return True

    def wants_body(self, status: int) -> bool:
        """Whether the rules read the body: for the kind of refusal, the real cost or the provider's limits."""
        permit = self.permit
        return permit is not None and permit.held and self.rules.wants_body(permit.plan, status)

    def answered(self, status: int, headers: Mapping[str, str], body: bytes | str | None = None) -> None:
        """Settle the attempt with its response. Only the first report on an attempt counts; later ones do nothing."""
        permit = self.permit
        if permit is None or not permit.held:
            return
        try:
            self.told = permit.settle(status, headers, body)
        except Exception as error:  # noqa: BLE001 - `_unrecorded` raises it if it is not ours
            self._unrecorded(error)
        self._told_at = time.monotonic()

    def failed(self, error: BaseException, *, unsent: bool = False) -> None:
        """Report an attempt without a response. The gate refunds the cost if the request was surely never sent."""
        permit = self.permit
        if permit is None or not permit.held:
            return
        self.fate = Outcome.NETWORK
        try:
            if unconnected(error):
                self.elsewhere = permit.unreachable()
            elif unsent or surely_unsent(error):
                permit.refund()
            else:
                self.fate = Outcome.UNKNOWN
                permit.unknown()
        except Exception as problem:  # noqa: BLE001 - `_unrecorded` raises it if it is not ours
            self._unrecorded(problem)

    def unsent(self) -> None:
        """Refund an attempt that sent nothing (no connection, a response from a cache, another host)."""
        try:
            if self.permit is not None:
                self.permit.refund()
        except Exception as error:  # noqa: BLE001 - `_unrecorded` raises it if it is not ours
            self._unrecorded(error)

    def streaming(self) -> None:
        """Renew the slot: more of the response has arrived."""
        if self.permit is not None:
            self.permit.renew()

    def until_read(self, status: int, headers: Mapping[str, str]) -> Reading:
        """Return the response of the attempt, which holds a slot until the program has read it."""
        assert self.permit is not None
        return Reading(self, self.permit, status, headers)

    def became(self, error: BaseException | None) -> Tried:
        """Return the result of the attempt. `error`: the error that the client raised, if any."""
        if self.fate is not None:
            said = (
                described(error, time.monotonic() - self._left, self.netloc, self.request) if error is not None else ""
            )
            return Tried(self.fate, self.fate is Outcome.UNKNOWN, reason=said)
        told = self.told
        return WELL if told is None or told.outcome is Outcome.OK else tried_of(told, self._told_at)

    def _unrecorded(self, error: Exception) -> None:
        """Log a bookkeeping error, which must never break a call with a response; the permit's lease ends by itself."""
        if not ours(error):
            raise error
        _LOG.warning("ratekeeper: could not record the fate of a call to %s", self.netloc, exc_info=error)


class Reading:
    """A response that holds a slot until the program has read it. Its call may have begun a new attempt meanwhile."""

    __slots__ = ("_answer", "_call", "_permit")

    def __init__(self, call: Call, permit: Permit, status: int, headers: Mapping[str, str]) -> None:
        self._call, self._permit, self._answer = call, permit, (status, headers)

    def streaming(self) -> None:
        """Renew the slot: more of the response has arrived."""
        self._permit.renew()

    def over(self) -> None:
        """Free the slot: the program has read the response or has dropped it. Safe to call again."""
        if self._permit is self._call.permit:
            self._call.answered(*self._answer)
        else:
            self._permit.settle(*self._answer)


class HandedDown:
    """Hands the attempt of a call to the first request for its host inside the block, or hands it on.

    Two layers of one program may both be governed (ccxt above aiohttp, our transport above a patched one). The upper layer
    then hands its attempt down. The first request below for the same host takes the attempt (`take`) and is not charged
    again. Redirects, resends and retries find no attempt to take, so the gate charges them.

    Args:
        call: the call.
        observed_above: whether the upper layer sees the response itself.
    """

    __slots__ = ("_call", "_handed_on", "_spare", "_token")

    def __init__(self, call: Call, *, observed_above: bool = True) -> None:
        call.observed_above = observed_above
        self._call, self._spare = call, call._spare

    def __enter__(self) -> None:
        self._handed_on = not self._spare
        if self._handed_on:
            self._spare.append(True)
        self._token = CURRENT.set(self._call)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        CURRENT.reset(self._token)
        if self._handed_on:
            self._spare.clear()


def peek(netloc: str) -> Call | None:
    """Return the call whose attempt an upper layer has opened for this host, if no request has taken it."""
    call = CURRENT.get()
    return call if call is not None and call.netloc == netloc and call._spare else None


def take(netloc: str) -> Call | None:
    """Take that attempt. The layer that gets it sends without a new charge, and observes unless `observed_above`."""
    call = CURRENT.get()
    return call if call is not None and call.netloc == netloc and call.taken() else None


def tried_of(told: Feedback | None, now: float) -> Tried:
    """Return the result of an attempt from its response.

    Args:
        told: the feedback from the response; None: the gate did not evaluate it, because it held nothing of interest.
        now: when the response came, steady seconds.
    """
    if told is None or told.outcome is Outcome.OK:
        return WELL
    at = None if told.retry_in is None else now + told.retry_in / SECOND
    # After trouble that states no end the backoff goes on growing, though the gate holds calls for a moment.
    trouble = told.outcome in {Outcome.OVERLOADED, Outcome.FAILED}
    held = bool(told.full or told.blocks) and not (trouble and at is None)
    return Tried(told.outcome, told.acted, at, held, told.reason, now + told.held / SECOND)


Next: TypeAlias = Callable[[Call, Plan], Steps[Any]]
"""The function that a policy wraps: it makes a call of that plan and returns the client's response."""


class Policy(ABC):
    """A policy that wraps governed calls.

    Attributes:
        when_overriding: whether the policy also applies to calls of an operator override. The person needs current data.
    """

    when_overriding: ClassVar[bool]

    @abstractmethod
    def around(self, call: Call, plan: Plan, ask: Next) -> Steps[Any]:
        """Make the call through `ask`, as often as needed. Raises what `ask` raises, and the policy's own errors."""

    def close(self) -> None:
        """Release the policy's resources."""


def packed(reply: Reply, at: int, ttl: float) -> bytes:
    """Encode a reply for the response storage. `at`: when the request was sent, steady ns of the store."""
    return msgspec.msgpack.encode((at, ttl, reply))


def unpacked(value: bytes) -> tuple[int, float, Reply] | None:
    """Decode a reply from the response storage; None: another version wrote it."""
    try:
        return msgpack_decoder(tuple[int, float, Reply])(value)
    except FAULTS:
        return None
