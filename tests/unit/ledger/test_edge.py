"""Bounds of the clock that counts: where an edge can lie, by what dates and counters say."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from ratekeeper.ledger.edge import BLIND_DOUBT, FIRST_DOUBT, Edges
from ratekeeper.ledger.limit import SECOND, Instant

MINUTE = 60 * SECOND


def at(seconds: float, dated: float = 0.0, doubt: float = 0.0) -> Instant:
    """A steady instant, and how far ahead of it the dates are."""
    mono = round(seconds * SECOND)
    return Instant(mono, mono + round((dated - doubt) * SECOND), mono + round((dated + doubt) * SECOND))


def begun(period: int = MINUTE, now: Instant | None = None) -> Edges:
    """Fresh bounds around the dates."""
    edges = Edges(period)
    edges.begin(now or at(30))
    return edges


def opened(period: int = MINUTE) -> Edges:
    """Bounds after the first counter."""
    edges = begun(period)
    edges.open(at(30))
    return edges


def told(edges: Edges, used: int, sent: float, now: float) -> bool:
    """A counter on an answer."""
    return edges.counter(used, round(sent * SECOND), 0, round(now * SECOND), 0)


def test_the_first_doubt_is_small_until_something_shows_an_edge() -> None:
    """A quarter of a second before the first counter or refusal, two seconds after it; never more than half a period."""
    edges = begun()
    assert (edges.lo, edges.hi, edges.blind) == (-BLIND_DOUBT, BLIND_DOUBT, True)
    edges.open(at(31))
    assert (edges.lo, edges.hi, edges.blind) == (-FIRST_DOUBT, FIRST_DOUBT, False)
    short = begun(SECOND)
    assert short.width == SECOND // 10
    short.open(at(31))
    assert short.width == SECOND


def test_a_drop_shows_an_edge_between_two_answers() -> None:
    """It lies after the first was sent and before the second came, give or take what clocks drift in a window."""
    edges = opened()
    drift = MINUTE // 5000
    assert told(edges, 2000, 59.0, 59.2)
    assert told(edges, 10, 60.5, 60.7)
    assert (edges.lo, edges.hi) == (-7 * SECOND // 10 - drift, SECOND + drift)


def test_what_was_under_way_together_shows_nothing() -> None:
    """Nobody knows which of two calls arrived first when the second was sent before the first was answered."""
    edges = opened()
    told(edges, 2000, 59.0, 60.6)
    told(edges, 10, 60.5, 60.7)
    assert edges.width == 2 * FIRST_DOUBT


def test_a_little_less_is_no_drop() -> None:
    """Machines of one provider may count a little apart, and a call may cost nothing."""
    edges = opened()
    told(edges, 2000, 58.5, 58.6)
    told(edges, 1600, 59.0, 59.1)
    told(edges, 0, 90.0, 90.1)
    told(edges, 0, 119.0, 119.1)
    assert edges.lo == -FIRST_DOUBT


def test_a_drop_over_a_whole_window_shows_nothing() -> None:
    """Between answers that lie a period apart there is an edge in any case."""
    edges = opened()
    told(edges, 2000, 59.0, 59.1)
    assert told(edges, 10, 119.5, 119.6)
    assert edges.width == 2 * FIRST_DOUBT


def test_a_drop_that_two_edges_explain_shows_nothing() -> None:
    """Where the doubt is nearly as wide as the window, it may be this edge or the one beside it."""
    edges = opened(5 * SECOND)
    told(edges, 20, 5.3, 5.6)
    assert told(edges, 1, 9.6, 9.9)
    assert edges.width == 2 * FIRST_DOUBT


def test_a_short_window_learns_its_phase() -> None:
    """Of a window that the doubt covers as a whole only the phase is wanted: the shorter of two spans is believed."""
    edges = opened(SECOND)
    told(edges, 40, 10.25, 10.3)
    assert told(edges, 1, 10.35, 10.4)
    phase = -round(10.325 * SECOND) % SECOND
    assert edges.width < SECOND // 5
    assert (edges.lo - phase) % SECOND > SECOND - SECOND // 10


def test_an_edge_that_is_excluded_is_told() -> None:
    """A drop far from where the bounds allow it contradicts them."""
    edges = opened()
    told(edges, 2000, 20.0, 20.1)
    assert not told(edges, 10, 25.0, 25.1)


def test_dates_bind_the_bounds() -> None:
    """Bounds stay within the doubt around the dates; dates that are far from all of them are believed, and told."""
    edges = begun(now=at(30, doubt=1.0))
    assert edges.width == 2 * (SECOND + BLIND_DOUBT)
    assert edges.dated(at(31, doubt=0.1))
    assert edges.width == 2 * (SECOND // 10 + BLIND_DOUBT)
    assert not edges.dated(at(32, dated=100.0))
    assert (edges.lo, edges.hi) == (100 * SECOND - BLIND_DOUBT, 100 * SECOND + BLIND_DOUBT)


def test_a_doubt_that_was_not_enough_is_doubled() -> None:
    """Opened again although all was possible: the clocks are further apart than the first doubt, half a period at most."""
    edges = opened()
    for seconds in (4, 8, 16, 30, 30):
        edges.open(at(31))
        assert edges.width == 2 * seconds * SECOND


def test_probing_ends_where_it_teaches_nothing() -> None:
    """Not without counters, not once the doubt is about a round trip, not when it is a small part of the window."""
    edges = opened()
    assert not edges.vague
    told(edges, 2000, 59.5, 59.6)
    assert edges.vague
    told(edges, 10, 60.1, 60.2)
    told(edges, 2000, 119.9, 120.0)
    told(edges, 10, 120.1, 120.2)
    assert not edges.vague


@given(seed=st.integers(0, 10_000))
def test_the_truth_stays_inside(seed: int) -> None:
    """Whatever the delays, the other programs and a drift of up to 100 ppm: the clock that counts lies within the bounds."""
    r = random.Random(seed)
    period = r.choice((5, 10, 60)) * SECOND
    ahead, drift = r.uniform(-1.9, 1.9), r.choice((0, 10_000, -10_000))
    offset = r.randrange(3600 * SECOND)

    def counting(mono: int) -> int:
        return mono + offset + (mono // drift if drift else 0)

    def dated(mono: int) -> Instant:
        date = counting(mono) + round(ahead * SECOND)
        return Instant(mono, date - SECOND // 50, date + SECOND // 50)

    mono, windows, era = 1000 * SECOND, dict[int, int](), 0
    edges = Edges(period)
    edges.begin(dated(mono))
    edges.open(dated(mono))
    for _ in range(300):
        sent = mono + r.randrange(period // 10)
        arrived = sent + r.randrange(SECOND // 2)
        mono = arrived + r.randrange(SECOND // 2)
        window = counting(arrived) // period
        windows[window] = windows.get(window, 0) + r.choice((1, 5, 40)) + r.choice((0, 0, 100))
        rolled = counting(mono) // period
        if rolled > era:
            edges.drift(rolled - era if era else 0, dated(mono))
            era = rolled
        assert edges.counter(windows[window], sent, 0, mono, 0)
        assert edges.lo <= counting(mono) - mono <= edges.hi
