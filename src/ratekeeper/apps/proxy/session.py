"""The client side of the proxy: an aiohttp session that changes nothing, and does no more for a call than it must."""

from __future__ import annotations

import asyncio
import functools
import math
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from multidict import CIMultiDict

from ratekeeper.adapters.aiohttp import Connector

__all__ = ["LONGEST_LINE", "open_session"]

LONGEST_LINE = 1 << 16
"""Bytes of a request line or a header that are passed on; batch calls put lists of orders into the query."""
_CONNECT = 10.0
"""Seconds to reach an upstream."""
_UNADDED = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
"""Headers that aiohttp's client adds to a request that lacks them."""


class _Request(aiohttp.ClientRequest):
    """A request that is passed on unchanged. aiohttp would copy all headers twice to leave out its own."""

    _skip_auto_headers = CIMultiDict[None]((name, None) for name in _UNADDED)

    def update_auto_headers(self, skip_auto_headers: object) -> None:
        """Add nothing."""


class _Connection(ResponseHandler):
    """A connection whose read timeout costs no timer for each piece that arrives.

    aiohttp sets a timer for a piece and cancels it with the next one. Here the timer of the first piece stays; when it is
    over and something has arrived meanwhile, another one runs for the rest.
    """

    _due = math.inf
    """When the upstream has been silent for too long, on the loop's clock."""

    def _reschedule_timeout(self) -> None:
        self._due = self._loop.time() + self._read_timeout if self._read_timeout else math.inf
        if self._read_timeout_handle is None and self._read_timeout:
            self._read_timeout_handle = self._loop.call_at(self._due, self._on_read_timeout)

    def _drop_timeout(self) -> None:
        self._due = math.inf

    def _on_read_timeout(self) -> None:
        self._read_timeout_handle = None
        if self._due <= self._loop.time():
            super()._on_read_timeout()
        elif self._due < math.inf:
            self._read_timeout_handle = self._loop.call_at(self._due, self._on_read_timeout)

    def connection_lost(self, exc: BaseException | None) -> None:
        """End, with the timer."""
        super().connection_lost(exc)
        super()._drop_timeout()


def open_session(silence: float) -> aiohttp.ClientSession:
    """A session that keeps no cookies, unpacks nothing, follows no proxy of the environment and adds no header. Each call
    leaves from the address that its permit names.

    Args:
        silence: seconds without a byte from an upstream after which a call fails.
    """
    connector: Any = Connector(limit=0)  # the gate decides how many calls there are, not a pool
    connector._factory = functools.partial(_Connection, loop=asyncio.get_running_loop())
    session = aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT, sock_read=silence),
        auto_decompress=False,
        trust_env=False,
        skip_auto_headers=_UNADDED,
        request_class=_Request,
        max_line_size=LONGEST_LINE,
        max_field_size=LONGEST_LINE,
    )
    # aiohttp would send some calls again when a kept connection was dropped: those would not have passed the gate.
    # `Forward` does it itself, with a permit of its own. A test fails if an upgrade moves this, or the factory.
    session._retry_connection = False
    return session
