"""ratekeeper.apps.proxy.forward: real bytes in, real bytes out."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import socket
import threading
import time
from typing import Any

import aiohttp
import pytest
from raw import answer

STRANGE = "/a//b/../%2F%zz;x|y?q=%2F1&b=@x&&c=+%20&list=[1,2]&sig=A%3d%3D"


def test_the_request_goes_on_byte_for_byte(raw: Any, proxied: Any) -> None:
    """Path, query, header spelling, order, repetition and body arrive as they were sent; nothing is added."""
    request = (
        f"POST /testland{STRANGE} HTTP/1.1\r\nhost: localhost\r\nX-MiXed: 1\r\nAccept: a\r\nx-key: k1\r\nAccept: b\r\n"
        "Content-Type: text/weird\r\nContent-Length: 4\r\nConnection: X-Hop\r\nX-Hop: 1\r\nTE: trailers\r\n"
        "X-Ratekeeper-Priority: low\r\nX-Ratekeeper-Timeout: 3\r\n\r\n"
    ).encode() + b"\x00\xffa\n"

    async def use(here: Any) -> None:
        reader, writer = await here.connect()
        writer.write(request)
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    proxied(use)
    assert raw.requests == [
        f"POST {STRANGE} HTTP/1.1\r\nHost: {raw.place}\r\nX-MiXed: 1\r\nAccept: a\r\nx-key: k1\r\nAccept: b\r\n"
        "Content-Type: text/weird\r\nContent-Length: 4\r\n\r\n".encode()
        + b"\x00\xffa\n"
    ]


@pytest.mark.parametrize("tail", ["", "/", "/?", "/x?", "?a=1", "/x?a=1?b=2", "/./a/..//", "/%23#frag"])
def test_what_follows_the_name_is_the_target(tail: str, raw: Any, proxied: Any) -> None:
    """Also an empty query stays, and a path that climbs within itself."""
    proxied(lambda here: here.get(f"/testland{tail}"))
    wanted = tail if tail.startswith("/") else f"/{tail}"
    assert raw.requests[0].split(b" ")[1].decode() == wanted


def test_the_answer_comes_back_byte_for_byte(raw: Any, proxied: Any) -> None:
    """Status, reason, header spelling and repetition, and a packed body; the connection's own headers stay behind."""
    body = gzip.compress(b'{"a": 1}')
    head = (
        b"HTTP/1.1 299 All Is Odd\r\nX-oDD: 1\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2; Path=/\r\nContent-Encoding: gzip"
    )
    raw.acts["/a"] = lambda c: c.sendall(answer(body, head + b"\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1"))
    found, got = proxied(lambda here: here.ask(b"GET /testland/a HTTP/1.1\r\nHost: localhost\r\n\r\n"))
    assert found.split(b"\r\n") == [*head.split(b"\r\n"), b"Content-Length: %d" % len(body), b"Connection: close"]
    assert got == body


@pytest.mark.parametrize(
    ("method", "head", "wanted"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n", [b"Content-Length: 999"]),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n", [b"ETag: x"]),
        ("DELETE", b"HTTP/1.1 204 No Content\r\n\r\n", []),
        (
            "GET",
            b"HTTP/1.1 302 Found\r\nLocation: /b\r\nContent-Length: 0\r\n\r\n",
            [b"Location: /b", b"Content-Length: 0"],
        ),
        (
            "OPTIONS",
            b"HTTP/1.1 200 OK\r\nAllow: GET\r\nContent-Length: 0\r\n\r\n",
            [b"Allow: GET", b"Content-Length: 0"],
        ),
    ],
)
def test_answers_without_a_body(method: str, head: bytes, wanted: list[bytes], raw: Any, proxied: Any) -> None:
    """They keep their headers, redirects are not followed, and the connection serves the next call."""
    raw.acts["/a"] = lambda c: c.sendall(head) or True

    async def use(here: Any) -> bytes:
        reader, writer = await here.connect()
        for _ in range(2):
            writer.write(f"{method} /testland/a HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            found = await reader.readuntil(b"\r\n\r\n")
        writer.close()
        return bytes(found)

    lines = proxied(use)[:-4].split(b"\r\n")
    assert lines == [head.split(b"\r\n")[0], *wanted]
    assert len(raw.requests) == 2


def test_a_long_body_streams_in_and_is_charged_once(raw: Any, proxied: Any, spent: Any) -> None:
    """A body of unknown or great length goes on in chunks, and arrives whole."""
    part = bytes(range(256)) * 1024

    async def use(here: Any) -> None:
        async def parts() -> Any:
            for _ in range(8):
                yield part

        async with aiohttp.ClientSession(f"http://127.0.0.1:{here.port}") as session:
            async with session.put("/testland/a", data=parts()) as chunked:
                assert (await chunked.read()).count(part[:256]) >= 8 * 1024 - 8  # chunk borders may cut a few
            async with session.put("/testland/a", data=io.BytesIO(part * 8)) as whole:
                assert (await whole.read()).endswith(part * 8)

    proxied(use)
    assert b"Transfer-Encoding: chunked" in raw.requests[0] and b"Content-Length: 2097152\r\n" in raw.requests[1]
    assert spent() == (2, 0)


def test_the_rules_see_forms_and_json(raw: Any, proxied: Any, spent: Any) -> None:
    """Costs that a body names are charged, also when the body's length is not announced."""

    async def use(here: Any) -> None:
        form, told = "Content-Type: application/x-www-form-urlencoded", "Content-Type: application/json"
        assert (await here.get("/testland/form", form, method="POST", body=b"amount=50"))[0] == 200
        assert (await here.get("/testland/json", told, method="POST", body=b'{"amount": 50}'))[0] == 200
        chunked = (
            f"POST /testland/json HTTP/1.1\r\nHost: localhost\r\n{told}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        await here.ask(chunked + b'e\r\n{"amount": 50}\r\n0\r\n\r\n')
        assert (await here.get("/testland/priced?limit=50"))[0] == 200

    proxied(use)
    assert spent() == (9 + 11 + 11 + 7, 0)
    assert raw.requests[2].endswith(b'{"amount": 50}')


def test_expect_continue(raw: Any, proxied: Any) -> None:
    """A client that asks first is told to go on; one whose call is refused never sends its body."""

    async def use(here: Any) -> None:
        ask = b"POST /testland/few HTTP/1.1\r\nHost: localhost\r\nContent-Length: 70000\r\nExpect: 100-continue\r\n"
        for _ in range(2):
            reader, writer = await here.connect()
            writer.write(ask + b"\r\n")
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(b"x" * 70000)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            writer.close()
        reader, writer = await here.connect()
        writer.write(ask + b"X-Ratekeeper-Timeout: 0\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 429 ")
        writer.close()

    proxied(use)
    assert [request.count(b"x" * 70000) for request in raw.requests] == [1, 1]
    assert not any(b"Expect" in request for request in raw.requests)


def test_an_answer_streams_through(raw: Any, proxied: Any, spent: Any) -> None:
    """Head, then each part, reach the client before the next has left the provider; a slot is held to the end."""
    more = threading.Semaphore(0)

    def stream(connection: socket.socket) -> bool:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(3):
            more.acquire(timeout=20)
            connection.sendall(b"9\r\ndata: %d\n\n\r\n" % number)
        connection.sendall(b"0\r\n\r\n")
        return True

    raw.acts["/stream"] = stream

    async def use(here: Any) -> None:
        reader, writer = await here.connect()
        writer.write(b"GET /testland/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"text/event-stream" in await reader.readuntil(b"\r\n\r\n")
        for number in range(3):
            assert spent("streams") == (0, 1)
            more.release()
            assert await reader.readuntil(b"\n\n\r\n") == b"9\r\ndata: %d\n\n\r\n" % number
        assert await reader.readuntil(b"\r\n\r\n") == b"0\r\n\r\n"
        writer.close()
        await until(lambda: spent("streams") == (0, 0))

    proxied(use)


async def until(holds: Any) -> None:
    """Lets the loop turn until something is so; the test's own timeout ends it otherwise."""
    while not holds():
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("head", [b"Content-Length: 100", b"Transfer-Encoding: chunked"])
def test_a_body_cut_short_is_cut_short_for_the_client(head: bytes, raw: Any, proxied: Any) -> None:
    """The client sees a broken answer, not a whole one."""
    raw.acts["/a"] = lambda c: c.sendall(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n" + b"5\r\nabcde\r\n")

    async def use(here: Any) -> None:
        async with (
            aiohttp.ClientSession(f"http://127.0.0.1:{here.port}") as session,
            session.get("/testland/a") as response,
        ):
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.read()

    proxied(use)


def test_an_unknown_length_ends_with_the_connection_for_old_clients(raw: Any, proxied: Any) -> None:
    """HTTP/1.0 knows no chunks."""
    raw.acts["/a"] = lambda c: c.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
    head, body = proxied(lambda here: here.ask(b"GET /testland/a HTTP/1.0\r\n\r\n"))
    assert body == b"abc" and b"chunked" not in head


def test_a_client_that_leaves_gives_its_slot_back(raw: Any, proxied: Any, spent: Any) -> None:
    """In mid-stream the provider's connection is closed and the slot is free; one that waits leaves the queue."""
    gone = threading.Event()

    def stall(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n")
        if not connection.recv(1):
            gone.set()

    raw.acts["/stream"] = stall

    async def use(here: Any) -> None:
        writers = []
        for _ in range(3):  # two slots: the third waits
            reader, writer = await here.connect()
            writer.write(b"GET /testland/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
            writers.append(writer)
            if len(writers) < 3:
                await reader.readuntil(b"part")
        room = here.proxy._gate.room
        await until(lambda: room.count == 1)
        writers[2].close()
        await until(lambda: room.count == 0)
        assert spent("streams") == (0, 2)
        for writer in writers[:2]:
            writer.close()
        await until(lambda: spent("streams") == (0, 0))
        await asyncio.to_thread(gone.wait, 10)

    proxied(use)
    assert gone.is_set()
    assert len(raw.requests) == 2


def test_nothing_to_connect_to(raw: Any, proxied: Any, spent: Any) -> None:
    """502 at once, and nothing is charged."""
    raw.__exit__()
    status, body = proxied(lambda here: here.get("/testland/a"))
    error = json.loads(body)["error"]
    assert (status, error["sent"], error["by"]) == (502, "no", "ratekeeper")
    assert spent() == (0, 0)


def test_an_order_without_an_answer_is_not_sent_again(raw: Any, proxied: Any, spent: Any) -> None:
    """502 says that its fate is unknown, and it stays charged."""
    raw.acts["/a"] = lambda c: None
    status, body = proxied(lambda here: here.get("/testland/a?signed=x", method="DELETE"))
    error = json.loads(body)["error"]
    assert (status, error["sent"]) == (502, "unknown")
    assert b"signed" not in body
    assert len(raw.requests) == 1
    assert sum(spent()) == 1


def test_a_dropped_connection_is_not_tried_once_more_after_the_signature_has_expired(raw: Any, proxied: Any) -> None:
    """The client hears of the first attempt."""
    raw.acts["/a"] = lambda c: time.sleep(0.8)
    signed = f"timestamp={int(time.time() * 1000)}&recvWindow=700&signature=abc"
    status, body = proxied(lambda here: here.get(f"/testland/a?{signed}"))
    assert (status, json.loads(body)["error"]["sent"]) == (502, "unknown")
    assert len(raw.requests) == 1


def test_a_dropped_connection_is_tried_once_more_with_a_permit_of_its_own(raw: Any, proxied: Any, spent: Any) -> None:
    """Only for methods that change nothing; each attempt is charged."""
    raw.acts["/a"] = lambda c: c.sendall(answer(b"yes")) or True if len(raw.requests) > 1 else None
    assert proxied(lambda here: here.get("/testland/a")) == (200, b"yes")
    assert len(raw.requests) == 2
    assert sum(spent()) == 2


def test_silence_is_a_504(raw: Any, proxied: Any, spent: Any) -> None:
    """An upstream that says nothing for too long."""
    raw.acts["/a"] = lambda c: c.recv(1)
    status, body = proxied(lambda here: here.get("/testland/a", method="POST", body=b"x"), silence=0.2)
    assert (status, json.loads(body)["error"]["sent"]) == (504, "unknown")
    assert sum(spent()) == 1


def test_refusals_of_the_provider_are_understood_and_passed_on(raw: Any, gate: Any, proxied: Any) -> None:
    """Also when they are packed: the client gets the bytes, the gate learns of it."""
    kinds: list[str] = []
    gate.on(lambda event: kinds.append(event.kind))
    body = gzip.compress(b'{"code": -1003, "msg": "Too many"}')
    head = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Encoding: gzip"
    raw.acts["/a"] = lambda c: c.sendall(answer(body, head))
    assert proxied(lambda here: here.get("/testland/a", "Accept-Encoding: gzip, br;q=0.5, zstd")) == (429, body)
    assert "throttled" in kinds
    assert b"\r\nAccept-Encoding: gzip\r\n" in raw.requests[0]


def test_a_signed_call_does_not_wait_beyond_its_signature(raw: Any, proxied: Any) -> None:
    """It is refused at once, and its body is asked about too; an expired one also where nothing makes it wait."""
    now = int(time.time() * 1000)

    async def use(here: Any) -> list[Any]:
        for _ in range(2):
            await here.get("/testland/few")
        form = "Content-Type: application/x-www-form-urlencoded"
        signed = f"timestamp={now}&signature=abc"
        expired = f"timestamp={now - 9000}&signature=abc"
        return [
            await here.get(f"/testland/a?{expired}"),
            await here.get(f"/testland/few?{signed}"),
            await here.get("/testland/few", form, method="POST", body=signed.encode()),
        ]

    for status, body in proxied(use):
        assert status == 429
        assert json.loads(body)["error"]["kind"] == "SignatureWouldExpire"
        assert b"abc" not in body
    assert len(raw.requests) == 2
