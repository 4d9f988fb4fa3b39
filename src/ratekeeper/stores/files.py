"""Files and folders that only their owner may read and enter, whatever the umask of the program is."""

from __future__ import annotations

import os
import stat
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

__all__ = ["make_folder", "make_private", "open_private", "write_private"]

_FILE: Final = 0o600
_FOLDER: Final = 0o700


def make_folder(folder: Path) -> None:
    """Create a folder, and those above it that are missing. One that exists stays as it is.

    Raises:
        OSError: one of them can be neither found nor created.
    """
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for each in reversed(missing):
        try:
            each.mkdir(_FOLDER)
        except FileExistsError:
            if not each.is_dir():
                raise
            continue  # another process was first
        each.chmod(_FOLDER)


def open_private(path: Path, flags: int) -> int:
    """Open a file, and create it if it is missing; return its descriptor. Raises OSError."""
    descriptor = os.open(path, flags | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), _FILE)
    if stat.S_IMODE(os.fstat(descriptor).st_mode) != _FILE:
        make_private(path if os.chmod not in os.supports_fd else descriptor)
    return descriptor


def make_private(path: Path | str | int) -> None:
    """Let only the owner use a file or a socket that another library has made."""
    with suppress(PermissionError):  # it belongs to another user, who lets us use it
        os.chmod(path, _FILE)  # noqa: PTH101 - a descriptor is no path


def write_private(path: Path, content: bytes, *, sync: bool = False) -> None:
    """Replace a file as a whole, so that no reader sees half of it. Its folder must exist.

    Args:
        path: the file.
        content: of the file.
        sync: whether it is on the disk when this returns.

    Raises:
        OSError: it cannot be written; it is as it was.
    """
    draft = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_native_id()}")
    try:
        with os.fdopen(open_private(draft, os.O_WRONLY | os.O_TRUNC), "wb") as file:
            file.write(content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        with suppress(OSError):
            draft.unlink()
        raise
