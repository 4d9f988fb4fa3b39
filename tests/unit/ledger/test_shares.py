"""Who may take what is left: classes and members."""

from __future__ import annotations

from headgate.ledger.base import Ledger
from headgate.ledger.codec import create
from headgate.ledger.limit import SECOND, Instant, Limit, Window
from headgate.ledger.shares import above, fair_lack


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
    for minutes in (11, 12, 13):
        ledger.advance(at(60 * minutes))
    assert ledger.rows == {}


def test_upper_classes_that_wait() -> None:
    """What higher classes wait for is counted while their notes last."""
    ledger = minute()
    ledger.refused((1, 0), 5, 20, at(610).mono, 1)
    ledger.refused((2, 1), 5, 7, at(605).mono, 1)
    assert above(ledger, 2, at(600)).blocked == 27
    assert above(ledger, 2, at(606)).blocked == 20
    assert above(ledger, 1, at(600)).blocked == 20
    assert above(ledger, 0, at(600)).blocked == 0


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
