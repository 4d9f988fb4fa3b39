"""Pools of connections: as large as the work needs, and nothing leaks when calls are cancelled."""

from __future__ import annotations

import asyncio
import logging
import threading
from types import ModuleType
from typing import Any

import aiohttp
import httpx
import httpx2
import pytest
import requests

from ratekeeper.adapters.aiohttp import govern
from ratekeeper.adapters.httpx import AsyncTransport
from ratekeeper.adapters.requests import Adapter

LIBRARIES = pytest.mark.parametrize("lib", [httpx, httpx2], ids=lambda lib: lib.__name__)


def test_no_pool_is_full(origin: Any, gate: Any, caplog: pytest.LogCaptureFixture) -> None:
    """More threads than urllib3's usual ten connections: none is thrown away, and all are used again."""
    start = threading.Barrier(24)

    def work(session: requests.Session) -> None:
        for _ in range(3):
            start.wait(10)
            assert session.get(f"{origin.url}/priced").status_code == 200

    with caplog.at_level(logging.WARNING), requests.Session() as session:
        session.mount("http://", Adapter(gate=gate))
        threads = [threading.Thread(target=work, args=(session,)) for _ in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        pool = session.get_adapter(origin.url).poolmanager.connection_from_url(origin.url)  # type: ignore[attr-defined]
        assert pool.num_connections <= 24 + 2
    assert "pool is full" not in caplog.text
    assert len(origin.paths()) == 72


def test_a_pool_that_blocks_keeps_its_size(origin: Any, gate: Any) -> None:
    """Whoever asked for so many and no more gets them."""
    with requests.Session() as session:
        session.mount("http://", Adapter(gate=gate, pool_maxsize=2, pool_block=True))
        for _ in range(5):
            session.get(f"{origin.url}/priced")
        pool = session.get_adapter(origin.url).poolmanager.connection_from_url(origin.url)  # type: ignore[attr-defined]
        assert pool.pool.maxsize == 2


@LIBRARIES
def test_many_tasks_do_not_wait_for_a_connection(lib: ModuleType, origin: Any, gate: Any) -> None:
    """httpx alone ends calls beyond its hundred connections with a PoolTimeout."""

    async def main() -> None:
        transport = AsyncTransport(gate=gate)
        async with lib.AsyncClient(transport=transport, timeout=lib.Timeout(10, pool=0.05)) as client:
            found = await asyncio.gather(*[client.get(f"{origin.url}/priced") for _ in range(130)])
        assert {answer.status_code for answer in found} == {200}

    asyncio.run(main())


@LIBRARIES
def test_cancelled_calls_give_their_slots_back(lib: ModuleType, origin: Any, gate: Any, spent: Any) -> None:
    """Two slots, twenty calls that are cancelled in the queue or while they stream: afterwards both are free."""

    async def main() -> None:
        async with lib.AsyncClient(transport=AsyncTransport(gate=gate), timeout=30) as client:
            for _ in range(5):
                before = len(origin.paths())
                tasks = [asyncio.create_task(client.get(f"{origin.url}/stream?do=stall")) for _ in range(4)]
                while len(origin.paths()) < before + 2:
                    await asyncio.sleep(0.01)
                # Long enough for two to stream: one that is cancelled before its answer has begun may still arrive, and
                # lingers.
                await asyncio.sleep(0.3)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            assert (await client.get(f"{origin.url}/stream")).status_code == 200
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())
    assert spent("streams")[1] == 0


def test_the_wait_is_not_in_aiohttp_s_timeout(origin: Any, gate: Any) -> None:
    """A governed session waits before aiohttp's clock starts."""

    async def main() -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=0.4)) as session:
            govern(session, gate=gate)
            gate.block(f"testland@{origin.place}", 0.8)
            async with session.get(f"{origin.url}/priced") as answer:
                assert answer.status == 200

    asyncio.run(main())


@LIBRARIES
def test_cancelled_calls_give_their_connections_back(lib: ModuleType, origin: Any, gate: Any) -> None:
    """At whatever moment: httpx alone loses a connection now and then, and its place in the pool, for ever."""

    async def main() -> None:
        transport = AsyncTransport(gate=gate)
        async with lib.AsyncClient(transport=transport, timeout=5) as client:
            for number in range(150):
                task = asyncio.create_task(client.get(f"{origin.url}/priced"))
                for _ in range(number % 30):
                    await asyncio.sleep(0.0002)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            assert (await client.get(f"{origin.url}/priced")).status_code == 200
            pool = transport._inner._pool
            assert len(pool._requests) == 0
            assert all(each.is_idle() for each in pool.connections), pool.connections
            assert len(pool.connections) == 1

    asyncio.run(main())


@LIBRARIES
def test_cancelled_at_every_step(lib: ModuleType, origin: Any, gate: Any) -> None:
    """After each turn of the event loop that a first call takes, from the dial to the end: nothing is left of it."""

    async def main() -> None:
        for turns in range(80):
            transport = AsyncTransport(gate=gate)
            async with lib.AsyncClient(transport=transport, timeout=5) as client:
                task = asyncio.create_task(client.get(f"{origin.url}/priced"))
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                if transport._inner is not None:
                    pool = transport._inner._pool
                    assert all(each.is_idle() for each in pool.connections), (turns, pool.connections)
                    assert not pool._requests

    asyncio.run(main())
