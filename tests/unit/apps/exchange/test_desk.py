"""ratekeeper.apps.exchange.desk: what a person is told when an exchange answers what ccxt cannot read."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import ccxt
import pytest

from ratekeeper import Gate
from ratekeeper.apps.exchange.accounts import Account
from ratekeeper.apps.exchange.desk import Desk, DeskError, Position
from ratekeeper.config.schema import ExchangeSettings

LONG = Position("BTC/USDT:USDT", "long", 0.5, 1.0, 1.0, 0.0, 1.0, False)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """One whose exchange sends nothing."""
    made = object.__new__(Desk)
    made.gate = cast("Gate", SimpleNamespace(home=tmp_path))
    exchange = ccxt.binanceusdm({"apiKey": "k", "secret": "s"})
    market = {"id": "BTCUSDT", "symbol": LONG.symbol, "base": "BTC", "quote": "USDT", "settle": "USDT", "type": "swap"}
    market |= {"swap": True, "contract": True, "linear": True, "spot": False, "contractSize": 1.0}
    exchange.set_markets([{**exchange.safe_market_structure(), **market, "precision": {"amount": 0.001, "price": 0.1}}])
    made.account, made.exchange, made._sleep = (
        Account("main", "binanceusdm", ExchangeSettings()),
        exchange,
        lambda _: None,
    )
    return made


@pytest.mark.parametrize(
    "told", [7, [[1]], [{"contracts": 1}], [{"symbol": LONG.symbol, "contracts": "nan"}], [{"contracts": "x"}]]
)
def test_positions_that_cannot_be_read(told: Any, desk: Desk) -> None:
    """They are one error in words, and no empty list."""
    desk.exchange.fetch_positions = lambda *_: told
    with pytest.raises(DeskError, match="binanceusdm: an answer that cannot be read"):
        desk.positions()


@pytest.mark.parametrize(
    "told", [7, [[1]], [{"symbol": LONG.symbol}], [{"id": 1, "symbol": LONG.symbol, "price": "x"}]]
)
def test_orders_that_cannot_be_read(told: Any, desk: Desk) -> None:
    """Likewise, where they are listed and where they are cancelled."""
    desk.exchange.fetch_open_orders = lambda *_, **__: told
    for ask in (desk.orders, desk.cancel_all):
        with pytest.raises(DeskError, match="cannot be read"):
            ask()


def test_an_order_whose_answer_cannot_be_read_is_asked_for(desk: Desk) -> None:
    """It may have arrived: it is not sent again, and not given up either."""
    sent: list[str] = []

    def create_order(*order: Any) -> Any:
        sent.append(order[0])
        raise TypeError("of ccxt")

    desk.exchange.create_order = create_order
    desk.exchange.fetch_order = lambda *_: {"status": "closed", "filled": "0.5", "average": "x"}
    desk.exchange.fetch_positions = lambda *_: []
    closed = desk.close_position(LONG)
    assert sent == [LONG.symbol]
    assert (closed.fate, closed.filled, closed.average, closed.left) == ("filled", 0.5, 0.0, 0)
    assert "cannot be read" in closed.problem
