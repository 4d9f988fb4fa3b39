"""How the processes of a machine find and wake each other through the shared folder, without a lock.

A process wakes another one that waits for units by sending a datagram to its wake-up socket in the folder. The socket's file
also shows whether that process lives: the kernel refuses a datagram to a dead process's socket, in any PID namespace.

A process that cannot use the store goes offline and creates an empty file, its mark. A process that holds the store and finds
such a mark takes, once, a permit for the offline process's share of every ledger. The offline process gives the permit back
on return and writes what it really spent. If it never returns, the permit ends with its lease.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from ratekeeper.stores.files import make_folder, make_private, open_private

__all__ = ["OfflineMarks", "WakeSockets"]

_LONGEST: Final = 100
"""Socket paths must fit into 104 (macOS) or 108 (Linux) bytes."""

_FORGOTTEN: Final = 600.0
"""A mark older than this many seconds belongs to a process that died offline."""


class WakeSockets:
    """The wake-up sockets of a folder: this process's own and those of others."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._own: dict[int, socket.socket] = {}
        self._out: socket.socket | None = None
        self._dir = -1

    def _path(self, name: str) -> str:
        path = str(self._folder / name)
        if len(os.fsencode(path)) <= _LONGEST or not Path("/proc/self/fd").exists():
            return path
        if self._dir < 0:
            self._dir = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return f"/proc/self/fd/{self._dir}/{name}"

    def open(self, member: int) -> socket.socket:
        """Open `member`'s wake-up socket; a datagram to it wakes this process."""
        make_folder(self._folder)
        made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        made.setblocking(False)
        path = self._path(f"{member:016x}")
        made.bind(path)
        make_private(path)
        self._own[member] = made
        return made

    def shut(self, member: int) -> None:
        """Remove `member`'s socket."""
        made = self._own.pop(member, None)
        if made is not None:
            made.close()
            self._remove(f"{member:016x}")

    def wake(self, members: Iterable[int]) -> None:
        """Wake members; forget dead ones."""
        for member in members:
            self._send(f"{member:016x}", b"w")

    def living(self) -> set[int]:
        """Return the members whose processes exist, own ones included; remove the sockets of dead ones."""
        try:
            names = [entry.name for entry in os.scandir(self._folder)]
        except OSError:
            return set(self._own)
        return {int(name, 16) for name in names if self._send(name, b"")}

    def dead(self) -> set[int]:
        """Remove and return the members whose processes ended without removing their sockets."""
        try:
            names = [entry.name for entry in os.scandir(self._folder)]
        except OSError:
            return set()
        return {int(name, 16) for name in names if not self._send(name, b"")}

    def _send(self, name: str, what: bytes) -> bool:
        try:
            self._send_to(self._path(name), what)
        except ConnectionRefusedError:
            self._remove(name)
            return False
        except FileNotFoundError:
            return False
        except OSError:  # its queue is full: it will wake anyway
            return True
        return True

    def _send_to(self, path: str, what: bytes) -> None:
        if self._out is None:
            self._out = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._out.setblocking(False)
        self._out.sendto(what, path)

    def _remove(self, name: str) -> None:
        try:
            (self._folder / name).unlink()
        except OSError:
            pass

    def close(self) -> None:
        """Remove this process's own sockets."""
        for member in list(self._own):
            self.shut(member)
        if self._out is not None:
            self._out.close()
            self._out = None
        if self._dir >= 0:
            os.close(self._dir)
            self._dir = -1

    def abandon(self) -> None:
        """After a fork: the sockets belong to the parent. Close the copies, leave the files."""
        for made in self._own.values():
            made.close()
        self._own.clear()
        self.close()


class OfflineMarks:
    """The marks of offline processes in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def begin(self) -> str:
        """Create a mark; returns its name, or ``""`` if the folder is not writable (then no process can write)."""
        name = secrets.token_hex(8)
        try:
            make_folder(self._folder)
            os.close(open_private(self._folder / name, os.O_WRONLY))
        except OSError:
            return ""
        return name

    def end(self, name: str) -> None:
        """Remove a mark."""
        try:
            (self._folder / name).unlink()
        except OSError:
            pass

    def names(self) -> list[str]:
        """Return the names of all marks."""
        found = []
        try:
            for mark in self._folder.iterdir():
                if time.time() - mark.stat().st_mtime < _FORGOTTEN:
                    found.append(mark.name)
                else:
                    self.end(mark.name)
        except OSError:
            pass  # no such folder: no process was ever offline
        return found
