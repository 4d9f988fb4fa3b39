"""The side that speaks to providers: a client session that changes nothing of what passes through it."""

from __future__ import annotations

import aiohttp

from ratekeeper.adapters.aiohttp import Connector

__all__ = ["LONGEST_LINE", "open_session"]

LONGEST_LINE = 1 << 16
"""Bytes of a request line or a header that are passed on; batch calls put lists of orders into the query."""
_CONNECT = 10.0
"""Seconds to reach an upstream."""


def open_session(silence: float) -> aiohttp.ClientSession:
    """A session that keeps no cookies, unpacks nothing, follows no proxy of the environment and adds no header. Each call
    leaves from the address that its permit names.

    Args:
        silence: seconds without a byte from an upstream after which a call fails.
    """
    session = aiohttp.ClientSession(
        connector=Connector(limit=0),  # the gate decides how many calls there are, not a pool
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT, sock_read=silence),
        auto_decompress=False,
        trust_env=False,
        skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
        max_line_size=LONGEST_LINE,
        max_field_size=LONGEST_LINE,
    )
    # aiohttp would send some calls again when a kept connection was dropped: those would not have passed the gate.
    # `Forward` does it itself, with a permit of its own. A test fails if an upgrade moves this.
    session._retry_connection = False
    return session
