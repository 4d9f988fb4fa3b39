"""The permits of one process on the server: taken alone, together or in batches, and ended by later requests."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from ratekeeper.errors import StoreError
from ratekeeper.ledger.decide import Refusal
from ratekeeper.ledger.limit import SECOND, Charge, Instant
from ratekeeper.ledger.shares import Who
from ratekeeper.stores.batching import Batches, BatchPermit
from ratekeeper.stores.records import AS_RESERVED, Answered, Ask, Grant, Settlement, Units
from ratekeeper.stores.redis.client import Client
from ratekeeper.stores.redis.commands import End, Record, adopt, refund, reserve, settle, spent
from ratekeeper.stores.redis.mirror import Mirror
from ratekeeper.stores.redis.protocol import NOTES, Command, Granted, Request, command

__all__ = ["Permits"]

_OPEN: Final = SECOND // 20
"""How long a process hands out permits of one batch, ns."""
_MOST: Final = 256
"""Permits in a batch at most."""
_ENDED: Final = Answered()


class Permits:
    """Takes, holds and ends the permits of this process.

    Args:
        client: sends the commands.
        mirror: the known blocks and limits.
        numbers: draws the numbers of permits.
        heard: called with the effects of a permit's end, when the server has reported them.
        heed: called before a request for permits, see `SharedStore.heed`.
        handed: see `Store.handed`.
        given: see `RedisStore`.
    """

    def __init__(
        self,
        client: Client,
        mirror: Mirror,
        numbers: random.Random,
        heard: Callable[[str, Answered], None],
        heed: Callable[[], object],
        handed: dict[int, Grant | None],
        *,
        given: bool,
    ) -> None:
        self._client = client
        self._heed = heed
        self._connection = client.connection
        self._mirror = mirror
        self._numbers = numbers
        self._heard = heard
        self._given = given
        self._batches: Batches[Record] = Batches(_OPEN, _MOST, partial(numbers.getrandbits, 63), handed)
        self._counting = threading.Lock()

    @property
    def any_open(self) -> bool:
        """Whether any batch has permits left."""
        return self._batches.any_open

    def draw(self, charges: tuple[Charge, ...], who: Who, now: Instant) -> Grant | None:
        """See `Store.draw`."""
        return self._batches.draw(charges, who, now, self._mirror.generation)

    def take(self, asks: Sequence[Ask], now: Callable[[str], Instant]) -> list[Sequence[Grant] | Refusal]:
        """See `Store.reserve_all`."""
        found: list[Sequence[Grant] | Refusal | None] = [None] * len(asks)
        namespaces: dict[str, list[tuple[Command, int]]] = {}
        self._heed()
        self._hear_of_all()
        for place, ask in enumerate(asks):
            at = now(ask.namespace)
            if no := self._mirror.blocks.against(ask.scopes, ask.charges, at.mono, everywhere=True):
                found[place] = no
                continue
            number = self._numbers.getrandbits(63)
            one = self._ask(ask, number, at, found, place)
            namespaces.setdefault(ask.namespace, []).append((one, number))
        for namespace, commands in namespaces.items():
            self._client.namespace(namespace).asked = time.monotonic_ns()
            try:
                self._client.call(namespace, [one for one, _ in commands], now(namespace))
            except StoreError:
                if not self._given:
                    for _, number in commands:  # it may have been granted
                        self._client.post(namespace, command("undo", f"{number:016x}"))
                raise
        later = next((x for x in reversed(found) if isinstance(x, Refusal)), Refusal("", 0, unknown=True))
        return [later if one is None else one for one in found]

    def _hear_of_all(self) -> None:
        """Fetch the blocks for all providers. They lie in a namespace of their own, because a script sees only one.

        Messages report changes. While this process is busy, so does the heartbeat that it sends there four times a second.
        """
        notes = self._client.namespace(NOTES)
        notes.asked = time.monotonic_ns()
        if notes.gen < 0 or self._given:
            self._client.call(NOTES, [])

    def _ask(self, ask: Ask, number: int, now: Instant, found: list[Any], place: int) -> Command:
        """Return the command of one `reserve`; its answer goes to `found[place]`."""
        most = ask.most
        if ask.lane and not ask.ahead:
            most += self._batches.size(ask.charges, ask.who, now.mono, self._connection.took)

        def write(request: Request) -> list[Any]:
            return reserve(request, ask, f"{number:016x}", most)

        def done(told: Granted | Refusal | None) -> None:
            if isinstance(told, Granted):
                record = Grant(number, ask.namespace, ask.charges, told.marks, now, ask.who, now.mono + ask.lease)
                found[place] = self._granted(ask, record, told.permits)
            elif told is not None:
                found[place] = told._replace(available_at=self._connection.clock.here(told.available_at))

        return Command(write, done)

    def _granted(self, ask: Ask, grant: Grant, permits: int) -> list[Grant]:
        """Return the permits that calls wait for, and keep those granted beyond them."""
        now = grant.sent
        opened = now.mono if self._given else time.monotonic_ns()  # the answer may have been long under way
        record = Record(grant, self._connection.clock.stamp(now), permits, opened + _OPEN, self._mirror.generation)
        self._client.namespace(ask.namespace).records[record.number] = record
        wanted = min(ask.most, permits)
        record.undrawn -= wanted
        if record.undrawn:
            self._batches.keep(record)
            self._client.soon()
        return [BatchPermit(self._numbers.getrandbits(63) if i else grant.id, record, now) for i in range(wanted)]

    # -- their end -------------------------------------------------------------------------------------------------

    def settle(self, grant: Grant, now: Instant, told: Settlement = AS_RESERVED) -> Answered:
        """See `Store.settle`."""
        if isinstance(grant, BatchPermit):
            if not grant.open:
                return Answered(late=True)
            if told is AS_RESERVED and not self._given:
                self._count(grant)
                return _ENDED
        return self._end(grant, now, partial(settle, told=told) if told.sent else refund)

    def _count(self, grant: BatchPermit[Record]) -> None:
        """Count a permit of a record as spent at its reserved cost; one command reports all of them."""
        record, first = grant.batch, False

        def counted() -> int:
            with self._counting:
                permits, record.counted, record.told = record.counted, 0, False
            return permits

        end = End(record, 0, counted)
        told = Command(partial(settle, end=end), partial(self._ended, end))
        try:
            with self._counting:
                record.counted += 1
                grant.open = False
                if record.told:
                    return  # the command that takes the count is pending
                record.told = first = True
            self._client.post(record.record.namespace, told)
        except BaseException:
            if first:  # a command that is sent twice ends its permits once
                self._client.post(record.record.namespace, told)
            raise

    def _end(self, grant: Grant, now: Instant, item: Callable[..., list[Any]]) -> Answered:
        """Send the end of a permit; returns its effects as far as they are known already."""
        ends: list[End] = []
        found: list[Answered] = []

        def write(request: Request) -> list[Any]:
            if not ends:
                ends.append(End(self._record(grant)))
            return item(request, end=ends[0])

        def done(told: Answered) -> None:
            found.append(told)
            self._ended(ends[0], told)

        told = Command(write, done)
        try:
            self._close(grant)
            self._client.post(grant.namespace, told, now)
        except StoreError:
            raise
        except BaseException:
            self._close(grant)
            self._client.post(grant.namespace, told, now)  # a command that is sent twice ends its permit once
            raise
        return found[0] if found else _ENDED

    @staticmethod
    def _close(grant: Grant) -> None:
        if isinstance(grant, BatchPermit):
            grant.open = False

    def _record(self, grant: Grant) -> Record:
        """Return the permit's record on the server."""
        if isinstance(grant, BatchPermit):
            record: Record = grant.batch
            return record
        return Record(grant, self._connection.clock.stamp(grant.sent))

    def _ended(self, end: End, told: Answered) -> None:
        """Apply the server's confirmation that permits of a record ended."""
        self._let_go(end)
        if not self._given and (told.released or told.foreign):  # else the caller waits for it
            self._heard(end.of.record.namespace, told._replace(wake=frozenset()))  # the script has woken the others

    def _let_go(self, end: End) -> None:
        end.of.left -= end.permits
        if end.of.left <= 0:
            self._client.namespace(end.of.record.namespace).records.pop(end.of.number, None)

    def close_batches(self, mono: int) -> None:
        """Give back the undrawn permits of batches that are over."""
        for record, rest in self._batches.close(mono, self._mirror.generation):
            end = End(record, rest)
            self._client.post(record.record.namespace, Command(partial(refund, end=end), partial(self._ended, end)))

    def hold(self, grant: Grant, until: int) -> bool:
        """See `Store.hold`."""
        if isinstance(grant, BatchPermit):
            if not grant.open:
                return False
            if grant.batch.left > 1:
                self._part_with(grant, until)
                return True
            grant.batch.record.lease = until
        grant.lease = until
        lease, held = self._connection.clock.there(until), [True]
        self._client.post(grant.namespace, Command(lambda _: ["hold", self._record(grant).number, lease], held.append))
        return held[-1]

    def _part_with(self, grant: BatchPermit[Record], until: int) -> None:
        """Give one permit of a batch a record of its own."""
        old, end = grant.batch, End(grant.batch)
        self._client.post(grant.namespace, Command(partial(refund, end=end), lambda _: self._let_go(end)))
        marks, sent = old.record.marks, old.record.sent
        own = Grant(self._numbers.getrandbits(63), grant.namespace, grant.charges, marks, sent, grant.who, until)
        new = Record(own, old.sent)
        new.undrawn = 0
        grant.batch, grant.lease = new, until
        self._client.namespace(grant.namespace).records[new.number] = new
        self._adopt(new)

    def adopt(self, grant: Grant) -> None:
        """See `SharedStore.adopt`."""
        self._adopt(self._record(grant))

    def spent(self, grant: Grant, actual: Units, at: Instant) -> None:
        """See `SharedStore.spent`."""
        end = self._connection.clock.stamp(at)
        self._client.post(grant.namespace, Command(partial(spent, grant=grant, actual=actual, end=end)))

    def _adopt(self, record: Record) -> None:
        def write(request: Request) -> list[Any]:
            return adopt(request, record, self._connection.clock.there(record.record.lease))

        self._client.post(record.record.namespace, Command(write))
