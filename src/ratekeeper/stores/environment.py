"""The LMDB environment of a folder, and the file lock before it. A process opens it once, and again after a fork.

LMDB alone is unsafe here. It waits for its writer lock without a deadline, so one stopped process would stop all. On macOS
that lock stays locked when its owner is killed. On a full disk, access to its file kills the process. And LMDB confuses
processes with the same number in two containers. So a file lock with a deadline takes its place. The kernel releases it when
its owner dies; LMDB's copy-on-write pages are then intact.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any, Final
from weakref import WeakSet, WeakValueDictionary

import lmdb

from ratekeeper.errors import StoreUnavailable, StoreVersionError
from ratekeeper.stores.blocks import boot_id
from ratekeeper.stores.files import make_folder, make_private, open_private
from ratekeeper.stores.members import WakeSockets
from ratekeeper.stores.threads import release

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows: best effort, LMDB's own lock must do
    fcntl = None  # type: ignore[assignment]

__all__ = ["Environment"]

_VERSION: Final = 1
_MAP: Final = 1 << 30
"""Largest size of the store, bytes; the file is sparse and grows as needed."""
_CHECK: Final = 100_000_000
"""How often a process checks whether its files were replaced, ns."""
_OWN_LOCK: Final = fcntl is None
"""Whether LMDB must lock by itself."""
_CROWDED: Final = 4
"""A process waits up to this many times its patience while transactions of others proceed."""
_BROKEN: Final = (
    lmdb.CorruptedError,
    lmdb.InvalidError,
    lmdb.PageNotFoundError,
    lmdb.VersionMismatchError,
    lmdb.PanicError,
)

# LMDB's own rule: open it only once per process. This is the one reason for state at module level.
_OPEN: Final[WeakValueDictionary[tuple[str, int], Environment]] = WeakValueDictionary()
_GUARD: Final = threading.Lock()


class Environment:
    """One folder's LMDB environment in this process.

    Attributes:
        rebuilt: why this process started new ledgers when it opened the files, or ``""``.
        looked: whether the last transaction checked the files themselves.
        inherited: sockets of this process that a forked child must close, or it keeps them alive when their owner is dead.
        now: steady ns at which it took the lock.
    """

    def __init__(self, folder: Path, patience: float) -> None:
        self.folder = folder
        self.patience = patience
        self.lock = threading.RLock()
        self.rebuilt = ""
        self.looked = False
        self.inherited: WeakSet[WakeSockets] = WeakSet()
        self.now = 0
        self._broken = ""
        self._begun = self._number = self._inode = self._checked = 0
        self._txn: Any = None
        self._flock = -1
        self._env: Any = None

    @classmethod
    def of(cls, folder: Path, patience: float) -> Environment:
        """Return this process's environment for `folder`; `patience`: seconds to wait for the lock."""
        with _GUARD:
            key = (os.path.realpath(folder), os.getpid())
            found = _OPEN.get(key)
            if found is None:
                found = _OPEN[key] = cls(folder, patience)
            return found

    # -- transactions ----------------------------------------------------------------------------------------------

    def begin(self, patience: float | None = None) -> Any:
        """Take the lock and begin a write transaction; this thread must hold `lock`.

        Raises:
            StoreUnavailable: another process holds the lock too long, the disk is full, or the folder is read-only or gone.
            StoreVersionError: a newer Ratekeeper wrote the store.
        """
        if self._begun:
            raise StoreUnavailable(f"{self.folder}: this thread is in the middle of a transaction of another gate")
        try:
            self._take_lock(self.patience if patience is None else patience)
            now = self.now = time.monotonic_ns()
            self.looked = self._env is None or now - self._checked > _CHECK
            if self.looked:
                self._lock_the_right_file(self.patience if patience is None else patience)
                self._verify()
                self._checked = now
            if self._broken:
                why, self._broken = self._broken, ""
                self._rebuild(why)
            try:
                self._txn = self._env.begin(write=True)
            except _BROKEN as error:
                self._rebuild(str(error))
                self._txn = self._env.begin(write=True)
            self._number = self._txn.id()
        except lmdb.Error as error:
            self._shut()  # reopen an unusable environment; a broken one is then laid aside
            self.unlock()
            raise StoreUnavailable(f"{self.folder}: {error}") from error
        self._begun = now
        return self._txn

    def commit(self) -> None:
        """Commit and release the lock.

        Raises:
            StoreUnavailable: nothing was written; or it was, but so late that other processes had stopped waiting.
        """
        try:
            self._txn.commit()
        except lmdb.Error as error:
            self._broken = str(error) if isinstance(error, _BROKEN) else ""
            raise StoreUnavailable(f"{self.folder}: {error}") from error
        self.unlock()
        held = (time.monotonic_ns() - self._begun) / 1e9
        self._begun = 0
        if held > self.patience:
            raise StoreUnavailable(
                f"{self.folder}: this process was stopped for {held:.1f} s inside a transaction; others did not wait for it"
            )
        self._txn = None

    def abort(self, error: BaseException | None = None) -> bool:
        """Discard the transaction, if any, and release the lock. May be called again.

        Args:
            error: the cause; for a broken store, new ledgers are started.

        Returns:
            Whether the transaction was written after all, because the exception struck only afterwards.
        """
        if isinstance(error, _BROKEN):
            self._broken = str(error)
        written = False
        if self._txn is not None:
            try:
                self._txn.abort()
            except lmdb.Error:
                pass  # it is over already
            written = self.state()[1] >= self._number
        self._begun, self._txn = 0, None
        self.unlock()
        return written

    @property
    def open(self) -> bool:
        """Whether a transaction is open; the caller holds `lock`."""
        return self._begun != 0

    # -- reads without the lock ------------------------------------------------------------------------------------

    def state(self) -> tuple[int, int]:
        """Return the identity of the files, and the number of the last transaction that any process wrote."""
        env = self._env
        try:
            return (self._inode, env.info()["last_txnid"]) if env is not None else (0, 0)
        except lmdb.Error:
            return 0, 0

    def peek(self, name: bytes) -> bytes | None:
        """Return a record as last written, whichever process holds the lock. Its pages stay intact until two more
        transactions are written, so use this only while transactions do not follow each other.

        Raises:
            StoreUnavailable: it cannot be read.
        """
        try:
            if self._env is not None:
                return _record(self._env, name)
            return self._glance(name)
        except lmdb.Error as error:
            raise StoreUnavailable(f"{self.folder}: {error}") from error

    def _glance(self, name: bytes) -> bytes | None:
        """`peek` for a process that has not opened the files yet, because another one has held the lock since it began."""
        try:
            if not self.lock.acquire(timeout=self.patience):
                raise lmdb.Error("another thread is opening it")
            with lmdb.open(str(self.folder / "ledgers"), readonly=True, create=False, lock=_OWN_LOCK) as env:
                version, boot = _record(env, b"!version"), _record(env, b"!boot")
                if version is None or _number(version) > _VERSION or boot != boot_id().encode():
                    raise lmdb.Error("its ledgers are not of this boot and version")
                return _record(env, name)
        finally:
            release(self.lock)

    # -- the file lock ---------------------------------------------------------------------------------------------

    def _take_lock(self, patience: float) -> None:
        if fcntl is None:  # pragma: no cover - Windows
            return
        try:
            if self._flock < 0:
                make_folder(self.folder)
                self._flock = open_private(self.folder / "lock", os.O_RDWR)
            fcntl.flock(self._flock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            pass
        except OSError as error:
            raise StoreUnavailable(f"{self.folder}: {error.strerror}") from error
        # The kernel has no lock wait with a deadline. A transaction takes some 20 us, so short sleeps cost little.
        deadline, last = time.monotonic() + patience, time.monotonic() + _CROWDED * patience
        seen = self.state()
        nap = 0.00002
        while True:
            time.sleep(nap)
            try:
                fcntl.flock(self._flock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    if self.state() != seen and deadline < last:  # no process is stopped: the lock is only contended
                        seen, deadline = self.state(), deadline + patience
                        continue
                    raise StoreUnavailable(
                        f"{self.folder}: another process has held the lock for {patience:g} s (is it stopped?)"
                    ) from None
            nap = min(nap * 1.5, 0.001)

    def _lock_the_right_file(self, patience: float) -> None:
        """Reopen the lock file if the folder was deleted or replaced, because the old lock then excludes no process."""
        if fcntl is None:  # pragma: no cover - Windows
            return
        for _ in range(3):
            try:
                there = (self.folder / "lock").stat()
            except OSError:
                there = None
            ours = os.fstat(self._flock)
            if there is not None and (there.st_ino, there.st_dev) == (ours.st_ino, ours.st_dev):
                return
            self._let_go()
            self._take_lock(patience)

    def _let_go(self) -> None:
        if self._flock >= 0:
            os.close(self._flock)
            self._flock = -1

    def unlock(self) -> None:
        """Release the file lock."""
        if fcntl is not None and self._flock >= 0:
            fcntl.flock(self._flock, fcntl.LOCK_UN)

    # -- opening and rebuilding ------------------------------------------------------------------------------------

    def _verify(self) -> None:
        """Open the files, or reopen them if they were replaced."""
        try:
            there = (self.folder / "ledgers" / "data.mdb").stat()
            inode, size = there.st_ino, there.st_size
        except OSError:
            inode = size = -1
        if self._env is not None and inode == self._inode and not _cut(self._env, size):
            return
        known = self._env is not None
        self._shut()
        try:
            self._open("somebody removed it" if known else "")
        except _BROKEN as error:
            self._rebuild(str(error))
        except lmdb.Error as error:
            raise StoreUnavailable(f"{self.folder}: {error}") from error
        except OSError as error:
            raise StoreUnavailable(f"{self.folder}: {error.strerror or error}") from error

    def _open(self, lost: str = "") -> None:
        """Open or create the files; `lost`: why an earlier store was lost, if this new one replaces it."""
        folder = self.folder / "ledgers"
        data = folder / "data.mdb"
        if folder.exists() and not data.exists():
            lost = lost or "its file is gone"
        make_folder(folder)
        if data.exists() and (data.stat().st_size % 4096 or not data.stat().st_size):
            raise lmdb.CorruptedError("the file was cut off")
        # Without sync a transaction takes some microseconds. A killed process loses nothing. A power cut may lose data; then
        # the boot id has changed, and the ledgers start anew. Bans are synced to a file of their own. LMDB's own locks would
        # not help behind ours but harm: they identify processes by number, and two containers both have a process number 1.
        env = lmdb.open(str(folder), map_size=_MAP, sync=False, metasync=False, mode=0o600, lock=_OWN_LOCK)
        try:
            make_private(data)
            if _cut(env, data.stat().st_size):
                raise lmdb.CorruptedError("the file was cut off")
            with env.begin(write=True) as txn:
                version, boot = txn.get(b"!version"), txn.get(b"!boot")
                if version is not None and _number(version) > _VERSION:
                    raise StoreVersionError(
                        f"{self.folder} was written by a newer Ratekeeper (format {_number(version)}, this one knows"
                        f" {_VERSION}): upgrade, or set RATEKEEPER_HOME to another folder"
                    )
                if boot is not None and boot != boot_id().encode():
                    raise _Rebooted
                if version is None and lost:
                    txn.put(b"!rebuilt", b"%d" % time.monotonic_ns())
                    self.rebuilt = lost
                txn.put(b"!version", b"%d" % _VERSION)
                txn.put(b"!boot", boot_id().encode())
        except BaseException as error:
            env.close()
            if isinstance(error, _Rebooted):
                self._rebuild("")
                return
            raise
        self._env = env
        self._inode = data.stat().st_ino

    def _rebuild(self, why: str) -> None:
        """Set broken ledgers aside and start anew. Bans live in another file."""
        self._shut()
        folder = self.folder / "ledgers"
        try:
            if folder.exists():
                aside = self.folder / ("ledgers.broken" if why else "ledgers.old")
                for old in aside.glob("*") if aside.exists() else ():
                    old.unlink()
                if aside.exists():
                    aside.rmdir()
                folder.rename(aside)
            self._open(why or "reboot")
        except (lmdb.Error, OSError) as error:
            raise StoreUnavailable(f"{self.folder}: cannot be rebuilt: {error}") from error

    def _shut(self) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None

    def abandon(self) -> None:
        """Drop the parent's environment in a forked child. LMDB must not be used across a fork, and would take its folder for
        open; closing releases only the child's copies. The file lock is the parent's too: close it, do not unlock it."""
        self._shut()
        self._let_go()

    def close(self) -> None:
        """Close the files; the next transaction reopens them."""
        with self.lock:
            self._shut()
            self._let_go()


def _forked() -> None:
    """Runs in every forked child, even one that never calls us: its copy of the lock file would keep the lock for good if the
    parent died holding it."""
    _GUARD._at_fork_reinit()  # type: ignore[attr-defined]
    for environment in list(_OPEN.values()):
        environment._let_go()
        for sockets in environment.inherited:
            sockets.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def _record(env: Any, name: bytes) -> bytes | None:
    with env.begin() as txn:
        found: bytes | None = txn.get(name)
        return found


def _number(version: bytes) -> int:
    """Return the number of a format version. Raises lmdb.CorruptedError if it is none."""
    if not (version.isdigit() and 0 < len(version) < 10):
        raise lmdb.CorruptedError("the number of its format is garbled")
    return int(version)


def _cut(env: Any, size: int) -> bool:
    """Whether the file is shorter than its last page; reading on would kill the process."""
    if size < 8192:  # the size of LMDB's own header
        return True
    return size < (int(env.info()["last_pgno"]) + 1) * int(env.stat()["psize"])


class _Rebooted(Exception):
    """The ledgers come from another boot."""
