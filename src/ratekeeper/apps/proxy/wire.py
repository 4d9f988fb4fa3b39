"""What passes through unchanged, and what belongs to one connection only: headers, bodies, answers."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Iterable
from contextvars import ContextVar
from functools import lru_cache
from typing import TYPE_CHECKING

from aiohttp import hdrs, web
from multidict import CIMultiDict

if TYPE_CHECKING:
    from aiohttp import StreamReader

    from ratekeeper.gate.call import Call

__all__ = ["LEASES", "Leases", "Passed", "body_of", "kept", "passed", "readable", "spelled", "unpacked"]

SMALL = 65_536
"""Bytes of a request body that are read before it is sent on; the rules look at no larger ones."""
_MOST = 32 << 20
"""Bytes of an unpacked answer that the rules are shown at most."""
_RENEW = 15.0
"""Seconds between two renewals of a permit whose answer is still on its way; its lease is a minute. The first renewal comes
after one to two times that."""

_HOP = frozenset(
    """connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding upgrade
    expect host""".split()  # noqa: SIM905 - a table reads better
)
"""Headers of one connection (RFC 9110, 7.6.1), and two that are made anew for the next."""
_CODINGS = frozenset({"gzip", "deflate", "identity", "x-gzip"})


def spelled(raw: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    """Headers as they were written: aiohttp's own mapping respells the names that it knows."""
    found = []
    for name, value in raw:
        found.append((_name(name), value.decode("utf-8", "surrogateescape")))
    return found


@lru_cache(512)
def _name(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


@lru_cache(512)
def _stays(name: str) -> bool:
    """Whether a header belongs to the connection, or is our own."""
    low = name.lower()
    return low in _HOP or low.startswith("x-ratekeeper-")


def passed(headers: Iterable[tuple[str, str]]) -> CIMultiDict[str]:
    """The headers that go on: in their order and spelling, without those of the connection and our own."""
    going: CIMultiDict[str] = CIMultiDict()
    named: list[str] = []
    for name, value in headers:
        if not _stays(name):
            going.add(name, value)
        elif name.lower() == "connection":
            named += [part.strip() for part in value.split(",")]
    for name in named:
        going.popall(name, None)
    return going


def readable(headers: CIMultiDict[str]) -> None:
    """Ask only for codings that the rules can read too: a refusal may be told in the body alone."""
    asked = headers.get(hdrs.ACCEPT_ENCODING)
    if not asked:
        return
    known = [part.strip() for part in asked.split(",") if part.partition(";")[0].strip().lower() in _CODINGS]
    if len(known) <= asked.count(","):
        headers[hdrs.ACCEPT_ENCODING] = ", ".join(known) or "identity"


def unpacked(body: bytes, coding: str) -> bytes | None:
    """A body as the rules read it; None if it cannot be unpacked, or would be huge."""
    if coding in ("", "identity"):
        return body
    for form in (47, -15):  # gzip or zlib, as its first bytes tell; some servers send deflate without either's head
        try:
            engine = zlib.decompressobj(form)
            found = engine.decompress(body, _MOST)
        except zlib.error:
            continue
        return found if engine.eof else None
    return None


async def body_of(request: web.BaseRequest) -> bytes | AsyncIterator[bytes] | None:
    """The body of a request: whole if it is small or the rules may want it, else as it comes; None: there is none."""
    if not request.body_exists:
        return None
    content, length = request.content, request.content_length
    kind = request.headers.get(hdrs.CONTENT_TYPE, "")
    if length is not None and length > SMALL:
        return _stream(request, b"")
    if length is None and "json" not in kind and "form" not in kind:
        return _stream(request, b"")
    await _invite(request)
    head = bytearray()
    while len(head) <= SMALL and not content.at_eof():
        head += await content.readany()
    return bytes(head) if content.at_eof() else _stream(request, bytes(head))


async def _stream(request: web.BaseRequest, head: bytes) -> AsyncIterator[bytes]:
    if head:
        yield head
    else:
        await _invite(request)
    async for chunk in request.content.iter_any():
        yield chunk


async def _invite(request: web.BaseRequest) -> None:
    """A client that asked whether its body is wanted may send it now."""
    if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer itself has not begun


class Passed(web.StreamResponse):
    """An answer that is passed on unchanged: aiohttp adds no header of its own."""

    _send_headers_immediately = False

    async def _prepare_headers(self) -> None:
        headers = self._headers
        kind, dated, server = hdrs.CONTENT_TYPE in headers, hdrs.DATE in headers, hdrs.SERVER in headers
        await super()._prepare_headers()
        if not kind:
            headers.popall(hdrs.CONTENT_TYPE, None)
        if not dated:
            headers.popall(hdrs.DATE, None)
        if not server:
            headers.popall(hdrs.SERVER, None)

    async def begin(self, request: web.BaseRequest, content: StreamReader) -> None:
        """Send the head; alone if no byte of the body is here yet, since it may come much later."""
        if hdrs.CONTENT_LENGTH not in self._headers and request.version < (1, 1):
            self.force_close()  # the end of the connection is the end of the body
        writer = await self.prepare(request)
        if writer is not None and not content.total_bytes:
            writer.send_headers()


class Leases:
    """Renews the permits of all calls whose answers are on their way, with one timer."""

    def __init__(self) -> None:
        self.held: set[Call] = set()
        self._seen: set[Call] = set()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, call: Call) -> None:
        """Renew it from now on, until it is taken out of `held`."""
        self.held.add(call)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_RENEW, self._renew)

    def _renew(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(_RENEW, self._renew) if self.held else None
        for call in self._seen & self.held:  # the others began a moment ago
            loop.call_soon(self._renew_one, call)
        self._seen = self.held.copy()

    def _renew_one(self, call: Call) -> None:
        if call in self.held:
            call.streaming()


LEASES: ContextVar[Leases] = ContextVar("ratekeeper_proxy_leases")
"""Those of the proxy whose request is answered; its server sets it for all its connections."""


class kept:  # noqa: N801 - it reads like the function that it would be, were that as fast
    """Holds a call's permit for as long as the block takes."""

    __slots__ = ("_call", "_leases")

    def __init__(self, call: Call | None) -> None:
        self._call = call

    def __enter__(self) -> None:
        if self._call is not None:
            self._leases = LEASES.get()
            self._leases.add(self._call)

    def __exit__(self, *_: object) -> None:
        if self._call is not None:
            self._leases.held.discard(self._call)
