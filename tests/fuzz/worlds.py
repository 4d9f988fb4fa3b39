"""Random answers, messages, notes and records in the grammar of every provider, and what must hold whatever they say."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from ratekeeper.adapters._line import _topics, _tree, _verb
from ratekeeper.gate.call import unpacked
from ratekeeper.ledger.codec import pack, unpack
from ratekeeper.ledger.limit import SECOND, Instant, Limit, Window
from ratekeeper.policy.breaker import Breaker, Outcomes
from ratekeeper.policy.pace import Pace, Paced
from ratekeeper.pools.echo import public_address
from ratekeeper.rules.book import Rulebook
from ratekeeper.rules.call import Answer, Identity, Outcome, Plan, Request
from ratekeeper.rules.provider import Provider
from ratekeeper.rules.reading import FAULTS, listed
from ratekeeper.sessions.dialects import dialect_of
from ratekeeper.sessions.liveness import Dials, Liveness
from ratekeeper.stores.encoding import encoded, meant, note_of, read_or
from ratekeeper.stores.redis.lua import from_lua

__all__ = ["Fuzz"]

NOW: Final = 1_700_000_000 * SECOND
LONGEST: Final = 7 * 86_400 * SECOND
"""No block is believed to be longer (`ratekeeper.stores.blocks`)."""
SECRET: Final = "sEcReT" * 8
SLOWEST: Final = 2.0
"""Seconds of processor time that reading one answer may take, a hundred times what it does."""
STATUSES: Final = (200, 200, 400, 401, 403, 404, 408, 418, 429, 429, 500, 503, 529, 0, 99, 1000)
ODD: Final[tuple[Any, ...]] = (
    None, True, -1, 0, 1, 2**31, 2**63 - 1, 2**63, -(2**63), 10**300, 1e308, 0.5, "", "0", "-5", "1e999", "nan", "inf",
    "9" * 30, "9" * 5000, "1" + "0" * 400 + "d", "٣", "²", "\x00", "Sun, 99 Foo 0000", "Sun, 06 Nov 9999 08:49:37 GMT",
    "9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z", "until 9999999999999", [], {}, [[]], [None] * 9, {"": {}}, SECRET,
    "SECOND", "9999999 DAY", "<html>", "a" * 70_000, "[" * 300, "1m" * 300, "1700000060", "1700000060000", "120",
)  # fmt: skip


class Fuzz:
    """One series of random inputs; the same seed makes the same."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.dice = random.Random(seed)
        book = Rulebook.load({})
        self.providers = [book.provider(name) for name in book.names()]
        self._plans: dict[str, list[Plan]] = {}

    @classmethod
    def names(cls) -> Iterator[str]:
        """What can be tried."""
        yield from (name[4:] for name in dir(cls) if name.startswith("try_"))

    def run(self, what: str, times: int) -> None:
        """Try something so often."""
        tried: Callable[[], None] = getattr(self, f"try_{what}")
        for _ in range(times):
            tried()

    # -- making ----------------------------------------------------------------------------------------------------

    def plans(self, provider: Provider) -> list[Plan]:
        """Plans of some routes of a provider."""
        if provider.name not in self._plans:
            matches = [match for route in provider.file.routes for match in listed(route.match)]
            calls = [match.partition(" ") for match in self.dice.sample(matches, min(6, len(matches)))]
            identity = Identity("default", "me", b"key")
            self._plans[provider.name] = [
                provider.plan(Request(method, path.replace("*", "x")), identity) for method, _, path in calls
            ] or [provider.plan(Request("GET", "/"), identity)]
        return self._plans[provider.name]

    def odd(self) -> Any:
        """A value that nobody expects."""
        return self.dice.choice(ODD)

    def value(self, known: list[Any]) -> Any:
        """One that is expected, or one that is not."""
        return self.dice.choice(known) if known and self.dice.random() < 0.5 else self.odd()

    def body(self, provider: Provider) -> bytes | str | None:
        """A body in the provider's grammar, and then often damaged."""
        tree: dict[str, Any] = {}
        for refusal in self.dice.sample(provider.file.refusals, min(3, len(provider.file.refusals))):
            for path, accepted in refusal.body.items():
                self.put(tree, path, self.value(list(accepted)))
            for hint in refusal.retry or ():
                if hint.body:
                    self.put(tree, hint.body, self.odd())
        for learn in provider.file.learn:
            if learn.rows:
                row = {
                    name: self.odd()
                    for name in (learn.type, learn.interval, learn.number, learn.limit, learn.used)
                    if name
                }
                if learn.type and learn.units:
                    row[learn.type] = self.value(list(learn.units))
                self.put(tree, learn.rows, [row, self.odd(), dict(row)])
            if learn.clock:
                self.put(tree, learn.clock, self.odd())
        tree["msg"] = self.value(["banned until 1700000060000", f"limit 1200 per 1 MINUTE {SECRET}", "Too many"])
        try:
            raw = msgspec.json.encode(self.odd() if self.dice.random() < 0.1 else tree)
        except msgspec.MsgspecError:
            raw = repr(tree).encode("utf-8", "replace")
        return self.dice.choice(
            [raw, raw, raw, raw[: len(raw) // 2], raw + b"[" * 3000, b"[" * 2000, b'{"a":' * 2000, self.damaged(raw), b"",
             raw.decode("utf-8", "replace") + "\ud800", b"\xff\xfe" + raw, b"9" * 9000, raw + b" " * 70_000 + b"}", None]
        )  # fmt: skip

    def put(self, tree: dict[str, Any], path: str, value: Any) -> None:
        """Put a value at a dotted path."""
        *steps, last = path.split(".")
        for step in steps:
            inner = tree.setdefault(step, {})
            if not isinstance(inner, dict):
                return
            tree = inner
        tree[last] = value

    def damaged(self, raw: bytes) -> bytes:
        """The same with some bytes changed."""
        found = bytearray(raw or b"x")
        for _ in range(self.dice.randint(1, 9)):
            found[self.dice.randrange(len(found))] = self.dice.randrange(256)
        return bytes(found)

    def headers(self, provider: Provider) -> dict[str, str]:
        """Headers that the rules look at, with odd values."""
        names = {"date", "retry-after"}
        for limit in provider.limits.values():
            rule = provider.file.limits.get(limit.name)
            if rule is not None:
                stated = (getattr(rule.headers, kind) for kind in ("used", "remaining", "limit", "reset", "cost"))
                names |= {name.replace("{interval}", "1m").lower() for name in stated if name}
        chosen = self.dice.sample(sorted(names), self.dice.randint(0, len(names)))
        return {name: str(self.odd())[:9000] for name in chosen}

    # -- what is tried ---------------------------------------------------------------------------------------------

    def try_answers(self) -> None:
        """An answer of any provider: nothing is raised, everything that it tells is within bounds, and nothing is secret."""
        provider = self.dice.choice(self.providers)
        plan = self.dice.choice(self.plans(provider))
        odd = [status for refusal in provider.file.refusals for status in refusal.status]
        status = self.dice.choice([*STATUSES, *odd])
        answer = Answer(status, self.headers(provider), self.body(provider))
        begun = time.process_time()
        told = provider.feedback(plan, answer, now=NOW)
        assert time.process_time() - begun < SLOWEST
        for block in told.blocks:
            assert block.wait is None or 0 <= block.wait.length(Instant(0, NOW, NOW)) <= LONGEST, block
        assert all(count >= 0 for count in (*told.used.values(), *told.actual.values()))
        assert all(1 <= capacity <= 10**12 and period >= 0 for capacity, period in told.learned.values())
        assert told.wait is None or 0 <= told.wait.length(Instant(0, NOW, NOW)) <= LONGEST
        assert told.server_time is None or 0 < told.server_time[0] <= told.server_time[1] < 1 << 63
        assert SECRET not in told.reason
        assert len(told.reason) < 300
        if status in always(provider, plan):
            assert told.outcome is Outcome.BANNED, (provider.name, status, told)
            assert told.blocks
        if status == 429 and not any(429 in refusal.status for refusal in provider.file.refusals):
            assert told.outcome is Outcome.THROTTLED
        provider.handling.good(answer.body if isinstance(answer.body, bytes) else b"")

    def try_messages(self) -> None:
        """A message of a websocket, theirs or the program's own."""
        provider = self.dice.choice(self.providers)
        message = self.body(provider) or b""
        short = message[: self.dice.choice([20, 400, 512, 100_000])]
        told, reply = dialect_of(provider.name).reply(short)
        assert isinstance(told, bool)
        assert isinstance(reply, str)
        tree = _tree(short)
        if tree is not None:
            _topics(tree)
            _verb(tree)

    def try_addresses(self) -> None:
        """What an echo says: an address, or no address."""
        raw = self.body(self.dice.choice(self.providers))
        try:
            public_address(raw if isinstance(raw, bytes) else b"")
        except ValueError:
            pass

    def try_notes(self) -> None:
        """A note of the store: whoever reads it can go on with it."""
        raw = self.dice.randbytes(self.dice.choice([0, 7, 20, 24, 28, 29, 32, 40]))
        numbers = [0, 1, -1, 999, 1000, 1001, 1 << 62, 0.5, -0.5, 1e300, -1e300, float("inf"), float("nan")]
        if self.dice.random() < 0.7:
            raw = msgspec.msgpack.encode(self.dice.choices(numbers, k=self.dice.randint(1, 5)))
        now = 1000.0
        paced = Pace(60.0).refused(note_of(raw, Paced) or Paced(), now)
        assert 0 < paced.part <= 1000
        assert note_of(encoded(paced), Paced) == paced
        health, length = Breaker().after(note_of(raw, Outcomes) or Outcomes(), 1, 0, now)
        assert 0 <= length <= 60
        assert note_of(encoded(health), Outcomes) == health
        wait, dials = Liveness().turn(note_of(raw, Dials) or Dials(), now, 0.5)
        assert 0 <= wait <= 2 * Liveness().forget
        assert note_of(encoded(dials), Dials) == dials
        unpacked(raw)

    def try_ledgers(self) -> None:
        """A ledger's record: it is refused, or its numbers can be worked with and leave no more room than the limit."""
        window = self.dice.choice(list(Window))
        ledger = unpack(pack(_ledger(window, self.dice)))
        raw = bytearray(pack(ledger))
        for _ in range(self.dice.randint(0, 2)):
            at = self.dice.randrange(len(raw) // 8) * 8
            raw[at : at + 8] = self.dice.choice([self.dice.randbytes(8), b"\xff" * 8, b"\xff" * 7 + b"\x7f", bytes(8)])
        if self.dice.random() < 0.2:
            raw = raw[: self.dice.randrange(len(raw))]
        read = read_or(None, unpack, bytes(raw))
        if read is None or not meant(read, 10**15):
            return
        assert read.room <= read.limit.usable
        now = Instant(10**15, 10**18, 10**18 + SECOND)
        read.advance(now)
        read.available_at(1, (7, 2), now)
        assert read.room <= read.limit.usable

    def try_copies(self) -> None:
        """A ledger as a Redis server tells it: it can be read, or what it raises is among what is caught."""
        number = self.dice.choice([-1, 0, 2**63 - 1, -(2**63), 1.5, "x", None])
        state = [1, 0, self.dice.randint(-1, 6), 5, 0, 60, 0, 0, 1, 0, 0, 0, 0, [number], [number] * 9, 0]
        raw = self.dice.choice([self.dice.randbytes(60), msgspec.msgpack.encode(state)])
        try:
            from_lua(msgspec.msgpack.decode(raw))
        except FAULTS:
            pass


def always(provider: Provider, plan: Plan) -> set[int]:
    """Statuses that mean a ban in any case: no refusal that may come before asks for more than the status."""
    found: set[int] = set()
    seen: set[int] = set()
    for refusal in provider.file.refusals:
        plain = not (refusal.body or refusal.text or refusal.routes or refusal.close)
        if plain and refusal.outcome == "banned" and refusal.block:
            found |= set(refusal.status) - seen
        seen |= set(refusal.status)
        if not refusal.status:
            break
    return {status for status in found if any(scope.startswith(f"{plan.provider}/ip:") for scope in plan.scopes)}


def _ledger(window: Window, dice: random.Random) -> Any:
    from ratekeeper.ledger.codec import create

    period = 0 if window is Window.SLOTS else 60 * SECOND
    ledger = create(Limit("x", "requests", 100, period, window))
    for step in range(dice.randint(1, 20)):
        now = Instant(10**15 + step * SECOND, 10**18 + step * SECOND, 10**18 + step * SECOND)
        ledger.advance(now)
        ledger.take(1, (7, 2), now)
        if dice.random() < 0.7:
            ledger.settle(1, 1, now)
    return ledger
