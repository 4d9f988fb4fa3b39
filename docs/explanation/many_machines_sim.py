"""Ten thousand processes on one budget, in virtual time: ``python docs/explanation/many_machines_sim.py``.

Every agent (a process; or a host that asks for all of its processes) makes one round trip at a time, which takes along all
that waits there; a shard is a server that serves one trip after the other. What a trip costs was measured, see below; what
is counted here is how many there are, and how they queue. Beats are a load of their own. It runs in about ten seconds.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from typing import NamedTuple

TRIP, PERMIT = 90e-6, 3.4e-6
"""Seconds of the server's thread per trip and per permit in it: benchmark (h), last row, on the machine it was made on."""
NETWORK = 0.5e-3
"""Seconds each way."""
CALL = 0.1
"""Seconds from a permit to its answer."""
SETTLE = 0.003
"""Seconds that an ended permit waits for company."""
SLICE = 0.05
"""Seconds for which a slice is handed out."""
BEATS = 0.25, 2.0
"""Seconds between two signs of life of an agent at work, and of one that rests for two seconds."""
WINDOW, SPAN = 10.0, 30.0
"""Seconds."""


class Found(NamedTuple):
    """What a world came to: trips a second, share of the servers' time, share of the budget, seconds."""

    trips: float
    busy: float
    used: float
    wait: float
    herd: float


class Agent:
    """A process or a host: waiting calls by their arrival, permits to tell, permits in hand."""

    __slots__ = ("available_at", "hand", "hand_until", "shard", "tell", "tripping", "waiting")

    def __init__(self, shard: int) -> None:
        self.shard = shard
        self.waiting: deque[float] = deque()
        self.tell = 0
        self.hand = 0
        self.hand_until = 0.0
        self.tripping = False
        self.available_at = 0.0


class World:
    """One setting.

    Args:
        agents: who asks.
        limit: units in a window, of all shards together.
        demand: calls wanted, as a part of that.
        shards: servers, each with its part of the limit.
    """

    def __init__(self, agents: int, limit: int, demand: float, shards: int = 1) -> None:
        self.dice = random.Random(1)
        self.agents = [Agent(number % shards) for number in range(agents)]
        self.shards, self.part = shards, limit // shards
        self.rate = demand * limit / WINDOW
        self.each = self.rate / agents
        at_work = min(1.0, 2 * self.each)
        self.beats = agents * (at_work / BEATS[0] + (1 - at_work) / BEATS[1])
        self.load = self.beats * TRIP / shards
        self.events: list[tuple[float, int, str, Agent | None, int]] = []
        self.number = 0
        self.free = [0.0] * shards
        self.spent = [0.0] * shards
        self.taken = [[0] * shards for _ in range(int(SPAN / WINDOW) + 2)]
        self.inflight = [0] * shards
        self.trips = 0
        self.waits: list[float] = []
        self.herd = 0.0

    def later(self, at: float, what: str, agent: Agent | None, count: int = 0) -> None:
        """Let something happen."""
        self.number += 1
        heapq.heappush(self.events, (at, self.number, what, agent, count))

    def run(self) -> Found | None:
        """Let it pass; None: the beats alone are more than the servers can serve."""
        if self.load >= 0.95:
            return None
        self.later(0.0, "call", None)
        while self.events:
            now, _, what, agent, count = heapq.heappop(self.events)
            if now > SPAN:
                break
            if what == "call":
                self.later(now + self.dice.expovariate(self.rate), "call", None)
                self.call(self.dice.choice(self.agents), now)
            elif agent is not None:
                getattr(self, what)(agent, now, count)
        whole = int(SPAN / WINDOW)
        used = sum(sum(row) for row in self.taken[1:whole]) / ((whole - 1) * self.part * self.shards)
        busy = max(self.spent) / SPAN + self.load
        self.waits.sort()
        wait = self.waits[int(len(self.waits) * 0.99)] if self.waits else 0.0
        return Found(self.trips / SPAN + self.beats, busy, used, wait, self.herd)

    def call(self, agent: Agent, now: float) -> None:
        """A call: out of the hand, or it waits for the next trip."""
        if agent.hand and now < agent.hand_until:
            agent.hand -= 1
            self.waits.append(0.0)
            self.later(now + CALL, "ended", agent, 1)
            return
        agent.waiting.append(now)
        self.go(agent, now, 0)

    def ended(self, agent: Agent, now: float, count: int) -> None:
        """Answers came."""
        if not agent.tell:
            self.later(now + SETTLE, "go", agent, 1)
        agent.tell += count

    def go(self, agent: Agent, now: float, told: int) -> None:
        """A trip, if one is due."""
        asks = agent.waiting and now >= agent.available_at
        if agent.tripping or not (asks or (agent.tell and told)):
            return
        agent.tripping = True
        self.trips += 1
        back = agent.hand if now >= agent.hand_until else 0
        if back:
            agent.hand = 0
            self.inflight[agent.shard] -= back
        self.inflight[agent.shard] -= agent.tell
        window = int(now / WINDOW)
        self.taken[window][agent.shard] += agent.tell
        wanted = len(agent.waiting) if asks else 0
        room = self.part - self.taken[window][agent.shard] - self.inflight[agent.shard]
        extra = min(int(self.each * SLICE), room // 64) if wanted else 0
        granted = max(0, min(wanted + extra, room))
        self.inflight[agent.shard] += granted
        work = (TRIP + PERMIT * (granted + agent.tell)) / (1 - self.load)
        agent.tell = 0
        begin = max(now + NETWORK, self.free[agent.shard])
        self.free[agent.shard] = begin + work
        self.spent[agent.shard] += work * (1 - self.load)
        if wanted > granted:
            agent.available_at = (window + 1) * WINDOW
            self.later(agent.available_at, "go", agent)
        if asks and now == window * WINDOW > 0:
            self.herd = max(self.herd, begin + work + NETWORK - now)
        self.later(begin + work + NETWORK, "back", agent, granted)

    def back(self, agent: Agent, now: float, granted: int) -> None:
        """The trip is over."""
        agent.tripping = False
        served = min(granted, len(agent.waiting))
        for _ in range(served):
            self.waits.append(now - agent.waiting.popleft())
        if served:
            self.later(now + CALL, "ended", agent, served)
        agent.hand += granted - served
        agent.hand_until = now + SLICE
        self.go(agent, now, 1)


def rows() -> list[str]:
    """The table, as the page has it."""
    lines = [
        "| limit, a minute | processes | who asks | trips/s | busiest server | budget used | wait, p99 | herd |",
        "|---:|---:|---|---:|---:|---:|---:|---:|",
    ]
    for limit in (30_000, 600_000):
        for processes in (100, 1_000, 10_000):
            for name, agents, shards in (
                ("each process", processes, 1),
                ("each host, 100 processes", processes // 100, 1),
                ("each host, 4 shards", processes // 100, 4),
            ):
                if shards > agents:
                    continue
                window = int(limit * WINDOW / 60)
                eager = World(agents, window, 1.2, shards).run()
                calm = World(agents, window, 0.8, shards).run()
                begin = f"| {limit:,} | {processes:,} | {name} |"
                if eager is None or calm is None:
                    beats = World(agents, window, 1.2, shards)
                    lines.append(f"{begin} {beats.beats:,.0f} beats | {beats.load:.0%} | does not fit | | |")
                else:
                    lines.append(
                        f"{begin} {eager.trips:,.0f} | {eager.busy:.1%} | {eager.used:.1%} | {calm.wait * 1000:.1f} ms "
                        f"| {eager.herd * 1000:,.0f} ms |"
                    )
    return lines


if __name__ == "__main__":
    print("\n".join(rows()))
