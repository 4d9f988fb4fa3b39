"""Connection pools of httpx and httpx2: one for each local address, and none loses a connection."""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Any

from ratekeeper.adapters._client import leaving
from ratekeeper.gate.steps import on_asyncio

if TYPE_CHECKING:
    from ratekeeper.pools.address import Address

__all__ = ["Pools", "pooled", "remembering"]


class Pools:
    """Replaces a transport's connection pool with one pool for each local address.

    It also closes connections that a pool loses. httpcore 1.0.9 (not httpcore2 2.16.2) forgets a new, unused connection when
    its call is cancelled: the connection is neither idle nor closed nor in use, and keeps its socket and its place in the
    pool.

    Args:
        own: the transport's pool.
        make: makes a pool for an address; None: the program has chosen the address.
    """

    def __init__(self, own: Any, make: Callable[[Address], Any] | None) -> None:
        self._own = own
        self._make = make
        self._others: dict[Address, Any] = {}
        self._making = threading.Lock()
        self.free = make is not None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def _pool(self, request: Any) -> Any:
        if self._make is None:
            return self._own
        url = request.url
        address = leaving(url.scheme.decode("ascii"), url.host.decode("ascii"), url.port)
        if address is None:
            return self._own
        with self._making:
            if address not in self._others:
                self._others[address] = self._make(address)
            return self._others[address]

    def handle_request(self, request: Any) -> Any:
        return self._pool(request).handle_request(request)

    async def handle_async_request(self, request: Any) -> Any:
        pool = self._pool(request)
        try:
            response = await pool.handle_async_request(request)
        except BaseException:
            if on_asyncio():
                await _close_lost(pool)
            raise
        if on_asyncio():
            response.stream = _Unbroken(response.stream)
        return response

    @property
    def all(self) -> tuple[Any, ...]:
        """All pools."""
        return (self._own, *self._others.values())

    def close(self) -> None:
        for pool in self.all:
            pool.close()

    async def aclose(self) -> None:
        for pool in self.all:
            await pool.aclose()

    def __enter__(self) -> Pools:
        self._own.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    async def __aenter__(self) -> Pools:
        await self._own.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self.aclose()


class _Unbroken:
    """A stream that finishes closing even if its task is cancelled. Otherwise httpcore would keep the connection, and its
    place in the pool, forever."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._inner.__aiter__()  # type: ignore[no-any-return]

    async def aclose(self) -> None:
        await asyncio.shield(asyncio.ensure_future(self._inner.aclose()))


def pooled(transport: Any, options: Mapping[str, Any] | None = None) -> Any:
    """Return the transport, with `Pools` instead of its pool if it has one.

    Args:
        transport: of either library, or any other.
        options: its constructor's arguments; None: unknown, so its requests keep their own address.
    """
    pool = getattr(transport, "_pool", None)
    if not isinstance(pool, Pools) and (hasattr(pool, "handle_request") or hasattr(pool, "handle_async_request")):
        kind, given = type(transport), options or {}

        def make(address: Address) -> Any:
            chosen = {"local_address": address.bind, "proxy": address.proxy}
            made = kind(**{**given, **{name: value for name, value in chosen.items() if value}})
            return made._pool.all[0] if isinstance(made._pool, Pools) else made._pool

        fixed = options is None or any(given.get(name) for name in ("proxy", "uds", "local_address"))
        transport._pool = Pools(pool, None if fixed else make)
    return transport


def remembering(cls: Any, made: Callable[..., None]) -> Callable[..., None]:
    """Wrap the constructor of a patched class, so that its instances can send from any address."""
    names = list(inspect.signature(made).parameters)[1:]

    @functools.wraps(made)
    def remember(self: Any, *args: Any, **options: Any) -> None:
        made(self, *args, **options)
        if type(self) is cls:
            pooled(self, dict(zip(names, args, strict=False)) | options)

    return remember


async def _close_lost(pool: Any) -> None:
    connections = getattr(pool, "_connections", None)
    if not isinstance(connections, list):
        return  # an unknown structure
    used = {id(asked.connection) for asked in pool._requests}
    for connection in list(connections):
        settled = connection.is_idle() or connection.is_available() or connection.is_closed()
        if not settled and id(connection) not in used:
            connections.remove(connection)
            await asyncio.shield(asyncio.ensure_future(connection.aclose()))
