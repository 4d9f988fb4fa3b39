"""Keeps the orders on the exchange as the ladder wants them. One thing at a time: all of it happens under one lock."""

import asyncio
import time
from typing import Any

from exchange import Exchange
from ladder import Ladder

OPEN = {"NEW", "PARTIAL_FILLED", "INCOMPLETE"}
PREFIX = "grid"


class Engine:
    """The grid on one market. An error of the exchange leaves it as it is; the next `sync` goes on from there.

    Attributes:
        seen: when the open orders were last listed, in steady seconds; None: not since the start.
    """

    def __init__(self, exchange: Exchange, ladder: Ladder, symbol: str, quantity: float) -> None:
        self._exchange = exchange
        self._ladder = ladder
        self._symbol = symbol
        self._quantity = quantity
        self._lock = asyncio.Lock()
        self._stopping = False
        self.seen: float | None = None

    def start(self) -> None:
        """Begin, or begin again."""
        self._stopping, self.seen = False, None

    def stop(self) -> None:
        """Place nothing more. The orders stay: the next program takes them up."""
        self._stopping = True

    async def sync(self) -> int:
        """Compare with what the exchange says, and make it right; returns the number of open orders."""
        async with self._lock:
            if not self._ladder.middle:
                self._ladder.begin((await self._exchange.price(self._symbol)).data)
            there = await self._exchange.open_orders(self._symbol)
            self.seen = time.monotonic()
            for client_id in there:
                if client_id.startswith(PREFIX) and self._ladder.level_of(client_id) is None:
                    await self._exchange.cancel(client_id, self._symbol)  # arrived after it was given up
            for level, order in list(self._ladder.orders.items()):
                if order.client_id not in there:
                    await self._ask(level, order.client_id)
            await self._complete()
            return len(self._ladder.orders)

    async def heard(self, report: dict[str, Any]) -> None:
        """An execution report of the private stream: an order was filled, or is gone."""
        async with self._lock:
            level = self._ladder.level_of(report["clientOrderId"])
            if level is None or report["status"] in OPEN:
                return
            self._settle(level, report["status"])
            await self._complete()

    async def _complete(self) -> None:
        for level, order in self._ladder.wrong():
            await self._exchange.cancel(order.client_id, self._symbol)
            await self._ask(level, order.client_id)
        for level, side in self._ladder.missing():
            if self._stopping:
                return
            client_id = self._ladder.take(level, side)
            price = self._ladder.price(level)
            if not await self._exchange.place(client_id, self._symbol, side, price, self._quantity):
                self._ladder.forget(level)

    async def _ask(self, level: int, client_id: str) -> None:
        found = await self._exchange.find(client_id)
        self._settle(level, "" if found is None else found["status"])

    def _settle(self, level: int, status: str) -> None:
        if status == "FILLED":
            self._ladder.filled(level)
        elif status not in OPEN:
            self._ladder.forget(level)
