"""Who of the waiting calls goes next. Pure: no clock, no I/O; instants are steady ns and come as arguments.

Calls of one class and the same scopes that need about as much of the same ledgers stand in one *lane*, first come first
served. Only heads of lanes are ever tried, oldest first; a lane that shares no ledger with another never waits for it, and
what is too little for a big call still serves small ones. Fifty thousand waiters in a lane cost no more than one.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Final

from ratekeeper.ledger.decide import Refusal
from ratekeeper.ledger.limit import SECOND, Charge
from ratekeeper.ledger.shares import AGED

__all__ = ["AGEING", "Depths", "Lane", "Queue", "Waiter"]

AGEING: Final = 30 * SECOND
"""A lane that was not served for so long goes one class up for its next call (never to the highest), ns."""


Shape = tuple[int, tuple[str, ...], tuple[tuple[str, int], ...]]
"""What tells lanes apart: the class, the scopes, and for each ledger the cost's size in bits."""


class Waiter:
    """One call that waits.

    Attributes:
        charges: what it needs.
        priority: its priority class.
        arrived: steady ns.
        deadline: steady ns after which it is refused.
        ticket: order of arrival in this process.
        waiting: whether it still stands in a lane.
        scopes: whose blocks hold it. A call never stands behind one that another block could hold.
    """

    __slots__ = ("arrived", "charges", "deadline", "lane", "priority", "scopes", "ticket", "waiting")

    def __init__(
        self, charges: tuple[Charge, ...], priority: int, arrived: int, deadline: int, scopes: tuple[str, ...] = ()
    ) -> None:
        self.charges = charges
        self.scopes = scopes
        self.priority = priority
        self.arrived = arrived
        self.deadline = deadline
        self.ticket = 0
        self.waiting = False
        self.lane: Lane | None = None


class Lane:
    """Calls of one class and of the same scopes that need the same ledgers, at costs of the same power of two.

    Attributes:
        available_at: steady ns at which its head should be tried again; 0: now.
        why: the refusal that holds its head.
    """

    __slots__ = ("available_at", "keys", "name", "priority", "since", "waiters", "why")

    def __init__(self, name: Shape, keys: tuple[str, ...], priority: int, now: int) -> None:
        self.name = name
        self.keys = keys
        self.priority = priority
        self.waiters: deque[Waiter] = deque()
        self.available_at = 0
        self.since = now
        self.why: Refusal | None = None

    def head(self) -> Waiter | None:
        """The first that still waits."""
        waiters = self.waiters
        while waiters and not waiters[0].waiting:
            waiters.popleft()
        return waiters[0] if waiters else None

    def rank(self, now: int) -> tuple[int, int]:
        """Order among heads: effective class, then arrival. A lane long unserved is lifted, but never to the top."""
        priority = self.priority % AGED
        lifted = priority - (now - self.since) // AGEING
        return priority if priority <= 1 else max(1, lifted), self.waiters[0].ticket

    def standing(self, now: int) -> int:
        """The class of the head as ledgers know it."""
        priority = self.rank(now)[0]
        return priority if priority == self.priority else priority + AGED


class Queue:
    """All waiting calls of one process."""

    def __init__(self) -> None:
        self._lanes: dict[Shape, Lane] = {}
        self._by_key: dict[str, list[Lane]] = {}
        self._demand: dict[tuple[str, int], int] = {}
        self._deadlines: list[tuple[int, int, Waiter]] = []
        self._tickets = 0
        self.count = 0
        """How many calls wait."""

    @classmethod
    def of(cls, waiters: Iterable[Waiter], tickets: int) -> Queue:
        """A queue made anew of all who wait, in the order of their tickets, of which `tickets` were given: an exception
        struck in the middle of a change of the one before. Every lane is due."""
        made = cls()
        for waiter in sorted(waiters, key=lambda each: each.ticket or tickets + 1):
            before, made._tickets = waiter.lane, (waiter.ticket or tickets + 1) - 1
            lane = made.add(waiter)
            if before is not None:
                lane.since = min(lane.since, before.since)
        made._tickets = tickets + 1
        return made

    @property
    def tickets(self) -> int:
        """How many have been given."""
        return self._tickets

    def busy(self, charges: Iterable[Charge]) -> bool:
        """Whether somebody waits for one of these ledgers, so that a newcomer must queue too."""
        return any(charge.key in self._by_key for charge in charges)

    def add(self, waiter: Waiter) -> Lane:
        """Put a call at the end of its lane."""
        costs = tuple([(charge.key, charge.cost.bit_length()) for charge in waiter.charges])
        name = waiter.priority, waiter.scopes, costs
        lane = self._lanes.get(name)
        if lane is None:
            keys = tuple([charge.key for charge in waiter.charges])
            lane = self._lanes[name] = Lane(name, keys, waiter.priority, waiter.arrived)
            for key in keys:
                self._by_key.setdefault(key, []).append(lane)
        self._tickets += 1
        waiter.ticket = self._tickets
        waiter.waiting, waiter.lane = True, lane
        lane.waiters.append(waiter)
        self.count += 1
        for charge in waiter.charges:
            at = (charge.key, waiter.priority)
            self._demand[at] = self._demand.get(at, 0) + charge.cost
        if len(self._deadlines) > 2 * self.count + 64:
            # A far deadline on top must not keep all who were served behind it.
            self._deadlines = [entry for entry in self._deadlines if entry[2].waiting]
            heapq.heapify(self._deadlines)
        heapq.heappush(self._deadlines, (waiter.deadline, waiter.ticket, waiter))
        return lane

    def remove(self, waiter: Waiter) -> None:
        """Take a call out, wherever it stands: it was served, or gave up."""
        lane = waiter.lane
        if not waiter.waiting or lane is None:
            return
        waiter.waiting = False
        self.count -= 1
        for charge in waiter.charges:
            at = (charge.key, waiter.priority)
            left = self._demand.get(at, 0) - charge.cost
            if left > 0:
                self._demand[at] = left
            else:
                self._demand.pop(at, None)
        if lane.head() is None:
            del self._lanes[lane.name]
            for key in lane.keys:
                lanes = self._by_key[key]
                lanes.remove(lane)
                if not lanes:
                    del self._by_key[key]

    def served(self, waiter: Waiter, now: int) -> None:
        """Take out a call that got its permit; its lane begins to age anew and is tried again."""
        lane = waiter.lane
        self.remove(waiter)
        if lane is not None:
            lane.since, lane.available_at, lane.why = now, 0, None

    def restore(self, waiter: Waiter) -> None:
        """Put back at the head a call whose permit came to nothing."""
        lane = self.add(waiter)
        lane.waiters.remove(waiter)
        lane.waiters.appendleft(waiter)
        lane.available_at = 0

    def ready(self, now: int) -> list[Lane]:
        """Lanes whose head should be tried now, each once, best first."""
        due = [lane for lane in self._lanes.values() if lane.available_at <= now and lane.head() is not None]
        return sorted(due, key=lambda lane: lane.rank(now)) if len(due) > 1 else due

    def due(self, now: int) -> Iterator[Lane]:
        """Lanes whose head should be tried now, best first. After each try set `Lane.available_at` or call `served`."""
        while heap := [(lane.rank(now), id(lane), lane) for lane in self.ready(now)]:
            while heap:
                _, _, lane = heap[0]
                yield lane
                if lane.available_at <= now and lane.head() is not None:
                    heapq.heapreplace(heap, (lane.rank(now), id(lane), lane))
                else:
                    heapq.heappop(heap)

    def released(self, keys: Iterable[str], at: int = 0) -> bool:
        """Units came back on these ledgers: their lanes are due at `at` (steady ns). True if there are any."""
        found = False
        for key in keys:
            for lane in self._by_key.get(key, ()):
                lane.available_at = min(lane.available_at, at)
                found = True
        return found

    def look(self) -> None:
        """Everything is due."""
        for lane in self._lanes.values():
            lane.available_at = 0

    def backlog(self, lane: Lane) -> dict[str, int]:
        """Units by ledger that the lane's class waits for in this process."""
        return {key: self._demand.get((key, lane.priority), 0) for key in lane.keys}

    def missed(self, waiter: Waiter, no: Refusal) -> tuple[dict[str, int], dict[str, int]]:
        """By ledger, the units that a call wanted which gave up, and those that others of its class still wait for.

        Args:
            waiter: it stands in no lane any more.
            no: what held it. Other ledgers had room for it, so there it missed nothing.
        """
        keys = [charge.key for charge in waiter.charges]
        units = {charge.key: charge.cost for charge in waiter.charges if charge.key == no.key and no.kind == "limit"}
        return {key: units.get(key, 0) for key in keys}, {
            key: self._demand.get((key, waiter.priority), 0) for key in keys
        }

    def ahead(self, lane: Lane, now: int) -> dict[str, int]:
        """Units by ledger that heads before this lane's head wait for."""
        found: dict[str, int] = {}
        for key in lane.keys:
            others = self._by_key[key]
            if len(others) > 1:
                mine = lane.rank(now)
                for other in others:
                    head = other.head() if other is not lane else None
                    why = other.why
                    if why is not None and why.key != key:
                        continue  # it waits for something else: to keep this for it would leave it idle
                    if head is not None and other.rank(now) < mine:
                        found[key] = found.get(key, 0) + next(c.cost for c in head.charges if c.key == key)
        return found

    def expired(self, now: int) -> list[Waiter]:
        """Take out the calls whose deadline has passed."""
        gone = []
        while self._deadlines and (self._deadlines[0][0] <= now or not self._deadlines[0][2].waiting):
            waiter = heapq.heappop(self._deadlines)[2]
            if waiter.waiting:
                self.remove(waiter)
                gone.append(waiter)
        return gone

    def next_instant(self) -> int | None:
        """Steady ns of the next thing to do: a lane opens, or a deadline passes."""
        soonest = min((lane.available_at for lane in self._lanes.values()), default=None)
        while self._deadlines and not self._deadlines[0][2].waiting:
            heapq.heappop(self._deadlines)
        if self._deadlines and soonest is not None:
            soonest = min(soonest, self._deadlines[0][0])
        return soonest

    def drain(self) -> list[Waiter]:
        """Take everybody out."""
        waiters = [waiter for lane in self._lanes.values() for waiter in lane.waiters if waiter.waiting]
        for waiter in waiters:
            self.remove(waiter)
        return waiters

    def earliest(self, waiter: Waiter, available_at: int) -> int:
        """The soonest instant (steady ns) at which a newcomer can be served, if all goes well: those before it in its
        class alone fill so many windows.

        Args:
            waiter: a call that stands in its lane.
            available_at: when the lane's head may go, steady ns.
        """
        latest = available_at
        for charge in waiter.charges:
            limit = charge.limit
            if limit.period:
                windows = (self._demand.get((charge.key, waiter.priority), 1) - 1) // limit.usable
                latest = max(latest, available_at + (windows - 1) * limit.period)
        return latest


class Depths:
    """How many calls of this process stand in line for each scope, as a share of what one window of it serves."""

    def __init__(self) -> None:
        self._lines: dict[str, float] = {}

    def length(self, scope: str) -> float:
        """So many windows' worth."""
        return self._lines.get(scope, 0.0)

    def change(self, scope: str, share: float) -> None:
        """Somebody joined or left."""
        left = self._lines.get(scope, 0.0) + share
        if left > 1e-9:
            self._lines[scope] = left
        else:
            self._lines.pop(scope, None)
