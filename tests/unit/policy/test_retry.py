"""Whether a call is made again, and when."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratekeeper.policy.retry import Again, Budget, Repeat, Retry, Stop, Tried, backoff
from ratekeeper.rules.call import Outcome

READ = Repeat(safe=True, begun=0.0, deadline=900.0)
ORDER = Repeat(safe=False, begun=0.0, deadline=900.0)
LOST = (Outcome.OVERLOADED, Outcome.FAILED, Outcome.UNKNOWN)


def delay(verdict: Again | Stop) -> float:
    """The delay of a verdict that must be to try again."""
    assert isinstance(verdict, Again)
    return verdict.delay


@pytest.mark.parametrize("outcome", [*LOST, Outcome.NETWORK, Outcome.THROTTLED, Outcome.BANNED])
def test_a_read_is_made_again(outcome: Outcome) -> None:
    """Whatever the trouble was, a read can be asked for again."""
    assert isinstance(Retry().next(READ, Tried(outcome), 1, 0.0, 0.5), Again)


@pytest.mark.parametrize("outcome", [Outcome.BAD_REQUEST, Outcome.QUOTA_GONE, Outcome.MONEY_GONE])
def test_what_no_retry_mends_is_not_tried(outcome: Outcome) -> None:
    """The caller gets the provider's own answer."""
    verdict = Retry().next(READ, Tried(outcome), 1, 0.0, 0.5)
    assert isinstance(verdict, Stop)
    assert verdict.plain


@pytest.mark.parametrize("outcome", LOST)
def test_an_order_that_may_have_arrived_is_not_sent_again(outcome: Outcome) -> None:
    """Its fate is unknown, and that is what is said."""
    verdict = Retry().next(ORDER, Tried(outcome), 1, 0.0, 0.5)
    assert isinstance(verdict, Stop)
    assert verdict.unknown


@pytest.mark.parametrize("outcome", [Outcome.THROTTLED, Outcome.OVERLOADED, Outcome.NETWORK])
def test_an_order_that_was_turned_away_is_sent_again(outcome: Outcome) -> None:
    """The provider did not act: sending it again cannot do it twice."""
    assert isinstance(Retry().next(ORDER, Tried(outcome, acted=False), 1, 0.0, 0.5), Again)


def test_hints_are_obeyed_to_the_instant() -> None:
    """Not a moment earlier, and not later either."""
    assert delay(Retry().next(READ, Tried(Outcome.OVERLOADED, retry_at=17.5), 1, 10.0, 0.9)) == 7.5
    assert delay(Retry().next(READ, Tried(Outcome.OVERLOADED, retry_at=3.0), 1, 10.0, 0.9)) == 0.0


def test_what_the_gate_holds_needs_no_delay() -> None:
    """A limit that is marked full keeps the next attempt by itself."""
    assert delay(Retry().next(READ, Tried(Outcome.THROTTLED, held=True), 3, 10.0, 0.9)) == 0.0


def test_attempts_and_deadline_end_it() -> None:
    """Then with a reason, and not plain: the caller hears the whole story."""
    for verdict in (
        Retry(attempts=3).next(READ, Tried(Outcome.FAILED), 3, 10.0, 0.5),
        Retry().next(Repeat(True, 0.0, 11.0), Tried(Outcome.FAILED, retry_at=12.0), 1, 10.0, 0.5),
    ):
        assert isinstance(verdict, Stop)
        assert verdict.reason
        assert not verdict.plain
        assert not verdict.unknown


@given(st.integers(1, 500), st.floats(0, 100), st.floats(1, 10), st.floats(0, 1000), st.floats(0, 1))
def test_backoff_is_bounded_and_grows(nth: int, first: float, factor: float, longest: float, dice: float) -> None:
    """Full jitter lies between nothing and a bound that grows up to the longest."""
    bound = backoff(nth, first, factor, longest)
    assert 0 <= bound <= longest
    assert backoff(nth + 1, first, factor, longest) >= bound
    retry = Retry(attempts=100, first=first, factor=factor, longest=longest)
    if nth < 100:
        verdict = retry.next(Repeat(True, 0.0, 1e12), Tried(Outcome.FAILED), nth, 0.0, dice)
        assert delay(verdict) == pytest.approx(dice * bound)


def test_the_defaults_are_the_bot_s_own() -> None:
    """2, 4, 8, 16, 32 s, as scenario B writes them: bounds of the jitter."""
    assert [backoff(nth, 2.0, 2.0, 32.0) for nth in range(1, 7)] == [2, 4, 8, 16, 32, 32]


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(0, 20), st.integers(0, 20)), max_size=60))
def test_retries_never_storm(steps: list[tuple[float, int, int]]) -> None:
    """Over any stretch, retries are at most what was saved up, a share of the calls, and a few a second."""
    retry = Retry(budget=0.2, reserve=1.0)
    budget, now, calls, taken = Budget(retry, 0.0), 0.0, 0, 0
    for elapsed, made, wanted in steps:
        now += elapsed
        calls += made
        for _ in range(made):
            budget.call()
        taken += sum(budget.take(now) for _ in range(wanted))
    assert taken <= Budget.MOST + 0.2 * calls + 1.0 * now + 1e-6


def test_a_quiet_process_may_retry() -> None:
    """And one that has used up its budget may again a moment later."""
    budget = Budget(Retry(), 0.0)
    assert sum(budget.take(0.0) for _ in range(50)) == 10
    assert not budget.take(0.5)
    assert budget.take(1.1)


def test_no_budget_at_all_means_none() -> None:
    """Whoever sets both to nothing gets no retries."""
    assert not Budget(Retry(budget=0, reserve=0), 0.0).take(100.0)


def test_an_exact_ladder() -> None:
    """Backoffs are as they are written, the last again and again; without jitter unless some is wanted."""
    retry = Retry(backoff=(2, 4, 8, 16, 32))
    assert [delay(retry.next(READ, Tried(Outcome.UNKNOWN), nth, 0.0, 0.3)) for nth in (1, 2, 3, 4, 5)] == [
        2,
        4,
        8,
        16,
        32,
    ]
    assert [retry.pause(nth, 0.9) for nth in (6, 60)] == [32, 32]
    shaken = Retry(backoff=(2, 4), jitter=(0.5, 1.5))
    assert [shaken.pause(2, dice) for dice in (0.0, 0.5, 1.0)] == [2, 4, 6]
    assert Retry(jitter=(1.0, 1.0)).pause(3, 0.1) == 4


def test_guesses_grow_from_what_is_known() -> None:
    """A hold that the rules name is the first step, and the ladder goes on from there."""
    assert [Retry().pause(nth, 0.0, spread=(1.0, 1.5)) for nth in (1, 2, 3, 9)] == [1, 2, 4, 32]
    assert [Retry().pause(nth, 0.0, spread=(1.0, 1.5), least=10) for nth in (1, 2, 3)] == [10, 20, 32]
    assert [Retry(backoff=(2, 4)).pause(nth, 0.0, spread=(1.0, 1.5), least=3) for nth in (1, 2)] == [3, 4]
