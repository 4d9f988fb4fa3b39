"""What the bot answers, and the codes it asks back with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ratekeeper import Gate, RuleError
from ratekeeper.apps.exchange.desk import Closed, Position
from ratekeeper.apps.telegram import chats_of
from ratekeeper.apps.telegram.replies import Replies
from ratekeeper.config.schema import TelegramSettings

BTC = "BTC/USDT:USDT"
ME, YOU = 1, 2


class Desk:
    """A desk without an exchange: positions that can be closed."""

    def __init__(self) -> None:
        self.open = [Position(BTC, "long", 0.5, 60_000.0, 61_000.0, 500.0, 5.0, False)]
        self.closes = 0

    def symbol(self, name: str) -> str:
        """Every market is the same."""
        return BTC

    def positions(self, symbol: str = "") -> list[Position]:
        """What is open."""
        return list(self.open)

    def close_position(self, position: Position) -> Closed:
        """It is closed at once."""
        self.closes += 1
        self.open.remove(position)
        return Closed(position, "c1", "filled", position.size, 61_000.0, 0.0, "")

    def close(self) -> None:
        """Nothing to let go of."""


class Chat:
    """Replies with a clock of their own.

    Attributes:
        now: steady seconds.
        desk: what they act on.
    """

    def __init__(self, gate: Gate) -> None:
        self.now = 0.0
        self.desk = Desk()
        codes = iter(f"{number:06d}" for number in range(1, 100))
        desk: Callable[[], Any] = lambda: self.desk  # noqa: E731 - as the bot is given it
        self.replies = Replies(gate, desk, clock=lambda: self.now, code=lambda: next(codes))

    def __call__(self, text: str, chat: int = ME) -> str:
        return self.replies.answer(chat, text)


@pytest.fixture
def chat(tmp_path: Path) -> Iterator[Chat]:
    """One on a gate of its own."""
    with Gate("memory://", home=tmp_path, hosts={}) as gate:
        yield Chat(gate)


def test_pause_and_resume(chat: Chat) -> None:
    """Orders are meant unless something else is said; what is left is told; errors are one line."""
    assert chat("/status").startswith("Nothing is paused or banned.")
    assert chat("/pause") == "Paused: orders. Cancels pass. /resume orders"
    assert chat("/PAUSE@some_bot binance-usdm") == "Paused: orders, binance-usdm. Cancels pass. /resume binance-usdm"
    assert "PAUSE orders until resumed paused from Telegram" in chat("/status")
    assert chat("/resume") == "orders is open again. Still paused: binance-usdm."
    assert chat("/resume") == "orders was not paused. Still paused: binance-usdm."
    said = chat("/pause nowhere")
    assert said.startswith("Not done: ")
    assert "\n" not in said


def test_stop(chat: Chat) -> None:
    """Stops trading in all programs, and says how it goes on; what is open is shown afterwards."""
    assert chat("/stop") == "STOPPED: orders. Cancels pass. /resume orders"
    assert "PAUSE orders until resumed" in chat("/status")
    assert chat.replies.stopped() == f"{BTC} long 0.5: entry 60000, now 61000, profit +500\n/close SYMBOL closes one"
    chat.desk.open.clear()
    assert chat.replies.stopped() == "No open positions."
    assert chat("/start").startswith("/stop - ")
    assert chat("/stop everything").startswith("STOPPED: orders, everything.")


def test_what_was_not_reached_is_said(tmp_path: Path) -> None:
    """With the server away only this machine stops: the first line says so."""
    with Gate("redis://127.0.0.1:1", home=tmp_path, hosts={}) as gate:
        chat = Chat(gate)
        first, second = chat("/stop").splitlines()
        assert first == "STOPPED on this machine only: orders. Cancels pass. /resume orders"
        assert second.startswith("NOT REACHED: redis://127.0.0.1:1: it cannot be reached: Connection refused")
        assert chat("/resume").startswith("orders is open again on this machine only.\nNOT REACHED: ")
        gate.block("okx/ip:default", 600, "ban", "50011")
        assert "okx/ip:default is banned." in chat("/resume okx")
        assert chat("/stop okx/ip:defualt").startswith("Not done: no ip is called 'defualt'")


def test_status_shows_the_fullest_limits(chat: Chat, tmp_path: Path) -> None:
    """A share in per cent, and who is there."""
    with chat.replies._gate.permit("binance-usdm", "GET", "/fapi/v1/time"):
        pass
    assert "0% binance-usdm/weight-1m/ip:default: 1 of 2,400" in chat("/status")


def test_a_close_asks_back(chat: Chat) -> None:
    """Only the code, only in that chat, only once."""
    asked = chat("/close BTCUSDT")
    assert asked.startswith(f"{BTC} long 0.5: entry 60000, now 61000, profit +500\n")
    assert asked.endswith("/confirm 000001 within 60 s")
    assert chat("/confirm 000001", YOU) == "There is nothing to confirm."
    assert chat("/confirm") == "Wrong code. Nothing was done."
    assert chat.desk.closes == 0
    assert chat("/confirm 000001") == f"{BTC} long 0.5: closed; order c1 filled 0.5 at 61000"
    assert chat("/confirm 000001") == "There is nothing to confirm."
    assert chat.desk.closes == 1
    assert chat("/close BTCUSDT") == f"No open position in {BTC}."


def test_a_code_expires(chat: Chat) -> None:
    """After a minute nothing is done any more."""
    chat("/close BTCUSDT")
    chat.now = 60.0
    assert chat("/confirm 000001").startswith("That code has expired. Nothing was done.")
    assert chat.desk.closes == 0


def test_a_code_cannot_be_guessed(chat: Chat) -> None:
    """The third wrong one ends it."""
    chat("/close BTCUSDT")
    for _ in range(2):
        assert chat("/confirm 999999") == "Wrong code. Nothing was done."
    assert chat("/confirm 999999") == "Wrong code, 3 times. Nothing was done."
    assert chat("/confirm 000001") == "There is nothing to confirm."


def test_a_newer_close_takes_the_place_of_an_older(chat: Chat) -> None:
    """The older code no longer works."""
    chat("/close BTCUSDT")
    chat("/close BTCUSDT")
    assert chat("/confirm 000001") == "Wrong code. Nothing was done."
    assert "closed" in chat("/confirm 000002")


def test_what_is_closed_meanwhile_is_not_closed_again(chat: Chat) -> None:
    """The position is looked at anew before anything is sent."""
    chat("/close BTCUSDT")
    chat.desk.open.clear()
    assert chat("/confirm 000001") == "It is closed already."
    assert chat.desk.closes == 0


def test_the_rest(chat: Chat) -> None:
    """Help for what is not understood, and for a command that lacks its symbol."""
    assert "/close SYMBOL" in chat("/start")
    assert chat("/close").startswith("Which one?")
    assert chat("/positions").startswith(f"{BTC} long 0.5")
    chat.desk.open.clear()
    assert chat("/positions") == "No open positions."


def test_the_list_of_chats() -> None:
    """The environment goes before the file; without any chat the bot does not start."""
    assert chats_of(TelegramSettings(chats=[5]), {}) == {5}
    assert chats_of(TelegramSettings(chats=[5]), {"RATEKEEPER_TELEGRAM_CHATS": "7, -100"}) == {7, -100}
    for said in ({}, {"RATEKEEPER_TELEGRAM_CHATS": "me"}):
        with pytest.raises(RuleError):
            chats_of(TelegramSettings(), said)
