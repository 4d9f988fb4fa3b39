"""The script in Redis and the ledgers in Python are one arithmetic: both are driven through the same random worlds.

Python computes in microseconds here, as the script does: the arithmetic does not know its unit, but for three constants.
"""

from __future__ import annotations

import os
import random
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import pytest
import redis
from tests.support.server import Server

from ratekeeper.ledger import edge, flows, shares
from ratekeeper.ledger.base import Ledger
from ratekeeper.ledger.codec import pack, unpack
from ratekeeper.ledger.decide import Refusal
from ratekeeper.ledger.limit import Charge, Instant, Limit, Window
from ratekeeper.ledger.shares import Who
from ratekeeper.stores import verbs
from ratekeeper.stores.records import NOTHING, Answered, Ask, Grant, Settlement
from ratekeeper.stores.redis.lua import from_lua, member_name, script, to_lua
from ratekeeper.stores.verbs import LedgerStore

NS = "shop"
SECOND = 1_000_000
EPOCH = 1_763_000_000 * SECOND
FAR = 1 << 53
PREFIX = f"hg:{{{NS}}}:"
FIXED_KEYS = [PREFIX + name for name in ("meta", "permits", "held", "blocks", "members", "ledgers")]
WORLDS = int(os.environ.get("RATEKEEPER_LUA_WORLDS", "24"))
CALLS = 150
encode, decode = msgspec.msgpack.encode, msgspec.msgpack.decode


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A connection to a real server that keeps nothing."""
    with Server(tmp_path_factory.mktemp("server")) as made, redis.Redis(port=made.port) as client:
        yield client


@pytest.fixture(autouse=True)
def microseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The constants of the arithmetic that are lengths of time, in the script's unit."""
    monkeypatch.setattr(edge, "FIRST_DOUBT", 2 * SECOND)
    monkeypatch.setattr(edge, "BLIND_DOUBT", SECOND // 4)
    monkeypatch.setattr(flows, "_SLOT_ERA", 60 * SECOND)
    monkeypatch.setattr(shares, "_BURST", SECOND // 10)
    monkeypatch.setattr(shares, "_SLOT_KEPT", 5 * SECOND)
    monkeypatch.setattr(shares, "_SECOND", SECOND)
    monkeypatch.setattr(verbs, "_LOOK", SECOND)
    monkeypatch.setattr(verbs, "_GRACE", SECOND // 5)


class Script:
    """The script on a server, asked as a store would."""

    def __init__(self, client: Any) -> None:
        client.flushall()
        self.client = client
        self.sha = client.script_load(script())

    def raw(
        self, header: Mapping[str, Any], items: Sequence[Any], keys: Sequence[str] = (), *blobs: bytes
    ) -> list[Any]:
        """One call, decoded; the blobs of the answer at its end."""
        names = [*FIXED_KEYS, *(f"{PREFIX}L:{key}" for key in keys)]
        told = {"dlo": 0, "dhi": 0, **header}
        got = self.client.evalsha(self.sha, len(names), *names, encode(told), encode(items), *blobs)
        answer = decode(got[0])
        return [*answer[:5], got[1:], *answer[5:]]

    def call(self, now: Instant, items: Sequence[Any], keys: Sequence[str], limits: Sequence[Limit]) -> list[Any]:
        """The results of one call at `now`."""
        header = {
            "now": now.mono,
            "dlo": now.lo - now.mono,
            "dhi": now.hi - now.mono,
            "limits": [spec(x) for x in limits],
        }
        answer = self.raw(header, items, keys)
        assert answer[0] == "ok"
        assert answer[1] == now.mono
        for i, seq, blob in zip(*[iter(answer[4])] * 3, strict=True):
            copy = answer[5][blob - 1]
            assert copy == self.client.get(f"{PREFIX}L:{keys[i - 1]}")
            assert decode(copy)[0] == seq
        return answer[3]

    def ledgers(self) -> dict[str, list[Any]]:
        """Every ledger on the server, without what tells copies apart."""
        names = [name.decode() for name in self.client.smembers(PREFIX + "ledgers")]
        found = {name: decode(self.client.get(f"{PREFIX}L:{name}"))[2:15] for name in names}
        for ledger in found.values():
            for until in range(7, len(ledger[-1]), 16):
                ledger[-1][until] = min(ledger[-1][until], FAR)
        return found

    def permits(self) -> dict[str, tuple[int, int, dict[str, int]]]:
        """Every permit on the server: (lease, permits, units by key)."""
        leases = {
            name.decode(): int(score) for name, score in self.client.zrange(PREFIX + "permits", 0, -1, withscores=True)
        }
        records = {name.decode(): decode(raw) for name, raw in self.client.hgetall(PREFIX + "held").items()}
        assert leases.keys() == records.keys()
        return {
            name: (leases[name], record[0], dict(zip(record[3::2], record[4::2], strict=True)))
            for name, record in records.items()
        }


def spec(limit: Limit) -> list[int]:
    """A limit whose times are microseconds, as the header lists it."""
    number = list(Window).index(limit.window)
    return [number, limit.capacity, limit.headroom, limit.period, limit.refill, limit.origin]


def shown(ledger: Ledger) -> list[Any]:
    """A ledger of microseconds as the script writes it, without what tells copies apart."""
    raw = pack(ledger)
    numbers = list(struct.unpack(f"<{len(raw) // 8}q", raw))
    own = numbers[12 : 12 + numbers[11]]
    if ledger.limit.window is Window.BUCKET:
        own = [*divmod(own[0], 1_000_000_000), own[1]]
    rows: list[Any] = []
    for (member, priority), row in ledger.rows.items():
        rows += (member_name(member), priority, *row[:5], min(row[5], FAR), *row[6:])
    return [numbers[0] % 16, *numbers[1:11], own, rows]


class Permit(Grant):
    """A grant of several permits of one plan."""

    __slots__ = ("permits",)
    permits: int


class Twin(LedgerStore):
    """The verbs in Python over packed ledgers: what a call opened is written only where a verb keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.states: dict[str, bytes] = {}
        self.records: dict[int, tuple[int, int, dict[str, int]]] = {}
        self._live: dict[str, Ledger] = {}
        self._dirty: set[str] = set()
        self._ids = iter(range(1, 1 << 40))
        self._reaping = False

    def begin(self, now: Instant) -> None:
        """A call begins: what has died is reaped, once."""
        self._live.clear()
        self._dirty.clear()
        self._reaping = True
        self._reap(NS, now)
        self._reaping = False

    def end(self) -> None:
        """A call ends."""
        for key in self._dirty:
            self.states[key] = pack(self._live[key])

    def transact(self, work: Callable[[], Any]) -> Any:
        return work()

    def _open(self, key: str) -> Ledger | None:
        if key not in self._live and key in self.states:
            self._live[key] = unpack(self.states[key])
        return self._live.get(key)

    def _keep(self, key: str, ledger: Ledger) -> None:
        self._live[key] = ledger
        self._dirty.add(key)

    def _add(self, grant: Grant) -> None:
        permits = grant.permits if isinstance(grant, Permit) else 1
        self.records[grant.id] = grant.lease, permits, {charge.key: charge.cost for charge in grant.charges}

    def _drop(self, grant: Grant) -> bool:
        record = self.records.get(grant.id)
        permits = grant.permits if isinstance(grant, Permit) else 1
        if record is None or record[1] < permits:
            return False
        lease, left, units = record
        del self.records[grant.id]
        if left > permits:
            rest = {charge.key: units[charge.key] - charge.cost for charge in grant.charges}
            self.records[grant.id] = lease, left - permits, rest
        return True

    def hold(self, grant: Grant, until: int) -> bool:
        record = self.records.get(grant.id)
        if record is not None:
            self.records[grant.id] = (until, *record[1:])
        return record is not None

    def _due(self, namespace: str, mono: int) -> list[tuple[int, tuple[tuple[str, int], ...]]]:
        if not self._reaping:
            return []
        ended = sorted(
            (record[0], f"{number:016x}", number) for number, record in self.records.items() if record[0] <= mono
        )
        return [(lease, tuple(self.records.pop(number)[2].items())) for lease, _, number in ended[:100]]

    def new_id(self) -> int:
        return next(self._ids)

    def most(self, charges: Sequence[Charge], most: int, part: int, who: Who, now: Instant) -> int:
        """How many permits at once fit without a closer look."""
        for charge in charges:
            ledger = self._current(charge, now)
            if ledger.rises or ledger.floor > ledger.limit.usable:
                return 1
            if charge.cost:
                most = min(most, ledger.room // (part * charge.cost), (ledger.room - ledger.floor) // charge.cost)
            while who[1] > ledger.calm and most > 1 and ledger.available_at(most * charge.cost, who, now):
                most //= 2
        return max(1, most)

    def _keys(self, prefix: str) -> list[str]:
        return [key for key in {**self.states, **self._live} if key.startswith(prefix)]

    def _share(self, what: str) -> None:
        raise NotImplementedError

    _note = _note_down = draw = reserve_all = read = _share  # type: ignore[assignment]

    def close(self) -> None:
        pass


MINUTE = 60 * SECOND
DAY = 1440 * MINUTE


def limit(window: Window, capacity: int, period: int, headroom: int = 0, refill: int = 0, origin: int = 0) -> Limit:
    """A limit whose times are microseconds."""
    return Limit("", "", capacity, period, window, (), headroom, refill, origin)


def some_limit(chance: random.Random, tame: bool, huge: bool) -> Limit:
    """Any limit, also of unhandy numbers."""
    window = chance.choice(list(Window))
    small, large = [1, 2, 7, 50, 100], [2_400, 61_007, 1_000_000_000]
    capacity = chance.choice([20, 50, 100, 400] if tame else large if huge else small)
    headroom = chance.choice([0, 0, capacity // 10])
    if window is Window.SLOTS:
        return limit(window, capacity, 0, headroom)
    period = chance.choice([10 * SECOND, MINUTE] if tame else [SECOND, 1_000_003, MINUTE, 300 * SECOND, DAY])
    refill = chance.choice([0, 0, max(1, capacity // 50), capacity // 3]) if window is Window.BUCKET else 0
    origin = chance.choice([0, 0, 7, period // 3]) if window is Window.FIXED else 0
    return limit(window, capacity, period, headroom, refill, origin)


class World:
    """One random world: a few ledgers, a few members, and two stores that must agree on all of it.

    A tame one is like life: many small calls in a window, whose edge is known well. The others try everything.
    """

    def __init__(self, server: Script, seed: int) -> None:
        self.server = server
        self.chance = chance = random.Random(seed)
        self.twin = Twin()
        self.keys = [f"{NS}/limit-{i}/ip:a" for i in range(chance.randint(1, 5))]
        self.tame, self.huge = chance.random() < 0.6, chance.random() < 0.5
        self.limits = [some_limit(chance, self.tame, self.huge) for _ in self.keys]
        self.grid = chance.choice([1, 1, SECOND // 4])
        self.lease = chance.choice([SECOND, MINUTE, MINUTE])
        self.members = [chance.getrandbits(62) | 1 for _ in range(chance.choice([1, 3, 6]))]
        self.classes = chance.choice([1, 2, 4])
        self.mono = EPOCH + self.whole(chance.randrange(DAY))
        self.shift, self.doubt = 0, self.whole(chance.choice([0, 0, 20_000, SECOND]))
        self.grants: list[Permit] = []
        self.items: list[list[Any]] = []
        self.expected: list[Any] = []

    def now(self) -> Instant:
        """The present, after a while has passed."""
        chance = self.chance
        period = max(chance.choice(self.limits).period, SECOND)
        wild = 1 if self.tame else 10
        steps = [1_000, 50_000, SECOND, wild * period // 10]
        self.mono += self.whole(chance.choice([0, *(chance.randrange(step) for step in steps)]))
        if chance.random() < 0.03:
            self.mono += self.whole(chance.randrange(3 * period))
        if chance.random() < 0.02:
            self.mono -= self.whole(chance.randrange(50_000))
        if chance.random() < 0.003 * wild:
            shift = chance.choice([0, chance.randrange(-3 * period, 3 * period), chance.randrange(-SECOND, SECOND)])
            self.shift = self.whole(shift)
        if chance.random() < 0.003 * wild:
            self.doubt = self.whole(chance.choice([0, 300, 20_000, SECOND, period]))
        lo = self.mono + self.shift - self.doubt
        return Instant(self.mono, lo, lo + 2 * self.doubt)

    def whole(self, micros: int) -> int:
        """A length of time as this world knows them: on a grid everything falls on edges."""
        return -(-micros // self.grid) * self.grid

    def cost(self, of: int) -> int:
        """A cost on a ledger."""
        usable = self.limits[of].usable
        if self.tame and self.chance.random() < 0.9:
            return self.chance.randint(0, 3)
        return self.chance.choice([0, 1, 1, 1, 2, 5, max(1, usable // 40), max(1, usable // 4), usable, usable + 1])

    def chosen(self) -> list[int]:
        """Some of the ledgers, each once."""
        return self.chance.sample(range(len(self.keys)), self.chance.randint(1, min(3, len(self.keys))))

    def who(self) -> Who:
        """A member and a class."""
        priority = self.chance.randrange(self.classes)
        return self.chance.choice(self.members), priority + (shares.AGED if self.chance.random() < 0.05 else 0)

    def numbers(self, keys: Sequence[str]) -> list[int]:
        """Ledgers as the script counts them."""
        return [self.keys.index(key) + 1 for key in keys]

    def rule(self, number: int) -> int:
        """Where the limit of a ledger stands in the header: not where the ledger stands among the keys."""
        return len(self.keys) + 1 - number

    def reserve(self, now: Instant) -> None:
        """Ask for a permit, or several at once."""
        chance = self.chance
        which, who, weight = self.chosen(), self.who(), chance.choice([1, 1, 3])
        costs = [self.cost(i) for i in which]
        charges = tuple(Charge(self.keys[i], self.limits[i], cost) for i, cost in zip(which, costs, strict=True))
        backlog = chance.choice([None, {}, {chance.choice(which): chance.randrange(1, 200)}])
        ahead = chance.choice([{}, {}, {}, {chance.choice(which): chance.randrange(1, 50)}])
        most, part = chance.choice([1, 1, 8, 32]), chance.choice([64, 8])
        permits = self.twin.most(charges, most, part, who, now) if most > 1 and not ahead else 1
        times = tuple(Charge(key, limit, cost * permits) for key, limit, cost in charges)
        got = self.twin.reserve(
            Ask(
                NS,
                times,
                (),
                who,
                weight=weight,
                lease=self.lease,
                backlog=None if backlog is None else {self.keys[i]: units for i, units in backlog.items()},
                ahead={self.keys[i]: units for i, units in ahead.items()},
            ),
            now,
        )
        permit = self.twin.new_id() if isinstance(got, Refusal) else got.id
        self.items.append([
            "reserve", [[i + 1, self.rule(i + 1), cost] for i, cost in zip(which, costs, strict=True)], [],
            member_name(who[0]), who[1],
            None if backlog is None else {i + 1: units for i, units in backlog.items()},
            {i + 1: units for i, units in ahead.items()}, weight, self.lease, f"{permit:016x}", 0, most, part,
        ])  # fmt: skip
        if isinstance(got, Refusal):
            number = self.numbers([got.key])[0]
            self.expected.append(["no", number, min(got.available_at, FAR), got.unknown, got.never, "limit", ""])
            return
        self.expected.append(["ok", permits, list(got.marks)])
        grant = Permit(got.id, NS, charges, got.marks, now, who, got.lease)
        grant.permits = permits
        self.twin.records[got.id] = got.lease, permits, {charge.key: charge.cost for charge in times}
        self.grants.append(grant)

    def part(self) -> Permit:
        """Some permits of a grant, or all."""
        grant = self.chance.choice(self.grants)
        permits = self.chance.choice([grant.permits, self.chance.randint(1, grant.permits)])
        charges = tuple(Charge(key, limit, cost * permits) for key, limit, cost in grant.charges)
        charges = tuple(charge._replace(limit=self.limits[self.keys.index(charge.key)]) for charge in charges)
        part = Permit(grant.id, NS, charges, grant.marks, grant.sent, grant.who, grant.lease)
        part.permits = permits
        if self.chance.random() < 0.9:  # else it will be settled once more, in vain
            grant.permits -= permits
            if not grant.permits:
                self.grants.remove(grant)
        return part

    def settle(self, now: Instant) -> None:
        """An answer came."""
        chance = self.chance
        part = self.part()
        actual: dict[str, int] = {}
        used: dict[str, int] = {}
        for charge in part.charges:
            if chance.random() < 0.2:
                actual[charge.key] = chance.choice([0, charge.cost + 1, chance.randrange(charge.cost + 2)])
            if chance.random() < 0.3:
                ledger = self.twin._current(charge, now)
                about = ledger.used + ledger.inflight
                others = chance.choice([-20, -3, 0, 1, 2, 5, 5, 20, charge.limit.usable])
                used[charge.key] = max(0, about + others)
        full = [charge.key for charge in part.charges if chance.random() < 0.01]
        stated = chance.random() < 0.3
        done = self.twin.settle(part, now, Settlement(actual=actual, used=used, full=full, stated=stated))
        parts = [
            [
                i,
                self.rule(i),
                charge.cost,
                actual.get(charge.key, charge.cost),
                used.get(charge.key),
                mark,
                charge.key in full,
            ]
            for charge, mark, i in zip(
                part.charges, part.marks, self.numbers([c.key for c in part.charges]), strict=True
            )
        ]
        item = ["settle", f"{part.id:016x}", part.permits, parts, list(part.sent), member_name(part.who[0]), stated]
        self.items.append(item)
        foreign = dict(zip(self.numbers(list(done.foreign)), done.foreign.values(), strict=True))
        self.expected.append([*self.answered(done), foreign])

    def answered(self, done: Answered) -> list[Any]:
        """What a settle or refund changed, as the script tells it."""
        return [not done.late, self.numbers(done.released), sorted(member_name(m) for m in done.wake)]

    def refund(self, now: Instant) -> None:
        """It was never sent."""
        part = self.part()
        done = self.twin.refund(part, now)
        parts = [
            [i, self.rule(i), c.cost]
            for c, i in zip(part.charges, self.numbers([c.key for c in part.charges]), strict=True)
        ]
        name = member_name(part.who[0])
        self.items.append(["refund", f"{part.id:016x}", part.permits, parts, name, part.who[1]])
        self.expected.append(self.answered(done))

    def hold(self, now: Instant) -> None:
        """A lease ends sooner, or later."""
        grant = self.chance.choice(self.grants)
        until = now.mono + self.whole(self.chance.randrange(-SECOND, 2 * MINUTE))
        self.items.append(["hold", f"{grant.id:016x}", until])
        self.expected.append(self.twin.hold(grant, until))

    def withdraw(self, now: Instant) -> None:
        """A caller no longer waits."""
        which, who = self.chosen(), self.who()
        missed = {i: self.chance.choice([0, 0, 1, 5, self.cost(i)]) for i in which}
        left = {i: self.chance.choice([0, 0, 3]) for i in which}
        self.twin.withdraw(
            [self.keys[i] for i in which], who, now,
            {self.keys[i]: units for i, units in missed.items()}, {self.keys[i]: units for i, units in left.items()},
        )  # fmt: skip
        of = [[i + 1, missed[i], left[i]] for i in which]
        self.items.append(["withdraw", of, member_name(who[0]), who[1]])
        self.expected.append(True)

    def doubts(self, now: Instant) -> None:
        """The provider's clock was believed wrong."""
        self.items.append(["doubt", []])
        self.expected.append(len(self.twin._keys("")))
        self.twin.doubt(NS, now)

    def adopt(self, now: Instant) -> None:
        """A permit, or what was spent on one, that was given elsewhere."""
        which, who = self.chosen(), self.who()
        sent = now._replace(mono=now.mono - self.whole(self.chance.randrange(SECOND)))
        charges = tuple(Charge(self.keys[i], self.limits[i], self.chance.randrange(4)) for i in which)
        grant = Permit(self.twin.new_id(), NS, charges, [0] * len(charges), sent, who, now.mono + self.lease)
        grant.permits = 1
        listed = [[i + 1, self.rule(i + 1), charge.cost] for i, charge in zip(which, charges, strict=True)]
        if self.chance.random() < 0.5:
            self.twin.adopt(grant)
            self.grants.append(grant)
            name = f"{grant.id:016x}"
            self.items.append(["adopt", name, 1, listed, list(sent), member_name(who[0]), who[1], grant.lease])
        else:
            past = now.mono - sent.mono
            at = Instant(sent.mono, now.lo - past, now.hi - past)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(time, "monotonic_ns", lambda: now.mono)
                self.twin.spent(grant, NOTHING, at)
            self.items.append(["spent", listed, list(at)])
        self.expected.append(True)

    def step(self) -> None:
        """One call of a few items on both sides; then all that is kept must be the same."""
        chance = self.chance
        if chance.random() < (0.005 if self.tame else 0.03):
            i = chance.randrange(len(self.limits))
            old, new = self.limits[i], some_limit(chance, self.tame, self.huge)
            if chance.random() < 0.6 and old.period:
                new = limit(old.window, new.capacity, chance.choice([old.period, SECOND, MINUTE]))
            self.limits[i] = new
        now = self.now()
        self.items, self.expected = [], []
        self.twin.begin(now)
        for _ in range(chance.choice([1, 1, 2, 6])):
            verb = chance.choices(
                [self.reserve, self.settle, self.refund, self.hold, self.withdraw, self.doubts, self.adopt],
                [10, 8 if self.grants else 0, 1 if self.grants else 0, 1 if self.grants else 0, 0.5, 0.1, 0.5],
            )[0]
            verb(now)
        self.twin.end()
        results = self.server.call(now, self.items, self.keys, self.limits[::-1])
        for item, got, expected in zip(self.items, results, self.expected, strict=True):
            if item[0] in {"settle", "refund"}:
                got[2] = sorted(got[2])
            if item[0] == "settle":
                got[3] = dict(zip(got[3][::2], got[3][1::2], strict=True))
            assert got == expected, item
        assert self.server.ledgers() == {key: shown(unpack(raw)) for key, raw in self.twin.states.items()}
        assert self.server.permits() == {f"{number:016x}": record for number, record in self.twin.records.items()}


@pytest.mark.parametrize("seed", range(WORLDS))
def test_one_arithmetic(server: Any, seed: int) -> None:
    """Decisions, instants, marks, who to wake, foreign traffic and every number of every ledger are the same."""
    world = World(Script(server), seed)
    for _ in range(CALLS):
        world.step()


# -- what goes beyond the arithmetic -----------------------------------------------------------------------------------

WEIGHT = limit(Window.FIXED, 100, MINUTE)
SLOTS = limit(Window.SLOTS, 4, 0)
WEIGHT_KEY, SLOTS_KEY = f"{NS}/weight/ip:a", f"{NS}/slots/ip:a"
BOTH = (WEIGHT_KEY, SLOTS_KEY)
ANN, BEN = member_name(0xA), member_name(0xB)


def ask(permit: str, cost: int = 1, member: str = ANN, scopes: Sequence[str] = (), lane: int = 0) -> list[Any]:
    """A reserve on the weight, and of one slot."""
    charges = [[1, 1, cost], [2, 2, 1]]
    return ["reserve", charges, list(scopes), member, 0, {}, {}, 1, MINUTE, permit, lane, 1, 64]


def told(permit: str, cost: int = 1, member: str = ANN) -> list[Any]:
    """The settle of such a reserve."""
    parts = [[1, 1, cost, cost, None, 0, False], [2, 2, 1, 1, None, 0, False]]
    return ["settle", permit, 1, parts, [EPOCH, EPOCH, EPOCH], member]


def header(seconds: float = 0, **more: Any) -> dict[str, Any]:
    """A call so long after the beginning."""
    return {"now": EPOCH + int(seconds * SECOND), "limits": [spec(WEIGHT), spec(SLOTS)], **more}


@pytest.fixture
def shop(server: Any) -> Script:
    """An empty server with the script."""
    return Script(server)


def copies(answer: list[Any]) -> dict[int, tuple[int, bytes]]:
    """The copies that an answer brought: ledger -> (seq, blob)."""
    return {i: (seq, answer[5][blob - 1]) for i, seq, blob in zip(*[iter(answer[4])] * 3, strict=True)}


def test_present_is_the_servers(shop: Script) -> None:
    """Without an instant in the header the server's own clock tells it."""
    seconds, micros = shop.client.time()
    assert shop.raw({"limits": []}, [])[1] >= seconds * SECOND + micros


def test_copies_can_be_read(shop: Script) -> None:
    """A copy becomes a ledger of Python, on nanoseconds, and the ledger becomes the copy again."""
    world = World(shop, 3)
    for _ in range(40):
        world.step()
    assert shop.ledgers()
    for name in shop.ledgers():
        state = decode(shop.client.get(f"{PREFIX}L:{name}"))
        ledger = from_lua(state)
        assert ledger.room == unpack(world.twin.states[name]).room
        again = to_lua(ledger, state[0])
        assert again[2:15] == state[2:15]
        assert len(again) == len(state)


def test_stale_client_is_told(shop: Script) -> None:
    """Whoever does not know the newest blocks and limits gets them instead of a permit, and nothing is done."""
    learned = shop.raw(header(), [["learn", {"weight": [50, MINUTE]}]])
    assert learned[3] == [True]
    assert shop.raw(header(), [["learn", {"weight": [50, MINUTE]}]])[3] == [False]
    shut = shop.raw(header(), [["block", "ip:a", "ban", "too much", 5 * SECOND]])
    stale = shop.raw(header(gen=learned[2]), [ask("p1")], BOTH)
    block = ["ip:a", "ban", "too much", 5 * SECOND, EPOCH]
    assert stale[:5] == ["stale", EPOCH, shut[2], [block], {"weight": [50, MINUTE]}]
    assert not shop.ledgers()
    assert shop.raw(header(gen=shut[2]), [ask("p1")], BOTH)[3][0][0] == "ok"


def test_block_stops_reserve(shop: Script) -> None:
    """A blocked scope, or ledger, stops a call until the block ends; the longer of two blocks counts, an older stays."""
    shop.raw(header(), [["block", "ip:a", "ban", "first", 9 * SECOND], ["block", "ip:a", "throttle", "", 3 * SECOND]])
    shorter = shop.raw(header(1), [["block", "ip:a", "ban", "second", SECOND]])[3][0]
    assert shorter == ["ip:a", "ban", "first", 9 * SECOND, EPOCH]
    no = shop.raw(header(2), [ask("p1", scopes=["key:k", "ip:a"])], BOTH)[3][0]
    assert no == ["no", "ip:a", EPOCH + 9 * SECOND, False, False, "ban", "first"]
    assert shop.raw(header(2), [ask("p1", scopes=["ip:b"])], BOTH)[3][0][0] == "ok"
    assert shop.raw(header(9), [ask("p2", scopes=["ip:a"])], BOTH)[3][0][0] == "ok"
    shop.raw(header(9), [["block", SLOTS_KEY, "pause", "by hand", None]])
    no = shop.raw(header(99), [ask("p3")], BOTH)[3][0]
    assert no == ["no", SLOTS_KEY, FAR, True, False, "pause", "by hand"]
    gone = shop.raw(header(99), [["unblock", SLOTS_KEY, "ban"], ["unblock", SLOTS_KEY, ""], ["unblock", SLOTS_KEY, ""]])
    assert gone[3] == [False, True, False]
    assert shop.raw(header(99), [ask("p3")], BOTH)[3][0][0] == "ok"


def test_what_a_block_spares(shop: Script) -> None:
    """Cancels pass a pause and a breaker, but not one of cancels, nor a ban; an emergency passes all but the ban."""
    scopes = {
        "order": ["shop", "shop/class:order"],
        "cancel": ["shop", "shop/class:cancel"],
        "urgent": ["shop", "shop/class:order", "emergency"],
        "urgent cancel": ["shop", "shop/class:cancel", "emergency"],
    }
    urgent = {"urgent", "urgent cancel"}
    passes = [
        ("shop", "pause", {"cancel", *urgent}),
        ("shop", "breaker", {"cancel", *urgent}),
        ("shop/class:cancel", "pause", {"order", *urgent}),
        ("shop", "ban", set()),
        ("shop", "throttle", set()),
    ]
    for scope, kind, wanted in passes:
        shop.raw(header(), [["block", scope, kind, "", 60 * SECOND]])
        got = set()
        for name, owners in scopes.items():
            found = shop.raw(header(1), [ask("p1", scopes=owners), ["undo", "p1"]], BOTH)[3]
            got |= {name} if found[0][0] == "ok" else set()
        assert got == wanted
        shop.raw(header(1), [["unblock", scope, ""]])


def test_a_pause_that_was_taken_back_is_not_brought_back(shop: Script) -> None:
    """A pause may be told later than it began. What had begun when it was removed stays removed, though a client brings it
    back; a later one, and a new one, hold."""
    early, late = EPOCH + SECOND, EPOCH + 5 * SECOND
    told = shop.raw(header(9), [["block", "ip:a", "pause", "by hand", None, early]])[3][0]
    assert told == ["ip:a", "pause", "by hand", False, early]
    assert shop.raw(header(9), [["unblock", "ip:a", "pause", early - 1]])[3] == [False]
    assert shop.raw(header(9), [["unblock", "ip:a", "pause", early + 1]])[3] == [True]
    again = shop.raw(header(9), [["block", "ip:a", "pause", "by hand", None, early, True]])[3][0]
    assert again[3:] == [0, early]
    assert shop.raw(header(9), [ask("p1", scopes=["ip:a"])], BOTH)[3][0][0] == "ok"
    for item in (["block", "ip:a", "pause", "", None, late, True], ["block", "ip:a", "pause", "", None, early]):
        assert shop.raw(header(9), [item])[3][0][3] is False
        assert shop.raw(header(9), [ask("p2", scopes=["ip:a"])], BOTH)[3][0][0] == "no"
        shop.raw(header(9), [["unblock", "ip:a", "pause"]])
    shop.raw(header(9), [["block", "ip:a", "pause", "", None]])
    assert shop.raw(header(9), [["unblock", "ip:a", "pause", True]])[3] == [True]
    assert shop.raw(header(9), [["block", "ip:a", "pause", "", None, late, True]])[3][0][3] == 0
    ahead = shop.raw(header(9), [["block", "ip:a", "pause", "", None, EPOCH + 99 * SECOND]])[3][0]
    assert ahead[4] == EPOCH + 9 * SECOND  # none begins in the future


def test_no_block_is_longer_than_a_week(shop: Script) -> None:
    """A garbled length must not shut a program out for a year."""
    assert shop.raw(header(), [["block", "ip:a", "ban", "", 366 * DAY]])[3][0][3] == 7 * DAY


def test_lane_is_refused_once(shop: Script) -> None:
    """What stands behind a refused call in its lane is not asked in the same call; other lanes are."""
    items = [ask("p1", 90, lane=1), ask("p2", 20, lane=1), ask("p3", 1, lane=1), ask("p4", 1, lane=2)]
    assert [one[0] for one in shop.raw(header(), items, BOTH)[3]] == ["ok", "no", "skip", "ok"]


def test_impossible_call_does_not_hold_its_lane(shop: Script) -> None:
    """A call that can never fit is rejected; the next of its lane is asked."""
    assert [one[0] for one in shop.raw(header(), [ask("p1", 101, lane=1), ask("p2", 1, lane=1)], BOTH)[3]] == [
        "no",
        "ok",
    ]


def test_bell_rings_for_who_can_go(shop: Script) -> None:
    """Freed units are told to the members that wait for them, and to no other; news of limits to everybody."""
    with shop.client.pubsub() as ear:
        ear.subscribe(PREFIX + "bell")
        assert ear.get_message(timeout=5)["type"] == "subscribe"
        shop.raw(header(), [ask(f"p{i}") for i in range(4)], BOTH)
        shop.raw(header(), [ask("b1", member=BEN), told("p1")], BOTH)
        assert ear.get_message(timeout=5)["data"] == f"wake {BEN}".encode()
        gen = shop.raw(header(), [["learn", {"weight": [50, MINUTE]}]])[2]
        assert ear.get_message(timeout=5)["data"] == f"gen {gen}".encode()


def test_dead_permit_rings_too(shop: Script) -> None:
    """A slot whose holder died wakes who waits for it."""
    shop.raw(header(), [ask(f"p{i}") for i in range(4)], BOTH)
    shop.raw(header(59.5), [ask("b1", member=BEN)], BOTH)
    with shop.client.pubsub() as ear:
        ear.subscribe(PREFIX + "bell")
        assert ear.get_message(timeout=5)["type"] == "subscribe"
        shop.raw(header(60), [])
        assert ear.get_message(timeout=5)["data"] == f"wake {BEN}".encode()


def test_notes_are_bytes(shop: Script) -> None:
    """A note is any bytes, and what stood there before comes back."""
    first = [["note", "clock"], ["swap", "clock", None, 1, False], ["note", "clock"]]
    answer = shop.raw(header(), first, (), b"\xff\x00")
    assert answer[3][:2] == [False, [True, False]]
    assert answer[5][answer[3][2] - 1] == b"\xff\x00"


def test_a_note_is_swapped_for_what_stands_there(shop: Script) -> None:
    """Only if it is what the client took it for; else the client hears what it is. It is taken out in the same way, and
    ends after its time."""
    swap = ["swap", "clock"]
    assert shop.raw(header(), [[*swap, None, 1, False]], (), b"a")[3] == [[True, False]]
    answer = shop.raw(header(), [[*swap, None, 2, False], [*swap, 2, 2, False], [*swap, 1, 2, False]], (), b"a", b"b")
    assert [done for done, _ in answer[3]] == [False, False, True]
    assert [answer[5][there - 1] for done, there in answer[3] if not done] == [b"a", b"a"]
    assert shop.raw(header(), [[*swap, 1, None, False], ["note", "clock"]], (), b"b")[3] == [[True, False], False]
    assert shop.raw(header(), [[*swap, 1, 1, False]], (), b"b")[3] == [[False, False]]
    assert shop.raw(header(), [[*swap, True, 1, 50]], (), b"b")[3] == [[True, False]]
    end = time.monotonic() + 10
    while shop.raw(header(), [["note", "clock"]])[3] != [False]:
        assert time.monotonic() < end, "it lasts"


def test_members_are_counted(shop: Script) -> None:
    """A member that left is counted no more; one that fell silent only after ten minutes."""
    assert shop.raw(header(), [["beat", ANN, 10 * SECOND], ["beat", BEN, 10 * SECOND]])[3] == [1, 2]
    assert shop.raw(header(11), [["beat", ANN, 10 * SECOND]])[3] == [2]
    assert shop.raw(header(71), [["beat", ANN, 10 * SECOND]])[3] == [2]
    assert shop.raw(header(4000), [["beat", ANN, 10 * SECOND]])[3] == [1]
    assert shop.raw(header(4000), [["leave", ANN], ["beat", BEN, 10 * SECOND]])[3] == [True, 1]


def test_silent_member_has_its_share(shop: Script) -> None:
    """For a member that is not heard of its part of every limit is held: it may have gone on by itself. It comes back."""
    shop.raw(header(), [["beat", ANN, 10 * SECOND], ["beat", BEN, 10 * SECOND], ask("p1", 10), told("p1", 10)], BOTH)
    shop.raw(header(9), [["beat", ANN, 10 * SECOND]])
    assert [ledger[7] for ledger in shop.ledgers().values()] == [0, 0]
    shop.raw(header(10), [])
    assert {key: ledger[7] for key, ledger in shop.ledgers().items()} == {WEIGHT_KEY: 50, SLOTS_KEY: 2}
    assert [ledger[12][:2] for ledger in shop.ledgers().values()] == [[ANN, 0]] * 2
    assert [len(ledger[12]) for ledger in shop.ledgers().values()] == [16, 16]
    shop.raw(header(200), [["beat", ANN, 10 * SECOND]])
    assert {key: ledger[7] for key, ledger in shop.ledgers().items()} == {WEIGHT_KEY: 50, SLOTS_KEY: 2}
    shop.raw(header(201), [["beat", BEN, 10 * SECOND]])
    assert [ledger[7] for ledger in shop.ledgers().values()] == [0, 0]


# -- a server that lost its memory -------------------------------------------------------------------------------------

GATHERED = 1
"""Seconds in which a server takes in what its clients hold, and grants nothing."""
PUTS = [["put", 1, 1], ["put", 2, 2]]


def flush(shop: Script) -> None:
    """The server loses all it knew, the script too."""
    shop.client.flushall()
    shop.client.script_load(script())


def blobs(had: dict[int, tuple[int, bytes]]) -> tuple[bytes, bytes]:
    """Copies of both ledgers, as `PUTS` wants them."""
    return had[1][1], had[2][1]


def counts(shop: Script) -> list[list[int]]:
    """Units used and in flight, of the weight and of the slots."""
    return [shop.ledgers()[key][6:8] for key in BOTH]


def spent_and_held(shop: Script) -> dict[int, tuple[int, bytes]]:
    """90 units are spent, 5 are in flight under the permit p2; the copies of then."""
    shop.raw(header(), [ask("p1", 90), told("p1", 90)], BOTH)
    return copies(shop.raw(header(1), [ask("p2", 5)], BOTH))


def test_flushed_server_does_not_open(shop: Script) -> None:
    """Who has seen more than the server remembers hears of the loss instead; with the copies put, all counts again."""
    had = spent_and_held(shop)
    seen = [had[1][0], had[2][0]]
    flush(shop)
    lost = shop.raw(header(3, seen=seen), [ask("p3", 6)], BOTH)
    epoch = lost[4]
    assert lost[:4] == ["lost", EPOCH + 3 * SECOND, 0, [1, 2]]
    assert epoch >= EPOCH
    assert not shop.ledgers()
    back = header(3, seen=seen, epoch=epoch, restored=True)
    answer = shop.raw(back, [*PUTS, ask("p3", 5)], BOTH, *blobs(had))
    assert answer[3][:2] == [True, True]
    assert answer[3][2][:4] == ["no", 1, EPOCH + 3 * SECOND + SECOND // 50, True]
    assert counts(shop) == [[90, 5], [0, 1]]
    assert shop.raw(back, PUTS, BOTH, *blobs(had))[3] == [False, False]
    answer = shop.raw(header(3 + GATHERED, epoch=epoch), [ask("p3", 6), ask("p4", 5)], BOTH)
    assert [one[0] for one in answer[3]] == ["no", "ok"]


def test_client_of_an_older_epoch_is_sent_for_its_copies(shop: Script) -> None:
    """A client that knows a later epoch than the server has found it flushed; one that knows an earlier one comes late."""
    had = spent_and_held(shop)
    flush(shop)
    known = EPOCH + 5 * SECOND
    first = shop.raw(header(2, epoch=known), [ask("p3")], BOTH)
    assert (first[0], first[3]) == ("lost", [])
    assert first[4] > known
    assert shop.raw(header(2, epoch=known), [ask("p3")], BOTH)[4] == first[4]
    answer = shop.raw(header(2, epoch=first[4], restored=True), PUTS, BOTH, *blobs(had))
    assert answer[3] == [True, True]
    late = shop.raw(header(2 + GATHERED, epoch=known), [ask("p3")], BOTH)
    assert (late[0], late[4]) == ("lost", first[4])


def test_gathering_ends_when_all_are_back(shop: Script) -> None:
    """As many members as were known have brought what they hold: then nobody waits longer."""
    assert shop.raw(header(seen=[7], members=2), [], BOTH[:1])[0] == "lost"
    shop.raw(header(0.1), [["beat", ANN, MINUTE]])
    assert shop.raw(header(0.1), [ask("p1")], BOTH)[3][0][0] == "no"
    shop.raw(header(0.2), [["beat", BEN, MINUTE]])
    assert shop.raw(header(0.2), [ask("p1")], BOTH)[3][0][0] == "ok"


def test_unknown_ledgers_begin_full_after_a_loss(shop: Script) -> None:
    """After a loss nobody knows what was spent on a ledger that nobody has a copy of: its first window is taken as spent."""
    shop.raw(header(seen=[7]), [], BOTH[:1])
    other = f"{NS}/weight/ip:b"
    item = ["reserve", [[1, 1, 1]], [], ANN, 0, {}, {}, 1, MINUTE, "p1", 0, 1, 64]
    assert shop.raw(header(GATHERED), [item], [other])[3][0][0] == "no"
    assert shop.raw(header(60), [item], [other])[3][0][0] == "ok"
    slots = ["reserve", [[1, 2, 1]], [], ANN, 0, {}, {}, 1, MINUTE, "p2", 0, 1, 64]
    assert shop.raw(header(GATHERED), [slots], [f"{NS}/slots/ip:b"])[3][0][0] == "ok"


def test_long_windows_begin_half_full_after_a_loss(shop: Script) -> None:
    """Of a window longer than five minutes half is taken as spent: a day's budget is not thrown away."""
    daily = limit(Window.FIXED, 100, DAY)
    shop.raw(header(seen=[7]), [], BOTH[:1])
    asked = [["reserve", [[1, 1, cost]], [], ANN, 0, {}, {}, 1, MINUTE, f"p{cost}", 0, 1, 64] for cost in (51, 50)]
    answer = shop.raw({"now": EPOCH + GATHERED * SECOND, "limits": [spec(daily)]}, asked, [f"{NS}/daily/ip:a"])
    assert [one[0] for one in answer[3]] == ["no", "ok"]


def test_dead_member_holds_nothing(shop: Script) -> None:
    """The permits of a member whose machine tells that it is dead count as spent, and its slots are free; others' stay."""
    beats = [["beat", member, 10 * SECOND] for member in (ANN, BEN)]
    shop.raw(header(), [*beats, ask("p1", 10), ask("p2", 5, BEN)], BOTH)
    shop.raw(header(1), [["leave", ANN, True]])
    assert counts(shop) == [[10, 5], [0, 1]]
    assert shop.raw(header(1), [["beat", BEN, 10 * SECOND]])[3] == [1]


@pytest.mark.parametrize(("seconds", "spent"), [(10.2, 0), (12, 50)], ids=["it cannot have", "it may have"])
def test_share_of_a_dead_member(shop: Script, seconds: float, spent: int) -> None:
    """The share that was held for it counts as spent if it may have lived to use it, and goes back if not."""
    shop.raw(header(), [["beat", ANN, 10 * SECOND], ask("p1", 10, BEN), told("p1", 10, BEN)], BOTH)
    shop.raw(header(10.1), [["beat", BEN, 10 * SECOND]])
    assert counts(shop)[0] == [10, 50]
    shop.raw(header(seconds), [["leave", ANN, True]])
    assert counts(shop)[0] == [10 + spent, 0]


def test_expired_ledgers_leave_the_list(shop: Script) -> None:
    """Where ledgers come and go, the list does not keep the names of those that are gone."""
    item = ["reserve", [[1, 1, 1]], [], ANN, 0, {}, {}, 1, MINUTE, "p1", 0, 1, 64]
    for number in range(400):
        key = f"{NS}/weight/key:{number}"
        shop.raw(header(), [[*item[:9], f"p{number}", *item[10:]]], [key])
        shop.client.delete(f"{PREFIX}L:{key}")
    assert shop.client.scard(f"{PREFIX}ledgers") < 200


def test_ledgers_nobody_uses_expire(shop: Script) -> None:
    """A ledger is forgotten by the server four hours and four periods after its last use, no sooner."""
    shop.raw(header(), [ask("p1")], BOTH)
    for key, period in ((WEIGHT_KEY, MINUTE), (SLOTS_KEY, 0)):
        longest = (DAY // 6 + 4 * period) // 1000
        assert longest - 60_000 < shop.client.pttl(f"{PREFIX}L:{key}") <= longest


def test_restored_permits_are_regained(shop: Script) -> None:
    """What was in flight in a copy is held apart, until its holder takes it back; then the permit lives on as it was."""
    had = spent_and_held(shop)
    flush(shop)
    shop.raw(header(2), PUTS, BOTH, *blobs(had))
    assert shop.permits().keys() == {f"lost:0:{WEIGHT_KEY}", f"lost:0:{SLOTS_KEY}"}
    again = ["regain", "p2", 1, [[1, 1, 5], [2, 2, 1]], ANN, 0, EPOCH + MINUTE]
    assert shop.raw(header(2), [again, again], BOTH)[3] == [True, False]
    assert shop.permits() == {"p2": (EPOCH + MINUTE, 1, {WEIGHT_KEY: 5, SLOTS_KEY: 1})}
    assert shop.raw(header(3), [told("p2", 5)], BOTH)[3][0][0] is True
    assert counts(shop) == [[95, 0], [0, 0]]


def test_restored_permits_of_the_dead_end(shop: Script) -> None:
    """What nobody takes back counts as spent when a lease has passed."""
    had = spent_and_held(shop)
    flush(shop)
    shop.raw(header(2), PUTS, BOTH, *blobs(had))
    shop.raw(header(61.9), [], BOTH)
    assert len(shop.permits()) == 2
    shop.raw(header(62), [], BOTH)
    assert not shop.permits()
    assert [units for _, units in counts(shop)] == [0, 0]


@pytest.mark.parametrize("regained", [False, True])
@pytest.mark.parametrize("newer_first", [False, True])
@pytest.mark.parametrize("window", [Window.FIXED, Window.FIRST, Window.SLIDING, Window.BUCKET])
def test_copies_of_one_ledger_become_one(shop: Script, window: Window, newer_first: bool, regained: bool) -> None:
    """Whichever copy comes first, the newer one counts once, and so does what was spent and taken since the loss."""

    def call(*items: list[Any], of: dict[int, tuple[int, bytes]] | None = None, seconds: float = 0) -> list[Any]:
        told = header(seconds, limits=[spec(limit(window, 100, MINUTE)), spec(SLOTS)])
        return shop.raw(told, items, BOTH, *(blobs(of) if of else ()))

    call(ask("p0", 4), ask("p1", 10))
    older = copies(call(told("p1", 10)))
    call(ask("p2", 30))
    newer = copies(call(told("p2", 30), ask("p3", 7)))
    flush(shop)
    one, two = (newer, older) if newer_first else (older, newer)
    call(*PUTS, ask("q1", 2), told("q1", 2), ask("q2", 3), of=one)
    if regained:
        assert call(["regain", "p0", 1, [[1, 1, 4], [2, 2, 1]], ANN, 0, EPOCH + MINUTE])[3] == [True]
    # So much has happened since that numbers of writes alone would tell the copies apart no more.
    for i in range(9):
        call(ask(f"r{i}", 0), told(f"r{i}", 0))
    assert call(*PUTS, of=two)[3] == [not newer_first] * 2
    assert counts(shop) == [[42, 14], [0, 3]]
    lost = [units for permit, (_, _, units) in shop.permits().items() if permit == f"lost:0:{WEIGHT_KEY}"]
    assert lost == [{WEIGHT_KEY: 7 if regained else 11}]
    assert call(told("q2", 3))[3][0][0] is True
    call(seconds=61)
    assert [units for _, units in counts(shop)] == [0, 0]


def test_permits_that_no_copy_knew_are_taken(shop: Script) -> None:
    """Of a permit that is larger than what was put back the rest is taken anew."""
    had = spent_and_held(shop)
    flush(shop)
    shop.raw(header(2), PUTS, BOTH, *blobs(had))
    shop.raw(header(2), [["regain", "p9", 2, [[1, 1, 4], [2, 2, 1]], BEN, 0, EPOCH + MINUTE]], BOTH)
    assert counts(shop) == [[90, 8], [0, 2]]
    assert shop.permits() == {"p9": (EPOCH + MINUTE, 2, {WEIGHT_KEY: 8, SLOTS_KEY: 2})}
    assert shop.ledgers()[WEIGHT_KEY][12][16:19] == [BEN, 0, 3]


def test_copy_joins_a_ledger_that_began_anew(shop: Script) -> None:
    """Units that a newcomer took on the flushed server add to those of the copy, however often that one is put."""
    had = spent_and_held(shop)
    flush(shop)
    shop.raw(header(2), [ask("q1", 4), told("q1", 4), ask("q2", 1)], BOTH)
    epoch = shop.raw(header(2, seen=[had[1][0], had[2][0]]), [], BOTH)[4]
    for _ in range(2):
        shop.raw(header(2, epoch=epoch, restored=True), PUTS, BOTH, *blobs(had))
    assert counts(shop) == [[94, 6], [0, 2]]


def test_lagging_replica_catches_up(shop: Script) -> None:
    """A replica that missed the last writes hears them from who has seen them; what it did not miss counts once."""
    shop.raw(header(hello=True), [ask("p1", 10)], BOTH)
    names = [f"{PREFIX}L:{key}" for key in BOTH]
    lagging = {name: shop.client.dump(name) for name in names}
    had = copies(shop.raw(header(1), [ask("p2", 60)], BOTH))
    for name, state in lagging.items():
        shop.client.restore(name, 0, state, replace=True)
    shop.client.hdel(PREFIX + "held", "p2")
    shop.client.zrem(PREFIX + "permits", "p2")
    shop.client.hset(PREFIX + "meta", "run", "another server")
    # Somebody who has seen nothing of the last writes comes first, and writes more than were missed.
    epoch = shop.raw(header(2, epoch=0, hello=True), [], BOTH)[4]
    for i in range(5):
        shop.raw(header(2, epoch=epoch, restored=True), [["spent", [[1, 1, i]], [EPOCH] * 3]], BOTH)
    answer = shop.raw(header(2, epoch=epoch, restored=True), PUTS, BOTH, *blobs(had))
    assert answer[3] == [True, True]
    assert counts(shop) == [[10, 70], [0, 2]]
    again = ["regain", "p2", 1, [[1, 1, 60], [2, 2, 1]], ANN, 0, EPOCH + MINUTE]
    assert shop.raw(header(2, epoch=epoch), [again], BOTH)[3] == [True]
    assert shop.permits().keys() == {"p1", "p2"}
    assert counts(shop) == [[10, 70], [0, 2]]
