"""Discovers the public address that calls really leave from: it asks the echo URL that the user configured, once an hour."""

from __future__ import annotations

import functools
import http.client
import ipaddress
import threading
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable
from hashlib import blake2b
from typing import Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit

from ratekeeper.errors import StoreError
from ratekeeper.ledger.limit import SECOND
from ratekeeper.policy.shared import age
from ratekeeper.pools.address import Address
from ratekeeper.rules.reading import decoded
from ratekeeper.stores.base import Store

__all__ = ["Echo", "opener", "public_address"]

_FRESH: Final = 3600 * SECOND
_FAILED: Final = 60 * SECOND
_PATIENCE: Final = 4.0
"""Seconds to wait for each piece of an answer, and for its whole body."""
_MOST: Final = 65_536
"""Most bytes read of an answer."""


class _Heard(NamedTuple):
    """A public address that an echo stated at the instant `at` (steady ns of the store)."""

    at: int
    public: str


class Echo:
    """The public addresses that the echo stated, shared by all processes of the store."""

    def __init__(self, url: str, store: Store, tell: Callable[..., object]) -> None:
        self._url = url
        self._store = store
        self._tell = tell
        self._lock = threading.Lock()
        self._found: dict[str, tuple[str, int]] = {}

    def known(self, address: Address) -> str:
        """Return the last known public address; ``""`` if there is none."""
        return self._found.get(address.name, ("", 0))[0]

    def fresh(self, address: Address) -> bool:
        """Whether the last answer is recent enough not to ask again."""
        return time.monotonic_ns() < self._found.get(address.name, ("", 0))[1]

    def ask(self, address: Address) -> None:
        """Ask the echo, unless any process asked lately. If that fails, the last known address applies, else the address's
        name."""
        if self.fresh(address):
            return
        with self._lock:
            if self.fresh(address):
                return
            if self.recall(address):
                return
            public, at = self._hear(address), time.monotonic_ns()
            if public:
                self._store.update(
                    self._topic(address), _Heard, lambda _, now: (_Heard(now.lo, public), None), 2 * _FRESH
                )
            self._found[address.name] = public or self.known(address), at + (_FRESH if public else _FAILED)

    def recall(self, address: Address) -> bool:
        """Take the answer of another process. True if it is recent."""
        try:
            heard = self._store.get(self._topic(address), _Heard)
            public = "" if heard is None else str(ipaddress.ip_address(heard.public))
        except (StoreError, ValueError):
            return False
        old = -1 if heard is None else age(heard.at, self._store.present())
        if not 0 <= old < _FRESH:
            return False
        self._found[address.name] = public, time.monotonic_ns() + _FRESH - old
        return True

    def _topic(self, address: Address) -> str:
        """Return the note's topic. It holds only a digest, because a proxy's URL may hold a password."""
        said = f"{self._url} {address.bind} {address.proxy}"
        return f"echo:{blake2b(said.encode(), digest_size=12).hexdigest()}"

    def _hear(self, address: Address) -> str:
        request = urllib.request.Request(self._url, headers={"User-Agent": "ratekeeper"})  # noqa: S310 - the user's own URL
        try:
            with opener(address).open(request, timeout=_PATIENCE) as answer:
                return public_address(_body(answer))
        except (OSError, ValueError, http.client.HTTPException) as error:
            why = getattr(error, "reason", None) or error
            self._tell(
                "egress",
                f"the echo says nothing about {address.name} ({type(why).__name__}): its scope is {address.name!r}",
                address=address.name,
            )
            return ""


def _body(answer: Any) -> bytes:
    """Read the body, up to the size limit.

    Raises:
        TimeoutError: it came too slowly.
    """
    body, end = b"", time.monotonic() + _PATIENCE
    while len(body) < _MOST and (piece := answer.read1(_MOST)):
        body += piece
        if time.monotonic() > end:
            raise TimeoutError
    return body


def public_address(body: bytes) -> str:
    """Return the address in an echo's answer: plain text, or JSON with ``ip``, ``origin``, ``address`` or ``query``.

    Raises:
        ValueError: the answer holds no address.
    """
    text = body.decode("utf-8", "replace").strip()
    if text.startswith("{"):
        said = decoded(text) or {}
        text = next((str(said[key]) for key in ("ip", "origin", "address", "query") if said.get(key)), "")
    # Behind several proxies an echo may list all of them: the first is the client's.
    return str(ipaddress.ip_address(text.split(",")[0].strip().strip('"')))


def opener(address: Address) -> urllib.request.OpenerDirector:
    """Return an opener of the standard library that leaves from an address. A proxy must be a plain HTTP one."""
    if address.plain:
        return urllib.request.build_opener()
    proxies = {"http": address.proxy, "https": address.proxy} if address.proxy else {}
    handlers: list[urllib.request.BaseHandler] = [_Proxy(proxies)]
    if address.bind:
        handlers += [_Http(address.bind), _Https(address.bind)]
    if address.proxy and urlsplit(address.proxy).scheme != "http":
        raise ValueError("the standard library knows no such proxy")
    return urllib.request.build_opener(*handlers)


class _Proxy(urllib.request.ProxyHandler):
    """A proxy handler that ignores the environment's exceptions (``no_proxy``), because the user named the proxy."""

    def proxy_open(self, req: urllib.request.Request, proxy: str, type: str) -> None:  # noqa: A002 - the base's own name
        parts = urlsplit(proxy)
        if parts.username:
            said = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            req.add_header("Proxy-authorization", "Basic " + b64encode(said.encode()).decode("ascii"))
        req.set_proxy(parts.netloc.rpartition("@")[2], "http")


class _Http(urllib.request.HTTPHandler):
    def __init__(self, bind: str) -> None:
        super().__init__()
        self._made = functools.partial(http.client.HTTPConnection, source_address=(bind, 0))

    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(self._made, req)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, bind: str) -> None:
        super().__init__()
        self._made = functools.partial(http.client.HTTPSConnection, source_address=(bind, 0))

    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(self._made, req)
