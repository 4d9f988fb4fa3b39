"""What a provider does: counts a request at the instant it arrives, and refuses what is too much.

Written from the providers' own descriptions, not from the ledger. Times are
integer nanoseconds on the provider's own clock. Nothing here is imported from the project.
"""

from __future__ import annotations

from collections import deque
from fractions import Fraction


class Server:
    """One limit of a provider.

    Attributes:
        refusals: how often it had to refuse.
        log: (instant, units) of everything accepted.
    """

    def __init__(self, capacity: int, period: int) -> None:
        self.capacity = capacity
        self.period = period
        self.refusals = 0
        self.log: list[tuple[int, int]] = []

    def arrive(self, at: int, cost: int) -> int:
        """A request of `cost` units arrives. Returns the used-counter that the answer states."""
        level = self.count(at, cost)
        if level > self.capacity:
            self.refusals += 1
        else:
            self.log.append((at, cost))
        return int(level)

    def depart(self, at: int, cost: int) -> None:
        """The answer to an accepted request leaves."""

    def count(self, at: int, cost: int) -> Fraction | int:
        """Units counted once this request is, by the provider's algorithm."""
        raise NotImplementedError


class FixedServer(Server):
    """Windows aligned to the clock; a refused request counts as well, as Binance does it."""

    def __init__(self, capacity: int, period: int, origin: int = 0) -> None:
        super().__init__(capacity, period)
        self.origin = origin
        self.windows: dict[int, int] = {}

    def count(self, at: int, cost: int) -> int:
        window = (at - self.origin) // self.period
        self.windows[window] = self.windows.get(window, 0) + cost
        return self.windows[window]


class FirstServer(Server):
    """A window begins with the first request after the last one's end."""

    def __init__(self, capacity: int, period: int) -> None:
        super().__init__(capacity, period)
        self.end = 0
        self.spent = 0

    def count(self, at: int, cost: int) -> int:
        if at >= self.end:
            self.end, self.spent = at + self.period, 0
        self.spent += cost
        return self.spent


class SlidingServer(Server):
    """What was accepted within the last period, in every instant."""

    def __init__(self, capacity: int, period: int) -> None:
        super().__init__(capacity, period)
        self.recent: deque[tuple[int, int]] = deque()
        self.total = 0

    def count(self, at: int, cost: int) -> int:
        while self.recent and self.recent[0][0] <= at - self.period:
            self.total -= self.recent.popleft()[1]
        self.recent.append((at, cost))
        self.total += cost
        return self.total


class BucketServer(Server):
    """A bucket that leaks at a steady rate. Its level is exact: a whole number of parts, of which a unit has `period`."""

    def __init__(self, capacity: int, period: int, refill: int = 0) -> None:
        super().__init__(capacity, period)
        self.rate = refill or capacity
        self.level = 0
        self.seen = 0

    def count(self, at: int, cost: int) -> Fraction | int:
        level = self.level = max(0, self.level - (at - self.seen) * self.rate) + cost * self.period
        self.seen = at
        # The counter shows whole units; a refusal is decided on the exact level.
        if level <= self.capacity * self.period:
            return level // self.period
        self.level -= cost * self.period
        return Fraction(level, self.period)


class SlotsServer(Server):
    """So many requests at work at once."""

    def __init__(self, capacity: int, period: int = 0) -> None:
        super().__init__(capacity, period)
        self.at_work = 0

    def count(self, at: int, cost: int) -> int:
        self.at_work += cost
        return self.at_work

    def depart(self, at: int, cost: int) -> None:
        self.at_work -= cost
