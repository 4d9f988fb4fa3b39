"""What a store with costly transactions spares a process that takes permits without a pause.

A plain settle rides with the next transaction. And while a limit is far from full, several permits are taken at once as a
*bundle* and handed out one by one. Both touch no law: what is settled late, or not handed out yet, counts as in
flight. A bundle is open for milliseconds, is a small part of what is free, and what is left of it comes back.
"""

from __future__ import annotations

import threading
import time
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Final

from ratekeeper.ledger.base import Ledger
from ratekeeper.ledger.decide import Refusal
from ratekeeper.ledger.limit import SECOND, Charge, Instant
from ratekeeper.ledger.shares import Who
from ratekeeper.stores.later import Later, Rider
from ratekeeper.stores.records import LEASE, NOTHING, Answered, Grant
from ratekeeper.stores.verbs import LedgerStore

__all__ = ["BusyStore", "Part"]

_MOST: Final = 32
"""Permits in a bundle at most."""
_FEWEST: Final = 4
_SHARE: Final = 64
"""A bundle takes at most this part of what is free."""
_OPEN: Final = SECOND // 200
"""How long permits are handed out of a bundle, ns. So late may a process notice a ban that another one learned."""
_SETTLED: Final = Answered()


class _Bundle:
    """Permits of one plan that were taken together.

    Attributes:
        charges: of one permit.
        grant: the record in the store: all that is not settled.
        undrawn: permits not handed out.
        until: steady ns at which it closes.
        generation: of the store when it was taken; a changed block or limit closes it.
    """

    __slots__ = ("charges", "generation", "grant", "undrawn", "until")

    def __init__(self, charges: tuple[Charge, ...], grant: Grant, permits: int, generation: int) -> None:
        self.charges = charges
        self.grant = grant
        self.undrawn = permits
        self.until = grant.sent.mono + _OPEN
        self.generation = generation


class Part(Grant):
    """One permit out of a bundle, or several that end together.

    Attributes:
        bundle: the record of which it is a part; None once it has one of its own.
    """

    __slots__ = ("bundle",)

    def __init__(self, id: int, bundle: _Bundle, sent: Instant, permits: int = 1) -> None:  # noqa: A002 - as in Grant
        whole = bundle.grant
        charges = bundle.charges if permits == 1 else _times(bundle.charges, permits)
        super().__init__(id, whole.namespace, charges, whole.marks, sent, whole.who, whole.lease)
        self.bundle: _Bundle | None = bundle


class BusyStore(LedgerStore):
    """A store shared by processes, each transaction of which costs something."""

    def _rest(self) -> None:
        """Begin with nothing pending; also in a forked child."""
        self._later = Later(self.flush)
        self._guard = threading.Lock()
        self._by_plan: dict[int, _Bundle] = {}
        self._unwritten: dict[int, _Bundle] = {}

    @abstractmethod
    def _latest(self, key: str) -> Ledger | None:
        """A ledger as this process last knew it; outside a transaction, to be read only."""

    # -- taking ----------------------------------------------------------------------------------------------------

    def reserve(
        self,
        namespace: str,
        charges: tuple[Charge, ...],
        scopes: tuple[str, ...],
        who: Who,
        now: Instant,
        *,
        backlog: Mapping[str, int] | None = NOTHING,
        ahead: Mapping[str, int] = NOTHING,
        weight: int = 1,
        lease: int = LEASE,
    ) -> Grant | Refusal:
        if not ahead and self._later.busy(now.mono):
            part = self._draw(charges, who, now) or self._bundle(namespace, charges, scopes, who, now, lease)
            if part is not None:
                return part
        return super().reserve(
            namespace, charges, scopes, who, now, backlog=backlog, ahead=ahead, weight=weight, lease=lease
        )

    def _draw(self, charges: tuple[Charge, ...], who: Who, now: Instant) -> Part | None:
        with self._guard:
            bundle = self._by_plan.get(id(charges))
            if (
                bundle is None
                or bundle.charges is not charges
                or bundle.grant.who != who
                or not bundle.undrawn
                or now.mono >= bundle.until
                or bundle.generation != self.generation
            ):
                return None
            bundle.undrawn -= 1
        return Part(self.new_id(), bundle, now)

    def _bundle(
        self, namespace: str, charges: tuple[Charge, ...], scopes: tuple[str, ...], who: Who, now: Instant, lease: int
    ) -> Part | None:
        if not charges:
            return None  # plans that charge nothing cannot be told apart here, and a block may hold one of them
        permits = _MOST
        for charge in charges:
            ledger = self._latest(charge.key)
            if ledger is None or not _quiet(ledger):
                return None
            if charge.cost:
                permits = min(permits, ledger.room // (_SHARE * charge.cost))
        if permits < _FEWEST:
            return None
        got = super().reserve(namespace, _times(charges, permits), scopes, who, now, backlog=None, lease=lease)
        if not isinstance(got, Grant):
            return None
        bundle = _Bundle(charges, got, permits - 1, self.generation)
        with self._guard:
            self._by_plan[id(charges)] = self._unwritten[id(bundle)] = bundle
        self._later.poke()
        return Part(self.new_id(), bundle, now)

    # -- settling --------------------------------------------------------------------------------------------------

    def settle(
        self,
        grant: Grant,
        now: Instant,
        *,
        actual: Mapping[str, int] = NOTHING,
        used: Mapping[str, int] = NOTHING,
        full: Iterable[str] = (),
        stated: bool = False,
    ) -> Answered:
        if not (actual or used or full) and self._later.busy(now.mono):
            latest = [self._latest(charge.key) for charge in grant.charges]
            if all(ledger is not None and _quiet(ledger) for ledger in latest):
                self._later.pending.append(Rider(grant, now))
                self._later.poke()
                return _SETTLED
        return super().settle(grant, now, actual=actual, used=used, full=full, stated=stated)

    def _catch_up(self) -> None:
        """A transaction has begun: write what is pending, and give back what closed bundles did not hand out."""
        if self._unwritten:
            mono = time.monotonic_ns()
            with self._guard:
                for number, bundle in list(self._unwritten.items()):
                    if bundle.undrawn and mono >= bundle.until:
                        rest = Part(0, bundle, bundle.grant.sent, bundle.undrawn)
                        self._later.pending.append(Rider(rest, rest.sent, sent=False))
                        bundle.undrawn = 0
                    if not bundle.undrawn:
                        del self._unwritten[number]
                        if self._by_plan.get(id(bundle.charges)) is bundle:
                            del self._by_plan[id(bundle.charges)]
        if self._later.pending:
            for rider in _together(self._later.ride()):
                if rider.sent:
                    super().settle(rider.grant, rider.at)
                else:
                    super().refund(rider.grant, rider.at)

    def flush(self) -> bool:
        """Write what is pending; True if nothing is left open."""
        if self._later.pending or self._unwritten:
            self.transact(lambda: None)
        return not self._unwritten

    def _close_bundles(self) -> None:
        """Hand nothing out any more, and write everything."""
        with self._guard:
            for bundle in self._unwritten.values():
                bundle.until = 0
        self.flush()


def _quiet(ledger: Ledger) -> bool:
    """Whether nobody waits for it, or was refused lately."""
    return not (ledger.rises or ledger.trial) and ledger.floor <= ledger.limit.usable


def _times(charges: tuple[Charge, ...], permits: int) -> tuple[Charge, ...]:
    return tuple([Charge(key, limit, cost * permits) for key, limit, cost in charges])


def _together(riders: list[Rider]) -> list[Rider]:
    """The same, but settled parts of one bundle as one."""
    alone: list[Rider] = []
    parts: dict[_Bundle, list[Rider]] = {}
    for rider in riders:
        grant = rider.grant
        if rider.sent and isinstance(grant, Part) and grant.bundle is not None:
            parts.setdefault(grant.bundle, []).append(rider)
        else:
            alone.append(rider)
    return alone + [Rider(Part(0, b, b.grant.sent, len(of)), max(r.at for r in of)) for b, of in parts.items()]
