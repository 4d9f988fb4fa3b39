"""Parts of aiohttp: responses (how long they hold a slot, and how to make one without a connection), connections from any
address, and open websockets, whose messages the gate charges before they leave."""

from __future__ import annotations

import asyncio
import functools
import inspect
import weakref
from base64 import b64encode
from collections.abc import Callable
from http.client import responses
from typing import TYPE_CHECKING, Any, Final

from aiohttp import ClientResponse, HttpVersion11, RequestInfo, StreamReader, TCPConnector, WSMsgType
from aiohttp.base_protocol import BaseProtocol
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from ratekeeper.adapters._client import leaving
from ratekeeper.gate.call import Reading, Reply, Served
from ratekeeper.gate.steps import drive_async

if TYPE_CHECKING:
    from ratekeeper.adapters._line import Line

__all__ = ["Connector", "connector_hooks", "hold", "joined", "labelled", "made", "unread"]

_RENEW_EVERY = 1.0
"""Seconds between two checks for more data of a streamed response."""
_DATA: Final = (WSMsgType.TEXT, WSMsgType.BINARY)


def unread(body: bytes) -> StreamReader:
    """Return a stream that gives the body again, for a caller that reads ``response.content``."""
    loop = asyncio.get_running_loop()
    stream = StreamReader(BaseProtocol(loop=loop), 2**16, loop=loop)
    stream.feed_data(body)
    stream.feed_eof()
    return stream


def hold(reading: Reading, response: ClientResponse) -> None:
    """Keep the slot until the last byte, or until the response is closed or garbage-collected."""
    watched = weakref.ref(response)
    loop = asyncio.get_running_loop()
    seen = -1
    timer: asyncio.TimerHandle

    def done() -> None:
        timer.cancel()
        reading.over()

    def look() -> None:
        nonlocal seen, timer
        current = watched()
        if current is None or current.closed:
            done()
            return
        if current.content.total_bytes != seen:
            seen = current.content.total_bytes
            reading.streaming()
        timer = loop.call_later(_RENEW_EVERY, look)

    timer = loop.call_later(_RENEW_EVERY, look)
    response.content.on_eof(done)
    for name in ("close", "release"):
        setattr(response, name, _then(getattr(ClientResponse, name), watched, done))


def _then(
    method: Callable[[ClientResponse], Any], watched: weakref.ref[ClientResponse], done: Callable[[], None]
) -> Any:
    """Wrap a method of one response so that it also reports the end of reading. Holds no reference to the response."""

    def leave() -> Any:
        current = watched()
        done()
        return method(current) if current is not None else None

    return leave


def made(request: Any, method: str, url: URL, session: Any, reply: Reply, served: Served) -> ClientResponse:
    """Make a response without a connection. aiohttp has no public way to do it."""
    loop = asyncio.get_running_loop()
    headers = CIMultiDict([*reply.headers, *served.headers().items()])
    asked = CIMultiDictProxy(CIMultiDict[str]() if request is None else request.headers)
    options: dict[str, Any] = {
        "writer": None,
        "continue100": None,
        "timer": None,
        "request_info": RequestInfo(url, method, asked, url),
        "traces": [],
        "loop": loop,
        "session": session,
        "stream_writer": _Written,
    }
    known = inspect.signature(ClientResponse.__init__).parameters
    answer: Any = ClientResponse(method, url, **{name: value for name, value in options.items() if name in known})
    answer.version, answer.status, answer.reason = HttpVersion11, reply.status, responses.get(reply.status, "")
    answer._headers = CIMultiDictProxy(headers)
    answer._raw_headers = tuple((name.encode(), value.encode()) for name, value in headers.items())
    answer._body = reply.body
    answer.content = unread(reply.body)
    answer._closed = True
    return answer  # type: ignore[no-any-return]


class _Written:
    """The request state that a response reads, for a request that was not sent."""

    output_size = 0


def labelled(response: Any, served: Served) -> None:
    headers = CIMultiDict(response.headers)
    headers.update(served.headers())
    response._headers = CIMultiDictProxy(headers)
    response._cache.pop("headers", None)


# --- several addresses ------------------------------------------------------------------------------------------


def connector_hooks(cls: type[TCPConnector]) -> dict[str, Callable[..., Any]]:
    """Return replacements for three methods of a connector class, so that its connections leave from any address."""
    made, connects, closes = cls.__init__, cls.connect, cls.close

    @functools.wraps(made)
    def begin(self: Any, **options: Any) -> None:
        made(self, **options)
        # A connector that the program has bound, or of another class, keeps its own address.
        ours = type(self) is TCPConnector or isinstance(self, Connector)
        if ours and not options.get("local_addr") and not options.get("socket_factory"):
            self.ratekeeper_others = options, {}

    @functools.wraps(connects)
    async def connect(self: Any, req: Any, traces: Any, timeout: Any) -> Any:
        address = leaving(req.url.scheme, req.url.raw_host or "", req.url.port)
        if address is None or not hasattr(self, "ratekeeper_others"):
            return await connects(self, req, traces, timeout)
        _through(req, address.proxy)
        options, others = self.ratekeeper_others
        other = others.get(address.bind) if address.bind else self
        if other is None:
            other = others[address.bind] = TCPConnector(**options, local_addr=(address.bind, 0))
        return await connects(other, req, traces, timeout)

    @functools.wraps(closes)
    async def close(self: Any, **options: Any) -> None:
        for other in getattr(self, "ratekeeper_others", ((), {}))[1].values():
            await closes(other, **options)
        await closes(self, **options)

    return {"__init__": begin, "connect": connect, "close": close}


class Connector(TCPConnector):
    """A connector whose connections leave from the address that the gate has chosen. Give one to your session in addition
    to the middleware. Arguments as for ``aiohttp.TCPConnector``."""

    locals().update(connector_hooks(TCPConnector))


def _through(request: Any, proxy: str) -> None:
    """Send a request through a proxy, or through none."""
    request.headers.popall("Proxy-Authorization", None)
    if not proxy:
        request.update_proxy(None, None, None)
        return
    url = URL(proxy)
    login = CIMultiDict[str]()
    if url.user:
        said = b64encode(f"{url.user}:{url.password or ''}".encode()).decode("ascii")
        login["Proxy-Authorization"] = f"Basic {said}"
    if not request.is_ssl():  # else only the proxy may see it, in the tunnel request
        request.headers.update(login)
    request.update_proxy(url.with_user(None), None, login)


# --- websockets -------------------------------------------------------------------------------------------------


def joined(socket: Any, line: Line) -> Any:
    """Charge the messages of a websocket that was just opened; return it."""
    # aiohttp sends everything through this writer, its own pongs and heartbeats too.
    socket._writer = _Writer(socket._writer, line)
    _watch(socket, line)
    return socket


class _Writer:
    """The writer of a websocket, which waits for the limits first.

    A close frame does not wait. Nor does a pong, because one message of each window is reserved for it (`Line.opened`).
    """

    def __init__(self, inner: Any, line: Line) -> None:
        self._inner = inner
        self._line = line

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def send_frame(self, message: bytes, opcode: Any, compress: int | None = None) -> None:
        if opcode in _DATA or opcode == WSMsgType.PING:
            shown = bytes(message) if opcode in _DATA else None
            await drive_async(self._line.sending(shown, is_async=True))
        await self._inner.send_frame(message, opcode, compress)


def _watch(socket: Any, line: Line) -> None:
    """Close the line when either side closes the connection, or when it is lost."""
    connection = socket._conn
    protocol = None if connection is None else connection.protocol
    if protocol is None or not protocol.is_connected():  # closed before the hook could see it
        line.close()
        return

    def end(lost: asyncio.Future[None] | None = None) -> None:
        if lost is not None and not lost.cancelled():
            lost.exception()  # marks the exception as retrieved, in case no other code reads it
        line.close()

    connection.add_callback(end)
    lost = getattr(protocol, "closed", None)
    if lost is not None:
        lost.add_done_callback(end)
