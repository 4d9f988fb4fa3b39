"""Watches every USDT future of Bitget and keeps one order open, with ccxt: ``python bot.py NAME``.

Each round it asks for the ticker and the candles of every symbol. Each round is told as one line of JSON. Nothing in here
waits for a limit or repeats a call; what it does about trouble is go on with what it has.
"""

import asyncio
import json
import os
import signal
import sys
import time
from collections import Counter
from typing import Any

import ccxt.async_support as ccxt

from ratekeeper import CallFailed, Congestion, Event, Gate, OutcomeUnknown, Rejected, gather_bounded
from ratekeeper.adapters.ccxt import govern

MINUTE = float(os.environ.get("BOT_MINUTE", "60"))
"""Seconds for which refusals count. More than 5: half as many calls side by side, and gaps. More than 10: one at a time."""
PAUSE = float(os.environ.get("BOT_PAUSE", "10"))
"""Seconds from the end of a round to the next."""
WIDTH = 10
SPENDS = 20.0
"""USDT of an order."""


def connect(name: str, gate: Gate) -> Any:
    """Bitget, governed; somewhere else if ``BITGET_URL`` says so."""
    exchange = ccxt.bitget(
        {
            "apiKey": os.environ["BITGET_KEY"],
            "secret": os.environ["BITGET_SECRET"],
            "password": os.environ["BITGET_PASSWORD"],
            "options": {"defaultType": "swap"},
            "userAgent": {"User-Agent": name},
        }
    )
    if url := os.environ.get("BITGET_URL"):
        exchange.urls["api"] = dict.fromkeys(exchange.urls["api"], url)
    return govern(exchange, gate=gate)


class Bot:
    """One bot.

    Args:
        name: begins the client ids of its orders, and its lines.
        gate: what its calls are governed by.
        exchange: from `connect`.
    """

    def __init__(self, name: str, gate: Gate, exchange: Any) -> None:
        self.name = name
        self.gate = gate
        self.exchange = exchange
        self.stopping = asyncio.Event()
        self.traffic = gate.congestion.of(
            gate.provider("bitget").namespace,
            Congestion(width=WIDTH, span=MINUTE, gap=MINUTE / 300, long_gap=MINUTE / 60),
        )
        self._heard: Counter[str] = Counter()
        self._order: tuple[str, str] | None = None
        """Number and symbol of the open order."""
        self._unsure: tuple[str, str] | None = None
        """Client id and symbol of an order of which nobody knows whether it stands."""
        gate.on(self._hear)

    def _hear(self, event: Event) -> None:
        self._heard[event.kind] += event.fields.get("calls", 1) if event.kind == "batched" else 1

    def tell(self, **said: Any) -> None:
        """One line of JSON."""
        print(json.dumps({"bot": self.name, "at": round(time.time(), 3), **said}), flush=True)

    async def run(self) -> None:
        """Rounds until `stopping` is set."""
        await self.exchange.load_markets()
        number = 0
        while not self.stopping.is_set():
            number += 1
            await self.round(number)
            try:
                await asyncio.wait_for(self.stopping.wait(), PAUSE)
            except TimeoutError:
                pass
        await self._withdraw()

    async def round(self, number: int) -> None:
        """One look at all symbols, and an order."""
        began = time.monotonic()
        before, going = self._heard.copy(), self.traffic.going()
        symbols = [
            each["symbol"] for each in self.exchange.markets.values() if each["swap"] and each["settle"] == "USDT"
        ]
        # All at once: the gate makes one call of them. Nothing is asked one by one but what that call does not know.
        answers = await asyncio.gather(*map(self.exchange.fetch_ticker, symbols), return_exceptions=True)
        failed = {f"ticker {s}": a for s, a in zip(symbols, answers, strict=True) if isinstance(a, BaseException)}
        widths = []

        async def candles(symbol: str) -> Any:
            widths.append(self.traffic.going().width)
            return await self.exchange.fetch_ohlcv(symbol, "1m", limit=100)

        found = await gather_bounded(candles, symbols, gate=self.gate, provider="bitget")
        failed |= {f"candles {each.item}": each.error for each in found if each.error is not None}
        closes = {each.item: [candle[4] for candle in each.value] for each in found if each.value}
        order = await self._trade(number, closes) if closes else "no candles"
        self.tell(
            round=number,
            symbols=len(symbols),
            answered=2 * len(symbols) - len(failed),
            failed={what: f"{type(error).__name__}: {error}"[:300] for what, error in failed.items()},
            widths=[going.width, min(widths), self.traffic.going().width],
            order=order,
            seconds=round(time.monotonic() - began, 2),
            events=dict(self._heard - before),
        )

    # -- orders

    async def _trade(self, number: int, closes: dict[str, list[float]]) -> str:
        """Move the order to the symbol that fell most, three per cent below its price; says what became of it."""
        symbol = min(closes, key=lambda each: closes[each][-1] / closes[each][0])
        price, own = closes[symbol][-1] * 0.97, f"{self.name}-{number}"
        try:
            await self._withdraw()
            held = await self.exchange.fetch_positions()
            amount = max(SPENDS / price, self.exchange.market(symbol)["limits"]["amount"]["min"])
            made = await self.exchange.create_order(symbol, "limit", "buy", amount, price, {"clientOrderId": own})
        except OutcomeUnknown as error:
            self._unsure = own, symbol
            return f"{own} unknown: {error.ask}"
        except (Rejected, CallFailed, ccxt.BaseError) as error:
            return f"none: {type(error).__name__}"
        self._order = made["id"], symbol
        return f"placed {own}, {len(held)} positions"

    async def _withdraw(self) -> None:
        """Cancel the open order. One that may or may not stand is asked for first, and never placed again."""
        if self._unsure is not None:
            own, symbol = self._unsure
            try:
                self._order = (await self.exchange.fetch_order("", symbol, {"clientOid": own}))["id"], symbol
            except ccxt.OrderNotFound:
                pass  # it was not carried out
            self._unsure = None
        if self._order is not None:
            try:
                await self.exchange.cancel_order(*self._order)
            except ccxt.OrderNotFound:
                pass  # it was filled
            self._order = None


async def main(name: str) -> None:
    """Until a signal ends it."""
    with Gate(name=name) as gate:
        exchange = connect(name, gate)
        try:
            bot = Bot(name, gate, exchange)
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, bot.stopping.set)
            await bot.run()
        finally:
            await exchange.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
