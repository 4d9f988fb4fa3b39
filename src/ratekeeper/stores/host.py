"""The host store: all processes of a machine share ledgers in LMDB in the state folder."""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import lmdb
import msgspec

from ratekeeper.errors import StoreError, StoreUnavailable
from ratekeeper.ledger.base import Ledger
from ratekeeper.ledger.codec import unpack
from ratekeeper.ledger.limit import SECOND, Instant
from ratekeeper.stores import encoding
from ratekeeper.stores.base import SharedStore
from ratekeeper.stores.blocks import read_blocks, write_blocks
from ratekeeper.stores.encoding import (
    meant,
    meant_blocks,
    meant_learned,
    permit_name,
    read_or,
    record_name,
)
from ratekeeper.stores.environment import Environment, boot_id
from ratekeeper.stores.host_records import RecordStore
from ratekeeper.stores.members import OfflineMarks, WakeSockets
from ratekeeper.stores.records import LEASE, Grant, Snapshot, forget, view
from ratekeeper.stores.threads import release
from ratekeeper.stores.verbs import whole

if TYPE_CHECKING:
    from ratekeeper.stores.responses import ResponseStorage

__all__ = ["HostStore"]

T = TypeVar("T")

_PATIENCE: Final = 0.25
"""Seconds to wait for the lock before the store counts as unavailable."""
_FILE: Final = "blocks.json"


class HostStore(RecordStore, SharedStore):
    """Ledgers that all processes of a machine share.

    Args:
        home: the folder; created with mode 0700 if missing. Not on a network file system.
        patience: seconds to wait for the lock. It is held for microseconds unless its owner is stopped.
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
        self._sockets = WakeSockets(self.home / "wake")
        self._offline = OfflineMarks(self.home / "absent")
        self._numbers = random.Random(self._random.getrandbits(128))  # a forked twin draws other numbers
        self._hurry = False
        super()._start()
        self._raw_generation: bytes | None = b"?"
        self._stated = self.learned  # the value last written
        self._alive = (0, 1)

    # -- transactions ----------------------------------------------------------------------------------------------

    def transact(self, work: Callable[[], T]) -> T:
        if self._pid != os.getpid():
            self.after_fork()
        environment = self._environment
        # The lock tells whether we are inside a transaction, because the interpreter itself releases it. All other state may
        # be left over from an exception that a signal handler raised at the worst moment.
        inside = environment.lock._is_owned()  # type: ignore[attr-defined]
        with environment.lock:
            if inside and environment.open:
                if self._txn is None:
                    raise StoreUnavailable(
                        f"{self.home}: this thread is in the middle of a transaction of another gate"
                    )
                return work()
            if self._txn is not None or environment.open:
                environment.abort()
                self._forget()
            try:
                self._txn = environment.begin(0.0 if self._hurry else None)
                self._refresh()
                self._catch_up()
                if environment.looked:
                    self._leave_to_offline()
                result = work()
                self._write(self._txn)
                environment.commit()
                self._arrived()
                self._stated = self.learned
                return result
            except BaseException as error:
                if environment.abort(error):
                    self._arrived()
                    self._stated = self.learned
                else:
                    self._forget()
                if isinstance(error, lmdb.Error):
                    raise StoreUnavailable(f"{self.home}: {error}") from error
                raise
            finally:
                self._txn = None
                self._deferred.over()

    def _forget(self) -> None:
        super()._forget()
        self._raw_generation = b"?"

    def _refresh(self) -> None:
        """Reload blocks and learned limits if another process changed them."""
        raw = self._txn.get(encoding.GENERATION)
        if raw == self._raw_generation:
            return
        if raw is None:  # a new store, perhaps after a loss: keep the known bans
            self.learned = self._stated
            self.recall()
            if self.blocks:
                self._share("blocks")
            if self.learned:
                self._share("learned")
            self._raw_generation = self._txn.get(encoding.GENERATION)
        else:
            self._read_blocks(self._txn.get(encoding.BLOCKS))
            self._read_learned(self._txn.get(encoding.LEARNED))
            self._raw_generation = self._txn.get(encoding.GENERATION)
        self._stated = self.learned
        self._changed()

    def _read_blocks(self, raw: bytes | None) -> None:
        """Load the blocks from the record. Rewrite a garbled one from the synced file and from what this process knows."""
        states = read_or(None, encoding.decode_blocks, raw or b"[]")
        if states is None:
            self.recall()
            self._share("blocks")
        else:
            self.blocks.load(meant_blocks(states), time.monotonic_ns(), time.time_ns())
            if len(meant_blocks(states)) < len(states) or not states:
                self.recall()

    def _read_learned(self, raw: bytes | None) -> None:
        """Load the stated limits from the record. Replace garbled ones by those known here; the next first contact asks the
        provider again."""
        stated = read_or(None, encoding.decode_learned, raw or b"{}")
        self.learned = self._stated if stated is None else meant_learned(stated)
        if stated is None or self.learned != stated:
            contacts = encoding.NOTE + b"contact:"
            with self._txn.cursor() as cursor:
                found = cursor.set_range(contacts)
                while found and cursor.key().startswith(contacts):
                    found = cursor.delete()
            self._share("learned")

    def recall(self) -> None:
        """Add the blocks of the synced file as well; needs no transaction."""
        known = self.blocks.states()
        kept = [state for state in read_blocks(self.home / _FILE) if state not in known]
        if kept:
            self.blocks.load([*kept, *known], time.monotonic_ns(), time.time_ns())
            self._changed()

    def publish(self) -> None:
        """Write the known blocks into the synced file, without a transaction, so that offline processes see them too."""
        self.recall()
        try:
            write_blocks(self.home / _FILE, self.blocks.states())
        except StoreUnavailable:
            pass  # where nothing can be written, no other process can be told

    # -- primitives of the verbs -----------------------------------------------------------------------------------

    def _fresh(self, key: str, ledger: Ledger, now: Instant) -> None:
        since = self._txn.get(encoding.REBUILT)
        if since is None or not ledger.limit.period:
            return
        mono = time.monotonic_ns()
        at = int(since) if since.isdigit() and len(since) < 20 else mono + 1
        if at > mono:  # garbled: the ledgers may just have been lost
            self._txn.put(encoding.REBUILT, b"%d" % mono)
            at = mono
        if now.mono - at < ledger.limit.period:
            forget(ledger, now)

    def _share(self, what: str) -> None:
        if what == "blocks":
            states = self.blocks.states()
            self._txn.put(encoding.BLOCKS, msgspec.json.encode(states))
            write_blocks(self.home / _FILE, states)
        else:
            self._txn.put(encoding.LEARNED, msgspec.json.encode(self.learned))
        self._raw_generation = b"%x" % self.new_id()  # unlike any generation seen before, even after a lost store
        self._txn.put(encoding.GENERATION, self._raw_generation)

    def new_id(self) -> int:
        return self._numbers.getrandbits(63)

    # -- members ---------------------------------------------------------------------------------------------------

    def join(self, member: int, name: str) -> socket.socket | None:
        if self._pid != os.getpid():
            self.after_fork()
        made = None
        try:
            made = self._sockets.open(member)
        except OSError:  # read-only folder: nothing can wake us, the safety recheck remains
            pass
        try:
            self.transact(lambda: self._txn.put(encoding.MEMBER + b"%016x" % member, name.encode()))
        except StoreError:
            pass  # a name for people; not worth a failure
        return made

    def leave(self, member: int) -> None:
        if self._pid != os.getpid():
            return  # a forked copy; its parent still lives
        self._sockets.shut(member)
        try:
            self.transact(lambda: self._txn.delete(encoding.MEMBER + b"%016x" % member))
        except StoreError:
            pass

    def wake(self, members: Iterable[int]) -> None:
        self._sockets.wake(members)

    def rouse(self, member: int) -> None:
        self._sockets.wake(self._sockets.living() - {member})

    def alive(self) -> int:
        mono = time.monotonic_ns()
        if mono - self._alive[0] > SECOND:
            self._alive = mono, max(1, len(self._sockets.living()))
        return self._alive[1]

    # -- for the fallback -----------------------------------------------------------------------------------------

    def detach(self) -> str:
        return self._offline.begin()

    def reattach(
        self, mark: str, processes: int, held: Iterable[Grant], replay: Iterable[Callable[[], object]]
    ) -> None:
        def rejoin() -> None:
            self._rejoin(mark, processes)
            for grant in held:
                self.adopt(grant)
            for verb in replay:
                verb()

        self._attempt(rejoin)
        self._offline.end(mark)

    def _attempt(self, work: Callable[[], object]) -> None:
        """Run a transaction without waiting for the lock.

        Raises:
            StoreUnavailable: another process holds it.
        """
        environment = self._environment
        try:
            if not environment.lock.acquire(blocking=False):
                raise StoreUnavailable(f"{self.home}: another thread is at it")
            try:
                self._hurry = True
                self.transact(work)
            finally:
                self._hurry = False
        finally:
            release(environment.lock)

    def _rejoin(self, mark: str, processes: int) -> None:
        """Come back from offline, inside a transaction: hold the share of offline processes, give back what was held for
        us."""
        self._leave_to_offline(mark, processes)
        held = self._txn.pop(record_name(encoding.OFFLINE, mark))
        for namespace, lease, number, charges in read_or([], encoding.decode_offline, held):
            if not (0 <= lease < 1 << 64 and 0 <= number < 1 << 64 and self._in_flight(charges)):
                continue  # garbled: it ends with its lease
            if self._txn.delete(permit_name(namespace, lease, number)):
                for key, units in charges:
                    ledger = self._open(key)
                    if ledger is not None:
                        ledger.refund(units)

    def _leave_to_offline(self, own: str = "", processes: int = 0) -> None:
        """For every offline process, hold its share of every ledger, once."""
        for mark in self._offline.names():
            name = record_name(encoding.OFFLINE, mark)
            if mark == own or self._txn.get(name) is not None:
                continue
            mono = time.monotonic_ns()
            held: dict[str, list[tuple[str, int]]] = {}
            for key in self._keys(""):
                ledger = self._open(key)
                if ledger is not None:
                    units = ledger.limit.usable // max(2, processes or self.alive())
                    ledger.take(units, (0, 0), Instant(mono, 0, 0))
                    ledger.rows.pop((0, 0), None)
                    held.setdefault(key.partition("/")[0], []).append((key, units))
            permits = [(namespace, mono + LEASE, self.new_id(), charges) for namespace, charges in held.items()]
            for namespace, lease, number, charges in permits:
                self._txn.put(permit_name(namespace, lease, number), encoding.encode(charges))
            self._txn.put(name, encoding.encode(permits))

    # -- for others ------------------------------------------------------------------------------------------------

    def peek(self, key: str, now: Instant) -> Ledger | None:
        raw = self._environment.peek(record_name(encoding.LEDGER, key))
        if raw is None:
            return None
        ledger = read_or(None, unpack, raw)
        if ledger is None or not meant(ledger, time.monotonic_ns()):
            raise StoreUnavailable(f"{self.home}: the record of {key} is garbled")
        if now.mono >= ledger.turn:
            ledger.advance(now)
        return ledger

    def state(self) -> tuple[int, int]:
        return self._environment.state()

    def responses(self, home: Path, most_bytes: int) -> ResponseStorage:
        from ratekeeper.stores.responses import FileResponses

        return FileResponses(home / "answers", most_bytes)

    def rebuilt(self) -> str:
        """Why this process started new ledgers when it opened the files, or ``""``."""
        return self._environment.rebuilt

    @whole
    def read(self, now: Callable[[str], Instant]) -> Snapshot:
        self._write(self._txn)  # writes pending with this transaction
        found = Snapshot(blocks=self.blocks.states(), learned=self.learned)
        living = self._sockets.living()
        dead = []
        with self._txn.cursor() as cursor:
            for name, value in cursor:
                if name[:1] == encoding.LEDGER:
                    key = name[1:].decode("utf-8", "replace")
                    ledger = read_or(None, unpack, value)
                    if ledger is not None and meant(ledger, time.monotonic_ns()):
                        found.ledgers.append(view(key, ledger, now(key.partition("/")[0])))
                elif name[:1] == encoding.MEMBER and int(name[1:], 16) in living:
                    found.members[int(name[1:], 16)] = value.decode("utf-8", "replace")
                elif name[:1] == encoding.MEMBER:
                    dead.append(bytes(name))
                elif name[:1] == encoding.PERMIT:
                    found.permits += 1
        for name in dead:
            self._txn.delete(name)
        return found

    def after_fork(self) -> None:
        self._sockets.abandon()
        self._environment.abandon()
        self._start()

    def close(self) -> None:
        if self._pid == os.getpid():
            try:
                self._close_batches()
            except StoreError:
                pass  # it ends with the lease
            self._sockets.close()
