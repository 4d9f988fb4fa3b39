"""A wait lasts as long as it was told to: an unchanged program, a real server, and the first answer of all is a refusal."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from tests.support.tidy import TidyServer

REFUSALS = {
    "binance-usdm /fapi/v1/klines?symbol=A": (418, {"Retry-After": "2"}),
    "bybit /v5/market/tickers": (429, {"Retry-After": "2"}),
    "orderly /v1/public/info": (403, {"Retry-After": "2"}),
    "okx /api/v5/public/time": (503, {"Retry-After": "2"}),
    "kraken /0/public/Time": (429, {"RateLimit": '"default";r=0;t=2'}),
    "bitget /api/v2/public/time": (429, {"RateLimit-Remaining": "0", "RateLimit-Reset": "2"}),
}
PROGRAM = """
import sys, httpx
with httpx.Client(timeout=60) as client:
    for _ in range(2):
        client.get(sys.argv[1])
"""


class Handler(BaseHTTPRequestHandler):
    """Refuses the first request, and notes when each came."""

    arrivals: list[float]
    refusal: tuple[int, dict[str, str]]

    def do_GET(self) -> None:
        self.arrivals.append(time.monotonic())
        status, headers = self.refusal if len(self.arrivals) == 1 else (200, {})
        self.send_response(status)
        for name, value in {**headers, "Content-Length": "2"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(params=REFUSALS)
def case(request: pytest.FixtureRequest) -> Iterator[tuple[str, str, type[Handler], str]]:
    """Provider, path, the handler and its host."""
    provider, path = request.param.split()
    handler = type("Refusing", (Handler,), {"arrivals": [], "refusal": REFUSALS[request.param]})
    server = TidyServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield provider, path, handler, f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_next_request_is_not_early(case: tuple[str, str, type[Handler], str], tmp_path: Path) -> None:
    """Two seconds are two, though the refusal's own date is the first word on the server's clock."""
    provider, path, handler, host = case
    environment = {**os.environ, "RATEKEEPER_HOSTS": f"{host}={provider}", "RATEKEEPER_HOME": str(tmp_path / "home")}
    command = [str(Path(sys.executable).with_name("ratekeeper")), "run", "--", sys.executable, "-c", PROGRAM]
    subprocess.run([*command, f"http://{host}{path}"], env=environment, check=True, timeout=60)
    assert handler.arrivals[1] - handler.arrivals[0] >= 2.0
    assert handler.arrivals[1] - handler.arrivals[0] < 12  # not for a window more, or for ever
