"""The emulated Orderly over real HTTP: bodies, orders, and the provider's own errors."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from tests.support import venue
from tests.support.venue import Asker

BTC = "PERP_BTC_USDC"
ORDER = {"symbol": BTC, "side": "BUY", "order_type": "LIMIT", "order_price": 50000, "order_quantity": 0.01}


def over_http(steps: Callable[[Asker], Awaitable[None]]) -> None:
    """Run the steps of a test as an account."""
    venue.over_http("orderly", {"orderly-account-id": "a1", "orderly-key": "k1"}, steps)


def test_an_order_from_placing_to_cancelling() -> None:
    """It is found by its number and by its client order id, listed while it is open, and cancelled once."""

    async def steps(ask: Asker) -> None:
        status, told = await ask.call("POST", "/v1/order", {**ORDER, "client_order_id": "mine"})
        assert (status, told["success"], told["data"]["client_order_id"]) == (200, True, "mine")
        assert told["timestamp"] > 0
        number = told["data"]["order_id"]
        for path in (f"/v1/order/{number}", "/v1/client/order/mine"):
            assert (await ask.data("GET", path))["status"] == "NEW"
        listed = await ask.data("GET", f"/v1/orders?symbol={BTC}&status=INCOMPLETE")
        assert [row["order_id"] for row in listed["rows"]] == [number]
        assert listed["meta"] == {"total": 1, "records_per_page": 25, "current_page": 1}
        assert await ask.call("POST", "/v1/order", {**ORDER, "client_order_id": "mine"}) == (
            409,
            {"success": False, "code": -1007, "message": "The request is duplicated."},
        )
        path = f"/v1/client/order?symbol={BTC}&client_order_id=mine"
        assert (await ask.data("DELETE", path)) == {"status": "CANCEL_SENT"}
        status, told = await ask.call("DELETE", path)
        assert (status, told["code"]) == (400, -1006)
        assert (await ask.data("GET", f"/v1/order/{number}"))["status"] == "CANCELLED"
        (account,) = ask.emulation.venue.orders().values()
        assert account == {"open": 0, "by_client_id": {"mine": {"arrived": 2, "placed": 1, "status": "CANCELED"}}}

    over_http(steps)


def test_an_order_is_changed_in_place() -> None:
    """Price and quantity; its number stays."""

    async def steps(ask: Asker) -> None:
        number = (await ask.data("POST", "/v1/order", ORDER))["order_id"]
        changed = {**ORDER, "order_id": number, "order_price": 50001, "order_quantity": 0.02}
        assert (await ask.data("PUT", "/v1/order", changed)) == {"status": "EDIT_SENT"}
        found = await ask.data("GET", f"/v1/order/{number}")
        assert (found["price"], found["quantity"]) == (50001, 0.02)

    over_http(steps)


def test_a_batch_tells_of_each_order() -> None:
    """One mistake does not fail the others; what is left is cancelled together."""

    async def steps(ask: Asker) -> None:
        orders = [{**ORDER, "client_order_id": name} for name in ("a", "b", "b")] + [{**ORDER, "symbol": "PERP_X_USDC"}]
        rows = (await ask.data("POST", "/v1/batch-order", {"orders": orders}))["rows"]
        assert [row["success"] for row in rows] == [True, True, False, False]
        assert rows[3]["error_message"] == "The symbol PERP_X_USDC is not known."
        assert (await ask.call("DELETE", "/v1/client/batch-order?client_order_ids=a,gone"))[0] == 200
        left = (await ask.data("GET", "/v1/orders?status=NEW"))["rows"]
        assert [row["client_order_id"] for row in left] == ["b"]
        assert (await ask.call("DELETE", "/v1/orders"))[0] == 200
        assert (await ask.data("GET", "/v1/orders?status=NEW"))["rows"] == []
        gone = await ask.data("GET", "/v1/orders?status=COMPLETED&size=1&page=2")
        assert (gone["meta"]["total"], len(gone["rows"])) == (2, 1)

    over_http(steps)


def test_positions_follow_fills() -> None:
    """A market order fills at once; a resting one when the price comes to it, and then it is in the trades."""

    async def steps(ask: Asker) -> None:
        await ask.call(
            "POST", "/v1/order", {**ORDER, "order_type": "MARKET", "order_price": None, "order_quantity": 0.03}
        )
        book = ask.emulation.venue.book
        assert book is not None
        resting = (await ask.data("POST", "/v1/order", {**ORDER, "side": "SELL", "order_price": 70000}))["order_id"]
        position = await ask.data("GET", f"/v1/position/{BTC}")
        assert (position["position_qty"], position["pending_short_qty"]) == (0.03, 0.01)
        (order,) = book.account(next(iter(book.accounts))).open.values()
        order.price = order.price - 10_000  # below the market
        ask.emulation.options.skew += 1
        rows = (await ask.data("GET", "/v1/positions"))["rows"]
        assert [(row["symbol"], row["position_qty"]) for row in rows] == [(BTC, 0.02)]
        trades = (await ask.data("GET", f"/v1/trades?symbol={BTC}"))["rows"]
        assert [(row["order_id"] == resting, row["is_maker"]) for row in trades] == [(True, 1), (False, 0)]
        assert len((await ask.data("GET", f"/v1/order/{resting}/trades"))["rows"]) == 1

    over_http(steps)


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"symbol": "PERP_X_USDC"}, 400, -1005),
        ({"side": "HOLD"}, 400, -1005),
        ({"order_type": "ICEBERG"}, 400, -1005),
        ({"order_price": 50000.05}, 400, -1103),
        ({"order_quantity": 0.0001}, 400, -1104),
        ({"order_quantity": 0}, 400, -1104),
        ({"order_price": 1000, "order_quantity": 0.001}, 400, -1102),
    ],
)
def test_mistakes_have_the_providers_codes(change: dict[str, Any], status: int, code: int) -> None:
    """Bots act on these codes."""

    async def steps(ask: Asker) -> None:
        got, told = await ask.call("POST", "/v1/order", {**ORDER, **change})
        assert (got, told["success"], told["code"]) == (status, False, code)

    over_http(steps)


def test_private_calls_need_a_key_and_public_ones_do_not() -> None:
    """Order books and candles are private here."""

    async def steps(ask: Asker) -> None:
        for path in (f"/v1/orderbook/{BTC}", f"/v1/kline?symbol={BTC}&type=1m", "/v1/positions"):
            assert (await ask.call("GET", path, known=False))[1] == {
                "success": False,
                "code": -1002,
                "message": "API key or secret is invalid.",
            }
        assert (await ask.call("GET", "/v1/public/info", known=False))[0] == 200

    over_http(steps)


def test_market_data_fits_together() -> None:
    """The last price lies in the book, the newest candle is that of now, and the chart shows the same candles."""

    async def steps(ask: Asker) -> None:
        book = await ask.data("GET", f"/v1/orderbook/{BTC}?max_level=5")
        last = (await ask.data("GET", f"/v1/public/futures/{BTC}"))["mark_price"]
        assert len(book["bids"]) == 5
        assert book["bids"][0]["price"] - 10 < last < book["asks"][0]["price"] + 10
        rows = (await ask.data("GET", f"/v1/kline?symbol={BTC}&type=5m&limit=3"))["rows"]
        assert [row["end_timestamp"] - row["start_timestamp"] for row in rows] == [300_000] * 3
        begin = rows[-1]["start_timestamp"] // 1_000
        chart = (await ask.call("GET", f"/v1/tv/history?symbol={BTC}&resolution=5&from={begin}&to={begin + 899}"))[1]
        assert chart["s"] == "ok"
        assert chart["c"][:2] == [row["close"] for row in reversed(rows)][:2]
        assert (await ask.data("GET", f"/v1/public/info/{BTC}"))["quote_tick"] == 0.1
        assert (await ask.call("GET", "/v1/public/info/PERP_X_USDC"))[1]["code"] == -1005
        assert len((await ask.data("GET", f"/v1/public/market_trades?symbol={BTC}&limit=4"))["rows"]) == 4

    over_http(steps)


def test_the_account_tells_its_money_and_its_leverage() -> None:
    """What bots read when they start."""

    async def steps(ask: Asker) -> None:
        holding = (await ask.data("GET", "/v1/client/holding"))["holding"]
        assert [(row["token"], row["holding"]) for row in holding] == [("USDC", 100_000)]
        assert (await ask.data("GET", "/v1/client/info"))["account_mode"] == "FUTURES"
        assert (await ask.call("POST", "/v1/client/leverage", {"symbol": BTC, "leverage": 5}))[0] == 200
        assert (await ask.data("GET", f"/v1/position/{BTC}"))["leverage"] == 5

    over_http(steps)


def test_a_fill_is_told_without_anybody_asking() -> None:
    """On the private websocket, when the price has come to the order."""

    async def steps(ask: Asker) -> None:
        await ask.call("POST", "/v1/order", {**ORDER, "client_order_id": "mine"})
        async with ask.session.ws_connect("/v2/ws/private/stream/a1") as socket:
            await socket.send_json({"id": "1", "event": "auth", "params": {"orderly_key": "k1"}})
            await socket.send_json({"id": "2", "event": "subscribe", "topic": "executionreport"})
            assert [(await socket.receive_json(timeout=5))["success"] for _ in range(2)] == [True, True]
            book = ask.emulation.venue.book
            assert book is not None
            (order,) = book.account(next(iter(book.accounts))).open.values()
            order.price += 50_000
            ask.emulation.options.skew += 1
            told = await socket.receive_json(timeout=5)
        assert (told["topic"], told["data"]["clientOrderId"]) == ("executionreport", "mine")
        assert (told["data"]["status"], told["data"]["price"]) == ("FILLED", 100_000)

    over_http(steps)
