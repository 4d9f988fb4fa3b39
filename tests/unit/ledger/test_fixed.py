"""Windows that begin and end: what settles near an edge, clocks that jump, and windows whose beginning nobody sees."""

from __future__ import annotations

import pytest

from ratekeeper.ledger.base import UNKNOWN
from ratekeeper.ledger.first import First
from ratekeeper.ledger.fixed import Fixed
from ratekeeper.ledger.limit import SECOND, Instant, Limit, Window

FIXED = Limit("fixed", "weight", 10, SECOND)
FIRST = Limit("first", "weight", 10, SECOND, Window.FIRST)
WHO = (1, 0)


def at(seconds: float, server: float | None = None, doubt: float = 0.0) -> Instant:
    """A steady instant, and the server's clock then (default: the same)."""
    mono, told = round(seconds * SECOND), round((seconds if server is None else server) * SECOND)
    return Instant(mono, told - int(doubt * SECOND), told + int(doubt * SECOND))


def fixed(now: Instant, limit: Limit = FIXED) -> Fixed:
    """A fresh fixed window."""
    ledger = Fixed(limit)
    ledger.advance(now)
    return ledger


def spend(ledger: Fixed | First, units: int, taken: Instant, settled: Instant) -> None:
    """Take and settle, as a store does it."""
    for now, verb in ((taken, ledger.take), (settled, ledger.settle)):
        if now.mono >= ledger.turn:
            ledger.advance(now)
        if verb == ledger.take:
            ledger.take(units, WHO, now)
        else:
            ledger.settle(units, units, now)


def advanced(ledger: Fixed | First, now: Instant) -> int:
    """Room at that moment."""
    if now.mono >= ledger.turn:
        ledger.advance(now)
    return ledger.room


def found(ledger: Fixed, used: int, second: float) -> int:
    """Return what of `used` is found to be another program's, by a call of ours that is free."""
    then = at(100 + second)
    ledger.advance(then)
    return ledger.observe(used, then, ledger.tally, 0, 0, then)


@pytest.mark.usefixtures("dates_count")
class TestFixed:
    """Aligned to the server's clock."""

    def test_a_window_ends_at_its_edge(self) -> None:
        """What was settled in a window is gone with it."""
        ledger = fixed(at(100.5))
        spend(ledger, 7, at(100.5), at(100.6))
        assert advanced(ledger, at(100.999)) == 3
        assert advanced(ledger, at(101)) == 10

    def test_in_flight_over_the_edge(self) -> None:
        """What is in flight over an edge is held in both windows."""
        ledger = fixed(at(100.5))
        spend(ledger, 7, at(100.9), at(101.1))
        assert advanced(ledger, at(101.2)) == 3

    def test_origin_moves_the_edges(self) -> None:
        """Edges lie `origin` after whole periods."""
        ledger = fixed(at(100.5), Limit("l", "w", 10, SECOND, origin=SECOND // 4))
        spend(ledger, 7, at(100.5), at(100.6))
        assert advanced(ledger, at(101.2)) == 3
        assert advanced(ledger, at(101.25)) == 10

    def test_doubt_holds_on_both_sides(self) -> None:
        """A window is over when it surely is; what may lie in the next one is carried into it."""
        ledger = fixed(at(100.5, doubt=0.1))
        spend(ledger, 7, at(100.8, doubt=0.1), at(100.95, doubt=0.1))
        assert advanced(ledger, at(101.05, doubt=0.1)) == 3
        assert advanced(ledger, at(101.15, doubt=0.1)) == 3
        assert advanced(ledger, at(102.15, doubt=0.1)) == 10

    def test_a_corrected_clock_opens_no_window_twice(self) -> None:
        """A clock corrected within its bounds by more than a window forgets nothing that may count now."""
        ledger = fixed(at(10, 100.9, doubt=1.0))
        spend(ledger, 10, at(10, 100.9, doubt=1.0), at(10.05, 100.95, doubt=1.0))
        assert advanced(ledger, at(10.1, 102.0)) == 10  # two windows on, and all that is spent arrived before 102.0
        ledger = fixed(at(10, 101.0, doubt=1.0))
        spend(ledger, 10, at(10, 101.0, doubt=1.0), at(10.1, 101.9, doubt=1.0))
        assert advanced(ledger, at(10.2, 102.6)) == 0

    def test_a_wrong_clock_keeps_what_is_spent(self) -> None:
        """When the clock was wrong beyond its bounds, what was spent counts in the window in which it really is."""
        ledger = fixed(at(10, 100.5))
        spend(ledger, 8, at(10, 100.5), at(10.1, 100.6))
        ledger.doubt(at(10.2, 5000.5))
        assert advanced(ledger, at(10.2, 5000.5)) == 2
        assert advanced(ledger, at(10.8, 5001.1)) == 10

    def test_a_clock_set_back_leaves_the_future(self) -> None:
        """A ledger of the future is brought back by who sees an earlier window; nothing spent is lost, nothing is stuck."""
        ledger = fixed(at(10, 500.5))
        spend(ledger, 8, at(10, 500.5), at(10.1, 500.6))
        assert ledger.available_at(3, WHO, at(10.2, 100.2)) > 0
        assert ledger.room == 2
        assert advanced(ledger, at(12.0, 102.0)) == 10

    def test_two_clocks_far_apart_do_not_empty_each_other(self) -> None:
        """Two members who believe in different windows share one budget all the same."""
        ledger, spent = fixed(at(10, 100.0)), 0
        for i in range(20):
            now = at(10 + i / 40, (100 if i % 2 else 900) + i / 40)
            if now.mono >= ledger.turn:
                ledger.advance(now)
            if ledger.available_at(1, WHO, now) == 0:
                ledger.take(1, WHO, now)
                ledger.settle(1, 1, now)
                spent += 1
        assert spent == 10

    def test_a_lease_that_ended_long_ago(self) -> None:
        """What can only have arrived in a window that is over burdens no other."""
        ledger = fixed(at(100.1))
        ledger.take(4, WHO, at(100.1))
        ledger.take(3, WHO, at(100.1))
        ledger.advance(at(101.5))
        ledger.lapse(4, at(100.6), at(101.5))
        ledger.lapse(3, at(101.2), at(101.5))
        assert (ledger.used, ledger.inflight, ledger.room) == (3, 0, 7)

    def test_counters_bound_what_is_spent(self) -> None:
        """A used-counter lowers ours to what it and all that was settled since can explain, in one clear window only."""
        ledger = fixed(at(100.1))
        spend(ledger, 5, at(100.1), at(100.2))
        ledger.take(2, WHO, at(100.3))
        mark = ledger.tally
        spend(ledger, 1, at(100.3), at(100.35))
        ledger.settle(2, 2, at(100.4))
        assert ledger.observe(2, at(100.3), mark, 2, 2, at(100.4)) == 0
        assert ledger.used == 3
        spend(ledger, 4, at(100.5), at(100.6))
        ledger.take(2, WHO, at(100.9))
        mark = ledger.tally
        ledger.advance(at(101.1))
        ledger.settle(2, 2, at(101.1))
        assert ledger.observe(9, at(100.9), mark, 2, 2, at(101.1)) == 0
        assert ledger.used == 2

    def test_strangers_are_found_and_set_aside(self) -> None:
        """What a counter shows beyond ours is counted, and expected again; silence lets that melt."""
        ledger = fixed(at(100.1), Limit("l", "w", 1000, SECOND))
        for used, instant in enumerate(range(41, 51), 1):
            assert found(ledger, 10 * used, instant / 100) == 10
        assert ledger.used == 100
        ledger.advance(at(101))
        expected = ledger.expected
        assert 200 <= expected <= 260  # 100 in half a window, and a tenth more
        assert ledger.room == 1000 - expected
        for second in range(102, 120):
            ledger.advance(at(second))
        assert ledger.expected == 0

    def test_few_finds_allow_for_one_more(self) -> None:
        """A stranger's use that was found in few pieces may have been just before the next: as much more is set aside."""
        for pieces, most in ((1, 400), (2, 300), (4, 250), (20, 220)):
            ledger = fixed(at(100.1), Limit("l", "w", 1000, SECOND))
            for number in range(1, pieces + 1):
                assert found(ledger, 100 * number // pieces, 0.5) == 100 // pieces
            ledger.advance(at(101))
            assert ledger.expected == most

    def test_fill(self) -> None:
        """A limit that is called used up has no room left."""
        ledger = fixed(at(100.1))
        ledger.take(3, WHO, at(100.1))
        ledger.fill(at(100.2))
        assert ledger.room == 0
        assert advanced(ledger, at(101)) == 7

    def test_a_limit_changed_live(self) -> None:
        """More capacity is there at once; another period keeps what is spent, in this window and in the one it may be in."""
        ledger = fixed(at(100.1))
        spend(ledger, 8, at(100.1), at(100.2))
        ledger.adopt(Limit("l", "w", 20, SECOND), at(100.3))
        assert ledger.room == 12
        ledger.adopt(Limit("l", "w", 20, 5 * SECOND), at(100.4))
        assert ledger.room == 12
        assert advanced(ledger, at(105)) == 20


MINUTE = Limit("minute", "weight", 1000, 60 * SECOND)


def counted(ledger: Fixed, units: int, used: int, sent: float, answered: float) -> int:
    """One call whose answer states a counter. Returns what of it seems to be another program's."""
    now = at(sent)
    if now.mono >= ledger.turn:
        ledger.advance(now)
    mark = ledger.tally
    ledger.take(units, WHO, now)
    now = at(answered)
    if now.mono >= ledger.turn:
        ledger.advance(now)
    ledger.settle(units, units, now)
    return ledger.observe(used, at(sent), mark, units, units, now)


class TestEdges:
    """Fixed windows whose provider dates its answers by another clock than the one that counts."""

    def test_the_first_counter_opens_the_bounds(self) -> None:
        """From the first counter on the edge may lie two seconds either way, and what is spent there counts on both sides."""
        ledger = fixed(at(30), MINUTE)
        counted(ledger, 100, 100, 30, 30.1)
        assert (ledger.early, ledger.roll) == (at(58).mono, at(62).mono)
        counted(ledger, 50, 150, 58.5, 58.6)
        assert advanced(ledger, at(61.9)) == 850
        assert advanced(ledger, at(62)) == 950

    def test_a_drop_narrows_them(self) -> None:
        """A counter that dropped between two answers shows where the edge is, here and in the windows to come."""
        ledger = fixed(at(30), MINUTE)
        counted(ledger, 100, 100, 30, 30.1)
        counted(ledger, 50, 150, 59.0, 59.1)
        counted(ledger, 50, 50, 60.5, 60.6)
        assert advanced(ledger, at(60.7)) == 900  # it has rolled, and 100 were spent about the edge
        counted(ledger, 10, 60, 70, 70.1)
        assert ledger.room == 940  # the counter says that 50 of them were not counted here
        assert at(118.9).mono <= ledger.early < ledger.roll <= at(120.7).mono

    def test_a_counter_that_goes_on_takes_the_window_back(self) -> None:
        """After our edge it states more than all of ours and no less than before: the window had not turned over."""
        ledger = fixed(at(30), MINUTE)
        counted(ledger, 400, 400, 30, 30.1)
        ledger.edges.lo, ledger.edges.hi = -SECOND // 10, SECOND // 10  # believed, and wrong
        ledger.advance(at(60.2))
        assert counted(ledger, 10, 410, 60.3, 60.4) == 0
        assert (ledger.used, ledger.carry, ledger.foreign) == (410, 10, 0)
        assert ledger.roll == at(62).mono
        assert advanced(ledger, at(62)) == 990

    def test_what_no_edge_explains_is_a_strangers(self) -> None:
        """In the middle of a window a counter that shows more than ours shows another program."""
        ledger = fixed(at(30), MINUTE)
        counted(ledger, 10, 10, 30, 30.1)
        assert counted(ledger, 10, 120, 40, 40.1) == 100

    def test_what_was_set_aside_by_mistake_comes_back_at_once(self) -> None:
        """When the window is taken back, nothing is expected of others any more."""
        ledger = fixed(at(30), MINUTE)
        counted(ledger, 400, 400, 30, 30.1)
        ledger.edges.lo, ledger.edges.hi = -SECOND // 10, SECOND // 10
        ledger.foreign = ledger.expected = 300
        ledger.advance(at(60.2))
        assert ledger.expected > 200
        counted(ledger, 10, 410, 60.3, 60.4)
        assert ledger.expected == ledger.foreign == 0
        assert advanced(ledger, at(62)) == 990

    def test_a_refusal_just_after_our_edge_is_evidence_of_the_edge(self) -> None:
        """Without counters: the window before is full until the latest possible edge, and the doubt stays wide."""
        ledger = fixed(at(30), MINUTE)
        spend(ledger, 1000, at(30), at(31))
        ledger.advance(at(60.3))
        ledger.take(1, WHO, at(60.3))
        ledger.settle(1, 1, at(60.4))
        ledger.overrun(at(60.3), at(60.4), stated=True)
        assert (ledger.room, ledger.roll) == (0, at(62).mono)
        assert advanced(ledger, at(62)) == 999
        assert ledger.roll == at(122).mono

    def test_a_refusal_in_the_middle_of_a_window_is_not(self) -> None:
        """It fills the window; one that says for how long leaves the limit to the block that it brings."""
        for stated, room in ((False, 0), (True, 899)):
            ledger = fixed(at(30), MINUTE)
            spend(ledger, 100, at(30), at(31))
            spend(ledger, 1, at(40), at(40.1))
            ledger.overrun(at(40), at(40.1), stated)
            assert ledger.room == room

    def test_without_counters_one_call_tries_the_window(self) -> None:
        """What the window before holds stays charged until one call has gone beyond it and was answered well."""
        ledger = fixed(at(30), MINUTE)
        spend(ledger, 900, at(30), at(31))
        ledger.advance(at(60.25))
        assert ledger.available_at(100, WHO, at(60.25)) == 0  # fits in whichever window it is
        ledger.take(100, WHO, at(60.25))
        assert ledger.available_at(10, WHO, at(60.26)) == 0  # the one that tries
        ledger.take(10, WHO, at(60.26))
        assert ledger.available_at(10, WHO, at(60.27)) == -ledger.trial < UNKNOWN
        ledger.settle(100, 100, at(60.3))
        ledger.confirm(at(60.25))
        assert ledger.trial  # that one would have been answered in any case
        ledger.settle(10, 10, at(60.4))
        ledger.confirm(at(60.26))
        assert (ledger.trial, ledger.room) == (0, 890)

    def test_a_trial_ends_when_the_answers_are_more_than_the_window_before_had_left(self) -> None:
        """60 of its 1000 units were spent while it may not have begun: so it may hold 940, and 60 more prove nothing."""
        ledger = fixed(at(30), MINUTE)
        ledger.advance(at(60.26))
        spend(ledger, 60, at(60.3), at(60.4))
        spend(ledger, 940, at(80), at(80.1))
        ledger.advance(at(120.26))
        assert (ledger.held, ledger.least, ledger.room) == (1000, 940, 0)
        for nth in range(7):
            now = at(120.3 + nth / 100)
            assert ledger.available_at(10, WHO, now) == 0
            ledger.take(10, WHO, now)
            before = ledger.room
            assert ledger.available_at(10, WHO, now) == -ledger.trial < UNKNOWN  # one at a time
            ledger.settle(10, 10, now)
            ledger.confirm(now)
            assert ledger.room > before  # which wakes the next
            assert bool(ledger.trial) is (nth < 6)
        assert ledger.room == 930
        assert ledger.loose == 60  # no more than that of them can have been counted in the window before

    def test_a_trial_without_an_answer_ends(self) -> None:
        """An edge cannot be later than the doubt: then the window has begun, whatever became of the call."""
        ledger = fixed(at(30), MINUTE)
        spend(ledger, 1000, at(30), at(31))
        ledger.advance(at(60.25))
        assert ledger.available_at(10, WHO, at(60.25)) == 0
        ledger.take(10, WHO, at(60.25))
        assert ledger.available_at(10, WHO, at(60.3)) == -at(64.25).mono
        assert ledger.available_at(10, WHO, at(64.25)) == 0

    def test_the_last_units_probe_the_edge(self) -> None:
        """Three calls are kept for the stretch in which the edge may lie: one for each of its quarters."""
        ledger = fixed(at(30), MINUTE)
        counted(ledger, 975, 975, 30, 30.1)
        assert ledger.available_at(5, WHO, at(31)) == 0
        ledger.take(5, WHO, at(31))
        ledger.take(5, WHO, at(31))
        ledger.settle(10, 10, at(31.1))
        assert ledger.available_at(5, WHO, at(32)) == at(58).mono
        assert ledger.available_at(5, WHO, at(58)) == 0
        ledger.take(5, WHO, at(58))
        assert ledger.available_at(5, WHO, at(58.1)) == at(59).mono
        assert ledger.available_at(5, WHO, at(59)) == 0

    def test_a_period_after_it_arrived_nothing_counts(self) -> None:
        """Where every instant may be an edge, what is spent leaves a period after its answer, not at the end of a window."""
        ledger = fixed(at(30.5), FIXED)
        counted(ledger, 10, 10, 30.5, 30.6)
        assert ledger.available_at(1, WHO, at(30.7)) > 0
        ledger.advance(at(31.3))
        assert ledger.room == 0
        assert advanced(ledger, at(31.61)) == 10


class TestFirst:
    """From the first request that arrives."""

    def test_it_begins_with_the_first_answer_at_the_latest(self) -> None:
        """The window is surely over a period after the first answer, not after the first request was sent."""
        ledger = First(FIRST)
        spend(ledger, 10, at(5), at(5.3))
        assert ledger.available_at(1, WHO, at(5.4)) == at(6.3).mono
        assert advanced(ledger, at(6.2)) == 0
        assert advanced(ledger, at(6.3)) == 10

    def test_until_an_answer_nobody_knows(self) -> None:
        """While nothing was answered, no instant can be named."""
        ledger = First(FIRST)
        ledger.take(10, WHO, at(5))
        assert ledger.available_at(1, WHO, at(5.1)) == UNKNOWN

    def test_what_settles_late_may_be_in_the_next(self) -> None:
        """What was settled after the earliest possible end counts in the next window too."""
        ledger = First(FIRST)
        spend(ledger, 1, at(5), at(5.3))
        spend(ledger, 4, at(5.95), at(6.1))
        assert advanced(ledger, at(6.3)) == 6

    def test_an_answer_to_an_old_request_proves_nothing(self) -> None:
        """What was in flight when a window ended may have arrived in it; only a later request proves the next one's begin."""
        ledger = First(FIRST)
        spend(ledger, 1, at(5), at(5.05))
        ledger.take(2, WHO, at(5.9))
        ledger.advance(at(6.05))
        ledger.settle(2, 2, at(6.10))  # it arrived at 5.95, in the old window
        spend(ledger, 8, at(6.5), at(6.55))  # this began the new one, at 6.52 say: it lasts until 7.52
        assert ledger.used == 10
        assert advanced(ledger, at(7.2)) == 0
        assert ledger.available_at(8, WHO, at(7.2)) >= at(7.52).mono

    def test_a_lost_request_proves_nothing(self) -> None:
        """What was counted as spent for want of an answer may never have begun a window."""
        ledger = First(Limit("l", "w", 10, 60 * SECOND, Window.FIRST))
        ledger.take(1, WHO, at(100))
        ledger.lapse(1, at(110), at(110))
        spend(ledger, 9, at(120), at(121))
        assert advanced(ledger, at(171)) == 0
        assert advanced(ledger, at(181)) == 10 - ledger.used

    def test_after_a_pause_all_is_forgotten(self) -> None:
        """A period after the last answer, with nothing in flight, no window can be open."""
        ledger = First(FIRST)
        spend(ledger, 3, at(5), at(5.1))
        spend(ledger, 4, at(6), at(6.05))
        assert advanced(ledger, at(6.2)) == 6
        assert advanced(ledger, at(7.06)) == 10
        assert ledger.begun == 0

    def test_refunded_it_never_began(self) -> None:
        """If nothing was sent after all, there is no window."""
        ledger = First(FIRST)
        ledger.take(3, WHO, at(5))
        ledger.refund(3)
        assert (ledger.begun, ledger.room) == (0, 10)

    @pytest.mark.parametrize("cost", [1, 10])
    def test_whole_capacity_at_once(self, cost: int) -> None:
        """A low class may take what is there when nothing is in use, however much it is."""
        assert First(FIRST).available_at(cost, (1, 4), at(5)) == 0
