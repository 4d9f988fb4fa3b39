"""How a process wakes another one that waits for units: a datagram to a socket in the shared folder.

The socket's file also tells who is alive: the kernel refuses a datagram to a dead process's socket, in whatever PID
namespace it lived.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from pathlib import Path

__all__ = ["Doorbells"]

_LONGEST = 100
"""Paths of sockets must fit into 104 (macOS) or 108 (Linux) bytes."""


class Doorbells:
    """The sockets of a folder: one's own, and those of others."""

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

    def hang(self, member: int) -> socket.socket:
        """Make `member`'s socket; whoever sends to it wakes its process."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        bell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        bell.setblocking(False)
        bell.bind(self._path(f"{member:016x}"))
        self._own[member] = bell
        return bell

    def take_down(self, member: int) -> None:
        """Remove `member`'s socket."""
        bell = self._own.pop(member, None)
        if bell is not None:
            bell.close()
            self._remove(f"{member:016x}")

    def ring(self, members: Iterable[int]) -> None:
        """Wake members; those that died are forgotten."""
        for member in members:
            self._send(f"{member:016x}", b"w")

    def living(self) -> set[int]:
        """The members whose processes exist, own ones included; dead ones' sockets are removed."""
        try:
            names = [entry.name for entry in os.scandir(self._folder)]
        except OSError:
            return set(self._own)
        return {int(name, 16) for name in names if self._send(name, b"")}

    def dead(self) -> set[int]:
        """The members whose processes ended without taking their sockets away; they are removed now."""
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
        except OSError:  # its queue is full: it will wake anyhow
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
        """Remove own sockets."""
        for member in list(self._own):
            self.take_down(member)
        if self._out is not None:
            self._out.close()
            self._out = None
        if self._dir >= 0:
            os.close(self._dir)
            self._dir = -1

    def abandon(self) -> None:
        """After a fork: these sockets are the parent's; close the copies, leave the files."""
        for bell in self._own.values():
            bell.close()
        self._own.clear()
        self.close()
