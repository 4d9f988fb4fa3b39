"""The log file: one JSON line for every request that arrived."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import msgspec

__all__ = ["Journal"]


class Journal:
    """Writes arrivals to a file; without a name it does nothing.

    Args:
        name: the file, written anew; or ``None``.
    """

    def __init__(self, name: str | None) -> None:
        self._file: BinaryIO | None = Path(name).open("wb") if name else None  # noqa: SIM115 - closed in `close`
        self._encode = msgspec.json.Encoder().encode

    @property
    def open(self) -> bool:
        """Whether anything is written."""
        return self._file is not None

    def write(
        self,
        now: int,
        *,
        ip: str,
        account: str,
        route: str,
        cost: dict[str, int],
        used: dict[str, int],
        status: int,
    ) -> None:
        """One arrival at `now` (nanoseconds; written as seconds)."""
        if self._file is not None:
            line = {"t": now / 1e9, "ip": ip, "account": account, "route": route, "cost": cost, "used": used}
            self._file.write(self._encode({**line, "status": status}) + b"\n")

    def flush(self) -> None:
        """Make what was written visible to readers of the file."""
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
