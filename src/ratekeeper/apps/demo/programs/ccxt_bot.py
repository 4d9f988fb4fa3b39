"""A trading bot with ccxt: candles and order books of a watch list, as fast as it can. Knows nothing of Ratekeeper.

python ccxt_bot.py BASE_URL SECONDS [TASKS]
"""

import asyncio
import sys
import time

import ccxt.async_support as ccxt

WATCH = ["BTC/USDT:USDT", "ETH/USDT:USDT"]


async def trade(exchange: ccxt.Exchange, until: float, number: int) -> None:
    while time.time() < until:
        symbol = WATCH[number % len(WATCH)]
        try:
            if number % 2:
                await exchange.fetch_ohlcv(symbol, "1m", limit=1500)
            else:
                await exchange.fetch_order_book(symbol, limit=500)
        except ccxt.BaseError as error:
            print("ccxt_bot:", type(error).__name__, file=sys.stderr)
            await asyncio.sleep(0.05)  # like many bots: a short pause, then on
        number += 1


async def main() -> None:
    base, seconds = sys.argv[1], float(sys.argv[2])
    tasks = int(sys.argv[3]) if len(sys.argv) > 3 else 4
    until = time.time() + seconds
    settings = {"enableRateLimit": True, "options": {"fetchCurrencies": False}, "userAgent": "ccxt_bot"}
    exchange = ccxt.binanceusdm(settings)
    exchange.urls["api"] = {
        name: url.replace("https://fapi.binance.com", base) if isinstance(url, str) else url
        for name, url in exchange.urls["api"].items()
    }
    try:
        while True:
            try:
                await exchange.load_markets()
                break
            except ccxt.BaseError as error:
                print("ccxt_bot:", type(error).__name__, file=sys.stderr)
                if time.time() > until:
                    return
                await asyncio.sleep(0.5)
        work = asyncio.gather(*(trade(exchange, until, number) for number in range(tasks)))
        try:
            await asyncio.wait_for(work, max(0.1, until - time.time()) + 0.5)
        except TimeoutError:
            pass
    finally:
        await exchange.close()


if __name__ == "__main__":
    asyncio.run(main())
