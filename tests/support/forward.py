"""A small forward proxy on loopback, for plain HTTP: it sends on from an address of its own."""

from __future__ import annotations

import http.client
import threading
from http.server import BaseHTTPRequestHandler
from urllib.parse import urlsplit

from tests.support.tidy import TidyServer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        """Sends on what was asked in the absolute form, and answers what came back."""
        proxy: ForwardProxy = self.server.proxy  # type: ignore[attr-defined]
        parts = urlsplit(self.path)
        assert parts.netloc, "a proxy is asked with a whole URL"
        proxy.asked.append((self.path, self.headers.get("Proxy-Authorization", "")))
        onward = http.client.HTTPConnection(parts.netloc, timeout=10, source_address=(proxy.source, 0))
        headers = {name: value for name, value in self.headers.items() if not name.lower().startswith("proxy-")}
        onward.request("GET", parts._replace(scheme="", netloc="").geturl(), headers=headers)
        answer = onward.getresponse()
        body = answer.read()
        onward.close()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in {"content-length", "transfer-encoding", "connection"}:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class ForwardProxy:
    """Attributes: `url`, `source` (the address it sends from), `asked` (URLs, and the login shown)."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.asked: list[tuple[str, str]] = []
        self._server = TidyServer(("127.0.0.1", 0), _Handler)
        self._server.proxy = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> ForwardProxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
