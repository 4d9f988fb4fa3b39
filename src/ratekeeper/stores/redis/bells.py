"""How processes on other machines ring: one channel that all listen to, and a thread that turns a message into a wake-up.

A message names the members that may look again, or a namespace whose blocks or limits changed.
"""

from __future__ import annotations

import socket
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Final

__all__ = ["Bells"]

_CHANNELS: Final = "hg:*:bell"
_PATIENCE: Final = 1.0
"""Seconds between two looks whether anybody still listens; also before a lost connection is tried again."""


class Bells:
    """The listening side of one process.

    Args:
        client: gives redis-py's client; a connection of its own is taken from that.
        changed: called with a namespace whose blocks or limits changed.
    """

    def __init__(self, client: Callable[[], Any], changed: Callable[[str], object]) -> None:
        self._client = client
        self._changed = weakref.WeakMethod(changed)
        self._rung: dict[bytes, tuple[socket.socket, socket.socket]] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self.closed = False

    def hang(self, member: str) -> socket.socket:
        """A socket that becomes readable when `member` is rung for."""
        inner, outer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        inner.setblocking(False)
        outer.setblocking(False)
        with self._lock:
            self._rung[member.encode()] = outer, inner
            if self._thread is None:
                self._thread = threading.Thread(
                    target=_listen, args=(weakref.ref(self), self._client), name="ratekeeper-bell", daemon=True
                )
                self._thread.start()
        return inner

    def take_down(self, member: str) -> None:
        """Nobody listens for that member any more."""
        with self._lock:
            pair = self._rung.pop(member.encode(), ())
        for end in pair:
            end.close()

    def hear(self, channel: bytes, message: bytes) -> None:
        """A message came in."""
        what, _, names = message.partition(b" ")
        if what in {b"gen", b"epoch"}:
            changed = self._changed()
            if changed is not None:
                changed(channel.decode()[4:-6])  # hg:{...}:bell
        if what in {b"gen", b"all"}:
            names = b" ".join(self._rung)  # whoever waited for the end of a block
        with self._lock:
            for member in names.split():
                bell = self._rung.get(member)
                if bell is not None:
                    try:
                        bell[0].send(b"w")
                    except OSError:
                        pass  # its queue is full: it will wake anyhow

    def ring_all(self) -> None:
        """Everybody of this process shall look: messages may have been lost."""
        self.hear(b"", b" ".join([b"wake", *self._rung]))

    def close(self) -> None:
        """Listen no more."""
        self.closed = True
        for member in list(self._rung):
            self.take_down(member.decode())


def _listen(bells: weakref.ref[Bells], client: Callable[[], Any]) -> None:
    """The listening thread."""
    channel = None
    while True:
        try:
            if channel is None:
                channel = client().pubsub(ignore_subscribe_messages=True)
                channel.psubscribe(_CHANNELS)
                here = bells()
                if here is not None:
                    here.ring_all()
                del here
            got = channel.get_message(timeout=_PATIENCE)
        except Exception:  # noqa: BLE001 - whatever redis-py raises for a lost server: try again, the safety look remains
            if channel is not None:
                try:
                    channel.close()
                except Exception:  # noqa: BLE001, S110 - it is lost anyhow
                    pass
            channel, got = None, None
            time.sleep(_PATIENCE / 4)
        here = bells()
        if here is None or here.closed:
            break
        if got is not None and got.get("type") == "pmessage":
            here.hear(got["channel"], got["data"])
        del here
    if channel is not None:
        try:
            channel.close()
        except Exception:  # noqa: BLE001, S110 - the interpreter may be going down
            pass
