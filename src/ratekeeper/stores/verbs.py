"""The verbs of a store whose ledgers are computed in this process, written once for all such stores.

Such a store provides only primitives: it returns its ledgers inside a transaction (`_open`), keeps permits with their leases,
and keeps the blocks and learned limits. `reserve`, `settle`, `observe`, `block` and `read` are then the same everywhere.
"""

from __future__ import annotations

import _thread
import functools
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeVar

from ratekeeper.ledger.base import Ledger
from ratekeeper.ledger.codec import convert, create
from ratekeeper.ledger.decide import refusal
from ratekeeper.ledger.limit import SECOND, Charge, Instant, Limit
from ratekeeper.ledger.shares import Who
from ratekeeper.stores.base import Store
from ratekeeper.stores.blocks import BlockState
from ratekeeper.stores.encoding import Change, encoded, note_of
from ratekeeper.stores.inforce import InForce, stale
from ratekeeper.stores.records import AS_RESERVED, NOTHING, Answered, Ask, Decision, Grant, Settlement, Units

__all__ = ["MANY", "LedgerStore", "whole"]

N = TypeVar("N")
T = TypeVar("T")
V = TypeVar("V", bound=Callable[..., Any])

_LOOK: Final = SECOND
"""Where no instant can be computed (another call must settle), recheck after this long, ns. A safety, not a poll: a process
that releases units wakes the waiters."""
_ROWS: Final = 250
"""A provider's stated limits are looked through when there are more rows than this, and again when they have doubled."""
MANY: Final = 512
"""Ledgers that one transaction changes at most."""
_GRACE: Final = SECOND // 5
"""A waiting note outlives the promised instant by this much, ns."""


def whole(verb: V) -> V:
    """Make a verb one transaction, or a part of the one in which it is called."""

    @functools.wraps(verb)
    def run(self: Store, *values: Any, **options: Any) -> Any:
        return self.transact(functools.partial(verb, self, *values, **options))

    return run  # type: ignore[return-value]


class LedgerStore(Store):
    """A store built on primitives: how to open and keep a ledger, and what one transaction is."""

    # -- primitives that a store provides --------------------------------------------------------------------------

    def __init__(self, boot: str = "") -> None:
        super().__init__(boot)
        self._in_force = InForce()
        self._rows: dict[str, int] = {}
        """Number of stated limits of a namespace above which rows that no call needs go."""

    @abstractmethod
    def new_id(self) -> int:
        """Return a permit number that is unique in the store: positive, 63 bits."""

    @abstractmethod
    def _open(self, key: str) -> Ledger | None:
        """Return the ledger of that key, or None if there is none yet; inside a transaction."""

    def _has(self, key: str) -> bool:
        """Whether there is a ledger of that key; inside a transaction."""
        return self._open(key) is not None

    @abstractmethod
    def _keep(self, key: str, ledger: Ledger) -> None:
        """Write a ledger that was created or changed."""

    @abstractmethod
    def _add(self, grant: Grant) -> None:
        """Write a permit."""

    @abstractmethod
    def _drop(self, grant: Grant) -> bool:
        """Remove a permit; False if its lease had ended and it was counted as spent."""

    @abstractmethod
    def _due(self, namespace: str, mono: int) -> Iterable[tuple[int, tuple[tuple[str, int], ...]]]:
        """Remove the namespace's permits whose lease ended by `mono`; returns (lease end, ((key, units), ...)) of each."""

    @abstractmethod
    def _keys(self, prefix: str) -> list[str]:
        """Return the keys of ledgers with this prefix."""

    @abstractmethod
    def _share(self, what: str) -> None:
        """Publish changed `blocks` or `learned` to every process; bans also survive a power cut."""

    @abstractmethod
    def _note(self, topic: str) -> bytes | None:
        """Return a note as stored; inside a transaction."""

    @abstractmethod
    def _note_down(self, topic: str, raw: bytes | None) -> None:
        """Write a note, or remove it; inside a transaction."""

    def _keep_until(self, topic: str, until: int) -> None:
        """Let the note go after the steady instant `until` (ns); inside a transaction."""

    # -- notes -----------------------------------------------------------------------------------------------------

    @whole
    def update(self, topic: str, kind: type[N], change: Change[N, T], keep: int = 0) -> T:
        raw = self._note(topic)
        note, result = change(note_of(raw, kind), self.present())
        changed = encoded(note)
        if changed != raw:
            self._note_down(topic, changed)
            if keep and changed is not None:
                self._keep_until(topic, time.monotonic_ns() + keep)
        return result

    @whole
    def get(self, topic: str, kind: type[N]) -> N | None:
        return note_of(self._note(topic), kind)

    # -- reserve ---------------------------------------------------------------------------------------------------

    @whole
    def reserve(self, ask: Ask, now: Instant) -> Decision:
        namespace, charges, scopes, who, weight, backlog, ahead, lease, _, _ = ask
        if self.blocks.kept:
            blocked = self.blocks.against(scopes, charges, now.mono)
            if blocked:
                return blocked
        self._reap(namespace, now)
        ledgers = [self._current(charge, now) for charge in charges]
        short: list[tuple[Charge, Ledger, int]] = []
        no = refusal(charges, ledgers, who, now, ahead, now.mono + _LOOK, short)
        if no is None:
            for charge, ledger in zip(charges, ledgers, strict=True):
                ledger.take(charge.cost, who, now)
                self._keep(charge.key, ledger)
            grant = Grant(self.new_id(), namespace, charges, [x.tally for x in ledgers], now, who, now.mono + lease)
            thread = _thread.get_ident()
            self._add(grant)
            self.handed[thread] = grant
            return grant
        if backlog is not None and not no.never:
            for (
                charge,
                ledger,
                available_at,
            ) in short:  # a ledger with room keeps nothing for a call that cannot use it yet
                wanted = max(backlog.get(charge.key, 0), charge.cost)
                ledger.refused(who, charge.cost, wanted, available_at + _GRACE, weight)
                self._keep(charge.key, ledger)
        return no

    @whole
    def withdraw(
        self, keys: Iterable[str], who: Who, now: Instant, missed: Units = NOTHING, left: Units = NOTHING
    ) -> None:
        for key in keys:
            ledger = self._open(key)
            units = missed.get(key, 0)
            if ledger is not None and (units or who in ledger.rows):
                if now.mono >= ledger.turn:
                    ledger.advance(now)
                ledger.missed(who, units, left.get(key, 0), now.mono)
                self._keep(key, ledger)

    def _current(self, charge: Charge, now: Instant) -> Ledger:
        """Return the charge's ledger, advanced to `now`, under the limit in force."""
        ledger = self._open(charge.key)
        limit = self._limit(charge)
        if ledger is None:
            ledger = create(limit)
            ledger.advance(now)
            self._fresh(charge.key, ledger, now)
        else:
            if ledger.limit is not limit and ledger.limit != limit:
                ledger = convert(ledger, limit, now)
            if now.mono >= ledger.turn:
                ledger.advance(now)
        return ledger

    def _limit(self, charge: Charge) -> Limit:
        """Return the limit in force."""
        return self._in_force.of(charge, self.learned)

    def _changed(self) -> None:
        """Note that `blocks` or `learned` changed."""
        self.generation += 1
        self._in_force.forget()

    def _fresh(self, key: str, ledger: Ledger, now: Instant) -> None:
        """A ledger begins; a store that lost its memory charges it here."""

    # -- settle ----------------------------------------------------------------------------------------------------

    @whole
    def settle(self, grant: Grant, now: Instant, told: Settlement = AS_RESERVED) -> Answered:
        held = self._drop(grant)
        actual, used, full, stated, sent = told
        if not (sent or held):
            return Answered(late=True)
        released: list[str] = []
        wake: set[int] = set()
        foreign: dict[str, int] = {}
        for charge, mark in zip(grant.charges, grant.marks, strict=True):
            ledger = self._current(charge, now)
            before = ledger.room
            cost = actual.get(charge.key, charge.cost) if actual else charge.cost
            if not sent:
                ledger.refund(charge.cost)
                ledger.returned(grant.who, charge.cost, now.mono, spent=False)
            elif held:
                ledger.settle(charge.cost, cost, now)
                if ledger.rises:
                    ledger.returned(grant.who, charge.cost, now.mono, spent=True)
            # The counter of an answer that comes a window after its lease ended tells nothing: the ledger may be a new one.
            if used and charge.key in used and (held or now.mono - grant.sent.mono <= ledger.limit.period):
                others = ledger.observe(used[charge.key], grant.sent, mark, charge.cost, cost, now)
                if others:
                    foreign[charge.key] = others
            if charge.key in full:
                ledger.overrun(grant.sent, now, stated)
            elif ledger.trial and sent:
                ledger.confirm(grant.sent)
            self._noted(charge.key, ledger, before, grant.who[0], released, wake, now)
        return Answered(tuple(released), frozenset(wake), foreign or NOTHING, not held)

    def _noted(
        self, key: str, ledger: Ledger, before: int, member: int, released: list[str], wake: set[int], now: Instant
    ) -> None:
        if ledger.room > before:
            released.append(key)
            wake.update(m for (m, _), row in ledger.rows.items() if row[3] and m != member and row[5] > now.mono)
        self._keep(key, ledger)

    @whole
    def hold(self, grant: Grant, until: int) -> bool:
        if not self._drop(grant):
            return False
        grant.lease = until
        self._add(grant)
        return True

    def _reap(self, namespace: str, now: Instant) -> None:
        """Count as spent what was in flight when its lease ended: its owner is gone, and the request may have arrived."""
        for lease, held in self._due(namespace, now.mono):
            past = now.mono - lease
            at = Instant(lease, now.lo - past, now.hi - past)
            for key, units in held:
                ledger = self._open(key)
                if ledger is None:
                    continue
                if now.mono >= ledger.turn:
                    ledger.advance(now)
                ledger.lapse(units, at, now)
                self._keep(key, ledger)

    # -- for the fallback -------------------------------------------------------------------------------------------

    def adopt(self, grant: Grant) -> None:
        """Put a permit in flight that the fallback granted; inside a transaction."""
        for charge in grant.charges:
            ledger = self._current(charge, grant.sent)
            ledger.take(charge.cost, grant.who, grant.sent)
            self._keep(charge.key, ledger)
        self._add(grant)

    def spent(self, grant: Grant, actual: Mapping[str, int], at: Instant) -> None:
        """Record what was spent by `at` on a permit that the fallback granted; inside a transaction."""
        past = max(0, time.monotonic_ns() - at.mono)
        now = Instant(at.mono + past, at.lo + past, at.hi + past)
        for charge in grant.charges:
            ledger = self._current(charge, now)
            units = actual.get(charge.key, charge.cost)
            ledger.inflight += units
            ledger.room -= units
            ledger.lapse(units, at, now)  # units that certainly arrived in a window that is over no longer count
            self._keep(charge.key, ledger)

    # -- observe ---------------------------------------------------------------------------------------------------

    @whole
    def learn(self, namespace: str, limits: Mapping[str, tuple[int, int]]) -> bool:
        known = self.learned.get(namespace, {})
        merged = {**known, **limits}
        if merged == known:
            return False
        if len(merged) > self._rows.get(namespace, _ROWS):
            merged = self._pruned(namespace, merged, set(limits))
            self._rows[namespace] = max(_ROWS, 2 * len(merged))
        self.learned = {**self.learned, namespace: merged}
        self._changed()
        self._share("learned")
        return True

    def _pruned(
        self, namespace: str, limits: Mapping[str, tuple[int, int]], fresh: set[str]
    ) -> dict[str, tuple[int, int]]:
        """Return the stated limits without rows of owners whose ledgers are gone; `fresh` rows stay."""
        mono = time.monotonic_ns()
        gone = {name: stale(name, numbers, mono) for name, numbers in limits.items() if name not in fresh}
        return {
            name: numbers
            for name, numbers in limits.items()
            if (ledger := gone.get(name)) is None or (ledger and self._has(f"{namespace}/{ledger}"))
        }

    def doubt(self, namespace: str, now: Instant) -> None:
        keys = self.transact(lambda: self._keys(namespace + "/"))
        for first in range(0, len(keys), MANY):  # in several transactions, so that no other process waits for long
            self._doubt(keys[first : first + MANY], now)

    @whole
    def _doubt(self, keys: Iterable[str], now: Instant) -> None:
        for key in keys:
            ledger = self._open(key)
            if ledger is not None:
                ledger.doubt(now)
                self._keep(key, ledger)

    # -- block -----------------------------------------------------------------------------------------------------

    @whole
    def block(self, scope: str, length: int | None, kind: str, reason: str, mono: int, wall: int) -> BlockState:
        state = self.blocks.add(scope, length, kind, reason, mono, wall)
        self._changed()
        self._share("blocks")
        return state

    @whole
    def unblock(self, scope: str, kind: str = "") -> bool:
        gone = self.blocks.remove(scope, kind)
        if gone:
            self._changed()
            self._share("blocks")
        return gone
