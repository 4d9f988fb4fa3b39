"""When a breaker opens, for how long, and what closes it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratekeeper.policy.breaker import Breaker, Outcomes, troubled
from ratekeeper.rules.call import Outcome
from ratekeeper.stores.encoding import encoded, note_of

SCOPES = ("binance-usdm", "binance-usdm/class:market", "binance-usdm/ip:default")


def test_only_the_provider_s_trouble_counts() -> None:
    """A ban or a quota never opens it; neither does a mistake of ours, which shows that the provider lives."""
    assert {outcome for outcome in Outcome if troubled(outcome)} == {
        Outcome.OVERLOADED, Outcome.FAILED, Outcome.NETWORK, Outcome.UNKNOWN,
    }  # fmt: skip
    assert {outcome for outcome in Outcome if troubled(outcome) is False} == {Outcome.OK, Outcome.BAD_REQUEST}


def test_it_opens_after_enough_failures() -> None:
    """Five in a row, by default."""
    health, breaker = Outcomes(), Breaker()
    for second in range(4):
        health, length = breaker.after(health, 1, 0, 100.0 + second)
        assert not length
    health, length = breaker.after(health, 1, 0, 104.0)
    assert length == 5.0
    assert health.trips == 1


def test_failures_among_many_successes_do_not_open_it() -> None:
    """Ten per cent of trouble is no reason to stop."""
    health, breaker = Outcomes(), Breaker()
    for step in range(200):
        health, length = breaker.after(health, 1, 9, 100.0 + step / 10)
        assert not length


def test_failures_of_long_ago_do_not_count() -> None:
    """A failure every ten seconds is not trouble."""
    health, breaker = Outcomes(), Breaker(span=10.0)
    for step in range(50):
        health, length = breaker.after(health, 1, 0, 100.0 + 10.1 * step)
        assert not length


def test_calls_under_way_do_not_open_it_twice() -> None:
    """What was sent before it opened fails while it is open: that is one event."""
    health, length = Breaker().after(Outcomes(), 5, 0, 100.0)
    assert length == 5.0
    for _ in range(20):
        health, length = Breaker().after(health, 1, 0, 101.0)
        assert not length
    assert health.trips == 1


def test_each_failed_probe_opens_it_for_longer() -> None:
    """5, 10, 20, 40, 60, 60 s: one failure is enough while it is being probed."""
    breaker, now, lengths = Breaker(), 100.0, []
    health, length = breaker.after(Outcomes(), 5, 0, now)
    for _ in range(6):
        lengths.append(length)
        now += length + 0.01
        health, length = breaker.after(health, 1, 0, now)
    assert lengths == [5, 10, 20, 40, 60, 60]


def test_a_success_that_is_noted_forgets_the_trips() -> None:
    """Health that begins anew opens for the shortest time again."""
    _, length = Breaker().after(Outcomes(), 5, 0, 500.0)
    assert length == 5.0


@pytest.mark.parametrize(
    ("scope", "found"),
    [("class", SCOPES[1]), ("ip", SCOPES[2]), ("provider", SCOPES[0])],
)
def test_whose_breaker_it_is(scope: str, found: str) -> None:
    """The scope of a plan that the settings name."""
    assert Breaker(scope=scope).scope_of(SCOPES) == found  # type: ignore[arg-type]


@given(st.floats(0, 1e9), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 100), st.floats(0, 1e9))
def test_it_survives_the_store(since: float, failed: int, worked: int, trips: int, tripped: float) -> None:
    """What is packed comes back; what another version wrote counts as nothing."""
    health = Outcomes(since, failed, worked, trips, tripped)
    assert note_of(encoded(health), Outcomes) == health
    assert note_of(b"other", Outcomes) is note_of(None, Outcomes) is None
    assert note_of(encoded((math.nan, 0, 0, 0, 0.0)), Outcomes) is None
