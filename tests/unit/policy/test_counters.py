"""Used-counters that can be true, and those that cannot."""

from __future__ import annotations

from ratekeeper.ledger.limit import SECOND, Charge, Limit, Window
from ratekeeper.policy.counters import Counters

MINUTE = 60 * SECOND


FIXED, SLIDING = (Limit("weight", "weight", 100, MINUTE, window) for window in (Window.FIXED, Window.SLIDING))


def missing(*shown: int, every: float = 1.0, length: float = 0.1, limit: Limit = FIXED, cost: int = 1) -> list[int]:
    """How many calls each counter does not show; calls are made one by one, `every` seconds, and take `length` seconds."""
    counters, charges = Counters(), (Charge("k", limit, 1), Charge("other", FIXED, 1))
    found = []
    for at, used in enumerate(shown):
        sent = round(at * every * SECOND)
        found.append(
            dict(counters.untrue(charges, {"k": used}, {"k": cost}, sent, sent + round(length * SECOND))).get("k", 0)
        )
    return found


def test_a_true_counter_rises() -> None:
    """Other programs may raise it more; at an edge it drops once."""
    assert missing(5, 9, 10, 700, 1, 2, 3) == [0] * 7


def test_a_counter_of_nothing_does_not_show_its_own_call() -> None:
    """Each one is left out, however seldom calls are made."""
    assert missing(0, 0, 0, 0) == [1, 2, 3, 4]
    assert missing(0, 0, every=3600) == [1, 2]


def test_a_counter_that_stands_still_is_left_out_until_it_rises() -> None:
    """Two calls that do not raise it may have an edge between them; three within a window may not."""
    assert missing(7, 7, 7, 7, 7, 8, 8) == [0, 0, 0, 3, 4, 0, 0]
    assert missing(9, 8, 7, 6) == [0, 0, 0, 3]


def test_one_call_in_each_window_shows_the_same() -> None:
    """So it is for programs that call once a minute, or a little more often."""
    assert missing(*[1] * 20, every=61) == [0] * 20
    assert missing(*[1, 2, 1] * 9, every=45) == [0] * 27


def test_calls_in_flight_together_prove_nothing() -> None:
    """Either may have been counted first."""
    assert missing(5, 4, 3, 2, 1, 1, every=0.01, length=1.0) == [0] * 6


def test_what_costs_nothing_or_leaves_all_the_time_proves_nothing() -> None:
    """Such a counter may stand still."""
    assert missing(0, 0, 0, 0, 0, cost=0) == missing(0, 0, 0, 0, 0, limit=SLIDING) == [0] * 5


def test_memory_is_bounded() -> None:
    """However many ledgers there are."""
    counters = Counters()
    for number in range(10_000):
        counters.untrue((Charge(str(number), FIXED, 1),), {str(number): 1}, {}, 0, 1)
    assert len(counters._seen) <= 4096
