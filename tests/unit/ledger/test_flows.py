"""Ledgers whose units come back all the time."""

from __future__ import annotations

import pytest

from ratekeeper.ledger.base import UNKNOWN
from ratekeeper.ledger.flows import Bucket, Sliding, Slots
from ratekeeper.ledger.limit import SECOND, Instant, Limit, Window

WHO = (1, 0)


def at(seconds: float) -> Instant:
    """A moment; the server's clock does not matter here."""
    return Instant(int(seconds * SECOND), 0, 0)


def sliding(capacity: int = 10, period: int = SECOND) -> Sliding:
    """A sliding window."""
    return Sliding(Limit("l", "w", capacity, period, Window.SLIDING))


def bucket(capacity: int = 10, period: int = SECOND, refill: int = 0) -> Bucket:
    """A leaky bucket."""
    return Bucket(Limit("l", "w", capacity, period, Window.BUCKET, refill=refill))


def spend(ledger: Sliding | Bucket, units: int, taken: Instant, settled: Instant, who: tuple[int, int] = WHO) -> None:
    """Take and settle."""
    ledger.advance(taken)
    ledger.take(units, who, taken)
    ledger.advance(settled)
    ledger.settle(units, units, settled)


class TestSliding:
    """Every span of a period."""

    def test_a_charge_leaves_a_period_after_its_answer(self) -> None:
        """It arrived no later than it was answered."""
        ledger = sliding()
        spend(ledger, 10, at(5), at(5.2))
        assert ledger.available_at(1, WHO, at(5.3)) == at(6.2).mono
        ledger.advance(at(6.19))
        assert ledger.room == 0
        ledger.advance(at(6.2))
        assert ledger.room == 10

    def test_memory_is_bounded(self) -> None:
        """However many charges there are, some sixty-four pieces are kept, and each leaves no sooner than it should."""
        ledger = sliding(100_000)
        for i in range(5000):
            spend(ledger, 1, at(5 + i / 5000), at(5 + i / 5000))
        assert len(ledger.marks) <= 3 * 66
        ledger.advance(at(6.5))
        assert 2400 <= ledger.used <= 2600
        assert ledger.used >= sum(1 for i in range(5000) if 5 + i / 5000 + 1 > 6.5)

    def test_an_answer_of_the_past_keeps_the_order(self) -> None:
        """A lease that ended a moment ago is put at the end, where it stays a little longer."""
        ledger = sliding()
        ledger.take(2, WHO, at(4))
        spend(ledger, 3, at(5), at(5.2))
        ledger.lapse(2, at(5.1), at(5.2))
        assert ledger.marks[::3] == sorted(ledger.marks[::3])
        ledger.advance(at(6.2))
        assert ledger.used == 0

    def test_in_flight_only_its_holder_knows(self) -> None:
        """What is in flight comes back nobody knows when."""
        ledger = sliding()
        ledger.advance(at(5))
        ledger.take(10, WHO, at(5))
        assert ledger.available_at(1, WHO, at(5)) == -(at(5).mono + ledger.limit.period)

    def test_something_is_left_for_upper_classes(self) -> None:
        """After a burst a low class leaves 5 %, melting as the time shrinks until the burst comes back."""
        ledger, low, high = sliding(100), (1, 2), (1, 0)
        spend(ledger, 95, at(5), at(5), low)
        assert ledger.available_at(1, high, at(5.1)) == 0
        available_at = ledger.available_at(2, low, at(5.1))
        assert at(5.1).mono < available_at < at(6).mono
        assert ledger.available_at(2, low, Instant(available_at - 1, 0, 0)) == available_at
        assert ledger.available_at(2, low, Instant(available_at, 0, 0)) == 0

    def test_nothing_is_kept_where_units_come_back_steadily(self) -> None:
        """If enough comes back in time for upper classes, a low class may take all that is free."""
        ledger, low = sliding(100), (1, 2)
        for i in range(95):
            spend(ledger, 1, at(5 + i / 95), at(5 + i / 95), low)
        ledger.advance(at(5.999))
        assert ledger.available_at(ledger.room, low, at(5.999)) == 0

    def test_counters_are_read_as_of_then(self) -> None:
        """A counter read before some charges left is no proof of strangers."""
        ledger = sliding()
        spend(ledger, 8, at(5), at(5.1))
        ledger.take(1, WHO, at(5.2))
        mark = ledger.tally
        ledger.advance(at(6.5))
        ledger.settle(1, 1, at(6.5))
        assert ledger.observe(9, at(5.2), mark, 1, 1, at(6.5)) == 0
        assert ledger.observe(12, at(5.2), mark, 1, 1, at(6.5)) == 3


class TestBucket:
    """Leaks at a steady rate."""

    def test_it_is_full_while_in_flight_and_leaks_after(self) -> None:
        """Units begin to drain when they are answered."""
        ledger = bucket()
        spend(ledger, 10, at(5), at(6))
        assert ledger.available_at(1, WHO, at(6)) == at(6.1).mono
        ledger.advance(at(6.1))
        assert ledger.room == 1

    def test_what_is_in_flight_is_not_gone_before_it_could_drain(self) -> None:
        """Full of units in flight: unknown, but not before all that has to drain could have drained."""
        ledger = bucket()
        ledger.advance(at(5))
        ledger.take(10, WHO, at(5))
        assert ledger.available_at(1, WHO, at(5)) == -at(5.1).mono

    def test_refill_may_differ_from_capacity(self) -> None:
        """So many units a period, however large the bucket is."""
        ledger = bucket(10, refill=2)
        spend(ledger, 10, at(5), at(5))
        ledger.advance(at(7))
        assert ledger.room == 4

    @pytest.mark.parametrize("refill", [1, 7, 86_400])
    def test_looking_often_does_not_stop_it(self, refill: int) -> None:
        """Asking every microsecond drains as much as asking once: nothing is lost by rounding."""
        day = 86_400 * SECOND
        often, once = bucket(100, day, refill), bucket(100, day, refill)
        for ledger in (often, once):
            spend(ledger, 100, at(5), at(5))
        for i in range(2000):
            often.advance(Instant(at(5).mono + i * 1000, 0, 0))
        last = Instant(at(5).mono + 2_000_000, 0, 0)
        often.advance(last)
        once.advance(last)
        assert abs(often.level - once.level) <= 1

    def test_it_never_holds_credit(self) -> None:
        """A long rest does not allow more than the capacity."""
        ledger = bucket()
        ledger.advance(at(5))
        ledger.advance(at(5000))
        assert ledger.room == 10


class TestSlots:
    """So many at once."""

    def test_settled_is_free(self) -> None:
        """A slot comes back when its call is over, at whatever cost; when that is, nobody knows."""
        ledger = Slots(Limit("l", "slots", 2, 0, Window.SLOTS))
        ledger.advance(at(5))
        ledger.take(2, WHO, at(5))
        assert ledger.available_at(1, WHO, at(5)) == UNKNOWN
        ledger.settle(2, 1, at(6))
        assert (ledger.inflight, ledger.used, ledger.room) == (0, 0, 2)

    def test_nothing_is_kept_for_classes_that_do_not_ask(self) -> None:
        """A low class may take the last slot."""
        ledger = Slots(Limit("l", "slots", 40, 0, Window.SLOTS))
        ledger.advance(at(5))
        ledger.take(39, WHO, at(5))
        assert ledger.available_at(1, (1, 4), at(5)) == 0

    def test_turns_are_taken(self) -> None:
        """A member that has had more leaves what another, who had less, waits for."""
        ledger = Slots(Limit("l", "slots", 2, 0, Window.SLOTS))
        ledger.advance(at(5))
        ledger.take(2, (1, 2), at(5))
        ledger.refused((1, 2), 1, 5, at(9).mono, 1)
        ledger.refused((2, 2), 1, 5, at(9).mono, 1)
        ledger.settle(1, 1, at(5.5))
        assert ledger.available_at(1, (1, 2), at(5.6)) == UNKNOWN
        assert ledger.available_at(1, (2, 2), at(5.6)) == 0
        assert ledger.available_at(1, (1, 2), at(9.1)) == 0  # the other's note has expired
