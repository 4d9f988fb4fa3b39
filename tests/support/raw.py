"""A real server on loopback that keeps the very bytes of what arrives, and answers with the very bytes it is given."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

Act = Callable[[socket.socket], object]
"""Answers one request; a false value, or an exception, closes the connection."""


def answer(body: bytes, head: bytes = b"HTTP/1.1 200 OK") -> bytes:
    """One whole answer without any header that is not needed."""
    return head + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body


class Raw:
    """The server; a context manager. Without an act for its path, a request is answered with its own bytes.

    Attributes:
        requests: bytes of each request, head and body, in order of arrival.
        acts: what to do, by path without query.
    """

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self.acts: dict[str, Act] = {}
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = self._listener.getsockname()[1]
        self.place = f"127.0.0.1:{self.port}"
        self.url = f"http://{self.place}"
        self._open: list[tuple[socket.socket, threading.Thread]] = []

    def __enter__(self) -> Raw:
        self._listening = threading.Thread(target=self._listen, daemon=True)
        self._listening.start()
        return self

    def __exit__(self, *_: object) -> None:
        # A listener must be shut down to wake its thread; only closed, it would go on.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listening.join()
        self._listener.close()
        for connection, _ in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for connection, serving in self._open:
            serving.join(10)
            connection.close()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            serving = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._open.append((connection, serving))
            serving.start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection, connection.makefile("rb") as stream:
            self._answer(connection, stream)

    def _answer(self, connection: socket.socket, stream: object) -> None:
        while head := _head(stream):
            request = head + _body(stream, head)
            self.requests.append(request)
            path = head.split(b" ", 2)[1].split(b"?")[0].decode("latin-1")
            act = self.acts.get(path)
            if act is None:
                connection.sendall(answer(request))
            elif not act(connection):
                return


def _head(stream: object) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = stream.readline()  # type: ignore[attr-defined]
        if not line:
            return b""
        head += line
    return head


def _body(stream: object, head: bytes) -> bytes:
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
    if b"content-length" in fields:
        return stream.read(int(fields[b"content-length"]))  # type: ignore[attr-defined,no-any-return]
    body = b""
    if b"transfer-encoding" in fields:
        while True:
            line = stream.readline()  # type: ignore[attr-defined]
            size = int(line, 16)
            body += line + stream.read(size + 2)  # type: ignore[attr-defined]
            if not size:
                break
    return body
