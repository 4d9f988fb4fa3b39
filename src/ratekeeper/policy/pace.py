"""How much of a limit is used after the provider refused a call for which there was room. Pure: instants are arguments.

The part shrinks at a refusal and grows again along a cubic curve: soon near to what it was, slowly through the part where
it was refused. A limit whose number is right comes back to the whole of it; one whose number is only a guess goes on
feeling for the place where it is refused.
"""

from __future__ import annotations

from typing import Annotated, Final, NamedTuple, TypeAlias

from msgspec import Meta

from ratekeeper.ledger.limit import SECOND
from ratekeeper.policy.shared import Steady

__all__ = ["WHOLE", "Pace", "Paced", "Streak"]

WHOLE: Final = 1000
"""The whole of a limit: parts of it are counted in thousandths."""
_LEAST: Final = 10
_FORGOTTEN: Final = 600 * SECOND
"""Ns from the end of a hold until it no longer counts, if no further refusal comes."""

_Thousandths: TypeAlias = Annotated[int, Meta(ge=1, le=WHOLE)]


class Paced(NamedTuple):
    """How one ledger is paced.

    Attributes:
        part: thousandths of the limit that may be used now.
        top: the part that was in use when it was refused last.
        cut: steady seconds of that refusal, of the store's clock.
        low: the part right after it.
        stepped: steady seconds at which it was last looked whether the part may grow.
    """

    part: _Thousandths = WHOLE
    top: _Thousandths = WHOLE
    cut: Steady = 0.0
    low: _Thousandths = WHOLE
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
        """Whether a call sent at `sent` (steady ns) left before the last hold ended. Its refusal is no further one."""
        return self.refusals > 0 and sent < self.ends < now + _FORGOTTEN

    def nth(self, sent: int, now: int) -> int:
        """The number, from 1, of a refusal that came at `now` to a call sent at `sent` (steady ns)."""
        if self.covers(sent, now):
            return self.refusals
        # The streak begins again after a reboot, which sets the clock back, and after a long time without a refusal.
        return self.refusals + 1 if 0 <= now - self.ends < _FORGOTTEN else 1


class Pace(NamedTuple):
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
        """The pace after a refusal. Refusals within one period of the last cut change nothing."""
        if paced.cut and 0 <= now - paced.cut < self.period:
            return paced
        if not self.guessed:
            paced = self.grown(paced, now)
        low = max(_LEAST, round(paced.part * self.beta))
        return Paced(low, max(paced.part, _LEAST), now, low)

    def stepped(self, paced: Paced, now: float) -> Paced:
        """The pace after a good answer: `grown`, unless a process did this within the last step."""
        if 0 <= now - paced.stepped < self.step:
            return paced
        return self.grown(paced, now)._replace(stepped=now)

    def grown(self, paced: Paced, now: float) -> Paced:
        """The pace at `now`. A reboot, which sets the clock back, ends the pace of a limit whose number is right."""
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
            # The number of the limit counts as right, so the curve leads to the whole of it.
            part = WHOLE + int((WHOLE - paced.low) * (back - 1) ** 3)
        return paced._replace(part=min(WHOLE, max(part, paced.part)))
