"""As much trouble as was asked for; the clock that counts and those that date, on instants that are arguments."""

from __future__ import annotations

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from ratekeeper.apps.emulator.options import Options
from ratekeeper.apps.emulator.state import MACHINES, SECOND, Chances, Clocks

WALL = 1_800_000_000 * SECOND


def clocks(**options: object) -> tuple[Options, Clocks]:
    """Clocks that begin at `WALL`."""
    chosen = Options(provider="binance-usdm", **options)  # type: ignore[arg-type]
    return chosen, Clocks(chosen, random.Random(1), WALL)


def ahead(made: Clocks, wall: int = WALL, port: int = 40_000) -> int:
    """The clock that dates less the one that counts, ns."""
    return made.dating(wall, port) - made.counting(wall)


def test_without_options_all_clocks_are_the_machines_own() -> None:
    """Nothing is added by itself."""
    _, made = clocks()
    assert made.counting(WALL) == made.dating(WALL, 40_000) == WALL


def test_the_sign_of_the_offset() -> None:
    """+0.4: `Date` is 0.4 s ahead, so that a window of the counting clock rolls when `Date` says 0.4 s past the edge."""
    _, made = clocks(date_offset=0.4, skew=-7)
    edge = WALL + 7 * SECOND
    assert made.counting(edge) == WALL
    assert made.dating(edge, 40_000) == WALL + 4 * SECOND // 10


def test_a_drift_adds_up_and_a_new_one_goes_on_from_there() -> None:
    """60 ppm are 3.6 ms in a minute; changed, what has drifted stays."""
    options, made = clocks(date_drift=60, date_offset=-0.1)
    minute = WALL + 60 * SECOND
    assert ahead(made, minute) == -100_000_000 + 3_600_000
    options.change({"date_drift": -1_000})
    made.apply(minute)
    assert ahead(made, minute) == -100_000_000 + 3_600_000
    assert ahead(made, minute + SECOND) == -100_000_000 + 3_600_000 - 1_000_000


def test_machines_lie_across_the_spread_and_connections_stay() -> None:
    """The first and the last are `date_spread` apart, the middle one is at `date_offset`; a port has one machine."""
    _, made = clocks(date_offset=1, date_spread=0.4)
    seen = [ahead(made, port=40_000 + 2 * number) for number in range(40)]
    assert sorted(set(seen)) == [SECOND + number * 100_000_000 for number in (-2, -1, 0, 1, 2)]
    assert seen == [ahead(made, port=40_000 + 2 * number) for number in range(40)]
    assert {ahead(made, port=40_001 + 2 * number) for number in range(MACHINES)} == set(seen)


def test_any_machine_may_date_any_answer() -> None:
    """`date_per="answer"`: one connection sees all of them."""
    _, made = clocks(date_spread=0.4, date_per="answer")
    assert len({ahead(made) for _ in range(100)}) == MACHINES


SHARES = st.floats(0.001, 1)


@given(SHARES, st.integers(0, 2**32), st.integers(1, 2000))
def test_the_share_is_kept(share: float, seed: int, number: int) -> None:
    """Of any number of requests about the share is struck: never two more or two fewer."""
    chances = Chances(random.Random(seed))
    struck = sum(chances.strikes("hang", share) for _ in range(number))
    assert abs(struck - share * number) < 2


@given(st.lists(st.tuples(st.sampled_from(["hang", "loss"]), SHARES), max_size=200), st.integers(0, 2**32))
def test_a_share_may_change(asked: list[tuple[str, float]], seed: int) -> None:
    """Also while it changes, and each kind by itself."""
    chances = Chances(random.Random(seed))
    struck = {"hang": 0.0, "loss": 0.0}
    for kind, share in asked:
        struck[kind] += chances.strikes(kind, share) - share
    assert max(map(abs, struck.values())) < 2


def test_nobody_can_tell_which() -> None:
    """The distance from one to the next varies from next to nothing to nearly twice the mean."""
    chances = Chances(random.Random(3))
    struck = [number for number in range(10_000) if chances.strikes("hang", 0.1)]
    distances = [after - before for before, after in itertools.pairwise(struck)]
    assert min(distances) <= 2
    assert max(distances) >= 17


def test_none_and_all() -> None:
    """A share of 0 strikes nobody, one of 1 everybody."""
    chances = Chances(random.Random(1))
    assert not any(chances.strikes("loss", 0.0) for _ in range(100))
    assert all(chances.strikes("hang", 1.0) for _ in range(100))
