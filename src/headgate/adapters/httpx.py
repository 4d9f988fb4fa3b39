"""httpx and httpx2, one body of code: ``httpx.AsyncClient(transport=AsyncTransport())``.

Both classes are plain objects that quack like a transport. Which of the two libraries is meant is read from the
request itself, so one class serves both. The client's own timeouts do not count the wait.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

from headgate.adapters._call import Attempt, Governor, Steps, drive, drive_async, take
from headgate.adapters._wire import Outbound

if TYPE_CHECKING:
    from headgate import Gate

__all__ = ["AsyncTransport", "Transport", "patch"]


class _Base:
    """What both transports share: the gate, and an inner transport made from the first request's own library."""

    def __init__(self, inner: Any = None, *, gate: Gate | None = None, priority: Any = None, **options: Any) -> None:
        if inner is not None and options:
            raise TypeError(f"give {', '.join(options)} to the inner transport: it is already made")
        self._governor = Governor(gate, priority=priority)
        self._inner = inner
        self._options = options
        self._making = threading.Lock()

    def _transport(self, request: Any, kind: str) -> Any:
        if self._inner is None:
            with self._making:
                if self._inner is None:
                    self._inner = getattr(_library(type(request)), kind)(**self._options)
        return self._inner


class Transport(_Base):
    """A governed transport for ``httpx.Client`` and ``httpx2.Client``.

    Args:
        inner: the transport that sends; ``None`` makes an ``HTTPTransport`` of the client's own library.
        gate: the gate to ask; ``None`` is the process's shared one.
        priority: class of every call through this transport; ``None`` leaves it to the context and the route.
        **options: for the inner transport when it is made here: ``verify``, ``http2``, ``proxy``, ``limits``...
            A client with ``transport=`` ignores its own.
    """

    def handle_request(self, request: Any) -> Any:
        """Waits for leave, sends, and tells the gate what came back."""
        inner = self._transport(request, "HTTPTransport")
        return drive(_send(self._governor, request, inner.handle_request, is_async=False))

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
        return await drive_async(_send(self._governor, request, inner.handle_async_request, is_async=True))

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


def patch(module: ModuleType) -> None:
    """Governs every client of an unchanged program: the library's own transports, in place.

    In the class and not in an instance, so that clients made earlier, mounts, proxies and ``httpx.get()`` count.
    """
    governor = Governor(lenient=True)
    sync_original = module.HTTPTransport.handle_request
    async_original = module.AsyncHTTPTransport.handle_async_request

    @functools.wraps(sync_original)
    def handle_request(self: Any, request: Any) -> Any:
        return drive(_send(governor, request, functools.partial(sync_original, self), is_async=False))

    @functools.wraps(async_original)
    async def handle_async_request(self: Any, request: Any) -> Any:
        return await drive_async(_send(governor, request, functools.partial(async_original, self), is_async=True))

    module.HTTPTransport.handle_request = handle_request
    module.AsyncHTTPTransport.handle_async_request = handle_async_request


# --- one request ------------------------------------------------------------------------------------------------


def _send(governor: Governor, request: Any, send: Callable[[Any], Any], *, is_async: bool) -> Steps[Any]:
    outbound = _outbound(request)
    call = functools.partial(send, request)
    if take(outbound.netloc) is not None:
        return (yield call)
    observe = functools.partial(_observe, request, is_async)
    family = functools.partial(_family, request)
    return (yield from governor.exchange(outbound, call, observe, family=family, is_async=is_async))


def _observe(request: Any, is_async: bool, attempt: Attempt, response: Any) -> Steps[Any]:
    status, headers = response.status_code, response.headers
    if attempt.wants_body(status):
        raw = yield functools.partial(_drain_async if is_async else _drain, response)
        response.stream = _library(type(request)).ByteStream(raw)  # unread again: any way of reading works
        attempt.answered(status, headers, _decoded(request, response, raw))
    elif attempt.slots:
        response.stream = _streams(_library(type(request)))[is_async](response.stream, attempt, status, headers)
    else:
        attempt.answered(status, headers)
    return response


def _outbound(request: Any) -> Outbound:
    url = request.url
    path, _, query = url.raw_path.partition(b"?")
    try:
        body = request.content
    except Exception:  # noqa: BLE001 - RequestNotRead of either library: a stream, which nobody may consume here
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


def _library(cls: type) -> ModuleType:
    """httpx or httpx2: whichever the request's class comes from, also through subclasses."""
    return sys.modules[cls.__mro__[-2].__module__.partition(".")[0]]


def _family(request: Any) -> type[Exception]:
    return _library(type(request)).TransportError  # type: ignore[no-any-return]


# --- bodies -----------------------------------------------------------------------------------------------------


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


def _decoded(request: Any, response: Any, raw: bytes) -> bytes | None:
    """The body without its content encoding; ``None`` if that does not work (the caller will see why)."""
    if "content-encoding" not in response.headers:
        return raw
    copy = _library(type(request)).Response
    try:
        return copy(response.status_code, headers=response.headers.raw, content=raw).content  # type: ignore[no-any-return]
    except Exception:  # noqa: BLE001 - DecodingError of either library
        return None


@functools.cache
def _streams(module: ModuleType) -> tuple[type, type]:
    """Streams that hold a slot until their last byte, for one of the two libraries."""

    class Held:
        def __init__(self, inner: Any, attempt: Attempt, status: int, headers: Any) -> None:
            self._inner = inner
            self._attempt = attempt
            self._answer = (status, headers)

    class SyncHeld(Held, module.SyncByteStream):  # type: ignore[name-defined,misc]
        def __iter__(self) -> Iterator[bytes]:
            for chunk in self._inner:
                self._attempt.streaming()
                yield chunk

        def close(self) -> None:
            try:
                self._inner.close()
            finally:
                self._attempt.answered(*self._answer)

    class AsyncHeld(Held, module.AsyncByteStream):  # type: ignore[name-defined,misc]
        async def __aiter__(self) -> AsyncIterator[bytes]:
            async for chunk in self._inner:
                self._attempt.streaming()
                yield chunk

        async def aclose(self) -> None:
            try:
                await self._inner.aclose()
            finally:
                self._attempt.answered(*self._answer)

    return SyncHeld, AsyncHeld
