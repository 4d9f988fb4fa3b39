"""Decides whether a used-counter can be true, given the calls that this process has made. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ratekeeper.ledger.limit import Charge, Window

__all__ = ["Counters"]

_STILL: Final = 3
"""A counter that this many calls in a row did not raise, all within one window, is not believed. One window's edge may lie
between two of them, and machines of a provider may differ a little; this many have no other cause."""
_MOST: Final = 4096
"""Counters that are watched."""


class _Counter:
    """One used-counter.

    Attributes:
        used: its last value, units.
        told: steady ns of the answer that stated it.
        since: steady ns of the answer that raised it last, or of the first.
        still: calls since then that did not raise it.
    """

    __slots__ = ("since", "still", "told", "used")

    def __init__(self, used: int, told: int) -> None:
        self.used, self.told, self.since, self.still = used, told, told, 0


class Counters:
    """Watches the used-counters of fixed windows. Each call that costs something raises them, unless an edge lies between.

    A ledger lowers what it has counted to what a counter shows. So a counter that stands still would let calls pass for ever.
    """

    def __init__(self) -> None:
        self._seen: dict[str, _Counter] = {}

    def untrue(
        self, charges: tuple[Charge, ...], used: Mapping[str, int], actual: Mapping[str, int], sent: int, told: int
    ) -> tuple[tuple[str, int], ...]:
        """Return the counters of an answer that cannot be true: ledger key, and how many calls it does not show, at least 1.

        Args:
            charges: of the call.
            used: the counters that the answer states, units by key.
            actual: the real cost by key, where it differs from the reserved one. A call that costs nothing proves nothing.
            sent, told: steady ns at which the call was reserved and its answer came.
        """
        found: tuple[tuple[str, int], ...] = ()
        for key, limit, cost in charges:
            count = used.get(key)
            if count is None or limit.window is not Window.FIXED or not (actual.get(key, cost) if actual else cost):
                continue
            seen = self._seen.get(key)
            if seen is None:
                if len(self._seen) >= _MOST:
                    self._seen.clear()
                seen = self._seen[key] = _Counter(count, told)
                seen.still = not count
            elif sent >= seen.told:  # else in flight together: the counter may have been read before this call arrived
                if count > seen.used:
                    seen.since, seen.still = told, 0
                elif told - seen.since < limit.period or not count:
                    seen.still += 1
                else:
                    seen.since, seen.still = seen.told, 1
                seen.used, seen.told = count, told
            # A counter of nothing does not show the very call that it came with.
            if not count or (seen.still >= _STILL and count <= seen.used):
                found += ((key, max(seen.still, 1)),)
        return found
