"""Binance: its market data, its intervals and its usage headers."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from ratekeeper.apps.emulator.accounting import Charge, Meter
from ratekeeper.apps.emulator.binance import Binance, Spot, plain_body
from ratekeeper.apps.emulator.binance_usdm import Usdm
from ratekeeper.apps.emulator.incoming import Arrival, Fault, Incoming
from ratekeeper.apps.emulator.limit_table import LimitTable
from ratekeeper.apps.emulator.options import Options
from ratekeeper.rules.book import Rulebook
from ratekeeper.rules.call import Request
from ratekeeper.rules.denial import interval

NOW = 1_800_000_030_500
SECOND = 1_000_000_000


def spot(**options: Any) -> Spot:
    """Spot with these options."""
    chosen = Options(provider="binance-spot", **options)
    return Spot(LimitTable(Rulebook.load().provider("binance-spot"), chosen), chosen)


def usdm(**options: Any) -> Usdm:
    """USD-M futures with these options."""
    chosen = Options(provider="binance-usdm", **options)
    return Usdm(LimitTable(Rulebook.load().provider("binance-usdm"), chosen), chosen)


def answer(exchange: Binance, path: str, asked: Incoming) -> Any:
    """What the handler of a GET returns."""
    found = exchange.find(f"GET {path}")
    assert found is not None
    return found[0].handle(asked)


def ask(exchange: Binance, path: str, now: int = NOW, **params: str) -> Any:
    """The decoded body of a GET."""
    body = answer(exchange, path, Incoming(params, now, "a"))
    return json.loads(body) if isinstance(body, bytes) else body


@pytest.mark.parametrize(("limit", "rows"), [("1", 1), ("99", 99), ("1500", 1_500)])
def test_klines_have_as_many_rows_as_asked_for_and_end_now(limit: str, rows: int) -> None:
    """Candles follow each other without a gap, and each opens where the one before closed."""
    body = ask(usdm(), "/fapi/v1/klines", symbol="BTCUSDT", interval="1m", limit=limit)
    assert isinstance(body, list)
    assert len(body) == rows
    assert body[-1][0] == NOW // 60_000 * 60_000
    for before, after in itertools.pairwise(body):
        assert after[0] - before[0] == 60_000
        assert after[1] == before[4]


def test_klines_from_a_start_are_the_same_candles() -> None:
    """A candle does not depend on how it was asked for."""
    exchange = usdm()
    latest = ask(exchange, "/fapi/v1/klines", symbol="BTCUSDT", interval="5m", limit="10")
    assert isinstance(latest, list)
    again = ask(exchange, "/fapi/v1/klines", symbol="BTCUSDT", interval="5m", limit="3", startTime=str(latest[2][0]))
    assert again == latest[2:5]
    assert ask(exchange, "/fapi/v1/klines", symbol="BTCUSDT", interval="5m", startTime=str(NOW + 10**9)) == []


def test_a_kept_body_is_the_same_bytes() -> None:
    """The same question within a candle is answered from memory."""
    exchange, path = usdm(), "/fapi/v1/klines"
    params = {"symbol": "BTCUSDT", "interval": "1m", "limit": "1500"}
    first, second = (answer(exchange, path, Incoming(params, NOW + n, "a")) for n in (0, 1))
    assert first is second


@pytest.mark.parametrize(
    ("path", "params", "code"),
    [
        ("klines", {"symbol": "NOPE", "interval": "1m"}, -1121),
        ("klines", {"symbol": "BTCUSDT", "interval": "7m"}, -1120),
        ("klines", {"symbol": "BTCUSDT", "interval": "1m", "limit": "x"}, -1100),
        ("depth", {"symbol": "BTCUSDT", "limit": "7"}, -4021),
        ("trades", {}, -1102),
    ],
)
def test_a_wrong_question_has_the_exchanges_code(path: str, params: dict[str, str], code: int) -> None:
    """Errors are worded as the exchange words them."""
    exchange = usdm()
    with pytest.raises(Fault) as wrong:
        ask(exchange, f"/fapi/v1/{path}", **params)
    assert exchange.word_for(wrong.value, params).code == code


def test_exchange_info_declares_the_limits_in_force() -> None:
    """A change of the limit shows in the next answer, and ``serverTime`` is always now."""
    exchange = usdm(capacity=200, window=5)
    first = ask(exchange, "/fapi/v1/exchangeInfo")
    assert isinstance(first, dict)
    row = {"rateLimitType": "REQUEST_WEIGHT", "interval": "SECOND", "intervalNum": 5, "limit": 200}
    assert [one for one in first["rateLimits"] if one["rateLimitType"] == "REQUEST_WEIGHT"] == [row]
    assert first["serverTime"] == NOW
    exchange.limits.set_capacity(100)
    second = ask(exchange, "/fapi/v1/exchangeInfo", NOW + 1)
    assert isinstance(second, dict)
    assert [one for one in second["rateLimits"] if one["rateLimitType"] == "REQUEST_WEIGHT"] == [{**row, "limit": 100}]
    assert second["serverTime"] == NOW + 1


def test_tickers_come_alone_in_part_or_all() -> None:
    """One object for a symbol, a list for several or for none."""
    exchange = spot()
    one = ask(exchange, "/api/v3/ticker/price", symbol="ETHBTC")
    assert isinstance(one, dict)
    assert one["symbol"] == "ETHBTC"
    some = ask(exchange, "/api/v3/ticker/24hr", symbols='["BTCUSDT","ETHBTC"]')
    assert isinstance(some, list)
    assert [row["symbol"] for row in some] == ["BTCUSDT", "ETHBTC"]
    everything = ask(exchange, "/api/v3/ticker/bookTicker")
    assert isinstance(everything, list)
    assert len(everything) == len(exchange.book.symbols)
    assert all(float(row["bidPrice"]) < float(row["askPrice"]) for row in everything)
    with pytest.raises(Fault):
        ask(exchange, "/api/v3/ticker/price", symbols='["NOPE"]')


def test_a_book_never_crosses() -> None:
    """Every bid is below every offer, and the levels are as many as asked for."""
    book = ask(usdm(), "/fapi/v1/depth", symbol="DOGEUSDT", limit="1000")
    assert isinstance(book, dict)
    assert len(book["bids"]) == len(book["asks"]) == 1_000
    assert float(book["bids"][0][0]) < float(book["asks"][0][0])


def test_routes_without_a_body_of_their_own_answer_plainly() -> None:
    """Lists where lists are usual, so that clients do not stumble."""
    assert plain_body("/futures/data/openInterestHist") == b"[]"
    assert plain_body("/fapi/v1/forceOrders") == b"[]"
    assert plain_body("/fapi/v1/accountConfig") == b"{}"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(5, ("SECOND", 5)), (60, ("MINUTE", 1)), (300, ("MINUTE", 5)), (3_600, ("HOUR", 1)), (86_400, ("DAY", 1))],
)
def test_intervals_take_the_largest_unit_that_fits(seconds: int, expected: tuple[str, int]) -> None:
    """As in ``rateLimits`` and in header names."""
    assert interval(seconds * SECOND) == expected


def test_header_names_follow_the_interval_in_force() -> None:
    """A minute is 1m, a window of five seconds 5s; pools that no header reports have none."""

    def told(exchange: Binance, method: str, path: str) -> set[str]:
        plan, charges = exchange.limits.plan(Request(method, path, {}, None, {}), "127.0.0.1", "a")
        arrival = Arrival(method, path, {}, plan, charges, "127.0.0.1", "k1", "a", NOW * 1_000_000)
        assert all(isinstance(charge, Charge) for charge in charges)
        return set(exchange.reports(arrival, Meter()))

    assert told(usdm(), "GET", "/fapi/v1/time") == {"x-mbx-used-weight-1m"}
    assert told(usdm(window=5), "GET", "/fapi/v1/time") == {"x-mbx-used-weight-5s"}
    orders = {"x-mbx-used-weight-1m", "x-mbx-order-count-10s", "x-mbx-order-count-1m"}
    assert told(usdm(), "POST", "/fapi/v1/order") == orders
    assert told(usdm(), "GET", "/fapi/v1/fundingRate") == {"x-mbx-used-weight-1m"}
    assert told(spot(), "GET", "/api/v3/time") == {"x-mbx-used-weight-1m", "x-mbx-used-weight"}
    assert told(spot(), "GET", "/sapi/v1/capital/config/getall") == {"x-sapi-used-ip-weight-1m"}
