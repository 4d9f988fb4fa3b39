"""Permit batches and deferred settles: what a process that asks without a pause is spared, on a host or over a network.

A *batch* is several permits of one plan taken at once, and handed out one by one without asking the store. A plain settle
is *deferred*: it is written with a later transaction. Neither touches a law. What is not handed out or not written yet is in
flight, a batch is taken only where a limit is far from full, it is open for milliseconds, a changed block or limit closes it,
and what is left of it comes back.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from abc import abstractmethod
from collections.abc import Callable
from typing import Final, Generic, NamedTuple, TypeVar

from ratekeeper.errors import StoreError
from ratekeeper.ledger.base import Ledger
from ratekeeper.ledger.limit import SECOND, Charge, Instant
from ratekeeper.ledger.shares import Who
from ratekeeper.stores.records import AS_RESERVED, UNSENT, Answered, Ask, Decision, Grant, Settlement
from ratekeeper.stores.verbs import LedgerStore
from ratekeeper.stores.worker import Helper, Nudge

__all__ = ["SHARE", "Batch", "BatchPermit", "Batches", "BatchingStore", "DeferredSettles", "Ending"]

_LOG: Final = logging.getLogger("ratekeeper")
SHARE: Final = 64
"""A batch takes at most this part of what is free."""
_KEPT: Final = 4096
_MOST: Final = 32
"""Permits in a batch of a `BatchingStore` at most."""
_FEWEST: Final = 4
_OPEN: Final = SECOND // 200
"""How long they are handed out of it, ns. So late may a process notice a ban that another one learned."""
_CLOSE: Final = SECOND // 1000
"""Transactions that follow within this many ns are close on each other."""
_RUSH: Final = 100
"""So many of them make a busy process."""
_SOON: Final = 0.03
"""Seconds after which what is pending is written in any case."""
_EVER: Final = 1 << 62
"""A steady instant that never comes, ns."""
_SETTLED: Final = Answered()


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
    """One permit out of a batch, or several that end together.

    Attributes:
        batch: where it is from.
        apart: whether it has a record of its own by now.
        open: False once its end was told to the store.
    """

    __slots__ = ("apart", "batch", "open")

    def __init__(self, id: int, batch: B, sent: Instant, permits: int = 1) -> None:  # noqa: A002 - as in Grant
        record = batch.record
        charges = batch.charges if permits == 1 else _times(batch.charges, permits)
        super().__init__(id, record.namespace, charges, record.marks, sent, record.who, record.lease)
        self.batch = batch
        self.apart = False
        self.open = True


def _times(charges: tuple[Charge, ...], permits: int) -> tuple[Charge, ...]:
    return tuple([Charge(key, limit, cost * permits) for key, limit, cost in charges])


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


class Ending(NamedTuple):
    """A permit that ends with the next transaction."""

    grant: Grant
    at: Instant
    told: Settlement = AS_RESERVED


class DeferredSettles:
    """The permits of one process that end with a later transaction, and a helper thread that sees to what is left.

    Args:
        write: runs a transaction that takes along what is pending, and tells whether nothing is left; a bound method,
            held weakly.
    """

    def __init__(self, write: Callable[[], bool]) -> None:
        self._write = weakref.WeakMethod(write)
        self.pending: list[Ending] = []
        self._taken: list[Ending] = []
        self._poke = Nudge()
        self._thread: Helper | None = None
        self._last = self._run = 0

    def busy(self, mono: int) -> bool:
        """Whether another transaction is surely about to follow."""
        return self._run > _RUSH and mono - self._last < _CLOSE

    def poke(self) -> None:
        """There is something to write soon, should no transaction come along."""
        self._poke.set()
        if self._thread is None or not self._thread.is_alive():
            self._thread = Helper(_write_soon, weakref.ref(self), self._poke)

    def take(self) -> list[Ending]:
        """What the transaction that has just begun should end."""
        self._taken = self.pending[:]
        del self.pending[: len(self._taken)]
        return self._taken

    def arrived(self) -> None:
        """The transaction was written."""
        self._taken = []

    def thrown(self) -> None:
        """The transaction came to nothing: what it took waits for the next."""
        waiting = set(map(id, self.pending))  # one that was on its way from one list to the other stands in both
        self.pending[:0] = [ending for ending in self._taken if id(ending) not in waiting]
        self._taken = []

    def over(self) -> None:
        """A transaction is over, whatever became of it."""
        mono = time.monotonic_ns()
        # A pause halves the run: a busy process that lost its processor for a moment is still busy, an idle one is not.
        self._run = min(self._run + 1, 4 * _RUSH) if mono - self._last < _CLOSE else self._run // 2
        self._last = mono

    def write(self) -> None:
        """Write what is pending, unless transactions still follow each other."""
        if time.monotonic_ns() - self._last < _CLOSE:
            self._poke.set()
            return
        transaction = self._write()
        try:
            if transaction is not None and not transaction():
                self._poke.set()
        except StoreError:
            pass  # the next transaction that works takes it along
        except Exception:  # noqa: BLE001 - told, and tried again
            _LOG.warning("ratekeeper: what is spent could not be written yet", exc_info=True)


def _write_soon(deferred: weakref.ref[DeferredSettles], poke: Nudge) -> None:
    """The helper thread."""
    while True:
        poked = poke.wait(timeout=60.0)
        if poked:
            time.sleep(_SOON)
        here = deferred()
        if here is None:
            return
        if poked:
            here.write()
        del here


class BatchingStore(LedgerStore):
    """A store shared by processes, each transaction of which costs something."""

    def _rest(self) -> None:
        """Begin with nothing pending; also in a forked child."""
        self._deferred = DeferredSettles(self.flush)
        self._batches: Batches[Batch] = Batches(_OPEN, _MOST)

    @abstractmethod
    def _latest(self, key: str) -> Ledger | None:
        """A ledger as this process last knew it; outside a transaction, to be read only."""

    def reserve(self, ask: Ask, now: Instant) -> Decision:
        if not ask.ahead and self._deferred.busy(now.mono):
            batch = self._batches.draw(ask.charges, ask.who, now.mono, self.generation) or self._batch(ask, now)
            if batch is not None:
                return BatchPermit(self.new_id(), batch, now)
        return super().reserve(ask, now)

    def _batch(self, ask: Ask, now: Instant) -> Batch | None:
        """A new batch, one permit of which is handed out; None if none should be taken."""
        charges = ask.charges
        if not charges:
            return None  # plans that charge nothing cannot be told apart here, and a block may hold one of them
        permits = _MOST
        for charge in charges:
            ledger = self._latest(charge.key)
            if ledger is None or not _quiet(ledger):
                return None
            if charge.cost:
                permits = min(permits, ledger.room // (SHARE * charge.cost))
        if permits < _FEWEST:
            return None
        got = super().reserve(ask._replace(charges=_times(charges, permits), backlog=None), now)
        if not isinstance(got, Grant):
            return None
        batch = Batch(charges, got, permits, got.sent.mono + _OPEN, self.generation)
        batch.undrawn -= 1
        self._batches.keep(batch)
        self._deferred.poke()
        return batch

    def settle(self, grant: Grant, now: Instant, told: Settlement = AS_RESERVED) -> Answered:
        if told is AS_RESERVED and self._deferred.busy(now.mono):
            latest = [self._latest(charge.key) for charge in grant.charges]
            if all(ledger is not None and _quiet(ledger) for ledger in latest):
                self._deferred.pending.append(Ending(grant, now))
                self._deferred.poke()
                return _SETTLED
        return super().settle(grant, now, told)

    def _catch_up(self) -> None:
        """A transaction has begun: write what is pending, and give back what closed batches did not hand out."""
        if self._batches.any_open:
            self._give_back(time.monotonic_ns())
        if self._deferred.pending:
            for ending in _together(self._deferred.take()):
                super().settle(*ending)

    def _give_back(self, mono: int) -> None:
        for batch, undrawn in self._batches.close(mono, self.generation):
            rest: BatchPermit[Batch] = BatchPermit(0, batch, batch.record.sent, undrawn)
            self._deferred.pending.append(Ending(rest, rest.sent, UNSENT))

    def flush(self) -> bool:
        """Write what is pending; True if nothing is left open."""
        if self._deferred.pending or self._batches.any_open:
            self.transact(lambda: None)
        return not self._batches.any_open

    def _close_batches(self) -> None:
        """Hand nothing out any more, and write everything."""
        self._give_back(_EVER)
        self.flush()


def _quiet(ledger: Ledger) -> bool:
    """Whether nobody waits for it, or was refused lately."""
    return not (ledger.rises or ledger.trial) and ledger.floor <= ledger.limit.usable


def _together(endings: list[Ending]) -> list[Ending]:
    """The same, but settled permits of one batch as one."""
    alone: list[Ending] = []
    permits: dict[Batch, list[Ending]] = {}
    for ending in endings:
        grant = ending.grant
        if ending.told.sent and isinstance(grant, BatchPermit) and not grant.apart:
            permits.setdefault(grant.batch, []).append(ending)
        else:
            alone.append(ending)
    return alone + [
        Ending(BatchPermit(0, batch, batch.record.sent, len(of)), max(ending.at for ending in of))
        for batch, of in permits.items()
    ]
