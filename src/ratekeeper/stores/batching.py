"""Permit batches and deferred settles save store transactions for a busy process, on a host or over a network.

A *batch* is several permits of one plan that a process takes at once and hands out one by one without asking the store. A
*deferred settle* is a plain settle that a later transaction writes. Neither weakens a guarantee: permits not handed out and
settles not written stay in flight. A process takes a batch only where a limit is far from full. A batch is open for
milliseconds, a changed block or limit closes it, and its remaining permits go back.
"""

from __future__ import annotations

import _thread
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
from ratekeeper.stores.threads import Helper, Nudge, log_death
from ratekeeper.stores.verbs import LedgerStore

__all__ = ["SHARE", "Batch", "BatchPermit", "Batches", "BatchingStore", "DeferredSettles", "Ending"]

_LOG: Final = logging.getLogger("ratekeeper")
SHARE: Final = 64
"""A batch takes at most one part in this many of the free units."""
_KEPT: Final = 4096
_MOST: Final = 32
"""Most permits in a batch of a `BatchingStore`."""
_FEWEST: Final = 4
_OPEN: Final = SECOND // 200
"""How long a process hands out permits of one batch, ns. It may notice a ban that another process learned this late."""
_CLOSE: Final = SECOND // 1000
"""Transactions at most this many ns apart count as consecutive."""
_RUSH: Final = 100
"""A process with this many consecutive transactions is busy."""
_SOON: Final = 0.03
"""Pending settles are written after this many seconds at the latest."""
_EVER: Final = 1 << 62
"""A steady instant that never comes, ns."""
_SETTLED: Final = Answered()
_LATE: Final = Answered(late=True)


class Batch:
    """Permits of one plan under one record in the store.

    Attributes:
        charges: of one permit.
        record: the store's record; its lease covers all permits.
        undrawn: permits not handed out.
        left: permits whose end the store does not know yet.
        until: steady ns at which the batch closes.
        generation: the generation of the store's blocks and limits when the batch was taken.
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
    """One permit of a batch, or several that end together.

    Attributes:
        batch: the batch it came from.
        apart: whether it now has a record of its own.
        open: False once the store was told that it ended, or has it among the settles to come.
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
    """The open batches of one process, and the size of the next one.

    Args:
        opening: how long a batch hands out permits, ns.
        most: permits in a batch at most.
        new_id: draws the number of a permit.
        handed: see `Store.handed`.
    """

    def __init__(self, opening: int, most: int, new_id: Callable[[], int], handed: dict[int, Grant | None]) -> None:
        self._new_id = new_id
        self._handed = handed
        self._opening = opening
        self._most = most
        self._lock = threading.Lock()
        self._open: dict[tuple[int, Who], B] = {}
        self._replaced: list[B] = []
        self._size: dict[tuple[int, Who], tuple[int, int, tuple[Charge, ...]]] = {}

    def draw(self, charges: tuple[Charge, ...], who: Who, now: Instant, generation: int) -> BatchPermit[B] | None:
        """Hand out one more permit of the plan's open batch at `now`; None if there is no such batch."""
        mono, thread = now[0], _thread.get_ident()
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
            permit = BatchPermit(self._new_id(), found, now)
            found.undrawn -= 1
            self._handed[thread] = permit
            return permit

    def size(self, charges: tuple[Charge, ...], who: Who, mono: int, took: int = 0) -> int:
        """Return how many permits to request beyond those wanted now. The number doubles while one batch follows another.

        Args:
            charges, who: of the batch.
            mono: the present, steady ns.
            took: how long a request to the store takes, ns.
        """
        if not charges:
            return 0  # plans without charges look alike here, and a block may hold one of them
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

    def keep(self, batch: B, permit: Grant | None = None) -> None:
        """Keep this batch open and hand out its remaining permits. `permit`: its first one, which the caller gets; until now
        the whole record counts as the caller's."""
        key, thread = (id(batch.charges), batch.record.who), _thread.get_ident()
        with self._lock:
            before = self._open.get(key)
            if before is not None:
                self._replaced.append(before)
            self._open[key] = batch
            self._handed[thread] = permit

    def close(self, mono: int, generation: int) -> list[tuple[B, int]]:
        """Remove the batches that are over at `mono`, each with its number of undrawn permits."""
        with self._lock:
            over = [(batch, batch.undrawn) for batch in self._replaced if batch.undrawn]
            self._replaced.clear()
            for key, batch in list(self._open.items()):
                if mono >= batch.until or batch.generation != generation or not batch.undrawn:
                    del self._open[key]
                    if batch.undrawn:
                        over.append((batch, batch.undrawn))
                        if key in self._size:  # the batch was too large: permits came back unused
                            size, last, of = self._size[key]
                            self._size[key] = size // 2, last, of
            for batch, _ in over:
                batch.undrawn = 0
            return over

    @property
    def any_open(self) -> bool:
        """Whether any open batch has permits left."""
        return bool(self._open or self._replaced)


class Ending(NamedTuple):
    """A permit that ends with the next transaction."""

    grant: Grant
    at: Instant
    told: Settlement = AS_RESERVED


class DeferredSettles:
    """The permits of one process that end with a later transaction, and a helper thread that writes leftovers.

    Args:
        write: runs a transaction that also writes what is pending, and returns whether nothing is left; a bound method, held
            weakly.
        died: see `Helper`.
    """

    def __init__(self, write: Callable[[], bool], died: Callable[[str, BaseException], object] = log_death) -> None:
        self._write = weakref.WeakMethod(write)
        self._died = died
        self.pending: list[Ending] = []
        self._taken: list[Ending] = []
        self._poke = Nudge()
        self._thread: Helper | None = None
        self._last = self._run = 0

    def busy(self, mono: int) -> bool:
        """Whether another transaction will almost certainly follow soon."""
        return self._run > _RUSH and mono - self._last < _CLOSE

    def poke(self) -> None:
        """Ask the helper thread to write soon, in case no transaction follows."""
        self._poke.set()
        if self._thread is None or not self._thread.is_alive():
            self._thread = Helper(_write_soon, weakref.ref(self), self._poke, name="deferred settles", died=self._died)

    def take(self) -> list[Ending]:
        """Return the permits that the transaction now beginning ends."""
        self._taken = self.pending[:]
        del self.pending[: len(self._taken)]
        return self._taken

    def arrived(self) -> None:
        """The transaction was written."""
        self._taken = []

    def thrown(self) -> None:
        """The transaction failed: its permits wait for the next one."""
        waiting = set(map(id, self.pending))  # an ending that was moving between the lists stands in both
        self.pending[:0] = [ending for ending in self._taken if id(ending) not in waiting]
        self._taken = []

    def over(self) -> None:
        """A transaction ended, written or not."""
        mono = time.monotonic_ns()
        # A pause halves the run: a busy process that lost its CPU for a moment stays busy, an idle one does not.
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
            pass  # the next successful transaction writes it
        except Exception:  # noqa: BLE001 - told, and tried again
            _LOG.warning("ratekeeper: what is spent could not be written yet", exc_info=True)


def _write_soon(deferred: weakref.ref[DeferredSettles], poke: Nudge) -> None:
    """Run the helper thread."""
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
    """A shared store whose transactions are costly enough to batch."""

    def _rest(self) -> None:
        """Begin with nothing pending; also in a forked child."""
        self._deferred = DeferredSettles(self.flush, self.reporter())
        self._batches: Batches[Batch] = Batches(_OPEN, _MOST, self.new_id, self.handed)

    @abstractmethod
    def _latest(self, key: str) -> Ledger | None:
        """Return a ledger as this process last knew it. Outside a transaction, callers only read it."""

    def reserve(self, ask: Ask, now: Instant) -> Decision:
        if not ask.ahead and self._deferred.busy(now.mono):
            permit = self._batches.draw(ask.charges, ask.who, now, self.generation)
            permit = permit or self._batch(ask, now)
            if permit is not None:
                return permit
        return super().reserve(ask, now)

    def _batch(self, ask: Ask, now: Instant) -> BatchPermit[Batch] | None:
        """Take a new batch and hand out its first permit; None if no batch should be taken."""
        charges = ask.charges
        if not charges:
            return None  # plans without charges look alike here, and a block may hold one of them
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
        permit = BatchPermit(self.new_id(), batch, now)
        self._batches.keep(batch, permit)
        self._deferred.poke()
        return permit

    def settle(self, grant: Grant, now: Instant, told: Settlement = AS_RESERVED) -> Answered:
        permit = grant if isinstance(grant, BatchPermit) else None
        if permit is not None and not permit.open:
            return _LATE
        if told is AS_RESERVED and self._deferred.busy(now.mono):
            latest = [self._latest(charge.key) for charge in grant.charges]
            if all(ledger is not None and _quiet(ledger) for ledger in latest):
                ending, pending = Ending(grant, now), self._deferred.pending
                # No call stands between these lines, so no exception of a signal handler strikes there.
                pending += (ending,)
                if permit is not None:
                    permit.open = False
                self._deferred.poke()
                return _SETTLED
        return super().settle(grant, now, told)

    def hold(self, grant: Grant, until: int) -> bool:
        if isinstance(grant, BatchPermit) and not grant.open:
            return False
        return super().hold(grant, until)

    def _catch_up(self) -> None:
        """A transaction began: write what is pending, and give back the undrawn permits of closed batches."""
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
        """Close all batches and write everything."""
        self._give_back(_EVER)
        self.flush()


def _quiet(ledger: Ledger) -> bool:
    """Whether no caller waits for the ledger and none was refused lately."""
    return not (ledger.rises or ledger.trial) and ledger.floor <= ledger.limit.usable


def _together(endings: list[Ending]) -> list[Ending]:
    """Merge the settled permits of each batch into one ending."""
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
