"""An attempt that a layer above has waited for: who takes it, who observes it, and where it is lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ratekeeper import Gate
from ratekeeper.adapters._attempt import Attempt, HandedDown, above, leaving, peek, replace, take

HOST = "testland.invalid"
Spent = Callable[..., tuple[int, int]]


@pytest.fixture
def attempt(gate: Gate) -> Callable[[], Attempt]:
    """Makes attempts, each with a permit of its own."""

    def make() -> Attempt:
        permit = gate.permit("testland", "GET", "/few")
        permit.acquire()
        return Attempt(None, gate.provider("testland"), permit, netloc=HOST)

    return make


def test_it_is_taken_once_and_by_its_host(attempt: Callable[[], Attempt]) -> None:
    """The first request for its host takes it; a redirect, another host and what comes afterwards find nothing."""
    made = attempt()
    with HandedDown(made):
        assert above() is made and peek(HOST) is made
        assert take("elsewhere.invalid") is None
        assert take(HOST) is made
        assert take(HOST) is None and peek(HOST) is None
    assert above() is None and take(HOST) is None
    assert made.observed_above


def test_whoever_took_it_hands_it_on(attempt: Callable[[], Attempt]) -> None:
    """A layer in the middle gives it to the one below, once more, and what is left of it afterwards is nobody's."""
    made = attempt()
    with HandedDown(made, observed_above=False):
        assert take(HOST) is made and not made.observed_above
        with HandedDown(made):
            assert made.observed_above and made.spare
            assert take(HOST) is made
        with HandedDown(made):
            pass
        assert not made.spare and take(HOST) is None


def test_another_takes_the_place_of_one_that_is_spent(attempt: Callable[[], Attempt]) -> None:
    """An SDK repeats a request: the next one takes the new attempt, and nothing of either is left behind the block."""
    first, second = attempt(), attempt()
    with HandedDown(first, observed_above=False):
        assert take(HOST) is first
        replace(second)
        assert take(HOST) is second and not second.observed_above
    assert above() is None


def test_only_the_first_word_on_its_fate_counts(attempt: Callable[[], Attempt], spent: Spent) -> None:
    """It was answered: what is said later changes nothing. One that was never sent gives its cost back."""
    answered, unsent = attempt(), attempt()
    assert sum(spent("few-1d")) == 2
    answered.answered(200, {})
    answered.failed(ConnectionRefusedError())
    unsent.unsent()
    unsent.answered(200, {})
    assert spent("few-1d") == (1, 0)
    assert (answered.done, answered.fate, unsent.told) == (True, None, None)


def test_the_system_chooses_where_there_is_one_address(attempt: Callable[[], Attempt]) -> None:
    """Without a pool no request is told to leave from anywhere."""
    made: Any = attempt()
    with HandedDown(made):
        assert leaving("https", HOST, None) is None
        made.egress = "somewhere"
        assert leaving("https", HOST.upper(), 443) == "somewhere"
        assert leaving("https", "elsewhere.invalid", None) is None
