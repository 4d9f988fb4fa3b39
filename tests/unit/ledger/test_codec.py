"""Ledgers as integers and back."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratekeeper.ledger.codec import convert, create, pack, unpack
from ratekeeper.ledger.limit import SECOND, Instant, Limit, Window

KINDS = list(Window)


def limit_of(window: Window) -> Limit:
    """A limit of that kind."""
    return Limit("l", "u", 100, 0 if window is Window.SLOTS else 10 * SECOND, window, headroom=3)


def now(seconds: float) -> Instant:
    """A moment, with doubt."""
    mono = int(seconds * SECOND)
    return Instant(mono, mono - SECOND // 10, mono + SECOND // 10)


@given(seed=st.integers(0, 100_000), window=st.sampled_from(KINDS))
def test_nothing_is_lost(seed: int, window: Window) -> None:
    """After any history a ledger and its copy decide alike, now and later."""
    r, time = random.Random(seed), 100.0
    ledger = create(limit_of(window))
    ledger.advance(now(time))
    for _ in range(r.randrange(40)):
        time += r.random()
        if time >= ledger.turn:
            ledger.advance(now(time))
        what, cost, who = r.randrange(5), r.randint(1, 9), (r.randrange(3), r.randrange(5))
        if what < 2 or not ledger.inflight:
            ledger.take(cost, who, now(time))
        elif what == 2:
            ledger.settle(ledger.inflight, r.randrange(ledger.inflight + 1), now(time))
        elif what == 3:
            ledger.refund(ledger.inflight)
        else:
            ledger.refused(who, cost, cost * 3, now(time + 5).mono, 2)
    copy = unpack(pack(ledger), ledger.limit)
    assert pack(copy) == pack(ledger)
    assert copy.limit is ledger.limit
    for later in (time, time + 0.5, time + 3, time + 30):
        for one in (ledger, copy):
            if later >= one.turn:
                one.advance(now(later))
        assert copy.room == ledger.room
        for cost in (1, 20, 97):
            assert copy.available_at(cost, (7, 2), now(later)) == ledger.available_at(cost, (7, 2), now(later))


def test_the_written_numbers_hold() -> None:
    """A ledger carries its own limit's numbers; a caller's limit is used only if it has the same."""
    raw = pack(create(limit_of(Window.FIXED)))
    assert unpack(raw).limit.capacity == 100
    other = replace(limit_of(Window.FIXED), capacity=50)
    assert unpack(raw, other).limit.capacity == 100
    assert unpack(raw, other).limit.name == "l"


@pytest.mark.parametrize("window", KINDS)
def test_garbage_is_refused(window: Window) -> None:
    """What is not a ledger is a ValueError, never a ledger with nothing spent."""
    raw = pack(create(limit_of(window)))
    for wrong in (b"", b"x", raw[:-8], raw[:96], raw[:50], raw + b"\0" * 8, b"\xff" * len(raw), b"\0" * len(raw)):
        if wrong != raw:
            with pytest.raises(ValueError):
                unpack(wrong)


@pytest.mark.parametrize("before", KINDS)
@pytest.mark.parametrize("after", KINDS)
def test_another_kind_takes_over(before: Window, after: Window) -> None:
    """A limit that becomes of another kind keeps what is in flight, and takes what is spent as spent just now."""
    ledger = create(limit_of(before))
    ledger.advance(now(100))
    ledger.take(30, (1, 0), now(100))
    ledger.advance(now(100.5))
    ledger.settle(20, 20, now(100.5))
    other = convert(ledger, limit_of(after), now(101))
    assert other.inflight == 10
    spent = 0 if Window.SLOTS in (before, after) else 20
    assert spent - (5 if before is Window.BUCKET else 0) <= other.used <= spent
    assert other.room == 97 - 10 - other.used
