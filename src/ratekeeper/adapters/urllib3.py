"""urllib3, which also serves requests: connection pools that ask the gate for every attempt.

``urlopen`` calls itself for redirects and for urllib3's own retries, so each of them waits and is charged.
``_make_request`` sends one attempt and receives its response.
"""

from __future__ import annotations

import copy
import functools
import io
import weakref
from collections.abc import Callable, Iterator, Mapping
from http.client import responses
from importlib.metadata import version
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote, urlencode, urlsplit

from ratekeeper.adapters._client import OuterCall, enter
from ratekeeper.adapters._governor import Governor
from ratekeeper.adapters._wire import Outbound, from_url, in_family, lowered, netloc_of
from ratekeeper.errors import RatekeeperError, SignatureWouldExpire
from ratekeeper.gate.call import Call, Reading, Reply, Served, peek, take
from ratekeeper.gate.steps import Steps, drive

if TYPE_CHECKING:
    from ratekeeper.pools.address import Address
    from ratekeeper.rules.call import Request

__all__ = ["patch", "pool_classes"]

_MOST_CONNECTIONS = 256
"""A pool keeps at most this many connections to one host open, unless the program has set more."""
_NAMES = "retries redirect assert_same_host timeout pool_timeout release_conn chunked body_pos".split()  # noqa: SIM905
"""The arguments that ``urlopen`` also takes by position, after the headers."""
_BODY_MAX = 16_777_216
"""The gate reads at most this many bytes of a response ahead, to classify it or to learn from it."""


def patch(module: ModuleType) -> None:
    """Govern every pool of an unchanged program, in the class, so that earlier pools are governed too.

    Args:
        module: ``urllib3.connectionpool``.
    """
    _hook(module.HTTPConnectionPool, Governor(lenient=True))


def pool_classes(governor: Governor, classes: Mapping[str, type]) -> dict[str, type]:
    """Return governed subclasses of the pool classes of one ``PoolManager`` (its ``pool_classes_by_scheme``)."""
    return {scheme: _governed(cls, governor) for scheme, cls in classes.items()}


def _governed(cls: Any, governor: Governor) -> type:
    if getattr(cls, "ratekeeper", None) is governor:
        return cls  # type: ignore[no-any-return]
    made = type(cls.__name__, (cls,), {"ratekeeper": governor})
    if not hasattr(cls, "ratekeeper"):  # else the base is hooked already and reads our governor
        _hook(made, governor)
    return made


def _hook(cls: Any, governor: Governor) -> None:
    """Put the two hooks into a pool class. Pools find their governor in `ratekeeper`."""
    original_urlopen = cls.urlopen
    original_make_request = cls._make_request
    original_put_conn = cls._put_conn

    @functools.wraps(original_urlopen)
    def urlopen(self: Any, method: str, url: str, body: Any = None, headers: Any = None, *args: Any, **kw: Any) -> Any:
        kw.update(zip(_NAMES, args, strict=False))
        outbound = _outbound(self, method, url, body, headers)

        def send(asked: _Asked) -> Any:
            return original_urlopen(asked.pool, method, asked.url, body, headers, **asked.options)

        above = peek(outbound.netloc) if outbound else None
        if above is not None and (not above.observed_above or above.taken()):
            # An upper layer opened the attempt, or this hook did one frame up and the first try did not reach sending.
            asked = _leaving(_Asked(self, url, kw), above.egress)
            if above.longest is not None:
                _Call.shorten_timeouts(asked, above.longest)
            return send(asked)
        asked = _origin(_Asked(self, url, kw))
        steps = enter(
            _Call, asked.pool.ratekeeper, outbound, asked, send,
            family=_family, is_async=False, any_address=_free(asked.pool, asked.url),
            replayable=body is None or isinstance(body, (bytes, str)),
        )  # fmt: skip
        try:
            return drive(steps)
        except SignatureWouldExpire as late:
            error = _brought(asked, late)
            raise error from error.__cause__

    @functools.wraps(original_make_request)
    def _make_request(self: Any, conn: Any, method: str, url: str, *args: Any, **kw: Any) -> Any:
        netloc = _netloc(self, url)
        call = take(netloc) if netloc else None
        if call is None:
            return original_make_request(self, conn, method, url, *args, **kw)
        try:
            response = original_make_request(self, conn, method, url, *args, **kw)
            return _observe(call, response, method, preloaded=kw.get("preload_content", True))
        except BaseException as error:
            call.failed(error)
            raise

    @functools.wraps(original_put_conn)
    def _put_conn(self: Any, conn: Any) -> None:
        pool = self.pool
        if conn is not None and pool is not None and not self.block and pool.full():
            with pool.mutex:  # grow the pool instead of closing connections
                pool.maxsize = max(pool.maxsize, min(_MOST_CONNECTIONS, pool.maxsize + 1))
        original_put_conn(self, conn)

    cls._put_conn = _put_conn
    cls.urlopen = urlopen
    cls._make_request = _make_request
    cls.close = _closing(cls.close)
    cls.ratekeeper = governor


def _closing(original: Callable[[Any], None]) -> Callable[[Any], None]:
    """Close a pool with those that send from its other addresses."""

    @functools.wraps(original)
    def close(self: Any) -> None:
        for pool in vars(self).get("ratekeeper_others", {}).values():
            original(pool)
        original(self)

    return close


class _Asked(NamedTuple):
    """The arguments of ``urlopen``: pool, URL (or its path) and options."""

    pool: Any
    url: str
    options: dict[str, Any]


class _Call(OuterCall):
    """One request through a pool."""

    native: _Asked

    @property
    def answers(self) -> bool:  # type: ignore[override]
        """See `Call.answers`."""
        return _rereadable()

    @staticmethod
    def shorten_timeouts(native: _Asked, longest: float) -> None:
        """See `ClientCall.shorten_timeouts`."""
        pool, options = native.pool, native.options
        given = pool._get_timeout(options["timeout"]) if "timeout" in options else pool.timeout.clone()
        given.total = longest if given.total is None else min(given.total, longest)
        options["timeout"] = given

    def dispatch(self) -> Any:
        """See `OuterCall.dispatch`."""
        return self.send(_leaving(self.native, self.egress))

    def untaken(self, response: Any) -> None:
        """Handle a pool with its own `_make_request`: see `OuterCall.untaken`."""
        self.answered(response.status, response.headers)

    def read_body(self, response: Any) -> Steps[tuple[bytes | None, Any]]:
        if response.status != 200 or int(response.headers.get("content-length") or 0) > _BODY_MAX:
            return None, response
        if self.native.options.get("preload_content", True):
            return response.data, response
        return _read(response, self.outbound.method)
        yield

    def answer(self, reply: Reply, served: Served) -> Any:
        from urllib3 import HTTPHeaderDict, HTTPResponse

        known: dict[str, Any] = {"version_string": "HTTP/1.1"} if _rereadable() else {}
        return HTTPResponse(
            body=io.BytesIO(reply.body),
            headers=HTTPHeaderDict([*reply.headers, *served.headers().items()]),
            status=reply.status,
            version=11,
            reason=responses.get(reply.status, ""),
            preload_content=self.native.options.get("preload_content", True),
            decode_content=False,
            request_method=self.outbound.method,
            request_url=self.native.url,
            **known,
        )

    def fail(self, error: RatekeeperError, cause: BaseException | None) -> Exception:
        # Not the class of the cause: requests would convert it into its own error and lose ours.
        return in_family(error, self.family)

    def discard(self, response: Any) -> Steps[None]:
        response.drain_conn()
        response.release_conn()
        return
        yield

    def other(self, request: Request) -> _Call:
        query = urlencode(request.params or {}, doseq=True)
        url = f"{request.path}?{query}" if query else request.path
        return self.another(self.outbound._replace(path=request.path, query=query), self.native._replace(url=url))


@functools.cache
def _rereadable() -> bool:
    """Whether responses can be rebuilt, as in urllib3 2."""
    return not version("urllib3").startswith("1.")


def _brought(asked: _Asked, late: SignatureWouldExpire) -> Exception:
    """Return the error for a request that cannot leave in time: for a retry of urllib3's own, what the last one brought."""
    tried = getattr(asked.options.get("retries"), "history", ())
    if not tried or tried[-1].redirect_location:
        return late
    from urllib3.exceptions import MaxRetryError, ResponseError

    error: Exception | None = tried[-1].error
    if error is not None:
        return error
    text = ResponseError.SPECIFIC_ERROR.format(status_code=tried[-1].status)
    return MaxRetryError(asked.pool, asked.url, ResponseError(text))


def _outbound(pool: Any, method: str, url: str, body: Any, headers: Any) -> Outbound | None:
    named = lowered(pool.headers if headers is None else headers)
    if not url.startswith("/"):  # whole URL: a plain-HTTP proxy, or a redirect that urllib3 has not cut yet
        return from_url(method, url, named, body)
    path, _, query = url.partition("?")
    payload = body if isinstance(body, (bytes, str)) else None
    return Outbound(method.upper(), pool.scheme, _netloc(pool, url), path, query, named, payload)


def _netloc(pool: Any, url: str) -> str:
    """Return the host of a pool's request; "": unknown."""
    if url.startswith("/"):
        return netloc_of(pool.scheme, pool.host, pool.port)
    outbound = from_url("GET", url, {})
    return outbound.netloc if outbound else ""


def _family() -> type[Exception]:
    from urllib3.exceptions import HTTPError

    return HTTPError


# --- several addresses ------------------------------------------------------------------------------------------


def _free(pool: Any, url: str) -> bool:
    """Whether a pool's connections may leave from any address: the program has not chosen one."""
    return url.startswith("/") and getattr(pool, "proxy", None) is None and not pool.conn_kw.get("source_address")


def _leaving(asked: _Asked, address: Address | None) -> _Asked:
    """Return the pool, and its URL, that sends a request from an address."""
    pool, url, options = asked
    if address is None or vars(pool).get("ratekeeper_origin") is not None or not _free(pool, url):
        return asked
    others = vars(pool).setdefault("ratekeeper_others", {})
    found = others.get(address)
    if found is None:
        found = others.setdefault(address, _like(pool, address))
    if address.proxy and pool.scheme == "http":
        url = f"http://{_netloc(pool, url)}{url}"
    return _Asked(found, url, options)


def _origin(asked: _Asked) -> _Asked:
    """Return the argument of `_leaving`, because the next request of such a pool may leave from another address."""
    origin = vars(asked.pool).get("ratekeeper_origin")
    pool = origin() if origin is not None else None
    if pool is None:
        return asked
    path = asked.url if asked.url.startswith("/") else urlsplit(asked.url)._replace(scheme="", netloc="").geturl()
    return _Asked(pool, path, asked.options)


def _like(pool: Any, address: Address) -> Any:
    """Make a pool with the same settings, whose connections leave from an address."""
    made = copy.copy(pool)
    vars(made).pop("ratekeeper_others", None)
    made.ratekeeper_origin = weakref.ref(pool)
    made.conn_kw = dict(pool.conn_kw)
    made.pool = type(pool.pool)(pool.pool.maxsize)
    for _ in range(pool.pool.maxsize):
        made.pool.put(None)
    weakref.finalize(made, _drain, made.pool)
    if address.bind:
        made.conn_kw["source_address"] = (address.bind, 0)
    if address.proxy:
        _through(made, address.proxy)
    return made


def _through(pool: Any, proxy: str) -> None:
    """Send the connections of a pool through a proxy, as urllib3's own ``ProxyManager`` does."""
    from urllib3 import ProxyManager
    from urllib3.util import make_headers, parse_url

    url = parse_url(proxy)
    login = make_headers(proxy_basic_auth=unquote(url.auth)) if url.auth else {}
    manager = ProxyManager(url._replace(auth=None).url, proxy_headers=login)
    pool.proxy, pool.proxy_headers, pool.proxy_config = manager.proxy, manager.proxy_headers, manager.proxy_config
    pool.conn_kw |= {"proxy": pool.proxy, "proxy_config": pool.proxy_config, "socket_options": []}
    if pool.scheme == "http":
        pool.host, pool.port = pool.proxy.host, pool.proxy.port
        pool.is_same_host = lambda url: True


def _drain(connections: Any) -> None:
    """Close the connections of a pool that has no reference left."""
    while not connections.empty():
        connection = connections.get(block=False)
        if connection is not None:
            connection.close()


# --- answers ----------------------------------------------------------------------------------------------------


def _observe(call: Call, response: Any, method: str, *, preloaded: bool) -> Any:
    """Report the response to the gate. Return it, or an unread copy if the gate had to read it."""
    status, headers = response.status, response.headers
    if not hasattr(response, "drain_conn") or method.upper() == "HEAD":  # urllib3 1.26 gives http.client's own
        call.answered(status, headers)
    elif preloaded:
        call.answered(status, headers, response.data if call.wants_body(status) else None)
    elif call.wants_body(status) and int(headers.get("content-length") or 0) <= _BODY_MAX:
        body, response = _read(response, method)
        call.answered(status, headers, body)
    elif call.slots:
        _hold(call.until_read(status, headers), response)
    else:
        call.answered(status, headers)
    return response


def _read(response: Any, method: str) -> tuple[bytes, Any]:
    """Return the decoded body of a response, and the same response unread."""
    raw = response.read(decode_content=False)
    response.release_conn()
    return _unread(response, method, raw).read(decode_content=True), _unread(response, method, raw)


def _unread(response: Any, method: str, raw: bytes) -> Any:
    """Return the same response with an unread raw body."""
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


def _hold(slot: Reading, response: Any) -> None:
    """Keep the slot until the last byte, or until the program stops reading: both give the connection back."""
    kind, watched = type(response), weakref.ref(response)

    def reading(name: str) -> Callable[..., Any]:
        def read(*args: Any, **kw: Any) -> Any:
            slot.streaming()
            return getattr(kind, name)(watched(), *args, **kw)

        return read

    def leaving(name: str) -> Callable[..., Any]:
        def leave() -> Any:
            slot.over()
            return getattr(kind, name)(watched())

        return leave

    def read_chunked(*args: Any, **kw: Any) -> Iterator[bytes]:
        for chunk in kind.read_chunked(watched(), *args, **kw):
            slot.streaming()
            yield chunk

    response.read, response.read1, response.read_chunked = reading("read"), reading("read1"), read_chunked
    response.close, response.release_conn = leaving("close"), leaving("release_conn")
