"""Closing a position when the network fails at the worst moment: one order, and its fate is found out by asking."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ccxt
import pytest

from ratekeeper.apps.exchange import told
from ratekeeper.apps.exchange.accounts import chosen
from ratekeeper.apps.exchange.desk import Closed, Desk, DeskError
from ratekeeper.testing import Emulator

KEY = "k" + "1"
BTC = "BTC/USDT:USDT"


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    """An exchange."""
    with Emulator("binance-usdm") as made:
        yield made


@pytest.fixture
def desk(emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """A desk at it, with a short position of two hundredths; looks follow each other without waiting."""
    for name, value in {"HOME": str(tmp_path), "HOSTS": emulator.hosts, "STORE": "", "CONFIG": ""}.items():
        monkeypatch.setenv(f"RATEKEEPER_{name}", value)
    monkeypatch.setenv("RATEKEEPER_EXCHANGE_KEY", KEY)
    monkeypatch.setenv("RATEKEEPER_EXCHANGE_SECRET", "s" + "1")
    (tmp_path / "ratekeeper.toml").write_text(f'[exchanges.binanceusdm]\nurl = "{emulator.url}"\n')
    with Desk(chosen(), sleep=lambda seconds: None) as made:
        made.exchange.create_order(made.symbol("BTC/USDT"), "market", "sell", 0.02)
        yield made


def orders(emulator: Emulator, closed: Closed) -> dict[str, Any]:
    """What the exchange counted of the order that closed a position; nothing if it never arrived."""
    found: dict[str, Any] = emulator.stats()["orders"][Emulator.account(KEY)]["by_client_id"]
    return found.get(closed.client_id, {})


def failing(desk: Desk, error: Exception, *, sent: bool) -> Callable[..., Any]:
    """The exchange's `fetch`, but an order gets `error` for an answer; `sent`: after it arrived."""
    real = desk.exchange.fetch

    def fetch(url: str, method: str = "GET", *rest: Any, **more: Any) -> Any:
        if method == "POST":
            if sent:
                real(url, method, *rest, **more)
            raise error
        return real(url, method, *rest, **more)

    return fetch


def test_a_lost_answer(desk: Desk, emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order arrived and its answer did not: it is found by its client id, and not sent again."""
    [position] = desk.positions()
    assert str(position) == f"{BTC} short 0.02"
    monkeypatch.setattr(desk.exchange, "fetch", failing(desk, ccxt.RequestTimeout("no answer"), sent=True))
    closed = desk.close_position(position)
    assert (closed.fate, closed.filled, closed.left, closed.done) == ("filled", 0.02, 0, True)
    assert "RequestTimeout: no answer" in told(closed)
    assert orders(emulator, closed) == {"arrived": 1, "placed": 1, "status": "FILLED"}


def test_an_order_that_never_arrived(desk: Desk, emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exchange knows of no such order: that is told, the position is still there, and nothing was sent twice."""
    [position] = desk.positions()
    monkeypatch.setattr(desk.exchange, "fetch", failing(desk, ccxt.NetworkError("cut"), sent=False))
    closed = desk.close_position(position)
    assert (closed.fate, closed.left, closed.done) == ("not found", 0.02, False)
    assert "0.02 left open; order ratekeeperclose" in told(closed)
    assert "did not arrive, as far as can be seen" in told(closed)
    assert orders(emulator, closed) == {}


def test_an_exchange_that_says_no(desk: Desk, emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal (here: an open order has that name already) is told in one line, and the position is still there."""
    [position] = desk.positions()
    monkeypatch.setattr("ratekeeper.apps.exchange.desk.secrets.token_hex", lambda size: "0" * 2 * size)
    taken = {"clientOrderId": "ratekeeperclose" + "0" * 16}
    desk.exchange.create_order(BTC, "limit", "buy", 0.01, 50_000, taken)
    closed = desk.close_position(position)
    assert (closed.fate, closed.left, closed.done) == ("refused", 0.02, False)
    assert "ClientOrderId is duplicated" in closed.problem
    assert orders(emulator, closed)["placed"] == 1
    assert told(closed).count("\n") == 0


def test_an_exchange_that_is_gone(desk: Desk, emulator: Emulator) -> None:
    """What became of the order cannot be found out: that is what is told."""
    [position] = desk.positions()
    emulator.close()
    closed = desk.close_position(position)
    assert (closed.fate, closed.left, closed.done) == ("unknown", None, False)
    assert "cannot be read; order ratekeeperclose" in told(closed)
    assert "look before you send another one" in told(closed)
    with pytest.raises(DeskError, match="binanceusdm: "):
        desk.positions()
