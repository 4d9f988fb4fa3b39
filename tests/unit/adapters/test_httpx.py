"""ratekeeper.adapters.httpx, with httpx and httpx2, against a real server."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import httpx
import httpx2
import pytest

from ratekeeper import Blocked, DeadlineExceeded, Rejected, SignatureWouldExpire
from ratekeeper.adapters.httpx import AsyncTransport, Transport, any_address

from forward import ForwardProxy  # isort: skip - from tests/support, which the folder's conftest puts on the path

BOTH = pytest.mark.parametrize("lib", [httpx, httpx2], ids=["httpx", "httpx2"])


def both_colours(lib: ModuleType, gate: Any, use: Any, **client: Any) -> list[Any]:
    """Runs `use(get)` with a sync and an async client; `get` is called the same way in both."""
    with lib.Client(transport=Transport(gate=gate, verify=False), **client) as sync:
        first = use(lambda *a, **k: sync.request(*a, **k))

    async def main() -> Any:
        async with lib.AsyncClient(transport=AsyncTransport(gate=gate, verify=False), **client) as made:
            loop = asyncio.get_running_loop()

            def get(*a: Any, **k: Any) -> Any:
                return asyncio.run_coroutine_threadsafe(made.request(*a, **k), loop).result()

            return await asyncio.to_thread(use, get)

    return [first, asyncio.run(main())]


@BOTH
def test_one_body_of_code(lib: ModuleType, origin: Any, gate: Any, spent: Any) -> None:
    """The same two classes serve both libraries, and each request is charged once."""
    answers = both_colours(lib, gate, lambda get: get("GET", f"{origin.url}/a?x=1").json()["ok"])
    assert answers == [True, True]
    assert origin.paths() == ["/a", "/a"]
    assert spent() == (2, 0)


@BOTH
def test_costs_come_from_query_form_and_json(lib: ModuleType, origin: Any, gate: Any, spent: Any) -> None:
    """Parameters in the query, in a form and in a JSON body reach the rules."""
    with lib.Client(transport=Transport(gate=gate, verify=False)) as client:
        client.get(f"{origin.url}/priced", params={"limit": 50})
        assert spent() == (7, 0)
        client.post(f"{origin.url}/form", data={"amount": 50})
        assert spent() == (16, 0)
        client.post(f"{origin.url}/json", json={"amount": 50})
        assert spent() == (27, 0)


@BOTH
def test_redirects_are_charged(lib: ModuleType, origin: Any, gate: Any, spent: Any) -> None:
    """A redirect is two real requests, and two charges."""
    both_colours(lib, gate, lambda get: get("GET", f"{origin.url}/a?do=redirect"), follow_redirects=True)
    assert len(origin.arrivals) == 4
    assert spent() == (4, 0)


@BOTH
def test_refusal_is_the_librarys_own_error(lib: ModuleType, origin: Any, gate: Any) -> None:
    """A rejected call raises what existing except clauses catch, and what Ratekeeper's users catch; nothing is sent."""

    def use(get: Any) -> Any:
        while len(origin.arrivals) < 2:
            get("GET", f"{origin.url}/few")
        with pytest.raises(lib.TransportError) as caught:
            get("GET", f"{origin.url}/few")
        return caught.value

    for error in both_colours(lib, gate, use):
        assert isinstance(error, Rejected)
        assert isinstance(error, DeadlineExceeded | Blocked)
        assert error.retry_at is not None and error.retry_at > time.time()
        assert error.request.url.path == "/few"
    assert len(origin.arrivals) == 2


@BOTH
def test_signed_request_fails_fast(lib: ModuleType, origin: Any, gate: Any) -> None:
    """A signed request that would have to wait beyond its window is refused at once, and the error says so."""
    signed = {"timestamp": int(time.time() * 1000), "signature": "s", "recvWindow": 5000}
    with lib.Client(transport=Transport(gate=gate, verify=False)) as client:
        for _ in range(2):
            assert client.post(f"{origin.url}/few", params=signed).status_code == 200
        began = time.monotonic()
        with pytest.raises(lib.TransportError, match="already signed") as caught:
            client.post(f"{origin.url}/few", data=signed)
    assert isinstance(caught.value, SignatureWouldExpire)
    assert time.monotonic() - began < 1
    assert len(origin.arrivals) == 2


@BOTH
def test_error_bodies_stay_unread(lib: ModuleType, origin: Any, gate: Any) -> None:
    """The body of a refusal is read for the rules, and the caller can still read it in any way."""
    with lib.Client(transport=Transport(gate=gate, verify=False)) as client:
        assert client.get(f"{origin.url}/a?do=zipped-refusal").json()["code"] == -1102
        with client.stream("GET", f"{origin.url}/a?do=zipped-refusal") as response:
            assert b"".join(response.iter_raw())[:2] == b"\x1f\x8b"
        with client.stream("GET", f"{origin.url}/a?do=zipped-refusal") as response:
            assert b"-1102" in b"".join(response.iter_bytes())

    async def main() -> None:
        async with lib.AsyncClient(transport=AsyncTransport(gate=gate, verify=False)) as made:
            assert (await made.get(f"{origin.url}/a?do=zipped-refusal")).json()["code"] == -1102
            async with made.stream("GET", f"{origin.url}/a?do=zipped-refusal") as response:
                assert b"-1102" in b"".join([chunk async for chunk in response.aiter_bytes()])

    asyncio.run(main())


@BOTH
def test_refusals_are_understood(lib: ModuleType, origin: Any, gate: Any) -> None:
    """A 429 whose body names the limit reaches the gate as throttled."""
    kinds: list[str] = []
    gate.on(lambda event: kinds.append(event.kind))
    with lib.Client(transport=Transport(gate=gate, verify=False)) as client:
        assert client.get(f"{origin.url}/priced?do=refuse").status_code == 429
    assert "throttled" in kinds


@BOTH
def test_unsent_is_refunded(lib: ModuleType, origin: Any, gate: Any, spent: Any) -> None:
    """A request that never got a connection costs nothing."""
    origin.server.shutdown()
    origin.server.server_close()

    def use(get: Any) -> None:
        with pytest.raises(lib.ConnectError):
            get("GET", f"{origin.url}/a")

    both_colours(lib, gate, use)
    assert spent() == (0, 0)


@BOTH
@pytest.mark.parametrize("do", ["reset", "hang"])
def test_unanswered_stays_charged(lib: ModuleType, do: str, origin: Any, gate: Any, spent: Any) -> None:
    """A request that was sent and never answered stays in flight: it may have counted."""

    def use(get: Any) -> None:
        with pytest.raises(lib.TransportError):
            get("GET", f"{origin.url}/a?do={do}", timeout=0.2)

    both_colours(lib, gate, use)
    assert sum(spent()) == 2


@BOTH
def test_cancelled_stays_charged(lib: ModuleType, origin: Any, gate: Any, spent: Any) -> None:
    """A task cancelled after it sent leaves its charge behind."""

    async def main() -> None:
        async with lib.AsyncClient(transport=AsyncTransport(gate=gate, verify=False)) as client:
            task = asyncio.create_task(client.get(f"{origin.url}/a?do=hang"))
            while not origin.arrivals:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    assert sum(spent()) == 1


@BOTH
def test_stream_holds_its_slot(lib: ModuleType, origin: Any, gate: Any, spent: Any) -> None:
    """A slot is held until the last byte, or until the reader leaves."""
    with lib.Client(transport=Transport(gate=gate, verify=False)) as client:
        with client.stream("GET", f"{origin.url}/stream?do=stream") as response:
            assert spent("streams")[1] == 1
            origin.more.release(3)
            assert response.read() == b"part0\npart1\npart2\n"
        assert spent("streams") == (0, 0)
        with client.stream("GET", f"{origin.url}/stream?do=stall"):
            assert spent("streams")[1] == 1
        assert spent("streams") == (0, 0)

    async def main() -> None:
        async with lib.AsyncClient(transport=AsyncTransport(gate=gate, verify=False)) as made:
            async with made.stream("GET", f"{origin.url}/stream?do=stream") as response:
                assert spent("streams")[1] == 1
                origin.more.release(3)
                assert [line async for line in response.aiter_lines()] == ["part0", "part1", "part2"]
            assert spent("streams") == (0, 0)

    asyncio.run(main())


@BOTH
def test_waits_outside_the_clients_timeout(lib: ModuleType, origin: Any, gate: Any) -> None:
    """The client's own timeout does not count the wait for a permit."""

    def use(get: Any) -> int:
        with gate.permit("testland", "GET", "/stream"), gate.permit("testland", "GET", "/stream") as second:
            threading.Timer(0.4, second.refund).start()
            origin.more.release(3)
            return int(get("GET", f"{origin.url}/stream?do=stream", timeout=0.3).status_code)

    assert both_colours(lib, gate, use) == [200, 200]


@BOTH
def test_other_hosts_pass(lib: ModuleType, gate: Any, origin: Any) -> None:
    """A host without rules passes untouched, and is counted."""
    there = origin.url.replace("127.0.0.1", "localhost")
    both_colours(lib, gate, lambda get: get("GET", f"{there}/a").raise_for_status())
    assert len(origin.arrivals) == 2
    assert list(gate.untouched_hosts.values()) == [2]
    assert gate.read().ledgers == []


@BOTH
def test_inner_transport(lib: ModuleType, gate: Any, origin: Any, spent: Any) -> None:
    """A transport of one's own can be wrapped, and one made here takes options."""
    mock = lib.MockTransport(lambda request: lib.Response(404, json={"code": 7}))
    with lib.Client(transport=Transport(mock, gate=gate)) as client:
        assert client.get(f"{origin.url}/a").json() == {"code": 7}
    assert spent() == (1, 0)
    with lib.Client(transport=Transport(gate=gate, http1=True, retries=1)) as client:
        assert client.get(f"{origin.url}/a").json()["ok"]
    with pytest.raises(TypeError, match="retries"):
        Transport(mock, gate=gate, retries=1)


@BOTH
def test_hooks_are_where_we_think(lib: ModuleType) -> None:
    """What `patch` replaces exists and is what every client goes through; an upgrade that moves it fails here."""
    assert "handle_request" in vars(lib.HTTPTransport)
    assert "handle_async_request" in vars(lib.AsyncHTTPTransport)
    for kind in (lib.Client, lib.AsyncClient):
        client = kind()
        assert type(client._transport) in (lib.HTTPTransport, lib.AsyncHTTPTransport)
    assert issubclass(lib.ByteStream, lib.SyncByteStream) and issubclass(lib.ByteStream, lib.AsyncByteStream)


@BOTH
def test_trio(lib: ModuleType, gate: Any, origin: Any, spent: Any) -> None:
    """On trio, where the gate cannot await, it waits in a thread."""
    trio = pytest.importorskip("trio")

    async def main() -> None:
        async with lib.AsyncClient(transport=AsyncTransport(gate=gate, verify=False)) as client:
            with gate.permit("testland", "GET", "/stream"), gate.permit("testland", "GET", "/stream") as second:
                threading.Timer(0.2, second.refund).start()
                origin.more.release(3)
                assert (await client.get(f"{origin.url}/stream?do=stream")).text == "part0\npart1\npart2\n"

    trio.run(main)
    assert spent("streams") == (0, 0)


# -- proxies of the environment ------------------------------------------------------------------------------------------


@pytest.fixture
def proxy() -> Iterator[ForwardProxy]:
    """A proxy that notes what it is asked for."""
    with ForwardProxy("127.0.0.1") as made:
        yield made


@BOTH
@pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY"])
def test_the_environments_proxy_is_used(
    lib: ModuleType, variable: str, origin: Any, gate: Any, spent: Any, proxy: ForwardProxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """As the client does without `transport=`; each call is charged once, on the default address."""
    monkeypatch.setenv(variable.lower(), proxy.url)
    assert both_colours(lib, gate, lambda get: get("GET", f"{origin.url}/a").status_code) == [200, 200]
    assert [asked for asked, _ in proxy.asked] == [f"{origin.url}/a"] * 2
    assert spent() == (2, 0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert both_colours(lib, gate, lambda get: get("GET", f"{origin.url}/a").status_code) == [200, 200]
    assert (len(proxy.asked), len(origin.arrivals)) == (2, 4)


@BOTH
def test_whoever_says_otherwise_gets_no_proxy_of_the_environment(
    lib: ModuleType, origin: Any, gate: Any, proxy: ForwardProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`trust_env=False` of the transport, and a proxy of its own."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with lib.Client(transport=Transport(gate=gate, verify=False, trust_env=False)) as client:
        assert client.get(f"{origin.url}/a").status_code == 200
    with lib.Client(transport=Transport(gate=gate, verify=False, proxy=proxy.url)) as client:
        assert client.get(f"{origin.url}/a").status_code == 200
    assert len(proxy.asked) == 1
    with lib.Client(transport=Transport(gate=gate, verify=False)) as client, pytest.raises(lib.ConnectError):
        client.get(f"{origin.url}/a")


@BOTH
def test_behind_the_environments_proxy_no_address_is_chosen(
    lib: ModuleType, gate: Any, proxy: ForwardProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The calls leave from where the proxy is, so they count on the default address."""
    with lib.Client(transport=Transport(gate=gate, verify=False)) as client:
        assert any_address(client, "http://testland.test/a")
    monkeypatch.setenv("http_proxy", proxy.url)
    with lib.Client(transport=Transport(gate=gate, verify=False)) as client:
        assert not any_address(client, "http://testland.test/a")
        assert any_address(client, "https://testland.test/a")
