"""What each client is told of a block, and how it asks to wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import aiohttp
import ccxt
import httpx
import httpx2
import pytest
import requests

from ratekeeper import Blocked, Gate
from ratekeeper.adapters import aiohttp as for_aiohttp
from ratekeeper.adapters import ccxt as for_ccxt
from ratekeeper.adapters import httpx as for_httpx
from ratekeeper.adapters import requests as for_requests

Ask = Callable[..., int]


def of_httpx(library: Any, url: str, **options: Any) -> int:
    """The status of one call through our transport."""
    with library.Client(transport=for_httpx.Transport(**options)) as client:
        return client.get(url).status_code  # type: ignore[no-any-return]


def of_httpx_async(url: str, **options: Any) -> int:
    """The same on asyncio, of a client that was governed as it was."""

    async def ask() -> int:
        async with httpx.AsyncClient() as client:
            return (await for_httpx.govern(client, **options).get(url)).status_code

    return asyncio.run(ask())


def of_requests(url: str, *, mounted: bool, **options: Any) -> int:
    """The same of requests."""
    with requests.Session() as session:
        if mounted:
            session.mount("http://", for_requests.Adapter(**options))
        else:
            for_requests.govern(session, **options)
        return session.get(url).status_code


def of_aiohttp(url: str, *, middleware: bool, **options: Any) -> int:
    """The same of aiohttp."""

    async def ask() -> int:
        async with aiohttp.ClientSession() as session:
            if middleware:
                session._middlewares = (for_aiohttp.Middleware(**options),)
            else:
                for_aiohttp.govern(session, **options)
            async with session.get(url) as answer:
                return answer.status

    return asyncio.run(ask())


CLIENTS: dict[str, Ask] = {
    "httpx": lambda url, **options: of_httpx(httpx, url, **options),
    "httpx2": lambda url, **options: of_httpx(httpx2, url, **options),
    "httpx-async": of_httpx_async,
    "requests": lambda url, **options: of_requests(url, mounted=True, **options),
    "requests-govern": lambda url, **options: of_requests(url, mounted=False, **options),
    "aiohttp": lambda url, **options: of_aiohttp(url, middleware=True, **options),
    "aiohttp-govern": lambda url, **options: of_aiohttp(url, middleware=False, **options),
}
FAMILIES = {
    "httpx": httpx.TransportError,
    "httpx2": httpx2.TransportError,
    "requests": requests.RequestException,
    "aiohttp": aiohttp.ClientError,
}


@pytest.mark.parametrize("name", CLIENTS)
def test_the_error_holds_the_answer(name: str, origin: Any, gate: Gate) -> None:
    """It is ours and the client's own at once, and its `response` is what the provider would have said."""
    gate.block(f"testland@{origin.place}/ip:default", 75, "ban", "by the shop")
    with pytest.raises(FAMILIES[name.partition("-")[0]]) as caught:
        CLIENTS[name](f"{origin.url}/a", gate=gate)
    error: Any = caught.value
    assert isinstance(error, Blocked)
    assert (error.kind, error.scope, error.reason) == ("ban", f"testland@{origin.place}/ip:default", "by the shop")
    assert getattr(error.response, "status_code", getattr(error.response, "status", 0)) == 429
    assert error.response.headers["x-ratekeeper-answer"] == "refused"
    assert 30 < int(error.response.headers["Retry-After"]) <= 75
    assert origin.arrivals == []


@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_asks_to_wait(name: str, origin: Any, gate: Gate) -> None:
    """`max_wait` goes before what the gate says of blocks; a short block is waited for anyhow."""
    gate.max_block_wait = 0.05
    scope = f"testland@{origin.place}/ip:default"
    gate.block(scope, 60, "ban", "by the shop")
    with pytest.raises(Blocked):
        CLIENTS[name](f"{origin.url}/a", gate=gate)
    gate.unblock(scope)
    gate.block(scope, 0.5, "ban", "by the shop")
    assert CLIENTS[name](f"{origin.url}/a", gate=gate, max_wait=60.0) == 200
    gate.max_block_wait = 30.0
    gate.block(scope, 0.1, "ban", "by the shop")
    assert CLIENTS[name](f"{origin.url}/a", gate=gate) == 200


@pytest.mark.parametrize(
    ("kind", "family"), [("ban", ccxt.DDoSProtection), ("pause", ccxt.DDoSProtection), ("breaker", ccxt.DDoSProtection)]
)
def test_ccxt_asks_its_exchange_what_it_would_raise(kind: str, family: type[Exception], origin: Any) -> None:
    """Binance's table says `DDoSProtection` for 418 and 429; the error is `Blocked` as well."""
    with ExitStack() as stack:
        gate = stack.enter_context(Gate("memory://", hosts={origin.place: "binance-usdm"}, learn=False))
        scope = f"binance-usdm@{origin.place}/ip:default"
        for max_wait, served in ((None, False), (60.0, True)):
            exchange = for_ccxt.govern(ccxt.binanceusdm(), gate=gate, max_wait=max_wait)
            exchange.urls["api"] = dict.fromkeys(exchange.urls["api"], f"{origin.url}/fapi/v1")
            gate.block(scope, 0.5 if served else 75, kind, "by the exchange")
            if served and kind != "breaker":
                exchange.fapiPublicGetTime()
                continue
            with pytest.raises(family) as caught:
                exchange.fapiPublicGetTime()
            assert isinstance(caught.value, Blocked)
            assert caught.value.kind == kind
            assert exchange.last_response_headers["x-ratekeeper-answer"] == "refused"
            gate.unblock(scope)
        assert len(origin.arrivals) == (kind != "breaker")
