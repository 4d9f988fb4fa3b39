"""The server's clock: what round trips say of it, and instants that are never too early."""

from __future__ import annotations

from ratekeeper.ledger.limit import SECOND, Instant
from ratekeeper.stores.redis.clock import ServerClock
from ratekeeper.stores.redis.protocol import EVER, FAR, MICRO

AHEAD = 1000 * SECOND
"""The server's clock is so far ahead."""


def asked(clock: ServerClock, at: int, out: int, back: int, ahead: int = AHEAD) -> None:
    """A round trip that took so long out and back (ns)."""
    clock.learn(at, at + out + back, (at + out + ahead) // MICRO)


def test_round_trips_narrow_the_bounds() -> None:
    """The truth lies always within, and the shortest trip in each direction counts."""
    clock = ServerClock()
    asked(clock, SECOND, 5_000_000, 5_000_000)
    assert clock.lo <= AHEAD <= clock.hi
    assert clock.hi - clock.lo <= 10_001_000
    asked(clock, SECOND + 20_000_000, 1_000_000, 5_000_000)
    asked(clock, SECOND + 40_000_000, 5_000_000, 1_000_000)
    assert clock.lo <= AHEAD <= clock.hi
    assert clock.hi - clock.lo < 2_100_000
    assert not clock.jumps


def test_a_clock_that_jumped_is_believed_along_with_the_old_one() -> None:
    """For five minutes; it counts as one jump."""
    clock = ServerClock()
    for step in range(3):
        asked(clock, SECOND + step, 1000, 1000, AHEAD if not step else AHEAD + 60 * SECOND)
    assert clock.lo <= AHEAD
    assert clock.hi >= AHEAD + 60 * SECOND
    assert clock.jumps == 1
    for step in range(2):
        asked(clock, 400 * SECOND + step, 1000, 1000, AHEAD + 60 * SECOND)
    assert clock.lo > AHEAD
    assert clock.jumps == 1


def test_instants_there_and_here() -> None:
    """The later if in doubt, so what was there and back is never earlier; what never comes stays so."""
    clock = ServerClock()
    asked(clock, SECOND, 3_000_000, 7_000_000)
    for instant in (SECOND, 5 * SECOND + 1):
        assert instant <= clock.here(clock.there(instant)) <= instant + 10_100_000
    assert clock.here(FAR) == EVER
    assert clock.there(EVER) == FAR


def test_an_instant_with_its_doubt() -> None:
    """The bounds of the provider's clock are as wide on the server's clock, or wider."""
    clock = ServerClock()
    asked(clock, SECOND, 3_000_000, 7_000_000)
    now = Instant(2 * SECOND, 2 * SECOND - 5_000_000, 2 * SECOND + 5_000_000)
    mono, lo, hi = clock.stamp(now)
    assert lo * MICRO <= now.lo
    assert hi * MICRO >= now.hi
    assert mono * MICRO <= now.mono + AHEAD
    header = clock.header(now)
    assert header["dlo"] * MICRO <= now.lo - (now.mono + AHEAD)
    assert header["dhi"] * MICRO >= now.hi - (now.mono + AHEAD)
    assert clock.instant(now) == Instant(now.mono + clock.lo, now.lo, now.hi)


def test_instants_that_come_with_the_calls() -> None:
    """Both clocks are one, and nobody's word changes that."""
    clock = ServerClock(given=True)
    asked(clock, SECOND, 1000, 1000)
    assert (clock.lo, clock.hi) == (0, 0)
    assert clock.header(Instant(7_000, 6_000, 9_000)) == {"now": 7, "dlo": -1, "dhi": 2}
