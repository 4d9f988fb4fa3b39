"""The emulator's websockets, over real connections of the `websockets` and aiohttp clients."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from ratekeeper.apps.emulator.incoming import Incoming
from ratekeeper.apps.emulator.market import MARKETS
from ratekeeper.apps.emulator.options import LimitChange, Options
from ratekeeper.apps.emulator.orders import OrderBook
from ratekeeper.apps.emulator.server import Emulation
from ratekeeper.rules.book import Rulebook

PATIENCE = 20.0


class Place:
    """One emulation and where it is."""

    def __init__(self, emulation: Emulation, session: aiohttp.ClientSession, port: int) -> None:
        self.emulation = emulation
        self.session = session
        self.http = f"http://127.0.0.1:{port}"
        self.ws = f"ws://127.0.0.1:{port}"

    async def post(self, path: str, **more: Any) -> Any:
        """The decoded answer to a POST."""
        async with self.session.post(self.http + path, **more) as answer:
            return await answer.json(content_type=None)

    async def figures(self) -> Any:
        """What the emulator says of its sockets."""
        async with self.session.get(self.http + "/__emulator__/stats") as answer:
            return (await answer.json())["sockets"]


@asynccontextmanager
async def running(**options: Any) -> Any:
    """An emulation with these options, and quick ticks."""
    chosen = Options(**{"provider": "binance-usdm", "ws_interval": 0.01, **options})
    emulation = Emulation(chosen, Rulebook.load().provider(chosen.provider))
    runner = web.AppRunner(emulation.application(), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with aiohttp.ClientSession() as session:
            yield Place(emulation, session, runner.addresses[0][1])
    finally:
        await runner.cleanup()


def run(scene: Callable[[Place], Awaitable[None]], **options: Any) -> None:
    """Run `scene` against an emulation."""

    async def main() -> None:
        async with asyncio.timeout(PATIENCE), running(**options) as place:
            await scene(place)

    asyncio.run(main())


async def heard(wire: ClientConnection, wanted: Callable[[Any], bool] = lambda body: True) -> Any:
    """The next message that is wanted."""
    while True:
        body = json.loads(await wire.recv())
        if wanted(body):
            return body


async def ask(wire: ClientConnection, **body: Any) -> None:
    """Send JSON."""
    await wire.send(json.dumps(body))


async def rest_of(wire: ClientConnection) -> tuple[list[Any], int | None]:
    """What still comes, and the close code that was received, ``None`` if there was none."""
    told: list[Any] = []
    try:
        while True:
            told.append(json.loads(await wire.recv()))
    except ConnectionClosed as ended:
        return told, ended.rcvd.code if ended.rcvd else None


async def end_of(wire: ClientConnection) -> int | None:
    """Read until the connection ends; the close code."""
    return (await rest_of(wire))[1]


def test_binance_streams_come_without_a_gap_until_unsubscribed() -> None:
    """Subscribed by message or by address; wrapped on ``/stream``; the number of the message rises by one."""

    async def scene(place: Place) -> None:
        async with connect(place.ws + "/stream?streams=btcusdt@bookTicker/ethusdt@kline_1m") as wire:
            kinds = {(await heard(wire))["stream"] for _ in range(2)}
            assert kinds == {"btcusdt@bookTicker", "ethusdt@kline_1m"}
            await ask(wire, method="UNSUBSCRIBE", params=["ethusdt@kline_1m"], id=1)
            assert (await heard(wire, lambda body: "id" in body)) == {"result": None, "id": 1}
            await ask(wire, method="LIST_SUBSCRIPTIONS", id=2)
            assert (await heard(wire, lambda body: "id" in body))["result"] == ["btcusdt@bookTicker"]
            assert (await place.figures())["subscriptions"] == {"btcusdt@bookTicker": 1}
        async with connect(place.ws + "/ws") as wire:
            await ask(wire, method="SUBSCRIBE", params=["btcusdt@aggTrade"], id=3)
            assert (await heard(wire)) == {"result": None, "id": 3}
            found = [await heard(wire) for _ in range(5)]
            assert [body["seq"] - found[0]["seq"] for body in found] == [0, 1, 2, 3, 4]
            assert {(body["e"], body["s"]) for body in found} == {("aggTrade", "BTCUSDT")}

    run(scene)


@pytest.mark.parametrize(
    ("provider", "prefix", "event"),
    [("binance-usdm", "/fapi/v1/", "ORDER_TRADE_UPDATE"), ("binance-spot", "/api/v3/", "executionReport")],
)
def test_binance_tells_an_account_of_its_orders_and_of_no_others(provider: str, prefix: str, event: str) -> None:
    """The listen key names the account; a market order is new, and then filled."""

    async def scene(place: Place) -> None:
        route = prefix + ("listenKey" if "fapi" in prefix else "userDataStream")
        mine, other = ({"X-MBX-APIKEY": "k" + name} for name in "12")
        key = (await place.post(route, headers=mine))["listenKey"]
        now = place.emulation.clock() // 1_000_000
        form = {
            "symbol": "BTCUSDT",
            "side": "BUY",
            "type": "MARKET",
            "quantity": "0.010",
            "timestamp": now,
            "signature": "s",
        }
        async with connect(f"{place.ws}/ws/{key}") as wire:
            while not (await place.figures())["subscriptions"]:
                pass
            await place.post(prefix + "order", headers=other, data={**form, "newClientOrderId": "theirs"})
            await place.post(prefix + "order", headers=mine, data={**form, "newClientOrderId": "mine"})
            told = [await heard(wire) for _ in range(2)]
        rows = [body.get("o") if isinstance(body.get("o"), dict) else body for body in told]
        assert [(body["e"], row["c"], row["X"]) for body, row in zip(told, rows, strict=True)] == [
            (event, "mine", "NEW"),
            (event, "mine", "FILLED"),
        ]
        assert [body["seq"] for body in told] == [1, 2]

    run(scene, provider=provider)


def test_orderly_subscribes_authorises_and_pings_in_json() -> None:
    """A private topic needs ``auth``; pings come as JSON, and who does not answer them is dropped."""

    async def scene(place: Place) -> None:
        async with connect(place.ws + "/ws/stream/0xabc") as wire:
            await ask(wire, id="1", event="subscribe", topic="PERP_BTC_USDC@bbo")
            ack = await heard(wire, lambda body: body.get("event") == "subscribe")
            assert (ack["id"], ack["success"]) == ("1", True)
            tick = await heard(wire, lambda body: "topic" in body)
            assert tick["data"]["bid"] < tick["data"]["ask"]
            await ask(wire, event="ping")
            assert (await heard(wire, lambda body: body.get("event") == "pong"))["ts"]
            assert (await heard(wire, lambda body: body.get("event") == "ping"))["ts"]
            assert await end_of(wire) == 1008
        async with connect(place.ws + "/v2/ws/private/stream/0xabc") as wire:
            await ask(wire, id="2", event="subscribe", topic="executionreport")
            assert not (await heard(wire, lambda body: body.get("event") == "subscribe"))["success"]
            await ask(wire, id="3", event="auth", params={"orderly_key": "k" + "1", "sign": "s", "timestamp": 1})
            assert (await heard(wire, lambda body: body.get("event") == "auth"))["success"]
            await ask(wire, id="4", event="subscribe", topic="executionreport")
            assert (await heard(wire, lambda body: body.get("event") == "subscribe"))["success"]
            assert (await place.figures())["ended"] == {"no pong": 1}

    run(scene, provider="orderly", scale=0.005, limits=(LimitChange("ws-messages-1s", 50, 1.0),))


def test_bitget_channels_and_text_pings() -> None:
    """Channels are named by three words; the client's ``ping`` is answered ``pong``; logging in is acknowledged."""

    async def scene(place: Place) -> None:
        arg = {"instType": "USDT-FUTURES", "channel": "ticker", "instId": "BTCUSDT"}
        async with place.session.ws_connect(place.http + "/v2/ws/public") as wire:
            await wire.send_str("ping")
            assert (await wire.receive()).data == "pong"
            await wire.send_json({"op": "login", "args": [{"apiKey": "k" + "1"}]})
            assert (await wire.receive_json())["code"] == 0
            await wire.send_json({"op": "subscribe", "args": [arg]})
            assert (await wire.receive_json()) == {"event": "subscribe", "arg": arg}
            first, second = [await wire.receive_json() for _ in range(2)]
            assert (first["arg"], first["data"][0]["instId"]) == (arg, "BTCUSDT")
            assert second["seq"] == first["seq"] + 1

    run(scene, provider="bitget")


def test_an_unknown_dialect_acknowledges_ticks_and_echoes() -> None:
    """JSON that says "subscribe" gets ticks; everything else comes back."""

    async def scene(place: Place) -> None:
        async with place.session.ws_connect(place.http + "/v5/public/linear") as wire:
            await wire.send_str("hello")
            assert (await wire.receive()).data == "hello"
            await wire.send_bytes(b"raw")
            assert (await wire.receive()).data == b"raw"
            await wire.send_json({"op": "subscribe", "args": ["tickers.BTCUSDT"]})
            assert (await wire.receive_json())["op"] == "subscribe"
            assert (await wire.receive_json())["topic"] == "tickers.BTCUSDT"

    run(scene, provider="bybit")


def test_too_many_messages_close_and_too_many_dials_are_refused() -> None:
    """The sixth message of a second closes with 1008; the third dial of the window gets 429; both are in the figures."""

    async def scene(place: Place) -> None:
        async with connect(place.ws + "/ws") as wire:
            for number in range(6):
                await ask(wire, method="LIST_SUBSCRIPTIONS", id=number)
            assert await end_of(wire) == 1008
        async with connect(place.ws + "/ws"):
            pass
        with pytest.raises(InvalidStatus) as refused:
            await connect(place.ws + "/ws")
        assert refused.value.response.status_code == 429
        figures = await place.figures()
        dials = figures["dials"]["127.0.0.1"]
        assert (dials["count"], dials["refused"], len(dials["instants"])) == (3, 1, 3)
        assert figures["ended"]["too many"] == 1

    # seconds made long, so that the test's own speed does not matter
    changes = (LimitChange("ws-messages-1s", 5, 60.0), LimitChange("connections-5m", 2, 86_400.0))
    run(scene, provider="binance-spot", limits=changes)


def test_streams_are_slots_that_come_back() -> None:
    """Two streams at most; what is unsubscribed makes room; a third at once closes the connection."""

    async def scene(place: Place) -> None:
        async with connect(place.ws + "/ws/btcusdt@trade") as wire:
            for verb, name in (("SUBSCRIBE", "eth"), ("UNSUBSCRIBE", "btc"), ("SUBSCRIBE", "bnb")):
                await ask(wire, method=verb, params=[f"{name}usdt@trade"], id=name)
                assert (await heard(wire, lambda body, name=name: body.get("id") == name))["result"] is None
            await ask(wire, method="SUBSCRIBE", params=["solusdt@trade"], id=9)
            assert await end_of(wire) == 1008

    run(scene, limits=(LimitChange("ws-streams", 2),))


@pytest.mark.parametrize(("mode", "code"), [("close", 1001), ("abort", None)])
def test_sockets_can_be_cut(mode: str, code: int | None) -> None:
    """With a word, or without one; only those of the address that is named."""

    async def scene(place: Place) -> None:
        async with connect(place.ws + "/ws/btcusdt@trade") as wire:
            await heard(wire)
            assert await place.post(f"/__emulator__/cut?mode={mode}&ip=127.0.0.9") == {"cut": 0}
            assert await place.post(f"/__emulator__/cut?mode={mode}") == {"cut": 1}
            assert await end_of(wire) == code
            assert (await place.figures())["ended"] == {"cut": 1}
        assert "mode must be" in (await place.post("/__emulator__/cut?mode=gently"))["error"]

    run(scene)


def test_a_silent_cut_answers_nothing_and_a_stale_stream_answers_pings() -> None:
    """Stale: pongs but no data; cut silently: not even pongs."""

    async def scene(place: Place) -> None:
        async with connect(place.ws + "/ws/btcusdt@trade", ping_interval=None, close_timeout=0.05) as wire:
            await heard(wire)
            await place.post("/__emulator__/options", json={"ws_silent": True})
            await (await wire.ping())
            sent = (await place.figures())["messages"]["out"]
            await (await wire.ping())
            assert (await place.figures())["messages"]["out"] == sent + 1
            await place.post("/__emulator__/cut?mode=silent")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(await wire.ping(), 0.2)
            assert (await place.figures())["open"] == 1

    run(scene)


def test_old_sockets_are_closed_and_the_next_one_goes_on() -> None:
    """The shortened lifetime ends the connection, on spot after a word; numbers go on rising on the next one."""

    async def scene(place: Place) -> None:
        last = 0
        for _ in range(2):
            async with connect(place.ws + "/ws/btcusdt@trade") as wire:
                told, code = await rest_of(wire)
                assert code == 1001
                assert told[-1]["e"] == "serverShutdown"
                assert told[0]["seq"] > last
                last = told[-2]["seq"]
        assert (await place.figures())["ended"] == {"lifetime": 2}

    run(scene, provider="binance-spot", ws_lifetime=0.15)


def test_the_server_pings_and_drops_who_does_not_answer() -> None:
    """A client that answers ping frames stays; one that does not is dropped."""

    async def scene(place: Place) -> None:
        async with (
            place.session.ws_connect(place.http + "/ws", autoping=False) as deaf,
            connect(place.ws + "/ws/btcusdt@trade", ping_interval=None, max_queue=None) as alive,
        ):
            assert (await deaf.receive()).type is aiohttp.WSMsgType.PING
            while (message := await deaf.receive()).type is aiohttp.WSMsgType.PING:
                pass
            assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1008)
            await heard(alive)
            assert (await place.figures())["ended"] == {"no pong": 1}

    # 20 s and 60 s, scaled; the messages' second would shrink as well
    run(scene, provider="binance-spot", scale=0.005, limits=(LimitChange("ws-messages-1s", 1_000, 1.0),))


def test_accepted_and_closed_at_once() -> None:
    """The handshake succeeds and the connection ends: what sets off redial storms."""

    async def scene(place: Place) -> None:
        async with connect(place.ws + "/ws") as wire:
            assert await end_of(wire) == 1013
        assert (await place.figures())["dials"]["127.0.0.1"]["refused"] == 0

    run(scene, ws_refuse=1.0)


def test_a_hanging_request_was_carried_out() -> None:
    """The client gives up on its order; the order is there, once."""

    async def scene(place: Place) -> None:
        form = {"symbol": "BTCUSDT", "side": "BUY", "type": "MARKET", "quantity": "0.010", "newClientOrderId": "mine"}
        form |= {"timestamp": str(place.emulation.clock() // 1_000_000), "signature": "s"}
        with pytest.raises(TimeoutError):
            await place.post(
                "/fapi/v1/order",
                headers={"X-MBX-APIKEY": "k" + "1"},
                data=form,
                timeout=aiohttp.ClientTimeout(total=0.2),
            )
        (account,) = place.emulation.venue.orders().values()
        assert account["by_client_id"]["mine"] == {"arrived": 1, "placed": 1, "status": "FILLED"}

    run(scene, hang=1.0)


def test_orders_of_an_account_are_told_on_its_authorised_socket() -> None:
    """Orderly and Bitget name the account in the login; others' orders are not told."""

    async def scene(place: Place) -> None:
        book = OrderBook(MARKETS["usdm"], futures=True)
        book.on_change = place.emulation.sockets.report
        form = {"symbol": "BTCUSDT", "side": "BUY", "type": "MARKET", "quantity": "0.010"}
        secrets = ["k" + "1", "k" + "2"]
        arg = {"instType": "USDT-FUTURES", "channel": "orders", "instId": "default"}
        async with connect(place.ws + "/v2/ws/private") as wire:
            await ask(wire, op="login", args=[{"apiKey": secrets[0]}])
            await ask(wire, op="subscribe", args=[arg])
            assert [(await heard(wire))["event"] for _ in range(2)] == ["login", "subscribe"]
            for secret in reversed(secrets):
                params = {**form, "newClientOrderId": f"of-{secret}"}
                book.place(Incoming(params, 1_800_000_000_000, place.emulation.label(secret)))
            told = [(await heard(wire, lambda body: "action" in body))["data"][0] for _ in range(2)]
            assert [(row["clientOid"], row["status"]) for row in told] == [("of-k1", "live"), ("of-k1", "filled")]

    run(scene, provider="bitget")


def test_a_late_socket_is_late() -> None:
    """With a lag the answer to a ping is still on its way when an unlagged one would have come."""

    async def scene(place: Place) -> None:
        async with connect(place.ws + "/ws", ping_interval=None) as wire:
            await place.post("/__emulator__/options", json={"ws_lag": 300})
            pong = await wire.ping()
            sent = (await place.figures())["messages"]
            assert (sent["in"], sent["out"]) == (1, 0)
            assert await pong >= 0.3
            assert (await place.figures())["messages"]["out"] == 1

    run(scene)
