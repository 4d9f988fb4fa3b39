"""A small universe on a virtual clock: programs under Ratekeeper on one side, providers that count on the other.

Programs share a store and wait in the project's own queue, pumped as the gate pumps it; between them and the providers lie
random delays, lost requests, lost answers, clocks that are wrong, cancelled calls and programs that die. Nothing sleeps,
and a world is a function of its `Terms`: a failure is repeated by its seed. All times are integer nanoseconds.
"""

from __future__ import annotations

import copy
import heapq
import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.laws.servers import BucketServer, FirstServer, FixedServer, Server, SlidingServer, SlotsServer

from ratekeeper.ledger.clock import ServerClock
from ratekeeper.ledger.decide import Refusal
from ratekeeper.ledger.limit import SECOND, Charge, Instant, Limit, Window
from ratekeeper.stores.base import Store
from ratekeeper.stores.memory import MemoryStore
from ratekeeper.stores.records import Answered, Ask, Grant, Settlement
from ratekeeper.waiting.queue import Lane, Queue, Waiter

MILLI = SECOND // 1000
LINGER = 10 * SECOND
"""How long after its caller gave up a request may still be under way, at most; see `ratekeeper.gate.gate.LINGER`."""
NAMESPACE = "provider"


@dataclass(frozen=True)
class Route:
    """A kind of call: cost by number of the limit, and the share of calls that in the end cost less."""

    costs: Mapping[int, int]
    cheaper: float = 0.0


@dataclass(frozen=True)
class Crew:
    """Workers of one member that make calls of one class: each waits, sends, gets its answer, pauses, and again."""

    member: int
    workers: int
    routes: tuple[int, ...]
    priority: int = 2
    pause: int = 0
    """Mean of the pause between two calls, ns; 0: none."""
    since: int = 0
    rhythm: int = 0
    """All of them rest for so long, and work for so long, ns; 0: no rest."""
    patience: int = 1 << 60
    """How long a call waits for its permit, ns. One that cannot have it by then gives up at once, as the gate has it."""
    every: int = 0
    """Its calls come at their own pace, whatever became of the last ones: `workers` at once every so many ns; 0: each
    worker makes its next call after its last."""
    random: bool = False
    """They come at random, so often on average."""


@dataclass(frozen=True)
class Terms:
    """All that a world is made of."""

    seed: int
    limits: tuple[Limit, ...]
    routes: tuple[Route, ...]
    crews: tuple[Crew, ...]
    span: int
    up: tuple[int, int] = (20 * MILLI, 80 * MILLI)
    work: tuple[int, int] = (0, MILLI)
    down: tuple[int, int] = (20 * MILLI, 80 * MILLI)
    offset: int = 0
    """The clock by which the provider counts minus the machine's steady clock."""
    ahead: tuple[int, ...] = (0,)
    """The clocks of the machines that date answers minus the one that counts; each answer is dated by any of them."""
    drift: int = 0
    """How much more they are ahead after a second, ns."""
    doubt: tuple[int, int] = (0, 0)
    """How far below and above the truth the members believe the provider's clock to be."""
    learns: str = ""
    """``date`` or ``ms``: the members learn the provider's clock from such stamps, beginning with a wall clock that is
    wrong by `doubt[0]` at most; empty: they believe the truth within `doubt`."""
    steps: tuple[tuple[int, int], ...] = ()
    """(instant, ns) at which the machine's wall clock is set."""
    chatty: bool = True
    """Answers state used-counters."""
    lost: float = 0.0
    timeout: int = 1 << 60
    cancelled: float = 0.0
    """Share of calls that give up while they wait, or with the permit in hand and nothing sent."""
    crashes: tuple[tuple[int, int], ...] = ()
    """(instant, member) at which a program is killed."""
    lease: int = 60 * SECOND
    late: int = 2 * MILLI
    """Timers and wake-ups are late by at most so much."""
    foreign: int = 0
    """Mean ns between requests of a program that Ratekeeper does not govern; 0: none. Each costs one on limit 0."""
    foreign_since: int = 0
    weights: tuple[int, ...] = ()
    warm: int = 0
    """Waits and failures of calls that came within so many ns of the start are not counted."""

    def describe(self) -> str:
        """The terms in short, for a failure's message."""
        limits = ", ".join(
            f"{x.window} {x.capacity}/{x.period / SECOND:g}s" + (f" refill {x.refill}" if x.refill else "")
            for x in self.limits
        )
        return (
            f"seed {self.seed}: [{limits}], {len({c.member for c in self.crews})} members, "
            f"{sum(c.workers for c in self.crews)} workers, up {self.up[0] / MILLI:.0f}-{self.up[1] / MILLI:.0f} ms, "
            f"learns {self.learns or 'nothing'}, doubt {self.doubt[0] / MILLI:.0f}+{self.doubt[1] / MILLI:.0f} ms, "
            f"chatty {self.chatty}, lost {self.lost}, crashes {len(self.crashes)}"
        )


class Call(Waiter):
    """One call of a worker."""

    __slots__ = ("crew", "route")

    def __init__(self, charges: tuple[Charge, ...], crew: Crew, route: Route, now: int) -> None:
        super().__init__(charges, crew.priority, now, now + crew.patience)
        self.crew = crew
        self.route = route


@dataclass(slots=True)
class Flight:
    """A request under way. `over`: its caller has an answer, or has given up."""

    member: Member
    call: Call
    grant: Grant
    actual: dict[str, int]
    used: dict[str, int] = field(default_factory=dict)
    full: list[str] = field(default_factory=list)
    work: int = 0
    down: int = 0
    answered: bool = True
    over: bool = False
    stamp: int = 0


class Member:
    """One program: a queue, a clock, a timer."""

    def __init__(self, world: World, slot: int) -> None:
        self.world = world
        self.slot = slot
        self.id = world.random.getrandbits(62) | 1
        self.queue = Queue()
        self.alarm = 0
        self.dead = False
        self.weight = world.terms.weights[slot] if world.terms.weights else 1
        terms = world.terms
        self.clock: ServerClock | None = None
        if terms.learns:
            self.clock = ServerClock(world.time, world.wall())

    def now(self) -> Instant:
        """The moment as this program believes it."""
        world = self.world
        if self.clock is not None:
            return self.clock.instant(world.time, world.wall())
        true, (below, above) = world.dated(0), world.terms.doubt
        return Instant(world.time, true - below, true + above)

    # -- as the gate's waiting room does it ------------------------------------------------------------------------

    def ask(self, call: Call) -> None:
        """Go at once, or stand in a lane."""
        world, queue = self.world, self.queue
        no: Refusal | None = None
        if not queue.count or not queue.busy(call.charges):
            got = world.store.reserve(
                Ask(NAMESPACE, call.charges, (), (self.id, call.priority), weight=self.weight, lease=world.terms.lease),
                self.now(),
            )
            if isinstance(got, Grant):
                world.granted(self, call, got)
                return
            no = got
            if self.hopeless(call, no):
                self.gave_up(call, no)
                return
        lane = queue.add(call)
        if lane.head() is call:
            if no is not None:
                lane.available_at, lane.why = no.available_at, no
            else:
                self.serve()
        self.set_alarm()

    def serve(self) -> None:
        """Try the heads that are due."""
        world = self.world
        for call in self.queue.expired(world.time):
            assert isinstance(call, Call)
            self.gave_up(call, call.lane.why)
        granted: list[tuple[Call, Grant]] = []

        def attempts() -> None:
            for lane in self.queue.due(world.time):
                self.attempt(lane, granted)

        world.store.transact(attempts)
        for call, grant in granted:
            world.granted(self, call, grant)
        self.set_alarm()

    def attempt(self, lane: Lane, granted: list[tuple[Call, Grant]]) -> None:
        """Try one head."""
        world, queue, now = self.world, self.queue, self.world.time
        head = lane.head()
        assert isinstance(head, Call)
        got = world.store.reserve(
            Ask(
                NAMESPACE,
                head.charges,
                (),
                (self.id, lane.standing(now)),
                backlog=queue.backlog(lane),
                ahead=queue.ahead(lane, now),
                weight=self.weight,
                lease=world.terms.lease,
            ),
            self.now(),
        )
        world.tries += 1
        if isinstance(got, Grant):
            queue.served(head, now)
            granted.append((head, got))
        else:
            assert not got.never, "a route of this world can never fit"
            lane.available_at, lane.why = max(got.available_at, now + 1), got
            if self.hopeless(head, got):
                queue.remove(head)
                lane.available_at = 0
                self.gave_up(head, got)

    def hopeless(self, call: Call, no: Refusal) -> bool:
        """Whether a call need not wait at all."""
        return not no.unknown and no.available_at > call.deadline

    def gave_up(self, call: Call, no: Refusal | None) -> None:
        """A call could not be served in time. Its worker does not ask again in the same instant."""
        world = self.world
        if call.arrived >= world.start + world.terms.warm:
            world.account.failed[world.numbers[id(call.crew)]] += 1
        if no is not None:
            missed, left = self.queue.missed(call, no)
            world.store.withdraw(missed, (self.id, call.priority), self.now(), missed, left)
        world.later(SECOND // 10, world.again, self, call.crew)

    def set_alarm(self) -> None:
        """See that we wake in time."""
        instant = self.queue.next_instant()
        if instant is not None and (not self.alarm or instant < self.alarm):
            self.alarm = max(instant, self.world.time + 1)
            self.world.later(self.alarm - self.world.time + self.world.lateness(), self.tick, self.alarm)

    def tick(self, alarm: int) -> None:
        """The timer is due."""
        if self.alarm == alarm and not self.dead:
            self.alarm = 0
            self.serve()

    def ring(self) -> None:
        """Another program freed units."""
        if not self.dead and self.queue.count:
            self.queue.look()
            self.serve()

    def after(self, done: Answered) -> None:
        """Units were settled or given back."""
        for member in self.world.members:
            if member.id in done.wake:
                self.world.later(self.world.lateness(), member.ring)
        if done.released and self.queue.count and self.queue.released(done.released):
            self.serve()

    def cancel(self, call: Call) -> None:
        """The caller is gone while its call waits."""
        if call.waiting and not self.dead:
            lane = call.lane
            self.queue.remove(call)
            if lane is not None and lane.head() is None:
                keys = [charge.key for charge in call.charges]
                self.world.store.withdraw(keys, (self.id, lane.priority), self.now())
            self.world.again(self, call.crew)


@dataclass
class Account:
    """What became of a world."""

    terms: Terms
    refusals: int = 0
    calls: int = 0
    waits: dict[int, list[int]] = field(default_factory=dict)
    """By crew: how long each call waited, ns."""
    failed: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    """By crew: calls that gave up because they could not be served in time."""
    taken: dict[int, int] = field(default_factory=dict)
    """By crew: units accepted on limit 0."""
    shares: list[float] = field(default_factory=list)
    """By limit: the part of the budget used, without the first and the last period (slots: 0)."""
    foreign_refused: int = 0
    refused_at: list[int] = field(default_factory=list)
    """Instants of our refusals, ns from the start, by the provider's clock."""
    found: int = 0
    """Units of foreign traffic that the ledgers found."""
    leaks: list[str] = field(default_factory=list)
    tries: int = 0


class World:
    """Runs `Terms`."""

    def __init__(self, terms: Terms, store: Store | None = None) -> None:
        self.terms = terms
        self.random = random.Random(terms.seed)
        self.store = store or MemoryStore()
        self.time = self.start = 1_000_000 * SECOND + self.random.randrange(3600 * SECOND)
        self.skew = self.random.randint(-terms.doubt[0], terms.doubt[0])
        self.end = self.start + terms.span
        self.numbers = {id(crew): terms.crews.index(crew) for crew in terms.crews}
        self.events: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self.number = itertools.count()
        self.servers = [_server(limit) for limit in terms.limits]
        self.account = Account(terms)
        self.tries = 0
        self.lives = len({crew.member for crew in terms.crews})
        self.members = [Member(self, slot) for slot in range(self.lives)]
        self.charges = [
            tuple(
                Charge(f"{NAMESPACE}/{terms.limits[i].name}/ip", terms.limits[i], cost) for i, cost in r.costs.items()
            )
            for r in terms.routes
        ]

    # -- time ------------------------------------------------------------------------------------------------------

    def wall(self) -> int:
        """The machine's wall clock now."""
        stepped = sum(by for at, by in self.terms.steps if self.start + at <= self.time)
        return self.dated(0) + self.skew + stepped

    def dated(self, machine: int) -> int:
        """What a machine of the provider that dates answers shows now."""
        drift = (self.time - self.start) * self.terms.drift // SECOND
        return self.time + self.terms.offset + self.terms.ahead[machine] + drift

    def later(self, delay: int, what: Callable[..., None], *arguments: Any) -> None:
        """Let something happen `delay` from now."""
        heapq.heappush(self.events, (self.time + delay, next(self.number), what, arguments))

    def between(self, bounds: tuple[int, int]) -> int:
        """A random delay."""
        return self.random.randint(*bounds)

    def lateness(self) -> int:
        """How late a timer is, or how long a wake-up takes."""
        return self.random.randint(0, self.terms.late)

    def run(self) -> Account:
        """Let the world pass, then let everything in flight come home."""
        terms, account = self.terms, self.account
        for crew in terms.crews:
            if crew.every:
                self.later(crew.since + self.random.randrange(crew.every), self.come, crew)
                continue
            for _ in range(crew.workers):
                self.later(crew.since + self.random.randrange(SECOND // 20), self.want, crew)
        for at, member in terms.crashes:
            self.later(at, self.crash, member)
        if terms.foreign:
            self.later(terms.foreign_since, self.stranger)
        while self.events:
            self.time, _, what, arguments = heapq.heappop(self.events)
            what(*arguments)
        self.time += max(terms.lease, LINGER) + SECOND
        self._close()
        account.refusals = len(account.refused_at)
        account.tries = self.tries
        return account

    def _close(self) -> None:
        """Nothing may be left in flight, and nothing may count for ever."""
        member = (
            next(m for m in self.members if not m.dead) if any(not m.dead for m in self.members) else Member(self, 0)
        )
        everything = tuple(Charge(f"{NAMESPACE}/{limit.name}/ip", limit, 0) for limit in self.terms.limits)
        self.store.reserve(Ask(NAMESPACE, everything, (), (member.id, 2), backlog=None), member.now())
        seen = self.store.read(lambda _: member.now())
        leaks = self.account.leaks
        if seen.permits > 1:  # our own
            leaks.append(f"{seen.permits - 1} permits left")
        leaks += [f"{view.key}: {view.inflight} in flight" for view in seen.ledgers if view.inflight]
        leaks += [f"{m.queue.count} still wait" for m in self.members if m.queue.count and not m.dead]
        self.time += 3 * max((limit.period for limit in self.terms.limits), default=0)
        self.store.reserve(Ask(NAMESPACE, everything, (), (member.id, 2), backlog=None), member.now())
        if not self.terms.foreign:
            leaks += [f"{v.key}: {v.used} used" for v in self.store.read(lambda _: member.now()).ledgers if v.used]
        for limit, server in zip(self.terms.limits, self.servers, strict=True):
            self.account.shares.append(_used(server, limit, self.start + self.terms.offset, self.terms.span))

    # -- the life of a call ----------------------------------------------------------------------------------------

    def want(self, crew: Crew) -> None:
        """A worker wants to make a call."""
        member = self.members[crew.member]
        if self.time >= self.end or member.dead:
            return
        if crew.rhythm and (self.time - self.start) // crew.rhythm % 2:
            self.later(crew.rhythm - (self.time - self.start) % crew.rhythm, self.want, crew)
            return
        number = self.random.choice(crew.routes)
        call = Call(self.charges[number], crew, self.terms.routes[number], self.time)
        if self.random.random() < self.terms.cancelled:
            self.later(self.random.randrange(2 * SECOND), member.cancel, call)
        member.ask(call)

    def come(self, crew: Crew) -> None:
        """Calls that come at their own pace."""
        if self.time < self.end:
            self.later(int(self.random.expovariate(1 / crew.every)) if crew.random else crew.every, self.come, crew)
            for _ in range(crew.workers):
                self.want(crew)

    def again(self, member: Member, crew: Crew) -> None:
        """A worker's call is over."""
        if not member.dead and not crew.every:
            pause = int(self.random.expovariate(1 / crew.pause)) if crew.pause else 0
            self.later(pause, self.want, crew)

    def granted(self, member: Member, call: Call, grant: Grant) -> None:
        """The permit is there: send the request."""
        terms, account = self.terms, self.account
        account.calls += 1
        if call.arrived >= self.start + terms.warm:
            account.waits.setdefault(self.numbers[id(call.crew)], []).append(self.time - call.arrived)
        if self.random.random() < terms.cancelled / 4:
            self.later(self.random.randrange(SECOND // 10), self.unsent, member, call, grant)
            return
        flight = Flight(member, call, grant, {c.key: self.actual(call.route, c.cost) for c in call.charges})
        up, flight.work, flight.down = self.between(terms.up), self.between(terms.work), self.between(terms.down)
        fate = self.random.random() / terms.lost if terms.lost else 1.0
        flight.answered = fate >= 1.0
        linger = min([LINGER, *(c.limit.period for c in call.charges if c.limit.period)])
        # By then the request has arrived and is worked off, if it ever is: this is what linger and lease stand for.
        arrives = fate >= 0.5 and up + flight.work <= min(terms.timeout + linger, terms.lease)
        if arrives:
            self.later(up, self.arrive, flight)
        if not (arrives and flight.answered) or terms.timeout < up + flight.work + flight.down:
            self.later(min(terms.timeout, 3 * SECOND), self.give_up, flight, linger)

    def actual(self, route: Route, cost: int) -> int:
        """What the call really costs."""
        if route.cheaper and self.random.random() < route.cheaper:
            return self.random.randint(0, cost)
        return cost

    def arrive(self, flight: Flight) -> None:
        """The request reaches the provider."""
        call, actual = flight.call, flight.actual
        for charge, number in zip(call.charges, call.route.costs, strict=True):
            server = self.servers[number]
            before = server.refusals
            flight.used[charge.key] = server.arrive(self.time + self.terms.offset, actual[charge.key])
            if server.refusals > before:
                self.account.refused_at.append(self.time - self.start)
                flight.full.append(charge.key)
            elif number == 0:
                crew = self.numbers[id(call.crew)]
                self.account.taken[crew] = self.account.taken.get(crew, 0) + actual[charge.key]
        self.later(flight.work, self.depart, flight)

    def depart(self, flight: Flight) -> None:
        """The answer leaves the provider."""
        machines = len(self.terms.ahead)
        flight.stamp = self.dated(self.random.randrange(machines) if machines > 1 else 0)
        for charge, number in zip(flight.call.charges, flight.call.route.costs, strict=True):
            self.servers[number].depart(self.time + self.terms.offset, flight.actual[charge.key])
        if flight.answered:
            self.later(flight.down, self.answer, flight)

    def answer(self, flight: Flight) -> None:
        """The answer is here."""
        member, terms = flight.member, self.terms
        if member.dead or flight.over:
            return
        flight.over = True
        clock = member.clock
        if clock is not None:
            grain = SECOND if terms.learns == "date" else MILLI
            stamp = flight.stamp // grain * grain
            if clock.learn(flight.grant.sent.mono, self.time, stamp, stamp + grain):
                self.store.doubt(NAMESPACE, member.now())
        told = flight.used if terms.chatty else {}
        actual = flight.actual if flight.call.route.cheaper else {}
        done = self.store.settle(flight.grant, member.now(), Settlement(actual=actual, used=told, full=flight.full))
        self.account.found += sum(done.foreign.values())
        self.again(member, flight.call.crew)
        member.after(done)

    def give_up(self, flight: Flight, linger: int) -> None:
        """No answer in time: the request may still be under way for a while."""
        if not (flight.member.dead or flight.over):
            flight.over = True
            self.store.hold(flight.grant, self.time + linger)
            self.again(flight.member, flight.call.crew)

    def unsent(self, member: Member, call: Call, grant: Grant) -> None:
        """Cancelled with the permit in hand, before anything was sent."""
        if not member.dead:
            done = self.store.refund(grant, member.now())
            self.again(member, call.crew)
            member.after(done)

    # -- what goes wrong -------------------------------------------------------------------------------------------

    def crash(self, slot: int) -> None:
        """A program is killed; another takes its place a moment later."""
        self.members[slot].dead = True
        self.later(self.random.randrange(SECOND), self.restart, slot)

    def restart(self, slot: int) -> None:
        """The program is started again."""
        old, new = self.members[slot], Member(self, slot)
        if old.clock is not None:
            new.clock = copy.copy(old.clock)  # a new program begins with what the store knows of the clock
        self.members[slot] = new
        for crew in self.terms.crews:
            if crew.member == slot:
                for _ in range(crew.workers):
                    self.later(0, self.want, crew)

    def stranger(self) -> None:
        """A request of a program that Ratekeeper does not govern."""
        if self.time < self.end:
            server = self.servers[0]
            before = server.refusals
            server.arrive(self.time + self.terms.offset, 1)
            self.account.foreign_refused += server.refusals - before
            self.later(int(self.random.expovariate(1 / self.terms.foreign)), self.stranger)


def _server(limit: Limit) -> Server:
    if limit.window is Window.FIXED:
        return FixedServer(limit.capacity, limit.period, limit.origin)
    if limit.window is Window.FIRST:
        return FirstServer(limit.capacity, limit.period)
    if limit.window is Window.SLIDING:
        return SlidingServer(limit.capacity, limit.period)
    if limit.window is Window.BUCKET:
        return BucketServer(limit.capacity, limit.period, limit.refill)
    return SlotsServer(limit.capacity)


def _used(server: Server, limit: Limit, start: int, span: int) -> float:
    """The part of the budget that was accepted, from the first edge a period after the start to the last edge."""
    period = limit.period
    if not period:
        return 0.0
    first = -(-(start + period - limit.origin) // period) * period + limit.origin
    whole = (start + span - first) // period
    if whole < 1:
        return 0.0
    accepted = sum(cost for at, cost in server.log if first <= at < first + whole * period)
    return accepted / (whole * (limit.refill or limit.capacity))
