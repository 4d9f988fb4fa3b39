"""A real HTTP server on loopback that counts what arrives and misbehaves on request; for tests of the adapters."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs

from tests.support.tidy import TidyServer

DAY_LIMITS = [
    {"rateLimitType": "REQUEST_WEIGHT", "interval": "DAY", "intervalNum": 1, "limit": 100_000},
    {"rateLimitType": "ORDERS", "interval": "DAY", "intervalNum": 1, "limit": 1_000},
]
"""As in Binance's exchangeInfo. A day: no window ends during a test."""


@dataclass
class Arrival:
    """One request as the server got it."""

    method: str
    path: str
    params: dict[str, str]
    headers: dict[str, str]
    body: bytes
    source: str = ""
    at: float = field(default_factory=time.time)


class Handler(BaseHTTPRequestHandler):
    """What to do is said by the parameter ``do``; without it a small JSON answer."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        """Counts and answers."""
        origin: Origin = self.server.origin  # type: ignore[attr-defined]
        path, _, query = self.path.partition("?")
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        form = body.decode() if "form" in self.headers.get("content-type", "") else ""
        params = {name: values[0] for name, values in parse_qs(f"{query}&{form}", keep_blank_values=True).items()}
        headers = {name.lower(): value for name, value in self.headers.items()}
        with origin.lock:
            origin.arrivals.append(Arrival(self.command, path, params, headers, body, self.client_address[0]))
            seen = len([a for a in origin.arrivals if a.params.get("do") == params.get("do")])
        getattr(self, f"do_{params.get('do', origin.asked).replace('-', '_')}")(origin, params, seen)

    do_POST = do_PUT = do_DELETE = do_HEAD = do_GET  # noqa: N815 - http.server's names

    def answer(self, status: int, payload: Any, **headers: str) -> None:
        """One whole answer; `payload` is bytes or becomes JSON."""
        raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def do_ok(self, origin: Origin, params: dict[str, str], seen: int) -> None:
        """200; exchangeInfo states limits; rates are told for one symbol or for all."""
        name = self.path.partition("?")[0]
        rates = {
            symbol: {"symbol": symbol, "rate": 100 + index, "nth": len(origin.arrivals)}
            for index, symbol in enumerate("ABCDEFGH")
        }
        if name == "/rate" and params.get("symbol") in rates:
            self.answer(200, {"data": rates[params["symbol"]]}, X_Place="here")
        elif name == "/rate":
            self.answer(400, {"code": -1121, "msg": "Invalid symbol."})
        elif name == "/rates":
            self.answer(200, {"data": list(rates.values())})
        elif name == "/balance":
            self.answer(200, {"nth": len(origin.arrivals)})
        elif self.path.partition("?")[0].endswith("/exchangeInfo"):
            self.answer(200, {"serverTime": int(time.time() * 1000), "rateLimits": origin.limits, "symbols": []})
        else:
            self.answer(200, {"ok": True, "serverTime": int(time.time() * 1000)})

    def do_zipped_refusal(self, origin: Origin, params: dict[str, str], seen: int) -> None:
        """400 with a compressed body."""
        raw = gzip.compress(json.dumps({"code": -1102, "msg": "parameter missing"}).encode())
        self.answer(400, raw, Content_Encoding="gzip")

    def do_refuse(self, origin: Origin, params: dict[str, str], seen: int) -> None:
        """429 with a body in Binance's words."""
        self.answer(429, {"code": -1003, "msg": "Too many requests"}, Retry_After="1")

    def do_redirect(self, origin: Origin, params: dict[str, str], seen: int) -> None:
        """302 to the same path."""
        self.answer(302, b"", Location=f"http://{self.headers['host']}{self.path.partition('?')[0]}")

    def do_fail_once(self, origin: Origin, params: dict[str, str], seen: int) -> None:
        """503 the first time."""
        self.answer(503 if seen == 1 else 200, {"seen": seen})

    def do_code_once(self, origin: Origin, params: dict[str, str], seen: int) -> None:
        """200 whose body says that the rate limit of Bybit was hit, the first time; it may be tried again at once."""
        code = 10006 if seen == 1 else 0
        now = str(int(time.time() * 1000))
        self.answer(200, {"retCode": code, "retMsg": "Too many visits!"}, X_Bapi_Limit_Reset_Timestamp=now)

    def do_trouble(self, origin: Origin, params: dict[str, str], seen: int) -> None:
        """503, as long as the test says so."""
        if origin.trouble:
            self.answer(503, {"msg": "overloaded"}, **origin.hints)
        else:
            self.do_ok(origin, params, seen)

    def do_status(self, origin: Origin, params: dict[str, str], seen: int) -> None:
        """The status that is asked for."""
        self.answer(int(params["status"]), {"msg": "no"}, **origin.hints)

    def do_say(self, origin: Origin, params: dict[str, str], seen: int) -> None:
        """What the test says: a status and a body."""
        self.answer(*origin.says, **origin.hints)

    def do_reset(self, origin: Origin, params: dict[str, str], seen: int) -> None:
        """Takes the request and closes the connection."""
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def do_reset_once(self, origin: Origin, params: dict[str, str], seen: int) -> None:
        """The same, but answers the second time."""
        (self.do_reset if seen == 1 else self.do_ok)(origin, params, seen)

    def do_hang(self, origin: Origin, params: dict[str, str], seen: int) -> None:
        """Takes the request and says nothing until the test ends."""
        origin.ended.wait(20)
        self.close_connection = True

    def do_stall(self, origin: Origin, params: dict[str, str], seen: int) -> None:
        """Begins to stream and never goes on."""
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"5\r\npart0\r\n")
        origin.ended.wait(20)
        self.close_connection = True

    def do_stream(self, origin: Origin, params: dict[str, str], seen: int) -> None:
        """Three chunks; each waits for the test's word."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number in range(3):
            if not origin.more.acquire(timeout=20):
                return
            part = b"part%d\n" % number
            self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")


class Origin:
    """The server; a context manager.

    Attributes:
        arrivals: what came, in order.
        limits: what exchangeInfo states.
        trouble: whether what is asked to ``do=trouble`` fails now, and with which further headers (`hints`).
        asked: what is done where a request does not say.
        says: the answer to what is asked to ``do=say``.
        more: released once for each chunk that a stream may send.
    """

    def __init__(self) -> None:
        self.arrivals: list[Arrival] = []
        self.limits: list[dict[str, Any]] = DAY_LIMITS
        self.trouble = True
        self.asked = "ok"
        self.says: tuple[int, Any] = (200, {})
        self.hints: dict[str, str] = {}
        self.more = threading.Semaphore(0)
        self.ended = threading.Event()
        self.lock = threading.Lock()
        self.server = TidyServer(("127.0.0.1", 0), Handler)
        self.server.origin = self  # type: ignore[attr-defined]
        self.place = f"127.0.0.1:{self.server.server_port}"
        self.url = f"http://{self.place}"

    def paths(self) -> list[str]:
        """Paths that arrived, apart from the first contact's own reading of the limits."""
        return [a.path for a in self.arrivals if a.headers.get("user-agent") != "ratekeeper"]

    def __enter__(self) -> Origin:
        self._serving = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self._serving.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        for _n in range(100):
            self.more.release()
        self.server.shutdown()
        self._serving.join()
        self.server.server_close()
