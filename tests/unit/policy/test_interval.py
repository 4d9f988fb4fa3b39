"""Intervals that follow trouble; how many calls run side by side, by refusals."""

from __future__ import annotations

import pytest

from ratekeeper.policy.interval import Congestion, Crowding, Going, Interval, Rhythm


def after(interval: Interval, rhythm: Rhythm, *polls: bool | None) -> Rhythm:
    """Where a poller stands after these polls; True: failed."""
    for failed in polls:
        rhythm = interval.after(rhythm, failed)
    return rhythm


def test_five_errors_change_nothing_and_the_sixth_doubles() -> None:
    """Scenario B: it takes more than five errors."""
    interval = Interval()
    five = after(interval, interval.begin(), *[True] * 5)
    assert five.seconds == 30
    assert after(interval, five, True).seconds == 60


def test_trouble_that_goes_on_ends_at_the_longest() -> None:
    """It doubles up to 300 s and no further."""
    interval = Interval()
    assert after(interval, interval.begin(), *[True] * 40).seconds == 300


def test_calm_halves_down_to_the_shortest() -> None:
    """Without errors it comes back by itself, and stays at 30 s."""
    interval = Interval()
    seen = []
    rhythm = Rhythm(300.0, (True,) * 10)
    for _ in range(12):
        rhythm = interval.after(rhythm, False)
        seen.append(rhythm.seconds)
    assert seen[:8] == [300, 150, 150, 75, 75, 37.5, 37.5, 30]
    assert seen[-1] == 30


def test_a_poll_that_was_not_made_tells_nothing() -> None:
    """What Ratekeeper refused is no error of the provider's."""
    interval = Interval(errors=0, look=2)
    assert after(interval, interval.begin(), None, None, None) == interval.begin()


@pytest.mark.parametrize(("dice", "due"), [(0.0, 127.0), (0.5, 130.0), (1.0, 133.0)])
def test_jitter_moves_a_poll_both_ways(dice: float, due: float) -> None:
    """By up to a tenth of the interval, counted from the last start."""
    assert Interval().due(Rhythm(30.0), 100.0, 101.0, dice) == pytest.approx(due)


def test_lateness_does_not_pile_up() -> None:
    """After a poll that took four intervals one poll is due, now."""
    assert Interval(jitter=0).due(Rhythm(30.0), 100.0, 220.0, 0.5) == 220.0


def test_not_before_is_obeyed() -> None:
    """A block's end goes before the interval."""
    assert Interval().due(Rhythm(30.0), 100.0, 101.0, 0.5, 500.0) == 500.0


def test_settings_that_contradict_each_other_are_refused() -> None:
    """Such as a longest below the shortest, or a look-back too short to see the errors."""
    with pytest.raises(ValueError, match="longest"):
        Interval(shortest=60, longest=30)
    with pytest.raises(ValueError, match="look"):
        Interval(errors=10, look=10)


def crowded(congestion: Congestion, refusals: int) -> Crowding:
    """The state after so many refusals, one a second from second 1."""
    crowding = Crowding()
    for second in range(1, refusals + 1):
        crowding = congestion.refused(crowding, float(second))
    return crowding


@pytest.mark.parametrize(
    ("refusals", "going"),
    [(0, Going(10, 0.0)), (5, Going(10, 0.0)), (6, Going(5, 0.2)), (10, Going(5, 0.2)), (11, Going(1, 1.0))],
)
def test_scenario_d(refusals: int, going: Going) -> None:
    """More than 5 refusals in a minute: half as many; more than 10: one at a time."""
    congestion = Congestion()
    assert congestion.going(crowded(congestion, refusals), 20.0) == going


def test_calm_brings_it_back() -> None:
    """As the refusals leave the minute that is looked back at, step by step."""
    congestion = Congestion()
    crowding = crowded(congestion, 11)
    assert [congestion.going(crowding, at).width for at in (60.0, 61.0, 65.0, 66.0)] == [1, 5, 5, 10]


def test_memory_is_bounded() -> None:
    """No more refusals are remembered than make a difference."""
    congestion = Congestion()
    assert len(crowded(congestion, 1000).refused) == 11


def test_levels_in_order() -> None:
    """The second level cannot come before the first."""
    with pytest.raises(ValueError, match="too_many"):
        Congestion(many=10, too_many=5)
