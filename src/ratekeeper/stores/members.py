"""How the processes of a machine find and wake each other through the shared folder, without a lock.

A process wakes another one that waits for units by sending a datagram to its wake-up socket in the folder. The socket's file
also shows whether that process lives: the kernel refuses a connection to a dead process's socket, in any PID namespace. The
mark that a process leaves when it goes offline is such a socket in a folder of its own (`host_members`).
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from ratekeeper.stores.files import make_folder, make_private

__all__ = ["WakeSockets"]

_LONGEST: Final = 100
"""Socket paths must fit into 104 (macOS) or 108 (Linux) bytes."""
_NAME: Final = re.compile("[0-9a-f]{16}")


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

    def has(self, member: int) -> bool:
        """Whether this process holds `member`'s socket."""
        return member in self._own

    def drop(self, member: int) -> None:
        """Close `member`'s socket, but leave its file: others find it dead."""
        made = self._own.pop(member, None)
        if made is not None:
            made.close()

    def shut(self, member: int) -> None:
        """Remove `member`'s socket."""
        if self.has(member):
            self.drop(member)
            self._remove(f"{member:016x}")

    def wake(self, members: Iterable[int]) -> None:
        """Wake members; the dead hear nothing."""
        for member in members:
            self._send(f"{member:016x}", b"w")

    def census(self) -> dict[int, bool]:
        """Return every member that has a socket, and whether its process lives."""
        try:
            members = self._members()
        except OSError:
            return dict.fromkeys(self._own, True)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
                return {member: self._lives(probe, f"{member:016x}") for member in members}
        except OSError:  # this process has too many files open to tell
            return dict.fromkeys(members, True)

    def wake_all(self) -> None:
        """Wake every member."""
        try:
            self.wake(self._members())
        except OSError:
            pass  # there is no folder, so nobody waits

    def _members(self) -> list[int]:
        return [int(entry.name, 16) for entry in os.scandir(self._folder) if _NAME.fullmatch(entry.name)]

    def living(self) -> set[int]:
        """Return the members whose processes live, own ones included; remove the sockets of dead ones."""
        found = self.census()
        self.bury(member for member, lives in found.items() if not lives)
        return {member for member, lives in found.items() if lives}

    def bury(self, members: Iterable[int]) -> None:
        """Remove the sockets of dead members."""
        for member in members:
            self._remove(f"{member:016x}")

    def _lives(self, probe: socket.socket, name: str) -> bool:
        """Whether the process of a member lives. Connecting leaves nothing in its queue, unlike a datagram."""
        try:
            probe.connect(self._path(name))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:  # not ours to tell
            return True
        return True

    def _send(self, name: str, what: bytes) -> None:
        if self._out is None:
            self._out = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._out.setblocking(False)
        try:
            self._out.sendto(what, self._path(name))
        except OSError:  # it is dead, or its queue is full and it will wake anyway
            pass

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
