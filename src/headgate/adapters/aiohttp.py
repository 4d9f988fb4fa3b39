"""aiohttp: ``ClientSession(middlewares=(middleware,))``.

The middleware sees every request, also redirects and aiohttp's own resend on a dropped connection. aiohttp counts
what a middleware waits in ``ClientTimeout.total``: leave `total` unset and use ``sock_connect`` and ``sock_read``.
Under ``headgate run`` the first wait happens before the clock of the timeout starts (`patch`).
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import weakref
from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from aiohttp import ClientError, ClientResponse, StreamReader, payload
from aiohttp.base_protocol import BaseProtocol
from yarl import URL

from headgate.adapters._call import Attempt, Governor, Steps, drive_async, peek, take
from headgate.adapters._wire import Outbound, netloc_of

if TYPE_CHECKING:
    from headgate import Gate

__all__ = ["Middleware", "middleware", "patch"]

log = logging.getLogger("headgate")

_RENEW_EVERY = 1.0
"""Seconds between two looks at whether more of a streamed answer has come."""


class Middleware:
    """A governed client middleware.

    Args:
        gate: the gate to ask; ``None`` is the process's shared one.
        priority: class of every call through this middleware; ``None`` leaves it to the context and the route.
    """

    __slots__ = ("governor",)

    def __init__(self, gate: Gate | None = None, *, priority: Any = None, lenient: bool = False) -> None:
        self.governor = Governor(gate, priority=priority, lenient=lenient)

    async def __call__(self, request: Any, handler: Callable[[Any], Awaitable[Any]]) -> Any:
        """Waits for leave, sends, and tells the gate what came back."""
        outbound = _outbound(request)
        attempt = take(outbound.netloc)
        send = functools.partial(handler, request)
        if attempt is None:
            flow = self.governor.exchange(outbound, send, _observe, family=_family, is_async=True)
        elif attempt.observed_above:
            return await send()
        else:
            flow = attempt.carry(send, _observe)
        return await drive_async(flow)


middleware = Middleware()
"""The middleware that asks the process's shared gate."""


def patch(module: ModuleType) -> None:
    """Governs every session of an unchanged program, also those made earlier.

    Each request gets our middleware as its innermost one, and waits for its first hop before aiohttp's timeout starts.

    Args:
        module: ``aiohttp``.
    """
    original = module.ClientSession._request
    if "middlewares" not in inspect.signature(original).parameters:
        log.warning("headgate: this aiohttp is older than 3.12; its requests pass ungoverned")
        return
    ours = Middleware(lenient=True)

    @functools.wraps(original)
    async def _request(self: Any, method: str, str_or_url: Any, *, middlewares: Any = None, **kw: Any) -> Any:
        chain = self._middlewares if middlewares is None else middlewares
        present = next((item for item in chain if isinstance(item, Middleware)), None)
        if present is None:
            chain = (*chain, ours)
        governor = (present or ours).governor
        outbound = _planned(self, method, str_or_url, kw)
        if outbound is None or peek(outbound.netloc) is not None:
            return await original(self, method, str_or_url, middlewares=chain, **kw)
        attempt = await drive_async(governor.begin(outbound, _family, is_async=True))
        if attempt is None:
            return await original(self, method, str_or_url, middlewares=chain, **kw)
        try:
            with attempt.below(observed_above=False):
                response = await original(self, method, str_or_url, middlewares=chain, **kw)
        except BaseException as error:
            attempt.failed(error, unsent=attempt.spare)
            raise
        if attempt.spare:
            attempt.unsent()
        return response

    module.ClientSession._request = _request


# --- requests ---------------------------------------------------------------------------------------------------


def _outbound(request: Any) -> Outbound:
    body = request.body
    # A payload of bytes can be read as often as one likes; any other kind is left alone.
    content = body.decode("latin-1") if isinstance(body, payload.BytesPayload) else None
    return _from_yarl(request.method, request.url, request.headers, content)


def _from_yarl(method: str, url: URL, headers: Any, body: bytes | str | None) -> Outbound:
    netloc = netloc_of(url.scheme, url.raw_host or "", url.port)
    return Outbound(method.upper(), url.scheme, netloc, url.raw_path, url.raw_query_string, headers, body)


def _planned(session: Any, method: str, str_or_url: Any, options: dict[str, Any]) -> Outbound | None:
    """What a session is about to send, before it has built its request; ``None`` if that cannot be told."""
    try:
        url = session._build_url(str_or_url)
        if options.get("params"):
            url = url.extend_query(options["params"])
        headers = session.headers.copy()
        headers.update(options.get("headers") or {})
        data, body = options.get("data"), None
        if isinstance(data, (bytes, str)):
            body = data
        elif isinstance(data, (dict, list, tuple)):
            body = urlencode(data, doseq=True)
            headers.setdefault("Content-Type", "application/x-www-form-urlencoded")
        elif options.get("json") is not None:
            body = session.json_serialize(options["json"])
            headers.setdefault("Content-Type", "application/json")
        return _from_yarl(method, url, headers, body) if url.raw_host else None
    except (TypeError, ValueError):
        return None  # not ours to report: aiohttp will, and the middleware still gates what it does send


def _family() -> type[Exception]:
    return ClientError


# --- answers ----------------------------------------------------------------------------------------------------


def _observe(attempt: Attempt, response: ClientResponse) -> Steps[ClientResponse]:
    status, headers = response.status, response.headers
    if attempt.wants_body(status):
        body = yield response.read
        response.content = _unread(body)
        attempt.answered(status, headers, body)
    elif attempt.slots and not response.closed and status != 101:
        _hold(attempt, response)
    else:
        attempt.answered(status, headers)
    return response


def _unread(body: bytes) -> StreamReader:
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
