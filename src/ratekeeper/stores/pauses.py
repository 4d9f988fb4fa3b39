"""The pauses of one machine: small files in the state folder, which its programs obey whatever the shared store does.

A pause is written here first. Every program of the folder sees that the folder has changed, and obeys at its next decision.
Whichever of them reaches the shared store hands the pause on to it. No lock is involved: each record is a file of its own,
written once. The newest record of a scope holds. So a program that is stopped, or killed, hinders nobody.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from ratekeeper.errors import StoreUnavailable
from ratekeeper.ledger.limit import SECOND
from ratekeeper.stores.blocks import LONGEST, PauseRecord, boot_id
from ratekeeper.stores.files import make_folder, write_private
from ratekeeper.stores.members import WakeSockets
from ratekeeper.typed import json_decoder

__all__ = ["Pauses"]

_NEW: Final = ".new"
_DONE: Final = ".done"
"""Endings of files: a record that is still to be handed on, and one that was."""
_TRIES: Final = 100
"""How often the folder is read again at most, because a file was renamed while it was read."""
_TICK: Final = SECOND // 10
"""A folder that changed less than this before it was read may change again without a new time stamp, ns."""


class Pauses:
    """The records of one state folder.

    Args:
        home: the state folder.
        store: the shared store to which this process hands records on, as people write it.
    """

    def __init__(self, home: Path, store: str) -> None:
        self._home = home
        self._folder = home / "pauses"
        self._place = str(self._folder)
        self.store = store
        self._boot = boot_id()
        self._stamp = (-1, -1)
        self._settled = False
        self._lock = threading.RLock()
        self._known: list[PauseRecord] = []
        self._handed: set[str] = set()
        """Files that this process handed on, in case the folder cannot be written."""

    # -- reading ---------------------------------------------------------------------------------------------------

    def heed(self, obey: Callable[[list[PauseRecord]], object]) -> None:
        """Call `obey` with the records in force if the folder may have changed since the last call. One system call."""
        if self._settled and self._look() == self._stamp:
            return
        with self._lock:  # so that of two threads the one that read last is obeyed last
            self._stamp = self._look()
            self._settled = abs(time.time_ns() - self._stamp[1]) > _TICK
            self._known = self._read() if self._stamp[0] else []
            obey(self._known)

    def _look(self) -> tuple[int, int]:
        try:
            there = os.stat(self._place)  # noqa: PTH116 - on the way of calls
        except OSError:
            return 0, 0
        return there.st_ino, there.st_mtime_ns

    def to_hand_on(self) -> list[PauseRecord]:
        """Return the known records that the shared store of this process does not have yet."""
        return [each for each in self._known if each.store == self.store and not self._done(each)]

    def handed_on(self) -> list[PauseRecord]:
        """Return the known records that the shared store of this process was given."""
        return [each for each in self._known if each.store == self.store and self._done(each)]

    def _done(self, record: PauseRecord) -> bool:
        return record.file.endswith(_DONE) or record.file in self._handed

    def _read(self) -> list[PauseRecord]:
        """Return the record in force of each scope: the newest, but of two pauses the one that ends later."""
        mono = time.monotonic_ns()
        found: dict[str, PauseRecord] = {}
        for record in sorted(self._records(), key=lambda each: each.mono):
            if not (_over(record, mono) or _outlasts(found.get(record.scope), record)):
                found[record.scope] = record
        return list(found.values())

    def _records(self) -> list[PauseRecord]:
        """Return all records, on this boot's steady clock."""
        for _ in range(_TRIES):
            try:
                names = [path.name for path in self._folder.iterdir() if path.suffix in (_NEW, _DONE)]
            except OSError:
                return []
            try:
                return [record for record in map(self._record, names) if record is not None]
            except FileNotFoundError:
                pass  # another process has renamed or replaced it meanwhile
        return self._known

    def _record(self, name: str) -> PauseRecord | None:
        """Return a record; None: it cannot be read. Raises FileNotFoundError: it is gone."""
        try:
            found = json_decoder(PauseRecord)((self._folder / name).read_bytes())
        except FileNotFoundError:
            raise
        except (OSError, ValueError, RecursionError, msgspec.MsgspecError):
            return None
        mono, wall = time.monotonic_ns(), time.time_ns()
        begun = found.mono if found.boot == self._boot else mono - (wall - found.wall)
        length = None if found.length is None else min(max(found.length, 0), LONGEST)
        return msgspec.structs.replace(found, mono=min(begun, mono), length=length, boot=self._boot, file=name)

    # -- writing ---------------------------------------------------------------------------------------------------

    def record(self, scope: str, length: int | None, reason: str, *, resumed: bool = False) -> PauseRecord:
        """Return a new record, which `write` puts into the folder.

        Args:
            scope: the owner, as `BlockState.scope`.
            length: ns, or None for a pause without an end.
            reason: one line for people.
            resumed: whether it takes a pause back.
        """
        mono, wall = time.monotonic_ns(), time.time_ns()
        file = secrets.token_hex(8) + _NEW
        return PauseRecord(scope, "pause", reason, length, mono, wall, self._boot, resumed, self.store, file)

    def write(self, record: PauseRecord) -> None:
        """Put a record into force for all programs of the folder, and wake those that wait.

        Raises:
            StoreUnavailable: the folder cannot be written.
        """
        path = self._folder / record.file
        try:
            make_folder(self._folder)
            write_private(path, msgspec.json.format(msgspec.json.encode(record)))
            self._settled = False
        except OSError as error:
            raise StoreUnavailable(f"{self._folder}: {error.strerror}") from error
        self.wake()  # it is in force; the disk may take its time
        try:
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        except OSError:
            pass  # another process has handed it on meanwhile, and renamed it
        for old in self._records():
            replaced = old.scope == record.scope and old.mono < record.mono and not _outlasts(old, record)
            if replaced or _over(old, record.mono):
                _remove(self._folder / old.file)

    def wake(self) -> None:
        """Wake the programs of the folder that wait."""
        sockets = WakeSockets(self._home / "wake")
        sockets.wake_all()
        sockets.close()

    def handed(self, record: PauseRecord) -> None:
        """Note that the shared store has got a record. A pause stays in force here until it is over or taken back."""
        path = self._folder / record.file
        try:
            if record.resumed:
                path.unlink()
            else:
                path.rename(path.with_suffix(_DONE))
        except FileNotFoundError:
            pass  # a newer record has taken its place
        except OSError:
            self._handed.add(record.file)  # the folder cannot be written
        self._settled = False

    def drop(self, record: PauseRecord) -> None:
        """Remove a record: somebody took the pause back on another machine."""
        _remove(self._folder / record.file)
        self._settled = False


def _over(record: PauseRecord, mono: int) -> bool:
    """Whether a record is of no use any more."""
    return (record.mono + LONGEST if record.resumed else record.ends()) <= mono


def _outlasts(old: PauseRecord | None, new: PauseRecord) -> bool:
    """Whether an older record stays in force: a shorter pause does not shorten a longer one."""
    return old is not None and not (old.resumed or new.resumed) and old.ends() > new.ends()


def _remove(path: Path) -> None:
    try:
        path.unlink()
    except OSError:
        pass
