"""One request of a client library from end to end, with all that the gate's policies do around it.

Every adapter describes its calls as a `Governed`: how one attempt is sent, and how its answers are read and made. What is
done around it is then the same for all (`ratekeeper.gate.policies.pipeline`). So is the next address where one cannot
connect.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ratekeeper.adapters._call import Attempt, Family
from ratekeeper.adapters._governor import Governor
from ratekeeper.adapters._wire import Outbound, in_family
from ratekeeper.errors import Blocked, CallFailed, RatekeeperError, Rejected
from ratekeeper.gate import priorities
from ratekeeper.gate.errand import Errand, Reply, Served
from ratekeeper.gate.policies.retry import unknown
from ratekeeper.gate.steps import Steps, on_asyncio, within
from ratekeeper.ledger.limit import SECOND
from ratekeeper.policy.freshness import Service
from ratekeeper.rules.call import Outcome

if TYPE_CHECKING:
    from ratekeeper.gate.gate import Gate
    from ratekeeper.rules.call import Call
    from ratekeeper.rules.provider import Provider

__all__ = ["Governed", "denied", "kept_headers", "run"]

_OF_TRANSPORT = frozenset(
    """connection content-encoding content-length date keep-alive set-cookie transfer-encoding trailer upgrade""".split()  # noqa: SIM905
)
"""Headers that say how an answer came, or to whom, and mean nothing when it is given again."""


class Governed(Errand):
    """A request of a client library.

    Args:
        governor: whose gate is asked.
        outbound: the request.
        rules: of its host.
        is_async: whether the flow is driven by `drive_async`.
        family: the client's base error.
        resigned, roams: as for `Governor.begin`.
        first: the first attempt, if somebody has waited for it already.
    """

    def __init__(
        self,
        governor: Governor,
        outbound: Outbound,
        rules: Provider,
        *,
        is_async: bool,
        family: Family,
        resigned: bool = False,
        roams: bool = False,
        first: Attempt | None = None,
    ) -> None:
        super().__init__(rules, outbound.call(), is_async)
        self.urgent = priorities.urgent(governor.priority)
        self.governor = governor
        self.outbound = outbound
        self.family = family
        self.resigned = resigned
        self.roams = roams
        self._first = first

    # -- what a client library says --------------------------------------------------------------------------------

    def once(self, attempt: Attempt) -> Steps[Any]:
        """Send one attempt, and tell it its fate, whatever happens."""
        raise NotImplementedError

    def untouched(self) -> Steps[Any]:
        """Send without the gate: nobody has rules, or the user lets calls pass when something is wrong inside it."""
        raise NotImplementedError

    def moves(self, attempt: Attempt, error: Exception) -> bool:
        """Whether a failed attempt is made from the next address: it was surely never sent, and there is one."""
        return attempt.elsewhere

    def begin(self, timeout: float | None) -> Steps[Attempt | None]:
        """Wait for leave to send; None: nobody has rules for it after all."""
        return self.governor.begin(
            self.outbound,
            self.family,
            is_async=self.is_async,
            resigned=self.resigned,
            roams=self.roams,
            timeout=timeout,
            patient=self.patient,
            known=(self.rules, self.call),
        )

    def shut(self, block: Blocked) -> Steps[Any]:
        """What an unchanged program sees of a call that a block holds: an answer as the provider would give it."""
        return self.answer(denied(self.governor.gate, self.rules, self.call, block), Served(Service.REFUSED))
        yield

    def told(self, error: Rejected | CallFailed, block: Blocked) -> Exception:
        """The error that a program sees which has asked for the gate: `error` with that answer."""
        if self.answers:
            reply = denied(self.governor.gate, self.rules, self.call, block)
            error.response = self.answer(reply, Served(Service.REFUSED))  # type: ignore[union-attr]
        return error

    # -- the same for all ------------------------------------------------------------------------------------------

    def attempt(self, timeout: float | None) -> Steps[Any]:
        """One attempt; where no connection can be made from one address, nothing was sent, and it goes from the next."""
        while True:
            attempt, self._first = self._first, None
            attempt = attempt or (yield from self.begin(timeout))
            if attempt is None:
                return (yield from self.untouched())
            if self.leaving is not None:
                self.leaving()
            try:
                response = yield from self._in_time(attempt)
            except BaseException as error:
                self.tried = attempt.tried(error)
                if not (isinstance(error, Exception) and self.moves(attempt, error)):
                    raise
            else:
                self.tried = attempt.tried(None)
                return response

    def _in_time(self, attempt: Attempt) -> Steps[Any]:
        """One attempt, for as long as one may take. What is not on asyncio is cut off by its client's own timeouts."""
        longest = attempt.longest
        if longest is None or not (self.is_async and on_asyncio()):
            return (yield from self.once(attempt))
        return (yield from within(self.once(attempt), longest, functools.partial(self.late, longest)))

    def fail(self, error: RatekeeperError, cause: BaseException | None) -> Exception:
        """Also of the client's family: of the very kind that came from below, if one did."""
        kind = type(cause) if isinstance(cause, Exception) and not isinstance(cause, RatekeeperError) else None
        return in_family(error, self.family if kind is None else lambda: kind)


def kept_headers(headers: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """The headers of an answer that are kept with it."""
    named = [(str(name), str(value)) for name, value in headers]
    return tuple(
        (name, value)
        for name, value in named
        if name.lower() not in _OF_TRANSPORT and not name.lower().startswith("x-ratekeeper-")
    )


def denied(gate: Gate, rules: Provider, call: Call, block: Blocked) -> Reply:
    """What the provider would answer to a call that a block holds."""
    until = 0 if block.retry_at is None else int(block.retry_at * SECOND)
    made = rules.denial(gate.plan(rules, call), block.kind, block.scope, until, time.time_ns(), str(block))
    return Reply(made.status, tuple(made.headers.items()), made.body)


def run(errand: Governed) -> Steps[Any]:
    """The call with all that is done around it; returns what its client shows its user.

    A call that a block holds for longer than it waits is told so in the form of its client: an unchanged program gets the
    answer that the provider would give, one that has asked for the gate an error that is `Blocked` and holds that answer.
    """
    try:
        return (yield from _run(errand))
    except (Rejected, CallFailed) as error:
        block = error if isinstance(error, Blocked) else error.__cause__
        if not isinstance(block, Blocked) or errand.call.method.startswith("WS"):
            raise
        if errand.governor.lenient:
            return (yield from errand.shut(block))
        raise errand.told(error, block) from error.__cause__


def _run(errand: Governed) -> Steps[Any]:
    governor = errand.governor
    pipeline = governor.pipeline
    # Whoever keeps a websocket alive dials again by himself.
    if pipeline is not None and not errand.call.method.startswith("WS"):
        return (yield from pipeline.run(errand))
    try:
        return (yield from errand.attempt(None))
    except Exception as error:
        if errand.tried is None or errand.tried.outcome is not Outcome.UNKNOWN:
            raise
        plan = governor.gate.plan(errand.rules, errand.call)
        if errand.rules.handling.safe(errand.call, plan):
            raise
        raise errand.fail(unknown(errand, plan, [f"{errand.tried.outcome}: {errand.tried.reason}"]), error) from error
