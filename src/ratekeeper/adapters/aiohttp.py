"""aiohttp: ``ClientSession(middlewares=(middleware,))``.

The middleware sees every request, also redirects and aiohttp's own resend on a dropped connection. aiohttp includes the
wait of a middleware in ``ClientTimeout.total``. So leave `total` unset and use ``sock_connect`` and ``sock_read``, or give
the session to `govern`: then, as under ``ratekeeper run``, the call waits before the timeout starts. To send from several
addresses a session needs our `Connector` as well.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
from collections.abc import Awaitable, Callable
from types import MethodType, ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import urlencode

from aiohttp import ClientError, FormData, SocketTimeoutError, TCPConnector, payload
from multidict import CIMultiDict
from yarl import URL

from ratekeeper.adapters._aiohttp_parts import Connector, connector_hooks, hold, joined, labelled, made, unread
from ratekeeper.adapters._client import ClientCall, OuterCall, enter
from ratekeeper.adapters._governor import Governor
from ratekeeper.adapters._line import Refused, dialled
from ratekeeper.adapters._wire import Outbound, netloc_of
from ratekeeper.errors import Blocked
from ratekeeper.gate.call import Call, Reply, Served, peek
from ratekeeper.gate.steps import Steps, drive_async

if TYPE_CHECKING:
    from ratekeeper.gate.gate import Gate
    from ratekeeper.rules.call import Request

__all__ = ["Connector", "Middleware", "any_address", "govern", "govern_sockets", "governs", "middleware", "patch"]

S = TypeVar("S")


class Middleware:
    """A governed client middleware.

    Args:
        gate: the gate to ask; ``None``: the process's shared one.
        priority: priority of every call through this middleware; ``None``: the context and the route decide.
        max_wait: seconds that a call may wait, also for the end of a ban or a pause; ``None``: the gate's settings, which
            refuse a call at once if a block lasts long.
    """

    __slots__ = ("governor",)

    def __init__(
        self, gate: Gate | None = None, *, priority: Any = None, max_wait: float | None = None, lenient: bool = False
    ) -> None:
        self.governor = Governor(gate, priority=priority, lenient=lenient, timeout=max_wait)

    async def __call__(self, request: Any, handler: Callable[[Any], Awaitable[Any]]) -> Any:
        """Wait for a permit, send, and report the response to the gate."""
        return await drive_async(
            enter(
                _MiddlewareCall, self.governor, _outbound(request), request, handler,
                family=_family, is_async=True, any_address=_free(request.session) and request.proxy is None,
                replayable=not request.body or isinstance(request.body, payload.BytesPayload),
            )
        )  # fmt: skip


middleware = Middleware()
"""The middleware that asks the process's shared gate."""


def govern(session: S, *, gate: Gate | None = None, priority: Any = None, max_wait: float | None = None) -> S:
    """Govern an existing session in place and return it.

    Args:
        session: a ``ClientSession``.
        gate, priority, max_wait: as for `Middleware`.
    """
    target: Any = session
    if not any(isinstance(item, Middleware) for item in target._middlewares):
        ours = Middleware(gate, priority=priority, max_wait=max_wait)
        target._middlewares = (*target._middlewares, ours)
        # aiohttp expects a subclass, but this session exists already.
        object.__setattr__(target, "_request", MethodType(_asking(type(target)._request, ours), target))
        govern_sockets(target, ours.governor)
    return session


def govern_sockets(session: Any, governor: Governor) -> None:
    """Govern only the websockets of a session."""
    if "_ws_connect" not in vars(session):
        hook = _dialling(type(session)._ws_connect, governor)
        object.__setattr__(session, "_ws_connect", MethodType(hook, session))


def patch(module: ModuleType) -> None:
    """Govern every session of an unchanged program, also earlier ones.

    Our middleware is the innermost one of each request. The first hop waits before aiohttp's timeout starts.

    Args:
        module: ``aiohttp``.
    """
    original = module.ClientSession._request
    if "middlewares" not in inspect.signature(original).parameters:
        raise RuntimeError("this aiohttp is older than 3.12, and its requests cannot be governed: upgrade it")
    ours = Middleware(lenient=True)
    module.ClientSession._request = _asking(original, ours)
    module.ClientSession._ws_connect = _dialling(module.ClientSession._ws_connect, ours.governor)
    for name, hook in connector_hooks(TCPConnector).items():
        setattr(module.TCPConnector, name, hook)


def any_address(session: Any, url: str = "") -> bool:
    """Whether requests of a session (to any URL) leave from the address that the gate chooses: its connector is ours, and
    neither the session nor the environment names a proxy. The caller checks for a proxy of a single request."""
    return _free(session) and not (session._default_proxy or session._trust_env)


def governs(session: Any, url: str) -> bool:
    """Whether requests of a session ask a gate, as all do under ``ratekeeper run``."""
    return hasattr(type(session)._request, "__wrapped__")


def _free(session: Any) -> bool:
    return hasattr(session.connector, "ratekeeper_others")


def _family() -> type[Exception]:
    return ClientError


# --- hooks ------------------------------------------------------------------------------------------------------


def _asking(original: Any, ours: Middleware) -> Callable[..., Awaitable[Any]]:
    """Replace a session's method for all its requests: the call waits and the policies run before aiohttp's own timeout
    starts. Further hops, such as redirects, wait in the middleware."""

    @functools.wraps(original)
    async def _request(self: Any, method: str, str_or_url: Any, *, middlewares: Any = None, **kw: Any) -> Any:
        chain = self._middlewares if middlewares is None else middlewares
        present = next((item for item in chain if isinstance(item, Middleware)), None)
        if present is None:
            chain = (*chain, ours)
        options = {"middlewares": chain, **kw}
        outbound = _planned(self, method, str_or_url, kw)
        if outbound is None or peek(outbound.netloc) is not None:
            return await original(self, method, str_or_url, **options)

        def send(asked: _Asked) -> Awaitable[Any]:
            return original(self, method, asked.url, **asked.options)  # type: ignore[no-any-return]

        data = kw.get("data")
        return await drive_async(
            enter(
                _SessionCall, (present or ours).governor, outbound, _Asked(self, str_or_url, options), send,
                family=_family, is_async=True, any_address=any_address(self) and not kw.get("proxy"),
                replayable=data is None or isinstance(data, (bytes, str, dict, list, tuple)),
            )
        )  # fmt: skip

    return _request


def _dialling(original: Any, ours: Governor) -> Callable[..., Awaitable[Any]]:
    """Replace a session's method for all its websockets: dials and messages wait for their limits."""

    @functools.wraps(original)
    async def _ws_connect(self: Any, url: Any, **options: Any) -> Any:
        shown = CIMultiDict(options.get("headers") or {})
        shown["Upgrade"] = "websocket"
        known = {"headers": shown, "params": options.get("params")}
        outbound = _planned(self, options.get("method", "GET"), url, known)
        if outbound is None or peek(outbound.netloc) is not None:
            return await original(self, url, **options)
        governor = next((item.governor for item in self._middlewares if isinstance(item, Middleware)), ours)
        socket, line = await drive_async(
            dialled(
                governor, outbound, _family, functools.partial(original, self, url, **options),
                refused=_refused, leave=_leave, is_async=True, any_address=any_address(self) and not options.get("proxy"),
            )
        )  # fmt: skip
        return socket if line is None else joined(socket, line)

    return _ws_connect


def _refused(error: BaseException) -> Refused | None:
    status = getattr(error, "status", 0)
    return (status, getattr(error, "headers", None) or {}, b"") if status else None


async def _leave(socket: Any) -> None:
    await asyncio.shield(asyncio.ensure_future(socket.close()))


# --- one call ---------------------------------------------------------------------------------------------------


class _Answers(ClientCall):
    """The handling of aiohttp's responses."""

    def read_body(self, response: Any) -> Steps[tuple[bytes | None, Any]]:
        body = yield response.read
        response.content = unread(body)
        return body, response

    def hold_slot(self, owner: Call, response: Any) -> bool:
        if response.closed or response.status == 101:
            return False
        hold(owner.until_read(response.status, response.headers), response)
        return True

    def late(self, seconds: float) -> Exception:
        return SocketTimeoutError(f"no answer within {seconds:g} s")

    def label(self, response: Any, served: Served) -> None:
        labelled(response, served)

    def discard(self, response: Any) -> Steps[None]:
        response.release()
        return
        yield


class _MiddlewareCall(_Answers):
    """One request as the middleware sees it. Each redirect is another request."""

    def answer(self, reply: Reply, served: Served) -> Any:
        return made(self.native, self.native.method, self.native.url, self.native.session, reply, served)

    def other(self, request: Request) -> _MiddlewareCall:
        native = copy.copy(self.native)
        native.url = native.url.with_path(request.path).with_query(_query(request))
        return self.another(_outbound(native), native)


class _Asked(NamedTuple):
    """The arguments of a session's request."""

    session: Any
    url: Any
    options: dict[str, Any]


class _SessionCall(_Answers, OuterCall):
    """One request at the session's method. aiohttp's own timeout does not include the wait here."""

    native: _Asked

    def answer(self, reply: Reply, served: Served) -> Any:
        url = URL(f"{self.outbound.base_url}{self.outbound.path}", encoded=True).with_query(self.outbound.query)
        return made(None, self.outbound.method, url, self.native.session, reply, served)

    def blocked_answer(self, block: Blocked) -> Steps[Any]:
        answer = yield from super().blocked_answer(block)
        # Handle an error status as the session does.
        wanted = self.native.options.get("raise_for_status")
        wanted = self.native.session._raise_for_status if wanted is None else wanted
        if callable(wanted):
            yield functools.partial(wanted, answer)
        elif wanted:
            answer.raise_for_status()
        return answer

    def other(self, request: Request) -> _SessionCall:
        url = URL(self.outbound.base_url).with_path(request.path).with_query(_query(request))
        options = {name: value for name, value in self.native.options.items() if name not in {"params", "data", "json"}}
        outbound = _from_yarl(self.outbound.method, url, self.outbound.headers, None)
        return self.another(outbound, _Asked(self.native.session, url, options))


def _query(request: Request) -> dict[str, str]:
    return {name: str(value) for name, value in (request.params or {}).items()}


# --- requests ---------------------------------------------------------------------------------------------------


def _outbound(request: Any) -> Outbound:
    body = request.body
    # A payload of bytes can be read repeatedly; leave any other kind alone.
    content = body.decode("latin-1") if isinstance(body, payload.BytesPayload) else None
    return _from_yarl(request.method, request.url, request.headers, content)


def _from_yarl(method: str, url: URL, headers: Any, body: bytes | str | None) -> Outbound:
    netloc = netloc_of(url.scheme, url.raw_host or "", url.port)
    return Outbound(method.upper(), url.scheme, netloc, url.raw_path, url.raw_query_string, headers, body)


def _planned(session: Any, method: str, str_or_url: Any, options: dict[str, Any]) -> Outbound | None:
    """Return the request that a session is about to build; ``None``: unknown."""
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
        elif isinstance(data, FormData) and not data.is_multipart:
            form: Any = data()
            body = form.decode()
            headers.setdefault("Content-Type", form.content_type)
        elif options.get("json") is not None:
            body = session.json_serialize(options["json"])
            headers.setdefault("Content-Type", "application/json")
        return _from_yarl(method, url, headers, body) if url.raw_host else None
    except (TypeError, ValueError):
        return None  # aiohttp reports the error, and the middleware still governs what it sends
