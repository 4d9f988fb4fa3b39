"""The helper thread of a waiting room: it sleeps until the first computed instant, or until a wake-up socket is signalled."""

from __future__ import annotations

import select
import socket
import weakref
from typing import Any, Final, Protocol

__all__ = ["IDLE", "Sleeper", "keep_time"]

IDLE: Final = 60.0
"""The helper thread sleeps at most this many seconds."""


class Sleeper(Protocol):
    """An object with work at computed instants."""

    def tick(self, rung: bool) -> float:
        """Do the work that is due. `rung`: another process signalled the wake-up socket. Return seconds to sleep."""


def keep_time(room: weakref.ref[Sleeper], alarm: socket.socket, wake_socket: socket.socket | None) -> None:
    """Run the helper thread: sleep until the next instant, or until a socket is signalled. Returns when the room is gone or
    closed. Every waiting call depends on this thread, so a `Helper` calls this again after an error."""
    rung = True
    channels = [alarm] if wake_socket is None else [alarm, wake_socket]
    while True:
        here = room()
        if here is None:
            break
        seconds = here.tick(rung)
        del here  # so that a gate without references can be freed
        rung = False
        ready = _readable(channels, min(seconds, IDLE))
        if alarm in ready and not _drain(alarm):
            break
        if wake_socket is not None and wake_socket in ready:
            try:
                rung = _drain(wake_socket)
            except OSError:  # it was closed; the recheck remains
                channels = [alarm]
    alarm.close()


def _readable(channels: list[socket.socket], seconds: float) -> list[socket.socket]:
    """Return the sockets that have data or were closed, after `seconds` at most."""
    if not hasattr(select, "poll"):  # on Windows and under eventlet
        return select.select(channels, (), (), seconds)[0]
    poll = select.poll()
    for channel in channels:
        if channel.fileno() >= 0:
            poll.register(channel, select.POLLIN)
    numbers = {number for number, _ in poll.poll(seconds * 1000)}
    return [channel for channel in channels if channel.fileno() in numbers]


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
