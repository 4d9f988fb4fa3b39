"""The trading session: streams, order sync, account watch and report, started and stopped together."""

import asyncio
import json
import threading
import time
from collections.abc import Callable
from typing import Any

from engine import Engine
from exchange import Exchange, Told
from ladder import Ladder
from settings import Settings

from ratekeeper import Blocked, BreakerOpen, Interval, Poller
from ratekeeper.sessions.liveness import Liveness
from ratekeeper.sessions.stopping import stop_all_async
from ratekeeper.sessions.stream import Stream


class Prices:
    """The market's stream; the REST API while that is down. Its `stop` is async."""

    def __init__(self, exchange: Exchange, settings: Settings) -> None:
        self.last = 0.0
        self.at = time.monotonic()
        self.polled = False
        self._exchange = exchange
        self._symbol = settings.symbol
        self.stream = Stream(
            exchange.gate,
            f"{settings.public}/ws/stream/{exchange.key.account}",
            [f"{settings.symbol}@markprice"],
            fallback=self._ask,
            every=max(0.5, 10 / settings.haste),
            fallback_after=0.2,
            liveness=Liveness(stale_most=settings.patience, stale_least=1.0, longest=settings.longest),
        )

    async def _ask(self) -> Told:
        return await self._exchange.price(self._symbol)

    async def run(self) -> None:
        """Until it is stopped."""
        async for message in self.stream:
            now = time.monotonic()
            if not message.polled:
                self._take(json.loads(message.data)["data"]["price"], now, polled=False)
                continue
            price, _, age = message.data
            if now - age >= self.at:  # a cached price may be older than the last one of the stream
                self._take(price, now - age, polled=True)

    def _take(self, price: float, at: float, *, polled: bool) -> None:
        self.last, self.at, self.polled = price, at, polled

    async def stop(self) -> None:
        await self.stream.close()


class Executions:
    """The account's own stream: fills are known at once. While it is down the order sync finds them."""

    def __init__(self, exchange: Exchange, settings: Settings, engine: Engine) -> None:
        self._exchange = exchange
        self._engine = engine
        self.stream = Stream(
            exchange.gate,
            f"{settings.private}/v2/ws/private/stream/{exchange.key.account}",
            ["executionreport"],
            setup=self._login,
            liveness=Liveness(  # no order may change for hours, so only pings tell whether it lives
                stale_after=float("inf"),
                ping_every=settings.ping,
                ping_patience=settings.ping,
                longest=settings.longest,
            ),
        )

    async def _login(self, send: Callable[[str], Any]) -> None:
        await send(self._exchange.key.login())

    async def run(self) -> None:
        """Until it is stopped."""
        async for message in self.stream:
            told = json.loads(message.data)
            if told.get("topic") == "executionreport":
                try:
                    await self._engine.heard(told["data"])
                except Exception as error:  # noqa: BLE001 - the next sync finds what is missing
                    print(f"grid: after a report: {type(error).__name__}", flush=True)

    def stop(self) -> Any:
        return self.stream.close()  # not async itself, but what it returns is


class Reporter:
    """Prints a line now and then, in a thread of its own. Its `stop` raises, as that of some libraries does."""

    def __init__(self, line: Callable[[], str], every: float) -> None:
        self._line = line
        self._every = every
        self._ended = threading.Event()

    async def run(self) -> None:
        """Until it is stopped."""
        await asyncio.to_thread(self._report)

    def _report(self) -> None:
        while not self._ended.wait(self._every):
            print(self._line(), flush=True)

    def stop(self) -> None:
        self._ended.set()
        raise RuntimeError("the reporter does not like to be stopped")


class Session:
    """What the supervisor keeps alive."""

    def __init__(self, exchange: Exchange, ladder: Ladder, settings: Settings) -> None:
        self._exchange = exchange
        self._ladder = ladder
        self._settings = settings
        self._engine = Engine(exchange, ladder, settings.symbol, settings.quantity)
        self._parts: list[Any] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._trouble: Exception | None = None

    async def start(self) -> None:
        """Runs as long as the session does."""
        settings, exchange = self._settings, self._exchange
        self._trouble = None
        self._watched = "not known yet"
        self._engine.start()
        self._sync = Poller[int](
            self._engine.sync, Interval(shortest=60 / settings.haste, longest=120 / settings.haste, errors=2),
            on=self._good, on_error=self._bad,
        )  # fmt: skip
        watch = Poller[Any](exchange.positions, Interval(shortest=30 / settings.haste), on=self._seen)
        self._prices = Prices(exchange, settings)
        executions = Executions(exchange, settings, self._engine)
        reporter = Reporter(self._line, 60 / settings.haste)
        # Stopped in the reverse of this order: their stops are sync or async, return something or nothing, or raise.
        self._parts = [self._prices, executions, self._sync, watch, self._engine, reporter]
        runs = (self._prices.run, executions.run, self._sync.run_async, watch.run_async, reporter.run)
        async with asyncio.TaskGroup() as group:
            self._tasks = [group.create_task(run()) for run in runs]

    async def stop(self) -> None:
        """Ends `start`."""
        for problem in await stop_all_async(self._parts, within=5.0):
            print(f"grid: {problem}", flush=True)
        for task in self._tasks:
            task.cancel()  # a call under way is not waited for: what became of its order is asked for at the next start

    def healthy(self) -> str | None:
        """What is wrong; None if nothing is. A ban is not the session's fault: it raises what holds it."""
        now, trouble = time.monotonic(), self._trouble
        if isinstance(trouble, Blocked) and not isinstance(trouble, BreakerOpen):
            raise trouble
        seen, why = self._engine.seen, f": {type(trouble).__name__}" if trouble else ""
        if seen is None:
            return f"the orders were not seen yet{why}"
        if now - seen > self._settings.late:
            return f"the orders were last seen {now - seen:.0f} s ago{why}"
        if now - self._prices.at > self._settings.late:
            return f"the price is {now - self._prices.at:.0f} s old"
        return None

    def _good(self, _open: int) -> None:
        self._trouble = None

    def _bad(self, error: Exception) -> None:
        self._trouble = error
        print(f"grid: no sync: {type(error).__name__}: {str(error)[:120]}", flush=True)

    def _seen(self, told: Any) -> None:
        held = sum(row["position_qty"] for row in told.data["rows"])
        self._watched = f"{held:+.3f} ({told.service}, {told.age:.1f} s old)"
        if told.service == "stale":
            print(f"grid: position {self._watched}", flush=True)  # at once: the exchange gives no answer

    def _line(self) -> str:
        prices, ladder = self._prices, self._ladder
        how = "polled" if prices.polled else "live"
        return (
            f"grid: price {prices.last:,.1f} ({how}, {time.monotonic() - prices.at:.1f} s old), {len(ladder.orders)} orders, "
            f"{ladder.fills} fills, position {self._watched}"
        )
