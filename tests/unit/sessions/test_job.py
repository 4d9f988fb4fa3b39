"""Whether a running session is healthy, on a clock that jumps."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ratekeeper.sessions.job import Vitals
from ratekeeper.sessions.restarts import Restart

START = Vitals(beat=100.0, checked=100.0)


def test_three_failed_checks_in_a_row() -> None:
    """Two failures are borne, a check that passes forgets them, the third in a row is abnormal."""
    settings, health = Restart(), START
    for now, problem in ((105, "no"), (165, "no"), (225, None), (285, "no"), (345, "no")):
        health = health.after(problem, now)
        assert health.verdict(settings, now) is None
    found = health.after("the balance is missing", 405).verdict(settings, 405)
    assert found is not None
    assert (found.kind, found.reason) == ("check", "3 health checks in a row failed: the balance is missing")


def test_a_check_held_by_a_ban_says_nothing() -> None:
    """A check that a block held neither counts against the session nor for it."""
    health = START.after("no", 110).after("blocked", 120, excused=True)
    assert (health.failed, health.passed, health.checked) == (1, False, 120)


def test_stalled() -> None:
    """Without a sign of life for so long it is abnormal; a beat puts it off."""
    settings = Restart(stalled_after=30)
    assert START.verdict(settings, 129.9) is None
    assert START.next_look(settings, 100.0, checks=False) == 130.0
    found = START.verdict(settings, 130.0)
    assert found is not None and found.kind == "stalled"
    assert START.beaten(129).verdict(settings, 158.9) is None


def test_too_many_errors() -> None:
    """Errors count for a minute."""
    settings, health = Restart(errors_per_minute=2), START
    for now in (100.0, 150.0, 165.0):
        health = health.erred(now)
    assert health.verdict(settings, 165.0) is None
    found = health.erred(170.0).verdict(settings, 170.0)
    assert found is not None and found.kind == "errors"


def test_first_check_comes_early() -> None:
    """A start is checked as soon as it may count as recovered, then every minute."""
    settings = Restart()
    assert START.check_due(settings, 100.0) == 105.0
    assert not START.proven(settings, 100.0, 106.0, checks=True)
    passed = START.after(None, 105.0)
    assert passed.check_due(settings, 100.0) == 165.0
    assert passed.proven(settings, 100.0, 105.0, checks=True)
    assert not START.proven(settings, 100.0, 104.0, checks=False)


@given(st.lists(st.tuples(st.floats(0, 100), st.booleans()), max_size=30))
def test_abnormal_only_after_a_row(checks: list[tuple[float, bool]]) -> None:
    """Whatever the checks say, the verdict is abnormal exactly when the last three failed."""
    health, now, settings, passed = START, 100.0, Restart(), []
    for gap, ok in checks:
        now += gap
        health = health.after(None if ok else "no", now)
        passed.append(ok)
        assert (health.verdict(settings, now) is not None) == (len(passed) >= 3 and not any(passed[-3:]))
