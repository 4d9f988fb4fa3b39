"""In which order calls of one API key leave, where its nonces must rise. Pure: instants are arguments.

A `Line` is what all processes share of one key: the calls that want to leave, those that left and are not answered yet, and
the highest nonce that has left. Every part of it ends by itself, so a killed or stopped process holds nobody up for long.

The present is an `Instant` as in `ratekeeper.policy.shared`: `lo` and `hi` bound the store's steady clock.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Final, NamedTuple, TypeAlias

from msgspec import Meta

from ratekeeper.ledger.limit import SECOND, Instant

__all__ = ["KEEP", "Line", "Place", "Turn", "departed", "entered", "finished"]

Nonce: TypeAlias = Annotated[int, Meta(ge=-1)]
"""A nonce of 64 bits, or -1 for none."""

LEASE: Final = 4 * SECOND
"""A call that waits loses its place after this without a renewal, ns."""
ANSWER: Final = 2 * SECOND
"""A call that left holds the next one back until it is answered, but no longer than this, ns: its bytes have arrived by then.
Two requests that leave on two connections may arrive in any order, so leaving in order alone is not enough."""
PATIENCE: Final = 5 * SECOND
URGENT: Final = SECOND // 4
"""A call waits at most this for calls of lower priority, a critical call (such as a cancel) only the shorter, ns. Then it
overtakes them, or at once if they will not be gone by then."""
MEMORY: Final = 60 * SECOND
"""The highest nonce is remembered for this, ns. Then the provider decides, which may have forgotten it as well."""
KEEP: Final = MEMORY + LEASE
"""The store keeps a line for this, ns."""


class Turn(Enum):
    """Whether a call may leave."""

    FIRST = "first"
    """It may: no call with a lower nonce is ahead."""
    WAIT = "wait"
    GONE = "gone"
    """Never: a call with a higher nonce has left."""


class Place(NamedTuple):
    """One call in a line.

    Attributes:
        id: a random number.
        nonce: of its request.
        priority: lower numbers go first.
        until: steady ns of the store at which the place ends.
        due: steady ns at which the limits may let the call pass, as far as is known; of this machine in an argument.
        left: whether the call has left.
        before: the highest nonce before it left.
    """

    id: int
    nonce: Nonce
    priority: int
    until: int = 0
    due: int = 0
    left: bool = False
    before: Nonce = -1


class Line(NamedTuple):
    """The calls of one key.

    Attributes:
        places: of its calls, by nonce.
        highest: the highest nonce that has left.
        until: steady ns of the store until which `highest` counts.
    """

    places: tuple[Place, ...] = ()
    highest: Nonce = -1
    until: int = 0

    def at(self, now: Instant) -> Line:
        """Return what has not ended yet. Nothing lasts longer than `KEEP`: what says so was garbled, or dates from before a
        reboot."""
        places = tuple([place for place in self.places if now.lo < place.until <= now.hi + KEEP])
        return Line(places, self.highest if now.lo < self.until <= now.hi + KEEP else -1, self.until)

    def turn(self, mine: Place, now: Instant, waited: int) -> Turn:
        """Return whether a call may leave. `waited`: how long it has waited, ns."""
        if mine.nonce <= self.highest:
            return Turn.GONE
        others = [other for other in self.places if other.id != mine.id]
        # What a critical call further behind is about to overtake anyhow holds nobody up.
        hurry = any(other.priority == 0 and _order(other) > _order(mine) for other in others)
        patience = (URGENT if mine.priority == 0 else PATIENCE) - waited
        due = 0
        for other in others:
            if _order(other) > _order(mine) or not (other.left or other.nonce > self.highest):
                continue  # it is behind, or overtaken
            if other.left or mine.priority >= other.priority:
                return Turn.WAIT
            due = max(due, other.due)  # it waits for those before it
            if not hurry and patience > 0 and due <= now.lo + patience:
                return Turn.WAIT
        return Turn.FIRST


def entered(line: Line | None, now: Instant, mine: Place, waited: int) -> tuple[Line | None, Turn]:
    """Give a call its place for another `LEASE`, the first time or again. Returns the line and the call's turn."""
    line = (line or Line()).at(now)
    turn = line.turn(mine, now, waited)
    others = [place for place in line.places if place.id != mine.id]
    if any(place.id == mine.id and place.left for place in line.places):
        return line, Turn.FIRST  # it left meanwhile
    if turn is not Turn.GONE:
        others.append(mine._replace(until=now.hi + LEASE, due=mine.due and mine.due - now.mono + now.hi))
    return _kept(line._replace(places=tuple(sorted(others, key=_order)))), turn


def departed(line: Line | None, now: Instant, mine: Place, waited: int) -> tuple[Line | None, Turn]:
    """Note that a call leaves now, if it may. Returns the line and the call's turn."""
    line, turn = entered(line, now, mine, waited)
    if line is None or turn is not Turn.FIRST:
        return line, turn
    gone = mine._replace(until=now.hi + ANSWER, left=True, before=line.highest)
    places = tuple([gone if place.id == mine.id else place for place in line.places])
    return Line(places, mine.nonce, now.hi + MEMORY), turn


def finished(line: Line | None, now: Instant, mine: Place, unsent: bool) -> tuple[Line | None, None]:
    """Note that a call is answered, failed or was given up. `unsent`: surely nothing was sent, so its nonce is unused."""
    line = (line or Line()).at(now)
    place = next((each for each in line.places if each.id == mine.id), None)
    others = tuple([each for each in line.places if each.id != mine.id])
    if unsent and place is not None and place.left and place.nonce == line.highest:
        line = line._replace(highest=place.before)
    return _kept(line._replace(places=others)), None


def _order(place: Place) -> tuple[int, int]:
    return place.nonce, place.id


def _kept(line: Line) -> Line | None:
    return line if line.places or line.highest >= 0 else None
