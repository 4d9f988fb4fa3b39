"""What Ratekeeper costs a program that uses it: its import, and each governed httpx call."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
from email.utils import formatdate
from pathlib import Path

__all__ = ["governed", "imports"]


def imports(rounds: int) -> dict[str, float]:
    """Milliseconds that importing takes above `import asyncio`, in fresh processes: the median of several."""
    found: dict[str, list[float]] = {}
    code = "import asyncio, time; t = time.perf_counter(); {}; print((time.perf_counter() - t) * 1000)"
    for _ in range(rounds):
        for what in ("import ratekeeper", "from ratekeeper import Gate"):
            done = subprocess.run([sys.executable, "-c", code.format(what)], capture_output=True, text=True, check=True)
            found.setdefault(what, []).append(float(done.stdout))
    return {what: statistics.median(times) for what, times in found.items()}


def governed(count: int, rounds: int, folder: Path) -> dict[str, tuple[float, float]]:
    """Microseconds of an httpx call to Binance's rules: bare, and what governing adds, by store.

    The transport below answers from memory, so that no network hides the difference.
    """
    import httpx

    from ratekeeper import Gate
    from ratekeeper.adapters.httpx import AsyncTransport

    class Instant(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            headers = {"x-mbx-used-weight-1m": "1", "date": formatdate(usegmt=True), "content-type": "application/json"}
            return httpx.Response(200, headers=headers, content=b"[]")

    async def once(transport: httpx.AsyncBaseTransport) -> float:
        async with httpx.AsyncClient(transport=transport) as client:
            url = "https://fapi.binance.com/fapi/v1/klines?symbol=BTCUSDT&interval=1m&limit=100"
            await client.get(url)
            begun = time.perf_counter()
            for _ in range(count):
                await client.get(url)
            return (time.perf_counter() - begun) / count * 1e6

    async def median() -> dict[str, tuple[float, float]]:
        found = {}
        for store in ("memory://", "host://"):
            bare, added = [], []
            # Weight of all rounds together stays far below the limit of a minute, or the calls would wait.
            for turn in range(rounds):
                with Gate(store, home=folder / f"{store[:4]}{turn}", hosts={}, learn=False) as gate:
                    plain = await once(Instant())
                    bare.append(plain)
                    added.append(await once(AsyncTransport(Instant(), gate=gate)) - plain)
            found[store] = statistics.median(bare), statistics.median(added)
        return found

    return asyncio.run(median())
