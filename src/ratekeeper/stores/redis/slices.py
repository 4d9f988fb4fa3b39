"""Permits that a process took several of at once, and hands out without a round trip.

A slice is cost in flight like any other, so it touches no law: it is taken only where a limit is far from full, is open for
milliseconds, closes when a block or a limit changes, and what is left of it comes back.
"""

from __future__ import annotations

import threading
from typing import Final

from ratekeeper.ledger.limit import SECOND, Charge, Instant
from ratekeeper.ledger.shares import Who
from ratekeeper.stores.records import Grant

__all__ = ["OPEN", "Part", "Slice", "Slices"]

OPEN: Final = SECOND // 20
"""How long permits are handed out of a slice, ns."""
_MOST: Final = 256
"""Permits in a slice at most."""
_IDLE: Final = 4 * OPEN
_KEPT: Final = 4096


class Slice:
    """Permits of one plan under one record in the store.

    Attributes:
        number: of the record, hexadecimal.
        namespace: the provider's.
        charges: of one permit.
        marks: the ledgers' running totals when it was taken, for feedback.
        sent: when it was taken, on the store's clock: (steady, lo, hi), us.
        who: (member, class).
        lease: end of the record's lease, steady ns of this machine.
        undrawn: permits not handed out.
        left: permits of which the store does not know yet that they ended.
        until: steady ns at which it closes.
        generation: of the store when it was taken.
    """

    __slots__ = (
        "charges", "generation", "lease", "left", "marks", "namespace", "number", "sent", "undrawn", "until", "who",
    )  # fmt: skip

    def __init__(
        self,
        number: str,
        namespace: str,
        charges: tuple[Charge, ...],
        marks: list[int],
        sent: tuple[int, int, int],
        who: Who,
        lease: int,
        permits: int,
        until: int,
        generation: int,
    ) -> None:
        self.number = number
        self.namespace = namespace
        self.charges = charges
        self.marks = marks
        self.sent = sent
        self.who = who
        self.lease = lease
        self.undrawn = self.left = permits
        self.until = until
        self.generation = generation


class Part(Grant):
    """One permit out of a slice.

    Attributes:
        slice: where it is from.
        open: False once its end was told to the store.
    """

    __slots__ = ("open", "slice")

    def __init__(self, id: int, whole: Slice, sent: Instant) -> None:  # noqa: A002 - as in Grant
        super().__init__(id, whole.namespace, whole.charges, whole.marks, sent, whole.who, whole.lease)
        self.slice = whole
        self.open = True


class Slices:
    """The open slices of one process, and how many permits the next one should have."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[tuple[int, Who], Slice] = {}
        self._over: list[Slice] = []
        self._size: dict[tuple[int, Who], tuple[int, int, tuple[Charge, ...]]] = {}

    def draw(self, charges: tuple[Charge, ...], who: Who, now: Instant, generation: int, number: int) -> Part | None:
        """The next permit of an open slice of this plan."""
        with self._lock:
            found = self._open.get((id(charges), who))
            if (
                found is None
                or found.charges is not charges
                or not found.undrawn
                or now.mono >= found.until
                or found.generation != generation
            ):
                return None
            found.undrawn -= 1
            return Part(number, found, now)

    def size(self, charges: tuple[Charge, ...], who: Who, mono: int, took: int = 0) -> int:
        """How many permits to ask for beyond those that are wanted now. It doubles while one slice follows another.

        Args:
            charges, who: of the slice.
            mono: the present, steady ns.
            took: how long a round trip takes, ns.
        """
        if not charges:
            return 0  # plans that charge nothing cannot be told apart here, and a block may hold one of them
        key = (id(charges), who)
        with self._lock:
            size, last, of = self._size.get(key, (0, 0, charges))
            if of is not charges or mono - last > _IDLE + 2 * took:
                size = 0
            elif mono - last < OPEN + 2 * took:
                size = min(_MOST, max(2, size * 2))
            if len(self._size) > _KEPT:
                self._size.clear()
            self._size[key] = size, mono, charges
            return size

    def keep(self, whole: Slice) -> None:
        """Hand out the rest of this one."""
        with self._lock:
            before = self._open.get((id(whole.charges), whole.who))
            if before is not None:
                self._over.append(before)
            self._open[id(whole.charges), whole.who] = whole

    def closed(self, mono: int, generation: int) -> list[tuple[Slice, int]]:
        """Take out the slices that are over: with the permits nobody drew."""
        with self._lock:
            over = [(found, found.undrawn) for found in self._over if found.undrawn]
            for found, _ in over:
                found.undrawn = 0
            self._over.clear()
            for key, found in list(self._open.items()):
                if mono >= found.until or found.generation != generation or not found.undrawn:
                    del self._open[key]
                    if found.undrawn:
                        over.append((found, found.undrawn))
                        found.undrawn = 0
                        size, last, of = self._size.get(key, (0, 0, found.charges))
                        self._size[key] = size // 2, last, of
            return over

    @property
    def any_open(self) -> bool:
        """Whether there is one."""
        return bool(self._open or self._over)
