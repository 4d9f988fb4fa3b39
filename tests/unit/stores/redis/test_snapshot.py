"""What may surely be shared of a ledger when its server is out of reach."""

from __future__ import annotations

import pytest

from ratekeeper.ledger.codec import create
from ratekeeper.ledger.limit import SECOND, Instant, Limit, Window
from ratekeeper.stores.redis.snapshot import surely_left

MINUTE = 60 * SECOND
BASE = 1_000 * MINUTE
"""The edge of a window, on all clocks."""


def left(limit: Limit, *, used: int = 0, at: float = 30, seen: float = 30, held: float = 31) -> int:
    """Units left `at` so many seconds after the edge, of a ledger last `seen` then; others hold our share from `held` on."""
    now = Instant(*[BASE + int(at * SECOND)] * 3)
    ledger = create(limit)
    ledger.advance(now)
    ledger.spend(used, now)
    return surely_left(ledger, now, now.mono, BASE + int(seen * SECOND), BASE + int(held * SECOND))


@pytest.mark.parametrize("window", [Window.FIXED, Window.SLIDING, Window.BUCKET])
def test_half_of_what_was_left_a_moment_ago(window: Window) -> None:
    """Others may have spent some of it unseen."""
    assert left(Limit("w", "weight", 100, MINUTE, window), used=20) == 40


@pytest.mark.parametrize(
    ("why", "limit", "given"),
    [
        ("short", Limit("w", "weight", 100, 5 * SECOND), {}),
        ("nearly spent", Limit("w", "weight", 100, MINUTE), {"used": 80}),
        ("seen long ago", Limit("w", "weight", 100, MINUTE), {"seen": 20}),
        ("young", Limit("w", "weight", 100, MINUTE), {"at": 2.5, "seen": 1, "held": 3}),
    ],
)
def test_nothing_where_much_may_have_gone_unseen(why: str, limit: Limit, given: dict[str, float]) -> None:
    """Then the rest of that window is left to the others."""
    assert left(limit, **given) == 0, why  # type: ignore[arg-type]


def test_long_windows_go_on() -> None:
    """A day's budget cannot be spent in a moment."""
    day = Limit("w", "orders", 100, 1440 * MINUTE)
    assert left(day, used=90, seen=-500) == 5


def test_a_window_that_began_later_is_whole() -> None:
    """Others leave us our share of it from its first moment on."""
    assert left(Limit("w", "weight", 100, MINUTE), at=5, seen=-20, held=-10) == 100
    assert left(Limit("w", "weight", 100, MINUTE, Window.SLIDING), at=100, seen=-20, held=-10) == 100


def test_slots() -> None:
    """Half of the free ones."""
    assert left(Limit("s", "slots", 8, 0, Window.SLOTS)) == 4
