"""When a session is started again: attempts, cooldown, intensity, what worked before, a clock that steps."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratekeeper.sessions.restarts import (
    Failure,
    Pause,
    Progress,
    Recovery,
    Restart,
    after_failure,
    remaining,
    summary,
    worked,
)

NOW = 1_795_220_621.0
LOST = Failure("ConnectionError", "gone")


def row(settings: Restart, failures: int, dice: float = 1.0, history: tuple[Recovery, ...] = ()) -> list[Pause]:
    """What follows so many failures in a row, each right after its start."""
    progress, now, found = Progress(), NOW, []
    for _ in range(failures):
        found.append(after_failure(settings, progress, history, LOST, now, dice))
        progress, now = found[-1].progress, now + found[-1].delay
    return found


def recovery(delay: float, ok: bool = True, kind: str = "ConnectionError") -> Recovery:
    """A start after a failure."""
    return Recovery(NOW, kind, "gone", delay, 2 * delay, 1, ok)


def test_five_attempts_then_a_cooldown() -> None:
    """Five starts at doubling bounds, then 600 s of rest, then five more, without an end."""
    found = row(Restart(most=100), 12)
    assert [each.state for each in found] == ["recovering"] * 5 + ["cooldown"] + ["recovering"] * 5 + ["cooldown"]
    assert [each.delay for each in found] == [1, 2, 4, 8, 16, 600] * 2
    assert found[-1].progress.cooldowns == 2


def test_given_up_after_so_many_cooldowns() -> None:
    """With `give_up`, the failure after the last allowed cooldown's attempts ends it."""
    found = row(Restart(most=100, attempts=2, give_up=1), 6)
    assert [each.state for each in found] == ["recovering"] * 2 + ["cooldown"] + ["recovering"] * 2 + ["failed"]


def test_a_ban_costs_no_attempt() -> None:
    """What a block holds is started at the block's end, and the attempts stay as they were."""
    ban = Failure("Blocked", "banned", excused=True, retry_at=NOW + 120)
    before = Progress(attempts=4)
    found = after_failure(Restart(), before, (), ban, NOW, 0.5)
    assert (found.state, found.delay, found.progress.attempts) == ("recovering", 120.5, 4)
    pause = after_failure(Restart(), before, (), Failure("Blocked", "paused", excused=True), NOW, 0.0)
    assert pause.delay == Restart().check_every


def test_begins_where_it_worked() -> None:
    """A delay that worked for this kind of failure is where the next row begins; its half is the least."""
    history = (recovery(1.0, ok=False), recovery(20.0), recovery(3.0, kind="TimeoutError"))
    assert worked(history, "ConnectionError") == 20.0
    assert row(Restart(), 1, 1.0, history)[0].delay == 20.0
    assert row(Restart(), 1, 0.0, history)[0].delay == 10.0
    assert row(Restart(), 3, 1.0, history)[2].delay == 60.0
    assert worked(history, "OSError") == 0.0
    assert worked((recovery(20.0), *[recovery(1.0, ok=False)] * 5), "ConnectionError") == 0.0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), st.integers(1, 6), st.floats(1, 900))
def test_never_more_starts_than_allowed(dice: list[float], most: int, span: float) -> None:
    """Whatever the dice, no span holds more starts after failures than `most`."""
    settings = Restart(most=most, span=span, first=0.5, cooldown=5)
    progress, now, starts = Progress(), NOW, []
    for die in dice:
        found = after_failure(settings, progress, (), LOST, now, die)
        progress, now = found.progress, now + found.delay
        starts.append(now)
    assert all(late - early >= span - 1e-3 for early, late in zip(starts, starts[most:], strict=False))
    assert all(early <= late for early, late in pairwise(starts))


@given(st.floats(-1e6, 1e6), st.integers(0, 5), st.floats(0, 1))
def test_a_clock_that_steps_prolongs_nothing(step: float, attempts: int, dice: float) -> None:
    """After a restart of the program, what is left of a wait is never more than the wait was."""
    found = after_failure(Restart(), Progress(attempts=attempts), (), LOST, NOW, dice)
    assert 0.0 <= remaining(found.progress, NOW + step) <= found.delay
    assert remaining(found.progress, NOW) == pytest.approx(found.delay, abs=1e-3)
    again = after_failure(Restart(), found.progress, (), LOST, NOW + step, dice)
    assert again.delay <= Restart().cooldown


def test_summary() -> None:
    """The share of starts that succeeded, and the mean time of those."""
    assert summary([]) == (None, None)
    assert summary([recovery(1.0, ok=False), recovery(2.0), recovery(4.0)]) == (2 / 3, 6.0)


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"cooldown": -1}, {"factor": 0.5}, {"check_every": 0}])
def test_settings_that_make_no_sense(wrong: dict[str, float]) -> None:
    """A setting outside its range is refused by name."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Restart(**wrong)  # type: ignore[arg-type]
