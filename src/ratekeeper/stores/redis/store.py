"""Ledgers shared by many machines: a Redis or Valkey server runs the arithmetic, one script call for many verbs.

What ends a permit waits for the next round trip of this process, which takes along all that is pending; permits for calls
that follow each other closely come out of slices. So the busier a process is, the fewer round trips it makes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from ratekeeper.errors import StoreError, StoreUnavailable
from ratekeeper.ledger.base import Ledger
from ratekeeper.ledger.decide import Refusal
from ratekeeper.ledger.limit import Charge, Instant
from ratekeeper.ledger.shares import Who
from ratekeeper.stores.records import LEASE, NOTHING, Answered, Ask, Grant, Snapshot, Units
from ratekeeper.stores.redis.line import MICRO, Load
from ratekeeper.stores.redis.lua import member_name
from ratekeeper.stores.redis.news import EVER, News
from ratekeeper.stores.redis.province import Wish
from ratekeeper.stores.redis.sight import ledger_at, over_there, read_all, surely_left
from ratekeeper.stores.redis.slices import OPEN, Part, Slice

__all__ = ["RedisStore"]

T = TypeVar("T")

_SHARE: Final = 64
"""A slice takes at most this part of what is free."""


class RedisStore(News):
    """All processes of all machines that name this server share these ledgers.

    Args:
        url: of the server, see `ratekeeper.stores.redis.address`.
        home: the state folder of this machine; there its processes see which of them are dead.
        given: instants come with the calls, and every verb is a round trip of its own: for tests. Else the server's clock
            counts, and what ends a permit is told when it suits.
    """

    # -- permits ---------------------------------------------------------------------------------------------------

    def reserve(
        self,
        namespace: str,
        charges: tuple[Charge, ...],
        scopes: tuple[str, ...],
        who: Who,
        now: Instant,
        *,
        backlog: Mapping[str, int] | None = NOTHING,
        ahead: Mapping[str, int] = NOTHING,
        weight: int = 1,
        lease: int = LEASE,
    ) -> Grant | Refusal:
        ask = Ask(namespace, charges, scopes, who, backlog, ahead, weight)
        found = self._reserve([ask], lambda _: now, lease, extra=False)[0]
        return found if isinstance(found, Refusal) else found[0]

    def reserve_all(self, asks: Sequence[Ask], now: Callable[[str], Instant]) -> list[Sequence[Grant] | Refusal]:
        return self._reserve(asks, now, LEASE, extra=True)

    def draw(self, charges: tuple[Charge, ...], who: Who, now: Instant) -> Grant | None:
        return self._slices.draw(charges, who, now, self.generation, self._numbers.getrandbits(63))

    def _reserve(
        self, asks: Sequence[Ask], now: Callable[[str], Instant], lease: int, *, extra: bool
    ) -> list[Sequence[Grant] | Refusal]:
        found: list[Sequence[Grant] | Refusal | None] = [None] * len(asks)
        provinces: dict[str, list[tuple[Wish, str]]] = {}
        self._hear_of_all()
        for place, ask in enumerate(asks):
            at = now(ask.namespace)
            if no := self.blocks.against(ask.scopes, ask.charges, at.mono, everywhere=True):
                found[place] = no
                continue
            number = f"{self._numbers.getrandbits(63):016x}"
            wish = self._ask(ask, number, at, lease, extra, found, place)
            provinces.setdefault(ask.namespace, []).append((wish, number))
        for namespace, wishes in provinces.items():
            self._trips.province(namespace).asked = time.monotonic_ns()
            try:
                self._trips.go(namespace, [wish for wish, _ in wishes], now(namespace))
            except StoreError:
                for _, number in wishes:  # nobody knows whether it was granted
                    self._undo(namespace, number)
                raise
        later = next((x for x in reversed(found) if isinstance(x, Refusal)), Refusal("", 0, unknown=True))
        return [later if one is None else one for one in found]

    def _ask(self, ask: Ask, number: str, now: Instant, lease: int, extra: bool, found: list[Any], place: int) -> Wish:
        """One `reserve`; its answer goes to `found[place]`."""
        most = ask.most + (
            self._slices.size(ask.charges, ask.who, now.mono, self._trips.line.took) if extra and not ask.ahead else 0
        )

        def write(load: Load) -> list[Any]:
            parts = [[load.ledger(c.key), load.limit(self._in_force.of(c, self.learned)), c.cost] for c in ask.charges]
            backlog: Any = False
            if ask.backlog is not None:
                backlog = {load.ledger(key): units for key, units in ask.backlog.items()}
            ahead = {load.ledger(key): units for key, units in ask.ahead.items() if units}
            member, klass = ask.who
            return [
                "reserve", parts, ask.scopes, member_name(member), klass, backlog, ahead, ask.weight, lease // MICRO,
                number, ask.lane + 1 if extra else 0, most, _SHARE, ask.most,
            ]  # fmt: skip

        def done(result: Any, load: Load) -> None:
            found[place] = self._answer(ask, number, now, lease, result, load)

        return Wish(write, done)

    def _undo(self, namespace: str, number: str) -> None:
        if not self._given:
            self._trips.tell(namespace, Wish(lambda load: ["undo", number]), None)

    def _answer(
        self, ask: Ask, number: str, now: Instant, lease: int, result: Any, load: Load
    ) -> Sequence[Grant] | Refusal | None:
        if result[0] == "skip":
            return None
        if result[0] == "no":
            _, what, opens, unknown, never, kind, reason = result
            key = load.names[what - 1] if isinstance(what, int) else what
            return Refusal(key, self.here(opens), bool(unknown), bool(never), kind, reason)
        _, permits, marks = result
        opened = now.mono if self._given else time.monotonic_ns()  # the answer may have been long under way
        whole = Slice(
            number, ask.namespace, ask.charges, marks, self._trips.sent(now), ask.who, now.mono + lease, permits,
            opened + OPEN, self.generation,
        )  # fmt: skip
        self._trips.province(ask.namespace).slices[number] = whole
        wanted = min(ask.most, permits)
        whole.undrawn -= wanted
        if whole.undrawn:
            self._slices.keep(whole)
            self._trips.soon()
        return [Part(self.new_id() if i else int(number, 16), whole, now) for i in range(wanted)]

    # -- their end -------------------------------------------------------------------------------------------------

    def settle(
        self,
        grant: Grant,
        now: Instant,
        *,
        actual: Mapping[str, int] = NOTHING,
        used: Mapping[str, int] = NOTHING,
        full: Iterable[str] = (),
        stated: bool = False,
    ) -> Answered:
        if isinstance(grant, Part):
            if not grant.open:
                return Answered(late=True)
            grant.open = False
        full = tuple(full)
        if isinstance(grant, Part) and not (actual or used or full or self._given):
            self._trips.settled(grant.slice, now)
            return Answered()
        told: list[Answered] = []

        def write(load: Load) -> list[Any]:
            number, sent = self._record(grant)
            parts = [
                [
                    load.ledger(charge.key), load.limit(self._in_force.of(charge, self.learned)), charge.cost,
                    actual.get(charge.key, charge.cost), used.get(charge.key, False), mark, charge.key in full,
                ]
                for charge, mark in zip(grant.charges, grant.marks, strict=True)
            ]  # fmt: skip
            return ["settle", number, 1, parts, sent, member_name(grant.who[0]), stated]

        def done(result: Any, load: Load) -> None:
            self._ended(grant)
            held, freed, wake, foreign = result
            told.append(
                Answered(
                    tuple([load.names[i - 1] for i in freed]),
                    frozenset(int(member, 16) for member in wake),
                    {load.names[foreign[i] - 1]: foreign[i + 1] for i in range(0, len(foreign), 2)} or NOTHING,
                    not held,
                )
            )

        self._trips.tell(grant.namespace, Wish(write, self._later(grant.namespace, done, told)), now)
        return told[0] if told else Answered()

    def refund(self, grant: Grant, now: Instant) -> Answered:
        if isinstance(grant, Part):
            if not grant.open:
                return Answered(late=True)
            grant.open = False
        told: list[Answered] = []

        def done(result: Any, load: Load) -> None:
            self._ended(grant)
            held, freed, wake = result
            told.append(
                Answered(tuple([load.names[i - 1] for i in freed]), frozenset(int(m, 16) for m in wake), late=not held)
            )

        wish = Wish(lambda load: self._refund(load, grant, 1), self._later(grant.namespace, done, told))
        self._trips.tell(grant.namespace, wish, now)
        return told[0] if told else Answered()

    def settled(self, whole: Slice, permits: int) -> Wish:
        def write(load: Load) -> list[Any]:
            known = [(c, load.limit(self._in_force.of(c, self.learned)), c.cost * permits) for c in whole.charges]
            parts = [[load.ledger(c.key), limit, units, units, False, 0, False] for c, limit, units in known]
            return ["settle", whole.number, permits, parts, whole.sent, member_name(whole.who[0])]

        return Wish(write, self._told(whole, permits))

    def _told(self, whole: Slice, permits: int) -> Callable[[Any, Load], None]:
        """What to do when the store knows that so many permits of a slice ended."""

        def done(result: Any, load: Load) -> None:
            whole.left -= permits
            if whole.left <= 0:
                self._trips.province(whole.namespace).slices.pop(whole.number, None)
            if result[1]:
                self.heard(whole.namespace, Answered(tuple([load.names[i - 1] for i in result[1]])))

        return done

    def _refund(self, load: Load, grant: Grant | Slice, permits: int) -> list[Any]:
        number = grant.number if isinstance(grant, Slice) else self._record(grant)[0]
        member, klass = grant.who
        parts = [
            [load.ledger(c.key), load.limit(self._in_force.of(c, self.learned)), c.cost * permits]
            for c in grant.charges
        ]
        return ["refund", number, permits, parts, member_name(member), klass]

    def _later(
        self, namespace: str, done: Callable[[Any, Load], None], told: list[Answered]
    ) -> Callable[[Any, Load], None]:
        """`done`, and then `heard`, unless whoever asked waits for it."""

        def after(result: Any, load: Load) -> None:
            done(result, load)
            if not self._given and (told[0].freed or told[0].foreign):
                self.heard(namespace, told[0]._replace(wake=frozenset()))  # the script has woken the others

        return after

    def _record(self, grant: Grant) -> tuple[str, tuple[int, int, int]]:
        """The number of a permit's record, and when it was taken by the server's clock."""
        if isinstance(grant, Part):
            return grant.slice.number, grant.slice.sent
        return f"{grant.id:016x}", self._trips.sent(grant.sent)

    def _ended(self, grant: Grant) -> None:
        if isinstance(grant, Part):
            grant.slice.left -= 1
            if grant.slice.left <= 0:
                self._trips.province(grant.namespace).slices.pop(grant.slice.number, None)

    def close_slices(self, mono: int, everything: bool = False) -> None:
        for whole, rest in self._slices.closed(EVER if everything else mono, self.generation):
            back = partial(self._refund, grant=whole, permits=rest)
            self._trips.tell(whole.namespace, Wish(back, self._told(whole, rest)), None)

    def hold(self, grant: Grant, until: int) -> bool:
        held = [True]

        def keep(result: Any, load: Load) -> None:
            held[0] = bool(result)

        if isinstance(grant, Part):
            if not grant.open:
                return False
            whole = grant.slice
            if whole.left > 1:
                self._part_with(grant, until)
                return True
            whole.lease = until
        grant.lease = until
        lease = self.there(until)
        self._trips.tell(grant.namespace, Wish(lambda load: ["hold", self._record(grant)[0], lease], keep), None)
        return held[0]

    def _part_with(self, grant: Part, until: int) -> None:
        """Give one permit of a slice a record of its own."""
        old, number = grant.slice, f"{self._numbers.getrandbits(63):016x}"
        self._trips.tell(grant.namespace, Wish(lambda load: self._refund(load, old, 1)), None)
        old.left -= 1
        new = Slice(number, old.namespace, old.charges, old.marks, old.sent, old.who, until, 1, 0, 0)
        new.undrawn = 0
        grant.slice, grant.lease = new, until
        self._trips.province(grant.namespace).slices[number] = new
        self._trips.tell(grant.namespace, Wish(lambda load: self._adopt(load, new)), None)

    def withdraw(
        self, keys: Iterable[str], who: Who, now: Instant, missed: Units = NOTHING, left: Units = NOTHING
    ) -> None:
        namespaces: dict[str, list[str]] = {}
        for key in keys:
            namespaces.setdefault(key.partition("/")[0], []).append(key)
        member, klass = who
        for namespace, names in namespaces.items():

            def write(load: Load, names: list[str] = names) -> list[Any]:
                of = [(load.ledger(key), missed.get(key, 0), left.get(key, 0)) for key in names]
                return ["withdraw", of, member_name(member), klass]

            self._trips.tell(namespace, Wish(write), now)

    def transact(self, work: Callable[[], T]) -> T:
        return work()

    @property
    def slices_open(self) -> bool:
        return self._slices.any_open

    # -- for the safe share ----------------------------------------------------------------------------------------

    def peek(self, key: str, now: Instant) -> Ledger | None:
        if (copy := self._trips.province(key.partition("/")[0]).copies.get(key)) is None:
            raise StoreUnavailable(f"{key} was never seen; others may have used it")
        ledger = ledger_at(copy[1], there := over_there(now, self.skew()))
        ledger.room = surely_left(ledger, there, now.mono, copy[2], self._trips.held_from())
        return ledger

    def state(self) -> tuple[int, int]:
        return 0, 0  # nobody can tell; `peek` says what may surely be shared

    def depart(self) -> str:
        self._trips.leave_alone()
        return ""

    def come_back(
        self, mark: str, processes: int, held: Iterable[Grant], replay: Iterable[Callable[[], object]]
    ) -> None:
        if self._trips.broken:
            raise StoreUnavailable(self._trips.broken)
        for grant in held:
            self.adopt(grant)
        for verb in replay:
            verb()
        self._trips.soon(at_once=True)  # whoever makes the next trip tells it first

    def adopt(self, grant: Grant) -> None:
        whole = Slice(
            f"{grant.id:016x}", grant.namespace, grant.charges, list(grant.marks), self._trips.sent(grant.sent),
            grant.who, grant.lease, 1, 0, 0,
        )  # fmt: skip
        whole.undrawn = 0
        self._trips.tell(grant.namespace, Wish(lambda load: self._adopt(load, whole)), None)

    def _adopt(self, load: Load, whole: Slice) -> list[Any]:
        member, klass = whole.who
        parts = [[load.ledger(c.key), load.limit(self._in_force.of(c, self.learned)), c.cost] for c in whole.charges]
        return ["adopt", whole.number, 1, parts, whole.sent, member_name(member), klass, self.there(whole.lease)]

    def regain(self, whole: Slice) -> Wish:

        def write(load: Load) -> list[Any]:
            adopt = self._adopt(load, whole)
            return ["regain", adopt[1], whole.left, adopt[3], *adopt[5:]]

        return Wish(write)

    def spent(self, grant: Grant, actual: Mapping[str, int], at: Instant) -> None:
        end = self._trips.sent(at)

        def write(load: Load) -> list[Any]:
            parts = [
                [load.ledger(c.key), load.limit(self._in_force.of(c, self.learned)), actual.get(c.key, c.cost)]
                for c in grant.charges
            ]
            return ["spent", parts, end]

        self._trips.tell(grant.namespace, Wish(write), None)

    # -- for others ------------------------------------------------------------------------------------------------

    def read(self, now: Callable[[str], Instant]) -> Snapshot:
        self.close_slices(time.monotonic_ns())
        self._trips.flush()
        return read_all(self._trips, self, now)

    def after_fork(self) -> None:
        if self._doors is not None:
            self._doors.abandon()
        self._start()

    def close(self) -> None:
        self.close_slices(0, everything=True)
        self._trips.close()
        self._bells.close()
        if self._doors is not None:
            self._doors.close()
