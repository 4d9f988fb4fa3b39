"""Answers of aiohttp: what they tell, how long they hold a slot, and how one is made that no connection gave."""

from __future__ import annotations

import asyncio
import inspect
import weakref
from collections.abc import Callable
from http.client import responses
from typing import Any

from aiohttp import ClientResponse, HttpVersion11, RequestInfo, StreamReader
from aiohttp.base_protocol import BaseProtocol
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from ratekeeper.adapters._call import Attempt
from ratekeeper.gate.errand import Reply, Served
from ratekeeper.gate.steps import Steps

__all__ = ["labelled", "made", "observe", "unread"]

_RENEW_EVERY = 1.0
"""Seconds between two looks at whether more of a streamed answer has come."""


def observe(attempt: Attempt, response: ClientResponse) -> Steps[ClientResponse]:
    status, headers = response.status, response.headers
    if attempt.wants_body(status):
        body = yield response.read
        response.content = unread(body)
        attempt.answered(status, headers, body)
    elif attempt.slots and not response.closed and status != 101:
        _hold(attempt, response)
    else:
        attempt.answered(status, headers)
    return response


def unread(body: bytes) -> StreamReader:
    """A stream that gives the body once more, for a caller who reads ``response.content``."""
    loop = asyncio.get_running_loop()
    stream = StreamReader(BaseProtocol(loop=loop), 2**16, loop=loop)
    stream.feed_data(body)
    stream.feed_eof()
    return stream


def _hold(attempt: Attempt, response: ClientResponse) -> None:
    """Keeps the slot until the last byte, or until the response is closed or forgotten."""
    status, headers = response.status, response.headers
    watched = weakref.ref(response)
    loop = asyncio.get_running_loop()
    seen = -1
    timer: asyncio.TimerHandle

    def done() -> None:
        timer.cancel()
        attempt.answered(status, headers)

    def look() -> None:
        nonlocal seen, timer
        current = watched()
        if current is None or current.closed:
            done()
            return
        if current.content.total_bytes != seen:
            seen = current.content.total_bytes
            attempt.streaming()
        timer = loop.call_later(_RENEW_EVERY, look)

    timer = loop.call_later(_RENEW_EVERY, look)
    response.content.on_eof(done)
    for name in ("close", "release"):
        setattr(response, name, _then(getattr(ClientResponse, name), watched, done))


def _then(
    method: Callable[[ClientResponse], Any], watched: weakref.ref[ClientResponse], done: Callable[[], None]
) -> Any:
    """A method of one response that also says that its reader has left. Holds no reference to the response."""

    def leave() -> Any:
        current = watched()
        done()
        return method(current) if current is not None else None

    return leave


def made(request: Any, method: str, url: URL, session: Any, reply: Reply, served: Served) -> ClientResponse:
    """An answer that no connection gave. aiohttp has no public way to make one."""
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
    """What an answer wants to know of the request that was not sent."""

    output_size = 0


def labelled(response: Any, served: Served) -> None:
    headers = CIMultiDict(response.headers)
    headers.update(served.headers())
    response._headers = CIMultiDictProxy(headers)
    response._cache.pop("headers", None)
