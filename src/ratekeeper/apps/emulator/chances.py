"""Which requests meet trouble: as many as were asked for, also in a short run, and nobody can tell which."""

from __future__ import annotations

import random
from typing import NamedTuple

__all__ = ["Chances"]


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
