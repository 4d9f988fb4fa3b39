"""Who may take what is left: classes and members."""

from __future__ import annotations

import pytest

from ratekeeper.ledger.base import Ledger
from ratekeeper.ledger.codec import create
from ratekeeper.ledger.limit import SECOND, Instant, Limit, Window
from ratekeeper.ledger.shares import AGED, above, fair_lack

pytestmark = pytest.mark.usefixtures("dates_count")


def at(seconds: float) -> Instant:
    """A moment."""
    mono = int(seconds * SECOND)
    return Instant(mono, mono, mono)


def minute(capacity: int = 90) -> Ledger:
    """A fixed minute, just begun."""
    ledger = create(Limit("l", "w", capacity, 60 * SECOND))
    ledger.advance(at(600))
    return ledger


def test_nobody_else_nothing_kept() -> None:
    """A member alone has all of it."""
    ledger = minute()
    ledger.refused((1, 2), 5, 50, at(660).mono, 1)
    assert fair_lack(ledger, (1, 2), at(600)) == 0


def test_the_refused_want_their_fair_share() -> None:
    """Two members refused lately lack, each, a third of the whole beside one that asks."""
    ledger = minute()
    for member in (1, 2, 3):
        ledger.refused((member, 2), 1, 5, at(660).mono, 1)
    ledger.take(10, (2, 2), at(600))
    assert fair_lack(ledger, (1, 2), at(600)) == 20 + 30


def test_the_modest_want_what_they_took() -> None:
    """Who was not refused is taken to want what it took, and no more is kept for it."""
    ledger = minute()
    ledger.take(6, (2, 2), at(600))
    ledger.advance(at(660))
    ledger.refused((1, 2), 1, 5, at(720).mono, 1)
    assert fair_lack(ledger, (1, 2), at(660)) == 6


def test_weights() -> None:
    """Shares follow the weights."""
    ledger = minute()
    ledger.refused((1, 2), 1, 5, at(660).mono, 1)
    ledger.refused((2, 2), 1, 5, at(660).mono, 2)
    assert fair_lack(ledger, (1, 2), at(600)) == 60
    assert fair_lack(ledger, (2, 2), at(600)) == 30


def test_other_classes_do_not_count() -> None:
    """Fairness is within a class."""
    ledger = minute()
    ledger.refused((2, 3), 1, 5, at(660).mono, 1)
    ledger.refused((1, 2), 1, 5, at(660).mono, 1)
    assert fair_lack(ledger, (1, 2), at(600)) == 0


def test_silent_members_are_forgotten() -> None:
    """After two windows without a word a member is not reckoned with."""
    ledger = minute()
    ledger.refused((1, 2), 1, 5, at(660).mono, 1)
    for minutes in (11, 12):
        ledger.advance(at(60 * minutes))
    assert ledger.rows == {}


def test_upper_classes_that_wait() -> None:
    """What higher classes wait for is counted while their notes last."""
    ledger = minute()
    ledger.refused((1, 0), 5, 20, at(610).mono, 1)
    ledger.refused((2, 1), 5, 7, at(605).mono, 1)
    assert above(ledger, 2, at(600).mono).blocked == 27
    assert above(ledger, 2, at(606).mono).blocked == 20
    assert above(ledger, 1, at(600).mono).blocked == 20
    assert above(ledger, 0, at(600).mono).blocked == 0


def test_flows_leave_what_the_less_served_wait_for() -> None:
    """Where units come back all the time, a member leaves the difference to who had less, as far as that waits for it."""
    ledger = create(Limit("l", "w", 90, 60 * SECOND, Window.SLIDING))
    ledger.advance(at(600))
    ledger.take(50, (1, 2), at(600))
    ledger.take(20, (2, 2), at(600))
    ledger.refused((2, 2), 5, 100, at(660).mono, 1)
    assert fair_lack(ledger, (1, 2), at(601)) == 30
    ledger.refused((2, 2), 5, 12, at(660).mono, 1)
    assert fair_lack(ledger, (1, 2), at(601)) == 12
    assert fair_lack(ledger, (2, 2), at(601)) == 0
    assert fair_lack(ledger, (1, 2), at(661)) == 0


def left_free(ledger: Ledger, who: tuple[int, int], now: Instant) -> int:
    """Units that `who` must leave free, by asking for one after the other."""
    taken = 0
    while ledger.available_at(1, who, now) == 0:
        ledger.take(1, who, now)
        taken += 1
    left = ledger.room
    ledger.refund(taken)
    ledger.rows.pop(who, None)
    return left


def test_what_upper_classes_took_is_kept_and_melts() -> None:
    """A class that took 25 % of the last window finds as much in this one, and less the less of it is to come."""
    ledger = minute(600)
    for second in range(0, 60, 2):
        ledger.take(5, (1, 0), at(600 + second))
    ledger.refund(150)
    ledger.advance(at(660))
    kept = [left_free(ledger, (2, 3), at(660 + second)) for second in (0, 30, 57)]
    assert 150 <= kept[0] <= 300
    assert kept[0] > kept[1] > kept[2] >= 5
    assert left_free(ledger, (2, 3), at(719.9)) == 0
    assert left_free(ledger, (2, 0), at(660)) == 0


def test_after_two_windows_without_a_call_only_the_fixed_share_is_kept() -> None:
    """Nothing is kept for a demand that has stopped."""
    ledger = minute(600)
    for second in range(60):
        ledger.take(5, (1, 0), at(600 + second))
    ledger.refund(300)
    kept = []
    for minutes in (11, 12, 13):
        ledger.advance(at(60 * minutes))
        kept.append(left_free(ledger, (2, 3), at(60 * minutes)))
    assert 300 < kept[0] < 600
    assert kept[1] == 30
    assert ledger.calm >= 3


def test_what_was_missed_counts_as_wanted() -> None:
    """Calls that gave up are no less wanted than those that were served."""
    ledger = minute(600)
    for second in range(0, 60, 2):
        ledger.refused((1, 0), 5, 5, at(660).mono, 1)
        ledger.missed((1, 0), 5, 0, at(600 + second).mono)
    assert ledger.rows[1, 0][3] == 0
    ledger.advance(at(660))
    assert left_free(ledger, (2, 3), at(660)) >= 150


def test_a_burst_is_kept_whole() -> None:
    """Of a class that wants thirty at once, seldom, all thirty fit late in the window."""
    ledger = minute(600)
    for _ in range(6):
        ledger.take(5, (1, 0), at(600))
    ledger.refund(30)
    ledger.advance(at(660))
    assert left_free(ledger, (2, 3), at(660 + 50)) >= 30


def test_aged_calls_are_no_demand() -> None:
    """What a low call takes in a higher class, because it waited for long, is not kept for that class."""
    ledger = minute(600)
    ledger.take(300, (1, 1 + AGED), at(600))
    ledger.refund(300)
    ledger.advance(at(660))
    assert left_free(ledger, (2, 3), at(660)) == 30
    ledger.refused((1, 1 + AGED), 40, 40, at(720).mono, 1)
    assert left_free(ledger, (2, 3), at(660)) == 40


def test_small_calls_are_looked_at_closely_while_upper_classes_call() -> None:
    """The short way is for the highest class that calls; those below it must leave what it wants."""
    ledger = minute(600)
    assert ledger.calm > 4
    ledger.take(1, (1, 2), at(600))
    assert ledger.calm == 2
    ledger.take(1, (1, 1 + AGED), at(600))
    assert ledger.calm == 2
    ledger.take(1, (1, 0), at(600))
    assert ledger.calm == 0


def test_slots_are_kept_for_a_while() -> None:
    """Slots that an upper class had are left to it for five seconds, and melt away in five more; the instant is told."""
    ledger = create(Limit("l", "slots", 10, 0, Window.SLOTS))
    ledger.advance(at(600))
    ledger.take(4, (1, 0), at(600))
    assert left_free(ledger, (2, 3), at(600)) == 0  # it has them all
    ledger.settle(4, 4, at(600))
    ledger.returned((1, 0), 4, at(600).mono, spent=True)
    assert [left_free(ledger, (2, 3), at(600 + s)) for s in (0, 5, 7, 8.8, 10)] == [4, 4, 3, 1, 0]
    ledger.take(6, (2, 3), at(604))
    available_at = -ledger.available_at(1, (2, 3), at(604))
    assert at(605).mono < available_at < at(607).mono
    assert ledger.available_at(1, (2, 3), Instant(available_at - 1, 0, 0)) < 0
    assert ledger.available_at(1, (2, 3), Instant(available_at, 0, 0)) == 0


def test_a_call_that_was_never_sent_was_not_wanted() -> None:
    """What is given back unsent is taken out of what the class wanted."""
    ledger = minute(600)
    ledger.take(200, (1, 0), at(600))
    ledger.refund(200)
    ledger.returned((1, 0), 200, at(600).mono, spent=False)
    ledger.advance(at(660))
    assert left_free(ledger, (2, 3), at(660)) == 30
