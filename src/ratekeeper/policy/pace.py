"""How much of a limit to use after the provider refused a call for which there was room. Pure: instants are arguments.

The part shrinks at a refusal and grows again along a cubic curve: soon near to what it was, slowly through the part where
it was refused. A limit whose number is right comes back to the whole of it; one whose number is only a guess goes on
feeling for the place where it is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, NamedTuple, TypeAlias

from msgspec import Meta

from ratekeeper.ledger.limit import SECOND
from ratekeeper.policy.shared import Steady

__all__ = ["WHOLE", "Pace", "Paced", "Streak"]

WHOLE: Final = 1000
"""The part of a limit that is used is told in thousandths."""
_LEAST: Final = 10
_FORGOTTEN: Final = 600 * SECOND
"""Ns after a hold has ended without a further refusal by which nobody remembers it."""

_Part: TypeAlias = Annotated[int, Meta(ge=1, le=WHOLE)]
"""Thousandths of a limit."""


class Paced(NamedTuple):
    """How one ledger is paced.

    Attributes:
        part: thousandths of the limit that may be used now.
        top: the part that was in use when it was refused last.
        cut: steady seconds of that refusal, of the store's clock.
        low: the part right after it.
        stepped: steady seconds at which it was last looked whether the part may grow.
    """

    part: _Part = WHOLE
    top: _Part = WHOLE
    cut: Steady = 0.0
    low: _Part = WHOLE
    stepped: Steady = 0.0


class Streak(NamedTuple):
    """Refusals in a row of one scope, none of which said when to come back.

    Attributes:
        refusals: how many; calls that were on their way together count as one.
        ends: steady ns, of the store's clock, until which calls are held for the last.
    """

    refusals: int = 0
    ends: int = 0

    def covers(self, sent: int, now: int) -> bool:
        """Whether a call sent at `sent` (steady ns) left before the last hold was over: then it tells nothing new."""
        return self.refusals > 0 and sent < self.ends < now + _FORGOTTEN

    def nth(self, sent: int, now: int) -> int:
        """Which in a row a refusal is that came at `now` to a call sent at `sent`."""
        if self.covers(sent, now):
            return self.refusals
        # A clock that began anew (a reboot), or a refusal so long ago that it was another trouble.
        return self.refusals + 1 if 0 <= now - self.ends < _FORGOTTEN else 1


@dataclass(frozen=True, slots=True)
class Pace:
    """How a ledger is paced after refusals.

    Attributes:
        period: of the limit, seconds; refusals within one period are one.
        beta: what is left of the part at a refusal; 0.7 as in CUBIC (RFC 9438, section 4.6).
        windows: periods after which the part is back where it was refused, ...
        least: ... but no fewer seconds than this.
        steps: changes of the part in that time; each makes all processes plan anew, so they are few.
        guessed: the number of the limit is a guess: the part does not come back to the whole by time alone.
    """

    period: float
    beta: float = 0.7
    windows: float = 3.0
    least: float = 60.0
    steps: int = 8
    guessed: bool = False

    @property
    def span(self) -> float:
        """Seconds from a refusal until the part is back where it was."""
        return max(self.least, self.windows * self.period)

    @property
    def step(self) -> float:
        """Seconds between two changes of the part."""
        return self.span / self.steps

    def refused(self, paced: Paced, now: float) -> Paced:
        """After a refusal. Calls that were on their way when the part was cut tell nothing new."""
        if paced.cut and 0 <= now - paced.cut < self.period:
            return paced
        if not self.guessed:
            paced = self.grown(paced, now)
        low = max(_LEAST, round(paced.part * self.beta))
        return Paced(low, max(paced.part, _LEAST), now, low)

    def stepped(self, paced: Paced, now: float) -> Paced:
        """After an answer that went well: `grown`, unless any process has looked within one step."""
        if 0 <= now - paced.stepped < self.step:
            return paced
        return self.grown(paced, now)._replace(stepped=now)

    def grown(self, paced: Paced, now: float) -> Paced:
        """The part as it may be by now. A clock that began anew (a reboot) ends the pace of a limit whose number is right."""
        since = now - paced.cut
        if paced.part >= WHOLE or (since < 0 and self.guessed):
            return paced
        if since < 0:
            return Paced()
        back = since / self.span
        if self.guessed:
            # Cubic on both sides of the top: flat where it was refused, steeper the longer nothing is.
            part = paced.top + int((paced.top - paced.low) * (back - 1) ** 3)
        elif back >= 1:
            return Paced()
        else:
            # The number is said to be right, so it is the whole that is aimed at, wherever it was refused.
            part = WHOLE + int((WHOLE - paced.low) * (back - 1) ** 3)
        return paced._replace(part=min(WHOLE, max(part, paced.part)))
