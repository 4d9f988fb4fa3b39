"""Raw HTTP requests as the rules see them, and Ratekeeper errors in a client's own exception family.

Nothing here imports a client library.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl, urlsplit

from ratekeeper.errors import DeadlineExceeded, RatekeeperError, SignatureWouldExpire
from ratekeeper.gate.outcomes import surely_unsent, unconnected
from ratekeeper.ledger.limit import SECOND
from ratekeeper.rules.book import normal_host
from ratekeeper.rules.call import Headers, Request
from ratekeeper.rules.reading import decoded

__all__ = [
    "Outbound",
    "from_url",
    "in_family",
    "kept_headers",
    "lowered",
    "netloc_of",
    "stale",
    "surely_unsent",
    "unconnected",
]

F = TypeVar("F", bound=RatekeeperError)

_DEFAULT_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}
_BODY_MAX = 65_536
"""The gate parses at most this many bytes of a request body. Larger bodies never name a cost or an owner."""

_OF_TRANSPORT = frozenset(
    """connection content-encoding content-length date keep-alive set-cookie transfer-encoding trailer upgrade""".split()  # noqa: SIM905
)
"""Headers about the transport or the recipient of a response. They mean nothing in a cached response."""


class Outbound(NamedTuple):
    """One HTTP request that a client library is about to send."""

    method: str
    scheme: str
    netloc: str
    """host or host:port, in the form of `normal_host`."""
    path: str
    query: str
    headers: Mapping[str, str]
    """Header names are lower-case."""
    body: bytes | str | None = None
    """The body if it is in memory: never a stream or a generator."""

    @property
    def base_url(self) -> str:
        """Scheme and host, as in ``https://fapi.binance.com``; a websocket handshake counts as HTTP."""
        scheme = {"ws": "http", "wss": "https"}.get(self.scheme, self.scheme)
        return f"{scheme}://{self.netloc}"

    def request(self) -> Request:
        """Return the request as the rules see it. There a websocket handshake has its own method."""
        method, query, headers = self.method, self.query, self.headers
        upgrade = headers.get("upgrade")
        if upgrade and upgrade.lower() == "websocket":
            method = "WS-CONNECT"
        if self.body or "%" in query or "+" in query:
            return Request(method, self.path, self.parameters(), self.json_body(), headers)
        pairs = [pair.partition("=")[::2] for pair in query.split("&") if pair]
        params: dict[str, Any] | None = dict(pairs) or None
        if params is not None and len(params) < len(pairs):  # a name occurs several times
            params = self.parameters()
        return Request(method, self.path, params, None, headers)

    def parameters(self) -> dict[str, Any] | None:
        """Return query and form parameters together; a repeated name becomes a list."""
        text = self.query
        if self.body and "x-www-form-urlencoded" in (self.headers.get("content-type") or ""):
            form = _text(self.body)
            text = f"{text}&{form}" if text and form else text or form
        if not text:
            return None
        found: dict[str, Any] = {}
        for name, value in parse_qsl(text, keep_blank_values=True):
            if name not in found:
                found[name] = value
            elif isinstance(found[name], list):
                found[name].append(value)
            else:
                found[name] = [found[name], value]
        return found

    def json_body(self) -> Any:
        """Return the parsed JSON body; ``None``: there is none, it is too large, or it is not JSON."""
        if not self.body or len(self.body) > _BODY_MAX or "json" not in (self.headers.get("content-type") or ""):
            return None
        return decoded(self.body)


def _text(body: bytes | str) -> str:
    if len(body) > _BODY_MAX:
        return ""
    return body if isinstance(body, str) else body.decode("utf-8", "replace")


def netloc_of(scheme: str, host: str, port: int | None) -> str:
    """Return ``host`` or ``host:port`` in the form of `normal_host`."""
    host = normal_host(host)
    return host if port is None or port == _DEFAULT_PORTS.get(scheme) else f"{host}:{port}"


def lowered(headers: Mapping[Any, Any] | None) -> Headers:
    """Return headers by lower-case name, from any mapping that a client accepts."""
    return Headers(
        [
            ((name if type(name) is str else _header(name)).lower(), value if type(value) is str else _header(value))
            for name, value in (headers or {}).items()
        ]
    )


def kept_headers(headers: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Return the headers that the cache stores with a response."""
    named = [(str(name), str(value)) for name, value in headers]
    return tuple(
        (name, value)
        for name, value in named
        if name.lower() not in _OF_TRANSPORT and not name.lower().startswith("x-ratekeeper-")
    )


def _header(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def from_url(method: str, url: str, headers: Mapping[str, str], body: Any = None) -> Outbound | None:
    """Return an `Outbound` from a whole URL; ``None``: the URL names no host."""
    parts = urlsplit(url)
    if not parts.hostname:
        return None
    netloc = netloc_of(parts.scheme, parts.hostname, parts.port)
    payload = body if isinstance(body, (bytes, str)) else None
    return Outbound(method.upper(), parts.scheme, netloc, parts.path or "/", parts.query, headers, payload)


def in_family(error: F, family: Callable[[], type[Exception]]) -> F:
    """Convert a Ratekeeper error into one that is also of the client library's own exception family.

    A program that catches ``httpx.TransportError`` (or its like) keeps working. A program that knows Ratekeeper can catch
    `Rejected` and read its fields.
    """
    kind = family()
    if isinstance(error, kind):
        return error
    ours: type[F] = getattr(error, "ours", type(error))
    return _rebuild(ours, kind, str(error), dict(vars(error)))


def stale(window: tuple[int, str], left: float, error: DeadlineExceeded | None = None) -> SignatureWouldExpire:
    """Return the error of a signed request that cannot leave before its signature expires.

    Args:
        window: see `Provider.signing_window`.
        left: seconds until it expires; below 0: it has expired.
        error: says what the request would wait for; None: it has expired already.
    """
    length, name = window
    text = f"already signed, with a signature that is valid for {length / SECOND:g} s"
    if error is None:
        text += f" and expired {max(0.0, -left):.1f} s ago by the provider's clock, so it was not sent"
    else:
        text += f", and stale before it may leave: {error}"
    return SignatureWouldExpire(
        f"{text}. Sign after the gate (as ratekeeper.adapters.ccxt does), sign anew before each try, widen the signing"
        f" window{f' ({name})' if name else ''}, correct the clock that signs, or spend less",
        limit="" if error is None else error.limit,
        scope="" if error is None else error.scope,
        retry_at=None if error is None else error.retry_at,
    )


def _rebuild(ours: type[F], theirs: type[Exception], message: str, fields: dict[str, Any]) -> F:
    joined: Any = _joined  # mypy does not take exception classes for hashable
    kind = joined(ours, theirs)
    try:
        made: F = kind(message)
    except TypeError:  # errors of this family need more than a text
        made = kind.__new__(kind, message)
    made.args = (message,)
    made.__dict__.update(fields)
    return made


@functools.cache
def _joined(ours: Any, theirs: Any) -> Any:
    """Make a class that inherits from both. Its errors pickle, so that they survive a process pool."""

    def reduce(self: RatekeeperError) -> tuple[Any, ...]:
        plain = (str, int, float, type(None))
        fields = {name: value for name, value in vars(self).items() if isinstance(value, plain)}
        return _rebuild, (ours, theirs, str(self), fields)

    body = {
        "__module__": ours.__module__,
        "__doc__": ours.__doc__,
        "__reduce__": reduce,
        "__str__": BaseException.__str__,  # our text instead of theirs
        "ours": ours,
    }
    return type(ours.__name__, (ours, theirs), body)
