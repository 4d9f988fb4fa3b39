"""Sends commands to the program that runs a session: a small file beside its record, and a datagram to a wake-up socket.

The wake-up socket also shows which programs live: the kernel refuses a datagram to a dead program's socket, whatever its
process id was. So a reused process id never makes a dead program look alive.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

import msgspec

from ratekeeper.errors import RatekeeperError
from ratekeeper.rules.reading import FAULTS
from ratekeeper.sessions.history import Record, Records
from ratekeeper.stores.files import make_folder, open_private, write_private
from ratekeeper.stores.members import WakeSockets
from ratekeeper.typed import json_decoder

__all__ = ["Command", "Listener", "ask", "listing"]

_LOG: Final = logging.getLogger("ratekeeper")
_PATIENCE: Final = 1.0
"""Seconds after which the listener checks for commands without a wake-up."""


class Command(msgspec.Struct, frozen=True):
    """A command to a session from another program. `sender` is woken when it is done."""

    do: Literal["recover", "stop"]
    sender: int


class Listener:
    """Claims sessions for a program and receives their commands.

    Args:
        records: where records and commands are.
        heed: called with a session's id and each command for it, in a thread of the listener.
    """

    def __init__(self, records: Records, heed: Callable[[str, Command], None]) -> None:
        self._records = records
        self._heed = heed
        self._wake_sockets = WakeSockets(records.folder / "wake")
        self.member = secrets.randbits(63) | 1
        self._wake_socket = self._wake_sockets.open(self.member)
        self._ids: set[str] = set()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="ratekeeper-sessions", daemon=True)
        self._thread.start()

    def claim(self, session: str) -> Record:
        """Claim a session for this program; returns its record.

        Raises:
            RatekeeperError: a living program runs it: two at once would trade twice.
        """
        with _alone(self._records.folder):
            record = self._records.read(session)
            if session in self._ids or (record.member != self.member and record.member in self._wake_sockets.living()):
                raise RatekeeperError(
                    f"session {session} is already run by process {record.pid}; give one another name"
                )
            record = msgspec.structs.replace(record, pid=os.getpid(), member=self.member)
            self._records.write(record)
        self._records.path(session, ".do").unlink(missing_ok=True)  # the command was for a dead program
        self._ids.add(session)
        return record

    def done(self, command: Command) -> None:
        """Tell the sender of a command that it was executed."""
        self._wake_sockets.wake([command.sender])

    def _run(self) -> None:
        while not self._closed:
            select.select([self._wake_socket], [], [], _PATIENCE)
            _drain(self._wake_socket)
            for session in list(self._ids):
                path = self._records.path(session, ".do")
                try:
                    command = json_decoder(Command)(path.read_bytes())
                except FileNotFoundError:
                    continue
                except (OSError, *FAULTS):
                    path.unlink(missing_ok=True)
                    continue
                path.unlink(missing_ok=True)
                self._heed(session, command)

    def close(self) -> None:
        """Receive no more commands; other programs may then claim the sessions."""
        self._closed = True
        self._wake_sockets.wake([self.member])
        self._thread.join(5.0)
        self._wake_sockets.close()


def listing(home: Path) -> list[tuple[Record, bool]]:
    """Return all sessions of a state folder, and whether the program that runs each of them lives."""
    records = Records(home)
    wake_sockets = WakeSockets(records.folder / "wake")
    living = wake_sockets.living()
    wake_sockets.close()
    return [(record, record.member in living) for record in records.all()]


def ask(home: Path, session: str, do: Literal["recover", "stop"], timeout: float = 30.0) -> Record | None:
    """Ask the program that runs `session` to recover or stop it.

    Args:
        home: the state folder.
        session: its id, or its name alone if no other living program has a session of that name.
        do: the command.
        timeout: seconds to wait for the result.

    Returns:
        The session afterwards; None if the command was not done in time (it will be).

    Raises:
        RatekeeperError: there is no such session, there are several, or no program runs it.
    """
    records = Records(home)
    record = _find(listing(home), session)
    wake_sockets = WakeSockets(records.folder / "wake")
    sender = secrets.randbits(63) | 1
    wake_socket = wake_sockets.open(sender)
    try:
        path = records.path(record.id, ".do")
        write_private(path, msgspec.json.encode(Command(do, sender)))
        wake_sockets.wake([record.member])
        end = time.monotonic() + timeout
        while (left := end - time.monotonic()) > 0:
            if select.select([wake_socket], [], [], min(left, _PATIENCE))[0] and b"w" in _drain(wake_socket):
                return records.read(record.id)
            if record.member not in wake_sockets.living():
                path.unlink(missing_ok=True)
                raise RatekeeperError(f"the program of session {record.id} ended meanwhile")
        return None
    finally:
        wake_sockets.close()


def _find(rows: Iterable[tuple[Record, bool]], session: str) -> Record:
    meant = [(r, alive) for r, alive in rows if session in (r.id, r.id.rpartition("@")[0])]
    if not meant:
        raise RatekeeperError(f"there is no session {session}: ratekeeper sessions list")
    living = [record for record, alive in meant if alive]
    if not living:
        raise RatekeeperError(f"no program runs session {session}; it will go on when one is started")
    if len(living) > 1:
        raise RatekeeperError(f"several are called {session}: {', '.join(record.id for record in living)}")
    return living[0]


def _drain(wake_socket: socket.socket) -> set[bytes]:
    heard: set[bytes] = set()
    try:
        while True:
            heard.add(wake_socket.recv(16))
    except OSError:
        return heard


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Admit one program at a time."""
    make_folder(folder)
    lock = open_private(folder / "lock", os.O_RDWR)
    try:
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:  # the lock's owner was stopped meanwhile: go on rather than hang
                    _LOG.warning(
                        "the lock of the sessions in %s is held by a program that has stopped; going on", folder
                    )
                    break
                time.sleep(0.01)
        yield
    finally:
        os.close(lock)
