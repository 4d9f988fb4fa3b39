"""A tiny exchange that counts: fixed windows, growing bans, and a clock of its own for ``Date``.

It shares no line with the emulator, and nothing here is imported from the project, so that a mistake of the emulator's count
cannot hide one of ours. It speaks as much of Binance USD-M futures as the three programs ask for. Instants are integer ns.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from email.utils import formatdate
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlsplit

__all__ = ["StrictServer"]

SECOND = 1_000_000_000
LONGEST = 3 * 86_400 * SECOND


def price(path: str, params: dict[str, list[str]]) -> int:
    """Weight of a call, as Binance's page of each states it."""
    most = int(params.get("limit", ["500"])[0])
    match path.rpartition("/")[2]:
        case "klines":
            return 1 if most < 100 else 2 if most < 500 else 5 if most <= 1000 else 10
        case "depth":
            return 2 if most <= 50 else 5 if most <= 100 else 10 if most <= 500 else 20
        case "24hr":
            return 1 if "symbol" in params else 40
        case "aggTrades":
            return 20
    return 1


class StrictServer:
    """Use it in a ``with`` block; it serves from a thread of its own.

    Args:
        capacity: weight per window.
        window: whole seconds of a window, aligned to the clock that counts (this machine's).
        offset: ``Date`` and ``serverTime`` less the clock that counts, seconds: +0.4 rolls 0.4 s later than ``Date`` says.
        counters: whether answers tell what is used.
        ban_after: refusals, with no calm of two windows between them, at which a ban begins: of two windows, and of twice as
            much each time.

    Attributes:
        accepted: weight that was let through, by the window's number.
        refused: instants of 429 and 418, Unix seconds.
        bans: from and until, ns.
    """

    def __init__(
        self, capacity: int, window: int, *, offset: float, counters: bool = True, ban_after: int = 10
    ) -> None:
        self.capacity, self.period = capacity, window * SECOND
        self.accepted: Counter[int] = Counter()
        self.clients: Counter[str] = Counter()
        self.refused: list[float] = []
        self.bans: list[tuple[int, int]] = []
        self._offset, self._counters, self._ban_after = round(offset * SECOND), counters, ban_after
        self._count: Counter[int] = Counter()
        self._strikes = self._last_strike = self._banned_until = 0
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def judge(self, now: int, weight: int) -> int:
        """Count a call that arrives at `now`, whatever becomes of it, and return the status of its answer."""
        window = now // self.period
        self._count[window] += weight
        if now < self._banned_until:
            self.refused.append(now / SECOND)
            return 418
        if self._count[window] <= self.capacity:
            self.accepted[window] += weight
            return 200
        self.refused.append(now / SECOND)
        self._strikes = self._strikes + 1 if now - self._last_strike <= 2 * self.period else 1
        self._last_strike = now
        if self._strikes < self._ban_after:
            return 429
        self._banned_until = now + min(LONGEST, 2 * self.period << len(self.bans))
        self.bans.append((now, self._banned_until))
        self._strikes = 0
        return 418

    def answer(self, now: int, target: str) -> tuple[int, dict[str, str], Any]:
        """Status, headers and body for a GET of `target` at `now`."""
        split = urlsplit(target)
        status = self.judge(now, price(split.path, params := parse_qs(split.query)))
        dated = now + self._offset
        headers = {"Date": formatdate(dated // SECOND, usegmt=True), "Content-Type": "application/json"}
        length = self.period // SECOND
        name, number = ("MINUTE", length // 60) if length % 60 == 0 else ("SECOND", length)
        if self._counters:
            headers[f"X-MBX-USED-WEIGHT-{number}{name[0]}"] = str(self._count[now // self.period])
        if status != 200:
            until = self._banned_until if status == 418 else (now // self.period + 1) * self.period
            headers["Retry-After"] = str(max(1, -(-(until - now) // SECOND)))
            text = (
                f"Way too many requests; IP banned until {until // 1_000_000}."
                if status == 418
                else "Too many requests."
            )
            return status, headers, {"code": -1003, "msg": text}
        limit = {"rateLimitType": "REQUEST_WEIGHT", "interval": name, "intervalNum": number, "limit": self.capacity}
        bodies: dict[str, Any] = {
            "time": {"serverTime": dated // 1_000_000},
            "exchangeInfo": {
                "serverTime": dated // 1_000_000,
                "rateLimits": [limit],
                "symbols": [*map(_symbol, ("BTC", "ETH"))],
            },
            "depth": {"lastUpdateId": 1, "T": dated // 1_000_000, "bids": [], "asks": []},
        }
        named = split.path.rpartition("/")[2]
        return status, headers, bodies.get(named, [] if params or named == "24hr" else {})

    # -- what the soak and the tests ask

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def hosts(self) -> str:
        """For ``RATEKEEPER_HOSTS``."""
        return f"127.0.0.1:{self._port}=binance-usdm"

    # -- HTTP

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                agent = next((line[11:].strip() for line in head if line.lower().startswith("user-agent:")), "")
                status, headers, body = self.answer(time.time_ns(), head[0].split()[1])
                self.clients[agent] += status == 200
                content = json.dumps(body).encode()
                lines = [f"HTTP/1.1 {status} -", *(f"{name}: {value}" for name, value in headers.items())]
                writer.write("\r\n".join([*lines, f"Content-Length: {len(content)}", "", ""]).encode() + content)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._talk, "127.0.0.1", 0)
        self._port = int(server.sockets[0].getsockname()[1])
        self._started.set()
        await self._stop.wait()
        server.close()

    def __enter__(self) -> StrictServer:
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)


def _symbol(base: str) -> dict[str, Any]:
    filters = [
        {"filterType": "PRICE_FILTER", "minPrice": "0.1", "maxPrice": "1000000", "tickSize": "0.1"},
        {"filterType": "LOT_SIZE", "minQty": "0.001", "maxQty": "1000", "stepSize": "0.001"},
        {"filterType": "MIN_NOTIONAL", "notional": "5"},
    ]
    words = {"quoteAsset": "USDT", "marginAsset": "USDT", "contractType": "PERPETUAL", "status": "TRADING"}
    dates = {"deliveryDate": 4_133_404_800_000, "onboardDate": 1_569_398_400_000}
    return {"symbol": f"{base}USDT", "pair": f"{base}USDT", "baseAsset": base, **words, **dates, "filters": filters}
