"""One governed call as its client makes it: what the policies around it need to know of it, and ask it to do."""

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
"""What is said of an attempt that went well."""
_LOG: Final = logging.getLogger("ratekeeper")

CURRENT: ContextVar[Call | None] = ContextVar("ratekeeper_call", default=None)
"""The call that the innermost governed layer is sending."""


class Reply(NamedTuple):
    """An answer as it is kept: status, headers without those of its transport, and the body, decoded."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class Served(NamedTuple):
    """Where an answer came from, and how old it may be, in seconds."""

    service: Service
    age: float = 0.0

    def headers(self) -> dict[str, str]:
        """The same for those who read headers: ``x-ratekeeper-answer: hit``, and ``x-ratekeeper-age: 0.417``."""
        age = {} if self.service is Service.REFUSED else {"x-ratekeeper-age": f"{max(0.0, self.age):.3f}"}
        return {"x-ratekeeper-answer": str(self.service), **age}


class Call(ABC):
    """One call, for its whole life: it may take several attempts. Each client library has a subclass.

    Args:
        rules: the rules of its provider.
        request: what it asks for.
        is_async: whether `drive_async` drives its flow.
        netloc: the host that it is for.

    Attributes:
        tried: what became of the last attempt, for the policies.
        urgent: whether it goes before most others, so that it waits for none of them.
        service: where an answer came from that was made for this call.
        patient: whether the program has asked for the timeout of its attempts, so that they wait for the end of a block
            as well.
        within: seconds for which its next attempt may wait for a permit; None: as long as any.
        leaving: called when the next attempt has its permit and is about to be sent.
        permit: what the attempt under way may spend; None before the first.
        slots: whether that attempt holds a place among so many at once until its answer is read.
        observed_above: whether the layer that made the call also sees its answer; layers below then only let it pass.
        egress: the address that the attempt must be sent from; None if the system chooses.
        longest: seconds that an attempt may take from when it is sent; None: as long as its client lets it.
        elsewhere: whether the attempt failed for want of a connection, and another address is there to try.
        told: what its answer told, once it came and was looked at.
        fate: what became of it without an answer.
    """

    tried: Tried | None = None
    urgent: bool = False
    service: Service = Service.FRESH
    patient: bool = False
    within: float | None = None
    leaving: Callable[[], None] | None = None
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
    """Whether it can be sent more than once (its body is not a stream)."""
    answers = True
    """Whether `read` and `answer` work here; without them nothing is kept or merged."""

    def __init__(self, rules: Provider, request: Request, is_async: bool, netloc: str = "") -> None:
        self.rules = rules
        self.request = request
        self.is_async = is_async
        self.netloc = netloc

    # -- what the policies ask for ---------------------------------------------------------------------------------

    @abstractmethod
    def attempt(self, timeout: float | None) -> Steps[Any]:
        """Wait for a permit (so many seconds at most), send, tell the gate; sets `tried`. Returns what the client shows
        its user, or raises what it raises."""

    def read(self, response: Any) -> Steps[tuple[Reply | None, Any]]:
        """The whole of an answer (None if that cannot be had), and an answer that its user can still read."""
        raise NotImplementedError

    def answer(self, reply: Reply, served: Served) -> Any:
        """An answer of the client's own kind."""
        raise NotImplementedError

    def label(self, response: Any, served: Served) -> None:
        """Say on a real answer where it came from, where the client has a place for that."""

    def late(self, seconds: float) -> Exception:
        """The client's own error for an attempt that was cut off after so many seconds."""
        return TimeoutError(f"no answer within {seconds:g} s")

    def other(self, request: Request) -> Call | None:
        """Another call by the same client, to the same host; None if it cannot be made here."""
        return None

    def discard(self, response: Any) -> Steps[None]:
        """An answer that its user will not see: give its connection back."""
        return
        yield

    def fail(self, error: RatekeeperError, cause: BaseException | None) -> Exception:
        """An error of ours as the client's users expect it."""
        return error

    # -- one attempt -----------------------------------------------------------------------------------------------

    def permitted(self, permit: Permit, egress: Address | None, longest: float | None) -> None:
        """An attempt begins, with a permit that is held. Arguments as the attributes."""
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
        """Whether the fate of the attempt is told, or none has begun."""
        return self.permit is None or not self.permit.held

    @property
    def spare(self) -> bool:
        """Whether nobody has taken the attempt yet."""
        return bool(self._spare)

    def taken(self) -> bool:
        """Take the attempt, once, whatever the number of threads. True for whoever gets it."""
        try:
            self._spare.pop()
        except IndexError:
            return False
        return True

    def wants_body(self, status: int) -> bool:
        """Whether the answer's body tells something: which refusal this is, what it cost, or the provider's limits."""
        permit = self.permit
        return permit is not None and permit.held and self.rules.wants_body(permit.plan, status)

    def answered(self, status: int, headers: Mapping[str, str], body: bytes | str | None = None) -> None:
        """The answer came. Only the first word on the fate of an attempt counts; later ones do nothing."""
        permit = self.permit
        if permit is None or not permit.held:
            return
        try:
            self.told = permit.settle(status, headers, body)
        except Exception as error:  # noqa: BLE001 - raised there if it is not ours
            self._unrecorded(error)
        self._told_at = time.monotonic()

    def failed(self, error: BaseException, *, unsent: bool = False) -> None:
        """No answer came: the cost comes back if the request surely never left, else it stays charged."""
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
        except Exception as problem:  # noqa: BLE001 - raised there if it is not ours
            self._unrecorded(problem)

    def unsent(self) -> None:
        """Nothing was sent after all (no connection, an answer from a cache, another host)."""
        try:
            if self.permit is not None:
                self.permit.refund()
        except Exception as error:  # noqa: BLE001 - raised there if it is not ours
            self._unrecorded(error)

    def streaming(self) -> None:
        """More of the answer arrived: whoever holds a slot still reads."""
        if self.permit is not None:
            self.permit.renew()

    def until_read(self, status: int, headers: Mapping[str, str]) -> Reading:
        """The attempt's answer, which holds a slot until it is read."""
        assert self.permit is not None
        return Reading(self, self.permit, status, headers)

    def became(self, error: BaseException | None) -> Tried:
        """What became of the attempt, for whoever decides what follows; `error` is what the client raised, if it did."""
        if self.fate is not None:
            said = described(error, time.monotonic() - self._left, self.netloc) if error is not None else ""
            return Tried(self.fate, self.fate is Outcome.UNKNOWN, reason=said)
        told = self.told
        return WELL if told is None or told.outcome is Outcome.OK else tried_of(told, self._told_at)

    def _unrecorded(self, error: Exception) -> None:
        """Bookkeeping must never break a call that has its answer; the permit's lease ends by itself."""
        if not ours(error):
            raise error
        _LOG.warning("ratekeeper: could not record the fate of a call to %s", self.netloc, exc_info=error)


class Reading:
    """An answer that holds a slot until its last byte, or until its reader leaves. Its call may have gone on meanwhile."""

    __slots__ = ("_answer", "_call", "_permit")

    def __init__(self, call: Call, permit: Permit, status: int, headers: Mapping[str, str]) -> None:
        self._call, self._permit, self._answer = call, permit, (status, headers)

    def streaming(self) -> None:
        """More of it arrived."""
        self._permit.renew()

    def over(self) -> None:
        """It is read, or nobody reads it any more. May be called again."""
        if self._permit is self._call.permit:
            self._call.answered(*self._answer)
        else:
            self._permit.settle(*self._answer)


class HandedDown:
    """Hands the attempt of a call to the first request for its host that is made inside the block, or hands it on.

    Where two layers of one program are both governed (ccxt above aiohttp, our transport above a patched one), the upper
    one hands its attempt down; the first request for the same host that is made below takes it (`take`) and is not charged
    again. Redirects, resends and retries find nothing to take and are charged.

    Args:
        call: the call.
        observed_above: whether the layer that hands it down sees the answer itself.
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
    """The call whose attempt a layer above has opened for this host, if it is still to be spent."""
    call = CURRENT.get()
    return call if call is not None and call.netloc == netloc and call._spare else None


def take(netloc: str) -> Call | None:
    """Takes that attempt. Whoever gets one sends without a new charge, and observes unless `observed_above`."""
    call = CURRENT.get()
    return call if call is not None and call.netloc == netloc and call.taken() else None


def tried_of(told: Feedback | None, now: float) -> Tried:
    """What an answer says of an attempt.

    Args:
        told: by the answer; None: it was not looked at, which means that there was nothing to see.
        now: when it came, steady seconds.
    """
    if told is None or told.outcome is Outcome.OK:
        return WELL
    at = None if told.retry_in is None else now + told.retry_in / SECOND
    held = bool(told.full or told.blocks)
    return Tried(told.outcome, told.acted, at, held, told.reason, now + told.held / SECOND)


Next: TypeAlias = Callable[[Call, Plan], Steps[Any]]
"""What a policy is put around: makes a call of that plan, and returns the client's answer."""


class Policy(ABC):
    """Something that is done around governed calls.

    Attributes:
        when_overriding: whether it is done for calls of an operator override too: a person acts on what is true now.
    """

    when_overriding: ClassVar[bool]

    @abstractmethod
    def around(self, call: Call, plan: Plan, ask: Next) -> Steps[Any]:
        """Make the call, through `ask` as often as it takes. Raises what `ask` raises, and what the policy says."""

    def close(self) -> None:
        """Let go of what it holds."""


def packed(reply: Reply, at: int, ttl: float) -> bytes:
    """A reply as it lies in the response storage, asked for at `at` (steady ns of the store)."""
    return msgspec.msgpack.encode((at, ttl, reply))


def unpacked(value: bytes) -> tuple[int, float, Reply] | None:
    """From the response storage; None if it is another version's."""
    try:
        return msgpack_decoder(tuple[int, float, Reply])(value)
    except msgspec.MsgspecError:
        return None
