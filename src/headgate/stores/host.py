"""Ledgers shared by all processes of a machine, with no server: LMDB under ``$HEADGATE_HOME``."""

from __future__ import annotations

import hashlib
import os
import random
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import lmdb
import msgspec

from headgate.errors import StoreError, StoreUnavailable
from headgate.ledger.base import Ledger
from headgate.ledger.codec import pack, unpack
from headgate.ledger.limit import SECOND, Instant
from headgate.stores.blocks import BlockState, read_blocks, write_blocks
from headgate.stores.busy import BusyStore, Part
from headgate.stores.environment import Environment, boot_id
from headgate.stores.records import Grant, Snapshot, view
from headgate.stores.wake import Doorbells

__all__ = ["HostStore"]

_PATIENCE: Final = 0.25
"""Seconds to wait for the lock before the store counts as unavailable."""
_REAP: Final = SECOND // 50
"""How often a process looks for permits whose lease has ended, ns."""
_CACHED: Final = 4096
_LEDGER, _PERMIT, _NOTE, _MEMBER = b"L", b"P", b"N", b"M"
_GENERATION, _BLOCKS, _LEARNED, _REBUILT = b"!generation", b"!blocks", b"!learned", b"!rebuilt"
_FILE: Final = "blocks.json"
_DUE: Final = struct.Struct(">QQ")
_HARSH: Final = 300 * SECOND
"""Windows up to this long are taken as used up when their ledger was lost; longer ones as used by half, ns."""

_encode_held = msgspec.msgpack.Encoder().encode
_decode_held = msgspec.msgpack.Decoder(tuple[tuple[str, int], ...]).decode
_decode_blocks = msgspec.json.Decoder(list[BlockState]).decode
_decode_learned = msgspec.json.Decoder(dict[str, dict[str, tuple[int, int]]]).decode


class HostStore(BusyStore):
    """All processes of a machine share these ledgers.

    Args:
        home: the folder; made with mode 0700 if it is missing. Not on a network file system.
        patience: seconds to wait for the lock, which is held for microseconds unless its holder is stopped.
    """

    def __init__(self, home: Path, patience: float = _PATIENCE) -> None:
        super().__init__(boot_id())
        self.home = home
        self._patience = patience
        self._random = random.SystemRandom()
        self._start()

    def _start(self) -> None:
        self._pid = os.getpid()
        self._environment = Environment.of(self.home, self._patience)
        self._bells = Doorbells(self.home / "wake")
        self._numbers = random.Random(self._random.getrandbits(128))  # unlike a forked twin's
        self._depth = 0
        self._hurry = False
        self._rest()
        self._txn: Any = None
        self._dirty: dict[str, Ledger] = {}
        self._seen: dict[str, tuple[bytes, Ledger, int]] = {}
        self._reaped: dict[str, int] = {}
        self._raw_generation: bytes | None = b"?"
        self._publish = False
        self._alive = (0, 1)

    # -- transactions ----------------------------------------------------------------------------------------------

    def batch(self) -> HostStore:
        return self

    def __enter__(self) -> None:
        if self._pid != os.getpid():
            self.after_fork()
        environment = self._environment
        environment.lock.acquire()
        self._depth += 1
        if self._depth > 1:
            return
        try:
            self._txn = environment.begin(0.0 if self._hurry else None)
            self._refresh()
            self._catch_up()
        except BaseException:
            self._end(commit=False)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._depth > 1:
            self._depth -= 1
            self._environment.lock.release()
            return
        self._end(commit=error is None)
        if isinstance(error, lmdb.Error):
            raise StoreUnavailable(f"{self.home}: {error}") from error

    def _end(self, *, commit: bool) -> None:
        """Write what changed, or forget it; let go of the locks in any case."""
        txn, self._txn = self._txn, None
        try:
            if txn is None:
                return
            if not commit:
                self._environment.abort(txn)
                self._forget()
                return
            mono = time.monotonic_ns()
            try:
                for key, ledger in self._dirty.items():
                    raw = pack(ledger)
                    txn.put(_name(_LEDGER, key), raw)
                    self._seen[key] = raw, ledger, mono
            except BaseException as problem:
                self._environment.abort(txn)
                self._forget()
                raise StoreUnavailable(f"{self.home}: {problem}") from problem
            try:
                self._environment.commit(txn)
            except BaseException:
                self._forget()
                raise
            self._dirty.clear()
            self._later.arrived()
            if len(self._seen) > _CACHED:
                self._seen.clear()
        finally:
            self._depth = 0
            self._later.over()
            self._environment.lock.release()

    def _forget(self) -> None:
        """A transaction came to nothing: what was changed in memory never happened."""
        for key in self._dirty:
            self._seen.pop(key, None)
        self._dirty.clear()
        self._raw_generation = b"?"
        self._later.thrown()

    def _refresh(self) -> None:
        """Blocks and learned limits, if another process changed them."""
        raw = self._txn.get(_GENERATION)
        if raw == self._raw_generation:
            return
        first = self._raw_generation == b"?"
        states = self._txn.get(_BLOCKS)
        mono, wall = time.monotonic_ns(), time.time_ns()
        kept = _decode_blocks(states) if states else []
        if first:
            kept += [state for state in read_blocks(self.home / _FILE) if not any(state.scope == x.scope for x in kept)]
        self.blocks.load(kept, mono, wall)
        learned = self._txn.get(_LEARNED)
        self.learned = _decode_learned(learned) if learned else {}
        self._raw_generation = raw
        self._changed()

    # -- what the verbs stand on -----------------------------------------------------------------------------------

    def _open(self, key: str) -> Ledger | None:
        ledger = self._dirty.get(key)
        if ledger is not None:
            return ledger
        raw = self._txn.get(_name(_LEDGER, key))
        if raw is None:
            return None
        seen = self._seen.get(key)
        if seen is not None and seen[0] == raw:
            self._dirty[key] = seen[1]  # it may be changed from now on, so a failed transaction must drop it
            return seen[1]
        try:
            ledger = unpack(raw, seen[1].limit if seen is not None else None)
        except ValueError:
            return None
        self._dirty[key] = ledger
        return ledger

    def _keep(self, key: str, ledger: Ledger) -> None:
        self._dirty[key] = ledger

    def _fresh(self, key: str, ledger: Ledger, now: Instant) -> None:
        since = self._txn.get(_REBUILT)
        if since is None or not ledger.limit.period:
            return
        if now.mono - int(since) < ledger.limit.period:
            if ledger.limit.period <= _HARSH:
                ledger.fill(now)
            else:
                ledger.spend(ledger.limit.usable // 2, now)

    def _latest(self, key: str) -> Ledger | None:
        seen = self._seen.get(key)
        return seen[1] if seen is not None else None

    def _add(self, grant: Grant) -> None:
        if isinstance(grant, Part):
            grant.bundle = None  # from now on it has a record of its own
        held = _encode_held([(charge.key, charge.cost) for charge in grant.charges])
        self._txn.put(_permit(grant), held)

    def _drop(self, grant: Grant) -> bool:
        if not isinstance(grant, Part) or grant.bundle is None:
            return bool(self._txn.delete(_permit(grant)))
        name = _permit(grant.bundle.grant)
        raw = self._txn.get(name)
        if raw is None:
            return False
        left = [
            (key, units - charge.cost) for (key, units), charge in zip(_decode_held(raw), grant.charges, strict=True)
        ]
        if any(units > 0 for _, units in left):
            self._txn.put(name, _encode_held(left))
        else:
            self._txn.delete(name)
        return True

    def _due(self, namespace: str, mono: int) -> Iterable[tuple[int, tuple[tuple[str, int], ...]]]:
        if mono - self._reaped.get(namespace, 0) < _REAP:
            return ()
        self._reaped[namespace] = mono
        prefix = _PERMIT + _short(namespace)
        ended = []
        with self._txn.cursor() as cursor:
            found = cursor.set_range(prefix)
            while found:
                name = cursor.key()
                if not name.startswith(prefix):
                    break
                lease, _ = _DUE.unpack(name[len(prefix) :])
                if lease > mono:
                    break
                ended.append((lease, _decode_held(cursor.value())))
                found = cursor.delete()  # moves on to the next
        return ended

    def _keys(self, prefix: str) -> list[str]:
        start = _LEDGER + prefix.encode()
        keys = []
        with self._txn.cursor() as cursor:
            found = cursor.set_range(start)
            while found and cursor.key().startswith(start):
                keys.append(cursor.key()[1:].decode())
                found = cursor.next()
        return keys

    def _share(self, what: str) -> None:
        if what == "blocks":
            states = self.blocks.states()
            self._txn.put(_BLOCKS, msgspec.json.encode(states))
            write_blocks(self.home / _FILE, states)
        else:
            self._txn.put(_LEARNED, msgspec.json.encode(self.learned))
        self._raw_generation = b"%d" % (int(self._txn.get(_GENERATION) or b"0") + 1)
        self._txn.put(_GENERATION, self._raw_generation)

    def remember(self, topic: str, value: bytes | None = None) -> bytes | None:
        with self:
            name = _name(_NOTE, topic)
            before: bytes | None = self._txn.get(name)
            if value is not None:
                self._txn.put(name, value)
            return before

    def new_id(self) -> int:
        return self._numbers.getrandbits(63)

    # -- members ---------------------------------------------------------------------------------------------------

    def join(self, member: int, name: str) -> socket.socket | None:
        if self._pid != os.getpid():
            self.after_fork()
        bell = None
        try:
            bell = self._bells.hang(member)
        except OSError:  # read-only folder: nobody can wake us, the safety look remains
            pass
        try:
            with self:
                self._txn.put(_MEMBER + b"%016x" % member, name.encode())
        except StoreUnavailable:
            pass  # a name for people; not worth a failure
        return bell

    def leave(self, member: int) -> None:
        if self._pid != os.getpid():
            return  # a forked copy; its parent is still there
        self._bells.take_down(member)
        try:
            with self:
                self._txn.delete(_MEMBER + b"%016x" % member)
        except StoreUnavailable:
            pass

    def wake(self, members: Iterable[int]) -> None:
        self._bells.ring(members)

    def alive(self) -> int:
        mono = time.monotonic_ns()
        if mono - self._alive[0] > SECOND:
            self._alive = mono, max(1, len(self._bells.living()))
        return self._alive[1]

    # -- for the safe share ----------------------------------------------------------------------------------------

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """A transaction that does not wait for the lock.

        Raises:
            StoreUnavailable: somebody holds it.
        """
        with self._environment.lock:
            self._hurry = True
            try:
                with self:
                    yield
            finally:
                self._hurry = False

    # -- for others ------------------------------------------------------------------------------------------------

    def last_seen(self, key: str) -> tuple[Ledger, int] | None:
        """A ledger as it was when this process last wrote it, and that steady instant; for the safe share."""
        seen = self._seen.get(key)
        return (unpack(seen[0], seen[1].limit), seen[2]) if seen else None

    def rebuilt(self) -> str:
        """Why the ledgers were begun anew when this process opened them, or ``""``."""
        return self._environment.rebuilt

    def read(self, now: Callable[[str], Instant]) -> Snapshot:
        with self:
            found = Snapshot(blocks=self.blocks.states(), learned=self.learned)
            living = self._bells.living()
            dead = []
            with self._txn.cursor() as cursor:
                for name, value in cursor:
                    if name[:1] == _LEDGER:
                        found.ledgers.append(view(name[1:].decode(), unpack(value), now))
                    elif name[:1] == _MEMBER and int(name[1:], 16) in living:
                        found.members[int(name[1:], 16)] = value.decode()
                    elif name[:1] == _MEMBER:
                        dead.append(bytes(name))
                    elif name[:1] == _PERMIT:
                        found.permits += 1
            for name in dead:
                self._txn.delete(name)
            return found

    def after_fork(self) -> None:
        self._bells.abandon()
        self._environment.abandon()
        self._start()

    def close(self) -> None:
        if self._pid == os.getpid():
            try:
                self._close_bundles()
            except StoreError:
                pass  # it ends with the lease
            self._bells.close()


@lru_cache(_CACHED)
def _name(kind: bytes, key: str) -> bytes:
    """A record's name. LMDB allows 511 bytes: what is longer ends in a digest."""
    name = kind + key.encode()
    if len(name) > 500:
        return name[:440] + hashlib.blake2b(name, digest_size=24).hexdigest().encode()
    return name


def _permit(grant: Grant) -> bytes:
    """A permit's record: those of a provider stand together, ordered by the end of their leases."""
    return _PERMIT + _short(grant.namespace) + _DUE.pack(grant.lease, grant.id)


@lru_cache(256)
def _short(namespace: str) -> bytes:
    return hashlib.blake2b(namespace.encode(), digest_size=8).digest()
