"""The example of a bot with many symbols, from end to end: two processes, a flood from their address, then failing calls."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import ccxt.async_support
import pytest
from tests.support.example import figures_of

from ratekeeper import Cache, Gate, Policies
from ratekeeper.adapters.ccxt import govern
from ratekeeper.testing import Emulator

pytestmark = [pytest.mark.alone, pytest.mark.xdist_group("multi symbol bot")]

FOLDER = Path(__file__).parents[2] / "examples" / "multi_symbol_bot"
OFF = {"ticker LUNA/USDT:USDT", "candles LUNA/USDT:USDT"}
"""All that may fail: the symbol that the exchange lists and does not serve."""
FULL = 10


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """The figures of one run, which takes three quarters of a minute."""
    return figures_of(FOLDER, timeout=170)


@pytest.fixture
def rounds(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Every round of both bots, in the order of their ends."""
    return sorted((told for rounds in found["rounds"].values() for told in rounds), key=lambda told: float(told["at"]))


def heard(rounds: list[dict[str, Any]]) -> Counter[str]:
    """Events of these rounds, by kind."""
    return sum((Counter(told["events"]) for told in rounds), Counter[str]())


def test_one_symbol_fails_and_no_other(rounds: list[dict[str, Any]]) -> None:
    """In every round, also of the burst and of the trouble, all others are answered, be it by an answer that was kept."""
    assert {name for told in rounds for name in told["failed"]} == OFF
    assert all(set(told["failed"]) == OFF and told["answered"] == 84 for told in rounds)
    assert min(told["symbols"] for told in rounds) > 40


def test_the_exchange_itself_says_why(found: dict[str, Any], rounds: list[dict[str, Any]]) -> None:
    """In calm the failure is the exchange's own error, which is not made again."""
    calm = [told for told in rounds if told["at"] < found["phases"][0]]
    assert calm and all("40034" in why for told in calm for why in told["failed"].values())
    assert heard(calm)["retry"] == 0


def test_nothing_is_refused_but_in_the_burst(found: dict[str, Any]) -> None:
    """No 429 before it; none after the flood's last second."""
    before, burst, end = (sum(counts.values()) for counts in found["refused"])
    assert (before, end) == (0, burst) and burst > 12
    assert found["totals"]["bans"] == 0


def test_the_width_follows_trouble(found: dict[str, Any], rounds: list[dict[str, Any]]) -> None:
    """It falls in the burst and in the trouble, and is the whole in between and at the end."""
    flooded, _, failing, _ = found["phases"]
    burst = [min(told["widths"]) for told in rounds if flooded < told["at"] < failing]
    trouble = [min(told["widths"]) for told in rounds if failing < told["at"]]
    assert min(burst) < FULL and min(trouble) < FULL
    assert heard(rounds)["throttled"] > 5 and heard(rounds)["overloaded"] > 5
    assert all(told["widths"] == [FULL] * 3 for told in rounds if told["at"] < flooded)
    assert [found["rounds"][name][-1]["widths"] for name in ("one", "two")] == [[FULL] * 3] * 2


def test_questions_are_merged_and_shared(found: dict[str, Any], rounds: list[dict[str, Any]]) -> None:
    """Forty tickers are one call, and candles that one bot has asked for serve the other."""
    asked = sum(told["symbols"] for told in rounds)
    assert sum(found["routes"][f"GET /api/v2/mix/market/{name}"] for name in ("ticker", "tickers")) < asked / 10
    calm = found["made_in_calm"]
    assert calm["GET /api/v2/mix/market/candles"] < 43 * calm["rounds"]
    assert all(told["events"].get("batched", 0) + told["events"].get("cache hit", 0) > 40 for told in rounds[:4])


def test_orders_are_placed_once(found: dict[str, Any], rounds: list[dict[str, Any]]) -> None:
    """Every order that arrived did so once; those told as placed are there; none is left over."""
    known = {oid: counts for owner in found["orders"].values() for oid, counts in owner["by_client_id"].items()}
    assert {(counts["arrived"], counts["placed"]) for counts in known.values()} == {(1, 1)}
    told = {said["order"].split()[1].rstrip(",") for said in rounds if said["order"].startswith("placed ")}
    assert len(told) > 8 and told <= set(known)
    assert [owner["open"] for owner in found["orders"].values()] == [0, 0]
    assert found["exits"] == [0, 0]


def test_no_pool_is_full(found: dict[str, Any]) -> None:
    """Nothing but what Ratekeeper says of the flood and of the trouble is in the log of the bots."""
    assert "pool" not in found["said"] and "Traceback" not in found["said"]
    lines = found["said"].splitlines()
    assert all(re.match(r"[0-9 :+-]+ ratekeeper: bitget@", line) for line in lines), found["said"]


def test_the_tables_tell(tmp_path: Path) -> None:
    """What each code is taken for; an endpoint that is full is red."""
    with Emulator("bitget") as emulator:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RATEKEEPER_")},
            "RATEKEEPER_HOME": str(tmp_path), "RATEKEEPER_HOSTS": emulator.hosts, "FORCE_COLOR": "1", "TERM": "xterm",
            "RATEKEEPER_CONFIG": str(FOLDER / "ratekeeper.toml"),
        }  # fmt: skip
        environment.pop("NO_COLOR", None)
        with Gate(home=tmp_path, hosts=emulator.hosts, config=os.devnull) as gate:
            held = [gate.permit("bitget", "GET", "/api/v2/mix/market/candles") for _ in range(19)]
            for permit in held:
                permit.acquire()
            command = [sys.executable, "-W", "error", str(FOLDER / "tables.py"), "0"]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
            for permit in held:
                permit.refund()
    lines = done.stdout.splitlines()
    (full,) = [line for line in lines if "GET /api/v2/mix/market/candles" in line]
    assert "\x1b[31m19 (95%)" in full
    taken = {
        word: line for line in lines for word in ("429 429", "30001", "30007", "40010", "45110", "503 ") if word in line
    }
    assert {word: line.split("│")[2].strip() for word, line in taken.items()} == {
        "429 429": "throttled", "30001": "bad request", "30007": "bad request", "40010": "failed", "45110": "bad request",
        "503 ": "overloaded",
    }  # fmt: skip
    assert "its fate is unknown: ask" in taken["40010"]


def test_parts_of_a_batch_are_kept_for_ccxt(tmp_path: Path) -> None:
    """Each ticker of the call that was made for all is an answer that serves again."""

    async def look(emulator: Emulator, gate: Gate) -> tuple[Counter[str], list[int]]:
        exchange: Any = govern(emulator.redirect(ccxt.async_support.bitget()), gate=gate)
        made = []
        try:
            await exchange.load_markets()
            for _ in range(2):
                symbols = ["BTC/USDT:USDT", "ETH/USDT:USDT", "XRP/USDT:USDT"]
                tickers = await asyncio.gather(*map(exchange.fetch_ticker, symbols))
                assert [ticker["symbol"] for ticker in tickers] == symbols
                made.append(emulator.stats()["routes"]["GET /api/v2/mix/market/tickers"])
        finally:
            await exchange.close()
        return kinds, made

    kinds = Counter[str]()
    policies = Policies(batch=True, cache=Cache(market=60.0))
    with Emulator("bitget") as emulator, Gate("memory://", hosts=emulator.hosts, policies=policies) as gate:
        gate.on(lambda event: kinds.update([event.kind]))
        heard, made = asyncio.run(look(emulator, gate))
    assert made == [1, 1]
    assert heard["cache hit"] == 3
