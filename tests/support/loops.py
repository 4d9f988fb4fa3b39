"""Who waits on an event loop: blocking calls of sockets made by its thread, and instructions at which it stands."""

from __future__ import annotations

import socket
import sys
import threading
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

__all__ = ["Watch"]

_CALLS = ("connect", "send", "sendall", "sendto", "recv", "recv_into", "recvfrom", "accept")
_LOOK = 0.01
_LOOKS = 15


class Watch:
    """Watches the thread that enters it.

    Two things are seen. A call on a socket that may block, whether or not it did: that depends on no clock. And a thread that
    the kernel has put to sleep at one and the same instruction for 150 ms, elsewhere than in the loop's own selector: it
    waits for a lock whose holder waits for the network. A thread that merely gets no processor is not asleep.

    Attributes:
        waits: the stacks of both.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.waits: list[str] = []
        self._patch = patch
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._ident, self._native = threading.get_ident(), threading.get_native_id()
        for name in _CALLS:
            self._patch.setattr(socket.socket, name, self._seen(getattr(socket.socket, name)), raising=False)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self._patch.undo()

    def _seen(self, real: Any) -> Any:
        def call(sock: socket.socket, *values: Any, **options: Any) -> Any:
            if threading.get_ident() == self._ident and sock.gettimeout() != 0:
                self.waits.append("".join(traceback.format_stack(limit=25)))
            return real(sock, *values, **options)

        return call

    def _asleep(self) -> bool:
        stat = Path(f"/proc/self/task/{self._native}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] == "S"

    def _look(self) -> None:
        last, looks = None, 0
        while not self._over.wait(_LOOK):
            frame = sys._current_frames().get(self._ident)
            if frame is None or frame.f_code.co_name == "select" or not self._asleep():
                last, looks = None, 0
                continue
            here = id(frame), frame.f_lasti
            looks = looks + 1 if here == last else 1
            last = here
            if looks == _LOOKS:
                self.waits.append("".join(traceback.format_stack(frame, limit=25)))
