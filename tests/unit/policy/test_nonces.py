"""The order in which calls of one key leave."""

from __future__ import annotations

from typing import Any

import pytest

from ratekeeper.ledger.limit import SECOND, Instant
from ratekeeper.policy.nonces import (
    ANSWER,
    LEASE,
    MEMORY,
    PATIENCE,
    URGENT,
    Line,
    Place,
    Turn,
    departed,
    entered,
    finished,
)


class World:
    """A line, and a clock that jumps."""

    def __init__(self) -> None:
        self.line: Line | None = None
        self.now = 1_000 * SECOND

    def do(self, change: Any, place: Place, extra: Any = 0, after: float = 0.0) -> Any:
        """Change the line `after` seconds from the last change."""
        self.now += int(after * SECOND)
        self.line, told = change(self.line, Instant(self.now, self.now, self.now), place, extra)
        return told


@pytest.fixture
def world() -> World:
    """A line that nobody stands in."""
    return World()


def place(nonce: int, priority: int = 2, due: int = 0) -> Place:
    """A call whose nonce is its number as well."""
    return Place(nonce, nonce, priority, due=due)


def test_lower_nonces_leave_first_and_are_answered_before_the_next(world: World) -> None:
    """In whatever order they came; the last one leaves nothing but the highest nonce."""
    assert world.do(entered, place(2)) is Turn.FIRST
    assert world.do(entered, place(1)) is Turn.FIRST
    assert world.do(departed, place(2)) is Turn.WAIT
    assert world.do(departed, place(1)) is Turn.FIRST
    assert world.do(entered, place(2)) is Turn.WAIT
    world.do(finished, place(1), False)
    assert world.do(departed, place(2)) is Turn.FIRST
    world.do(finished, place(2), False)
    assert world.line == Line((), 2, world.now + MEMORY)


def test_equal_nonces_do_not_wait_for_each_other(world: World) -> None:
    """The provider takes one of them: the other one is overtaken."""
    one, two = Place(1, 7, 2), Place(2, 7, 2)
    assert world.do(entered, one) is Turn.FIRST
    assert world.do(entered, two) is Turn.WAIT
    assert world.do(departed, one) is Turn.FIRST
    assert world.do(entered, two) is Turn.GONE


def test_what_is_behind_the_highest_nonce_is_overtaken_for_a_while(world: World) -> None:
    """After a minute the provider decides."""
    world.do(departed, place(5))
    world.do(finished, place(5), False)
    assert world.do(entered, place(5)) is Turn.GONE
    assert world.do(entered, place(4)) is Turn.GONE
    assert world.do(entered, place(4), after=MEMORY / SECOND + 1) is Turn.FIRST


def test_an_unsent_nonce_may_be_used_again(world: World) -> None:
    """But not if a higher one has left meanwhile."""
    world.do(departed, place(3))
    world.do(departed, place(5))
    world.do(finished, place(3), False)
    world.do(departed, place(5))
    world.do(finished, place(5), True)
    assert world.do(entered, place(4)) is Turn.FIRST
    world.do(departed, place(4))
    world.do(departed, place(6), after=ANSWER / SECOND + 1)
    world.do(finished, place(4), True)
    assert world.do(entered, place(4)) is Turn.GONE


def test_nothing_is_held_without_an_end(world: World) -> None:
    """Neither by a call that waited in a process that was killed, nor by one that is never answered."""
    world.do(entered, place(1))
    assert world.do(entered, place(2)) is Turn.WAIT
    assert world.do(entered, place(2), after=LEASE / SECOND + 1) is Turn.FIRST
    world.do(departed, place(2))
    assert world.do(entered, place(3), after=ANSWER / SECOND - 0.5) is Turn.WAIT
    assert world.do(entered, place(3), after=1) is Turn.FIRST
    assert world.do(entered, place(1)) is Turn.GONE, "it was stopped, and was overtaken"


def test_a_renewal_does_not_bring_back_what_has_left(world: World) -> None:
    """It may come late."""
    world.do(departed, place(1))
    assert world.do(entered, place(1)) is Turn.FIRST
    assert world.do(entered, place(2)) is Turn.WAIT, "the first one is still on its way"


@pytest.mark.parametrize(("priority", "patience"), [(0, URGENT), (1, PATIENCE)])
def test_higher_priority_waits_for_lower_only_a_moment(world: World, priority: int, patience: int) -> None:
    """It does not wait at all for a call that cannot be gone by then, and always for its equals."""
    world.do(entered, place(1))
    assert world.do(entered, place(2, priority), patience - 1) is Turn.WAIT
    assert world.do(entered, place(2, priority), patience) is Turn.FIRST
    world.do(entered, place(0, due=world.now + patience + SECOND))
    assert world.do(entered, place(2, priority)) is Turn.FIRST
    assert world.do(entered, place(3), 900 * SECOND) is Turn.WAIT
    assert world.do(departed, place(2, priority)) is Turn.FIRST
    assert world.do(entered, place(1)) is Turn.GONE
    assert world.do(entered, place(0)) is Turn.GONE


def test_what_a_critical_call_will_overtake_holds_up_no_order_before_it(world: World) -> None:
    """Or the order would be overtaken with it."""
    world.do(entered, place(1))
    assert world.do(entered, place(2, 1)) is Turn.WAIT
    assert world.do(entered, place(3, 0)) is Turn.WAIT
    assert world.do(departed, place(2, 1)) is Turn.FIRST
    world.do(finished, place(2, 1), False)
    assert world.do(departed, place(3, 0)) is Turn.FIRST


def test_garbled_instants_count_for_nothing(world: World) -> None:
    """As after a reboot, which sets the steady clock back."""
    far = world.now + 10**6 * SECOND
    world.line = Line((place(1)._replace(until=far),), 9, far)
    assert world.do(entered, place(2)) is Turn.FIRST
