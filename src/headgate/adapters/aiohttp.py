"""aiohttp: ``ClientSession(middlewares=(middleware,))``.

The middleware sees every request, also redirects and aiohttp's own resend on a dropped connection. aiohttp counts
what a middleware waits in ``ClientTimeout.total``: leave `total` unset and use ``sock_connect`` and ``sock_read``.
Under ``headgate run`` the first wait happens before the clock of the timeout starts (`patch`). To leave from several
addresses a session needs our `Connector` as well.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import weakref
from base64 import b64encode
from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlencode

from aiohttp import ClientError, ClientResponse, StreamReader, TCPConnector, payload
from aiohttp.base_protocol import BaseProtocol
from multidict import CIMultiDict
from yarl import URL

from headgate.adapters._call import Attempt, Governor, Steps, drive_async, leaving, peek, take
from headgate.adapters._wire import Outbound, netloc_of

if TYPE_CHECKING:
    from headgate import Gate

__all__ = ["Connector", "Middleware", "govern", "middleware", "patch", "roams"]

log = logging.getLogger("headgate")

S = TypeVar("S")

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
        if attempt is not None and attempt.observed_above:
            return await send()
        free = _free(request.session) and request.proxy is None
        flow = self.governor.exchange(
            outbound, send, _observe, family=_family, is_async=True, roams=free, first=attempt
        )
        return await drive_async(flow)


middleware = Middleware()
"""The middleware that asks the process's shared gate."""


def govern(session: S, *, gate: Gate | None = None, priority: Any = None) -> S:
    """Governs a session that exists already, in place, and returns it.

    Args:
        session: a ``ClientSession``.
        gate: the gate to ask; ``None`` is the process's shared one.
        priority: class of every call of this session; ``None`` leaves it to the context and the route.
    """
    target: Any = session
    if not any(isinstance(item, Middleware) for item in target._middlewares):
        target._middlewares = (*target._middlewares, Middleware(gate, priority=priority))
    return session


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
        free = roams(self) and not kw.get("proxy")
        attempt = await drive_async(governor.begin(outbound, _family, is_async=True, roams=free))
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
    for name, hook in _hooks(TCPConnector).items():
        setattr(module.TCPConnector, name, hook)


# --- several addresses ------------------------------------------------------------------------------------------


def _hooks(cls: type[TCPConnector]) -> dict[str, Callable[..., Any]]:
    """What takes the place of three methods of a connector class, so that its connections leave from any address."""
    made, connects, closes = cls.__init__, cls.connect, cls.close

    @functools.wraps(made)
    def begin(self: Any, **options: Any) -> None:
        made(self, **options)
        # One that its user has bound, or whose connections somebody else makes, leaves from where it does.
        ours = type(self) is TCPConnector or isinstance(self, Connector)
        if ours and not options.get("local_addr") and not options.get("socket_factory"):
            self.headgate_others = options, {}

    @functools.wraps(connects)
    async def connect(self: Any, req: Any, traces: Any, timeout: Any) -> Any:
        address = leaving(netloc_of(req.url.scheme, req.url.raw_host or "", req.url.port))
        if address is None or not hasattr(self, "headgate_others"):
            return await connects(self, req, traces, timeout)
        _through(req, address.proxy)
        options, others = self.headgate_others
        other = others.get(address.bind) if address.bind else self
        if other is None:
            other = others[address.bind] = TCPConnector(**options, local_addr=(address.bind, 0))
        return await connects(other, req, traces, timeout)

    @functools.wraps(closes)
    async def close(self: Any, **options: Any) -> None:
        for other in getattr(self, "headgate_others", ((), {}))[1].values():
            await closes(other, **options)
        await closes(self, **options)

    return {"__init__": begin, "connect": connect, "close": close}


class Connector(TCPConnector):
    """A connector whose connections leave from the address that the gate has chosen: give one to your session beside the
    middleware. Arguments as for ``aiohttp.TCPConnector``."""

    locals().update(_hooks(TCPConnector))


def _through(request: Any, proxy: str) -> None:
    """Makes a request go through a proxy, or through none."""
    request.headers.popall("Proxy-Authorization", None)
    if not proxy:
        request.update_proxy(None, None, None)
        return
    url = URL(proxy)
    login = CIMultiDict[str]()
    if url.user:
        said = b64encode(f"{url.user}:{url.password or ''}".encode()).decode("ascii")
        login["Proxy-Authorization"] = f"Basic {said}"
    if not request.is_ssl():  # else only the proxy may see it, when it is asked for a tunnel
        request.headers.update(login)
    request.update_proxy(url.with_user(None), None, login)


def roams(session: Any, url: str = "") -> bool:
    """Whether requests of a session (to any URL) leave from the address that the gate chooses: its connector is one of
    ours, and neither the session nor the environment may name a proxy. One that a request names is the caller's to see."""
    return _free(session) and not (session._default_proxy or session._trust_env)


def _free(session: Any) -> bool:
    return hasattr(session.connector, "headgate_others")


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
