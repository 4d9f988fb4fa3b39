"""What `ratekeeper proxy` adds to a call, and how many calls it can pass on: beside the same upstream asked directly."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.measure import spawn

__all__ = ["WAYS", "Passage", "passages"]

WAYS = ("direct", "aiohttp alone", "no rules", "governed memory://", "governed host://")
"""Direct; through the shortest proxy that can be made of the same library; through ours to a host without rules, and
through the gate, by store."""
_RULES = """
format = 1
name = "bench"
title = "Bench"
hosts = ["bench.invalid"]
source = "B"
[sources]
B = { title = "made up for benchmarks", read = 2026-11-21, confidence = "D" }
[limits.requests-1m]
unit = "requests"
capacity = 1000000000
period = "1m"
window = "fixed"
[default]
class = "other"
cost = { requests = 1 }
"""
_BODY = b'{"symbol": "BTCUSDT", "price": "64000.00", "time": 1763690000000}' * 5
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(_BODY) + _BODY


class Passage(NamedTuple):
    """One way to the upstream: medians of all rounds."""

    alone: float
    """Milliseconds a call takes when nobody else calls."""
    rate: float
    """Calls a second over 16 connections."""
    cpu: float
    """Microseconds that the proxy was busy with one of them; 0 without a proxy."""


class _Upstream(asyncio.Protocol):
    """Answers as soon as a request is there; no server could be faster in Python."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(_ANSWER * data.count(b"\r\n\r\n"))


def _upstream(pipe: Connection) -> None:
    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(_Upstream, "127.0.0.1", 0, backlog=256)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


def _serve_cpu(pipe: Connection) -> None:
    """Tell how long this process was busy, whenever it is asked."""

    def tell() -> None:
        while pipe.recv():
            pipe.send(time.process_time())

    threading.Thread(target=tell, daemon=True).start()


def _bare(pipe: Connection, upstream: int) -> None:
    import aiohttp
    from aiohttp import web

    async def main() -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), auto_decompress=False) as session:

            async def handle(request: web.BaseRequest) -> web.StreamResponse:
                url = f"http://127.0.0.1:{upstream}{request.raw_path}"
                async with session.request(request.method, url, headers=request.headers) as answer:
                    return web.Response(status=answer.status, body=await answer.read(), headers=answer.headers)

            runner = web.ServerRunner(web.Server(handle, access_log=None))
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            pipe.send(runner.addresses[0][1])
            _serve_cpu(pipe)
            await asyncio.Event().wait()

    asyncio.run(main())


def _proxy(pipe: Connection, way: str, upstream: int, folder: Path) -> None:
    import logging

    from ratekeeper import Gate
    from ratekeeper.apps.proxy.server import Options, serve
    from ratekeeper.apps.proxy.upstreams import parse

    logging.disable()
    rules = folder / "bench.toml"
    rules.write_text(_RULES)
    place = f"127.0.0.1:{upstream}"
    store = "memory://" if "memory" in way or way == "no rules" else "host://"
    hosts = {} if way == "no rules" else {place: "bench"}
    gate = Gate(store, home=folder / "home", hosts=hosts, rules=[rules])

    def say(line: str) -> None:
        pipe.send(int(line.split(" (")[0].rsplit(":", 1)[1]))
        _serve_cpu(pipe)

    asyncio.run(serve(gate, Options(port=0, upstreams=parse([f"bench=http://{place}"])), say))


async def _load(port: int, path: str, connections: int, seconds: float) -> list[float]:
    """Seconds of each call, on so many connections, one call after the other on each."""
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\nX-MBX-APIKEY: k1\r\n\r\n".encode()
    found: list[float] = []
    end = time.perf_counter() + seconds

    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        begun = time.perf_counter()
        while begun < end:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200 "):
                raise RuntimeError(head.decode())
            await reader.readexactly(len(_BODY))
            now = time.perf_counter()
            found.append(now - begun)
            begun = now
        writer.close()

    await asyncio.gather(*[one() for _ in range(connections)])
    return found


class _Child:
    """A server in a process of its own.

    Attributes:
        port: where it listens.
    """

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.pipe, theirs = spawn.Pipe()
        self.process = spawn.Process(target=function, args=(theirs, *arguments), daemon=True)
        self.process.start()
        if not self.pipe.poll(60):
            raise RuntimeError("a server did not start")
        self.port: int = self.pipe.recv()

    def cpu(self) -> float:
        """Seconds it was busy so far."""
        self.pipe.send(True)
        return float(self.pipe.recv())

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.join()


def passages(seconds: float, rounds: int, folder: Path, ways: tuple[str, ...] = WAYS) -> dict[str, Passage]:
    """Measure every way, in turns of so many seconds each."""
    found: dict[str, list[Passage]] = {way: [] for way in ways}
    with ExitStack() as stack:

        def start(function: Any, *arguments: Any) -> _Child:
            child = _Child(function, *arguments)
            stack.callback(child.close)
            return child

        upstream = start(_upstream)
        proxies = {}
        for number, way in enumerate(ways):
            if way == "aiohttp alone":
                proxies[way] = start(_bare, upstream.port)
            elif way != "direct":
                own = folder / f"proxy{number}"
                own.mkdir()
                proxies[way] = start(_proxy, way, upstream.port, own)
        for _ in range(rounds):
            for way in ways:
                proxy = proxies.get(way)
                port, path = (proxy.port, "/bench/v1/price?a=1") if proxy else (upstream.port, "/v1/price?a=1")
                asyncio.run(_load(port, path, 4, seconds / 10))  # warm up
                alone = asyncio.run(_load(port, path, 1, seconds))
                busy = proxy.cpu() if proxy else 0.0
                many = asyncio.run(_load(port, path, 16, seconds))
                busy = proxy.cpu() - busy if proxy else 0.0
                found[way].append(Passage(statistics.median(alone) * 1e3, len(many) / seconds, busy / len(many) * 1e6))
    return {way: Passage(*map(statistics.median, zip(*them, strict=True))) for way, them in found.items()}
