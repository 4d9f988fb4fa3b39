"""Marks of processes that go on without the store, so that whoever uses it next leaves them what they may have spent.

A process that cannot reach the store takes no lock to say so: it makes an empty file in the shared folder. Whoever holds
the store and finds a mark takes, once, a permit for the absent one's share of every ledger; the absent one gives it back
when it returns and writes what it really spent. If it never does, the permit ends with its lease, as any other.
"""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import Final

__all__ = ["Absences"]

_FORGOTTEN: Final = 600.0
"""Seconds after which a mark is that of a process which died while it was absent."""


class Absences:
    """The marks in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def begin(self) -> str:
        """Leave a mark; returns its name, or ``""`` where nothing can be written (then nobody can write)."""
        name = secrets.token_hex(8)
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self._folder / name).touch(0o600)
        except OSError:
            return ""
        return name

    def end(self, name: str) -> None:
        """Take a mark away."""
        try:
            (self._folder / name).unlink()
        except OSError:
            pass

    def names(self) -> list[str]:
        """The marks there are."""
        found = []
        try:
            for mark in self._folder.iterdir():
                if time.time() - mark.stat().st_mtime < _FORGOTTEN:
                    found.append(mark.name)
                else:
                    self.end(mark.name)
        except OSError:
            pass  # no such folder: nobody was ever absent
        return found
