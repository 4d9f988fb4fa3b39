"""The memory store: ledgers in this process only, for tests, single programs, and the share when a shared store fails."""

from __future__ import annotations

import _thread
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

from ratekeeper.ledger.base import Ledger
from ratekeeper.ledger.codec import pack, unpack
from ratekeeper.ledger.limit import Charge, Instant
from ratekeeper.stores.records import AS_RESERVED, FEW, Answered, Ask, Decision, Grant, Settlement, Snapshot, view
from ratekeeper.stores.verbs import LedgerStore

__all__ = ["MemoryStore"]

T = TypeVar("T")
_Pairs = tuple[tuple[Charge, ...], list[tuple[Ledger, int]]]
_CACHED: Final = 4096
_EACH: Final = 4
"""Ledgers looked at for each one that begins, so that those at rest never make up more than part of the store."""
_PAGE: Final = 512
"""Ledgers read under the lock at once, for people."""
_SETTLED: Final = Answered()
_LATE: Final = Answered(late=True)


class MemoryStore(LedgerStore):
    """A store in memory. Several gates of one process may share it; other processes do not see it."""

    def __init__(self) -> None:
        super().__init__()
        self.members: dict[int, str] = {}
        self.former: dict[int, str] = {}
        self._lock = threading.RLock()
        self._torn = False
        self._added: list[int] = []
        """The permits that the transaction under way has added."""
        self._ending = False
        """Whether the transaction under way has ended a permit."""
        self._ledgers: dict[str, Ledger] = {}
        self._grants: dict[int, Grant] = {}
        self._notes: dict[str, bytes] = {}
        self._until: dict[str, int] = {}
        """When notes may go, steady ns."""
        self._unseen: list[str] = []
        """Keys of ledgers at which this round of collecting has still to look."""
        self._next_due = 1 << 62
        self._pairs: dict[int, _Pairs] = {}
        self._ids: Iterator[int] = itertools.count(1)

    def new_id(self) -> int:
        return next(self._ids)

    # -- the fast path ---------------------------------------------------------------------------------------------
    # Fast path: no block is in force, no lease has ended, every ledger is in its window and far from full. Then `reserve` and
    # `settle` are a few additions. Everything else takes the general path. Both use the ledgers' own arithmetic.

    def reserve(self, ask: Ask, now: Instant) -> Decision:
        namespace, charges, _, who, _, _, ahead, lease, _, _ = ask
        mono, priority = now[0], who[1]
        thread = _thread.get_ident()
        with self._lock:
            known = self._pairs.get(id(charges))
            if (
                known is not None
                and known[0] is charges
                and mono < self._next_due
                and not (ahead or self.blocks.kept or self._torn)
            ):
                pairs = known[1]
                for ledger, cost in pairs:
                    if mono >= ledger.turn or ledger.room - cost < ledger.floor or priority > ledger.calm:
                        break
                else:
                    try:
                        marks = []
                        for ledger, cost in pairs:
                            ledger.take(cost, who, now)
                            marks.append(ledger.tally)
                        number, ends = next(self._ids), mono + lease
                        grant = Grant(number, namespace, charges, marks, now, who, ends)
                        if ends < self._next_due:
                            self._next_due = ends
                        self._grants[number] = self.handed[thread] = grant
                        return grant
                    except BaseException:
                        self._mend(spent=False)
                        raise
        got = super().reserve(ask, now)
        if known is None and isinstance(got, Grant):
            with self._lock:
                if len(self._pairs) > _CACHED:
                    self._pairs.clear()
                self._pairs[id(charges)] = charges, [(self._ledgers[c.key], c.cost) for c in charges]
        return got

    def settle(self, grant: Grant, now: Instant, told: Settlement = AS_RESERVED) -> Answered:
        with self._lock:
            known = self._pairs.get(id(grant.charges))
            if known is not None and known[0] is grant.charges and told is AS_RESERVED and not self._torn:
                pairs, mono = known[1], now[0]
                for ledger, _ in pairs:
                    if mono >= ledger.turn or ledger.trial or ledger.rises:
                        break
                else:
                    try:
                        if self._grants.pop(grant.id, None) is None:
                            return _LATE
                        for ledger, cost in pairs:
                            ledger.settle(cost, cost, now)
                        return _SETTLED
                    except BaseException:
                        self._mend()
                        raise
        return super().settle(grant, now, told)

    def _changed(self) -> None:
        super()._changed()
        self._pairs.clear()

    # -- primitives of the verbs -----------------------------------------------------------------------------------

    def transact(self, work: Callable[[], T]) -> T:
        inside = self._lock._is_owned()  # type: ignore[attr-defined]
        with self._lock:
            if inside:
                return work()
            if self._torn:
                self._mend()
            self._added, self._ending = [], False
            try:
                return work()
            except BaseException:
                if not self._ending:
                    for number in self._added:
                        self._grants.pop(number, None)
                self._mend(spent=self._ending)
                raise

    def _mend(self, *, spent: bool = True) -> None:
        """Repair the ledgers after an exception that may have struck inside a verb, because a signal handler may raise one
        anywhere. The permits state what is in flight. What a ledger holds beyond them was being given back, and counts as
        spent; not `spent`: it was being taken, and nobody got it."""
        self._torn = True
        held: dict[str, int] = {}
        for grant in self._grants.values():
            for charge in grant.charges:
                held[charge.key] = held.get(charge.key, 0) + charge.cost
        mono = time.monotonic_ns()
        for key, torn in list(self._ledgers.items()):
            ledger = unpack(pack(torn), torn.limit)  # recomputes the derived numbers
            ledger.recount(held.get(key, 0), mono, spent=spent)
            self._ledgers[key] = ledger
        self._next_due = min((grant.lease for grant in self._grants.values()), default=1 << 62)
        self._pairs.clear()
        self._torn = False

    def _open(self, key: str) -> Ledger | None:
        return self._ledgers.get(key)

    def _keep(self, key: str, ledger: Ledger) -> None:
        old = self._ledgers.get(key)
        if old is not ledger:
            if old is not None:
                self._pairs.clear()
            self._ledgers[key] = ledger
            if old is None and len(self._ledgers) + len(self._until) > FEW:
                self._collect()

    def _add(self, grant: Grant) -> None:
        self._added.append(grant.id)
        self._grants[grant.id] = grant
        if grant.lease < self._next_due:
            self._next_due = grant.lease

    def _drop(self, grant: Grant) -> bool:
        self._ending = True
        return self._grants.pop(grant.id, None) is not None

    def _due(self, namespace: str, mono: int) -> Iterable[tuple[int, tuple[tuple[str, int], ...]]]:
        if mono < self._next_due:
            return ()
        ended = [g for g in self._grants.values() if g.lease <= mono and g.namespace == namespace]
        self._ending = self._ending or bool(ended)
        for grant in ended:
            del self._grants[grant.id]
        self._next_due = min((g.lease for g in self._grants.values()), default=1 << 62)
        return [(g.lease, tuple((charge.key, charge.cost) for charge in g.charges)) for g in ended]

    def _keys(self, prefix: str) -> list[str]:
        return [key for key in self._ledgers if key.startswith(prefix)]

    def _share(self, what: str) -> None:
        pass

    def _note(self, topic: str) -> bytes | None:
        return self._notes.get(topic)

    def _note_down(self, topic: str, raw: bytes | None) -> None:
        if raw is None:
            self._notes.pop(topic, None)
        else:
            self._notes[topic] = raw

    def _keep_until(self, topic: str, until: int) -> None:
        self._until[topic] = until

    def _collect(self) -> None:
        """Look at a few ledgers, and forget those at rest; after each round, the notes and the names that no one needs."""
        mono = time.monotonic_ns()
        for _ in range(_EACH):
            if not self._unseen:
                self._end_round(mono)
            key = self._unseen.pop()
            ledger = self._ledgers.get(key)
            if ledger is not None and ledger.rests_at() <= mono:
                self._pairs.clear()  # it holds ledgers
                del self._ledgers[key]

    def _end_round(self, mono: int) -> None:
        for topic in [topic for topic, until in self._until.items() if until <= mono]:
            del self._until[topic]
            self._notes.pop(topic, None)
        self._forget_names()
        self._unseen = list(self._ledgers)

    def join(self, member: int, name: str) -> None:
        self.members[member] = name

    def leave(self, member: int) -> None:
        name = self.members.pop(member, None)
        if name is not None:
            self.former[member] = name
        if len(self.former) > FEW:
            self._forget_names()

    def _forget_names(self) -> None:
        if self.former:
            with self._lock:
                mentioned = {member for ledger in self._ledgers.values() for member, _ in ledger.rows}
            self.former = {member: name for member, name in self.former.items() if member in mentioned}

    def after_fork(self) -> None:
        self._lock = threading.RLock()

    def read(self, now: Callable[[str], Instant]) -> Snapshot:
        found = Snapshot()
        with self._lock:
            keys = list(self._ledgers)
        keys.sort()
        for first in range(0, len(keys), _PAGE):
            page = keys[first : first + _PAGE]
            with self._lock:
                copies = [(key, pack(ledger), ledger.limit) for key in page if (ledger := self._ledgers.get(key))]
            for key, raw, limit in copies:
                ledger = unpack(raw, limit)
                if len(keys) <= FEW or ledger.rests_at() > time.monotonic_ns():
                    found.ledgers.append(view(key, ledger, now(key.partition("/")[0])))
        with self._lock:
            found.blocks, found.learned = self.blocks.states(), {k: dict(v) for k, v in self.learned.items()}
            found.members, found.permits = dict(self.members), len(self._grants)
            found.former = dict(self.former)
        return found
