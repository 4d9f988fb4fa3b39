"""ratekeeper.apps.proxy.wire: what goes on, and what the rules can read of it."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from multidict import CIMultiDict

from ratekeeper.apps.proxy import wire
from ratekeeper.apps.proxy.wire import LEASES, Leases, kept, passed, readable, spelled, unpacked

BODY = b'{"code": -1003}' * 40


def test_headers_of_the_connection_stay_behind() -> None:
    """Also those that a Connection header names, wherever it stands; the others keep spelling, order and repetition."""
    raw = [
        (b"x-hop", b"1"),
        (b"X-tHis", b"1"),
        (b"Keep-Alive", b"5"),
        (b"Connection", b"close, X-Hop"),
        (b"X-tHis", b"\xc3\xa9"),
    ]
    assert list(passed(spelled(raw)).items()) == [("X-tHis", "1"), ("X-tHis", "é")]


@pytest.mark.parametrize(
    ("asked", "goes_on"),
    [
        ("gzip, deflate", "gzip, deflate"),
        ("GZIP;q=1.0, br, zstd;q=0.1", "GZIP;q=1.0"),
        ("br", "identity"),
        ("*", "identity"),
        ("", ""),
    ],
)
def test_only_readable_codings_are_asked_for(asked: str, goes_on: str) -> None:
    """What is readable anyhow goes on as it was written."""
    headers = CIMultiDict({"accept-encoding": asked})
    readable(headers)
    assert headers["Accept-Encoding"] == goes_on
    nothing: CIMultiDict[str] = CIMultiDict()
    readable(nothing)
    assert not nothing


@pytest.mark.parametrize(
    ("packed", "coding"),
    [
        (BODY, ""),
        (BODY, "identity"),
        (gzip.compress(BODY, mtime=0), "gzip"),
        (gzip.compress(BODY, mtime=0), "x-gzip"),
        (zlib.compress(BODY), "deflate"),
        (zlib.compress(BODY)[2:-4], "deflate"),
    ],
)
def test_the_rules_read_packed_bodies(packed: bytes, coding: str) -> None:
    """Every coding that is asked for, and deflate without its head too."""
    assert unpacked(packed, coding) == BODY


@pytest.mark.parametrize(
    ("packed", "coding"), [(BODY, "gzip"), (gzip.compress(BODY, mtime=0)[:-9], "gzip"), (b"", "gzip"), (BODY, "br")]
)
def test_what_cannot_be_read_is_nothing(packed: bytes, coding: str) -> None:
    """Rather no body than a wrong one."""
    assert unpacked(packed, coding) is None


def test_permits_are_renewed_until_the_block_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """By one timer for all, which ends with the last; a renewal that fails stops no other."""
    monkeypatch.setattr(wire, "_RENEW", 0.01)

    class Attempt:
        count = 0

        def streaming(self) -> None:
            self.count += 1
            if self is bad:
                raise RuntimeError

    one, two, bad = Attempt(), Attempt(), Attempt()

    async def until(done: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not done():
                await asyncio.sleep(0.005)

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        leases = Leases()
        LEASES.set(leases)
        attempts: Any = (one, two, bad)
        with kept(attempts[0]), kept(attempts[2]), kept(None):
            with suppress(ValueError), kept(attempts[1]):
                await until(lambda: two.count)
                raise ValueError
            seen, last = two.count, one.count
            await until(lambda: one.count > last + 1)
        assert not leases.held
        assert two.count == seen
        await until(lambda: leases._timer is None)

    asyncio.run(main())
    assert bad.count > 1
