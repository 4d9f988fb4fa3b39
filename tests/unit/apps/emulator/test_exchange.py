"""The market data that the emulator shows."""

from __future__ import annotations

import itertools
import json

import pytest

from ratekeeper.apps.emulator.accounting import StrictLimit
from ratekeeper.apps.emulator.exchange import plain_body
from ratekeeper.apps.emulator.incoming import Fault, Incoming
from ratekeeper.apps.emulator.spot import Spot
from ratekeeper.apps.emulator.usdm import Usdm

NOW = 1_800_000_030_500
SECOND = 1_000_000_000
WEIGHT = StrictLimit("weight-1m", "weight", 200, 5 * SECOND, declared="REQUEST_WEIGHT")


def ask(exchange: Spot | Usdm, path: str, now: int = NOW, **params: str) -> object:
    """The decoded body of a GET."""
    return json.loads(exchange.routes["GET", path].handler(Incoming(params, now, "a")))


@pytest.mark.parametrize(("limit", "rows"), [("1", 1), ("99", 99), ("1500", 1_500)])
def test_klines_have_as_many_rows_as_asked_for_and_end_now(limit: str, rows: int) -> None:
    """Candles follow each other without a gap, and each opens where the one before closed."""
    body = ask(Usdm([]), "/fapi/v1/klines", symbol="BTCUSDT", interval="1m", limit=limit)
    assert isinstance(body, list)
    assert len(body) == rows
    assert body[-1][0] == NOW // 60_000 * 60_000
    for before, after in itertools.pairwise(body):
        assert after[0] - before[0] == 60_000
        assert after[1] == before[4]


def test_klines_from_a_start_are_the_same_candles() -> None:
    """A candle does not depend on how it was asked for."""
    usdm = Usdm([])
    latest = ask(usdm, "/fapi/v1/klines", symbol="BTCUSDT", interval="5m", limit="10")
    assert isinstance(latest, list)
    again = ask(usdm, "/fapi/v1/klines", symbol="BTCUSDT", interval="5m", limit="3", startTime=str(latest[2][0]))
    assert again == latest[2:5]
    assert ask(usdm, "/fapi/v1/klines", symbol="BTCUSDT", interval="5m", startTime=str(NOW + 10**9)) == []


def test_a_kept_body_is_the_same_bytes() -> None:
    """The same question within a candle is answered from memory."""
    handler = Usdm([]).routes["GET", "/fapi/v1/klines"].handler
    params = {"symbol": "BTCUSDT", "interval": "1m", "limit": "1500"}
    assert handler(Incoming(params, NOW, "a")) is handler(Incoming(params, NOW + 1, "b"))


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
    with pytest.raises(Fault) as wrong:
        ask(Usdm([]), f"/fapi/v1/{path}", **params)
    assert wrong.value.code == code


def test_exchange_info_declares_the_limits_in_force() -> None:
    """A change of the limit shows in the next answer, and ``serverTime`` is always now."""
    limit = StrictLimit("weight-1m", "weight", 200, 5 * SECOND, declared="REQUEST_WEIGHT")
    usdm = Usdm([limit])
    first = ask(usdm, "/fapi/v1/exchangeInfo")
    assert isinstance(first, dict)
    row = {"rateLimitType": "REQUEST_WEIGHT", "interval": "SECOND", "intervalNum": 5, "limit": 200}
    assert first["rateLimits"] == [row]
    assert first["serverTime"] == NOW
    limit.capacity = 100
    second = ask(usdm, "/fapi/v1/exchangeInfo", NOW + 1)
    assert isinstance(second, dict)
    assert second["rateLimits"] == [{**row, "limit": 100}]
    assert second["serverTime"] == NOW + 1


def test_tickers_come_alone_in_part_or_all() -> None:
    """One object for a symbol, a list for several or for none."""
    spot = Spot([WEIGHT])
    one = ask(spot, "/api/v3/ticker/price", symbol="ETHBTC")
    assert isinstance(one, dict)
    assert one["symbol"] == "ETHBTC"
    some = ask(spot, "/api/v3/ticker/24hr", symbols='["BTCUSDT","ETHBTC"]')
    assert isinstance(some, list)
    assert [row["symbol"] for row in some] == ["BTCUSDT", "ETHBTC"]
    everything = ask(spot, "/api/v3/ticker/bookTicker")
    assert isinstance(everything, list)
    assert len(everything) == len(spot.symbols)
    assert all(float(row["bidPrice"]) < float(row["askPrice"]) for row in everything)
    with pytest.raises(Fault):
        ask(spot, "/api/v3/ticker/price", symbols='["NOPE"]')


def test_a_book_never_crosses() -> None:
    """Every bid is below every offer, and the levels are as many as asked for."""
    book = ask(Usdm([]), "/fapi/v1/depth", symbol="DOGEUSDT", limit="1000")
    assert isinstance(book, dict)
    assert len(book["bids"]) == len(book["asks"]) == 1_000
    assert float(book["bids"][0][0]) < float(book["asks"][0][0])


def test_routes_without_a_body_of_their_own_answer_plainly() -> None:
    """Lists where lists are usual, so that clients do not stumble."""
    assert plain_body("/futures/data/openInterestHist") == b"[]"
    assert plain_body("/fapi/v1/forceOrders") == b"[]"
    assert plain_body("/fapi/v1/accountConfig") == b"{}"
