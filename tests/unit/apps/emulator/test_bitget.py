"""The emulated Bitget over real HTTP: bodies, orders, and the provider's own errors."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from tests.support import venue
from tests.support.venue import Asker

BTC, LINE = "BTCUSDT", "productType=USDT-FUTURES"
COMMON = {"symbol": BTC, "productType": "USDT-FUTURES", "marginCoin": "USDT", "marginMode": "crossed"}
ORDER = {**COMMON, "side": "buy", "orderType": "limit", "price": "50000", "size": "0.01", "force": "gtc"}
SPOT = {"symbol": BTC, "side": "buy", "orderType": "limit", "price": "50000", "size": "0.01", "force": "gtc"}
MIX_ORDER, SPOT_ORDER = "/api/v2/mix/order/place-order", "/api/v2/spot/trade/place-order"


def over_http(steps: Callable[[Asker], Awaitable[None]]) -> None:
    """Run the steps of a test as an account."""
    venue.over_http("bitget", {"access-key": "k1"}, steps)


def test_a_future_from_placing_to_cancelling() -> None:
    """Found by number and client order id, pending while it is open, a double is refused, cancelled once."""

    async def steps(ask: Asker) -> None:
        status, told = await ask.call("POST", MIX_ORDER, {**ORDER, "clientOid": "mine"})
        assert (status, told["code"], told["msg"], told["data"]["clientOid"]) == (200, "00000", "success", "mine")
        number = told["data"]["orderId"]
        for name in (f"orderId={number}", "clientOid=mine"):
            found = await ask.data("GET", f"/api/v2/mix/order/detail?symbol={BTC}&{LINE}&{name}")
            assert (found["orderId"], found["state"], found["size"]) == (number, "live", "0.01")
        pending = await ask.data("GET", f"/api/v2/mix/order/orders-pending?{LINE}")
        assert [row["orderId"] for row in pending["entrustedList"]] == [number]
        status, told = await ask.call("POST", MIX_ORDER, {**ORDER, "clientOid": "mine"})
        assert (status, told["code"]) == (400, "40786")
        cancel = {**COMMON, "clientOid": "mine"}
        assert (await ask.data("POST", "/api/v2/mix/order/cancel-order", cancel))["orderId"] == number
        status, told = await ask.call("POST", "/api/v2/mix/order/cancel-order", cancel)
        assert (status, told["code"]) == (400, "40768")
        (history,) = (await ask.data("GET", f"/api/v2/mix/order/orders-history?{LINE}"))["entrustedList"]
        assert history["status"] == "canceled"
        (account,) = ask.emulation.venue.orders().values()
        assert account == {"open": 0, "by_client_id": {"mine": {"arrived": 2, "placed": 1, "status": "CANCELED"}}}

    over_http(steps)


def test_spot_and_futures_are_apart() -> None:
    """Each has its own orders; the figures have both."""

    async def steps(ask: Asker) -> None:
        await ask.data("POST", MIX_ORDER, {**ORDER, "clientOid": "f"})
        placed = await ask.data("POST", SPOT_ORDER, {**SPOT, "clientOid": "s"})
        (row,) = await ask.data("GET", f"/api/v2/spot/trade/unfilled-orders?symbol={BTC}")
        assert (row["clientOid"], row["priceAvg"], row["basePrice"]) == ("s", "50000", "0")
        assert await ask.data("GET", "/api/v2/spot/trade/orderInfo?clientOid=f") == []
        assert len(await ask.data("GET", f"/api/v2/spot/trade/orderInfo?orderId={placed['orderId']}")) == 1
        (account,) = ask.emulation.venue.orders().values()
        assert (account["open"], set(account["by_client_id"])) == (2, {"f", "s"})
        assert await ask.data("POST", "/api/v2/spot/trade/cancel-symbol-order", {"symbol": BTC}) == {"symbol": BTC}
        assert await ask.data("GET", "/api/v2/spot/trade/unfilled-orders") == []

    over_http(steps)


def test_batches_tell_of_each_order() -> None:
    """What is said outside the list holds for all; one mistake does not fail the others."""

    async def steps(ask: Asker) -> None:
        one = {name: ORDER[name] for name in ("side", "orderType", "price", "size", "force")}
        orders = [{**one, "clientOid": name} for name in ("a", "b", "b")] + [{**one, "size": "0.0001"}]
        body = {**COMMON, "orderList": orders}
        told = await ask.data("POST", "/api/v2/mix/order/batch-place-order", body)
        assert [row["clientOid"] for row in told["successList"]] == ["a", "b"]
        assert [row["errorCode"] for row in told["failureList"]] == ["40786", "40808"]
        wanted = {**COMMON, "orderIdList": [{"clientOid": "a"}, {"clientOid": "gone"}]}
        told = await ask.data("POST", "/api/v2/mix/order/batch-cancel-orders", wanted)
        assert [row["clientOid"] for row in told["successList"]] == ["a"]
        assert [row["errorCode"] for row in told["failureList"]] == ["40768"]
        told = await ask.data("POST", "/api/v2/mix/order/cancel-all-orders", {"productType": "USDT-FUTURES"})
        assert [row["clientOid"] for row in told["successList"]] == ["b"]

    over_http(steps)


def test_positions_follow_fills_and_are_closed() -> None:
    """A market order fills at once; closing trades the other way; only positions that are open are listed."""

    async def steps(ask: Asker) -> None:
        everything = f"/api/v2/mix/position/all-position?{LINE}&marginCoin=USDT"
        await ask.data("POST", MIX_ORDER, {**ORDER, "side": "sell", "orderType": "market", "size": "0.03"})
        (row,) = await ask.data("GET", everything)
        assert (row["holdSide"], row["total"], row["leverage"]) == ("short", "0.03", "20")
        assert await ask.data("GET", everything.replace("USDT-", "COIN-")) == []
        # in hedge mode the side names the position that is closed
        close = {**ORDER, "side": "sell", "tradeSide": "close", "orderType": "market", "size": "0.01"}
        await ask.data("POST", MIX_ORDER, close)
        (row,) = await ask.data("GET", f"/api/v2/mix/position/single-position?{LINE}&symbol={BTC}&marginCoin=USDT")
        assert row["total"] == "0.02"
        told = await ask.data("POST", "/api/v2/mix/order/close-positions", {"productType": "USDT-FUTURES"})
        assert [done["symbol"] for done in told["successList"]] == [BTC]
        assert await ask.data("GET", everything) == []
        fills = (await ask.data("GET", f"/api/v2/mix/order/fills?{LINE}&symbol={BTC}"))["fillList"]
        assert [fill["side"] for fill in fills] == ["buy", "buy", "sell"]

    over_http(steps)


def test_a_resting_order_fills_when_the_price_comes() -> None:
    """And is then no longer pending."""

    async def steps(ask: Asker) -> None:
        await ask.data("POST", MIX_ORDER, {**ORDER, "clientOid": "mine"})
        book = ask.emulation.venue.book
        assert book is not None
        (order,) = book.account(next(iter(book.accounts))).open.values()
        order.price += 50_000
        ask.emulation.options.skew += 1
        assert (await ask.data("GET", f"/api/v2/mix/order/orders-pending?{LINE}"))["entrustedList"] == []
        detail = await ask.data("GET", f"/api/v2/mix/order/detail?symbol={BTC}&{LINE}&clientOid=mine")
        assert (detail["state"], detail["baseVolume"]) == ("filled", "0.01")

    over_http(steps)


def test_spot_fills_move_balances() -> None:
    """The size of a market buy is what it may cost; that of a sale is what is sold."""

    async def steps(ask: Asker) -> None:
        await ask.data("POST", SPOT_ORDER, {**SPOT, "orderType": "market", "price": None, "size": "1000"})
        held = {row["coin"]: float(row["available"]) for row in await ask.data("GET", "/api/v2/spot/account/assets")}
        assert 98_999 < held["USDT"] < 99_002
        assert held["BTC"] > 10
        await ask.data("POST", SPOT_ORDER, {**SPOT, "orderType": "market", "side": "sell", "size": "1"})
        (row,) = await ask.data("GET", "/api/v2/spot/account/assets?coin=BTC")
        assert float(row["available"]) == pytest.approx(held["BTC"] - 1)
        assert len(await ask.data("GET", f"/api/v2/spot/trade/fills?symbol={BTC}")) == 2

    over_http(steps)


@pytest.mark.parametrize(
    ("path", "change", "code"),
    [
        (MIX_ORDER, {"symbol": "XUSDT"}, "40034"),
        (MIX_ORDER, {"orderType": "iceberg"}, "40020"),
        (MIX_ORDER, {"side": None}, "40019"),
        (MIX_ORDER, {"price": "50000.05"}, "40808"),
        (MIX_ORDER, {"size": "0.0001"}, "40808"),
        (MIX_ORDER, {"size": "0"}, "43006"),
        (MIX_ORDER, {"price": "1000", "size": "0.001"}, "45110"),
        (SPOT_ORDER, {"price": "50000.005"}, "40808"),
        (SPOT_ORDER, {"price": "1000", "size": "0.001"}, "45110"),
    ],
)
def test_mistakes_have_the_providers_codes(path: str, change: dict[str, Any], code: str) -> None:
    """Bots act on these codes."""

    async def steps(ask: Asker) -> None:
        status, told = await ask.call("POST", path, {**ORDER, **change})
        assert (status, told["code"], told["data"]) == (400, code, None)

    over_http(steps)


def test_market_data_of_both_halves() -> None:
    """Tickers are lists, an unknown line is empty, candles come oldest first in every spelling of their length."""

    async def steps(ask: Asker) -> None:
        (one,) = await ask.data("GET", f"/api/v2/mix/market/ticker?symbol={BTC}&{LINE}")
        assert one["markPrice"] == one["lastPr"]
        assert len(await ask.data("GET", f"/api/v2/mix/market/tickers?{LINE}")) == 42
        assert await ask.data("GET", "/api/v2/mix/market/tickers?productType=COIN-FUTURES") == []
        assert len(await ask.data("GET", "/api/v2/spot/market/tickers")) == 9
        assert (await ask.call("GET", f"/api/v2/mix/market/ticker?{LINE}"))[1]["code"] == "40019"
        for half, words in (("mix", ("1m", "1H", "1Dutc", "1W", "1M")), ("spot", ("1min", "4h", "1day", "6Hutc"))):
            for word in words:
                path = f"/api/v2/{half}/market/candles?symbol={BTC}&{LINE}&granularity={word}&limit=3"
                times = [int(row[0]) for row in await ask.data("GET", path)]
                assert len(times) == 3
                assert times == sorted(times)
        told = (await ask.call("GET", f"/api/v2/spot/market/candles?symbol={BTC}&granularity=7min"))[1]
        assert told["code"] == "40020"
        book = await ask.data("GET", f"/api/v2/mix/market/merge-depth?symbol={BTC}&{LINE}&limit=max")
        assert len(book["asks"]) == 150
        assert float(book["bids"][0][0]) < float(book["asks"][0][0])
        for path in (f"mix/market/fills?symbol={BTC}", f"spot/market/fills-history?symbol={BTC}"):
            assert len(await ask.data("GET", f"/api/v2/{path}&limit=7")) == 7

    over_http(steps)


def test_a_future_that_is_off_is_listed_and_not_served() -> None:
    """A list of symbols made from the contracts holds one that every other call refuses."""

    async def steps(ask: Asker) -> None:
        rows = await ask.data("GET", f"/api/v2/mix/market/contracts?{LINE}")
        (off,) = [row["symbol"] for row in rows if row["symbolStatus"] == "off"]
        status, told = await ask.call("GET", f"/api/v2/mix/market/ticker?symbol={off}&{LINE}")
        assert (status, told["code"]) == (400, "40034")

    over_http(steps)


def test_account_calls_and_what_needs_a_key() -> None:
    """Leverage is kept; without a key nothing private is told."""

    async def steps(ask: Asker) -> None:
        body = {**COMMON, "leverage": "7"}
        assert (await ask.data("POST", "/api/v2/mix/account/set-leverage", body))["crossMarginLeverage"] == "7"
        await ask.data("POST", MIX_ORDER, ORDER)
        (row,) = (await ask.data("GET", f"/api/v2/mix/order/orders-pending?{LINE}"))["entrustedList"]
        assert row["leverage"] == "7"
        assert len(await ask.data("GET", f"/api/v2/mix/account/accounts?{LINE}")) == 1
        assert (await ask.data("GET", f"/api/v2/mix/account/account?{LINE}&symbol={BTC}"))["marginCoin"] == "USDT"
        assert (await ask.call("GET", "/api/v2/spot/account/assets", known=False))[1]["code"] == "40006"
        assert int((await ask.data("GET", "/api/v2/public/time"))["serverTime"]) > 0
        assert (await ask.call("GET", "/api/v3/account/settings"))[0] == 404

    over_http(steps)
