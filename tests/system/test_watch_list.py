"""Six unchanged bots with one watch list: each answer is asked for once, whoever wants it, and is as young as it must be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.support.server import Server

from ratekeeper.testing import Emulator

BOTS = 6
SECONDS = 8.0
TTL = 1.0
SYMBOLS = ["BTCUSDT", "ETHUSDT", "BNBUSDT", "SOLUSDT", "XRPUSDT"]

HTTPX = """
import httpx
client = httpx.Client(timeout=10)
def ask(symbol):
    answer = client.get(URL + "/fapi/v1/klines", params={"symbol": symbol, "interval": "1m", "limit": 20})
    return answer.status_code, answer.headers.get("x-ratekeeper-age"), answer.json()
"""
REQUESTS = """
import requests
session = requests.Session()
def ask(symbol):
    answer = session.get(URL + "/fapi/v1/klines", params={"symbol": symbol, "interval": "1m", "limit": 20}, timeout=10)
    return answer.status_code, answer.headers.get("x-ratekeeper-age"), answer.json()
"""
CCXT = """
import ccxt
exchange = ccxt.binanceusdm()
apis = exchange.urls["api"]
for name, url in list(apis.items()):
    if isinstance(url, str):
        apis[name] = url.replace("https://fapi.binance.com", URL)
def ask(symbol):
    rows = exchange.fapiPublicGetKlines({"symbol": symbol, "interval": "1m", "limit": 20})
    return 200, exchange.last_response_headers.get("x-ratekeeper-age"), rows
"""
LOOP = """
import json, sys, time
asked, ages, wrong = 0, [], []
end = time.monotonic() + SECONDS
while time.monotonic() < end:
    for symbol in SYMBOLS:
        status, age, rows = ask(symbol)
        asked += 1
        if status != 200 or len(rows) != 20:
            wrong.append((status, str(rows)[:80]))
        ages.append(float(age or 0))
    time.sleep(0.15)
print(json.dumps({"asked": asked, "oldest": max(ages), "wrong": wrong}))
"""


def _run(folder: Path, emulator: Emulator, policies: str, store: str = "host://") -> list[dict[str, Any]]:
    """All bots at once; what each reports."""
    environment = {
        **os.environ,
        "RATEKEEPER_HOME": str(folder),
        "RATEKEEPER_HOSTS": emulator.hosts,
        "RATEKEEPER_STORE": store,
        "RATEKEEPER_POLICIES": policies,
        "PYTHONWARNINGS": "ignore",
    }
    head = f"URL, SECONDS, SYMBOLS = {emulator.url!r}, {SECONDS}, {SYMBOLS!r}\n"
    bots = []
    for number in range(BOTS):
        script = folder / f"bot{number}.py"
        script.write_text(head + (HTTPX, REQUESTS, CCXT)[number % 3] + LOOP)
        command = [sys.executable, "-m", "ratekeeper", "run", "--", sys.executable, str(script)]
        bots.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    reports = []
    for bot in bots:
        out, err = bot.communicate(timeout=90)
        assert bot.returncode == 0, err[-2000:]
        reports.append(json.loads(out.splitlines()[-1]))
    return reports


@pytest.mark.usefixtures("warm_program")
@pytest.mark.parametrize("kind", ["host", "redis"])
def test_six_bots_ask_once(tmp_path: Path, kind: str) -> None:
    """At least five times fewer requests than questions, no answer older than its time to live, none wrong."""
    with ExitStack() as stack:
        store = "host://" if kind == "host" else stack.enter_context(Server(tmp_path / "server")).url
        emulator = stack.enter_context(Emulator("binance-usdm"))
        reports = _run(tmp_path, emulator, "cache", store)
        sent = emulator.stats()["routes"]["GET /fapi/v1/klines"]
    asked = sum(report["asked"] for report in reports)
    assert [report["wrong"] for report in reports] == [[]] * BOTS
    assert max(report["oldest"] for report in reports) <= TTL + 0.001
    assert sent <= asked / 5, (sent, asked)
    # No fewer than it takes: each symbol about once in its time to live, while the bots ran side by side.
    assert sent >= len(SYMBOLS) * 3
    print(f"{kind}: {asked} asked, {sent} sent")
