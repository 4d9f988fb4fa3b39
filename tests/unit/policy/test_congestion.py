"""How many calls go side by side, by refusals."""

from __future__ import annotations

import pytest

from ratekeeper.policy.congestion import Congestion, Crowding, Going


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
