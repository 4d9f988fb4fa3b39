"""The program of the long run: every client, every policy, sessions, pollers and a stream, all at once."""

from __future__ import annotations

import asyncio
import collections
import gc
import json
import os
import random
import threading
import time
from itertools import count
from pathlib import Path
from typing import Any

__all__ = ["live"]

SYMBOLS = ["BTCUSDT", "ETHUSDT", "BNBUSDT", "SOLUSDT", "XRPUSDT"]
KINDS = {
    "Permit",
    "Ticket",
    "Attempt",
    "Parked",
    "Grant",
    "Lead",
    "Follow",
    "_Call",
    "_Hop",
    "_Request",
    "ClientResponse",
}
"""Objects of a call that must go with it."""


def live(url: str, seconds: float) -> None:
    """Run until the time is over, then stop cleanly."""
    asyncio.run(_live(url, seconds))


async def _live(url: str, seconds: float) -> None:
    import httpx

    from ratekeeper import Breaker, Cache, Gate, Interval, Policies, Poller, Restart, Retry, Supervisor, gather_bounded
    from ratekeeper.adapters.aiohttp import govern as govern_session
    from ratekeeper.adapters.ccxt import govern
    from ratekeeper.adapters.httpx import AsyncTransport
    from ratekeeper.sessions.stream import Stream

    end = time.monotonic() + seconds
    policies = Policies(
        retry=Retry(first=0.2, longest=2.0), breaker=Breaker(cooldown=1.0), cache=Cache(most_bytes=1 << 20), batch=True
    )
    done: collections.Counter[str] = collections.Counter()
    numbers = count(1)
    with Gate("host://", policies=policies, max_wait=20) as gate:
        exchange = govern(_exchange(url), gate=gate)
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=5)
        async with (
            httpx.AsyncClient(transport=AsyncTransport(gate=gate), timeout=3) as client,
            aiohttp.ClientSession(timeout=timeout) as session,
        ):
            govern_session(session, gate=gate)

            async def price(symbol: str) -> Any:
                return (await client.get(f"{url}/fapi/v1/ticker/price", params={"symbol": symbol})).json()

            async def watch() -> None:
                while True:
                    for each in await gather_bounded(price, SYMBOLS, gate=gate, provider="binance-usdm"):
                        done["price" if each.ok else type(each.error).__name__] += 1
                    await asyncio.sleep(0.2)

            async def candles() -> None:
                while True:
                    query = {"symbol": random.choice(SYMBOLS), "interval": "1m", "limit": random.randrange(5, 200)}
                    try:
                        async with session.get(f"{url}/fapi/v1/klines", params=query) as answer:
                            await answer.read()
                        done["candles"] += 1
                    except Exception as error:
                        done[type(error).__name__] += 1
                    await asyncio.sleep(0.05)

            async def orders() -> None:
                while True:
                    form = {"symbol": "BTCUSDT", "side": "BUY", "type": "LIMIT", "timeInForce": "GTC", "quantity": "0.01",
                            "price": "30000", "newClientOrderId": f"s{os.getpid()}x{next(numbers)}",
                            "timestamp": str(int(time.time() * 1000)), "signature": "0" * 64}  # fmt: skip
                    try:
                        await client.post(f"{url}/fapi/v1/order", params=form, headers={"X-MBX-APIKEY": "kkk"})
                        done["order"] += 1
                    except Exception as error:
                        done[f"order {type(error).__name__}"] += 1
                    await asyncio.sleep(0.5)

            async def balances() -> None:
                while True:
                    try:
                        await exchange.fapiPrivateV3GetBalance()
                        done["balance"] += 1
                    except Exception as error:
                        done[type(error).__name__] += 1
                    await asyncio.sleep(0.3)

            async def cancelled() -> None:
                while True:
                    task = asyncio.create_task(price(random.choice(SYMBOLS)))
                    await asyncio.sleep(random.random() * 0.03)
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
                    done["cancelled"] += 1
                    await asyncio.sleep(0.1)

            async def ticks() -> None:
                topics = [f"{symbol.lower()}@bookTicker" for symbol in SYMBOLS]
                async with Stream(gate, url.replace("http", "ws", 1) + "/stream", topics) as stream:
                    async for _ in stream:
                        done["tick"] += 1

            async def shaky(run: Any) -> None:
                run.beat()
                await asyncio.sleep(random.uniform(1, 4))
                raise ConnectionError("as it happens")

            stop = threading.Event()
            thread = threading.Thread(target=_requests, args=(url, gate, stop, done))
            thread.start()
            poller = Poller(lambda: done.update(["poll"]), Interval(shortest=0.5, longest=5.0))
            poller.start()
            settings = Restart(first=0.1, longest=0.5, cooldown=1.0, most=10_000, proven=0.5)
            async with Supervisor(gate, name="soak") as supervisor:
                supervisor.add("shaky", shaky, settings=settings)
                tasks = [asyncio.create_task(job()) for job in (watch, candles, orders, balances, cancelled, ticks)]
                begun = len(asyncio.all_tasks())
                while time.monotonic() < end:
                    await asyncio.sleep(min(5.0, max(0.1, end - time.monotonic())))
                    _say(gate, done, begun)
                for task in tasks:
                    task.cancel()
                for found in await asyncio.gather(*tasks, return_exceptions=True):
                    if not isinstance(found, asyncio.CancelledError):
                        raise RuntimeError(f"a job ended by itself: {found!r}")
            stop.set()
            poller.stop()
            await asyncio.to_thread(thread.join, 30)
        await exchange.close()
    left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    print(json.dumps(dict(done)))
    if left:
        raise RuntimeError(f"tasks are left: {left}")


def _say(gate: Any, done: Any, begun: int) -> None:
    """The program's own figures, for whoever watches."""
    gc.collect()
    kinds = collections.Counter(type(each).__name__ for each in gc.get_objects())
    shown = gate.read()
    figures = {
        "tasks": len(asyncio.all_tasks()) - begun,
        "objects": sum(kinds[kind] for kind in KINDS),
        "notes": len(shown.ledgers) + len(shown.blocks),
        "calls": sum(done.values()),
    }
    draft = Path(os.environ["RATEKEEPER_HOME"]) / "own.draft"
    draft.write_text(json.dumps(figures))
    draft.replace(draft.with_name("own.json"))


def _requests(url: str, gate: Any, stop: threading.Event, done: Any) -> None:
    import requests

    from ratekeeper.adapters.requests import Adapter

    with requests.Session() as session:
        session.mount("http://", Adapter(gate=gate))
        while not stop.wait(0.1):
            try:
                session.get(f"{url}/fapi/v1/depth", params={"symbol": random.choice(SYMBOLS), "limit": 5}, timeout=3)
                done["depth"] += 1
            except Exception as error:
                done[type(error).__name__] += 1


def _exchange(url: str) -> Any:
    import ccxt.async_support

    exchange = ccxt.async_support.binanceusdm({"apiKey": "kkk", "secret": "sss", "timeout": 3000})
    apis = exchange.urls["api"]
    for name, address in list(apis.items()):
        if isinstance(address, str):
            apis[name] = address.replace("https://fapi.binance.com", url)
    return exchange
