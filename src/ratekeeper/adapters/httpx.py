"""httpx and httpx2, one body of code: ``httpx.AsyncClient(transport=AsyncTransport())``.

Both classes are plain objects with a transport's methods. They tell the library from the request itself, so one class
serves both. The client's own timeouts do not include the wait.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from ratekeeper.adapters._client import ClientCall, enter
from ratekeeper.adapters._governor import Governor
from ratekeeper.adapters._httpx_pools import Pools, pooled, remembering
from ratekeeper.adapters._wire import Outbound
from ratekeeper.gate.call import Call, Reading, Reply, Served
from ratekeeper.gate.steps import Steps, drive, drive_async
from ratekeeper.rules.book import normal_host
from ratekeeper.stores.faults import struck

if TYPE_CHECKING:
    from ratekeeper.gate.gate import Gate
    from ratekeeper.rules.call import Request

__all__ = ["AsyncTransport", "Transport", "any_address", "govern", "governs", "patch"]

C = TypeVar("C")


class _Base:
    """The base of both transports: the gate, and inner transports of the first request's library."""

    _KIND: ClassVar[str]

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
        self._inner = pooled(inner)
        self._options = options
        self._routes: list[tuple[Any, Any]] = []
        """Patterns of URLs, the closest first, and what sends them through a proxy of the environment; None: no proxy."""
        self._making = threading.Lock()

    def _transport(self, module: ModuleType, url: Any) -> Any:
        """Return the inner transport for a URL; make it, and those for the environment's proxies, on first use."""
        with self._making:
            if self._inner is None:
                # The limits decide how many calls run at once, not a pool whose timeout would end the call.
                self._options.setdefault("limits", module.Limits(max_keepalive_connections=100))
                self._routes = _routes(module, self._make, self._options)
                self._inner = self._make(module)
        for pattern, transport in self._routes:
            if pattern.matches(url):
                return self._inner if transport is None else transport
        return self._inner

    def _make(self, module: ModuleType, **more: Any) -> Any:
        options = {**self._options, **more}
        return pooled(getattr(module, self._KIND)(**options), options)

    @property
    def _all(self) -> list[Any]:
        """All inner transports that exist."""
        return [each for each in (self._inner, *(transport for _, transport in self._routes)) if each is not None]


class Transport(_Base):
    """A governed transport for ``httpx.Client`` and ``httpx2.Client``.

    Args:
        inner: the transport that sends, from the default address; ``None``: an ``HTTPTransport`` of the client's own
            library, which sends from any address of a pool.
        gate: the gate to ask; ``None``: the process's shared one.
        priority: priority of every call through this transport; ``None``: the context and the route decide.
        max_wait: seconds that a call may wait, also for the end of a ban or a pause; ``None``: the gate's settings, which
            refuse a call at once if a block lasts long.
        **options: for an inner transport made here: ``verify``, ``http2``, ``proxy``, ``limits``...
            A client with ``transport=`` ignores its own. Without ``proxy``, and unless ``trust_env=False``, the proxies of
            the environment are used, as a client without ``transport=`` uses them.
    """

    _KIND = "HTTPTransport"

    def handle_request(self, request: Any) -> Any:
        """Wait for a permit, send, and report the response to the gate."""
        inner = self._inner
        if inner is None or self._routes:
            inner = self._transport(_library(request), request.url)
        return drive(_entered(self._governor, request, inner, inner.handle_request, is_async=False))

    def __enter__(self) -> Transport:
        for inner in self._all:
            inner.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for inner in self._all:
            inner.__exit__(*error)

    def close(self) -> None:
        """Close the inner transports."""
        for inner in self._all:
            inner.close()


class AsyncTransport(_Base):
    """A governed transport for ``httpx.AsyncClient`` and ``httpx2.AsyncClient``. Arguments as for `Transport`."""

    _KIND = "AsyncHTTPTransport"

    async def handle_async_request(self, request: Any) -> Any:
        """Wait for a permit, send, and report the response to the gate."""
        inner = self._inner
        if inner is None or self._routes:
            inner = self._transport(_library(request), request.url)
        return await drive_async(_entered(self._governor, request, inner, inner.handle_async_request, is_async=True))

    async def __aenter__(self) -> AsyncTransport:
        for inner in self._all:
            await inner.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        for inner in self._all:
            await inner.__aexit__(*error)

    async def aclose(self) -> None:
        """Close the inner transports."""
        for inner in self._all:
            await inner.aclose()


def govern(client: C, *, gate: Gate | None = None, priority: Any = None, max_wait: float | None = None) -> C:
    """Govern an existing client in place, with its mounts and proxies, and return it.

    Args:
        client: a ``Client`` or an ``AsyncClient`` of either library.
        gate, priority, max_wait: as for `Transport`.
    """
    target: Any = client
    kind = AsyncTransport if hasattr(target, "aclose") else Transport

    def governed(inner: Any) -> Any:
        if inner is None or isinstance(inner, _Base):
            return inner
        return kind(inner, gate=gate, priority=priority, max_wait=max_wait)

    target._transport = governed(target._transport)
    target._mounts = {pattern: governed(inner) for pattern, inner in target._mounts.items()}
    return client


def any_address(client: Any, url: str) -> bool:
    """Whether requests of a client to a URL leave from the address that the gate chooses: neither the program nor the
    environment sets a proxy or a source address."""
    module = _library(client)
    transport = client._transport_for_url(module.URL(url))
    return _free(transport._transport(module, module.URL(url)) if isinstance(transport, _Base) else transport)


def governs(client: Any, url: str) -> bool:
    """Whether requests of a client to a URL ask a gate, as all do under ``ratekeeper run``."""
    transport = type(client._transport_for_url(_library(client).URL(url)))
    return any(
        hasattr(getattr(transport, name, None), "__wrapped__") for name in ("handle_request", "handle_async_request")
    )


def patch(module: ModuleType) -> None:
    """Govern every client of an unchanged program: patch the library's own transports.

    The patch is in the class, so that earlier clients, mounts, proxies and ``httpx.get()`` are governed too.
    """
    governor = Governor(lenient=True)
    for cls in (module.HTTPTransport, module.AsyncHTTPTransport):
        cls.__init__ = remembering(cls, cls.__init__)
    sync_original = module.HTTPTransport.handle_request
    async_original = module.AsyncHTTPTransport.handle_async_request

    @functools.wraps(sync_original)
    def handle_request(self: Any, request: Any) -> Any:
        return drive(_entered(governor, request, self, functools.partial(sync_original, self), is_async=False))

    @functools.wraps(async_original)
    async def handle_async_request(self: Any, request: Any) -> Any:
        send = functools.partial(async_original, pooled(self))
        return await drive_async(_entered(governor, request, self, send, is_async=True))

    module.HTTPTransport.handle_request = handle_request
    module.AsyncHTTPTransport.handle_async_request = handle_async_request


# --- one request ------------------------------------------------------------------------------------------------


def _entered(
    governor: Governor, request: Any, transport: Any, send: Callable[[Any], Any], *, is_async: bool
) -> Steps[Any]:
    outbound, family = _outbound(request), functools.partial(_family, request)
    return enter(
        _Call, governor, outbound, request, send,
        family=family, is_async=is_async, any_address=_free(transport), replayable=outbound.body is not None,
    )  # fmt: skip


class _Call(ClientCall):
    """One request through a transport."""

    STATUS = "status_code"

    @staticmethod
    def shorten_timeouts(native: Any, longest: float) -> None:
        """See `ClientCall.shorten_timeouts`."""
        known = native.extensions.get("timeout") or {}
        steps = {name: known.get(name) for name in ("connect", "read", "write", "pool")}
        shorter = {name: longest if value is None else min(value, longest) for name, value in steps.items()}
        native.extensions = {**native.extensions, "timeout": shorter}

    def late(self, seconds: float) -> Exception:
        error: Exception = _library(self.native).ReadTimeout(f"no answer within {seconds:g} s")
        return error

    def read_body(self, response: Any) -> Steps[tuple[bytes | None, Any]]:
        module = _library(self.native)
        raw = yield functools.partial(_drain_async if self.is_async else _drain, response)
        response.stream = module.ByteStream(raw)
        if "content-encoding" not in response.headers:
            return raw, response
        try:
            return module.Response(response.status_code, headers=response.headers.raw, content=raw).content, response
        except Exception:  # noqa: BLE001 - DecodingError of either library: the caller gets it
            return None, response

    def hold_slot(self, owner: Call, response: Any) -> bool:
        reading = owner.until_read(response.status_code, response.headers)
        response.stream = _streams(_library(self.native))[self.is_async](response.stream, reading)
        return True

    def answer(self, reply: Reply, served: Served) -> Any:
        module = _library(self.native)
        headers = [*reply.headers, *served.headers().items()]
        return module.Response(reply.status, headers=headers, stream=module.ByteStream(reply.body), request=self.native)

    def discard(self, response: Any) -> Steps[None]:
        yield response.aclose if self.is_async else response.close

    def other(self, request: Request) -> _Call:
        mine = self.native
        url = mine.url.copy_with(path=request.path, params=request.params or {})
        native = _library(mine).Request(mine.method, url, headers=mine.headers, extensions=mine.extensions)
        return self.another(_outbound(native), native)


def _outbound(request: Any) -> Outbound:
    url = request.url
    path, _, query = url.raw_path.partition(b"?")
    try:
        body = request.content
    except Exception as error:  # RequestNotRead of either library: a stream, which the gate must not consume
        if struck(error):
            raise
        body = None
    return Outbound(
        request.method,
        url.scheme,
        normal_host(url.netloc.decode("ascii"), url.scheme),
        path.decode("ascii"),
        query.decode("ascii"),
        request.headers,
        body,
    )


def _family(request: Any) -> type[Exception]:
    return _library(request).TransportError  # type: ignore[no-any-return]


def _library(of: Any) -> ModuleType:
    """Return httpx or httpx2: the library of a request's or a client's class, also through subclasses."""
    return sys.modules[type(of).__mro__[-2].__module__.partition(".")[0]]


def _routes(module: ModuleType, make: Callable[..., Any], options: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """Return `_Base._routes` as a client of the library would choose them that had no ``transport=``: with one it does not
    read the environment."""
    if options.get("proxy") is not None or options.get("uds") is not None or not options.get("trust_env", True):
        return []
    utils = module._utils
    proxies = utils.get_environment_proxies()
    if not any(proxies.values()):
        return []
    made = {key: proxy and make(module, proxy=proxy) for key, proxy in proxies.items()}
    return sorted((utils.URLPattern(key), transport) for key, transport in made.items())


def _free(transport: Any) -> bool:
    pool = getattr(transport, "_pool", None)
    return isinstance(pool, Pools) and pool.free


# --- answers ----------------------------------------------------------------------------------------------------


def _drain(response: Any) -> bytes:
    try:
        return b"".join(response.stream)
    finally:
        response.stream.close()


async def _drain_async(response: Any) -> bytes:
    try:
        return b"".join([chunk async for chunk in response.stream])
    finally:
        await response.stream.aclose()


@functools.cache
def _streams(module: ModuleType) -> tuple[type, type]:
    """Return stream classes that hold a slot until their last byte, for one of the two libraries."""

    class Held:
        def __init__(self, inner: Any, reading: Reading) -> None:
            self._inner = inner
            self._reading = reading

    class SyncHeld(Held, module.SyncByteStream):  # type: ignore[name-defined,misc]
        def __iter__(self) -> Iterator[bytes]:
            for chunk in self._inner:
                self._reading.streaming()
                yield chunk

        def close(self) -> None:
            try:
                self._inner.close()
            finally:
                self._reading.over()

    class AsyncHeld(Held, module.AsyncByteStream):  # type: ignore[name-defined,misc]
        async def __aiter__(self) -> AsyncIterator[bytes]:
            async for chunk in self._inner:
                self._reading.streaming()
                yield chunk

        async def aclose(self) -> None:
            try:
                await self._inner.aclose()
            finally:
                self._reading.over()

    return SyncHeld, AsyncHeld
