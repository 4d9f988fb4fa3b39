"""The host store: all processes of a machine share ledgers in LMDB (long because every failure of LMDB ends here)."""

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
from ratekeeper.stores.blocks import PauseRecord, boot_id, read_blocks, write_blocks
from ratekeeper.stores.encoding import meant, meant_blocks, meant_learned, read_or, record_name
from ratekeeper.stores.environment import Environment
from ratekeeper.stores.host_collect import CollectingStore
from ratekeeper.stores.pauses import Pauses
from ratekeeper.stores.records import Grant, forget
from ratekeeper.stores.threads import release
from ratekeeper.stores.verbs import whole

if TYPE_CHECKING:
    from ratekeeper.stores.responses import ResponseStorage

__all__ = ["HostStore"]

T = TypeVar("T")

_PATIENCE: Final = 0.25
"""Seconds to wait for the lock before the store counts as unavailable."""
_FILE: Final = "blocks.json"
_HEED: Final = SECOND // 10
"""How often a process looks for pauses that were ordered beside the store, ns."""


class HostStore(CollectingStore, SharedStore):
    """Ledgers that all processes of a machine share.

    Args:
        home: the folder; created with mode 0700 if missing. Not on a network file system.
        patience: seconds to wait for the lock. It is held for microseconds unless its owner is stopped.
    """

    pauses: Pauses

    def __init__(self, home: Path, patience: float = _PATIENCE) -> None:
        super().__init__(boot_id())
        self.home = home
        self._patience = patience
        self._random = random.SystemRandom()
        self._start()

    def _start(self) -> None:
        self._pid = os.getpid()
        self._environment = Environment.of(self.home, self._patience)
        self.pauses = Pauses(self.home, "host://")
        self._numbers = random.Random(self._random.getrandbits(128))  # a forked twin draws other numbers
        self._hurry = False
        super()._start()
        self._environment.inherited.update((self._sockets, self._marks))
        self._raw_generation: bytes | None = b"?"
        self._stated = self.learned  # the value last written
        self._heeded = 0
        self._delivered: dict[str, tuple[PauseRecord, bool]] = {}
        """Records that the transaction under way writes, by file, and whether each is news."""
        self.heed()

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
                if environment.looked or self._begun or environment.now - self._heeded > _HEED:
                    self._tidy_up()
                self._catch_up()
                result = work()
                self._write(self._txn)
                environment.commit()
                self._arrived()
                self._stated = self.learned
                if self._delivered:
                    self._note_delivered()
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

    def _tidy_up(self) -> None:
        """Do what is due: collect records that no decision needs, look for dead processes and for pauses."""
        if self._environment.looked:
            self._collect(self._slice)
            self._attend()
        elif self._begun:
            self._collect(0)
        if self._environment.now - self._heeded > _HEED:
            self._take_in_records()

    def _forget(self) -> None:
        super()._forget()
        self._raw_generation = b"?"
        self._delivered.clear()

    def _refresh(self) -> None:
        """Reload blocks and learned limits if another process changed them."""
        raw = self._txn.get(encoding.GENERATION)
        if raw == self._raw_generation:
            return
        if raw is None:  # a new store, perhaps after a loss: keep the known bans
            self.learned = self._stated
            self.recall()
            if self.blocks.stored():
                self._share("blocks")
            if self.learned:
                self._share("learned")
            self._raw_generation = self._txn.get(encoding.GENERATION)
        else:
            self._read_blocks(self._txn.get(encoding.BLOCKS))
            self._read_learned(self._txn.get(encoding.LEARNED))
            self._raw_generation = self._txn.get(encoding.GENERATION)
        self._stated = self.learned
        self._heeded = 0
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
        known = self.blocks.stored()
        kept = [state for state in read_blocks(self.home / _FILE) if state not in known]
        if kept:
            self.blocks.load([*kept, *known], time.monotonic_ns(), time.time_ns())
            self._changed()

    def publish(self) -> None:
        """Write the known blocks into the synced file, without a transaction, so that offline processes see them too."""
        self.recall()
        try:
            write_blocks(self.home / _FILE, self.blocks.stored())
        except StoreUnavailable:
            pass  # where nothing can be written, no other process can be told

    # -- the pauses of this machine ----------------------------------------------------------------------------------

    def _obey(self, records: list[PauseRecord]) -> None:
        self.blocks.obey(records)
        self._changed()

    def _take_in_records(self) -> None:
        """Write the records that are not in the store yet, inside a transaction."""
        self._heeded = self._environment.now
        self.heed()
        for record in self.pauses.to_hand_on():
            self._take_in(record)

    def _take_in(self, record: PauseRecord) -> None:
        if record.resumed:
            news = self.blocks.take_back(record)
        else:
            state = self.blocks.add(record.scope, record.length, record.kind, record.reason, record.mono, record.wall)
            news = (state.mono, state.length) == (record.mono, record.length)
        if news:
            self._changed()
            try:
                self._share("blocks")
            except StoreUnavailable:
                return  # the disk is full; the record remains, and is obeyed
        self._delivered[record.file] = record, news

    def _note_delivered(self) -> None:
        for record, _ in self._delivered.values():
            self.pauses.handed(record)
        self._delivered.clear()

    @whole
    def deliver(self, record: PauseRecord) -> bool:
        if record.file not in self._delivered:
            self._take_in(record)
        return self._delivered.get(record.file, (record, False))[1]

    # -- primitives of the verbs -----------------------------------------------------------------------------------

    def _fresh(self, key: str, ledger: Ledger, now: Instant) -> None:
        self._begun += 1
        if self._absent or self._held_early:
            self._hold_one(key, ledger, fresh=True)
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
            states = self.blocks.stored()
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
        return super().join(member, name)

    def leave(self, member: int) -> None:
        if self._pid == os.getpid():  # else it is a forked copy, whose parent still lives
            super().leave(member)

    # -- for the fallback -----------------------------------------------------------------------------------------

    def reattach(
        self, mark: str, processes: int, held: Iterable[Grant], replay: Iterable[Callable[[], object]]
    ) -> None:
        def rejoin() -> None:
            self._rejoin(mark, processes)
            self._take_in_records()
            for grant in held:
                self.adopt(grant)
            for verb in replay:
                verb()

        self._attempt(rejoin)
        if mark:
            self._marks.shut(int(mark, 16))

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

    def after_fork(self) -> None:
        super().after_fork()
        self._environment.abandon()
        self._start()

    def close(self) -> None:
        if self._pid == os.getpid():
            try:
                self._close_batches()
            except StoreError:
                pass  # it ends with the lease
            self._sockets.close()
            self._marks.abandon()  # what is spent offline and not written must be found by others
