"""An attempt that a layer above has waited for: who takes it, who observes it, and where it is lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from tests.support.ahead import ahead

from ratekeeper import Gate
from ratekeeper.adapters._client import ClientCall, leaving
from ratekeeper.adapters._governor import Governor
from ratekeeper.adapters._wire import Outbound
from ratekeeper.gate.call import CURRENT, HandedDown, peek, take
from ratekeeper.gate.steps import drive

HOST = "testland.invalid"
OUTBOUND = Outbound("GET", "https", HOST, "/few", "", {})
Spent = Callable[..., tuple[int, int]]


@pytest.fixture
def attempt(gate: Gate) -> Callable[[], ClientCall]:
    """Makes calls, each with a permit for its first attempt."""

    def make() -> ClientCall:
        rules = gate.provider("testland")
        made = ClientCall(
            Governor(gate), OUTBOUND, rules, None, lambda _: None, family=lambda: RuntimeError, is_async=False
        )
        assert drive(made.begin(None))
        return made

    return make


def test_it_is_taken_once_and_by_its_host(attempt: Callable[[], ClientCall]) -> None:
    """The first request for its host takes it; a redirect, another host and what comes afterwards find nothing."""
    made = attempt()
    with HandedDown(made):
        assert CURRENT.get() is made and peek(HOST) is made
        assert take("elsewhere.invalid") is None
        assert take(HOST) is made
        assert take(HOST) is None and peek(HOST) is None
    assert CURRENT.get() is None and take(HOST) is None
    assert made.observed_above


def test_whoever_took_it_hands_it_on(attempt: Callable[[], ClientCall]) -> None:
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


def test_another_takes_the_place_of_one_that_is_spent(attempt: Callable[[], ClientCall]) -> None:
    """An SDK repeats a request: the next one takes the new attempt, and nothing of either is left behind the block."""
    call = attempt()
    with HandedDown(call, observed_above=False):
        assert take(HOST) is call and take(HOST) is None
        first = call.permit
        assert drive(call.begin(None))
        call.observed_above = False
        assert take(HOST) is call and not call.observed_above
        assert call.permit is not first
    assert CURRENT.get() is None and take(HOST) is None


def test_only_the_first_word_on_its_fate_counts(attempt: Callable[[], ClientCall], spent: Spent) -> None:
    """It was answered: what is said later changes nothing. One that was never sent gives its cost back."""
    answered, unsent = attempt(), attempt()
    assert sum(spent("few-1d")) == 2
    answered.answered(200, {})
    answered.failed(ConnectionRefusedError())
    unsent.unsent()
    unsent.answered(200, {})
    assert spent("few-1d") == (1, 0)
    assert (answered.done, answered.fate, unsent.told) == (True, None, None)


def test_the_system_chooses_where_there_is_one_address(attempt: Callable[[], ClientCall]) -> None:
    """Without a pool no request is told to leave from anywhere."""
    made: Any = attempt()
    with HandedDown(made):
        assert leaving("https", HOST, None) is None
        made.egress = "somewhere"
        assert leaving("https", HOST.upper(), 443) == "somewhere"
        assert leaving("https", "elsewhere.invalid", None) is None


def test_another_address_is_not_tried_after_the_signature_has_expired(
    gate: Gate, spent: Spent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller gets the error of the last one, and nothing stays charged."""
    passed = [0.0]
    query = f"timestamp={int(time.time() * 1000)}&recvWindow=60000&signature=s"
    ahead(gate, lambda: passed[0])
    sent: list[float] = []

    def send(native: object) -> None:
        sent.append(passed[0])
        passed[0] += 40.0
        raise ConnectionRefusedError(f"try {len(sent)}")

    made = ClientCall(
        Governor(gate), OUTBOUND._replace(query=query), gate.provider("testland"), None, send,
        family=lambda: RuntimeError, is_async=False,
    )  # fmt: skip
    monkeypatch.setattr(made, "fails_over", lambda error: True)
    with pytest.raises(ConnectionRefusedError, match="try 2"):
        drive(made.attempt(None))
    assert sent == [0.0, 40.0]
    assert spent("few-1d") == (0, 0)
