"""What a raw request says, what an exception means, and errors that belong to two families."""

from __future__ import annotations

import pickle
import socket
import ssl

import aiohttp
import httpx
import httpx2
import pytest
import requests
import urllib3
from yarl import URL

from ratekeeper import CannotFit, Rejected
from ratekeeper.adapters import aiohttp as adapters_aiohttp
from ratekeeper.adapters import httpx as adapters_httpx
from ratekeeper.adapters import urllib3 as adapters_urllib3
from ratekeeper.adapters._wire import Outbound, from_url, in_family, lowered, netloc_of, surely_unsent, unconnected


@pytest.mark.parametrize(
    ("scheme", "host", "port", "expected"),
    [
        ("https", "API.Example.com", None, "api.example.com"),
        ("https", "api.example.com", 443, "api.example.com"),
        ("http", "127.0.0.1", 9300, "127.0.0.1:9300"),
        ("wss", "x", 80, "x:80"),
        ("https", "API.example.com.", 443, "api.example.com"),
        ("https", "b\u00fccher.example", None, "xn--bcher-kva.example"),
        ("http", "::1", 80, "[::1]"),
        ("http", "[::1]", 81, "[::1]:81"),
    ],
)
def test_netloc(scheme: str, host: str, port: int | None, expected: str) -> None:
    """One spelling per host, whichever library names it."""
    assert netloc_of(scheme, host, port) == expected


@pytest.mark.parametrize(
    "url", ["https://API.example.com/p", "https://api.example.com./p", "https://api.example.com:443/p"]
)
def test_every_client_names_one_host(url: str) -> None:
    """The final dot, the case and the default port are nobody's difference."""
    parts = urllib3.util.parse_url(url)
    pool = urllib3.PoolManager().connection_from_url(url)
    made = [
        from_url("GET", url, {}),
        adapters_aiohttp._from_yarl("GET", URL(url), {}, None),
        adapters_urllib3._outbound(pool, "GET", parts.request_uri, None, {}),
        *(adapters_httpx._outbound(library.Request("GET", url)) for library in (httpx, httpx2)),
    ]
    assert {(each.netloc, each.path) for each in made if each is not None} == {("api.example.com", "/p")}
    assert None not in made


def test_parameters() -> None:
    """Query and form together; repeated names become lists; empty values stay."""
    form = {"content-type": "application/x-www-form-urlencoded; charset=utf-8"}
    outbound = from_url("post", "https://x/p?a=1&b=&a=2&a=3", form, b"c=%2F&b=4")
    assert outbound is not None
    assert outbound.method == "POST"
    assert outbound.parameters() == {"a": ["1", "2", "3"], "b": ["", "4"], "c": "/"}
    assert outbound.base_url == "https://x"
    assert from_url("GET", "https://x", {})._replace(body="ignored").parameters() is None  # type: ignore[union-attr]
    assert from_url("GET", "/relative", {}) is None


def test_json_body() -> None:
    """A small JSON body is parsed; a large, a broken or another one is not looked at."""
    outbound = Outbound("POST", "https", "x", "/", "", {"content-type": "application/json"}, b'{"a": [1]}')
    assert outbound.json_body() == {"a": [1]}
    assert outbound._replace(body='{"a": 2}').json_body() == {"a": 2}
    for other in (b"", b"{", b"\xff", b'"' + b"x" * 70_000 + b'"'):
        assert outbound._replace(body=other).json_body() is None
    assert outbound._replace(headers={}).json_body() is None


def test_handshakes_of_websockets() -> None:
    """The rules know a websocket's handshake under a method of its own, and HTTP reads its limits."""
    outbound = from_url("GET", "wss://x:443/ws", {"upgrade": "websocket"})
    assert outbound is not None
    assert outbound.request().method == "WS-CONNECT"
    assert outbound.base_url == "https://x"


def test_lowered() -> None:
    """Headers of any shape become text with lower-case names."""
    assert lowered({b"X-A": b"1", "X-B": 2}) == {"x-a": "1", "x-b": "2"}
    assert lowered(None) == {}


POOL = urllib3.HTTPConnectionPool("x")


@pytest.mark.parametrize(
    "error",
    [
        httpx.ConnectError("x"),
        httpx.ConnectTimeout("x"),
        httpx.PoolTimeout("x"),
        httpx2.ConnectError("x"),
        urllib3.exceptions.NameResolutionError("x", urllib3.connection.HTTPConnection("x"), socket.gaierror()),
        urllib3.exceptions.MaxRetryError(POOL, "/", urllib3.exceptions.ConnectTimeoutError()),
        requests.ConnectionError(
            urllib3.exceptions.MaxRetryError(POOL, "/", urllib3.exceptions.ProxyError("x", OSError()))
        ),
        requests.ConnectTimeout("x"),
        aiohttp.ConnectionTimeoutError("x"),
        aiohttp.InvalidURL("x"),
        urllib3.exceptions.SSLError(ssl.SSLCertVerificationError("x")),
    ],
    ids=lambda error: type(error).__name__,
)
def test_surely_unsent(error: Exception) -> None:
    """Without a connection nothing can have arrived, whoever wraps the news."""
    assert surely_unsent(error)
    wrapped = RuntimeError("outer")
    wrapped.__cause__ = error
    assert surely_unsent(wrapped)


@pytest.mark.parametrize(
    "error",
    [
        httpx.ReadTimeout("x"),
        httpx.ReadError("x"),
        httpx.RemoteProtocolError("x"),
        urllib3.exceptions.ProtocolError("x", ConnectionResetError()),
        urllib3.exceptions.ReadTimeoutError(POOL, "/", "x"),
        requests.ReadTimeout("x"),
        requests.ConnectionError(urllib3.exceptions.ProtocolError("x", OSError())),
        aiohttp.ServerDisconnectedError(),
        aiohttp.SocketTimeoutError("x"),
        TimeoutError(),
        OSError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_perhaps_sent(error: Exception) -> None:
    """Whatever is not known to be harmless may have arrived; a circle of causes is no trap."""
    assert not surely_unsent(error)
    error.__cause__ = error
    assert not surely_unsent(error)


@pytest.mark.parametrize(
    "family",
    [
        httpx.TransportError,
        httpx2.TransportError,
        requests.RequestException,
        aiohttp.ClientError,
        urllib3.exceptions.HTTPError,
    ],
    ids=lambda family: f"{family.__module__}.{family.__name__}",
)
def test_errors_of_two_families(family: type[Exception]) -> None:
    """One error is both; it keeps its kind, its text and its fields, also through another family and a pickle."""
    error = CannotFit("too big", limit="weight", scope="ip:default", retry_at=7.0)
    made = in_family(error, lambda: family)
    assert isinstance(made, family) and isinstance(made, CannotFit)
    assert type(made).__name__ == "CannotFit"
    other = in_family(made, lambda: LookupError)
    assert isinstance(other, LookupError) and not isinstance(other, family)
    for copy in (made, other, pickle.loads(pickle.dumps(made))):
        assert (str(copy), copy.limit, copy.scope, copy.retry_at) == ("too big", "weight", "ip:default", 7.0)
    assert in_family(made, lambda: family) is made
    assert type(in_family(Rejected("x"), lambda: family)) is type(in_family(Rejected("y"), lambda: family))


def test_no_connection_may_be_the_fault_of_the_address() -> None:
    """A refused connection may be; a name that nobody knows, a bad certificate and a lost answer are not."""
    refused = httpx.ConnectError("x")
    refused.__cause__ = ConnectionRefusedError()
    unknown = httpx.ConnectError("x")
    unknown.__cause__ = socket.gaierror()
    assert unconnected(refused) and unconnected(httpx.ConnectTimeout("x"))
    assert not unconnected(unknown)
    assert not unconnected(httpx.ReadTimeout("x")) and not unconnected(httpx.PoolTimeout("x"))
