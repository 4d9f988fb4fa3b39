"""Calls of one API key leave in the order of their nonces, where the provider's rules want that (`ratekeeper.policy.nonces`).

A request that is signed before it waits carries its nonce already. It enters the line of its key before it asks for a permit,
and only the first of a line asks: a call that waits for the others holds no units. Threads, tasks and processes share it
through the store. A call is woken when another one of this process leaves or is answered; it looks for other processes.
"""

from __future__ import annotations

import functools
import secrets
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from ratekeeper.errors import DeadlineExceeded, Rejected, SignatureWouldExpire, StoreError
from ratekeeper.gate.context import Context
from ratekeeper.gate.leases import Leases
from ratekeeper.gate.permit import Permit
from ratekeeper.gate.steps import Steps, apart, waiting
from ratekeeper.ledger.limit import SECOND
from ratekeeper.policy.nonces import KEEP, Line, Place, Turn, departed, entered, finished
from ratekeeper.stores.threads import Parked

if TYPE_CHECKING:
    from ratekeeper.rules.call import Request
    from ratekeeper.rules.provider import Provider

__all__ = ["InOrder", "Nonces"]

_RENEW_EVERY: Final = 1.0
"""Seconds between two renewals of a waiting call's place."""
_FIRST_LOOK: Final = 0.002
_LAST_LOOK: Final = 0.05
"""Seconds between two checks by the first call of this process, at first and later."""
_BEHIND: Final = 0.25
"""Seconds between two checks by a call that is behind another one of this process."""
_LONG: Final = 10.0
"""The gate reports a wait longer than this, s."""


class Nonces:
    """The lines of one gate.

    Args:
        context: of the gate.
        secret: keys the digests of API keys.

    Attributes:
        leases: renew the places of the calls that wait.
        closed: whether the gate is closed.
    """

    def __init__(self, context: Context, secret: bytes) -> None:
        self.store, self.worker, self.events = context.store, context.worker, context.events
        self.leases = Leases(_RENEW_EVERY)
        self.closed = False
        self._secret = secret
        self._lock = threading.RLock()  # reentrant: a call's end may come during garbage collection
        self._waiting: dict[str, list[InOrder]] = {}

    def close(self) -> None:
        """Refuse the calls that wait, and give up their places."""
        self.closed = True
        self.leases.close()

    def of(self, rules: Provider, request: Request, priority: int, *, is_async: bool) -> InOrder | None:
        """Return a new place for an attempt in the line of its key; None: its order does not matter."""
        found = None if rules.nonce is None else rules.nonce(request, self._secret)
        return None if found is None else InOrder(self, rules.namespace, *found, priority, is_async=is_async)

    def enter(self, call: InOrder) -> None:
        """Note a call of this process that waits."""
        with self._lock:
            self._waiting.setdefault(call.topic, []).append(call)

    def leave(self, call: InOrder, overtaking: bool = False) -> None:
        """Note that a call of this process no longer waits, and wake the others. `overtaking`: it has left."""
        with self._lock:
            calls = [each for each in self._waiting.pop(call.topic, []) if each is not call]
            if calls:
                self._waiting[call.topic] = calls
        if overtaking:
            for each in calls:
                if each.place.nonce <= call.place.nonce:
                    each.refuse()
        self.wake(call)

    def wake(self, call: InOrder) -> None:
        """Wake the waiting calls of a line in this process: it has changed."""
        for each in list(self._waiting.get(call.topic, ())):
            each.woken.release()

    def first(self, call: InOrder) -> bool:
        """Whether no call of this process with a lower nonce waits."""
        with self._lock:
            return all(call.place.nonce <= each.place.nonce for each in self._waiting.get(call.topic, ()))


class InOrder:
    """One attempt of a call, from entering its line until it is answered.

    Args:
        nonces: of the gate.
        provider: its namespace.
        nonce: of the request.
        whose: names the key: a digest.
        priority: of the call; lower numbers go first.
        is_async: as for `ratekeeper.gate.steps.waiting`.

    Attributes:
        spent: whether the request may have been sent, so that its nonce is used up.
    """

    def __init__(self, nonces: Nonces, provider: str, nonce: int, whose: str, priority: int, *, is_async: bool) -> None:
        self.topic = f"nonces:{provider}/key:{whose}"
        self.place = Place(secrets.randbits(62), nonce, priority)
        self.spent = False
        self.woken = Parked()
        self._nonces, self._provider, self._is_async = nonces, provider, is_async
        self._permit: Permit | None = None
        self._begun = time.monotonic_ns()
        self._over = self._left = self._told = self._waited = False
        self._turn = Turn.WAIT
        self._lock = threading.RLock()
        nonces.enter(self)

    # -- before it is sent -----------------------------------------------------------------------------------------

    def enter(self) -> Steps[None]:
        """Take a place in the line."""
        self._turn = yield from self._asked(entered)

    def permitted(self, permit: Permit, longest: float) -> Steps[None]:
        """Wait until no call with a lower nonce is ahead, then for the permit. `longest`: seconds for both.

        Raises:
            SignatureWouldExpire: a call with a higher nonce has left.
            Rejected: as `Permit.acquire` does.
        """
        deadline = time.monotonic() + longest
        self._permit = permit
        while True:
            yield from self._first(deadline, longest)
            permit.wait_within(deadline - time.monotonic())
            if not permit.at_once():
                self._nonces.leases.add(self)
                self.place = self.place._replace(due=permit.available_at)
                yield from self._asked(entered)
                self._nonces.wake(self)
                yield waiting(permit.acquire, permit.acquire_async, is_async=self._is_async)
            self._turn = yield from self._asked(departed)
            if self._turn is Turn.FIRST:
                break
            permit.refund()  # another call came, with a lower nonce
        self.spent = self._left = True
        permit.in_order = self
        if self._waited:
            permit.waited = (time.monotonic_ns() - self._begun) / SECOND
        self._nonces.leases.remove(self)
        self._nonces.leave(self, overtaking=True)

    def _first(self, deadline: float, longest: float) -> Steps[None]:
        """Wait until it is this call's turn to ask for a permit."""
        nap = _FIRST_LOOK
        while self._turn is Turn.WAIT:
            if self._nonces.closed:
                raise Rejected("the gate was closed")
            self._waited = True
            left = deadline - time.monotonic()
            if left <= 0:
                raise DeadlineExceeded(
                    f"calls of the same key with lower nonces did not leave within {longest:.1f} s; the provider wants them"
                    " in that order",
                    limit="nonce",
                    scope=self.topic.removeprefix("nonces:"),
                )
            self._nonces.leases.add(self)
            self._tell()
            length = min(left, nap if self._nonces.first(self) else _BEHIND)
            yield waiting(
                functools.partial(self.woken.wait, length),
                functools.partial(self.woken.wait_async, length),
                is_async=self._is_async,
            )
            nap = min(nap * 1.5, _LAST_LOOK)
            if self.woken.released:
                self.woken, nap = Parked(), _FIRST_LOOK
            worker = self._nonces.worker
            self._turn = yield from apart(worker, self.topic, self._look, Turn.FIRST, is_async=self._is_async)
        if self._turn is Turn.GONE:
            raise self._overtaken()

    def _asked(self, change: Callable[..., tuple[Line | None, Turn]]) -> Steps[Turn]:
        """Change the line. A store that fails orders nothing: then the call goes."""
        work = functools.partial(self._change, change)
        return apart(self._nonces.worker, self.topic, work, Turn.FIRST, is_async=self._is_async)

    def _change(self, change: Callable[..., tuple[Line | None, Turn]]) -> Turn:
        waited = time.monotonic_ns() - self._begun
        return self._nonces.store.update(
            self.topic, Line, lambda line, now: change(line, now, self.place, waited), KEEP
        )

    def _look(self) -> Turn:
        store = self._nonces.store
        line, now = store.get(self.topic, Line), store.present()
        found = Line() if line is None else line.at(now)
        if all(place.id != self.place.id for place in found.places):
            return self._change(entered)  # the place has ended, or never was
        return found.turn(self.place, now, time.monotonic_ns() - self._begun)

    def _tell(self) -> None:
        seconds = (time.monotonic_ns() - self._begun) / SECOND
        if seconds >= _LONG and not self._told:
            self._told = True
            self._nonces.events.say_seldom(
                "waiting", self.topic, 60.0,
                f"a call has waited {seconds:.0f} s for calls of the same key with lower nonces", self._provider,
                key=self.topic.removeprefix("nonces:"), seconds=seconds,
            )  # fmt: skip

    def _overtaken(self) -> SignatureWouldExpire:
        return SignatureWouldExpire(
            "already signed, and its nonce is overtaken: a call of the same key with a higher nonce has left, so the provider"
            " would refuse this one (nothing was sent). Take a new nonce and sign again. To avoid it, sign after the gate (as"
            " ratekeeper.adapters.ccxt does), or give orders and reads a key each",
            limit="nonce",
            scope=self.topic.removeprefix("nonces:"),
        )

    def refuse(self) -> None:
        """Refuse the call at once if it waits for its permit: it was overtaken."""
        if self._permit is not None and not self._left:
            self._permit.refuse(self._overtaken())

    # -- the lease of its place ------------------------------------------------------------------------------------

    @property
    def holds(self) -> bool:
        """Whether the call still waits."""
        return not self._left and not self._over

    def renew(self) -> None:
        """Keep the place. Refuse the call if another process's call has overtaken it."""
        with self._lock:
            if self.holds:
                self._later(self._renewed)

    def _renewed(self) -> None:
        if self._change(entered) is Turn.GONE:
            self.refuse()

    def close(self) -> None:
        """Give the place up."""
        self.over(unsent=True)

    # -- afterwards ------------------------------------------------------------------------------------------------

    def over(self, *, unsent: bool) -> None:
        """Let the next call go: this one is answered, failed or was given up. Never waits. Safe to call again.

        Args:
            unsent: surely nothing was sent.
        """
        nonces = self._nonces
        with self._lock:
            if self._over:
                return
            self._over = True
            if unsent:
                self.spent = False
            nonces.leases.remove(self)
            self._later(functools.partial(self._finished, unsent))
        nonces.leave(self)

    def _later(self, work: Callable[[], object]) -> None:
        try:
            self._nonces.worker.later(self.topic, work)
        except StoreError:
            pass  # the place ends by itself, and a call that still waits takes it anew

    def _finished(self, unsent: bool) -> None:
        self._nonces.store.update(self.topic, Line, lambda line, now: finished(line, now, self.place, unsent), KEEP)
