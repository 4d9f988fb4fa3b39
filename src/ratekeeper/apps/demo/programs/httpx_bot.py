"""A dashboard with asyncio and httpx: depth and tickers, as fast as it can. Knows nothing of Ratekeeper.

python httpx_bot.py BASE_URL SECONDS [TASKS]
"""

import asyncio
import sys
import time

import httpx

PATHS: list[tuple[str, dict[str, str | int]]] = [
    ("/fapi/v1/depth", {"symbol": "BTCUSDT", "limit": 1000}),
    ("/fapi/v1/ticker/24hr", {}),
    ("/fapi/v1/aggTrades", {"symbol": "ETHUSDT"}),
]


async def poll(client: httpx.AsyncClient, until: float, number: int) -> None:
    while time.time() < until:
        path, params = PATHS[number % len(PATHS)]
        try:
            answer = await client.get(path, params=params)
            if answer.status_code != 200:
                await asyncio.sleep(0.05)  # like many bots: a short pause, then on
        except httpx.HTTPError as error:
            print("httpx_bot:", type(error).__name__, file=sys.stderr)
            await asyncio.sleep(0.2)
        number += 1


async def main() -> None:
    base, seconds = sys.argv[1], float(sys.argv[2])
    tasks = int(sys.argv[3]) if len(sys.argv) > 3 else 4
    until = time.time() + seconds
    async with httpx.AsyncClient(base_url=base, timeout=10, headers={"User-Agent": "httpx_bot"}) as client:
        work = asyncio.gather(*(poll(client, until, number) for number in range(tasks)))
        try:
            await asyncio.wait_for(work, seconds + 0.5)
        except TimeoutError:
            pass


if __name__ == "__main__":
    asyncio.run(main())
