"""Bodies of httpx and httpx2: read and given back unread, decoded, or held open as long as they are read."""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import AsyncIterator, Iterator
from types import ModuleType
from typing import Any

from ratekeeper.adapters._call import Attempt

__all__ = ["decoded", "drain", "drain_async", "library", "streams", "unbroken"]


def library(cls: type) -> ModuleType:
    """httpx or httpx2: whichever the request's class comes from, also through subclasses."""
    return sys.modules[cls.__mro__[-2].__module__.partition(".")[0]]


def drain(response: Any) -> bytes:
    try:
        return b"".join(response.stream)
    finally:
        response.stream.close()


async def drain_async(response: Any) -> bytes:
    try:
        return b"".join([chunk async for chunk in response.stream])
    finally:
        await response.stream.aclose()


def decoded(request: Any, response: Any, raw: bytes) -> bytes | None:
    """The body without its content encoding; ``None`` if that does not work (the caller will see why)."""
    if "content-encoding" not in response.headers:
        return raw
    copy = library(type(request)).Response
    try:
        return copy(response.status_code, headers=response.headers.raw, content=raw).content  # type: ignore[no-any-return]
    except Exception:  # noqa: BLE001 - DecodingError of either library
        return None


@functools.cache
def unbroken(module: ModuleType) -> type:
    """A stream of one of the two libraries whose closing is not broken off where its task is cancelled in the middle of it:
    httpcore would then keep the connection, and its place in the pool, for ever."""

    class Unbroken(module.AsyncByteStream):  # type: ignore[name-defined,misc]
        def __init__(self, inner: Any) -> None:
            self._inner = inner

        async def __aiter__(self) -> AsyncIterator[bytes]:
            async for chunk in self._inner:
                yield chunk

        async def aclose(self) -> None:
            await asyncio.shield(asyncio.ensure_future(self._inner.aclose()))

    return Unbroken


@functools.cache
def streams(module: ModuleType) -> tuple[type, type]:
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
