"""A server that states what it cannot mean: real httpx calls go on, on a store of one machine and on one of many."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.support.server import Server
from tests.support.tidy import TidyServer

from ratekeeper import Gate
from ratekeeper.adapters.httpx import Transport

RULES = """
format = 1
name = "{name}"
title = "A provider that states what it cannot mean"
hosts = ["{host}"]
source = "T"

[sources]
T = {{ title = "made for these tests", read = 2026-11-20, confidence = "D" }}

[limits.calls-1s]
unit = "calls"
capacity = 100
period = "1s"
headers = {{ limit = "x-limit", remaining = "x-left", reset = "x-reset", reset_format = "epoch-s" }}

[limits.weight-1s]
unit = "weight"
capacity = 200
period = "1s"
window = "fixed"
headers.used = "x-used"

[default]
cost = {{ calls = 1, weight = 2 }}

[[routes]]
match = "GET /big"
cost = {{ calls = 20, weight = 20 }}

[[routes]]
match = "GET /info"
cost = {{ calls = 1, weight = 1 }}

[[learn]]
route = "GET /info"
rows = "rows"
limit_name = "weight-1s"
interval = "every"
limit = "limit"
clock = "now"
"""
YEARS = 3650 * 86_400
STATED = {
    "a limit of one": {"x-limit": "1", "x-left": "0"},
    "a limit without end": {"x-limit": "1000000000000", "x-left": "999999999995"},
    "a counter of nothing": {"x-used": "0"},
    "a counter without end": {"x-used": "1000000000000000"},
    "a reset in ten years": {"x-left": "0", "x-reset": str(int(time.time()) + YEARS)},
    "a date in ten years": {"date": formatdate(time.time() + YEARS, usegmt=True)},
    "a date ten years ago": {"date": formatdate(time.time() - YEARS, usegmt=True)},
}
ROWS = b'{"rows": [{"every": "365d", "limit": 200}], "now": 2100000000000}'


class Liar(TidyServer):
    """Serves every call with `body`, and states `headers` beside it."""

    def __init__(self) -> None:
        outer = self
        self.body = b"{}"
        self.headers: dict[str, str] = {}
        self.arrived: list[float] = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                outer.arrived.append(time.monotonic())
                self.send_response_only(200)
                for name, value in ({"date": self.date_time_string()} | outer.headers).items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(outer.body)))
                self.end_headers()
                self.wfile.write(outer.body)

            def log_message(self, *_: Any) -> None:
                """Nothing on stderr."""

        super().__init__(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server_address[1]}"
        self.name = f"liar-{self.server_address[1]}"  # a namespace of its own on the Redis server
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()


@pytest.fixture
def liar() -> Iterator[Liar]:
    """The server."""
    with Liar() as server:
        yield server
        server.shutdown()
        server.thread.join()


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Redis server."""
    with Server(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


@pytest.fixture(params=["host", "redis"])
def new_gate(request: pytest.FixtureRequest, liar: Liar, tmp_path: Path, redis: str) -> Iterator[Callable[[], Gate]]:
    """Makes gates that share a store."""
    file = tmp_path / "liar.toml"
    file.write_text(RULES.format(name=liar.name, host=liar.host.partition(":")[0]))
    address = "host://" if request.param == "host" else redis
    made: list[Gate] = []

    def make() -> Gate:
        made.append(Gate(address, rules=[file], home=tmp_path / "home", max_wait=30))
        return made[-1]

    yield make
    for gate in made:
        gate.close()


def called(gate: Gate, liar: Liar, calls: int, path: str = "/x") -> float:
    """Make calls one after the other; return the seconds that they took."""
    begun = time.monotonic()
    with httpx.Client(transport=Transport(gate=gate)) as client:
        for _ in range(calls):
            assert client.get(f"http://{liar.host}{path}").status_code == 200
    return time.monotonic() - begun


@pytest.mark.parametrize("headers", STATED.values(), ids=STATED)
def test_calls_go_on(
    new_gate: Callable[[], Gate], liar: Liar, headers: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """It is told once, holds calls for a window at most, and is nothing to a program that begins later."""
    caplog.set_level(logging.WARNING, "ratekeeper")
    liar.headers = headers
    first, wait = new_gate(), 0.0
    took = called(first, liar, 30)
    told = [record.getMessage() for record in caplog.records if "cannot be meant" in record.getMessage()]
    assert len(told) == 1, told
    assert took < 20
    if "x-limit" in headers and headers["x-limit"] == "1":
        assert liar.arrived[1] - liar.arrived[0] > 0.9, "for one window it is obeyed"
    second = new_gate()
    called(second, liar, 5)
    wait = called(second, liar, 1, "/big")
    assert wait < 20
    assert {limit.capacity for limit in second.plans.provider(liar.name).limits.values()} == {100, 200}
    assert abs(second.times.now(liar.name).lo / 1e9 - time.time()) < 5


def test_a_limit_of_a_year(new_gate: Callable[[], Gate], liar: Liar, caplog: pytest.LogCaptureFixture) -> None:
    """A list of limits may state what it wants."""
    caplog.set_level(logging.WARNING, "ratekeeper")
    liar.body = ROWS
    gate = new_gate()
    called(gate, liar, 3, "/info")
    assert gate.plans.provider(liar.name).limits["weight-1s"].period == 10**9
    told = sorted(record.getMessage().partition(":")[2].partition(":")[0] for record in caplog.records)
    assert told == [" now", " weight-1s"]
