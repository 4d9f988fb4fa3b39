"""ccxt against the emulator: markets, market data and orders, as a bot uses them, sync and async."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import ccxt
import ccxt.async_support
import pytest

from ratekeeper.testing import Emulator

CASES = [("binance-usdm", "binanceusdm", "BTC/USDT:USDT"), ("binance-spot", "binance", "BTC/USDT")]
KEY = "k" + "1"


def settings(name: str) -> dict[str, Any]:
    """What a user's bot would set."""
    found: dict[str, Any] = {"apiKey": KEY, "secret": "s" + "1"}
    if name == "binance":
        found["options"] = {"fetchMarkets": {"types": ["spot"]}}
    return found


@pytest.mark.parametrize(("provider", "name", "symbol"), CASES)
def test_a_sync_bot_loads_reads_and_trades(provider: str, name: str, symbol: str) -> None:
    """Markets with filters, candles, book, an order from placing to cancelling, a market order, a balance."""
    with Emulator(provider) as emulator:
        exchange = emulator.redirect(getattr(ccxt, name)(settings(name)))
        market = exchange.load_markets()[symbol]
        assert market["active"]
        assert market["precision"]["price"] > 0
        assert market["limits"]["cost"]["min"] == 5
        assert len(exchange.fetch_ohlcv(symbol, "1m", limit=750)) == 750
        book = exchange.fetch_order_book(symbol, 20)
        ticker = exchange.fetch_ticker(symbol)
        assert book["bids"][0][0] < ticker["last"] < book["asks"][0][0]
        order = exchange.create_order(symbol, "limit", "buy", 0.01, 50_000, {"clientOrderId": "mine"})
        assert order["status"] == "open"
        assert [found["id"] for found in exchange.fetch_open_orders(symbol)] == [order["id"]]
        with pytest.raises(ccxt.ExchangeError, match="uplicate"):
            exchange.create_order(symbol, "limit", "buy", 0.01, 50_000, {"clientOrderId": "mine"})
        assert exchange.cancel_order(order["id"], symbol)["status"] == "canceled"
        with pytest.raises(ccxt.OrderNotFound):
            exchange.cancel_order(order["id"], symbol)
        assert exchange.create_order(symbol, "market", "sell", 0.01)["status"] == "closed"
        assert len(exchange.fetch_my_trades(symbol)) == 1
        assert exchange.fetch_balance()["USDT"]["total"] > 0
        figures = emulator.stats()
        placed = figures["orders"][Emulator.account(KEY)]["by_client_id"]
        assert placed["mine"] == {"arrived": 2, "placed": 1, "status": "CANCELED"}
        assert set(figures["statuses"]) == {"200", "400"}


def test_futures_positions_funding_and_conditional_orders() -> None:
    """What only futures have."""
    symbol = "BTC/USDT:USDT"
    with Emulator("binance-usdm") as emulator:
        exchange = emulator.redirect(ccxt.binanceusdm(settings("binanceusdm")))
        exchange.load_markets()
        exchange.set_leverage(5, symbol)
        exchange.create_order(symbol, "market", "buy", 0.02)
        [position] = exchange.fetch_positions([symbol])
        assert (position["side"], position["contracts"]) == ("long", 0.02)
        assert exchange.fetch_funding_rate(symbol)["fundingRate"] == 0.0001
        assert len(exchange.fetch_funding_rate_history(symbol, limit=10)) == 10
        stop = exchange.create_order(symbol, "stop_market", "sell", 0.02, None, {"stopPrice": 40_000})
        waiting = exchange.fetch_open_orders(symbol, params={"trigger": True})
        assert [found["id"] for found in waiting] == [stop["id"]]
        exchange.cancel_order(stop["id"], symbol, {"trigger": True})
        batch = [
            {"symbol": symbol, "type": "limit", "side": "buy", "amount": 0.01, "price": price}
            for price in (50_000, 50_001)
        ]
        assert len(exchange.create_orders(batch)) == 2
        exchange.cancel_all_orders(symbol)
        assert exchange.fetch_open_orders(symbol) == []


@pytest.mark.parametrize(("provider", "name", "symbol"), CASES)
def test_an_async_bot_does_the_same(provider: str, name: str, symbol: str) -> None:
    """The async half of ccxt, and a whole batch of calls at once."""

    async def bot(emulator: Emulator) -> None:
        exchange = emulator.redirect(getattr(ccxt.async_support, name)(settings(name)))
        try:
            await exchange.load_markets()
            order = await exchange.create_order(symbol, "limit", "sell", 0.01, 90_000)
            await exchange.cancel_order(order["id"], symbol)
            candles = await asyncio.gather(*(exchange.fetch_ohlcv(symbol, "5m", limit=50) for _ in range(10)))
            assert {len(rows) for rows in candles} == {50}
        finally:
            await exchange.close()

    with Emulator(provider) as emulator:
        asyncio.run(bot(emulator))
        assert set(emulator.stats()["statuses"]) == {"200"}


def test_ccxt_sees_refusals_and_bans_as_its_own_errors() -> None:
    """429 and 418 both become DDoSProtection; the ban's end can be read from the text."""
    with Emulator("binance-usdm", window=86_400, capacity=10, ban_after=2) as emulator:
        exchange = emulator.redirect(ccxt.binanceusdm({"enableRateLimit": False}))
        for _ in range(10):
            exchange.fetch_time()
        with pytest.raises(ccxt.DDoSProtection, match=r"429.*-1003"):
            exchange.fetch_time()
        with pytest.raises(ccxt.DDoSProtection, match=r"418.*banned until \d{13}"):
            exchange.fetch_time()


def woofipro(kind: Any = ccxt) -> Any:
    """ccxt's exchange on Orderly, with a key of its own kind that is made up here."""
    exchange = kind.woofipro({"apiKey": KEY, "accountId": "a" + "1"})
    exchange.secret = exchange.binary_to_base58(os.urandom(32))
    return exchange


def bitget(kind: Any = ccxt) -> Any:
    """ccxt's Bitget."""
    return kind.bitget({"apiKey": KEY, "secret": "s" + "1", "password": "p" + "1"})


OTHERS = [
    ("orderly", woofipro, "BTC/USDC:USDC", "a1"),
    ("bitget", bitget, "BTC/USDT:USDT", KEY),
    ("bitget", bitget, "BTC/USDT", KEY),
]


@pytest.mark.parametrize(("provider", "make", "symbol", "owner"), OTHERS)
def test_other_exchanges_load_read_and_trade(provider: str, make: Any, symbol: str, owner: str) -> None:
    """Markets, candles, book, ticker, balance, an order from placing to cancelling, doubles, a market order."""
    with Emulator(provider) as emulator:
        exchange = emulator.redirect(make())
        market = exchange.load_markets()[symbol]
        assert market["precision"]["price"] > 0
        assert market["limits"]["cost"]["min"] == 5
        assert len(exchange.fetch_ohlcv(symbol, "1h", limit=150)) == 150
        book, ticker = exchange.fetch_order_book(symbol, 20), exchange.fetch_ticker(symbol)
        assert book["bids"][0][0] < ticker["last"] * 1.001 < book["asks"][0][0] * 1.002
        assert exchange.fetch_balance()[symbol.split("/")[1].split(":")[0]]["total"] == 100_000
        order = exchange.create_order(symbol, "limit", "buy", 0.01, 50_000, {"clientOrderId": "mine"})
        [opened] = exchange.fetch_open_orders(symbol)
        assert (opened["id"], opened["price"], opened["amount"]) == (order["id"], 50_000, 0.01)
        with pytest.raises(ccxt.ExchangeError, match="uplicate"):
            exchange.create_order(symbol, "limit", "buy", 0.01, 50_000, {"clientOrderId": "mine"})
        exchange.cancel_order(order["id"], symbol)
        assert exchange.fetch_order(order["id"], symbol)["status"] == "canceled"
        with pytest.raises((ccxt.OrderNotFound, ccxt.InvalidOrder)):
            exchange.cancel_order(order["id"], symbol)
        sold = exchange.create_order(symbol, "market", "sell", 0.02)
        assert exchange.fetch_order(sold["id"], symbol)["status"] == "closed"
        assert [trade["amount"] for trade in exchange.fetch_my_trades(symbol)] == [0.02]
        figures = emulator.stats()["orders"][Emulator.account(owner)]["by_client_id"]
        assert figures["mine"] == {"arrived": 2, "placed": 1, "status": "CANCELED"}


@pytest.mark.parametrize(("provider", "make", "symbol", "owner"), OTHERS[:2])
def test_positions_batches_and_leverage_of_other_exchanges(provider: str, make: Any, symbol: str, owner: str) -> None:
    """What bots on futures do besides."""
    with Emulator(provider) as emulator:
        exchange = emulator.redirect(make())
        exchange.load_markets()
        exchange.set_leverage(5, symbol)
        exchange.create_order(symbol, "market", "sell", 0.02)
        [position] = exchange.fetch_positions([symbol])
        assert (position["side"], position["contracts"]) == ("short", 0.02)
        batch = [
            {"symbol": symbol, "type": "limit", "side": "buy", "amount": 0.01, "price": price}
            for price in (50_000, 50_001)
        ]
        assert len(exchange.create_orders(batch)) == 2
        assert len(exchange.fetch_open_orders(symbol)) == 2
        exchange.cancel_all_orders(symbol)
        assert exchange.fetch_open_orders(symbol) == []
        assert emulator.stats()["orders"][Emulator.account(owner)]["open"] == 0


@pytest.mark.parametrize(("provider", "make", "symbol", "owner"), OTHERS[:2])
def test_async_bots_on_other_exchanges(provider: str, make: Any, symbol: str, owner: str) -> None:
    """The async half of ccxt; a grid around the market trades when the price has swung."""

    async def bot(emulator: Emulator) -> None:
        exchange = emulator.redirect(make(ccxt.async_support))
        try:
            await exchange.load_markets()
            now = int(time.time() * 1000)
            middle = (await exchange.fetch_ticker(symbol))["last"]
            for step in range(1, 4):
                for side, sign in (("buy", -1), ("sell", 1)):
                    price = middle * (1 + sign * step / 5_000)
                    await exchange.create_order(symbol, "limit", side, 0.01, price, {"clientOrderId": f"{side}{step}"})
            emulator.options(skew=420)  # one swing of the price later, seven minutes
            left = await exchange.fetch_open_orders(symbol)
            traded = await exchange.fetch_my_trades(symbol)
            assert len(left) + len(traded) == 6
            assert traded
            assert all(trade["timestamp"] >= now for trade in traded)
        finally:
            await exchange.close()

    with Emulator(provider) as emulator:
        asyncio.run(bot(emulator))
        stats = emulator.stats()
        assert {row["placed"] for row in stats["orders"][Emulator.account(owner)]["by_client_id"].values()} == {1}
        assert stats["totals"]["throttled"] == 0
