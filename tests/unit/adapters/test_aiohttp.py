"""ratekeeper.adapters.aiohttp against a real server."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from ratekeeper import Blocked, DeadlineExceeded, Rejected, SignatureWouldExpire
from ratekeeper.adapters.aiohttp import Middleware, govern, middleware


def run(gate: Any, use: Callable[[aiohttp.ClientSession], Awaitable[Any]], **options: Any) -> Any:
    """Runs `use` with a governed session."""

    async def main() -> Any:
        async with aiohttp.ClientSession(middlewares=(Middleware(gate),), **options) as session:
            return await use(session)

    return asyncio.run(main())


async def fetch(session: aiohttp.ClientSession, url: str, method: str = "GET", **options: Any) -> Any:
    """The JSON of one answer."""
    async with session.request(method, url, **options) as response:
        return await response.json()


def test_each_request_is_charged(gate: Any, origin: Any, spent: Any) -> None:
    """Requests are charged by what their query, form and JSON say."""

    async def use(session: aiohttp.ClientSession) -> None:
        assert (await fetch(session, f"{origin.url}/a"))["ok"]
        await fetch(session, f"{origin.url}/priced", params={"limit": 50})
        await fetch(session, f"{origin.url}/form", "POST", data={"amount": "50"})
        await fetch(session, f"{origin.url}/json", "POST", json={"amount": 50})

    run(gate, use)
    assert origin.paths() == ["/a", "/priced", "/form", "/json"]
    assert spent() == (28, 0)


def test_redirects_and_resends_are_charged(gate: Any, origin: Any, spent: Any) -> None:
    """A redirect, and aiohttp's own resend on a connection that was dropped, are each a charge."""

    async def use(session: aiohttp.ClientSession) -> None:
        assert (await fetch(session, f"{origin.url}/a?do=redirect"))["ok"]
        assert spent() == (2, 0)
        assert (await fetch(session, f"{origin.url}/a?do=reset-once"))["ok"]

    run(gate, use)
    assert len(origin.arrivals) == 4
    assert sum(spent()) == 4


def test_refusal_is_a_client_error(gate: Any, origin: Any) -> None:
    """A rejected call raises what existing except clauses catch, and what Ratekeeper's users catch; nothing is sent."""

    async def use(session: aiohttp.ClientSession) -> None:
        for _ in range(2):
            await fetch(session, f"{origin.url}/few")
        with pytest.raises(aiohttp.ClientError) as caught:
            await fetch(session, f"{origin.url}/few")
        assert isinstance(caught.value, Rejected) and isinstance(caught.value, DeadlineExceeded | Blocked)
        signed = {"timestamp": str(int(time.time() * 1000)), "signature": "s"}
        with pytest.raises(SignatureWouldExpire):
            await fetch(session, f"{origin.url}/few", "POST", data=signed)

    run(gate, use)
    assert len(origin.arrivals) == 2


def test_error_bodies_stay_unread(gate: Any, origin: Any) -> None:
    """The body of a refusal is read for the rules, and the caller can still read it in any way."""
    url = f"{origin.url}/a?do=zipped-refusal"

    async def use(session: aiohttp.ClientSession) -> None:
        assert (await fetch(session, url))["code"] == -1102
        async with session.get(url) as response:
            assert b"-1102" in b"".join([chunk async for chunk in response.content.iter_any()])
        async with session.get(url) as response:
            assert b"-1102" in await response.content.read()
            assert "-1102" in await response.text()

    run(gate, use)


def test_refusals_are_understood(gate: Any, origin: Any) -> None:
    """A 429 whose body names the limit reaches the gate as throttled."""
    kinds: list[str] = []
    gate.on(lambda event: kinds.append(event.kind))
    assert run(gate, lambda session: fetch(session, f"{origin.url}/a?do=refuse"))["code"] == -1003
    assert "throttled" in kinds


def test_unsent_is_refunded(gate: Any, origin: Any, spent: Any) -> None:
    """A request that never got a connection costs nothing."""
    origin.server.shutdown()
    origin.server.server_close()
    with pytest.raises(aiohttp.ClientConnectorError):
        run(gate, lambda session: fetch(session, f"{origin.url}/a"))
    assert spent() == (0, 0)


@pytest.mark.parametrize("do", ["reset", "hang"])
def test_unanswered_stays_charged(do: str, gate: Any, origin: Any, spent: Any) -> None:
    """A request that was sent and never answered stays in flight."""
    with pytest.raises((aiohttp.ClientError, TimeoutError)):
        run(
            gate,
            lambda session: fetch(session, f"{origin.url}/a?do={do}", "POST", timeout=aiohttp.ClientTimeout(0.2)),
        )
    assert sum(spent()) == 1


def test_stream_holds_its_slot(gate: Any, origin: Any, spent: Any) -> None:
    """A slot is held until the last byte, or until the reader leaves."""

    async def use(session: aiohttp.ClientSession) -> None:
        async with session.get(f"{origin.url}/stream?do=stream") as response:
            assert spent("streams")[1] == 1
            origin.more.release(3)
            assert [line async for line in response.content] == [b"part0\n", b"part1\n", b"part2\n"]
            assert spent("streams") == (0, 0)
        for leave in ("close", "release"):
            response = await session.get(f"{origin.url}/stream?do=stall")
            assert spent("streams")[1] == 1
            getattr(response, leave)()
            assert spent("streams") == (0, 0)
        assert (await fetch(session, f"{origin.url}/a"))["ok"]

    run(gate, use)


def test_shared_gate(monkeypatch: pytest.MonkeyPatch, origin: Any) -> None:
    """`middleware` as it stands asks the shared gate, which knows the hosts of the environment."""
    monkeypatch.setenv("RATEKEEPER_STORE", "memory://")
    monkeypatch.setenv("RATEKEEPER_HOSTS", f"{origin.place}=binance-usdm")
    from ratekeeper import Gate

    monkeypatch.setattr(Gate, "_default", None)

    async def main() -> None:
        async with aiohttp.ClientSession(middlewares=(middleware,)) as session:
            await fetch(session, f"{origin.url}/fapi/v1/time")

    asyncio.run(main())
    with Gate.shared() as shared:
        assert [view.used for view in shared.read().ledgers if "/weight" in view.key] == [2]
    assert origin.paths() == ["/fapi/v1/time"]
    assert origin.arrivals[0].path == "/fapi/v1/exchangeInfo"


def test_hooks_are_where_we_think() -> None:
    """What `patch` replaces exists and takes what we give it; an upgrade that moves it fails here."""
    assert "_request" in vars(aiohttp.ClientSession)
    names = list(inspect.signature(aiohttp.ClientSession._request).parameters)
    assert names[:3] == ["self", "method", "str_or_url"]
    assert {"middlewares", "params", "data", "json", "headers"} <= set(names)

    async def main() -> None:
        async with aiohttp.ClientSession("http://127.0.0.1:1/base/") as session:
            assert session._middlewares == ()
            assert str(session._build_url("x")) == "http://127.0.0.1:1/base/x"
            assert session.json_serialize({}) == "{}"

    asyncio.run(main())
    assert isinstance(aiohttp.payload.PAYLOAD_REGISTRY.get(b"x"), aiohttp.payload.BytesPayload)


def test_a_signature_in_a_form_is_seen(origin: Any, gate: Any) -> None:
    """Also in one that aiohttp encodes: an expired request is not sent."""

    async def main() -> None:
        form = aiohttp.FormData({"timestamp": str(int((time.time() - 9) * 1000)), "signature": "s", "amount": "1"})
        async with aiohttp.ClientSession() as session:
            with pytest.raises(SignatureWouldExpire):
                await govern(session, gate=gate).post(f"{origin.url}/form", data=form)

    asyncio.run(main())
    assert origin.paths() == []
