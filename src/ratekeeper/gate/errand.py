"""One call as its client makes it: what the policies around it must know of it, and have it do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeAlias

import msgspec

from ratekeeper.errors import RatekeeperError
from ratekeeper.gate.steps import Steps
from ratekeeper.ledger.limit import SECOND
from ratekeeper.policy.freshness import Service
from ratekeeper.policy.retry import Tried
from ratekeeper.rules.call import Feedback, Outcome, Plan, Request

if TYPE_CHECKING:
    from ratekeeper.rules.provider import Provider

__all__ = ["Errand", "Next", "Policy", "Reply", "Served", "packed", "tried_of", "unpacked"]


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


@dataclass(slots=True)
class Errand(ABC):
    """One call. Each client library has a subclass.

    Attributes:
        rules: of its provider.
        call: what is asked for.
        is_async: whether its flow is driven by `drive_async`.
        tried: what became of the last attempt.
        urgent: whether it goes before most others, so that it waits for none of them.
        service: where an answer came from that was made for this call.
        patient: whether the timeout of its attempts is one that the program has asked for, so that they wait for the end of
            a block as well.
        within: seconds for which its next attempt may wait for a permit; None: as long as any.
        leaving: called when the next attempt has its permit and is about to be sent.
    """

    rules: Provider
    call: Request
    is_async: bool
    tried: Tried | None = None
    urgent: bool = False
    service: Service = Service.FRESH
    patient: bool = False
    within: float | None = None
    leaving: Callable[[], None] | None = None

    replayable = True
    """Whether it can be sent more than once (its body is not a stream)."""
    answers = True
    """Whether `read` and `answer` work here; without them nothing is kept or merged."""

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

    def other(self, call: Request) -> Errand | None:
        """Another call by the same client, to the same host; None if it cannot be made here."""
        return None

    def discard(self, response: Any) -> Steps[None]:
        """An answer that its user will not see: give its connection back."""
        return
        yield

    def fail(self, error: RatekeeperError, cause: BaseException | None) -> Exception:
        """An error of ours as the client's users expect it."""
        return error


def tried_of(told: Feedback | None, now: float) -> Tried:
    """What an answer says of an attempt.

    Args:
        told: by the answer; None: it was not looked at, which means that there was nothing to see.
        now: when it came, steady seconds.
    """
    if told is None or told.outcome is Outcome.OK:
        return Tried(Outcome.OK)
    at = None if told.retry_in is None else now + told.retry_in / SECOND
    held = bool(told.full or told.blocks)
    return Tried(told.outcome, told.acted, at, held, told.reason, now + told.held / SECOND)


Next: TypeAlias = Callable[[Errand, Plan], Steps[Any]]
"""What a policy is put around: makes a call of that plan, and returns the client's answer."""


class Policy(ABC):
    """Something that is done around governed calls.

    Attributes:
        by_hand: whether it is done for calls that a person makes by hand too, who acts on what is true now.
    """

    by_hand: ClassVar[bool]

    @abstractmethod
    def around(self, errand: Errand, plan: Plan, ask: Next) -> Steps[Any]:
        """Make the call, through `ask` as often as it takes. Raises what `ask` raises, and what the policy says."""

    def close(self) -> None:
        """Let go of what it holds."""


def packed(reply: Reply, at: int, ttl: float) -> bytes:
    """A reply as it lies on the shelf, asked for at `at` (steady ns of the store)."""
    return msgspec.msgpack.encode((at, ttl, reply))


def unpacked(value: bytes) -> tuple[int, float, Reply] | None:
    """From the shelf; None if it is another version's."""
    try:
        return msgspec.msgpack.decode(value, type=tuple[int, float, Reply])
    except msgspec.MsgspecError:
        return None
