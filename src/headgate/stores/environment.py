"""The LMDB environment of a folder and the lock in front of it: opened once per process, again after a fork.

LMDB waits for its writer lock without bound, so a process that is stopped inside a transaction would stop everyone.
A file lock with a deadline stands in front of it (and keeps macOS safe, where LMDB's own lock stays shut when its holder
is killed). The kernel frees the file lock when its holder dies; LMDB's copy-on-write pages are then whole.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any, Final
from weakref import WeakValueDictionary

import lmdb

from headgate.errors import StoreUnavailable, StoreVersionError

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
    """

    def __init__(self, folder: Path, patience: float) -> None:
        self.folder = folder
        self.patience = patience
        self.lock = threading.RLock()
        self.rebuilt = ""
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
            StoreVersionError: written by a newer Headgate.
        """
        self._take_lock(self.patience if patience is None else patience)
        try:
            now = time.monotonic_ns()
            if self._env is None or now - self._checked > _CHECK:
                self._verify()
                self._checked = now
            return self._env.begin(write=True)
        except _BROKEN as error:
            self._rebuild(str(error))
            return self._retry()
        except lmdb.Error as error:
            self.unlock()
            raise StoreUnavailable(f"{self.folder}: {error}") from error
        except BaseException:
            self.unlock()
            raise

    def _retry(self) -> Any:
        try:
            return self._env.begin(write=True)
        except BaseException as error:
            self.unlock()
            raise StoreUnavailable(f"{self.folder}: {error}") from error

    def commit(self, txn: Any) -> None:
        """Commit and let go of the lock. Raises StoreUnavailable if it could not be written (nothing was)."""
        try:
            txn.commit()
        except lmdb.Error as error:
            raise StoreUnavailable(f"{self.folder}: {error}") from error
        finally:
            self.unlock()

    def abort(self, txn: Any) -> None:
        """Throw the transaction away and let go of the lock."""
        try:
            txn.abort()
        finally:
            self.unlock()

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
        deadline = time.monotonic() + patience
        nap = 0.00002
        while True:
            time.sleep(nap)
            try:
                fcntl.flock(self._flock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise StoreUnavailable(
                        f"{self.folder}: another process has held the lock for {patience:g} s (is it stopped?)"
                    ) from None
            nap = min(nap * 1.5, 0.001)

    def unlock(self) -> None:
        """Let go of the file lock."""
        if fcntl is not None and self._flock >= 0:
            fcntl.flock(self._flock, fcntl.LOCK_UN)

    # -- opening and mending ---------------------------------------------------------------------------------------

    def _verify(self) -> None:
        """Open the files, or open them again if somebody replaced them."""
        try:
            inode = (self.folder / "ledgers" / "data.mdb").stat().st_ino
        except OSError:
            inode = -1
        if self._env is not None and inode == self._inode:
            return
        self._shut()
        try:
            self._open()
        except _BROKEN as error:
            self._rebuild(str(error))
        except lmdb.Error as error:
            raise StoreUnavailable(f"{self.folder}: {error}") from error
        except OSError as error:
            raise StoreUnavailable(f"{self.folder}: {error.strerror or error}") from error

    def _open(self) -> None:
        folder = self.folder / "ledgers"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        data = folder / "data.mdb"
        if data.exists() and data.stat().st_size % 4096:
            raise lmdb.CorruptedError("the file was cut off")
        # Without sync a transaction is some microseconds, and a killed process loses nothing; a power cut may, and then
        # the boot id has changed and the ledgers begin anew. Bans are synced to a file of their own.
        env = lmdb.open(str(folder), map_size=_MAP, sync=False, metasync=False, mode=0o600, max_readers=1024)
        try:
            last = env.info()["last_pgno"] + 1
            if data.stat().st_size < last * env.stat()["psize"] and last > 2:
                raise lmdb.CorruptedError("the file was cut off")
            with env.begin(write=True) as txn:
                version, boot = txn.get(b"!version"), txn.get(b"!boot")
                if version is not None and int(version) > _VERSION:
                    raise StoreVersionError(
                        f"{self.folder} was written by a newer Headgate (format {int(version)}, this one knows {_VERSION}): "
                        "upgrade, or set HEADGATE_HOME to another folder"
                    )
                if boot is not None and boot != boot_id().encode():
                    raise _Rebooted
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
            self._open()
        except (lmdb.Error, OSError) as error:
            raise StoreUnavailable(f"{self.folder}: cannot be rebuilt: {error}") from error
        self.rebuilt = why or "reboot"
        with self._env.begin(write=True) as txn:
            txn.put(b"!rebuilt", b"%d" % time.monotonic_ns())

    def _shut(self) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None

    def abandon(self) -> None:
        """In a forked child: this environment is the parent's. LMDB must not be used across a fork, and would take its
        folder for open; closing lets go of the child's copies only. The file lock is the parent's too: close, not unlock.
        """
        self._shut()
        if self._flock >= 0:
            os.close(self._flock)
            self._flock = -1

    def close(self) -> None:
        """Close files; the next transaction opens them again."""
        with self.lock:
            self._shut()
            if self._flock >= 0:
                os.close(self._flock)
                self._flock = -1


class _Rebooted(Exception):
    """The ledgers are of another boot."""
