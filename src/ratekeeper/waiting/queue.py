"""The queue of waiting calls: it decides which one goes next.

Pure: no clock, no I/O; instants are steady ns and come as arguments. Calls of one class and the same scopes that need about
as much of the same ledgers form one *lane*, first come first served. The queue tries only heads of lanes, oldest first. A
lane never waits for one that shares no ledger with it, and room too small for a big call still serves small ones. Fifty
thousand waiters in a lane cost no more than one.
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
"""A lane not served for this long rises one class for its next call (never to the highest), ns."""


Shape = tuple[int, tuple[str, ...], tuple[tuple[str, int], ...]]
"""What distinguishes lanes: the class, the scopes, and for each ledger the cost's size in bits."""


class Waiter:
    """One waiting call.

    Attributes:
        charges: what it needs.
        priority: its priority class.
        arrived: steady ns.
        deadline: steady ns after which it is refused.
        ticket: order of arrival in this process.
        waiting: whether it is still in a lane.
        scopes: owners whose blocks hold it. A call never queues behind one that another block could hold.
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
        """Return the first call that still waits."""
        waiters = self.waiters
        while waiters and not waiters[0].waiting:
            waiters.popleft()
        return waiters[0] if waiters else None

    def rank(self, now: int) -> tuple[int, int]:
        """Order among heads: effective class, then arrival. A lane long unserved rises, but never to the top."""
        priority = self.priority % AGED
        lifted = priority - (now - self.since) // AGEING
        return priority if priority <= 1 else max(1, lifted), self.waiters[0].ticket

    def standing(self, now: int) -> int:
        """Return the head's class as ledgers see it."""
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
        """The number of waiting calls."""

    @classmethod
    def of(cls, waiters: Iterable[Waiter], tickets: int) -> Queue:
        """Build a new queue of all waiters in the order of their tickets (`tickets` were given), because an exception struck
        while the old one changed. Every lane is due."""
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
        """Return how many tickets were given."""
        return self._tickets

    def busy(self, charges: Iterable[Charge]) -> bool:
        """Whether a call waits for one of these ledgers, so that a newcomer must queue too."""
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
            # A far deadline on top must not keep all served calls behind it.
            self._deadlines = [entry for entry in self._deadlines if entry[2].waiting]
            heapq.heapify(self._deadlines)
        heapq.heappush(self._deadlines, (waiter.deadline, waiter.ticket, waiter))
        return lane

    def remove(self, waiter: Waiter) -> None:
        """Remove a call from any place in its lane: it was served, or gave up."""
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
        """Remove a call that got its permit; its lane's ageing restarts, and its next call is tried."""
        lane = waiter.lane
        self.remove(waiter)
        if lane is not None:
            lane.since, lane.available_at, lane.why = now, 0, None

    def restore(self, waiter: Waiter) -> None:
        """Put a call whose permit failed back at the head."""
        lane = self.add(waiter)
        lane.waiters.remove(waiter)
        lane.waiters.appendleft(waiter)
        lane.available_at = 0

    def ready(self, now: int) -> list[Lane]:
        """Return the lanes whose head should be tried now, each once, best first."""
        due = [lane for lane in self._lanes.values() if lane.available_at <= now and lane.head() is not None]
        return sorted(due, key=lambda lane: lane.rank(now)) if len(due) > 1 else due

    def due(self, now: int) -> Iterator[Lane]:
        """Yield the lanes whose head should be tried now, best first. After each try set `Lane.available_at` or call
        `served`."""
        while heap := [(lane.rank(now), id(lane), lane) for lane in self.ready(now)]:
            while heap:
                _, _, lane = heap[0]
                yield lane
                if lane.available_at <= now and lane.head() is not None:
                    heapq.heapreplace(heap, (lane.rank(now), id(lane), lane))
                else:
                    heapq.heappop(heap)

    def released(self, keys: Iterable[str], at: int = 0) -> bool:
        """Units came back on these ledgers: make their lanes due at `at` (steady ns). True if there are any."""
        found = False
        for key in keys:
            for lane in self._by_key.get(key, ()):
                lane.available_at = min(lane.available_at, at)
                found = True
        return found

    def look(self) -> None:
        """Make every lane due."""
        for lane in self._lanes.values():
            lane.available_at = 0

    def backlog(self, lane: Lane) -> dict[str, int]:
        """Return the units by ledger for which the lane's class waits in this process."""
        return {key: self._demand.get((key, lane.priority), 0) for key in lane.keys}

    def missed(self, waiter: Waiter, no: Refusal) -> tuple[dict[str, int], dict[str, int]]:
        """Return, by ledger, the units wanted by a call that gave up, and those for which other calls of its class still
        wait.

        Args:
            waiter: the call, already out of its lane.
            no: the refusal that held it. Other ledgers had room for it, so there it missed nothing.
        """
        keys = [charge.key for charge in waiter.charges]
        units = {charge.key: charge.cost for charge in waiter.charges if charge.key == no.key and no.kind == "limit"}
        return {key: units.get(key, 0) for key in keys}, {
            key: self._demand.get((key, waiter.priority), 0) for key in keys
        }

    def ahead(self, lane: Lane, now: int) -> dict[str, int]:
        """Return the units by ledger for which heads older than this lane's head wait."""
        found: dict[str, int] = {}
        for key in lane.keys:
            others = self._by_key[key]
            if len(others) > 1:
                mine = lane.rank(now)
                for other in others:
                    head = other.head() if other is not lane else None
                    why = other.why
                    if why is not None and why.key != key:
                        continue  # it waits for another ledger: units kept for it here would lie idle
                    if head is not None and other.rank(now) < mine:
                        found[key] = found.get(key, 0) + next(c.cost for c in head.charges if c.key == key)
        return found

    def expired(self, now: int) -> list[Waiter]:
        """Remove the calls whose deadline has passed."""
        gone = []
        while self._deadlines and (self._deadlines[0][0] <= now or not self._deadlines[0][2].waiting):
            waiter = heapq.heappop(self._deadlines)[2]
            if waiter.waiting:
                self.remove(waiter)
                gone.append(waiter)
        return gone

    def next_instant(self) -> int | None:
        """Return the steady ns of the next event: a lane opens, or a deadline passes."""
        soonest = min((lane.available_at for lane in self._lanes.values()), default=None)
        while self._deadlines and not self._deadlines[0][2].waiting:
            heapq.heappop(self._deadlines)
        if self._deadlines and soonest is not None:
            soonest = min(soonest, self._deadlines[0][0])
        return soonest

    def drain(self) -> list[Waiter]:
        """Remove all calls."""
        waiters = [waiter for lane in self._lanes.values() for waiter in lane.waiters if waiter.waiting]
        for waiter in waiters:
            self.remove(waiter)
        return waiters

    def earliest(self, waiter: Waiter, available_at: int) -> int:
        """Return the soonest instant (steady ns) at which a newcomer can be served: the calls before it in its class alone
        fill a number of windows.

        Args:
            waiter: a call in its lane.
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
    """The queue depth of this process for each scope, in windows: waiting calls as a share of what one window serves."""

    def __init__(self) -> None:
        self._lines: dict[str, float] = {}

    def length(self, scope: str) -> float:
        """Return the depth in windows."""
        return self._lines.get(scope, 0.0)

    def change(self, scope: str, share: float) -> None:
        """Add `share`: positive when a call joins, negative when it leaves."""
        left = self._lines.get(scope, 0.0) + share
        if left > 1e-9:
            self._lines[scope] = left
        else:
            self._lines.pop(scope, None)
