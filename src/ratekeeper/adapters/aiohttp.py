"""aiohttp: ``ClientSession(middlewares=(middleware,))``.

The middleware sees every request, also redirects and aiohttp's own resend on a dropped connection. aiohttp counts
what a middleware waits in ``ClientTimeout.total``: leave `total` unset and use ``sock_connect`` and ``sock_read``, or give
the session to `govern`: then, as under ``ratekeeper run``, the wait comes before the clock of the timeout starts. To leave
from several addresses a session needs our `Connector` as well.
"""

from __future__ import annotations

import copy
import functools
import inspect
from base64 import b64encode
from collections.abc import Awaitable, Callable
from types import MethodType, ModuleType
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlencode

from aiohttp import ClientError, SocketTimeoutError, TCPConnector, payload
from multidict import CIMultiDict
from yarl import URL

from ratekeeper.adapters._aiohttp_answers import labelled, made, observe, unread
from ratekeeper.adapters._aiohttp_sockets import join
from ratekeeper.adapters._call import Attempt, Steps, drive_async, leaving, peek, take
from ratekeeper.adapters._errand import Governed, kept_headers, run
from ratekeeper.adapters._governor import Governor
from ratekeeper.adapters._line import dialling
from ratekeeper.adapters._wire import Outbound, netloc_of
from ratekeeper.errors import Blocked
from ratekeeper.gate.errand import Reply, Served

if TYPE_CHECKING:
    from ratekeeper.gate.gate import Gate
    from ratekeeper.rules.call import Call

__all__ = ["Connector", "Middleware", "govern", "govern_sockets", "governs", "middleware", "patch", "roams"]

S = TypeVar("S")


class Middleware:
    """A governed client middleware.

    Args:
        gate: the gate to ask; ``None`` is the process's shared one.
        priority: class of every call through this middleware; ``None`` leaves it to the context and the route.
        max_wait: seconds that a call may wait, also for the end of a ban or a pause; ``None``: as the gate says, which
            refuses at once what is shut for long.
    """

    __slots__ = ("governor",)

    def __init__(
        self, gate: Gate | None = None, *, priority: Any = None, max_wait: float | None = None, lenient: bool = False
    ) -> None:
        self.governor = Governor(gate, priority=priority, lenient=lenient, timeout=max_wait)

    async def __call__(self, request: Any, handler: Callable[[Any], Awaitable[Any]]) -> Any:
        """Waits for leave, sends, and tells the gate what came back."""
        outbound = _outbound(request)
        attempt = take(outbound.netloc)
        send = functools.partial(handler, request)
        if attempt is not None and attempt.observed_above:
            return await send()
        if attempt is not None:
            return await drive_async(attempt.carry(send, observe))
        rules = self.governor.match(outbound, _family)
        if rules is None:
            return await send()
        free = _free(request.session) and request.proxy is None
        errand = _Hop(self.governor, outbound, rules, is_async=True, family=_family, roams=free)
        errand.request, errand.handler = request, handler
        errand.replayable = not request.body or isinstance(request.body, payload.BytesPayload)
        return await drive_async(run(errand))


middleware = Middleware()
"""The middleware that asks the process's shared gate."""


def govern(session: S, *, gate: Gate | None = None, priority: Any = None, max_wait: float | None = None) -> S:
    """Governs a session that exists already, in place, and returns it.

    Args:
        session: a ``ClientSession``.
        gate: the gate to ask; ``None`` is the process's shared one.
        priority: class of every call of this session; ``None`` leaves it to the context and the route.
        max_wait: seconds that a call may wait, also for the end of a ban or a pause; ``None``: as the gate says, which
            refuses at once what is shut for long.
    """
    target: Any = session
    if not any(isinstance(item, Middleware) for item in target._middlewares):
        ours = Middleware(gate, priority=priority, max_wait=max_wait)
        target._middlewares = (*target._middlewares, ours)
        # aiohttp would rather be subclassed; but this one is made already.
        object.__setattr__(target, "_request", MethodType(_asking(type(target)._request, ours), target))
        govern_sockets(target, ours.governor)
    return session


def govern_sockets(session: Any, governor: Governor) -> None:
    """Governs the websockets of a session, and nothing else of it."""
    if "_ws_connect" not in vars(session):
        hook = _dialling(type(session)._ws_connect, governor)
        object.__setattr__(session, "_ws_connect", MethodType(hook, session))


def patch(module: ModuleType) -> None:
    """Governs every session of an unchanged program, also those made earlier.

    Each request gets our middleware as its innermost one, and waits for its first hop before aiohttp's timeout starts.

    Args:
        module: ``aiohttp``.
    """
    original = module.ClientSession._request
    if "middlewares" not in inspect.signature(original).parameters:
        raise RuntimeError("this aiohttp is older than 3.12, and its requests cannot be governed: upgrade it")
    ours = Middleware(lenient=True)
    module.ClientSession._request = _asking(original, ours)
    module.ClientSession._ws_connect = _dialling(module.ClientSession._ws_connect, ours.governor)
    for name, hook in _hooks(TCPConnector).items():
        setattr(module.TCPConnector, name, hook)


def _asking(original: Any, ours: Middleware) -> Callable[..., Awaitable[Any]]:
    """What takes the place of a session's method for all its requests: the wait, and whatever else is done around a call,
    comes before aiohttp's own timeout starts. Further hops, such as redirects, wait in the middleware."""

    @functools.wraps(original)
    async def _request(self: Any, method: str, str_or_url: Any, *, middlewares: Any = None, **kw: Any) -> Any:
        chain = self._middlewares if middlewares is None else middlewares
        present = next((item for item in chain if isinstance(item, Middleware)), None)
        if present is None:
            chain = (*chain, ours)
        governor = (present or ours).governor
        send = functools.partial(original, middlewares=chain, **kw)
        outbound = _planned(self, method, str_or_url, kw)
        if outbound is None or peek(outbound.netloc) is not None:
            return await send(self, method, str_or_url)
        rules = governor.match(outbound, _family)
        if rules is None:
            return await send(self, method, str_or_url)
        free = roams(self) and not kw.get("proxy")
        errand = _Request(governor, outbound, rules, is_async=True, family=_family, roams=free)
        errand.session, errand.url, errand.send = self, str_or_url, send
        errand.replayable = kw.get("data") is None or isinstance(kw["data"], (bytes, str, dict, list, tuple))
        return await drive_async(run(errand))

    return _request


def _dialling(original: Any, ours: Governor) -> Callable[..., Awaitable[Any]]:
    """What takes the place of a session's method for all its websockets: dials and messages wait for their limits."""

    @functools.wraps(original)
    async def _ws_connect(self: Any, url: Any, **options: Any) -> Any:
        shown = CIMultiDict(options.get("headers") or {})
        shown["Upgrade"] = "websocket"
        known = {"headers": shown, "params": options.get("params")}
        outbound = _planned(self, options.get("method", "GET"), url, known)
        if outbound is None or peek(outbound.netloc) is not None:
            return await original(self, url, **options)
        governor = next((item.governor for item in self._middlewares if isinstance(item, Middleware)), ours)
        free = roams(self) and not options.get("proxy")
        line = await drive_async(dialling(governor, outbound, _family, is_async=True, roams=free))
        if line is None:
            return await original(self, url, **options)
        try:
            with line.attempt.below():
                socket = await original(self, url, **options)
        except BaseException as error:
            status = getattr(error, "status", 0)
            line.failed(error, (status, getattr(error, "headers", None) or {}, b"") if status else None)
            raise
        return await join(socket, line)

    return _ws_connect


# --- one call ---------------------------------------------------------------------------------------------------


class _Hop(Governed):
    """One request as the middleware sees it: each redirect is another."""

    request: Any
    handler: Callable[[Any], Awaitable[Any]]

    def once(self, attempt: Attempt) -> Steps[Any]:
        return (yield from attempt.carry(functools.partial(self.handler, self.request), observe))

    def untouched(self) -> Steps[Any]:
        return (yield functools.partial(self.handler, self.request))

    def late(self, seconds: float) -> Exception:
        return SocketTimeoutError(f"no answer within {seconds:g} s")

    def read(self, response: Any) -> Steps[tuple[Reply | None, Any]]:
        body = yield response.read
        response.content = unread(body)
        return Reply(response.status, kept_headers(response.headers.items()), body), response

    def answer(self, reply: Reply, served: Served) -> Any:
        return made(self.request, self.request.method, self.request.url, self.request.session, reply, served)

    def label(self, response: Any, served: Served) -> None:
        labelled(response, served)

    def discard(self, response: Any) -> Steps[None]:
        response.release()
        return
        yield

    def other(self, call: Call) -> _Hop:
        made = _Hop(self.governor, self.outbound, self.rules, is_async=True, family=self.family, roams=self.roams)
        url = self.request.url.with_path(call.path).with_query(_query(call))
        made.request, made.handler = _copied(self.request, url), self.handler
        made.outbound = _outbound(made.request)
        made.call = made.outbound.call()
        return made


class _Request(Governed):
    """One request as a session is asked for it: what waits here is not in aiohttp's own timeout."""

    session: Any
    url: Any
    send: Callable[..., Awaitable[Any]]

    def once(self, attempt: Attempt) -> Steps[Any]:
        try:
            with attempt.below(observed_above=False):
                response = yield functools.partial(self.send, self.session, self.outbound.method, self.url)
        except BaseException as error:
            attempt.failed(error, unsent=attempt.spare)
            raise
        if attempt.spare:
            attempt.unsent()
        return response

    def untouched(self) -> Steps[Any]:
        return (yield functools.partial(self.send, self.session, self.outbound.method, self.url))

    late = _Hop.late
    read = _Hop.read
    label = _Hop.label
    discard = _Hop.discard

    def answer(self, reply: Reply, served: Served) -> Any:
        url = URL(f"{self.outbound.base_url}{self.outbound.path}", encoded=True).with_query(self.outbound.query)
        return made(None, self.outbound.method, url, self.session, reply, served)

    def shut(self, block: Blocked) -> Steps[Any]:
        answer = yield from super().shut(block)
        # What the session does with a bad answer, where it sees it come.
        wanted = self.send.keywords.get("raise_for_status")  # type: ignore[attr-defined]
        wanted = self.session._raise_for_status if wanted is None else wanted
        if callable(wanted):
            yield functools.partial(wanted, answer)
        elif wanted:
            answer.raise_for_status()
        return answer

    def other(self, call: Call) -> _Request:
        url = URL(self.outbound.base_url).with_path(call.path).with_query(_query(call))
        outbound = _from_yarl(self.outbound.method, url, self.outbound.headers, None)
        made = _Request(self.governor, outbound, self.rules, is_async=True, family=self.family, roams=self.roams)
        options = {name: value for name, value in self.send.keywords.items() if name not in {"params", "data", "json"}}  # type: ignore[attr-defined]
        made.session, made.url = self.session, url
        made.send = functools.partial(self.send.func, **options)  # type: ignore[attr-defined]
        return made


def _query(call: Call) -> dict[str, str]:
    return {name: str(value) for name, value in (call.params or {}).items()}


def _copied(request: Any, url: URL) -> Any:
    made = copy.copy(request)
    made.url = url
    return made


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
            self.ratekeeper_others = options, {}

    @functools.wraps(connects)
    async def connect(self: Any, req: Any, traces: Any, timeout: Any) -> Any:
        address = leaving(netloc_of(req.url.scheme, req.url.raw_host or "", req.url.port))
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


def governs(session: Any, url: str) -> bool:
    """Whether requests of a session ask a gate, as all do under ``ratekeeper run``."""
    return hasattr(type(session)._request, "__wrapped__")


def _free(session: Any) -> bool:
    return hasattr(session.connector, "ratekeeper_others")


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
