"""ratekeeper.apps.proxy.server: who may come in, where calls go, and what is said instead of an answer."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from datetime import datetime
from typing import Any

import aiohttp
import pytest

from ratekeeper.apps.proxy.upstreams import Upstream


def error_of(found: tuple[int, bytes]) -> dict[str, Any]:
    """What the proxy says of itself."""
    told: dict[str, Any] = json.loads(found[1])["error"]
    assert told["by"] == "ratekeeper"
    return told


def test_the_list_and_the_health(raw: Any, proxied: Any) -> None:
    """The root names the upstreams and where they lead; an unknown one is told the same."""

    async def use(here: Any) -> None:
        status, body = await here.get("/")
        assert status == 200
        assert json.loads(body)["upstreams"]["testland"] == raw.url
        assert await here.get("/healthz") == (200, b'{"ok": true}')
        missing = await here.get("/nowhere/x?secret=1")
        assert missing[0] == 404
        assert error_of(missing)["upstreams"]["testland"] == raw.url
        assert b"secret" not in missing[1]

    proxied(use)
    assert raw.requests == []


def test_it_is_no_forward_proxy(raw: Any, proxied: Any) -> None:
    """A whole URL, or a host that no rules name, leads nowhere."""

    async def use(here: Any) -> None:
        for target in (f"{raw.url}/a", "*", "/example.org/a", f"/x@{raw.place}/a", "/127.0.0.1:1/a"):
            status = (await here.get(target, method="OPTIONS"))[0]
            assert status in (400, 404), target

    proxied(use)
    assert raw.requests == []


@pytest.mark.parametrize("shown", ["X-Ratekeeper-Token: t-1", "/t/t-1"])
def test_the_token_in_a_header_or_in_the_path(shown: str, raw: Any, proxied: Any) -> None:
    """Nobody gets further without it, and it never goes on."""
    header, prefix = (shown, "") if ":" in shown else ("X: 1", shown)

    async def use(here: Any) -> None:
        for path in ("/", "/testland/a", "/t/t-2/testland/a", "/t/t-1x/"):
            assert (await here.get(path))[0] == 401
        assert (await here.get("/testland/a", "X-Ratekeeper-Token: t-2"))[0] == 401
        assert (await here.get("/healthz"))[0] == 200
        assert (await here.get(f"{prefix}/", header))[0] == 200
        assert (await here.get(f"{prefix}/testland/a?b=1", header))[0] == 200

    proxied(use, token="t-1")
    assert len(raw.requests) == 1
    assert raw.requests[0].startswith(b"GET /a?b=1 HTTP/1.1\r\n")
    assert b"t-1" not in raw.requests[0]


def test_a_refusal_explains_itself(raw: Any, proxied: Any) -> None:
    """429: which limit, whose, until when, who spent it, what to do; Retry-After is never too early."""

    async def use(here: Any) -> Any:
        for _ in range(2):
            assert (await here.get("/testland/few"))[0] == 200
        return await here.ask(b"GET /testland/few HTTP/1.1\r\nHost: localhost\r\nX-Ratekeeper-Timeout: 1.5\r\n\r\n")

    head, body = proxied(use)
    assert head.startswith(b"HTTP/1.1 429 ") and b"X-Ratekeeper-Error: DeadlineExceeded" in head
    after = int(head.split(b"Retry-After: ")[1].split(b"\r\n")[0])
    told = json.loads(body)["error"]
    assert (told["limit"], told["retry_after"]) == ("few-1d", after)
    assert told["scope"].startswith(f"testland@{raw.place}/few-1d/")
    until = datetime.fromisoformat(told["until"]).timestamp()
    assert until <= time.time() + after < until + 2
    assert [(spender["taken"], spender["priority"]) for spender in told["spent_by"]] == [(2, "high")]
    assert "X-Ratekeeper-Timeout" in told["remedy"]
    assert len(raw.requests) == 2


def test_a_long_ban_is_told_in_the_providers_form(raw: Any, gate: Any, proxied: Any) -> None:
    """Nothing is sent upstream, and nobody waits; the client gets what the provider would say, and until when."""
    gate.block(gate.scope("testland/ip:default"), 75, "ban", "asked too much")
    gate.max_wait = 900
    begun = time.monotonic()
    head, body = proxied(lambda here: here.ask(b"GET /testland/a HTTP/1.1\r\nHost: localhost\r\n\r\n"))
    assert time.monotonic() - begun < 30
    assert head.startswith(b"HTTP/1.1 429 ")
    assert 45 <= int(head.split(b"Retry-After: ")[1].split(b"\r\n")[0]) <= 75
    assert b"X-Ratekeeper-Error: Blocked" in head and b"x-ratekeeper-answer: refused" in head
    told = json.loads(body)
    assert told["code"] == -1003
    assert "asked too much" in told["message"]
    assert raw.requests == []


def test_a_short_ban_is_waited_for(raw: Any, gate: Any, proxied: Any) -> None:
    """So is a long one by a client that says for how long it waits, and that ends in time."""
    gate.block(gate.scope("testland/ip:default"), 0.4, "ban", "asked too much")
    begun = time.monotonic()
    assert proxied(lambda here: here.get("/testland/a"))[0] == 200
    assert time.monotonic() - begun >= 0.3
    gate.max_block_wait = 0.0
    gate.block(gate.scope("testland/ip:default"), 0.4, "ban", "asked too much")
    assert proxied(lambda here: here.get("/testland/a", "X-Ratekeeper-Timeout: 20"))[0] == 200


def test_a_pause_without_end_says_how_to_end_it(raw: Any, gate: Any, proxied: Any) -> None:
    """Nobody can know when: ask again in a minute."""
    gate.block(gate.scope("testland"), None, reason="for lunch")
    head, body = proxied(lambda here: here.ask(b"GET /testland/a HTTP/1.1\r\nHost: localhost\r\n\r\n"))
    assert b"Retry-After: 60\r\n" in head
    assert "for lunch" in json.loads(body)["message"]
    assert "ratekeeper resume testland" in json.loads(body)["message"]


def test_what_never_fits_is_not_worth_a_retry(raw: Any, gate: Any, proxied: Any) -> None:
    """No Retry-After: it would never help."""
    gate.store.learn(gate.provider("testland").namespace, {"requests-1d": (5, 86_400_000_000_000)})
    head, body = proxied(lambda here: here.ask(b"GET /testland/priced?limit=50 HTTP/1.1\r\nHost: localhost\r\n\r\n"))
    assert head.startswith(b"HTTP/1.1 429 ") and b"Retry-After" not in head and b"X-Should-Retry: false" in head
    assert json.loads(body)["error"]["kind"] == "CannotFit"


def test_clients_steer(raw: Any, gate: Any, proxied: Any) -> None:
    """The class decides who goes first; how long a call waited is told; nonsense is 400."""

    async def use(here: Any) -> None:
        for header in ("X-Ratekeeper-Priority: soon", "X-Ratekeeper-Timeout: long", "X-Ratekeeper-Timeout: -1"):
            assert (await here.get("/testland/a", header))[0] == 400
        gate.block(gate.scope("testland"), 4)  # for so long they wait
        calls = []
        for priority in ("low", "critical"):
            lines = f"GET /testland/{priority} HTTP/1.1\r\nHost: localhost\r\nX-Ratekeeper-Priority: {priority}\r\n\r\n"
            calls.append(asyncio.create_task(here.ask(lines.encode())))
            while gate.room.count < len(calls):
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.01)  # less than a millisecond is not told
        gate.unblock(gate.scope("testland"))
        for head, _ in await asyncio.gather(*calls):
            assert int(head.split(b"X-Ratekeeper-Waited: ")[1].split(b"\r\n")[0]) >= 1

    proxied(use)
    assert sorted(request.split(b" ")[1] for request in raw.requests) == [b"/critical", b"/low"]
    rows = [rows for view in gate.read().ledgers if "/requests-1d/" in view.key for rows in view.rows]
    assert sorted(priority for _, priority in rows) == [0, 3]


def test_an_upstream_of_ones_own(raw: Any, gate: Any, proxied: Any) -> None:
    """What has no rules passes, and is counted; what is not named is not served."""

    async def use(here: Any) -> None:
        assert (await here.get("/mine/a?b=%2f"))[0] == 200
        assert (await here.get("/testland/a"))[0] == 404

    proxied(use, wanted={"mine": Upstream("http", f"localhost:{raw.port}", "/v1")})
    assert raw.requests[0].startswith(b"GET /v1/a?b=%2f HTTP/1.1\r\n")
    assert gate.untouched_hosts == {f"localhost:{raw.port}": 1}


def test_stopping_finishes_what_was_sent(raw: Any, gate: Any, proxied: Any) -> None:
    """A call on its way gets its answer, one that waits is told to come again, and no new one is sent."""
    import threading

    go = threading.Event()

    def slow(connection: Any) -> bool:
        go.wait(20)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        return True

    raw.acts["/slow"] = slow

    async def use(here: Any) -> None:
        sent = asyncio.create_task(here.get("/testland/slow"))
        while not raw.requests:
            await asyncio.sleep(0.005)
        gate.block(gate.scope("testland"), 4)
        waits = asyncio.create_task(here.get("/testland/a"))
        while not gate.room.count:
            await asyncio.sleep(0.005)
        here.proxy.stop()
        status, body = await waits
        assert (status, json.loads(body)["error"]["kind"]) == (503, "Stopping")
        go.set()
        assert await sent == (200, b"ok")

    proxied(use)
    assert len(raw.requests) == 1


def test_an_error_of_our_own_quotes_nothing(
    raw: Any, proxied: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever fails inside: neither the log nor the answer holds the query."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("http://x/?signature=abc")

    monkeypatch.setattr(aiohttp.ClientSession, "request", fail)
    with caplog.at_level(logging.DEBUG):
        status, body = proxied(lambda here: here.get("/testland/a?signature=abc"))
    assert (status, error_of((status, body))["kind"]) == (500, "RuntimeError")
    assert "RuntimeError while" in caplog.text
    assert b"abc" not in body and "abc" not in caplog.text


def test_a_line_that_is_no_http_is_not_logged(
    proxied: Any, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """It may hold a signature."""
    with caplog.at_level(logging.DEBUG):
        head, _ = proxied(lambda here: here.ask(b"GET /testland/a?signature=abc\xff HTTP/1.1\r\n\r\n"))
    assert b" 400 " in head
    assert "abc" not in caplog.text + "".join(capfd.readouterr())
