"""Random answers, messages, notes and records in the grammar of every provider, and what must hold whatever they say."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec
from tests.fuzz.base import SECRET
from tests.fuzz.outside import Outside

from ratekeeper.adapters._line import _topics, _tree, _verb
from ratekeeper.gate.call import unpacked
from ratekeeper.ledger.codec import pack, unpack
from ratekeeper.ledger.limit import SECOND, Instant, Limit, Window
from ratekeeper.policy.breaker import Breaker, Outcomes
from ratekeeper.policy.pace import Pace, Paced
from ratekeeper.pools.echo import public_address
from ratekeeper.rules.call import Answer, Outcome, Plan
from ratekeeper.rules.provider import Provider
from ratekeeper.rules.reading import FAULTS
from ratekeeper.sessions.dialects import dialect_of
from ratekeeper.sessions.liveness import Dials, Liveness
from ratekeeper.stores.encoding import encoded, meant, note_of, read_or
from ratekeeper.stores.redis.lua import from_lua

__all__ = ["Fuzz"]

NOW: Final = 1_700_000_000 * SECOND
LONGEST: Final = 7 * 86_400 * SECOND
"""No block is believed to be longer (`ratekeeper.stores.blocks`)."""
SLOWEST: Final = 2.0
"""Seconds of processor time that reading one answer may take, a hundred times what it does."""
STATUSES: Final = (200, 200, 400, 401, 403, 404, 408, 418, 429, 429, 500, 503, 529, 0, 99, 1000)


class Fuzz(Outside):
    """All kinds of input; the same seed makes the same."""

    @classmethod
    def names(cls) -> Iterator[str]:
        """What can be tried."""
        yield from (name[4:] for name in dir(cls) if name.startswith("try_"))

    def run(self, what: str, times: int) -> None:
        """Try something so often."""
        tried: Callable[[], None] = getattr(self, f"try_{what}")
        for _ in range(times):
            tried()

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
