"""At rest: a ledger that holds nothing which counts, whatever a clock says, so that a new one may take its place."""

from __future__ import annotations

import random

import pytest

from ratekeeper.ledger.base import FAR, Ledger
from ratekeeper.ledger.codec import create, pack, unpack
from ratekeeper.ledger.fixed import Fixed
from ratekeeper.ledger.limit import SECOND, Instant, Limit, Window

PERIOD = 10 * SECOND
KINDS = list(Window)


def limit_of(window: Window) -> Limit:
    """A limit of that kind."""
    return Limit("weight", "weight", 100, 0 if window is Window.SLOTS else PERIOD, window, refill=40)


def at(mono: int, dice: random.Random | None = None) -> Instant:
    """An instant; with dice, on a clock that may have been set by more than a window."""
    ahead = 1_700_000_000 * SECOND + (dice.randrange(-2 * PERIOD, 2 * PERIOD) if dice else 0)
    return Instant(mono, mono + ahead - SECOND // 100, mono + ahead + SECOND // 100)


def used_at_random(window: Window, dice: random.Random) -> tuple[Ledger, int, int]:
    """A ledger with a random past: it, the present, and the last instant at which anything was spent."""
    ledger, mono, held = create(limit_of(window)), dice.randrange(10**14, 10**15), list[int]()
    last = mono
    for _ in range(dice.randrange(1, 40)):
        mono += dice.randrange(PERIOD // 4)
        now = at(mono)
        ledger.advance(now)
        what, who = dice.randrange(6), (dice.randrange(1, 4), dice.randrange(3))
        if what <= 2 and ledger.available_at(5, who, now) == 0:
            ledger.take(5, who, now)
            held.append(5)
        elif what == 3 and held:
            ledger.settle(held.pop(), dice.randrange(9), now)
        elif what == 4 and held:
            ledger.lapse(held.pop(), now, now)
        elif what == 5:
            ledger.refused(who, 5, 5, mono + PERIOD, 1)
        last = mono
    return ledger, mono, last


@pytest.mark.parametrize("window", KINDS, ids=str)
@pytest.mark.parametrize("seed", range(25))
def test_nothing_counts_at_rest(window: Window, seed: int) -> None:
    """While units are in flight a ledger is not at rest. At rest nothing is used, nobody waits, all room is there, and at
    least a whole window has passed since the last unit was spent."""
    dice = random.Random(seed)
    ledger, mono, last = used_at_random(window, dice)
    if ledger.inflight:
        assert ledger.rests_at() == FAR
        ledger.advance(at(mono))
        ledger.lapse(ledger.inflight, at(mono), at(mono))
        last = mono
    rests_at = ledger.rests_at()
    assert rests_at < FAR
    assert not ledger.used or rests_at >= last + (0 if window is Window.BUCKET else ledger.limit.period)
    assert unpack(pack(ledger), ledger.limit).rests_at() == rests_at
    # A fixed window whose clock is set counts all that it holds as spent just now; steady time tells that it is over.
    for later in (at(rests_at),) if window is Window.FIXED else (at(rests_at), at(rests_at, dice)):
        copy = unpack(pack(ledger), ledger.limit)
        copy.advance(later)
        assert (copy.used, copy.inflight, copy.rows) == (0, 0, {})
        kept_back = copy.held if isinstance(copy, Fixed) else 0  # of a window that ended at least a period ago
        assert copy.room + kept_back == copy.limit.usable
        assert copy.era - copy.hot > 1


def test_a_forecast_is_kept_for_a_while() -> None:
    """What other programs use is remembered for hours, and what a refusal taught of the clock; a window that was only dated
    or counted is not."""
    plain, shared, taught = (create(limit_of(Window.FIXED)) for _ in range(3))
    now = at(10**14 + PERIOD // 2)
    for ledger in (plain, shared, taught):
        ledger.advance(now)
        ledger.take(5, (1, 0), now)
        ledger.settle(5, 5, at(now.mono + 10**6))
    plain.observe(5, now, 0, 5, 5, at(now.mono + 10**6))
    shared.observe(40, now, 0, 5, 5, at(now.mono + 10**6))
    taught.overrun(now, at(now.mono + 10**6), stated=False)
    assert plain.rests_at() < now.mono + 3 * PERIOD
    assert shared.rests_at() > now.mono + 3600 * SECOND
    assert taught.rests_at() > now.mono + 3600 * SECOND


def test_rows_of_programs_that_ended_merge() -> None:
    """Their use and their demand add up, in the row of an heir; who waits keeps a row."""
    ledger = create(Limit("weight", "weight", 1000, 86_400 * SECOND, Window.FIXED))
    now = at(10**14)
    ledger.advance(now)
    for member in range(1, 11):
        ledger.take(member, (member, 2), now)
    ledger.refused((10, 2), 5, 5, now.mono + PERIOD, 1)
    used = ledger.inflight
    ledger.inherit(dict.fromkeys(range(2, 11), 1), now.mono)
    assert sorted(ledger.rows) == [(1, 2), (10, 2)]
    assert sum(row[0] for row in ledger.rows.values()) == used == 55
    assert ledger.rows[1, 2][13] == now.mono
