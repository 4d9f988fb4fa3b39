"""Orders kept in memory, so that a test can see what a bot placed."""

from __future__ import annotations

from decimal import Decimal

import pytest

from ratekeeper.apps.emulator.binance_usdm import Usdm
from ratekeeper.apps.emulator.incoming import Fault, Incoming
from ratekeeper.apps.emulator.limit_table import LimitTable
from ratekeeper.apps.emulator.market import MARKETS
from ratekeeper.apps.emulator.options import Options
from ratekeeper.apps.emulator.orders import OrderBook, statistics
from ratekeeper.rules.book import Rulebook

NOW = 1_800_000_000_000


def usdm() -> OrderBook:
    """A book of futures without orders."""
    return OrderBook(MARKETS["usdm"], futures=True)


def ask(**params: str) -> Incoming:
    """A request of account ``a``; by default a limit order far below the market."""
    base = {"symbol": "BTCUSDT", "side": "BUY", "type": "LIMIT", "timeInForce": "GTC", "quantity": "0.010"}
    return Incoming({**base, "price": "50000", **params}, NOW, "a")


def code(error: pytest.ExceptionInfo[Fault]) -> int:
    """The exchange's error code."""
    chosen = Options(provider="binance-usdm")
    venue = Usdm(LimitTable(Rulebook.load().provider("binance-usdm"), chosen), chosen)
    found = venue.word_for(error.value, {}).code
    assert isinstance(found, int)
    return found


def test_an_order_rests_until_it_is_cancelled() -> None:
    """It is found by number and by client id, among the open ones and afterwards."""
    book = usdm()
    order = book.place(ask(newClientOrderId="mine"))
    assert order.status == "NEW"
    assert book.find(ask(origClientOrderId="mine"), among_open=True) is order
    assert book.cancel(ask(orderId=str(order.number))).status == "CANCELED"
    assert book.find(ask(orderId=str(order.number)), among_open=False) is order
    with pytest.raises(Fault) as gone:
        book.cancel(ask(orderId=str(order.number)))
    assert code(gone) == -2011


def test_a_double_is_refused_and_shows_in_the_figures() -> None:
    """The second order with a client id of an open one arrives but is not placed."""
    book = usdm()
    book.place(ask(newClientOrderId="mine"))
    with pytest.raises(Fault) as double:
        book.place(ask(newClientOrderId="mine"))
    assert code(double) == -4116
    figures = statistics(book)["a"]
    assert figures["open"] == 1
    assert figures["by_client_id"]["mine"] == {"arrived": 2, "placed": 1, "status": "NEW"}


def test_market_orders_and_marketable_limits_fill_at_once() -> None:
    """Positions follow the fills."""
    book = usdm()
    assert book.place(ask(type="MARKET")).status == "FILLED"
    assert book.place(ask(price="90000")).status == "FILLED"
    assert book.place(ask(side="SELL", type="MARKET", quantity="0.005")).status == "FILLED"
    assert book.account("a").positions["BTCUSDT"] == Decimal("0.015")
    assert book.filled == 3


def test_spot_fills_move_balances() -> None:
    """What is bought is paid for."""
    book = OrderBook(MARKETS["spot"], futures=False)
    order = book.place(ask(type="MARKET", quantity="0.1"))
    balances = book.account("a").balances
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
        ({"price": "50000.05"}, -4014),
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
    book = usdm()
    assert book.place(ask(timeInForce="IOC")).status == "EXPIRED"
    assert not book.account("a").open


def test_a_test_order_leaves_no_trace() -> None:
    """It is only checked."""
    book = usdm()
    book.place(ask(newClientOrderId="t"), test=True)
    assert statistics(book)["a"]["by_client_id"] == {}


def test_accounts_and_conditional_orders_are_apart() -> None:
    """One account does not see another's orders; conditional orders are listed apart."""
    book = usdm()
    book.place(ask())
    book.place(ask(type="STOP_MARKET", stopPrice="40000"), conditional=True)
    assert len(book.listed(ask(), only_open=True)) == 1
    assert len(book.listed(ask(), only_open=True, conditional=True)) == 1
    assert book.listed(ask()._replace(account="b"), only_open=False) == []
    assert len(book.cancel_all(ask())) == 1
    assert len(book.account("a").open) == 1


def best(book: OrderBook, side: str, since: int, until: int) -> float:
    """The best price for a resting order of that side between two instants (ms)."""
    symbol = book.symbols["BTCUSDT"]
    prices = [symbol.ask(at) if side == "BUY" else symbol.bid(at) for at in range(since, until + 1, 250)]
    return min(prices) if side == "BUY" else max(prices)


@pytest.mark.parametrize(("side", "begin"), [("BUY", NOW), ("SELL", NOW + 210_000)])
def test_a_resting_order_fills_when_the_price_crosses_it(side: str, begin: int) -> None:
    """Whole, at its own price, once; the price need not be there any more when somebody asks. Positions follow."""
    book, later = usdm(), begin + 420_000  # a whole fast swing of the price
    reached = Decimal(f"{best(book, side, begin, later):.1f}")
    away = Decimal("0.1") if side == "BUY" else Decimal("-0.1")
    near = book.place(ask(side=side, price=str(reached + away), newClientOrderId="near")._replace(now=begin))
    far = book.place(ask(side=side, price=str(reached - 10 * away), newClientOrderId="far")._replace(now=begin))
    assert (near.status, far.status) == ("NEW", "NEW")
    told = []
    book.on_change = lambda account, order, now: told.append((account, order.client_id, order.status, now))
    book.match(later)
    book.match(later + 1_000)
    assert (near.status, near.average, far.status) == ("FILLED", near.price, "NEW")
    assert told == [("a", "near", "FILLED", later)]
    amount = Decimal("0.010") if side == "BUY" else Decimal("-0.010")
    assert book.account("a").positions["BTCUSDT"] == amount
    assert book.account("a").entries["BTCUSDT"] == near.price
    assert statistics(book)["a"]["by_client_id"]["near"] == {"arrived": 1, "placed": 1, "status": "FILLED"}


def test_prices_before_an_order_do_not_fill_it() -> None:
    """Only what the price does afterwards counts."""
    book, later = usdm(), NOW + 420_000
    order = book.place(ask()._replace(now=later))
    order.price = Decimal(f"{best(book, 'BUY', NOW, later):.1f}") + 1
    book.match(later)
    assert order.status == "NEW"


def test_conditional_orders_wait_for_nobody() -> None:
    """Nothing triggers them here."""
    book = usdm()
    stop = book.place(ask(type="STOP_MARKET", stopPrice="60000"), conditional=True)
    book.match(NOW + 600_000)
    assert stop.status == "NEW"


def test_the_entry_price_is_an_average_and_begins_anew_on_the_other_side() -> None:
    """More of the same side is averaged; less of it changes nothing; the other side is a new position."""
    book = usdm()

    def fill(side: str, quantity: str, at: int) -> Decimal:
        return book.place(ask(side=side, type="MARKET", quantity=quantity)._replace(now=NOW + at)).average

    entries, first = book.account("a").entries, fill("BUY", "0.010", 0)
    second = fill("BUY", "0.030", 60_000)
    assert entries["BTCUSDT"] == (first + 3 * second) / 4
    fill("SELL", "0.020", 90_000)
    assert entries["BTCUSDT"] == (first + 3 * second) / 4
    assert entries["BTCUSDT"] != (last := fill("SELL", "0.050", 120_000))
    assert entries["BTCUSDT"] == last
    assert book.account("a").positions["BTCUSDT"] == Decimal("-0.030")


def test_a_book_may_take_and_cancel_post_only_orders_that_would_fill() -> None:
    """As Orderly and Bitget do; the order is known, and did nothing."""
    book = OrderBook(MARKETS["usdm"], futures=True, rejects_makers=False)
    order = book.place(ask(price="90000", timeInForce="GTX", newClientOrderId="mine"))
    assert order.status == "CANCELED"
    assert not book.account("a").open
    assert statistics(book)["a"]["by_client_id"]["mine"]["placed"] == 1


def test_figures_of_several_books_are_added() -> None:
    """An account that trades on both shows up once."""
    spot = OrderBook(MARKETS["spot"], futures=False, first=500)
    book = usdm()
    book.place(ask(newClientOrderId="f"))
    assert spot.place(ask(newClientOrderId="s")).number == 500
    assert statistics(book, spot)["a"]["open"] == 2
    assert set(statistics(book, spot)["a"]["by_client_id"]) == {"f", "s"}
