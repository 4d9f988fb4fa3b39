"""First contact: one question for the whole machine, and no harm if it is not answered."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from tests.support.tidy import TidyServer

from ratekeeper import Event, Gate

INFO = {
    "serverTime": 0,
    "rateLimits": [{"rateLimitType": "REQUEST_WEIGHT", "interval": "SECOND", "intervalNum": 5, "limit": 77}],
}


class Exchange:
    """A server on loopback that states its limits, and counts who asks."""

    def __init__(self, status: int = 200, pause: float = 0.0) -> None:
        outer = self
        self.asked = 0

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked += 1
                time.sleep(pause)
                body = json.dumps({**INFO, "serverTime": time.time_ns() // 1_000_000}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Nothing on stderr."""

        self.server = TidyServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def exchange() -> Iterator[Exchange]:
    """An exchange that answers at once."""
    made = Exchange()
    yield made
    made.close()


def gate_for(exchange: Exchange) -> Gate:
    """A gate on the shared store that takes the server for Binance."""
    return Gate("host://", hosts={exchange.host: "binance-usdm"})


def test_one_question_serves_all_processes(exchange: Exchange) -> None:
    """The second gate of the machine knows what the first was told: limits, and the time."""
    for _ in range(2):
        with gate_for(exchange) as gate:
            provider = gate.provider("binance-usdm")
            gate.first_contact(provider, f"http://{exchange.host}")
            limit = gate.provider("binance-usdm").limits["weight-1m"]
            assert (limit.capacity, limit.period) == (77, 5_000_000_000)
            assert gate.times.clock(provider.namespace).known
    assert exchange.asked == 1


def test_the_question_itself_is_charged(exchange: Exchange) -> None:
    """It is a call like any other."""
    with gate_for(exchange) as gate:
        asyncio.run(gate.first_contact_async(gate.provider("binance-usdm"), f"http://{exchange.host}"))
        (ledger,) = gate.read().ledgers
        assert (ledger.used, ledger.inflight, ledger.limit.capacity) == (1, 0, 77)


def test_others_wait_for_the_answer() -> None:
    """While one asks, calls of others wait, even those with less patience than the question may take."""
    exchange = Exchange(pause=0.4)
    with gate_for(exchange) as asker, gate_for(exchange) as other:
        base = f"http://{exchange.host}"
        thread = threading.Thread(target=asker.first_contact, args=(asker.provider("binance-usdm"), base))
        thread.start()
        while not exchange.asked:
            assert thread.is_alive()
        other.first_contact(other.provider("binance-usdm"), base)
        with other.permit("binance-usdm", "GET", "/fapi/v1/time", timeout=3) as permit:
            assert other.provider("binance-usdm").limits["weight-1m"].capacity == 77
        assert permit.waited > 0.05
        thread.join()
    assert exchange.asked == 1
    exchange.close()


@pytest.mark.parametrize("reachable", [True, False])
def test_no_answer_is_no_harm(reachable: bool) -> None:
    """A server without that route, or none at all: the file's numbers hold, and nobody is held up."""
    exchange = Exchange(status=404)
    if not reachable:
        exchange.close()
    with gate_for(exchange) as gate:
        provider = gate.provider("binance-usdm")
        gate.first_contact(provider, f"http://{exchange.host}")
        gate.first_contact(provider, f"http://{exchange.host}")
        with gate.permit("binance-usdm", "GET", "/fapi/v1/time", timeout=0):
            assert gate.provider("binance-usdm").limits["weight-1m"].capacity == 2400
        assert gate.read().ledgers[0].inflight == 0
    if reachable:
        assert exchange.asked == 1
        exchange.close()


def test_the_rest_of_an_address_is_told(exchange: Exchange, tmp_path: Path) -> None:
    """The first contact may be the first to find that an address does not work."""
    config = tmp_path / "ratekeeper.toml"
    config.write_text(
        '[egress.addresses]\ndead = { proxy = "http://127.0.0.1:1" }\nlive = "127.0.0.1"\n'
        '[egress.pools.binance-usdm]\nprimary = ["dead", "live"]\n'
    )
    told: list[Event] = []
    with Gate("memory://", hosts={exchange.host: "binance-usdm"}, config=config) as gate:
        gate.on(told.append)
        gate.first_contact(gate.provider("binance-usdm"), f"http://{exchange.host}")
    (event,) = [each for each in told if each.kind == "egress"]
    assert event.message == "dead rests for 5 s: no connection from proxy 127.0.0.1:1"
    assert event.fields == {"address": "dead", "seconds": 5.0}
