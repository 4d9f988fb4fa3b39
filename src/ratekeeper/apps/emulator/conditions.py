"""What the world does to an emulation: chance that strikes requests, and clocks that do not agree.

A provider counts by the clock of an engine, and its edge servers date what goes out. Nobody promises that the two agree.
Pure: instants are arguments, integer nanoseconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import random

    from .options import Live

__all__ = ["MACHINES", "Chances", "Clocks"]

SECOND = 1_000_000_000
MILLION = 1_000_000
MACHINES = 5
"""Machines that date the answers; their clocks lie evenly across `Live.date_spread`."""


class Clocks:
    """Tells both times of one emulation.

    Args:
        options: `skew` moves all clocks, `date_offset`, `date_drift`, `date_spread` and `date_per` those that date.
        dice: chooses the machine where each answer has its own.
        begin: the wall clock, Unix ns; the drift counts from here.
    """

    def __init__(self, options: Live, dice: random.Random, begin: int) -> None:
        self._options = options
        self._dice = dice
        self._drift = options.date_drift
        self._begin = begin
        self._drifted = 0

    def apply(self, wall: int) -> None:
        """Take over a changed drift: what has drifted by `wall` (Unix ns) stays, and goes on at the new rate."""
        self._drifted = self._drift_at(wall)
        self._begin, self._drift = wall, self._options.date_drift

    def counting(self, wall: int) -> int:
        """The clock by which windows, bans and instants of return go, when the machine's own clock shows `wall`."""
        return wall + round(self._options.skew * SECOND)

    def dating(self, wall: int, port: int) -> int:
        """The clock of the machine that answers the connection from `port`, at the same moment.

        It is `date_offset` seconds (and the drift) ahead of the one that counts, give or take half of `date_spread`.
        """
        options = self._options
        ahead = round(options.date_offset * SECOND) + self._drift_at(wall)
        spread = round(options.date_spread * SECOND)
        if spread:
            ahead += spread * self._machine(port) // (MACHINES - 1) - spread // 2
        return self.counting(wall) + ahead

    def _drift_at(self, wall: int) -> int:
        return self._drifted + round((wall - self._begin) * self._drift / MILLION)

    def _machine(self, port: int) -> int:
        """As a balancer that goes by the client's port does it. Ports that systems give out are often all even or all odd."""
        if self._options.date_per == "answer":
            return self._dice.randrange(MACHINES)
        return port // 2 % MACHINES


class _Course(NamedTuple):
    """How far one kind of trouble has come: it strikes when `phase` passes `at`, a point drawn within each whole number."""

    phase: float
    at: float
    due: int


class Chances:
    """Strikes one of every 1/share requests, at a point drawn by chance. A dice of its own for each request would leave a run
    of a hundred without any trouble of a share of 2 % in one case of eight.

    Args:
        dice: what draws.
    """

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self._courses: dict[str, _Course] = {}

    def strikes(self, kind: str, share: float) -> bool:
        """Whether the next request meets this kind of trouble. `share` (0 to 1) may change at any time."""
        if not share:
            return False
        phase, at, due = self._courses.get(kind) or _Course(0.0, self._dice.random(), 0)
        phase += share
        if at < phase:
            due, at = due + 1, 2.0  # none until the next whole number
        if phase >= 1:
            phase -= 1
            at = self._dice.random()
            if at < phase:
                due, at = due + 1, 2.0
        self._courses[kind] = _Course(phase, at, max(0, due - 1))
        return due > 0
