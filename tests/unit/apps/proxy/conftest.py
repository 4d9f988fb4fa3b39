"""A proxy in this process, the raw bytes it sends and gets, and a gate with rules for its upstream."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ratekeeper import Gate
from ratekeeper.apps.proxy.guard import Guard
from ratekeeper.apps.proxy.server import Proxy, listen
from ratekeeper.apps.proxy.session import open_session
from ratekeeper.apps.proxy.upstreams import Upstream, Upstreams

SUPPORT = Path(__file__).parents[3] / "support"
sys.path.append(str(SUPPORT))

from raw import Raw  # noqa: E402


class Here:
    """A running proxy as a test sees it.

    Attributes:
        port: where it listens.
        proxy: the proxy itself.
    """

    def __init__(self, proxy: Proxy, port: int) -> None:
        self.proxy = proxy
        self.port = port

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A bare connection."""
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def ask(self, request: bytes) -> tuple[bytes, bytes]:
        """Head and body of the answer to the bytes of one request, sent on a connection that then closes."""
        reader, writer = await self.connect()
        try:
            writer.write(request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            return head, body
        finally:
            writer.close()

    async def get(self, path: str, *headers: str, method: str = "GET", body: bytes | None = None) -> tuple[int, Any]:
        """Status, and the body as bytes, of one plain call."""
        lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{self.port}", *headers]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        head, found = await self.ask("\r\n".join([*lines, "", ""]).encode() + (body or b""))
        return int(head.split(b" ")[1]), found


@pytest.fixture
def raw() -> Iterator[Raw]:
    """An upstream that keeps what arrives."""
    with Raw() as server:
        yield server


@pytest.fixture
def gate(raw: Raw) -> Iterator[Gate]:
    """A gate of its own, in memory, that takes the upstream for Testland."""
    with Gate("memory://", hosts={raw.place: "testland"}, rules=[SUPPORT / "testland.toml"], max_wait=5) as made:
        yield made


@pytest.fixture
def spent(gate: Gate) -> Callable[..., tuple[int, int]]:
    """What a limit has used (``requests-1d``) and what is in flight on it."""

    def look(limit: str = "requests-1d") -> tuple[int, int]:
        found = [view for view in gate.read().ledgers if f"/{limit}/" in view.key]
        return sum(view.used for view in found), sum(view.inflight for view in found)

    return look


@pytest.fixture
def proxied(gate: Gate) -> Callable[..., Any]:
    """Runs a coroutine function with a proxy to the upstream; returns what it returns."""

    def run(
        use: Callable[[Here], Awaitable[Any]],
        *,
        token: str = "",
        wanted: dict[str, Upstream | None] | None = None,
        silence: float = 20.0,
        guard: Guard | None = None,
    ) -> Any:
        async def main() -> Any:
            session = open_session(silence)
            proxy = Proxy(gate, Upstreams(gate.book, wanted or {}), session, token, guard)
            runner = await listen(proxy, "127.0.0.1", 0)
            try:
                return await use(Here(proxy, runner.addresses[0][1]))
            finally:
                await runner.cleanup()
                await session.close()

        return asyncio.run(main())

    return run
