"""Pub/sub wake-ups between machines: every process subscribes to all namespaces; a thread turns messages into datagrams."""

from __future__ import annotations

import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

from ratekeeper.errors import StoreError
from ratekeeper.stores.redis.connection import Connection
from ratekeeper.stores.redis.protocol import NOTES, Message, keys_of, read_message
from ratekeeper.stores.threads import Helper, log_death

__all__ = ["PubSub"]

_CHANNELS: Final = "hg:*:bell"
_PATIENCE: Final = 1.0
"""Seconds between two checks whether any member still listens; also the pause before a reconnect."""


class PubSub:
    """Publishes wake-ups and receives those of other processes.

    Args:
        connection: to the server; the listening thread opens another one from the same client.
        changed: called with a namespace whose blocks or limits changed; a bound method, held weakly.
        died: see `Helper`.
    """

    def __init__(
        self,
        connection: Connection,
        changed: Callable[[str], object],
        died: Callable[[str, BaseException], object] = log_death,
    ) -> None:
        self._connection = connection
        self._died = died
        self._changed = weakref.WeakMethod(changed)
        self._sockets: dict[bytes, tuple[socket.socket, socket.socket]] = {}
        self._lock = threading.Lock()
        self._thread: Helper | None = None
        self.closed = False

    def subscribe(self, member: str) -> socket.socket:
        """Return a socket that becomes readable when `member` is woken."""
        inner, outer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        inner.setblocking(False)
        outer.setblocking(False)
        with self._lock:
            self._sockets[member.encode()] = outer, inner
        self.look()
        return inner

    def look(self) -> None:
        """Start the listening thread if there is none, or if it has died."""
        with self._lock:
            dead = self._thread is None or not self._thread.is_alive()
            if dead and self._sockets and not self.closed:
                self._thread = Helper(_listen, weakref.ref(self), self._connection, name="wake-ups", died=self._died)

    def unsubscribe(self, member: str) -> None:
        """Stop listening for that member."""
        with self._lock:
            pair = self._sockets.pop(member.encode(), ())
        for end in pair:
            end.close()

    def publish(self, members: Iterable[str]) -> None:
        """Wake members on all machines. While the server is away no wake-up arrives: their safety recheck remains."""
        names = " ".join(members)
        if names:
            try:
                self._connection.ask(lambda redis: redis.publish(f"{keys_of(NOTES)}bell", f"wake {names}"))
            except StoreError:
                pass

    def hear(self, message: Message) -> None:
        """Handle a received message."""
        if message.changed:
            changed = self._changed()
            if changed is not None:
                changed(message.namespace)
        with self._lock:
            for member in self._sockets if message.members is None else message.members:
                pair = self._sockets.get(member)
                if pair is not None:
                    try:
                        pair[0].send(b"w")
                    except OSError:
                        pass  # its queue is full: it will wake anyway

    def close(self) -> None:
        """Stop listening."""
        self.closed = True
        for member in list(self._sockets):
            self.unsubscribe(member.decode())


def _listen(pubsub: weakref.ref[PubSub], connection: Connection) -> None:
    """Run the listening thread. A `Helper` calls this again after an error."""
    channel: Any = None
    try:
        while True:
            message = None
            try:
                if channel is None:
                    channel = connection.ask(_subscribed)
                    message = Message("", False, None)  # messages may have been lost: everyone rechecks
                else:
                    message = connection.read(partial(_next, channel))
            except Exception:  # noqa: BLE001 - server lost or message unreadable: retry; the safety recheck remains
                _let_go(channel)
                channel = None
                time.sleep(_PATIENCE / 4)
            here = pubsub()
            if here is None or here.closed:
                return
            if message is not None:
                here.hear(message)
            del here
    finally:
        _let_go(channel)


def _subscribed(redis: Any) -> Any:
    channel = redis.pubsub(ignore_subscribe_messages=True)
    try:
        channel.psubscribe(_CHANNELS)
    except BaseException:
        _let_go(channel)
        raise
    return channel


def _next(channel: Any) -> Message | None:
    """Return the next message, or None after a while without one."""
    got = channel.get_message(timeout=_PATIENCE)
    if got is None or got["type"] != "pmessage":
        return None
    return read_message(got["channel"], got["data"])


def _let_go(channel: Any) -> None:
    if channel is not None:
        try:
            channel.close()
        except Exception:  # noqa: BLE001, S110 - it is lost anyhow, and the interpreter may be going down
            pass
