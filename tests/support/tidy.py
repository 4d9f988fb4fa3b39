"""A threading HTTP server that leaves nothing open: what it accepted is closed, and its threads have ended, when it is."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from http.server import ThreadingHTTPServer
from typing import Any

__all__ = ["TidyServer"]


class TidyServer(ThreadingHTTPServer):
    """The server; many clients may connect at once."""

    request_queue_size = 256
    daemon_threads = True

    def __init__(self, *given: Any, **named: Any) -> None:
        self._taken: list[tuple[socket.socket, threading.Thread]] = []
        super().__init__(*given, **named)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread of its own."""
        thread = threading.Thread(target=self.process_request_thread, args=(request, client_address), daemon=True)
        self._taken = [(taken, other) for taken, other in self._taken if other.is_alive()]
        self._taken.append((request, thread))
        thread.start()

    def server_close(self) -> None:
        """Close the listener and all that came in."""
        super().server_close()
        for request, _ in self._taken:
            with contextlib.suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)
        for request, thread in self._taken:
            thread.join(10)
            request.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say what went wrong, unless the client is gone."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)
