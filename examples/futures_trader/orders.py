"""One resting order that follows the price. Whatever happens, no order is sent twice."""

import asyncio
import time
from typing import Any
from urllib.parse import parse_qsl

import ccxt.async_support as ccxt

from ratekeeper import OutcomeUnknown


async def fate(exchange: Any, ask: str) -> Any:
    """What became of an order that was never answered: the exchange's word for it, or None if it does not know it.

    Args:
        exchange: of ccxt.
        ask: `OutcomeUnknown.ask`, such as ``GET /fapi/v1/order?origClientOrderId=a1&symbol=BTCUSDT``.
    """
    _, _, query = ask.partition("?")
    try:
        return await exchange.fapiPrivateGetOrder(dict(parse_qsl(query)))
    except ccxt.OrderNotFound:
        return None


class Orders:
    """The trader's orders in one market.

    Args:
        exchange: of ccxt, governed.
        symbol: as ccxt writes it.
        prefix: begins every client order id, so that the trader knows its own after a restart.
    """

    def __init__(self, exchange: Any, symbol: str, prefix: str) -> None:
        self.symbol = symbol
        self._exchange = exchange
        self._prefix = prefix
        self._open: str | None = None
        """Client id of the resting order."""
        self._unsure: tuple[str, str, float] | None = None
        """An order of which nobody knows whether it rests: its client id, whom to ask, and when its answer
        was given up (monotonic seconds)."""
        self._one_at_a_time = asyncio.Lock()

    async def place(self, amount: float, price: float) -> str:
        """Buy at a price, once the order before is gone and its fate is known; returns what became of it.

        Raises:
            Rejected, CallFailed, ccxt.BaseError: it was surely not placed. It may be tried again, under a new id.
        """
        async with self._one_at_a_time:
            await self._withdraw()
            own = f"{self._prefix}{time.time_ns() // 1_000_000}"
            try:
                await self._exchange.create_order(self.symbol, "limit", "buy", amount, price, {"clientOrderId": own})
            except OutcomeUnknown as error:
                self._unsure = own, error.ask, time.monotonic()
                return f"{own} unknown: {error.ask}"
            except asyncio.CancelledError:
                self._open = own  # it may be there: `withdraw` finds out
                raise
            self._open = own
            return f"{own} rests at {price:g}"

    async def withdraw(self) -> None:
        """Cancel the resting order. One that may or may not be there is asked for first.

        A request that was lost can still arrive until its `recvWindow` is over. Only after that "unknown" means "never".
        """
        async with self._one_at_a_time:
            await self._withdraw()

    async def _withdraw(self) -> None:
        if self._unsure is not None:
            own, ask, failed = self._unsure
            await asyncio.sleep(failed + self._exchange.options["recvWindow"] / 1000 - time.monotonic())
            if await fate(self._exchange, ask) is not None:
                self._open = own
            self._unsure = None
        if self._open is not None:
            await self._cancel(self._open)
            self._open = None

    async def sweep(self) -> int:
        """Cancel whatever an earlier run left open; returns how many that were."""
        found = await self._exchange.fetch_open_orders(self.symbol)
        own = [order["clientOrderId"] for order in found if order["clientOrderId"].startswith(self._prefix)]
        for each in own:
            await self._cancel(each)
        return len(own)

    async def _cancel(self, own: str) -> None:
        try:
            await self._exchange.cancel_order("", self.symbol, {"clientOrderId": own})
        except ccxt.OrderNotFound:
            pass  # it was filled, or an earlier try has cancelled it
