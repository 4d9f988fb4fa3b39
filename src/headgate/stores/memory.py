"""Ledgers in this process only: for tests, for single programs, and as the safe share when a shared store breaks."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable
from contextlib import AbstractContextManager

from headgate.ledger.base import Ledger
from headgate.stores.base import Grant, LedgerView, Snapshot, Store

__all__ = ["MemoryStore"]


class MemoryStore(Store):
    """A store in memory. Several gates of one process may share it; other processes do not see it."""

    def __init__(self) -> None:
        super().__init__()
        self.members: dict[int, str] = {}
        self._lock = threading.RLock()
        self._ledgers: dict[str, Ledger] = {}
        self._grants: dict[int, Grant] = {}
        self._notes: dict[str, bytes] = {}
        self._next_due = 1 << 62
        self._random = random.Random()  # its own: a program that seeds the global one must not repeat our numbers

    def new_id(self) -> int:
        return self._random.getrandbits(63)

    def batch(self) -> AbstractContextManager[object]:
        return self._lock

    def _open(self, key: str) -> Ledger | None:
        return self._ledgers.get(key)

    def _keep(self, key: str, ledger: Ledger) -> None:
        self._ledgers[key] = ledger

    def _add(self, grant: Grant) -> None:
        self._grants[grant.id] = grant
        if grant.lease < self._next_due:
            self._next_due = grant.lease

    def _drop(self, grant: Grant) -> bool:
        return self._grants.pop(grant.id, None) is not None

    def _due(self, namespace: str, mono: int) -> Iterable[tuple[int, tuple[tuple[str, int], ...]]]:
        if mono < self._next_due:
            return ()
        ended = [g for g in self._grants.values() if g.lease <= mono and g.namespace == namespace]
        for grant in ended:
            del self._grants[grant.id]
        self._next_due = min((g.lease for g in self._grants.values()), default=1 << 62)
        return [(g.lease, tuple((charge.key, charge.cost) for charge in g.charges)) for g in ended]

    def _keys(self, prefix: str) -> list[str]:
        return [key for key in self._ledgers if key.startswith(prefix)]

    def _share(self, what: str) -> None:
        pass

    def remember(self, topic: str, value: bytes | None = None) -> bytes | None:
        with self._lock:
            before = self._notes.get(topic)
            if value is not None:
                self._notes[topic] = value
            return before

    def join(self, member: int, name: str) -> None:
        self.members[member] = name

    def leave(self, member: int) -> None:
        self.members.pop(member, None)

    def after_fork(self) -> None:
        self._lock = threading.RLock()
        self._random = random.Random()

    def read(self, mono: int, wall: int) -> Snapshot:
        with self._lock:
            return Snapshot(
                ledgers=[view(key, ledger) for key, ledger in self._ledgers.items()],
                blocks=self.blocks.states(),
                learned={k: dict(v) for k, v in self.learned.items()},
                members=dict(self.members),
                permits=len(self._grants),
            )

    def close(self) -> None:
        pass


def view(key: str, ledger: Ledger) -> LedgerView:
    """A ledger as people see it."""
    return LedgerView(
        key=key,
        limit=ledger.limit,
        used=ledger.used,
        inflight=ledger.inflight,
        room=ledger.room,
        foreign=getattr(ledger, "foreign", 0),
        expected=getattr(ledger, "expected", 0),
        rows={who: list(row) for who, row in ledger.rows.items()},
        turn=ledger.turn,
        era=ledger.era,
    )
