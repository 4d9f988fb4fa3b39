"""httpx and httpx2, one body of code: ``httpx.AsyncClient(transport=AsyncTransport())``.

Both classes are plain objects that quack like a transport. Which of the two libraries is meant is read from the
request itself, so one class serves both. The client's own timeouts do not count the wait.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from ratekeeper.adapters._call import Attempt, Steps, drive, drive_async, take
from ratekeeper.adapters._errand import Governed, kept_headers, run
from ratekeeper.adapters._governor import Governor
from ratekeeper.adapters._httpx_bodies import decoded, drain, drain_async, library, streams, unbroken
from ratekeeper.adapters._httpx_pools import Pools, remembering, roaming, sending
from ratekeeper.adapters._wire import Outbound
from ratekeeper.gate.errand import Reply, Served
from ratekeeper.gate.steps import on_asyncio
from ratekeeper.stores.faults import struck

if TYPE_CHECKING:
    from ratekeeper.gate.gate import Gate
    from ratekeeper.rules.call import Call

__all__ = ["AsyncTransport", "Transport", "govern", "governs", "patch", "roams"]

C = TypeVar("C")


class _Base:
    """What both transports share: the gate, and an inner transport made from the first request's own library."""

    def __init__(
        self,
        inner: Any = None,
        *,
        gate: Gate | None = None,
        priority: Any = None,
        max_wait: float | None = None,
        **options: Any,
    ) -> None:
        if inner is not None and options:
            raise TypeError(f"give {', '.join(options)} to the inner transport: it is already made")
        self._governor = Governor(gate, priority=priority, timeout=max_wait)
        self._inner = inner
        self._options = options
        self._making = threading.Lock()

    def _transport(self, request: Any, kind: str) -> Any:
        if self._inner is None:
            with self._making:
                if self._inner is None:
                    module = library(type(request))
                    # How many are under way at once the limits decide, not a pool whose waiting time would end the call.
                    self._options.setdefault("limits", module.Limits(max_keepalive_connections=100))
                    self._inner = roaming(getattr(module, kind)(**self._options), self._options)
        return self._inner


class Transport(_Base):
    """A governed transport for ``httpx.Client`` and ``httpx2.Client``.

    Args:
        inner: the transport that sends, from the default address; ``None`` makes an ``HTTPTransport`` of the client's
            own library, which leaves from any address of a pool.
        gate: the gate to ask; ``None`` is the process's shared one.
        priority: class of every call through this transport; ``None`` leaves it to the context and the route.
        max_wait: seconds that a call may wait, also for the end of a ban or a pause; ``None``: as the gate says, which
            refuses at once what is shut for long.
        **options: for the inner transport when it is made here: ``verify``, ``http2``, ``proxy``, ``limits``...
            A client with ``transport=`` ignores its own.
    """

    def handle_request(self, request: Any) -> Any:
        """Waits for leave, sends, and tells the gate what came back."""
        inner = self._transport(request, "HTTPTransport")
        return drive(_send(self._governor, request, inner, inner.handle_request, is_async=False))

    def __enter__(self) -> Transport:
        if self._inner is not None:
            self._inner.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._inner is not None:
            self._inner.__exit__(*error)

    def close(self) -> None:
        """Closes the inner transport."""
        if self._inner is not None:
            self._inner.close()


class AsyncTransport(_Base):
    """A governed transport for ``httpx.AsyncClient`` and ``httpx2.AsyncClient``. Arguments as for `Transport`."""

    async def handle_async_request(self, request: Any) -> Any:
        """Waits for leave, sends, and tells the gate what came back."""
        inner = self._transport(request, "AsyncHTTPTransport")
        return await drive_async(
            _send(self._governor, request, inner, sending(inner, inner.handle_async_request), is_async=True)
        )

    async def __aenter__(self) -> AsyncTransport:
        if self._inner is not None:
            await self._inner.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        if self._inner is not None:
            await self._inner.__aexit__(*error)

    async def aclose(self) -> None:
        """Closes the inner transport."""
        if self._inner is not None:
            await self._inner.aclose()


def govern(client: C, *, gate: Gate | None = None, priority: Any = None, max_wait: float | None = None) -> C:
    """Governs a client that exists already, in place, with its mounts and proxies, and returns it.

    Args:
        client: a ``Client`` or an ``AsyncClient`` of either library.
        gate: the gate to ask; ``None`` is the process's shared one.
        priority: class of every call of this client; ``None`` leaves it to the context and the route.
        max_wait: seconds that a call may wait, also for the end of a ban or a pause; ``None``: as the gate says, which
            refuses at once what is shut for long.
    """
    target: Any = client
    kind = AsyncTransport if hasattr(target, "aclose") else Transport

    def governed(inner: Any) -> Any:
        return (
            inner
            if inner is None or isinstance(inner, _Base)
            else kind(inner, gate=gate, priority=priority, max_wait=max_wait)
        )

    target._transport = governed(target._transport)
    target._mounts = {pattern: governed(inner) for pattern, inner in target._mounts.items()}
    return client


def roams(client: Any, url: str) -> bool:
    """Whether requests of a client to a URL leave from the address that the gate chooses: its user, or the environment,
    has set neither a proxy nor a source address."""
    transport = client._transport_for_url(library(type(client)).URL(url))
    return isinstance(getattr(getattr(transport, "_inner", transport), "_pool", None), Pools)


def governs(client: Any, url: str) -> bool:
    """Whether requests of a client to a URL ask a gate, as all do under ``ratekeeper run``."""
    transport = type(client._transport_for_url(library(type(client)).URL(url)))
    return any(
        hasattr(getattr(transport, name, None), "__wrapped__") for name in ("handle_request", "handle_async_request")
    )


def patch(module: ModuleType) -> None:
    """Governs every client of an unchanged program: the library's own transports, in place.

    In the class and not in an instance, so that clients made earlier, mounts, proxies and ``httpx.get()`` count.
    """
    governor = Governor(lenient=True)
    for cls in (module.HTTPTransport, module.AsyncHTTPTransport):
        cls.__init__ = remembering(cls, cls.__init__)
    sync_original = module.HTTPTransport.handle_request
    async_original = module.AsyncHTTPTransport.handle_async_request

    @functools.wraps(sync_original)
    def handle_request(self: Any, request: Any) -> Any:
        return drive(_send(governor, request, self, functools.partial(sync_original, self), is_async=False))

    @functools.wraps(async_original)
    async def handle_async_request(self: Any, request: Any) -> Any:
        send = sending(self, functools.partial(async_original, self))
        return await drive_async(_send(governor, request, self, send, is_async=True))

    module.HTTPTransport.handle_request = handle_request
    module.AsyncHTTPTransport.handle_async_request = handle_async_request


# --- one request ------------------------------------------------------------------------------------------------


def _send(
    governor: Governor, request: Any, transport: Any, send: Callable[[Any], Any], *, is_async: bool
) -> Steps[Any]:
    outbound = _outbound(request)
    attempt = take(outbound.netloc)
    if attempt is not None:
        _hurry(request, attempt)
    if attempt is not None and attempt.observed_above:
        return (yield functools.partial(send, request))
    if attempt is not None:
        observe = functools.partial(_observe, request, is_async)
        return (yield from attempt.carry(functools.partial(send, request), observe))
    rules = governor.match(outbound, functools.partial(_family, request))
    if rules is None:
        return (yield functools.partial(send, request))
    roams = isinstance(getattr(transport, "_pool", None), Pools)
    errand = _Call(
        governor, outbound, rules, is_async=is_async, family=functools.partial(_family, request), roams=roams
    )
    errand.request, errand.send = request, send
    errand.replayable = outbound.body is not None
    return (yield from run(errand))


class _Call(Governed):
    """One request through a transport."""

    request: Any
    send: Callable[[Any], Any]

    def once(self, attempt: Attempt) -> Steps[Any]:
        _hurry(self.request, attempt)
        observe = functools.partial(_observe, self.request, self.is_async)
        return (yield from attempt.carry(functools.partial(self.send, self.request), observe))

    def late(self, seconds: float) -> Exception:
        error: Exception = library(type(self.request)).ReadTimeout(f"no answer within {seconds:g} s")
        return error

    def untouched(self) -> Steps[Any]:
        return (yield functools.partial(self.send, self.request))

    def read(self, response: Any) -> Steps[tuple[Reply | None, Any]]:
        raw = yield functools.partial(drain_async if self.is_async else drain, response)
        response.stream = library(type(self.request)).ByteStream(raw)
        body = decoded(self.request, response, raw)
        if body is None:
            return None, response
        return Reply(response.status_code, kept_headers(response.headers.items()), body), response

    def answer(self, reply: Reply, served: Served) -> Any:
        module = library(type(self.request))
        headers = [*reply.headers, *served.headers().items()]
        return module.Response(
            reply.status, headers=headers, stream=module.ByteStream(reply.body), request=self.request
        )

    def label(self, response: Any, served: Served) -> None:
        response.headers.update(served.headers())

    def discard(self, response: Any) -> Steps[None]:
        yield response.aclose if self.is_async else response.close

    def other(self, call: Call) -> _Call:
        url = self.request.url.copy_with(path=call.path, params=call.params or {})
        request = library(type(self.request)).Request(
            self.request.method, url, headers=self.request.headers, extensions=self.request.extensions
        )
        made = _Call(
            self.governor, _outbound(request), self.rules, is_async=self.is_async, family=self.family, roams=self.roams
        )
        made.request, made.send = request, self.send
        return made


def _hurry(request: Any, attempt: Attempt) -> None:
    """Let no step of sending a request take longer than the attempt may."""
    longest = attempt.longest
    if longest is not None:
        known = request.extensions.get("timeout") or {}
        steps = {name: known.get(name) for name in ("connect", "read", "write", "pool")}
        shorter = {name: longest if value is None else min(value, longest) for name, value in steps.items()}
        request.extensions = {**request.extensions, "timeout": shorter}


def _observe(request: Any, is_async: bool, attempt: Attempt, response: Any) -> Steps[Any]:
    status, headers = response.status_code, response.headers
    if is_async and on_asyncio():
        response.stream = unbroken(library(type(request)))(response.stream)
    if attempt.wants_body(status):
        raw = yield functools.partial(drain_async if is_async else drain, response)
        response.stream = library(type(request)).ByteStream(raw)  # unread again: any way of reading works
        attempt.answered(status, headers, decoded(request, response, raw))
    elif attempt.slots:
        response.stream = streams(library(type(request)))[is_async](response.stream, attempt, status, headers)
    else:
        attempt.answered(status, headers)
    return response


def _outbound(request: Any) -> Outbound:
    url = request.url
    path, _, query = url.raw_path.partition(b"?")
    try:
        body = request.content
    except Exception as error:  # RequestNotRead of either library: a stream, which nobody may consume here
        if struck(error):
            raise
        body = None
    return Outbound(
        request.method,
        url.scheme,
        url.netloc.decode("ascii"),
        path.decode("ascii"),
        query.decode("ascii"),
        request.headers,
        body,
    )


def _family(request: Any) -> type[Exception]:
    return library(type(request)).TransportError  # type: ignore[no-any-return]
