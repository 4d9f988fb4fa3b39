"""Orders kept in memory, so that a test can see what a bot placed."""

from __future__ import annotations

from decimal import Decimal

import pytest

from headgate.apps.emulator.incoming import Fault, Incoming
from headgate.apps.emulator.market import SPOT_SYMBOLS, USDM_SYMBOLS
from headgate.apps.emulator.orders import OrderDesk, statistics

NOW = 1_800_000_000_000


def usdm() -> OrderDesk:
    """A futures desk without orders."""
    return OrderDesk(USDM_SYMBOLS, futures=True)


def ask(**params: str) -> Incoming:
    """A request of account ``a``; by default a limit order far below the market."""
    base = {"symbol": "BTCUSDT", "side": "BUY", "type": "LIMIT", "timeInForce": "GTC", "quantity": "0.010"}
    return Incoming({**base, "price": "50000", **params}, NOW, "a")


def code(error: pytest.ExceptionInfo[Fault]) -> int:
    """The exchange's error code."""
    return error.value.code


def test_an_order_rests_until_it_is_cancelled() -> None:
    """It is found by number and by client id, among the open ones and afterwards."""
    desk = usdm()
    order = desk.place(ask(newClientOrderId="mine"))
    assert order.status == "NEW"
    assert desk.find(ask(origClientOrderId="mine"), among_open=True) is order
    assert desk.cancel(ask(orderId=str(order.number))).status == "CANCELED"
    assert desk.find(ask(orderId=str(order.number)), among_open=False) is order
    with pytest.raises(Fault) as gone:
        desk.cancel(ask(orderId=str(order.number)))
    assert code(gone) == -2011


def test_a_double_is_refused_and_shows_in_the_figures() -> None:
    """The second order with a client id of an open one arrives but is not placed."""
    desk = usdm()
    desk.place(ask(newClientOrderId="mine"))
    with pytest.raises(Fault) as double:
        desk.place(ask(newClientOrderId="mine"))
    assert code(double) == -4116
    figures = statistics(desk)["a"]
    assert figures["open"] == 1
    assert figures["by_client_id"]["mine"] == {"arrived": 2, "placed": 1, "status": "NEW"}


def test_market_orders_and_marketable_limits_fill_at_once() -> None:
    """Positions follow the fills."""
    desk = usdm()
    assert desk.place(ask(type="MARKET")).status == "FILLED"
    assert desk.place(ask(price="90000")).status == "FILLED"
    assert desk.place(ask(side="SELL", type="MARKET", quantity="0.005")).status == "FILLED"
    assert desk.account("a").positions["BTCUSDT"] == Decimal("0.015")
    assert desk.filled == 3


def test_spot_fills_move_balances() -> None:
    """What is bought is paid for."""
    desk = OrderDesk(SPOT_SYMBOLS, futures=False)
    order = desk.place(ask(type="MARKET", quantity="0.1"))
    balances = desk.account("a").balances
    assert balances["BTC"] == Decimal("10.1")
    assert balances["USDT"] == 100_000 - Decimal("0.1") * order.average


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"symbol": "NOPEUSDT"}, -1121),
        ({"side": "HOLD"}, -1117),
        ({"price": ""}, -1102),
        ({"quantity": ""}, -1102),
        ({"quantity": "x"}, -1100),
        ({"quantity": "0"}, -4003),
        ({"quantity": "0.0001"}, -1111),
        ({"price": "1000", "quantity": "0.001"}, -4164),
        ({"price": "90000", "timeInForce": "GTX"}, -5022),
    ],
)
def test_a_wrong_order_has_the_exchanges_code(params: dict[str, str], expected: int) -> None:
    """Bots act on these codes."""
    with pytest.raises(Fault) as wrong:
        usdm().place(ask(**params))
    assert code(wrong) == expected


def test_immediate_or_cancel_expires_when_it_does_not_cross() -> None:
    """It never rests."""
    desk = usdm()
    assert desk.place(ask(timeInForce="IOC")).status == "EXPIRED"
    assert not desk.account("a").open


def test_a_test_order_leaves_no_trace() -> None:
    """It is only checked."""
    desk = usdm()
    desk.place(ask(newClientOrderId="t"), test=True)
    assert statistics(desk)["a"]["by_client_id"] == {}


def test_accounts_and_conditional_orders_are_apart() -> None:
    """One account does not see another's orders; conditional orders are listed apart."""
    desk = usdm()
    desk.place(ask())
    desk.place(ask(type="STOP_MARKET", stopPrice="40000"), conditional=True)
    assert len(desk.listed(ask(), only_open=True)) == 1
    assert len(desk.listed(ask(), only_open=True, conditional=True)) == 1
    assert desk.listed(ask()._replace(account="b"), only_open=False) == []
    assert len(desk.cancel_all(ask())) == 1
    assert len(desk.account("a").open) == 1
