"""One request of a client that may leave: its permit, and what is still to be told about it.

Where two layers of one program are both governed (ccxt above aiohttp, our transport above a patched one), the upper
one hands its attempt down (`HandedDown`); the first request for the same host that is made below takes it (`take`) and
is not charged again. Redirects, resends and retries find nothing to take and are charged.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from ratekeeper.adapters._wire import netloc_of
from ratekeeper.gate.errand import tried_of
from ratekeeper.gate.fates import described, surely_unsent, unconnected
from ratekeeper.ledger.limit import Window
from ratekeeper.policy.retry import Tried
from ratekeeper.rules.call import Outcome
from ratekeeper.stores.faults import ours

if TYPE_CHECKING:
    from types import TracebackType

    from ratekeeper.gate.permit import Permit
    from ratekeeper.pools.address import Address
    from ratekeeper.rules.call import Feedback
    from ratekeeper.rules.provider import Provider

__all__ = ["Attempt", "HandedDown", "above", "leaving", "peek", "replace", "take"]

log = logging.getLogger("ratekeeper")

_above: ContextVar[Attempt | None] = ContextVar("ratekeeper_above", default=None)
"""The attempt that the innermost governed layer is sending."""


class Attempt:
    """One governed request that may leave.

    Args:
        opener: the call that it is one attempt of (`ratekeeper.adapters._client.ClientCall`).
        rules: of its provider.
        permit: what it may spend.
        netloc: the host it is for.
        roams: whether its client sends it from `egress`.
        longest: seconds that it may take from when it is sent; None: as long as its client lets it.
        held: the permit of what is held as long as a connection is open, where that is kept apart from the rest.

    Attributes:
        observed_above: true if the layer that opened it also sees its answer; layers below then only let it pass.
        slots: whether it holds a place among so many at once until its answer is read.
        elsewhere: true once it failed for want of a connection, and another address is there to try.
        told: what its answer told, once it came and was looked at.
        fate: what became of it without an answer.
        done: true once its fate is told.
        egress: the address it must be sent from; None if the system chooses.
    """

    __slots__ = (
        "_left", "_permit", "_spare", "_told_at", "done", "egress", "elsewhere", "fate", "held", "longest", "netloc",
        "observed_above", "opener", "rules", "slots", "told",
    )  # fmt: skip

    def __init__(
        self,
        opener: Any,
        rules: Provider,
        permit: Permit,
        *,
        netloc: str,
        roams: bool = False,
        longest: float | None = None,
        held: Permit | None = None,
    ) -> None:
        self._permit = permit
        self._spare = [True]
        self._left = time.monotonic()
        self._told_at = 0.0
        self.opener = opener
        self.rules = rules
        self.netloc = netloc
        self.longest = longest
        self.held = held
        self.observed_above = True
        self.slots = False
        for charge in permit.plan.charges:
            if charge.limit.window is Window.SLOTS:
                self.slots = True
        self.elsewhere = False
        self.told: Feedback | None = None
        self.fate: Outcome | None = None
        self.done = False
        self.egress: Address | None = None if not roams or permit.egress.plain else permit.egress

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

    @property
    def waited(self) -> float:
        """Seconds it waited for its permit."""
        return self._permit.waited

    # --- fate ---------------------------------------------------------------------------------------------------

    def wants_body(self, status: int) -> bool:
        """True if the answer's body tells something: which refusal this is, what it cost, or the provider's limits."""
        return not self.done and self.rules.wants_body(self._permit.plan, status)

    def answered(self, status: int, headers: Mapping[str, str], body: bytes | str | None = None) -> None:
        """The answer came. Only the first word on the fate counts; later ones do nothing."""
        if self.done:
            return
        self.done = True
        try:
            self.told, self._told_at = self._permit.settle(status, headers, body), time.monotonic()
        except Exception as error:  # noqa: BLE001 - raised there if it is not ours
            self._unrecorded(error)

    def failed(self, error: BaseException, *, unsent: bool = False) -> None:
        """No answer came: the cost comes back if the request surely never left, else it stays charged."""
        if self.done:
            return
        self.fate = Outcome.NETWORK
        if unconnected(error):
            self._tell(self._unreachable)
        elif unsent or surely_unsent(error):
            self.unsent()
        else:
            self.fate = Outcome.UNKNOWN
            self._tell(self._permit.unknown)

    def _unreachable(self) -> None:
        self.elsewhere = self._permit.unreachable()

    def unsent(self) -> None:
        """Nothing was sent after all (no connection, an answer from a cache, another host)."""
        self._tell(self._permit.refund)

    def streaming(self) -> None:
        """More of the answer arrived: whoever holds a slot still reads."""
        if not self.done:
            self._permit.renew()

    def tried(self, error: BaseException | None) -> Tried | None:
        """What became of it, for whoever decides what follows; `error` is what the client raised, if it did."""
        if self.fate is not None:
            said = described(error, time.monotonic() - self._left, self.netloc) if error is not None else ""
            return Tried(self.fate, self.fate is Outcome.UNKNOWN, reason=said)
        return tried_of(self.told, self._told_at)

    def _tell(self, verb: Callable[[], object]) -> None:
        if self.done:
            return
        self.done = True
        try:
            verb()
        except Exception as error:  # noqa: BLE001 - raised there if it is not ours
            self._unrecorded(error)

    def _unrecorded(self, error: Exception) -> None:
        """Bookkeeping must never break a call that has its answer; the permit's lease ends by itself."""
        if not ours(error):
            raise error
        log.warning("ratekeeper: could not record the fate of a call to %s", self.netloc, exc_info=error)


class HandedDown:
    """Hands an attempt to the first request for its host that is made inside the block, or hands it on.

    Args:
        attempt: the attempt.
        observed_above: whether the layer that hands it down sees the answer itself.
    """

    __slots__ = ("_attempt", "_handed_on", "_token")

    def __init__(self, attempt: Attempt, *, observed_above: bool = True) -> None:
        attempt.observed_above = observed_above
        self._attempt = attempt

    def __enter__(self) -> None:
        spare = self._attempt._spare
        self._handed_on = not spare
        if self._handed_on:
            spare.append(True)
        self._token = _above.set(self._attempt)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _above.reset(self._token)
        if self._handed_on:
            self._attempt._spare.clear()


def above() -> Attempt | None:
    """The attempt that a layer above is sending, for whatever host."""
    return _above.get()


def replace(attempt: Attempt) -> None:
    """Inside a `HandedDown`: the next request takes this attempt, for the one that was handed down is spent."""
    attempt.observed_above = False
    _above.set(attempt)


def peek(netloc: str) -> Attempt | None:
    """The attempt that a layer above has already opened for this host, if it is still to be spent."""
    attempt = _above.get()
    return attempt if attempt is not None and attempt.netloc == netloc and attempt._spare else None


def leaving(scheme: str, host: str, port: int | None) -> Address | None:
    """The address from which the request to this host must leave that is being sent now; None: the system's choice."""
    attempt = _above.get()
    if attempt is None or attempt.egress is None or attempt.netloc != netloc_of(scheme, host, port):
        return None
    return attempt.egress


def take(netloc: str) -> Attempt | None:
    """Takes that attempt. Whoever gets one sends without a new charge, and observes unless `observed_above`."""
    attempt = _above.get()
    return attempt if attempt is not None and attempt.netloc == netloc and attempt.taken() else None
