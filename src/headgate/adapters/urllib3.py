"""urllib3, which also carries requests: connection pools whose every attempt asks the gate.

``urlopen`` calls itself for redirects and for urllib3's own retries, so each of them waits and is charged.
``_make_request`` is where one attempt really leaves and its answer comes in.
"""

from __future__ import annotations

import functools
import io
import weakref
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

from headgate.adapters._call import Attempt, Governor, drive, peek, take
from headgate.adapters._wire import Outbound, from_url, lowered, netloc_of

__all__ = ["patch", "pool_classes"]

_BODY_MAX = 16_777_216
"""Bytes of an answer that are read ahead at most, to be classified or learned from."""


def patch(module: ModuleType) -> None:
    """Governs every pool of an unchanged program, in the class, so that pools made earlier count too.

    Args:
        module: ``urllib3.connectionpool``.
    """
    _hook(module.HTTPConnectionPool, Governor(lenient=True))


def pool_classes(governor: Governor, classes: Mapping[str, type]) -> dict[str, type]:
    """Governed subclasses of the pool classes of one ``PoolManager`` (its ``pool_classes_by_scheme``)."""
    return {scheme: _governed(cls, governor) for scheme, cls in classes.items()}


def _governed(cls: Any, governor: Governor) -> type:
    if getattr(cls, "headgate", None) is governor:
        return cls  # type: ignore[no-any-return]
    made = type(cls.__name__, (cls,), {"headgate": governor})
    if not hasattr(cls, "headgate"):  # else the base is hooked already and reads our governor
        _hook(made, governor)
    return made


def _hook(cls: Any, governor: Governor) -> None:
    """Puts the two hooks into a pool class. Pools find their governor in `headgate`."""
    original_urlopen = cls.urlopen
    original_make_request = cls._make_request

    @functools.wraps(original_urlopen)
    def urlopen(self: Any, method: str, url: str, body: Any = None, headers: Any = None, *args: Any, **kw: Any) -> Any:
        outbound = _outbound(self, method, url, body, headers)
        above = peek(outbound.netloc) if outbound else None
        # Opened by a layer above; or by ourselves one frame up, when the first try did not come as far as sending.
        charged = above is not None and (not above.observed_above or above.taken())
        attempt = None if charged else drive(self.headgate.begin(outbound, _family, is_async=False))
        if attempt is None:
            return original_urlopen(self, method, url, body, headers, *args, **kw)
        try:
            with attempt.below(observed_above=False):
                response = original_urlopen(self, method, url, body, headers, *args, **kw)
        except BaseException as error:
            attempt.failed(error, unsent=attempt.spare)
            raise
        if attempt.spare:  # a pool with a `_make_request` of its own
            attempt.answered(response.status, response.headers)
        return response

    @functools.wraps(original_make_request)
    def _make_request(self: Any, conn: Any, method: str, url: str, *args: Any, **kw: Any) -> Any:
        outbound = _outbound(self, method, url, None, None)
        attempt = take(outbound.netloc) if outbound else None
        if attempt is None:
            return original_make_request(self, conn, method, url, *args, **kw)
        try:
            response = original_make_request(self, conn, method, url, *args, **kw)
            return _observe(attempt, response, method, preloaded=kw.get("preload_content", True))
        except BaseException as error:
            attempt.failed(error)
            raise

    cls.urlopen = urlopen
    cls._make_request = _make_request
    cls.headgate = governor


def _outbound(pool: Any, method: str, url: str, body: Any, headers: Any) -> Outbound | None:
    named = lowered(pool.headers if headers is None else headers)
    if not url.startswith("/"):  # whole URL: a plain-HTTP proxy, or a redirect that urllib3 has not cut yet
        return from_url(method, url, named, body)
    path, _, query = url.partition("?")
    payload = body if isinstance(body, (bytes, str)) else None
    return Outbound(
        method.upper(), pool.scheme, netloc_of(pool.scheme, pool.host, pool.port), path, query, named, payload
    )


def _family() -> type[Exception]:
    from urllib3.exceptions import HTTPError

    return HTTPError


# --- answers ----------------------------------------------------------------------------------------------------


def _observe(attempt: Attempt, response: Any, method: str, *, preloaded: bool) -> Any:
    """Tells the gate what came back. Returns the response, or one that is still unread where ours had to be read."""
    status, headers = response.status, response.headers
    if not hasattr(response, "drain_conn") or method.upper() == "HEAD":  # urllib3 1.26 gives http.client's own
        attempt.answered(status, headers)
    elif preloaded:
        attempt.answered(status, headers, response.data if attempt.wants_body(status) else None)
    elif attempt.wants_body(status) and int(headers.get("content-length") or 0) <= _BODY_MAX:
        raw = response.read(decode_content=False)
        response.release_conn()
        attempt.answered(status, headers, _unread(response, method, raw).read(decode_content=True))
        return _unread(response, method, raw)
    elif attempt.slots:
        _hold(attempt, response)
    else:
        attempt.answered(status, headers)
    return response


def _unread(response: Any, method: str, raw: bytes) -> Any:
    """The same answer, whose raw body is still to be read."""
    made = type(response)(
        body=io.BytesIO(raw),
        headers=response.headers,
        status=response.status,
        version=response.version,
        version_string=response.version_string,
        reason=response.reason,
        preload_content=False,
        decode_content=response.decode_content,
        original_response=response._original_response,
        msg=response.msg,
        retries=response.retries,
        request_method=method,
        request_url=response._request_url,
    )
    made._pool = response._pool
    return made


def _hold(attempt: Attempt, response: Any) -> None:
    """Keeps the slot until the last byte or until the reader leaves: both give the connection back."""
    kind, watched = type(response), weakref.ref(response)
    status, headers = response.status, response.headers

    def reading(name: str) -> Callable[..., Any]:
        def read(*args: Any, **kw: Any) -> Any:
            attempt.streaming()
            return getattr(kind, name)(watched(), *args, **kw)

        return read

    def leaving(name: str) -> Callable[..., Any]:
        def leave() -> Any:
            attempt.answered(status, headers)
            return getattr(kind, name)(watched())

        return leave

    def read_chunked(*args: Any, **kw: Any) -> Iterator[bytes]:
        for chunk in kind.read_chunked(watched(), *args, **kw):
            attempt.streaming()
            yield chunk

    response.read, response.read1, response.read_chunked = reading("read"), reading("read1"), read_chunked
    response.close, response.release_conn = leaving("close"), leaving("release_conn")
