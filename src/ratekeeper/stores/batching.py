"""Permit batches: several permits of one plan taken at once, and handed out one by one without asking the store.

A batch touches no law. It is cost in flight like any other, it is taken only where a limit is far from full, it is open for
milliseconds, a changed block or limit closes it, and what is left of it comes back.
"""

from __future__ import annotations

import threading
from typing import Final, Generic, TypeVar

from ratekeeper.ledger.limit import Charge, Instant
from ratekeeper.ledger.shares import Who
from ratekeeper.stores.records import Grant

__all__ = ["Batch", "BatchPermit", "Batches"]

_KEPT: Final = 4096


class Batch:
    """Permits of one plan under one record in the store.

    Attributes:
        charges: of one permit.
        record: what the store holds; its lease is that of all permits.
        undrawn: permits not handed out.
        left: permits of which the store does not know yet that they ended.
        until: steady ns at which it closes.
        generation: of the store's blocks and limits when it was taken.
    """

    __slots__ = ("charges", "generation", "left", "record", "undrawn", "until")

    def __init__(self, charges: tuple[Charge, ...], record: Grant, permits: int, until: int, generation: int) -> None:
        self.charges = charges
        self.record = record
        self.undrawn = self.left = permits
        self.until = until
        self.generation = generation


B = TypeVar("B", bound=Batch)


class BatchPermit(Grant, Generic[B]):
    """One permit out of a batch.

    Attributes:
        batch: where it is from.
        open: False once its end was told to the store.
    """

    __slots__ = ("batch", "open")

    def __init__(self, id: int, batch: B, sent: Instant) -> None:  # noqa: A002 - as in Grant
        record = batch.record
        super().__init__(id, record.namespace, batch.charges, record.marks, sent, record.who, record.lease)
        self.batch = batch
        self.open = True


class Batches(Generic[B]):
    """The open batches of one process, and how many permits the next one should have.

    Args:
        opening: how long permits are handed out of a batch, ns.
        most: permits in a batch at most.
    """

    def __init__(self, opening: int, most: int) -> None:
        self._opening = opening
        self._most = most
        self._lock = threading.Lock()
        self._open: dict[tuple[int, Who], B] = {}
        self._replaced: list[B] = []
        self._size: dict[tuple[int, Who], tuple[int, int, tuple[Charge, ...]]] = {}

    def draw(self, charges: tuple[Charge, ...], who: Who, mono: int, generation: int) -> B | None:
        """The open batch of this plan, of which one permit more is handed out at the steady instant `mono` (ns)."""
        with self._lock:
            found = self._open.get((id(charges), who))
            if (
                found is None
                or found.charges is not charges
                or not found.undrawn
                or mono >= found.until
                or found.generation != generation
            ):
                return None
            found.undrawn -= 1
            return found

    def size(self, charges: tuple[Charge, ...], who: Who, mono: int, took: int = 0) -> int:
        """How many permits to ask for beyond those that are wanted now. It doubles while one batch follows another.

        Args:
            charges, who: of the batch.
            mono: the present, steady ns.
            took: how long it takes to ask the store, ns.
        """
        if not charges:
            return 0  # plans that charge nothing cannot be told apart here, and a block may hold one of them
        key = (id(charges), who)
        with self._lock:
            size, last, of = self._size.get(key, (0, 0, charges))
            if of is not charges or mono - last > 4 * self._opening + 2 * took:
                size = 0
            elif mono - last < self._opening + 2 * took:
                size = min(self._most, max(2, size * 2))
            if len(self._size) > _KEPT:
                self._size.clear()
            self._size[key] = size, mono, charges
            return size

    def keep(self, batch: B) -> None:
        """Hand out the rest of this one."""
        key = (id(batch.charges), batch.record.who)
        with self._lock:
            before = self._open.get(key)
            if before is not None:
                self._replaced.append(before)
            self._open[key] = batch

    def close(self, mono: int, generation: int) -> list[tuple[B, int]]:
        """Take out the batches that are over at `mono`, each with the number of permits that nobody drew."""
        with self._lock:
            over = [(batch, batch.undrawn) for batch in self._replaced if batch.undrawn]
            self._replaced.clear()
            for key, batch in list(self._open.items()):
                if mono >= batch.until or batch.generation != generation or not batch.undrawn:
                    del self._open[key]
                    if batch.undrawn:
                        over.append((batch, batch.undrawn))
                        if key in self._size:  # what comes back unused was too much
                            size, last, of = self._size[key]
                            self._size[key] = size // 2, last, of
            for batch, _ in over:
                batch.undrawn = 0
            return over

    @property
    def any_open(self) -> bool:
        """Whether permits are left in one of them."""
        return bool(self._open or self._replaced)
