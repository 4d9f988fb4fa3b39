"""Collects candles and order books of many symbols from Binance and tickers from OKX, as many as it can get.

Plain asyncio and aiohttp: it knows nothing of limits, addresses or the other programs.
"""

import asyncio
import os
import sys
from typing import Any

import aiohttp

BINANCE = os.environ.get("BINANCE_URL", "https://fapi.binance.com")
OKX = os.environ.get("OKX_URL", "https://www.okx.com")
COINS = ["BTC", "ETH", "BNB", "SOL"]
EACH = 4
"""Tasks for each coin."""


async def fetch(session: aiohttp.ClientSession, url: str, **params: Any) -> Any:
    try:
        async with session.get(url, params=params) as answer:
            if answer.status == 200:
                return await answer.json()
            print(f"collector: {answer.status} from {url}", file=sys.stderr)
    except aiohttp.ClientError as error:
        print(f"collector: {error}", file=sys.stderr)
    await asyncio.sleep(0.1)
    return None


async def candles_and_books(session: aiohttp.ClientSession, symbol: str) -> None:
    while True:
        await fetch(session, f"{BINANCE}/fapi/v1/klines", symbol=symbol, interval="1m", limit=400)
        await fetch(session, f"{BINANCE}/fapi/v1/depth", symbol=symbol, limit=100)


async def tickers(session: aiohttp.ClientSession, instrument: str) -> None:
    while True:
        await fetch(session, f"{OKX}/api/v5/market/ticker", instId=instrument)


async def main() -> None:
    patience = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=10)
    async with aiohttp.ClientSession(headers={"User-Agent": "collector"}, timeout=patience) as session:
        async with asyncio.TaskGroup() as tasks:
            for coin in COINS:
                for _ in range(EACH):
                    tasks.create_task(candles_and_books(session, f"{coin}USDT"))
                tasks.create_task(tickers(session, f"{coin}-USDT"))


if __name__ == "__main__":
    asyncio.run(main())
