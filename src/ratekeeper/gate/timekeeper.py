"""The helper thread of a waiting room: it sleeps until the first computed instant, or until a wake-up socket is signalled."""

from __future__ import annotations

import logging
import select
import socket
import weakref
from typing import Any, Final, Protocol

__all__ = ["IDLE", "Sleeper", "keep_time"]

IDLE: Final = 60.0
"""The helper thread sleeps at most this many seconds."""
_AGAIN: Final = 1.0
_LOG: Final = logging.getLogger("ratekeeper")


class Sleeper(Protocol):
    """An object with work at computed instants."""

    def tick(self, rung: bool) -> float:
        """Do the work that is due. `rung`: another process signalled the wake-up socket. Return seconds to sleep."""


def keep_time(room: weakref.ref[Sleeper], alarm: socket.socket, wake_socket: socket.socket | None) -> None:
    """Run the helper thread: sleep until the next instant, or until a socket is signalled."""
    poll = select.poll()
    poll.register(alarm, select.POLLIN)
    if wake_socket is not None:
        poll.register(wake_socket, select.POLLIN)
    seconds, rung = 0.0, False
    try:
        while True:
            here = room()
            if here is None:
                return
            try:
                seconds = here.tick(rung)
            except ReferenceError:
                return
            except Exception:  # noqa: BLE001 - logged, and tried again
                # Every waiting call depends on this thread, so it goes on after any error.
                _LOG.warning("ratekeeper: waiting calls could not be served; trying again", exc_info=True)
                seconds = _AGAIN
            del here  # so that a gate without references can be freed
            rung = False
            for number, _ in poll.poll(min(seconds, IDLE) * 1000):
                if number == alarm.fileno():
                    if not _drain(alarm):
                        return
                elif wake_socket is not None:
                    rung = _drain(wake_socket) or rung
    except (OSError, ReferenceError, ValueError):
        return  # the socket was closed meanwhile
    finally:
        alarm.close()


def _drain(channel: socket.socket) -> bool:
    """Read all pending data; False: the other end is closed (stream), or only empty datagrams came."""
    full = False
    while True:
        try:
            got: Any = channel.recv(64)
        except BlockingIOError:
            return full
        if not got and channel.type == socket.SOCK_STREAM:
            return False
        full = full or bool(got)
