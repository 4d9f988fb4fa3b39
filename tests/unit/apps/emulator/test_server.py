"""The emulator's decisions, over real HTTP in this process. Time is moved by the emulator's own `skew`."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from ratekeeper.apps.emulator.binance import Spot
from ratekeeper.apps.emulator.binance_usdm import Usdm
from ratekeeper.apps.emulator.bitget import Bitget
from ratekeeper.apps.emulator.limit_table import LimitTable
from ratekeeper.apps.emulator.options import LimitChange, Options
from ratekeeper.apps.emulator.orderly import Orderly
from ratekeeper.apps.emulator.server import Emulation
from ratekeeper.apps.emulator.state import venue_of
from ratekeeper.apps.emulator.venue import Venue
from ratekeeper.rules.book import Rulebook
from ratekeeper.rules.call import Answer, Request

TIME = "/fapi/v1/time"
KLINES = "/fapi/v1/klines?symbol=BTCUSDT&interval=1m&limit=99"


class Client:
    """A session with one emulation; every answer is read."""

    def __init__(self, emulation: Emulation, session: aiohttp.ClientSession, url: str) -> None:
        self.emulation = emulation
        self.session = session
        self.url = url

    async def call(self, path: str, method: str = "GET", **more: Any) -> tuple[int, Any, Any]:
        """Status, headers and decoded body."""
        async with self.session.request(method, self.url + path, **more) as answer:
            return answer.status, answer.headers, await answer.json(content_type=None)

    async def statuses(self, path: str, times: int) -> list[int]:
        """The statuses of the same call, one after the other."""
        return [(await self.call(path))[0] for _ in range(times)]

    def later(self, seconds: float) -> None:
        """Move the emulator's clock on."""
        self.emulation.options.skew += seconds


@asynccontextmanager
async def running(**options: Any) -> Any:
    """A client of an emulation with these options; its clock stands just after an edge of its weight window."""
    chosen = Options(**{"provider": "binance-usdm", "window": 60, **options})
    emulation = Emulation(chosen, Rulebook.load().provider(chosen.provider))
    period = emulation.limits.main.period / 1e9
    chosen.skew += period - time.time() % period + 0.1
    runner = web.AppRunner(emulation.application(), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        async with aiohttp.ClientSession() as session:
            yield Client(emulation, session, f"http://127.0.0.1:{port}")
    finally:
        await runner.cleanup()
        emulation.journal.close()


def run(scene: Callable[[Client], Awaitable[None]], **options: Any) -> None:
    """Run `scene` against an emulation."""

    async def main() -> None:
        async with running(**options) as client:
            await scene(client)

    asyncio.run(main())


def test_exactly_the_capacity_is_let_through_in_each_window() -> None:
    """The next unit gets 429 with the wait in seconds; the next window is full again."""

    async def scene(client: Client) -> None:
        assert await client.statuses(KLINES, 6) == [200] * 5 + [429]
        status, headers, body = await client.call(TIME)
        assert status == 429
        assert body["code"] == -1003
        assert 58 <= int(headers["Retry-After"]) <= 60
        assert headers["X-MBX-USED-WEIGHT-1M"] == "7"
        client.later(60)
        assert await client.statuses(KLINES, 6) == [200] * 5 + [429]

    run(scene, capacity=5)


def test_going_on_after_refusals_is_a_ban_that_grows() -> None:
    """The threshold's refusal is answered 418; the ban ends when it says; the next one lasts twice as long."""

    async def scene(client: Client) -> None:
        assert await client.statuses(TIME, 6) == [200, 200, 429, 429, 418, 418]
        status, headers, body = await client.call(TIME)
        assert status == 418
        until = int(body["msg"].split("banned until ")[1][:13]) / 1000
        assert until == pytest.approx(client.emulation.clock() / 1e9 + 120, abs=2)
        assert 118 <= int(headers["Retry-After"]) <= 120
        client.later(121)
        assert await client.statuses(TIME, 5) == [200, 200, 429, 429, 418]
        assert int((await client.call(TIME))[1]["Retry-After"]) > 230
        client.later(241)
        assert await client.statuses(TIME, 1) == [200]
        figures = (await client.call("/__emulator__/stats"))[2]
        assert figures["totals"]["bans"] == 2
        assert figures["totals"]["throttled"] == 4
        assert figures["totals"]["banned"] == 5
        assert figures["ips"]["127.0.0.1"]["arrivals"] == 14

    run(scene, capacity=2, ban_after=3)


def test_a_shorter_window_is_declared_and_shown() -> None:
    """``exchangeInfo`` and header names follow the window in force; the order windows stay as published."""

    async def scene(client: Client) -> None:
        _, headers, body = await client.call("/fapi/v1/exchangeInfo")
        assert headers["X-MBX-USED-WEIGHT-5S"] == "1"
        rows = {(row["rateLimitType"], row["interval"], row["intervalNum"]): row["limit"] for row in body["rateLimits"]}
        assert rows == {
            ("REQUEST_WEIGHT", "SECOND", 5): 2_400,
            ("ORDERS", "SECOND", 10): 300,
            ("ORDERS", "MINUTE", 1): 1_200,
        }

    run(scene, window=5)


def order(client: Client, **changes: str) -> dict[str, str]:
    """The form of a limit order that rests."""
    form = {"symbol": "BTCUSDT", "side": "BUY", "type": "LIMIT", "timeInForce": "GTC", "quantity": "0.010"}
    now = client.emulation.clock() // 1_000_000
    return {**form, "price": "50000", "timestamp": str(now), "signature": "s", **changes}


def test_orders_are_counted_per_account_and_not_when_refused() -> None:
    """Each account has its own pools; a refused order counts nowhere; the header names the window."""

    async def scene(client: Client) -> None:
        async def place(key: str) -> tuple[int, Any, Any]:
            return await client.call("/fapi/v1/order", "POST", data=order(client), headers={"X-MBX-APIKEY": key})

        first, second = "k" + "1", "k" + "2"
        assert (await place(first))[1]["X-MBX-ORDER-COUNT-10S"] == "1"
        assert (await place(first))[0] == 200
        status, headers, body = await place(first)
        assert (status, body["code"], headers["X-MBX-ORDER-COUNT-10S"]) == (429, -1015, "2")
        assert "Retry-After" in headers
        assert headers["X-MBX-USED-WEIGHT-1M"] == "0"
        assert (await place(second))[0] == 200
        figures = (await client.call("/__emulator__/stats"))[2]
        assert len(figures["orders"]) == 2
        assert first not in json.dumps(figures)

    run(scene, limits=(LimitChange("orders-10s", 2),))


def test_successful_spot_orders_give_their_weight_back() -> None:
    """A placed order costs no weight and one order; a failed one keeps its weight; a fill takes the order back."""

    async def scene(client: Client) -> None:
        key = {"X-MBX-APIKEY": "k" + "1"}

        async def place(**changes: str) -> tuple[int, Any, Any]:
            return await client.call("/api/v3/order", "POST", data=order(client, **changes), headers=key)

        status, headers, _ = await place()
        assert (status, headers["X-MBX-USED-WEIGHT-1M"], headers["X-MBX-ORDER-COUNT-10S"]) == (200, "0", "1")
        status, headers, _ = await place(symbol="NOPE")
        assert (status, headers["X-MBX-USED-WEIGHT-1M"], headers["X-MBX-ORDER-COUNT-10S"]) == (400, "1", "2")
        status, headers, body = await place(type="MARKET")
        assert (status, body["status"], headers["X-MBX-ORDER-COUNT-10S"]) == (200, "FILLED", "2")

    run(scene, provider="binance-spot")


def test_a_failed_call_is_charged_and_a_stale_one_refused() -> None:
    """400 costs its weight; the timestamp is held against the emulator's own clock."""

    async def scene(client: Client) -> None:
        status, headers, _ = await client.call("/fapi/v1/klines?symbol=NOPE&interval=1m&limit=1500")
        assert (status, headers["X-MBX-USED-WEIGHT-1M"]) == (400, "10")
        path = "/fapi/v3/balance?timestamp={}&signature=s"
        key = {"X-MBX-APIKEY": "k" + "1"}
        fresh = client.emulation.clock() // 1_000_000
        assert (await client.call(path.format(fresh), headers=key))[0] == 200
        assert (await client.call(path.format(fresh)))[0] == 401
        status, headers, body = await client.call(path.format(fresh - 6_000), headers=key)
        assert (status, body["code"], headers["X-MBX-USED-WEIGHT-1M"]) == (400, -1021, "25")

    run(scene)


def test_pools_apart_from_weight_have_their_own_count() -> None:
    """Funding calls cost no weight and stop at their own limit, which no header shows."""

    async def scene(client: Client) -> None:
        path = "/fapi/v1/fundingInfo"
        assert await client.statuses(path, 3) == [200, 200, 429]
        status, headers, _ = await client.call(TIME)
        assert (status, headers["X-MBX-USED-WEIGHT-1M"]) == (200, "1")

    run(scene, limits=(LimitChange("funding-5m", 2),))


def test_unknown_paths_are_charged_and_not_found() -> None:
    """A route with rules but no body of its own answers plainly; a path without rules is 404."""

    async def scene(client: Client) -> None:
        assert (await client.call("/fapi/v1/symbolConfig"))[0] == 200
        status, _, body = await client.call("/fapi/v1/nothing")
        assert (status, body["code"]) == (404, -5000)
        assert client.emulation.bans.address("127.0.0.1").arrivals == 2

    run(scene)


def test_headers_can_be_missing() -> None:
    """No usage headers, no ``Retry-After``, no ``Date``."""

    async def scene(client: Client) -> None:
        _, headers, _ = await client.call(TIME)
        assert not [name for name in headers if name.startswith("X-MBX") or name == "Date"]
        status, headers, _ = await client.call(TIME)
        assert status == 429
        assert "Retry-After" not in headers

    run(scene, capacity=1, usage_headers=False, retry_after=False, date=False)


def test_the_clock_is_the_emulators_own() -> None:
    """`skew` moves ``serverTime`` and ``Date`` together."""

    async def scene(client: Client) -> None:
        client.emulation.options.skew = 1_000.0
        _, headers, body = await client.call(TIME)
        assert body["serverTime"] / 1000 - time.time() == pytest.approx(1_000, abs=2)
        assert parsedate_to_datetime(headers["Date"]).timestamp() - time.time() == pytest.approx(1_000, abs=3)

    run(scene)


@pytest.mark.parametrize("provider", ["binance-usdm", "bitget", "orderly", "okx", "deribit"])
def test_what_dates_an_answer_is_not_what_counts_it(provider: str) -> None:
    """`date_offset` moves ``Date``, and the time that the rule file reads in bodies; windows roll by the other clock."""

    async def scene(client: Client) -> None:
        emulation = client.emulation
        rules = emulation.limits.provider
        method, path = [learn.route for learn in rules.file.learn if learn.clock and "/" in learn.route][-1].split()
        before = emulation.clock()
        _, headers, body = await client.call(path, method)
        after = emulation.clock()
        plan, _ = emulation.limits.plan(Request(method, path), "127.0.0.1", "")
        told = rules.feedback(plan, Answer(200, {}, json.dumps(body).encode()), now=before).server_time
        assert told is not None
        slack = 1_000_000_000  # some tell whole seconds
        for low, high in (told, (date := int(parsedate_to_datetime(headers["Date"]).timestamp() * 1e9), date + slack)):
            assert before - slack <= low + 500_000_000_000 <= after
            assert before <= high + 500_000_000_000 <= after + slack

    run(scene, provider=provider, window=None, date_offset=-500.0)


def test_windows_roll_by_the_clock_that_counts() -> None:
    """With `Date` 20 s ahead, a window is still the old one when `Date` says that 10 s of the next have gone."""

    async def scene(client: Client) -> None:
        assert await client.statuses(TIME, 2) == [200, 429]
        client.later(50 - client.emulation.clock() / 1e9 % 60)
        status, headers, _ = await client.call(TIME)
        assert status == 429
        assert 10 <= parsedate_to_datetime(headers["Date"]).second < 20
        client.later(10)
        assert await client.statuses(TIME, 1) == [200]

    run(scene, capacity=1, date_offset=20.0)


def test_signed_calls_are_dated_by_the_clock_that_tells_the_time() -> None:
    """Whoever takes the time from the server's time route is not told that its timestamp is outside of the window."""

    async def scene(client: Client) -> None:
        told = (await client.call(TIME))[2]["serverTime"]
        path = f"/fapi/v3/balance?timestamp={told}&signature=s"
        assert (await client.call(path, headers={"X-MBX-APIKEY": "k" + "1"}))[0] == 200

    run(scene, date_offset=20.0)


def test_machines_disagree_about_the_date() -> None:
    """With a spread the answers of several connections bear dates that are seconds apart."""

    async def scene(client: Client) -> None:
        dates = set()
        for _ in range(40):
            _, headers, _ = await client.call(TIME)
            dates.add(parsedate_to_datetime(headers["Date"]).timestamp())
        assert max(dates) - min(dates) == pytest.approx(1_000, abs=5)
        await client.call("/__emulator__/options", "POST", json={"date_spread": 0})
        _, headers, _ = await client.call(TIME)
        assert parsedate_to_datetime(headers["Date"]).timestamp() * 1e9 == pytest.approx(
            client.emulation.clock(), abs=2e9
        )
        status, _, body = await client.call("/__emulator__/options", "POST", json={"date_per": "moon"})
        assert (status, "date_per" in body["error"]) == (400, True)

    run(scene, date_spread=1_000.0, date_per="answer")


def test_refused_calls_may_be_free() -> None:
    """As Binance does it, a refused call adds to the counter; switched off, it does not."""

    async def scene(client: Client) -> None:
        assert await client.statuses(TIME, 3) == [200, 429, 429]
        await client.call("/__emulator__/options", "POST", json={"count_refused": False})
        _, headers, _ = await client.call(TIME)
        assert headers["X-MBX-USED-WEIGHT-1M"] == "3"
        _, headers, _ = await client.call(TIME)
        assert headers["X-MBX-USED-WEIGHT-1M"] == "3"

    run(scene, capacity=1)


def test_overload_answers_count_only_when_carried_out() -> None:
    """With a 503 every time, some requests were counted and some were not: their fate is unknown, as in life."""

    async def scene(client: Client) -> None:
        assert set(await client.statuses(TIME, 60)) == {503}
        figures = (await client.call("/__emulator__/stats"))[2]
        assert figures["totals"]["errors"] == 60
        assert 0 < figures["windows"][0]["accepted"] < 60

    run(scene, errors=1.0, seed=1)


def test_a_hang_up_is_a_reset_and_half_of_them_count() -> None:
    """The client sees its connection die; the emulator counts those that arrived."""

    async def scene(client: Client) -> None:
        for _ in range(40):
            with pytest.raises(aiohttp.ClientConnectionError):
                # a POST: aiohttp itself repeats an idempotent call when a kept connection dies
                await client.call(TIME, "POST")
        client.emulation.options.hangup = 0
        figures = (await client.call("/__emulator__/stats"))[2]
        assert figures["totals"]["hung_up"] == 40
        assert 10 < figures["totals"]["arrivals"] < 30

    run(scene, hangup=1.0, seed=2)


def test_a_lost_request_gets_no_answer() -> None:
    """The client waits until it gives up; the emulator goes on serving others."""

    async def scene(client: Client) -> None:
        with pytest.raises(TimeoutError):
            await client.call(TIME, timeout=aiohttp.ClientTimeout(total=0.05))
        client.emulation.options.loss = 0
        assert (await client.call(TIME))[0] == 200

    run(scene, loss=1.0)


def test_options_and_bans_can_be_set_while_it_runs() -> None:
    """Tests change the weather in the middle; wrong values are named and change nothing."""

    async def scene(client: Client) -> None:
        status, _, body = await client.call("/__emulator__/options", "POST", json={"capacity": 1, "ban_after": 2})
        assert (status, body["capacity"], body["ban_after"]) == (200, 1, 2)
        assert await client.statuses(TIME, 3) == [200, 429, 418]
        status, _, body = await client.call("/__emulator__/options?loss=7", "POST")
        assert status == 400
        assert "loss" in body["error"]
        await client.call("/__emulator__/ban?ip=127.0.0.1&seconds=0", "POST")
        await client.call("/__emulator__/options", "POST", json={"capacity": None})
        assert await client.statuses(TIME, 2) == [200, 200]
        await client.call("/__emulator__/ban?ip=127.0.0.1&seconds=30", "POST")
        assert await client.statuses(TIME, 1) == [418]

    run(scene)


def test_the_log_has_a_line_for_every_arrival(tmp_path: Path) -> None:
    """Time, address, account, route, cost, use and status; never a key."""
    log = tmp_path / "arrivals.jsonl"

    async def scene(client: Client) -> None:
        await client.call(KLINES, headers={"X-MBX-APIKEY": "k" + "1"})
        await client.call("/fapi/v1/ping")

    run(scene, log=str(log))
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["route"] for line in lines] == ["GET /fapi/v1/klines", "GET /fapi/v1/ping"]
    assert [line["used"] for line in lines] == [{"weight-1m": 1}, {"weight-1m": 2}]
    assert [line["status"] for line in lines] == [200, 200]
    assert lines[1]["account"] == "anonymous"
    assert len(lines[0]["account"]) == 12


def test_an_unknown_limit_is_named() -> None:
    """The error lists the limits there are."""
    with pytest.raises(ValueError, match="no limit 'nope'; it has: weight-1m"):
        run(lambda client: asyncio.sleep(0), limits=(LimitChange("nope", 1),))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("binance-spot", Spot), ("binance-usdm", Usdm), ("bitget", Bitget), ("orderly", Orderly), ("okx", Venue)],
)
def test_who_has_bodies_of_its_own(name: str, kind: type) -> None:
    """Every other provider is told from its rule file alone."""
    options = Options(provider=name)
    assert type(venue_of(LimitTable(Rulebook.load().provider(name), options), options)) is kind
