"""Truthfulness: what share of a published limit is used, and how often the server refuses."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from email.utils import formatdate
from functools import lru_cache
from pathlib import Path

from benchmarks.contenders import taker
from benchmarks.measure import spawn
from benchmarks.servers import Report, Spec, serve

__all__ = ["SERVERS", "truths"]

SERVERS = {
    "fixed": Spec("fixed"),
    "fixed, clock 0.1 s off": Spec("fixed", skew=0.1),
    "sliding": Spec("sliding"),
    # The watch begins when the full bucket of the start has been drunk up: 40 more a second than leak out.
    "bucket": Spec("bucket", settle=8),
}
WORKERS = 12
"""Requests under way at once, over all processes, if nothing held them back. At 50 ms each they want 1.2 times the
limit, so that there is traffic at every moment, at the edges of windows too."""


@lru_cache(8)
def http_date(seconds: int) -> str:
    """A time of day as servers write it in their answers."""
    return formatdate(seconds, usegmt=True)


async def _work(name: str, spec: Spec, port: int, workers: int, folder: Path, shared: bool) -> None:
    take = taker(name, spec.kind, spec.capacity, spec.period, folder, shared=shared)

    async def worker() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while True:
            settle = await take()
            writer.write(b"1\n")
            status, used, date = map(int, (await reader.readline()).split())
            settle(status, {"x-used": str(used), "date": http_date(date)})

    await asyncio.gather(*(worker() for _ in range(workers)))  # until this process is killed


def _process(name: str, spec: Spec, port: int, workers: int, folder: Path, shared: bool) -> None:
    asyncio.run(_work(name, spec, port, workers, folder, shared))


def truth(name: str, spec: Spec, processes: int) -> Report:
    """One contender against one server."""
    with tempfile.TemporaryDirectory() as name_of_folder:
        ours, theirs = spawn.Pipe()
        server = spawn.Process(target=serve, args=(spec, theirs), daemon=True)
        server.start()
        arguments = (name, spec, ours.recv(), WORKERS // processes, Path(name_of_folder), processes > 1)
        clients = [spawn.Process(target=_process, args=arguments, daemon=True) for _ in range(processes)]
        for client in clients:
            client.start()
        try:
            if not ours.poll(30 + spec.period * (spec.periods + spec.settle)) or not all(
                client.is_alive() for client in clients
            ):
                raise RuntimeError(f"{name} never got its requests to the {spec.kind} server")
            report: Report = ours.recv()
            return report
        finally:
            for process in (*clients, server):
                process.kill()
                process.join()


def truths(names: Sequence[str], processes: int, periods: int) -> dict[str, dict[str, Report]]:
    """Every contender against every server: name -> server -> report."""
    # Two at a time: a run is some two hundred requests a second, and one core carries it with ease.
    with ThreadPoolExecutor(2) as pool:
        runs = {
            (name, server): pool.submit(truth, name, replace(spec, periods=periods), processes)
            for name in names
            for server, spec in SERVERS.items()
        }
        return {name: {server: runs[name, server].result() for server in SERVERS} for name in names}
