"""`ratekeeper exchange` and the Telegram bot against the emulator, as processes of their own, while trading is paused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import ccxt
import pytest
from tests.support.telegram import FakeTelegram

from ratekeeper.testing import Emulator

KEY, SECRET, TOKEN = "k" + "1", "s" + "1", "77:" + "t" * 4
BTC, ETH = "BTC/USDT:USDT", "ETH/USDT:USDT"
OWNER, STRANGER = 1001, 2002


class Place:
    """A trader's machine: an exchange (emulated) with an account, a configuration, and commands to run."""

    def __init__(self, folder: Path, emulator: Emulator) -> None:
        self.folder = folder
        self.emulator = emulator
        self.log = folder / "arrivals"
        (folder / "ratekeeper.toml").write_text(
            f'hosts = {{ "{emulator.hosts.partition("=")[0]}" = "binance-usdm" }}\n'
            f'[exchanges.main]\nexchange = "binanceusdm"\nkey = "MAIN_KEY"\nsecret = "MAIN_SECRET"\nurl = "{emulator.url}"\n'
            f"[telegram]\nchats = [{OWNER}]\n"
        )
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RATEKEEPER_")},
            "RATEKEEPER_HOME": str(folder),
            "RATEKEEPER_POLICIES": "all",  # of the programs; what a person sees is never a kept answer
            "MAIN_KEY": KEY,
            "MAIN_SECRET": SECRET,
        }
        self.exchange = emulator.redirect(ccxt.binanceusdm({"apiKey": KEY, "secret": SECRET}))
        self.exchange.load_markets()

    def run(self, *arguments: str, code: int = 0, **environment: str) -> str:
        """Run a command without a terminal; returns what it said."""
        done = subprocess.run(
            [sys.executable, "-m", "ratekeeper", *arguments],
            env={**self.environment, **environment}, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        assert KEY not in done.stdout + done.stderr
        return done.stdout if code == 0 else done.stderr

    def weight(self) -> int:
        """What all signed calls so far cost; those of other budgets (currencies, margin pairs) 1,000 each."""
        self.emulator.stats()  # writes the log out
        rows = [json.loads(line) for line in self.log.read_text().splitlines()]
        elsewhere = sum(1_000 for row in rows if "/sapi/" in row["route"])
        return elsewhere + sum(row["cost"].get("weight-1m", 0) for row in rows if row["account"] != "anonymous")

    def size(self) -> float:
        """Contracts of the open BTC position."""
        return sum(float(row["contracts"]) for row in self.exchange.fetch_positions([BTC]))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A fresh one, with a position and three orders."""
    with Emulator("binance-usdm", log=tmp_path / "arrivals") as emulator:
        made = Place(tmp_path, emulator)
        made.exchange.create_order(BTC, "market", "buy", 0.02)
        made.exchange.create_order(BTC, "limit", "buy", 0.01, 50_000)
        made.exchange.create_order(ETH, "limit", "buy", 0.1, 1_500)
        made.exchange.create_order(BTC, "stop_market", "sell", 0.02, None, {"stopPrice": 40_000})
        yield made
        made.exchange.session.close()


def test_look_cancel_and_close_while_everything_is_paused(place: Place) -> None:
    """With everything paused by hand, a person still sees, cancels and closes; the position is closed by one order."""
    assert place.run("pause", "everything").startswith("everything is paused")
    spent = [place.weight()]
    [position] = json.loads(place.run("exchange", "positions", "--json"))
    spent.append(place.weight())
    assert (position["symbol"], position["side"], position["size"]) == (BTC, "long", 0.02)
    assert "BTC/USDT:USDT  long  0.02" in place.run("exchange", "positions")
    orders = json.loads(place.run("exchange", "orders", "--json", "--account", "main"))
    assert sorted((order["symbol"], order["trigger"]) for order in orders) == [(BTC, 0.0), (BTC, 40_000.0), (ETH, 0.0)]
    assert [order["symbol"] for order in json.loads(place.run("exchange", "orders", "ethusdt", "--json"))] == [ETH]
    spent.append(place.weight())
    assert place.run("exchange", "cancel-all", "ETH/USDT", "--yes") == "cancelled 1 of 1 open orders\n"
    spent.append(place.weight())
    assert place.run("exchange", "cancel-all", "--yes") == "cancelled 2 of 2 open orders\n"
    spent.append(place.weight())
    costs = [after - before for before, after in pairwise(spent)]
    assert (costs[0], costs[2], costs[3]) == (6, 6, 84)  # as their --help says
    assert place.run("exchange", "orders") == "no open orders\n"
    done = place.run("exchange", "close", "BTCUSDT", "--yes")
    assert done.startswith("BTC/USDT:USDT long 0.02: closed; order ratekeeperclose")
    assert "filled 0.02 at" in done
    assert place.size() == 0
    assert place.run("exchange", "close", BTC, "--yes") == f"no open position in {BTC}\n"
    placed = place.emulator.stats()["orders"][Emulator.account(KEY)]["by_client_id"]
    ours = {name: each for name, each in placed.items() if name.startswith("ratekeeperclose")}
    assert [(each["arrived"], each["placed"]) for each in ours.values()] == [(1, 1)]
    assert "PAUSE everything" in place.run("status")
    assert place.run("resume", "everything") == "everything is open again\n"


def test_without_a_terminal_nothing_is_done_unasked(place: Place) -> None:
    """Whoever cannot be asked must say --yes; nothing is sent otherwise."""
    assert "say --yes" in place.run("exchange", "close", BTC, code=2)
    assert "say --yes" in place.run("exchange", "cancel-all", code=2)
    assert place.size() == 0.02
    assert len(place.exchange.fetch_open_orders(BTC)) == 1


def test_what_is_missing_is_said_in_one_line(place: Place) -> None:
    """No key, no such account, exchange or market, a ban: one line that names the remedy."""
    assert "MAIN_KEY is not set" in place.run("exchange", "positions", code=2, MAIN_KEY="")
    assert "There are: main" in place.run("exchange", "positions", "--account", "other", code=2)
    assert "ccxt knows no exchange" in place.run("exchange", "positions", "--exchange", "nowhere", code=2)
    assert "set RATEKEEPER_EXCHANGE_KEY" in place.run("exchange", "positions", "--exchange", "bybit", code=2)
    assert "no market 'DOGEMOON'" in place.run("exchange", "close", "dogemoon", "--yes", code=2)
    place.emulator.ban(seconds=300)
    said = place.run("exchange", "positions", code=2)
    assert "ban" in said
    assert len(said.splitlines()) <= 2
    assert "signature" not in said


def test_the_bot_pauses_shows_and_closes(place: Place) -> None:
    """From an allowed chat: status, pause, positions, and a close that asks back; others are ignored; no token in the log."""
    environment = {**place.environment, "RATEKEEPER_TELEGRAM_TOKEN": TOKEN, "PYTHONUNBUFFERED": "1"}
    with FakeTelegram(TOKEN) as telegram:
        telegram.write(STRANGER, "/pause")
        telegram.write(STRANGER, "/close BTCUSDT")
        telegram.troubles.append(("getUpdates", None))
        telegram.troubles.append(("getUpdates", (502, {})))
        hint = {"ok": False, "error_code": 429, "description": "Too Many Requests", "parameters": {"retry_after": 1}}
        telegram.troubles.append(("sendMessage", (429, hint)))
        bot = subprocess.Popen(
            [sys.executable, "-m", "ratekeeper", "telegram"],
            env={**environment, "RATEKEEPER_TELEGRAM_URL": telegram.url},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        try:
            assert telegram.ask(OWNER, "/pause everything", age=600).startswith("/pause came late")
            assert "Nothing is paused" in telegram.ask(OWNER, "/status@my_bot")
            assert telegram.ask(OWNER, "/pause") == "Paused: orders. Cancels pass. /resume orders"
            assert "PAUSE orders until resumed" in place.run("status")
            assert "PAUSE orders" in telegram.ask(OWNER, "/status")
            assert f"{BTC} long 0.02" in telegram.ask(OWNER, "/positions")
            asked = telegram.ask(OWNER, "/close BTC/USDT")
            code = asked.partition("/confirm ")[2].split()[0]
            assert telegram.ask(OWNER, "/confirm 12") == "Wrong code. Nothing was done."
            assert place.size() == 0.02
            assert f"{BTC} long 0.02: closed" in telegram.ask(OWNER, f"/confirm {code}")
            assert place.size() == 0
            assert telegram.ask(OWNER, f"/confirm {code}") == "There is nothing to confirm."
            assert telegram.ask(OWNER, "/pause class:ordr").startswith("Not done: no class of calls")
            assert telegram.ask(OWNER, "/resume") == "orders is open again."
            assert "/positions" in telegram.ask(OWNER, "/start")
            assert not [said for to, said in telegram.sent if to == STRANGER]
            bot.send_signal(signal.SIGTERM)
            said = bot.communicate(timeout=20)[0]
        finally:
            if bot.poll() is None:
                bot.kill()
                print(bot.communicate()[0])
    assert bot.returncode == 0, said
    assert said.count(f"chat {STRANGER} is not on the list") == 1
    assert "connected again" in said
    assert TOKEN not in said
    assert KEY not in said
    sends = [at for at, method in telegram.arrivals if method == "sendMessage"]
    assert sends[1] - sends[0] >= 1.0  # as the refusal wanted it


def test_a_wrong_token_ends_the_bot_with_one_line(place: Place) -> None:
    """Nothing would change it; the line does not show it."""
    with FakeTelegram(TOKEN) as telegram:
        wrong = "88:" + "w" * 4
        said = place.run("telegram", code=2, RATEKEEPER_TELEGRAM_TOKEN=wrong, RATEKEEPER_TELEGRAM_URL=telegram.url)
        assert said == "ratekeeper: Telegram refuses getUpdates: 401 Unauthorized\n"
    assert "RATEKEEPER_TELEGRAM_TOKEN: is not set" in place.run("telegram", code=2)
