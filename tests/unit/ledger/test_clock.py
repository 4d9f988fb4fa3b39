"""What time it is on the server, within bounds that always hold the truth."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from ratekeeper.ledger.clock import FIRST_DOUBT, ServerClock
from ratekeeper.ledger.limit import SECOND

MILLI = SECOND // 1000
BEGIN = 1000 * SECOND
WALL = 1_700_000_000 * SECOND


def test_the_wall_clock_is_believed_within_a_second() -> None:
    """Before the server has spoken, its clock is ours, give or take a second."""
    now = ServerClock(BEGIN, WALL).instant(BEGIN + 5, WALL + 5)
    assert (now.lo, now.hi) == (WALL + 5 - FIRST_DOUBT, WALL + 5 + FIRST_DOUBT)


def test_answers_narrow_the_bounds() -> None:
    """Each stamp lies between sending and answer; bounds only get narrower, but never below what two machines differ."""
    clock = ServerClock(BEGIN, WALL)
    assert not clock.learn(BEGIN, BEGIN + 50 * MILLI, WALL + 20 * MILLI, WALL + 21 * MILLI)
    assert clock.known
    assert 20 * MILLI <= clock.hi - clock.lo <= 72 * MILLI
    for _ in range(50):
        clock.learn(BEGIN, BEGIN + MILLI, WALL, WALL + MILLI)
    assert clock.hi - clock.lo >= 20 * MILLI


@given(seed=st.integers(0, 10_000), offset=st.integers(-900 * MILLI, 900 * MILLI), dates=st.booleans())
def test_the_truth_stays_inside(seed: int, offset: int, dates: bool) -> None:
    """Whatever the delays, and while the clocks drift apart by up to 100 ppm, the server's time lies within the bounds."""
    r = random.Random(seed)
    clock, mono = ServerClock(BEGIN, WALL), BEGIN
    drift = r.choice((-10_000, 10_000, 1 << 60))

    def server(at: int) -> int:
        return at - BEGIN + WALL + offset + (at - BEGIN) // drift

    for _ in range(40):
        sent = mono + r.randrange(20 * SECOND)
        stamped = sent + r.randrange(3 * SECOND)
        mono = stamped + r.randrange(3 * SECOND)
        grain = SECOND if dates else MILLI
        told = server(stamped) // grain * grain
        assert not clock.learn(sent, mono, told, told + grain)
        for later in (mono, mono + r.randrange(3600 * SECOND)):
            now = clock.instant(later, WALL + later - BEGIN)
            assert now.lo <= server(later) <= now.hi


def test_a_contradiction_is_told_and_believed() -> None:
    """A stamp far outside the bounds replaces them, and says that what was counted is in doubt."""
    clock = ServerClock(BEGIN, WALL)
    assert clock.learn(BEGIN, BEGIN + MILLI, WALL + 60 * SECOND, WALL + 60 * SECOND)
    now = clock.instant(BEGIN + MILLI, WALL + MILLI)
    assert now.lo <= WALL + 60 * SECOND + MILLI <= now.hi


def test_servers_a_little_apart_are_both_believed() -> None:
    """Two machines behind one name whose clocks differ by some milliseconds widen the bounds over both."""
    clock = ServerClock(BEGIN, WALL)
    for _ in range(5):
        clock.learn(BEGIN, BEGIN, WALL, WALL)
        assert not clock.learn(BEGIN, BEGIN, WALL + 50 * MILLI, WALL + 50 * MILLI)
        assert clock.lo <= WALL - BEGIN
        assert clock.hi >= WALL - BEGIN + 50 * MILLI


def test_a_forward_step_may_be_sleep() -> None:
    """A wall clock that jumps ahead was set, or the machine slept: both stay possible until the server tells."""
    clock = ServerClock(BEGIN, WALL)
    clock.learn(BEGIN, BEGIN, WALL, WALL)
    now = clock.instant(BEGIN + SECOND, WALL + 3601 * SECOND)
    assert now.lo <= WALL + SECOND
    assert now.hi >= WALL + 3601 * SECOND
    clock.learn(BEGIN + SECOND, BEGIN + SECOND, WALL + 3601 * SECOND, WALL + 3601 * SECOND)
    assert clock.hi - clock.lo <= 40 * MILLI


def test_a_backward_step_means_nothing_once_the_server_told() -> None:
    """A wall clock that is set back does not move a server's clock that is known, and moves one that is not."""
    told, guessed = ServerClock(BEGIN, WALL), ServerClock(BEGIN, WALL)
    told.learn(BEGIN, BEGIN, WALL, WALL)
    before = told.instant(BEGIN + 1, WALL + 1)
    assert told.instant(BEGIN + 1, WALL - 3600 * SECOND) == before
    now = guessed.instant(BEGIN + 1, WALL - 3600 * SECOND)
    assert now.lo <= WALL - 3600 * SECOND
    assert now.hi >= WALL


def test_widening_is_for_clocks_that_were_never_told() -> None:
    """A refusal that nothing explains widens a guess, not knowledge."""
    guessed, told = ServerClock(BEGIN, WALL), ServerClock(BEGIN, WALL)
    told.learn(BEGIN, BEGIN, WALL, WALL)
    width = told.doubt
    for clock in (guessed, told):
        clock.widen(30 * SECOND)
    assert guessed.doubt == 30 * SECOND
    assert told.doubt == width


def test_a_stamp_that_says_nothing_new_changes_nothing() -> None:
    """What is covered by the bounds leaves them as they are when it is learned at that instant."""
    clock = ServerClock(BEGIN, WALL)
    clock.learn(BEGIN, BEGIN + 50 * MILLI, WALL + 20 * MILLI, WALL + 21 * MILLI)
    at, bounds = clock.at, (clock.lo, clock.hi)
    wide = (at, at + 60 * MILLI, WALL + at - BEGIN - 300 * MILLI, WALL + at - BEGIN + 700 * MILLI)
    assert clock.covers(*wide)
    clock.at = at + 60 * MILLI  # no drift
    assert not clock.learn(*wide)
    assert (clock.lo, clock.hi) == bounds
    later = WALL + at - BEGIN + 40 * MILLI
    assert not clock.covers(at, at + 20 * MILLI, later, later + SECOND)
