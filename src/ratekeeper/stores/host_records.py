"""How an LMDB transaction stores ledgers, permits and notes: one record each."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Final

from ratekeeper.ledger.base import Ledger
from ratekeeper.ledger.codec import pack, unpack
from ratekeeper.ledger.limit import SECOND
from ratekeeper.stores import encoding
from ratekeeper.stores.batching import BatchingStore, BatchPermit
from ratekeeper.stores.encoding import due, meant, permit_name, permits_of, read_or, record_name
from ratekeeper.stores.records import NOTHING, Grant

__all__ = ["RecordStore"]

_REAP: Final = SECOND // 50
"""How often a process looks for permits whose lease has ended, ns."""
_CACHED: Final = 4096
_NOTHING_HELD: Final[tuple[tuple[str, int], ...]] = ()


class RecordStore(BatchingStore):
    """A store of records. It works inside a transaction that a subclass has begun."""

    def _start(self) -> None:
        """Begin with nothing known; also in a forked child."""
        self._rest()
        self._txn: Any = None
        """The transaction; None outside of one."""
        self._dirty: dict[str, Ledger] = {}
        """Ledgers that the transaction changed, by key."""
        self._seen: dict[str, tuple[bytes, Ledger]] = {}
        """Ledgers as last written or read: the record and its decoded ledger."""
        self._dropped: list[tuple[Grant, int, bool]] = []
        """Permits that the transaction took out: their lease before, and whether they had a record of their own."""
        self._reaped: dict[str, int] = {}
        self._held_early: dict[int, bool] = {}
        """Marks of offline processes whose shares are not held of every ledger yet, and whether they live."""

    def _arrived(self) -> None:
        """The transaction was written."""
        self._dirty.clear()
        for grant, _, _ in self._dropped:
            if isinstance(grant, BatchPermit):
                grant.open = grant.apart
        self._dropped = []
        self._deferred.arrived()
        if len(self._seen) > _CACHED:
            self._seen.clear()

    def _forget(self) -> None:
        """The transaction failed: discard the changes made in memory."""
        for key in self._dirty:
            self._seen.pop(key, None)
        self._dirty.clear()
        for grant, lease, apart in self._dropped:
            grant.lease = lease
            if isinstance(grant, BatchPermit):
                grant.apart = apart
        self._dropped = []
        self._deferred.thrown()

    # -- ledgers -------------------------------------------------------------------------------------------------------

    def _open(self, key: str) -> Ledger | None:
        ledger = self._dirty.get(key)
        if ledger is not None:
            return ledger
        raw = self._txn.get(record_name(encoding.LEDGER, key))
        if raw is None:
            return None
        seen = self._seen.get(key)
        if seen is not None and seen[0] == raw:
            self._dirty[key] = seen[1]  # the caller may change it now, so a failed transaction must drop it
            if self._held_early:
                self._hold_one(key, seen[1])
            return seen[1]
        mono = time.monotonic_ns()
        ledger = read_or(None, partial(unpack, limit=seen[1].limit if seen is not None else None), raw)
        if ledger is None or not meant(ledger, mono):  # lost, as after a rebuild
            self._txn.put(encoding.REBUILT, b"%d" % mono)
            return None
        self._dirty[key] = ledger
        if self._held_early:
            self._hold_one(key, ledger)
        return ledger

    def _has(self, key: str) -> bool:
        return key in self._dirty or self._txn.get(record_name(encoding.LEDGER, key)) is not None

    def _keep(self, key: str, ledger: Ledger) -> None:
        self._dirty[key] = ledger

    def _write(self, txn: Any) -> None:
        for key, ledger in self._dirty.items():
            raw = pack(ledger)
            txn.put(record_name(encoding.LEDGER, key), raw)
            self._seen[key] = raw, ledger

    def _latest(self, key: str) -> Ledger | None:
        seen = self._seen.get(key)
        return seen[1] if seen is not None else None

    def _records(self, prefix: bytes) -> list[tuple[bytes, bytes]]:
        """Return the records with this prefix."""
        found = []
        with self._txn.cursor() as cursor:
            more = cursor.set_range(prefix)
            while more and cursor.key().startswith(prefix):
                found.append((cursor.key(), cursor.value()))
                more = cursor.next()
        return found

    # -- permits -------------------------------------------------------------------------------------------------------

    def _add(self, grant: Grant) -> None:
        if isinstance(grant, BatchPermit):
            grant.apart = True
        held = encoding.encode([(charge.key, charge.cost) for charge in grant.charges])
        self._txn.put(permit_name(grant.namespace, grant.lease, grant.id, grant.who[0]), held)

    def _drop(self, grant: Grant) -> bool:
        self._dropped.append((grant, grant.lease, not isinstance(grant, BatchPermit) or grant.apart))
        if not isinstance(grant, BatchPermit) or grant.apart:
            return bool(self._txn.delete(permit_name(grant.namespace, grant.lease, grant.id, grant.who[0])))
        record = grant.batch.record
        name = permit_name(record.namespace, record.lease, record.id, record.who[0])
        raw = self._txn.get(name)
        if raw is None:
            return False
        held = read_or(_NOTHING_HELD, encoding.decode_held, raw)
        if [key for key, _ in held] != [charge.key for charge in grant.charges]:
            self._txn.delete(name)
            self._recount(grant.namespace)
            return False
        left = [(key, units - charge.cost) for (key, units), charge in zip(held, grant.charges, strict=True)]
        if any(units > 0 for _, units in left):
            self._txn.put(name, encoding.encode(left))
        else:
            self._txn.delete(name)
        return True

    def _due(self, namespace: str, mono: int) -> Iterable[tuple[int, tuple[tuple[str, int], ...]]]:
        if mono - self._reaped.get(namespace, 0) < _REAP:
            return ()
        self._reaped[namespace] = mono
        prefix = permits_of(namespace)
        ended: list[tuple[int, tuple[tuple[str, int], ...]]] = []
        garbled = False
        with self._txn.cursor() as cursor:
            found = cursor.set_range(prefix)
            while found:
                name = cursor.key()
                if not name.startswith(prefix):
                    break
                lease, _, _ = due(name)
                if lease > mono:
                    break
                held = read_or(None, encoding.decode_held, cursor.value())
                found = cursor.delete()  # the cursor moves on to the next
                if held is None or not self._in_flight(held):
                    garbled = True
                else:
                    ended.append((lease, held))
        if garbled:
            self._recount(namespace, {key: units for _, held in ended for key, units in held})
        return ended

    def _in_flight(self, held: tuple[tuple[str, int], ...]) -> bool:
        """Whether the units that a permit claims to hold can be in flight."""
        for key, units in held:
            ledger = self._open(key)
            if ledger is not None and not 0 <= units <= ledger.inflight:
                return False
        return True

    def _recount(self, namespace: str, kept: Mapping[str, int] = NOTHING) -> None:
        """A permit's record was garbled: count as spent the units in flight that no other permit holds."""
        held = dict(kept)
        prefix = permits_of(namespace)
        with self._txn.cursor() as cursor:
            found = cursor.set_range(prefix)
            while found and cursor.key().startswith(prefix):
                for key, units in read_or(_NOTHING_HELD, encoding.decode_held, cursor.value()):
                    held[key] = held.get(key, 0) + max(0, units)
                found = cursor.next()
        mono = time.monotonic_ns()
        for key in self._keys(f"{namespace}/"):
            ledger = self._open(key)
            if ledger is not None and ledger.inflight > held.get(key, 0):
                ledger.recount(held.get(key, 0), mono)

    def _keys(self, prefix: str, after: str = "", most: int = 1 << 62) -> list[str]:
        self._write(self._txn)  # some may have begun in this transaction
        start = encoding.LEDGER + prefix.encode()
        keys: list[str] = []
        with self._txn.cursor() as cursor:
            found = cursor.set_range(encoding.LEDGER + after.encode() + b"\0" if after else start)
            while found and cursor.key().startswith(start) and len(keys) < most:
                keys.append(cursor.key()[1:].decode())
                found = cursor.next()
        return keys

    @abstractmethod
    def _hold_one(self, key: str, ledger: Ledger) -> None:
        """Hold the shares of the offline processes in `_held_early` of a ledger that is used."""

    # -- notes ---------------------------------------------------------------------------------------------------------

    def _note(self, topic: str) -> bytes | None:
        raw: bytes | None = self._txn.get(record_name(encoding.NOTE, topic))
        return raw

    def _note_down(self, topic: str, raw: bytes | None) -> None:
        name = record_name(encoding.NOTE, topic)
        if raw is None:
            self._txn.delete(name)
        else:
            self._txn.put(name, raw)
