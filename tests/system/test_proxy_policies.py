"""`ratekeeper proxy` with policies: what programs in any language get of kept answers, retries and merged calls."""

from __future__ import annotations

import http.client
import json
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from ratekeeper import Gate
from ratekeeper.adapters.httpx import Transport
from ratekeeper.testing import Emulator

from .test_proxy import Running

KLINES = "/binance-usdm/fapi/v1/klines?symbol=BTCUSDT&interval=1m&limit=500"
TICKER = "/binance-usdm/fapi/v1/ticker/price?symbol="
ORDER = "/binance-usdm/fapi/v1/order?symbol=BTCUSDT&side=BUY&type=LIMIT&timeInForce=GTC&quantity=0.01&price=30000"


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    """An exchange."""
    with Emulator("binance-usdm", latency=(10, 30)) as made:
        yield made


@pytest.fixture
def proxy(emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """A proxy with all policies. Candles stay fresh for longer than a test takes on a busy machine."""
    monkeypatch.setenv("RATEKEEPER_POLICIES", "all")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "ratekeeper.toml").write_text(
        '[policies.cache]\nttl = { "binance-usdm GET /fapi/v1/klines" = 600 }\n'
    )
    made = Running(home=tmp_path / "home", hosts=emulator.hosts)
    yield made
    made.end()


def arrivals(emulator: Emulator, route: str) -> int:
    """Calls of a route that came to the exchange."""
    return int(emulator.stats()["routes"].get(route, 0))


def at_once(work: Any, asked: list[str]) -> list[Any]:
    """Many clients, each with a connection of its own."""
    with ThreadPoolExecutor(len(asked)) as pool:
        return list(pool.map(work, asked))


def test_one_question_is_asked_once(proxy: Running, emulator: Emulator, tmp_path: Path) -> None:
    """Twenty clients, and a Python program beside the proxy, share one answer, which says so and is the same for all."""
    found = at_once(proxy.get, [KLINES] * 20)
    assert {status for status, _, _ in found} == {200}
    assert len({body for _, _, body in found}) == 1
    assert len(json.loads(found[0][2])) == 500
    assert Counter(headers["x-ratekeeper-answer"] for _, headers, _ in found)["fresh"] <= 1
    # Packed or not, whoever asks gets what he can read.
    _, headers, body = proxy.get(KLINES, Accept_Encoding="gzip")
    assert headers["content-encoding"] is None
    with (
        Gate(home=tmp_path / "home", hosts=emulator.hosts, policies="cache") as gate,
        httpx.Client(transport=Transport(gate=gate)) as client,
    ):
        again = client.get(emulator.url + KLINES.removeprefix("/binance-usdm"))
    assert again.content == body
    assert again.headers["x-ratekeeper-answer"] == "hit"
    assert arrivals(emulator, "GET /fapi/v1/klines") == 1


def test_single_calls_become_one(proxy: Running, emulator: Emulator) -> None:
    """Prices of many symbols, asked for at once, are one call, and each client gets its own."""
    symbols = ["BTCUSDT", "ETHUSDT", "SOLUSDT", "XRPUSDT", "BNBUSDT"]
    found = at_once(proxy.get, [TICKER + symbol for symbol in symbols])
    assert [json.loads(body)["symbol"] for _, _, body in found] == symbols
    assert arrivals(emulator, "GET /fapi/v1/ticker/price") < len(symbols)


def test_trouble_is_not_shown(proxy: Running, emulator: Emulator) -> None:
    """Half of the calls fail or are hung up on: every client is served all the same."""
    emulator.options(errors=0.25, hangup=0.25)
    found = [proxy.get(f"/binance-usdm/fapi/v1/depth?symbol=BTCUSDT&limit={limit}") for limit in (5, 10, 20, 50, 100)]
    assert [status for status, _, _ in found] == [200] * 5
    totals = emulator.stats()["totals"]
    assert totals["errors"] + totals["hung_up"] > 0


def test_an_order_is_sent_once(proxy: Running, emulator: Emulator) -> None:
    """Whatever becomes of it; whoever does not know is told so."""
    emulator.options(hangup=1.0)
    for number in range(4):
        connection = http.client.HTTPConnection(proxy.url.removeprefix("http://"), timeout=30)
        path = f"{ORDER}&newClientOrderId=p{number}&timestamp={int(time.time() * 1000)}&signature={'0' * 64}"
        connection.request("POST", path, headers={"X-MBX-APIKEY": "kkk"})
        answer = connection.getresponse()
        said = json.loads(answer.read())["error"]
        connection.close()
        assert answer.status == 502
        assert said["sent"] == "unknown"
    accounts = emulator.stats()["orders"].values()
    placed = [one["placed"] for account in accounts for one in account.get("by_client_id", {}).values()]
    assert all(number == 1 for number in placed)


def test_the_last_answer_is_what_the_client_gets(
    emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it stays bad, it is the provider's own words."""
    settings = tmp_path / "ratekeeper.toml"
    settings.write_text("[policies]\nretry = { attempts = 2, first = 0.01 }\n")
    monkeypatch.setenv("RATEKEEPER_CONFIG", str(settings))
    here = Running(home=tmp_path / "home", hosts=emulator.hosts)
    try:
        assert here.get("/binance-usdm/fapi/v1/time")[0] == 200
        emulator.options(errors=1.0)
        status, headers, _ = here.get(KLINES)
        assert status == 503
        assert headers["x-ratekeeper-error"] is None
        assert emulator.stats()["totals"]["errors"] == 2
    finally:
        here.end()


def test_what_is_not_kept_passes(proxy: Running, emulator: Emulator) -> None:
    """The server's time is asked for by each client by itself."""
    for _ in range(3):
        status, _, body = proxy.get("/binance-usdm/fapi/v1/time")
        assert status == 200
        assert json.loads(body)["serverTime"]
    assert arrivals(emulator, "GET /fapi/v1/time") == 3
