"""Strict servers: each counts a request at the instant it arrives. They share no code with Ratekeeper.

The protocol is one line each way over TCP, so that the server is never what is measured: the request is ``COST``, the
answer ``STATUS USED DATE``, with the units counted in the window and the time of day in whole seconds, as real servers
tell them.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Protocol

__all__ = ["KINDS", "Report", "Spec", "serve"]


class Counter(Protocol):
    """One way to count."""

    def arrive(self, now: float, cost: int) -> bool: ...

    def used(self, now: float) -> int: ...


@dataclass
class Fixed:
    """Windows aligned to the clock: all units come back at once, at each edge."""

    capacity: int
    period: float
    window: int = -1
    count: int = 0

    def arrive(self, now: float, cost: int) -> bool:
        if (window := int(now // self.period)) != self.window:
            self.window, self.count = window, 0
        if self.count + cost > self.capacity:
            return False
        self.count += cost
        return True

    def used(self, now: float) -> int:
        return self.count


@dataclass
class Sliding:
    """No span of one period may hold more than the capacity, wherever it starts."""

    capacity: int
    period: float
    log: deque[tuple[float, int]] = field(default_factory=deque)
    count: int = 0

    def arrive(self, now: float, cost: int) -> bool:
        while self.log and self.log[0][0] <= now - self.period:
            self.count -= self.log.popleft()[1]
        if self.count + cost > self.capacity:
            return False
        self.log.append((now, cost))
        self.count += cost
        return True

    def used(self, now: float) -> int:
        return self.count


@dataclass
class Bucket:
    """Leaks one capacity a period, evenly; full is full."""

    capacity: int
    period: float
    level: float = 0.0
    last: float = 0.0

    def arrive(self, now: float, cost: int) -> bool:
        self.level = max(0.0, self.level - (now - self.last) * self.capacity / self.period)
        self.last = now
        if self.level + cost > self.capacity:
            return False
        self.level += cost
        return True

    def used(self, now: float) -> int:
        return -int(-self.level // 1)


KINDS: dict[str, type[Fixed | Sliding | Bucket]] = {"fixed": Fixed, "sliding": Sliding, "bucket": Bucket}


@dataclass(frozen=True)
class Spec:
    """What is served, and for how long it is watched.

    Attributes:
        kind: ``fixed``, ``sliding`` or ``bucket``.
        skew: seconds by which the server's clock is ahead of this machine's.
        capacity: units a period.
        period: seconds.
        delay: shortest and longest way, in seconds; drawn anew for the way there and for the way back.
        periods: whole periods that are watched.
        settle: periods that pass, from the first request, before the watch begins.
    """

    kind: str
    skew: float = 0.0
    capacity: int = 200
    period: float = 1.0
    delay: tuple[float, float] = (0.01, 0.04)
    periods: int = 10
    settle: int = 2


@dataclass
class Report:
    """What a server saw while it watched."""

    accepted: int = 0
    refused: int = 0
    capacity: int = 1
    """Units that it would have accepted at most."""

    @property
    def share(self) -> float:
        """The part of the limit that was used; above 1 only where a full bucket was emptied as well."""
        return self.accepted / self.capacity

    @property
    def refusals(self) -> float:
        """The part of all requests that was refused."""
        return self.refused / max(1, self.accepted + self.refused)


async def _serve(spec: Spec, pipe: Connection) -> None:
    counter: Counter = KINDS[spec.kind](spec.capacity, spec.period)
    report = Report(capacity=spec.capacity * spec.periods)
    # Begin the watch at an edge of the clock's periods: whole fixed windows, and as good a place as any for the others.
    watch = [float("inf"), float("inf")]
    done = asyncio.Event()
    chance = random.Random(1)

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                await asyncio.sleep(chance.uniform(*spec.delay))
                now = time.time() + spec.skew
                if watch[0] == float("inf"):
                    watch[0] = (now // spec.period + spec.settle) * spec.period
                    watch[1] = watch[0] + spec.periods * spec.period
                    asyncio.get_running_loop().call_later(watch[1] - now + 0.05, done.set)
                allowed = counter.arrive(now, int(line))
                if watch[0] <= now < watch[1]:
                    report.accepted += allowed
                    report.refused += not allowed
                answer = b"%d %d %d\n" % (200 if allowed else 429, counter.used(now), int(now))
                await asyncio.sleep(chance.uniform(*spec.delay))
                writer.write(answer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(client, "127.0.0.1", 0)
    pipe.send(server.sockets[0].getsockname()[1])
    await done.wait()
    pipe.send(report)
    async with server:
        await asyncio.Event().wait()  # go on serving, so that no client sees an end, until this process is killed


def serve(spec: Spec, pipe: Connection) -> None:
    """Run one server in this process: send its port, then, when its watch is over, its `Report`."""
    asyncio.run(_serve(spec, pipe))
