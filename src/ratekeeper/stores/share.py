"""A process's share of every limit, in ledgers of its own, for when no shared store can be asked."""

from __future__ import annotations

from dataclasses import replace

from ratekeeper.errors import StoreError
from ratekeeper.ledger.base import Ledger
from ratekeeper.ledger.decide import Refusal
from ratekeeper.ledger.limit import SECOND, Charge, Instant, Limit
from ratekeeper.stores.base import SharedStore
from ratekeeper.stores.memory import MemoryStore
from ratekeeper.stores.pauses import Pauses
from ratekeeper.stores.records import LEASE, Ask, Decision, Grant, forget

__all__ = ["PartStore", "Share"]


class PartStore(MemoryStore):
    """One process's part of every limit, with unknown history: a new ledger counts as used up.

    Args:
        processes: the number by which every limit is divided.
    """

    pauses: Pauses | None = None
    """Those of this machine, which it obeys; None: somebody else sees to that."""
    begins = 0
    """Steady ns from which on others leave us this part."""

    def __init__(self, processes: int) -> None:
        super().__init__()
        self.processes = max(1, processes)

    def alive(self) -> int:
        return self.processes

    def reserve(self, ask: Ask, now: Instant) -> Decision:
        if self.pauses is not None:
            self.pauses.heed(self.blocks.obey)
        charges = ask.charges
        if now.mono < self.begins:  # others do not know yet that we are offline
            return Refusal(charges[0].key if charges else "", self.begins, unknown=True)
        small = self._too_small(charges)
        if small:
            return Refusal(small, now.mono + SECOND, unknown=True)
        got = super().reserve(ask, now)
        if isinstance(got, Grant):
            return got
        # A call that fits the whole limit may exceed the share. The store will be back: recheck soon.
        soon = now.mono + SECOND
        return got._replace(never=False, unknown=True, available_at=soon if got.never else min(got.available_at, soon))

    def holds(self, grant: Grant) -> bool:
        """Whether this permit is in flight here. An interrupt may have kept it from the lists of the fallback store."""
        return grant.id in self._grants

    def _limit(self, charge: Charge) -> Limit:
        whole = super()._limit(charge)
        return replace(
            whole,
            capacity=max(1, whole.usable // self.processes),
            headroom=0,
            refill=max(1, (whole.refill or whole.capacity) // self.processes),
        )

    def _too_small(self, charges: tuple[Charge, ...]) -> str:
        """Return the key of a limit smaller than the number of processes: its share is nothing."""
        return next((c.key for c in charges if c.cost and super(PartStore, self)._limit(c).usable < self.processes), "")

    def _fresh(self, key: str, ledger: Ledger, now: Instant) -> None:
        forget(ledger, now)

    def _collect(self) -> None:
        """Do nothing: a ledger that began anew would count as used up."""


class Share(PartStore):
    """This process's part of every limit of a shared store that is away.

    Args:
        whole: the shared store.
        length: ns for which the others leave us this part; 0: until `SharedStore.reattach`.
    """

    def __init__(self, whole: SharedStore, length: int = 0) -> None:
        super().__init__(whole.alive())
        self.mark = whole.detach(length)
        self.begins = whole.held_from()
        self._whole = whole
        self._state = whole.state()
        self._ids = iter(whole.new_id, -1)  # they will lie in the store beside those of others
        whole.recall()
        self.handed = whole.handed
        self.blocks = whole.blocks
        self.learned = whole.learned

    def reserve(self, ask: Ask, now: Instant) -> Decision:
        self._whole.heed()
        return self.blocks.against(ask.scopes, ask.charges, now.mono) or super().reserve(ask, now)

    def _fresh(self, key: str, ledger: Ledger, now: Instant) -> None:
        try:
            whole = self._whole.peek(key, now)
        except StoreError:
            forget(ledger, now)
            return
        if whole is None:
            return  # no process has used it yet
        # If the store lives on without us, others go on spending the room it shows.
        room = max(0, whole.room) if self._whole.state() == self._state else 0
        others = ledger.room - room // self.processes
        if others > 0 and ledger.rises:
            # Slots are held, not spent; nothing here knows by whom or for how long.
            ledger.take(others, (0, 0), now)
            held = Charge(key, ledger.limit, others)
            self._add(Grant(self.new_id(), key.partition("/")[0], (held,), (0,), now, (0, 0), now.mono + LEASE))
        elif others > 0:
            ledger.spend(others, now)
