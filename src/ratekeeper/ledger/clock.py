"""The server's clock, as bounds learned from its answers. It never gives an instant without its uncertainty.

The server's clock is steady time plus an offset that lies in ``[lo, hi]``. Each answer narrows the bounds (the server made
the stamp between sending and answer); time and wall-clock steps widen them. Pure: instants are arguments, integer ns.
"""

from __future__ import annotations

from typing import Final

from ratekeeper.ledger.limit import SECOND, Instant

__all__ = ["FIRST_DOUBT", "ServerClock"]

FIRST_DOUBT: Final = SECOND
"""Until the server has stated its time, the wall clock counts as right within this much, ns."""
_SLACK: Final = SECOND // 100
"""Machines of one provider that stamp answers may differ by this much before any has shown more, ns."""
_APART: Final = 4 * SECOND
"""The clocks of several answering machines differ by up to this much, ns; beyond it the clock was set."""
_DRIFT: Final = 5_000
"""One part in this many: how fast a free-running (or slewed) clock may leave the bounds: 200 ppm."""
_STEP: Final = SECOND // 20
"""Wall and steady clock moving apart by more than this, in ns, is a step or a suspended host, not drift."""


class ServerClock:
    """Bounds of one server's clock.

    Attributes:
        lo, hi: bounds of (server time - steady time), ns, as of `at`.
        at: steady instant of the last answer that stated the time.
        known: whether the server ever stated it.
        looked: steady instant at which the wall clock was last compared.
        slack: by how much the clocks of several machines that stamp may differ, ns.
        stepped: whether the wall clock moved against the steady one since the caller last reset this: either it was set, or
            the host slept and steady time stood still.
    """

    __slots__ = ("at", "hi", "known", "lo", "looked", "slack", "stepped", "wall")

    def __init__(self, mono: int, wall: int, doubt: int = FIRST_DOUBT) -> None:
        self.lo, self.hi = wall - mono - doubt, wall - mono + doubt
        self.at, self.wall = mono, wall - mono
        self.looked = 0
        self.slack = _SLACK
        self.known = self.stepped = False

    def instant(self, mono: int, wall: int) -> Instant:
        """Return the moment `mono` on the server's clock, with its uncertainty.

        A step between the wall and the steady clock means either that the wall clock was set (nothing happened to us) or that
        the host slept (steady time stood still). Nothing here can tell them apart, so both stay possible.
        """
        step = wall - mono - self.wall
        self.looked = mono
        if step > _STEP or step < -_STEP:
            self.wall += step
            self.stepped = True
            if step > 0:
                self.hi += step
            elif not self.known:  # all bounds came from the wall clock before its step
                self.lo += step
        drift = (mono - self.at) // _DRIFT if self.known and mono > self.at else 0
        return Instant(mono, mono + self.lo - drift, mono + self.hi + drift)

    def covers(self, sent: int, answered: int, earliest: int, latest: int) -> bool:
        """Whether a recent stamp adds nothing to the bounds. Arguments as for `learn`."""
        return earliest - answered - self.slack <= self.lo and self.hi <= latest - sent + self.slack

    def learn(self, sent: int, answered: int, earliest: int, latest: int) -> bool:
        """Apply a time stamp of the server.

        Args:
            sent, answered: steady instants between which the server made the stamp, ns.
            earliest, latest: bounds of the stamp itself, Unix ns (an HTTP date is good to a second).

        Returns:
            True if the stamp contradicts the bounds: units counted by the old bounds are in doubt.
        """
        lo, hi = earliest - answered - self.slack, latest - sent + self.slack
        drift = (answered - self.at) // _DRIFT if self.known and answered > self.at else 0
        old_lo, old_hi = self.lo - drift, self.hi + drift
        contradicted = lo > old_hi + _APART or hi < old_lo - _APART
        if contradicted:
            self.lo, self.hi = lo, hi
        elif lo > old_hi or hi < old_lo:  # several machines answer, with clocks a little apart: believe all of them
            more = max(lo - old_hi, old_lo - hi) + self.slack
            self.slack += more
            self.lo, self.hi = min(lo, old_lo) - more, max(hi, old_hi) + more
        else:
            self.lo, self.hi = max(lo, old_lo), min(hi, old_hi)
            narrow = 2 * self.slack - (self.hi - self.lo)
            if narrow > 0:
                self.lo, self.hi = self.lo - narrow // 2, self.hi + narrow // 2
        self.at, self.known = max(self.at, answered), True
        return contradicted

    def widen(self, doubt: int) -> None:
        """Widen to `doubt` ns a clock that the server never stated and that proved wrong."""
        if not self.known:
            middle = (self.lo + self.hi) // 2
            self.lo, self.hi = min(self.lo, middle - doubt), max(self.hi, middle + doubt)

    @property
    def doubt(self) -> int:
        """Return half the width of the bounds, ns."""
        return (self.hi - self.lo) // 2
