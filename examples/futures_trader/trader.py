"""Trades one Binance USD-M future over a bad network, with ccxt: ``python trader.py``.

Nothing in here waits for a limit or repeats a call; ratekeeper.toml says how that is done. What it does about trouble: leave
out what can wait, stop its orders when somebody says so, and tell why.
"""

import asyncio
import json
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import ccxt.async_support as ccxt
from network import Monitor
from orders import Orders

from ratekeeper import Gate, Interval, Poller, RatekeeperError
from ratekeeper.adapters.ccxt import govern
from ratekeeper.gate.override import spoken
from ratekeeper.sessions.stream import Stream

URL = os.environ.get("BINANCE_URL", "https://fapi.binance.com")
STREAM = os.environ.get("BINANCE_STREAM", "wss://fstream.binance.com/stream")
INTERVAL = float(os.environ.get("TRADER_INTERVAL", "30"))
"""Seconds between two looks at the account, and between two probes. In trouble up to ten times as many."""
PACE = float(os.environ.get("TRADER_PACE", "10"))
"""Seconds from one order to the next."""
TIMEOUT = float(os.environ.get("TRADER_TIMEOUT", "10"))
RECV_WINDOW = int(os.environ.get("TRADER_RECV_WINDOW", "5000"))
"""Milliseconds after which the exchange refuses a late request: how long a lost order can still turn up."""
WATCHED = ("BTCUSDT", "ETHUSDT", "BNBUSDT", "SOLUSDT", "XRPUSDT")
SYMBOL, AMOUNT, BELOW = "BTC/USDT:USDT", 0.01, 0.98


def connect(gate: Gate) -> Any:
    """Binance USD-M, governed; somewhere else if ``BINANCE_URL`` says so."""
    exchange = ccxt.binanceusdm(
        {
            "apiKey": os.environ["BINANCE_KEY"],
            "secret": os.environ["BINANCE_SECRET"],
            "timeout": int(TIMEOUT * 1000),
            "options": {"recvWindow": RECV_WINDOW, "fetchMarkets": {"types": ["linear"]}, "fetchCurrencies": False},
        }
    )
    real = "https://fapi.binance.com"
    exchange.urls["api"] = {
        name: url.replace(real, URL) if isinstance(url, str) else url for name, url in exchange.urls["api"].items()
    }
    return govern(exchange, gate=gate)


class Trader:
    """The jobs of the trader, side by side: none ends because a call failed.

    Args:
        gate: what all calls are governed by.
        exchange: from `connect`.
        history: file of the network's history.
    """

    def __init__(self, gate: Gate, exchange: Any, history: Path) -> None:
        self.gate = gate
        self.exchange = exchange
        self.orders = Orders(exchange, SYMBOL, "trader-")
        self.monitor = Monitor(gate, URL, history, Interval(shortest=INTERVAL, longest=10 * INTERVAL), TIMEOUT)
        self.prices: dict[str, tuple[float, float]] = {}
        """Last price of each symbol, and when it came (monotonic seconds)."""
        self.shut: dict[tuple[str, str], str] = {}
        """What is paused, banned or spared now, and why."""
        self._swept = False

    @property
    def degraded(self) -> bool:
        """Whether what can wait is left out: a breaker is open, or the probes have grown rare."""
        return self.monitor.strained or any(kind == "breaker" for _, kind in self.shut)

    def tell(self, what: str, **more: Any) -> None:
        """One line of JSON."""
        print(json.dumps({"at": round(time.time(), 3), "what": what, **more}), flush=True)

    async def run(self) -> None:
        """All jobs, until this is cancelled; then the open order is withdrawn."""
        every = Interval(shortest=INTERVAL, longest=10 * INTERVAL)
        jobs = [
            self.feed(),
            self.watch(),
            self.monitor.poller.run_async(),
            self.poller("trade", self.trade, Interval(shortest=PACE, longest=10 * PACE)).run_async(),
            self.poller("account", self.account, every).run_async(),
            self.poller("income", self.unless_degraded(self.income), every).run_async(),
            self.poller("watch list", self.unless_degraded(self.look), every).run_async(),
        ]
        try:
            async with asyncio.TaskGroup() as group:
                for job in jobs:
                    group.create_task(job)
        finally:
            await self.withdraw("the trader ends")
            await self.monitor.close()

    def poller(self, name: str, job: Callable[[], Awaitable[object]], interval: Interval) -> Poller[object]:
        """Asks again and again. What goes wrong is told; a ban is waited out."""

        def failed(error: Exception) -> None:
            # Ratekeeper's errors hold no secrets; ccxt's may hold a whole signed address.
            text = str(error) if isinstance(error, RatekeeperError) else ""
            self.tell("failed", job=name, error=type(error).__name__, why=text)

        return Poller(job, interval, on_error=failed)

    def unless_degraded(self, job: Callable[[], Awaitable[object]]) -> Callable[[], Awaitable[object]]:
        """For jobs that can wait."""

        async def job_or_nothing() -> object:
            return None if self.degraded else await job()

        return job_or_nothing

    # -- jobs

    async def feed(self) -> None:
        """Prices as they change; asked for while the stream is down."""
        topics = [f"{symbol.lower()}@bookTicker" for symbol in WATCHED]
        stream = Stream(self.gate, STREAM, topics, fallback=self.look, every=lambda: self.monitor.poller.seconds)
        async with stream:
            async for message in stream:
                if message.polled:
                    self.tell("polled prices", why=stream.state.problem)
                elif tick := json.loads(message.data).get("data"):
                    self._price(tick["s"], (float(tick["b"]) + float(tick["a"])) / 2)

    async def look(self) -> None:
        """Prices of the watch list, by single calls that become one."""
        asked = (self.exchange.fapiPublicGetTickerPrice({"symbol": symbol}) for symbol in WATCHED)
        for ticker in await asyncio.gather(*asked):
            self._price(ticker["symbol"], float(ticker["price"]))

    async def account(self) -> None:
        """Balance and positions."""
        balances = await self.exchange.fapiPrivateV3GetBalance()
        positions = await self.exchange.fapiPrivateV3GetPositionRisk()
        held = {row["symbol"]: row["positionAmt"] for row in positions if float(row["positionAmt"])}
        self.tell("account", balances={row["asset"]: row["balance"] for row in balances}, positions=held)

    async def income(self) -> None:
        """What came in, and the exchange information, which is kept for an hour."""
        rows = await self.exchange.fapiPrivateGetIncome({"limit": 100})
        markets = await self.exchange.load_markets(True)
        self.tell("income", sum=round(sum(float(row["income"]) for row in rows), 4), markets=len(markets))

    async def trade(self) -> None:
        """Move the order to just below the price."""
        await self.exchange.load_markets()
        if not self._swept:
            self.tell("swept", orders=await self.orders.sweep())
            self._swept = True
        price, at = self.prices.get(WATCHED[0], (0.0, 0.0))
        if not price or time.monotonic() - at > 2 * max(PACE, TIMEOUT):
            self.tell("no order", why="the last price is too old")
        else:
            self.tell("order", said=await self.orders.place(AMOUNT, round(price * BELOW, 1)))

    async def watch(self) -> None:
        """Tell at once what is paused, banned or spared, by whomever. The gate obeys by itself."""
        degraded = resting = False
        while True:
            now = time.monotonic_ns()
            shut = {
                (spoken(block.scope), block.kind): block.reason
                for block in self.gate.read().blocks
                if block.kind in ("pause", "ban", "breaker") and block.ends() > now
            }
            before, self.shut = self.shut, shut
            for (scope, kind), why in shut.items() - before.items():
                self.tell("shut", scope=scope, kind=kind, why=why)
                resting = resting or kind == "pause"
            if resting:
                resting = not await self.withdraw("paused")
            for scope, kind in before.keys() - shut.keys():
                self.tell("open again", scope=scope, kind=kind)
            if degraded != self.degraded:
                degraded = not degraded
                self.tell("degraded" if degraded else "all jobs again")
            await asyncio.sleep(0.2)

    async def withdraw(self, why: str) -> bool:
        """Take the open order back; a pause lets cancels pass. Whether that worked."""
        try:
            await self.orders.withdraw()
        except (RatekeeperError, ccxt.BaseError) as error:
            self.tell("not withdrawn", error=type(error).__name__)
            return False
        self.tell("withdrawn", why=why)
        return True

    def _price(self, symbol: str, price: float) -> None:
        self.prices[symbol] = price, time.monotonic()


async def main() -> None:
    """Until a signal ends it."""
    with Gate(name="futures_trader") as gate:
        exchange = connect(gate)
        trader = Trader(gate, exchange, Path(os.environ.get("TRADER_HISTORY", "network.jsonl")))
        running = asyncio.ensure_future(trader.run())
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, running.cancel)
        try:
            await running
        except asyncio.CancelledError:
            pass
        finally:
            await exchange.close()


if __name__ == "__main__":
    asyncio.run(main())
