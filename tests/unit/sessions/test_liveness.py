"""When a stream is stale, when it rolls over, and who dials next."""

from __future__ import annotations

from ratekeeper.sessions.liveness import Dials, Gaps, Liveness
from ratekeeper.stores.encoding import encoded, note_of


def heard(*instants: float) -> Gaps:
    """Messages at these instants."""
    gaps = Gaps()
    for at in instants:
        gaps = gaps.heard(at)
    return gaps


def test_stale_after_many_usual_gaps() -> None:
    """A stream is stale after so many of its usual gaps, within bounds."""
    live = Liveness(stale_gaps=10, stale_least=2, stale_most=30)
    assert live.patience(heard(0, 0.01, 0.02, 0.03)) == 2
    assert round(live.patience(heard(0, 1, 2, 3)), 6) == 10
    assert live.patience(heard(0, 9, 18, 27)) == 30
    assert not live.stale(heard(0, 1, 2, 3), 0, 12.9)
    assert live.stale(heard(0, 1, 2, 3), 0, 13.1)


def test_stale_without_known_gap() -> None:
    """While no gap is known, the longest patience counts, from the opening."""
    live = Liveness(stale_most=30)
    assert not live.stale(Gaps(), 100, 130)
    assert live.stale(Gaps(), 100, 130.1)


def test_stale_after_a_fixed_time() -> None:
    """A fixed time goes before what is usual."""
    assert Liveness(stale_after=600).patience(heard(0, 1, 2, 3)) == 600


def test_rolls_before_the_end_of_life() -> None:
    """A connection is replaced before its end, earlier by chance, and never if it has no end."""
    live = Liveness(roll_before=600, roll_spread=0.05)
    day = 86_400
    assert live.roll_at(0, day, 0) == day - 600
    assert live.roll_at(0, day, 1) == day - 600 - 0.05 * day
    assert live.roll_at(0, 10, 0) == 9
    assert live.roll_at(0, 0, 0.5) is None


def test_one_dial_after_the_other_in_trouble() -> None:
    """After a failure the first who asks dials, and the next waits for the backoff."""
    live = Liveness(first=1, factor=2, longest=60)
    assert live.turn(Dials(), 100, 0.5)[0] == 0
    dials = live.failed(Dials(), 100, 1.0, good=False)
    assert dials.failures == 1
    assert live.turn(dials, 100.5, 1.0)[0] == 0.5
    wait, dials = live.turn(dials, 101, 1.0)
    assert wait == 0
    assert live.turn(dials, 101, 1.0)[0] == 1


def test_backoff_grows_and_has_an_end() -> None:
    """Failures in a row double the bound, up to the longest."""
    live, dials = Liveness(first=1, factor=2, longest=8), Dials()
    delays = []
    now = 0.0
    for _ in range(6):
        dials = live.failed(dials, now, 1.0, good=False)
        delays.append(dials.following - now)
        now = dials.following
    assert delays == [1, 2, 4, 8, 8, 8]


def test_the_loss_of_a_good_connection_is_one_failure() -> None:
    """Ten good connections cut at once are no ten failures in a row."""
    live, dials = Liveness(), Dials()
    for _ in range(10):
        dials = live.failed(dials, 5, 0.5, good=True)
    assert dials.failures == 1


def test_old_failures_are_forgotten() -> None:
    """What is long ago holds nobody up."""
    live = Liveness(forget=600)
    dials = live.failed(Dials(30, 50.0, 0.0), 10, 1.0, good=False)
    assert live.turn(dials, 700, 1.0)[0] == 0


def test_note() -> None:
    """What is written down is read as it was; nothing written is the beginning."""
    assert note_of(encoded(Dials(3, 4.5, 6.25)), Dials) == Dials(3, 4.5, 6.25)
    assert note_of(None, Dials) is None


def test_good_by_data_or_by_lasting() -> None:
    """Accepting a connection and closing it again is no success."""
    live = Liveness(good_after=10)
    assert not live.good(0, 9, data=False)
    assert live.good(0, 10, data=False)
    assert live.good(0, 1, data=True)
