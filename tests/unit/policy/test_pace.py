"""The part of a limit that is used after refusals."""

from __future__ import annotations

import math
import random

import pytest

from ratekeeper.ledger.limit import SECOND
from ratekeeper.policy.pace import WHOLE, Pace, Paced, Streak
from ratekeeper.stores.encoding import encoded, note_of

RIGHT, GUESS = Pace(60.0), Pace(1.0, beta=0.85, guessed=True)


def test_a_refusal_leaves_seven_tenths() -> None:
    """As in CUBIC."""
    assert RIGHT.refused(Paced(), 100.0).part == 700


def test_refusals_of_one_window_are_one() -> None:
    """Calls that were on their way tell nothing new; the next window's do."""
    once = RIGHT.refused(Paced(), 100.0)
    assert RIGHT.refused(once, 159.0) == once
    assert 490 <= RIGHT.refused(once, 160.0).part < 700


def test_a_right_limit_comes_back_to_the_whole() -> None:
    """Never less than before, within its span, also after many refusals."""
    paced = Paced()
    for window in range(8):
        paced = RIGHT.refused(paced, 1000.0 + 60 * window)
    assert paced.part < 700
    parts = [RIGHT.grown(paced, paced.cut + RIGHT.step * step).part for step in range(RIGHT.steps + 1)]
    assert parts == sorted(parts)
    assert parts[-3] < WHOLE
    assert parts[-1] == WHOLE
    assert RIGHT.grown(paced, paced.cut + RIGHT.span) == Paced()


def test_it_never_ends_at_nothing() -> None:
    """However often it is refused, something is left to find out that it is over."""
    paced = Paced()
    for window in range(200):
        paced = GUESS.refused(paced, 10.0 + window)
    assert paced.part == 10


def test_a_clock_that_began_anew_ends_it() -> None:
    """After a reboot the steady clock is behind the note: a right limit is whole, a guess keeps what it found."""
    assert RIGHT.grown(RIGHT.refused(Paced(), 9000.0), 5.0) == Paced()
    found = GUESS.refused(Paced(), 9000.0)
    assert GUESS.grown(found, 5.0) == found
    assert GUESS.refused(found, 5.0).part < found.part


def test_a_note_of_another_version_is_not_believed() -> None:
    """What cannot be read paces nothing; what was packed is read again."""
    paced = RIGHT.refused(Paced(), 100.0)
    assert note_of(encoded(paced), Paced) == paced
    assert note_of(b"?", Paced) is note_of(None, Paced) is None
    for part, cut in ((0, 1.0), (1001, 1.0), (500, math.nan), (500, math.inf)):
        assert note_of(encoded((part, 500, cut, 500)), Paced) is None


@pytest.mark.parametrize("truth", [150, 400, 650, 900, 990])
def test_a_guess_finds_the_truth(truth: int) -> None:
    """A provider that allows a hidden part of the stated number: it is used by more than 85 %, and refusals stay few."""
    paced, now, spent, refused = Paced(), 0.0, 0, 0
    dice = random.Random(truth)
    for second in range(3600):
        now = 1.0 + second + dice.random() / 2
        paced = GUESS.grown(paced, now)
        if second >= 600:
            spent += min(paced.part, truth)
        if paced.part > truth:
            refused += second >= 600
            paced = GUESS.refused(paced, now)
    assert spent > 0.85 * truth * 3000
    assert refused < 3000 / 20


def test_refusals_in_a_row() -> None:
    """Each that follows a hold counts; calls that were on their way do not, and an old trouble is forgotten."""
    first = Streak()
    assert first.nth(sent=10 * SECOND, now=11 * SECOND) == 1
    held = Streak(3, 100 * SECOND)
    assert held.covers(sent=99 * SECOND, now=101 * SECOND)
    assert held.nth(sent=99 * SECOND, now=101 * SECOND) == 3
    assert held.nth(sent=100 * SECOND, now=101 * SECOND) == 4
    assert held.nth(sent=900 * SECOND, now=901 * SECOND) == 1
    assert Streak(3, 90_000 * SECOND).nth(sent=5 * SECOND, now=6 * SECOND) == 1  # its clock began anew
