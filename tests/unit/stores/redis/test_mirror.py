"""What a process keeps of a server's ledgers: bounded, and never what it may have to bring back."""

from __future__ import annotations

import msgspec

from ratekeeper.ledger.codec import create
from ratekeeper.ledger.limit import SECOND, Instant, Limit, Window
from ratekeeper.stores.records import FEW
from ratekeeper.stores.redis.lua import to_lua
from ratekeeper.stores.redis.mirror import Namespace

MINUTE = Limit("w", "weight", 100, 60 * SECOND, Window.SLIDING)
DAY = Limit("d", "weight", 100, 86_400 * SECOND, Window.SLIDING)
BEGIN = 10**6 * SECOND


def copy(limit: Limit, mono: int, seq: int = 1) -> bytes:
    """A ledger as the server writes it: something was spent at `mono`."""
    ledger, now = create(limit), Instant(mono, mono, mono)
    ledger.advance(now)
    ledger.spend(5, now)
    return msgspec.msgpack.encode(to_lua(ledger, seq))


def test_copies_at_rest_go() -> None:
    """Where owners come and go, a process keeps copies of those that count, and few others."""
    space, mono = Namespace("shop"), BEGIN
    space.keep([("shop/d/key:day", 1, copy(DAY, mono))], mono, mono)
    for number in range(5_000):
        mono += SECOND
        space.keep([(f"shop/w/key:{number}", 1, copy(MINUTE, mono))], mono, mono)
        assert len(space.copies) < 1_000
    assert "shop/d/key:day" in space.copies
    assert all(f"shop/w/key:{number}" in space.copies for number in range(4_941, 5_000))


def test_few_copies_stay() -> None:
    """A process with few ledgers keeps all copies."""
    space = Namespace("shop")
    for number in range(FEW):
        space.keep([(f"shop/w/key:{number}", 1, copy(MINUTE, BEGIN))], BEGIN + number * 10**6 * SECOND, BEGIN)
    assert len(space.copies) == FEW


def test_a_copy_older_than_what_the_server_keeps() -> None:
    """A ledger that the server has let go by itself is no sign that it lost its memory."""
    space = Namespace("shop")
    space.keep([("shop/w/key:a", 7, copy(MINUTE, BEGIN)), ("shop/d/key:a", 8, copy(DAY, BEGIN))], BEGIN, BEGIN)
    assert space.seen("shop/w/key:a", BEGIN + 3600 * SECOND) == 7
    assert space.seen("shop/w/key:a", BEGIN + 4 * 3600 * SECOND) == 0
    assert space.seen("shop/d/key:a", BEGIN + 24 * 3600 * SECOND) == 8
    assert space.seen("shop/d/key:a", BEGIN + 52 * 3600 * SECOND) == 0
    assert space.seen("shop/w/key:b", BEGIN) == 0
    assert not space.copies


def test_a_garbled_copy_goes() -> None:
    """Bytes that are no ledger are nothing to bring back."""
    space = Namespace("shop")
    space.keep([(f"shop/w/key:{number}", 1, b"\xc1") for number in range(FEW + 1)], BEGIN, BEGIN)
    space.keep([(f"shop/w/key:{-number}", 1, b"\xc1") for number in range(1, 100)], BEGIN, BEGIN)
    assert len(space.copies) < 2 * FEW
    assert space.seen("shop/w/key:-99", BEGIN + 4 * 3600 * SECOND) == 0
