"""One emulated exchange in this process, asked over real HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import aiohttp
from aiohttp import web

from ratekeeper.apps.emulator.options import LimitChange, Options
from ratekeeper.apps.emulator.server import Emulation
from ratekeeper.rules.book import Rulebook

ROOMY = 10_000


class Asker:
    """Asks an emulation, as one account.

    Attributes:
        emulation: the exchange itself.
        session: for what is no plain call.
    """

    def __init__(self, emulation: Emulation, session: aiohttp.ClientSession, headers: Mapping[str, str]) -> None:
        self.emulation = emulation
        self.session = session
        self._headers = headers

    async def call(self, method: str, path: str, body: Any = None, *, known: bool = True) -> tuple[int, Any]:
        """Status and decoded body; `known` sends the headers that name the account."""
        headers = self._headers if known else {}
        async with self.session.request(method, path, json=body, headers=headers) as answer:
            return answer.status, await answer.json(content_type=None)

    async def data(self, method: str, path: str, body: Any = None) -> Any:
        """The ``data`` of a good answer."""
        status, told = await self.call(method, path, body)
        assert status == 200, told
        return told["data"]


def over_http(name: str, headers: Mapping[str, str], steps: Callable[[Asker], Awaitable[None]]) -> None:
    """Run the steps of a test against the emulation of a provider, with limits that are not in their way."""

    async def run() -> None:
        provider = Rulebook.load().provider(name)
        changes = tuple(LimitChange(limit, ROOMY, None) for limit in provider.limits)
        emulation = Emulation(Options(provider=name, limits=changes), provider)
        runner = web.AppRunner(emulation.application(), access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            async with aiohttp.ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as session:
                await steps(Asker(emulation, session, headers))
        finally:
            await runner.cleanup()

    asyncio.run(run())
