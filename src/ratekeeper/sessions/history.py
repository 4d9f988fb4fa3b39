"""The session records on disk: one small file each, replaced as a whole, so that a kill leaves the old or the new."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import quote

import msgspec

from ratekeeper.errors import StoreUnavailable
from ratekeeper.rules.reading import FAULTS
from ratekeeper.sessions.restarts import Progress, Recovery
from ratekeeper.stores.files import make_folder, write_private
from ratekeeper.typed import json_decoder

__all__ = ["KEPT", "Record", "Records"]

_LOG: Final = logging.getLogger("ratekeeper")
KEPT: Final = 100
"""Recoveries kept of a session."""


class Record(msgspec.Struct, frozen=True):
    """The record of one session.

    Attributes:
        id: ``NAME@PROGRAM``.
        pid: process that runs it, or ran it last.
        member: number of that program's socket, which shows whether it lives (`WakeSockets`).
        state: ``healthy``, ``abnormal``, ``recovering``, ``cooldown``, ``stopped`` or ``failed``.
        since: Unix seconds of the last change of state.
        why: the last failure, one line without secrets.
        progress: of its recovery.
        history: its latest recoveries, oldest first.
    """

    id: str
    pid: int = 0
    member: int = 0
    state: str = "stopped"
    since: float = 0.0
    why: str = ""
    progress: Progress = Progress()
    history: tuple[Recovery, ...] = ()


class Records:
    """The records of a state folder. A full or read-only disk is reported once; sessions go on without a history."""

    def __init__(self, home: Path) -> None:
        self.folder = home / "sessions"
        self._told = False

    def path(self, session: str, ending: str = ".json") -> Path:
        """Return the path of a session's file."""
        return self.folder / (quote(session, safe="@ ") + ending)

    def read(self, session: str) -> Record:
        """Return a session's record; a new one if it is missing or unreadable."""
        try:
            return json_decoder(Record)(self.path(session).read_bytes())
        except FileNotFoundError:
            return Record(session)
        except (OSError, *FAULTS) as error:
            _LOG.warning("the history of session %s cannot be read and begins anew: %s", session, error)
            return Record(session)

    def write(self, record: Record) -> None:
        """Write a record with the latest `KEPT` entries of its history."""
        record = msgspec.structs.replace(record, history=record.history[-KEPT:])
        path = self.path(record.id)
        try:
            make_folder(self.folder)
            write_private(path, msgspec.json.encode(record))
            self._told = False
        except OSError as error:
            if not self._told:
                self._told = True
                _LOG.warning("the history of sessions cannot be kept: %s", error)

    def all(self) -> Iterator[Record]:
        """Yield all records, by id.

        Raises:
            StoreUnavailable: the folder cannot be read.
        """
        try:
            paths = sorted(path for path in self.folder.iterdir() if path.suffix == ".json")
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise StoreUnavailable(f"{self.folder}: {error.strerror}") from error
        for path in paths:
            try:
                yield json_decoder(Record)(path.read_bytes())
            except (OSError, *FAULTS):
                continue
