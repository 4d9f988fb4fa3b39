"""Many limits, one decision."""

from __future__ import annotations

import pytest

from ratekeeper.ledger.base import Ledger
from ratekeeper.ledger.codec import create
from ratekeeper.ledger.decide import refusal
from ratekeeper.ledger.limit import SECOND, Charge, Instant, Limit, Window

pytestmark = pytest.mark.usefixtures("dates_count")

NOW = Instant(600 * SECOND, 600 * SECOND, 600 * SECOND)
LATER = 601 * SECOND
WHO = (1, 0)


def ledger(name: str, window: Window, used: int, inflight: int = 0) -> tuple[Charge, Ledger]:
    """A charge of one unit, and its ledger of ten."""
    limit = Limit(name, "w", 10, 0 if window is Window.SLOTS else 60 * SECOND, window)
    made = create(limit)
    made.advance(NOW)
    made.take(used + inflight, WHO, NOW)
    made.settle(used, used, NOW)
    return Charge(name, limit, 1), made


def decide(*pairs: tuple[Charge, Ledger], ahead: dict[str, int] | None = None, who: tuple[int, int] = WHO) -> object:
    """The decision, and what has no room."""
    short: list[tuple[Charge, Ledger, int]] = []
    no = refusal([c for c, _ in pairs], [x for _, x in pairs], who, NOW, ahead or {}, LATER, short)
    return no, [(charge.key, available_at) for charge, _, available_at in short]


def test_all_or_nothing() -> None:
    """One limit without room refuses all; it alone is named as short."""
    no, short = decide(ledger("a", Window.FIXED, 3), ledger("b", Window.FIXED, 10))
    assert no is not None
    assert (no.key, no.available_at, no.unknown) == ("b", 660 * SECOND, False)
    assert short == [("b", 660 * SECOND)]


def test_room_everywhere() -> None:
    """With room in all of them the answer is yes."""
    assert decide(ledger("a", Window.FIXED, 3), ledger("b", Window.SLOTS, 0)) == (None, [])


def test_known_and_unknown() -> None:
    """If one of the instants cannot be known, the call may not be refused for a deadline by the other's."""
    no, short = decide(ledger("a", Window.SLOTS, 0, 10), ledger("b", Window.FIXED, 10))
    assert no is not None
    assert (no.key, no.available_at, no.unknown) == ("b", 660 * SECOND, True)
    assert short == [("a", LATER), ("b", 660 * SECOND)]


def test_older_calls_of_the_process_go_first() -> None:
    """Where units come back all the time, what an older call waits for is left to it."""
    pair = ledger("a", Window.SLIDING, 5)
    assert decide(pair, ahead={"a": 4}) == (None, [])
    no, _ = decide(pair, ahead={"a": 5})
    assert no is not None
