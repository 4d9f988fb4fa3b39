"""Connection pools of httpx and httpx2: one for each address that requests leave from, and none loses a connection."""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from ratekeeper.adapters._call import leaving
from ratekeeper.adapters._wire import netloc_of
from ratekeeper.gate.steps import on_asyncio

if TYPE_CHECKING:
    from ratekeeper.pools.address import Address

__all__ = ["Pools", "remembering", "roaming", "sending"]


class Pools:
    """Takes the place of a transport's connection pool: one pool for each address that its requests leave from."""

    def __init__(self, own: Any, make: Callable[[Address], Any]) -> None:
        self._own = own
        self._make = make
        self._others: dict[Address, Any] = {}
        self._making = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def _pool(self, request: Any) -> Any:
        url = request.url
        address = leaving(netloc_of(url.scheme.decode("ascii"), url.host.decode("ascii"), url.port))
        if address is None:
            return self._own
        with self._making:
            if address not in self._others:
                self._others[address] = self._make(address)
            return self._others[address]

    def handle_request(self, request: Any) -> Any:
        return self._pool(request).handle_request(request)

    async def handle_async_request(self, request: Any) -> Any:
        return await self._pool(request).handle_async_request(request)

    @property
    def all(self) -> tuple[Any, ...]:
        """Every one of them."""
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


def roaming(transport: Any, options: Mapping[str, Any]) -> Any:
    """The transport, made able to leave from any address, unless its user has chosen one in the options."""
    if hasattr(transport, "_pool") and not any(options.get(name) for name in ("proxy", "uds", "local_address")):
        kind = type(transport)

        def make(address: Address) -> Any:
            chosen = {"local_address": address.bind, "proxy": address.proxy}
            made = kind(**{**options, **{name: value for name, value in chosen.items() if value}})
            return made._pool

        transport._pool = Pools(transport._pool, make)
    return transport


def remembering(cls: Any, made: Callable[..., None]) -> Callable[..., None]:
    """The constructor of a patched class, whose instances become able to leave from any address."""
    names = list(inspect.signature(made).parameters)[1:]

    @functools.wraps(made)
    def remember(self: Any, *args: Any, **options: Any) -> None:
        made(self, *args, **options)
        if type(self) is cls:
            roaming(self, dict(zip(names, args, strict=False)) | options)

    return remember


def sending(transport: Any, send: Callable[[Any], Awaitable[Any]]) -> Callable[[Any], Awaitable[Any]]:
    """What sends through a transport, and gives back what its pool loses when a call is cancelled.

    httpcore (1.0.9; httpcore2 2.16.2 does not) forgets a connection whose call is cancelled when it has been made and not yet
    been used: it is neither idle nor closed nor anybody's, and keeps its socket and its place in the pool.
    """

    @functools.wraps(send)
    async def sent(request: Any) -> Any:
        try:
            return await send(request)
        except BaseException:
            if on_asyncio():
                await _close_lost(getattr(transport, "_pool", None))
            raise

    return sent


async def _close_lost(pool: Any) -> None:
    for each in pool.all if isinstance(pool, Pools) else (pool,):
        connections = getattr(each, "_connections", None)
        if not isinstance(connections, list):
            continue  # nothing that we know
        used = {id(asked.connection) for asked in each._requests}
        for connection in list(connections):
            settled = connection.is_idle() or connection.is_available() or connection.is_closed()
            if not settled and id(connection) not in used:
                connections.remove(connection)
                await asyncio.shield(asyncio.ensure_future(connection.aclose()))
