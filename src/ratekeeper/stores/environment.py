"""The LMDB environment of a folder and the lock in front of it: opened once per process, again after a fork.

LMDB waits for its writer lock without bound, so a process that is stopped inside a transaction would stop everyone; on
macOS that lock stays shut when its holder is killed; on a full disk its file is deadly to touch; and it takes processes
of one number in two containers for the same. So a file lock with a deadline stands in its place. The kernel frees it when
its holder dies; LMDB's copy-on-write pages are then whole.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any, Final
from weakref import WeakValueDictionary

import lmdb

from ratekeeper.errors import StoreUnavailable, StoreVersionError

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows: best effort, LMDB's own lock must do
    fcntl = None  # type: ignore[assignment]

__all__ = ["Environment", "boot_id"]

_VERSION: Final = 1
_MAP: Final = 1 << 30
"""Largest size of the store, bytes; the file is sparse and grows as needed."""
_CHECK: Final = 100_000_000
"""How often to look whether the files were replaced under us, ns."""
_OWN_LOCK: Final = fcntl is None
"""Whether LMDB must lock by itself."""
_CROWDED: Final = 4
"""So many times the patience is waited while others' transactions go on."""
_BROKEN: Final = (
    lmdb.CorruptedError,
    lmdb.InvalidError,
    lmdb.PageNotFoundError,
    lmdb.VersionMismatchError,
    lmdb.PanicError,
)

# LMDB must not be opened twice in one process: its own rule, and the one reason for state at module level.
_OPEN: Final[WeakValueDictionary[tuple[str, int], Environment]] = WeakValueDictionary()
_GUARD: Final = threading.Lock()


def boot_id() -> str:
    """Names this boot of the machine: steady instants mean something only within it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux: good to the minute
        return str(int(time.time() - time.monotonic()) // 60)


class Environment:
    """One folder's LMDB environment in this process.

    Attributes:
        rebuilt: why the ledgers were begun anew when this process opened them, or ``""``.
        looked: whether the transaction that was begun last looked at the files themselves.
    """

    def __init__(self, folder: Path, patience: float) -> None:
        self.folder = folder
        self.patience = patience
        self.lock = threading.RLock()
        self.rebuilt = ""
        self.looked = False
        self._broken = ""
        self._begun = 0
        self._txn: Any = None
        self._number = 0
        self._inode = 0
        self._checked = 0
        self._flock = -1
        self._env: Any = None

    @classmethod
    def of(cls, folder: Path, patience: float) -> Environment:
        """This process's environment for `folder`; `patience`: seconds to wait for the lock."""
        with _GUARD:
            key = (os.path.realpath(folder), os.getpid())
            found = _OPEN.get(key)
            if found is None:
                found = _OPEN[key] = cls(folder, patience)
            return found

    # -- transactions ----------------------------------------------------------------------------------------------

    def begin(self, patience: float | None = None) -> Any:
        """Take the lock and begin a write transaction; `lock` must be held by this thread.

        Raises:
            StoreUnavailable: the lock is held too long, the disk is full, the folder is read-only or gone.
            StoreVersionError: written by a newer Ratekeeper.
        """
        if self._begun:
            raise StoreUnavailable(f"{self.folder}: this thread is in the middle of a transaction of another gate")
        try:
            self._take_lock(self.patience if patience is None else patience)
            now = time.monotonic_ns()
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
            self._shut()  # what cannot be used is opened anew, and then laid aside if it is broken
            self.unlock()
            raise StoreUnavailable(f"{self.folder}: {error}") from error
        self._begun = now
        return self._txn

    def commit(self) -> None:
        """Commit and let go of the lock.

        Raises:
            StoreUnavailable: it could not be written (nothing was); or it was, but so late that others no longer waited.
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
        """Throw away the transaction that there may be, and let go of the lock. May be called again.

        Args:
            error: why, so that a broken store is begun anew.

        Returns:
            Whether the transaction was written all the same: an exception struck only after that.
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
        """Whether a transaction is open; to be asked with `lock` held."""
        return self._begun != 0

    # -- looking without the lock ----------------------------------------------------------------------------------

    def state(self) -> tuple[int, int]:
        """Which files these are, and the number of the last transaction that anybody wrote into them."""
        env = self._env
        try:
            return (self._inode, env.info()["last_txnid"]) if env is not None else (0, 0)
        except lmdb.Error:
            return 0, 0

    def peek(self, name: bytes) -> bytes | None:
        """A record as it was written last, whoever holds the lock. Its pages stay whole until two more transactions were
        written, so this is for when they do not follow each other.

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
        """`peek` of a process that has not opened the files yet, because the lock was held ever since it began."""
        if not self.lock.acquire(timeout=self.patience):
            raise lmdb.Error("another thread is opening it")
        try:
            with lmdb.open(str(self.folder / "ledgers"), readonly=True, create=False, lock=_OWN_LOCK) as env:
                version, boot = _record(env, b"!version"), _record(env, b"!boot")
                if version is None or _number(version) > _VERSION or boot != boot_id().encode():
                    raise lmdb.Error("its ledgers are not of this boot and version")
                return _record(env, name)
        finally:
            self.lock.release()

    # -- the file lock ---------------------------------------------------------------------------------------------

    def _take_lock(self, patience: float) -> None:
        if fcntl is None:  # pragma: no cover - Windows
            return
        try:
            if self._flock < 0:
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._flock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._flock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            pass
        except OSError as error:
            raise StoreUnavailable(f"{self.folder}: {error.strerror}") from error
        # The kernel has no lock wait with a deadline. A transaction takes some 20 us, so short naps cost little.
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
                    if self.state() != seen and deadline < last:  # nobody is stopped: it is only crowded
                        seen, deadline = self.state(), deadline + patience
                        continue
                    raise StoreUnavailable(
                        f"{self.folder}: another process has held the lock for {patience:g} s (is it stopped?)"
                    ) from None
            nap = min(nap * 1.5, 0.001)

    def _lock_the_right_file(self, patience: float) -> None:
        """If the folder was deleted or replaced, its old lock keeps nobody out."""
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
        """Let go of the file lock."""
        if fcntl is not None and self._flock >= 0:
            fcntl.flock(self._flock, fcntl.LOCK_UN)

    # -- opening and mending ---------------------------------------------------------------------------------------

    def _verify(self) -> None:
        """Open the files, or open them again if somebody replaced them."""
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
        """Open or create the files; `lost`: why a store that is new is not the first one here."""
        folder = self.folder / "ledgers"
        data = folder / "data.mdb"
        if folder.exists() and not data.exists():
            lost = lost or "its file is gone"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if data.exists() and (data.stat().st_size % 4096 or not data.stat().st_size):
            raise lmdb.CorruptedError("the file was cut off")
        # Without sync a transaction is some microseconds, and a killed process loses nothing; a power cut may, and then
        # the boot id has changed and the ledgers begin anew. Bans are synced to a file of their own.
        # LMDB's own locks would do no good behind ours, and harm: they tell processes by number, and in two containers
        # there are two processes number 1.
        env = lmdb.open(str(folder), map_size=_MAP, sync=False, metasync=False, mode=0o600, lock=_OWN_LOCK)
        try:
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
        """Lay broken ledgers aside and begin anew. Bans live in another file."""
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
        """In a forked child: this environment is the parent's. LMDB must not be used across a fork, and would take its
        folder for open; closing lets go of the child's copies only. The file lock is the parent's too: close, not unlock.
        """
        self._shut()
        self._let_go()

    def close(self) -> None:
        """Close files; the next transaction opens them again."""
        with self.lock:
            self._shut()
            self._let_go()


def _forked() -> None:
    """In every forked child, also one that never calls us: a copy of the lock's file would keep it shut for good if the
    parent died while holding it."""
    _GUARD._at_fork_reinit()  # type: ignore[attr-defined]
    for environment in list(_OPEN.values()):
        environment._let_go()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def _record(env: Any, name: bytes) -> bytes | None:
    with env.begin() as txn:
        found: bytes | None = txn.get(name)
        return found


def _number(version: bytes) -> int:
    """The number of a format. Raises lmdb.CorruptedError: it is none."""
    if not (version.isdigit() and 0 < len(version) < 10):
        raise lmdb.CorruptedError("the number of its format is garbled")
    return int(version)


def _cut(env: Any, size: int) -> bool:
    """Whether the file is shorter than its last page; to read on would be deadly."""
    if size < 8192:  # where LMDB keeps what it would tell us of itself
        return True
    return size < (int(env.info()["last_pgno"]) + 1) * int(env.stat()["psize"])


class _Rebooted(Exception):
    """The ledgers are of another boot."""
