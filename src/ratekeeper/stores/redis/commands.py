"""The commands about permits, as items of a request; the top of ``lua/verbs.lua`` explains each field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ratekeeper.stores.batching import SHARE, Batch
from ratekeeper.stores.records import AS_RESERVED, Ask, Grant, Settlement, Units
from ratekeeper.stores.redis.lua import member_name
from ratekeeper.stores.redis.protocol import MICRO, Request

__all__ = ["End", "Record", "adopt", "refund", "regain", "reserve", "settle", "spent"]


class Record(Batch):
    """Permits under one record of the server. Its key is the number of `record` in hexadecimal.

    Attributes:
        sent: when it was taken, on the server's clock: (steady, lo, hi), us.
        counted: permits spent at their reserved cost that no request has reported yet.
        told: whether the command that reports them is pending.
        untold: permits whose end, of any kind, no request has reported yet.
    """

    __slots__ = ("counted", "number", "sent", "told", "untold")

    def __init__(
        self, record: Grant, sent: tuple[int, int, int], permits: int = 1, until: int = 0, generation: int = 0
    ) -> None:
        super().__init__(record.charges, record, permits, until, generation)
        self.number = f"{record.id:016x}"
        self.sent = sent
        self.counted = 0
        self.told = False
        self.untold = permits


class End:
    """Permits of one record that end together. A repeated request reports the same permits, so they end once.

    Args:
        of: their record.
        permits: how many.
        count: returns how many when they are first reported, instead of `permits`.
    """

    __slots__ = ("_count", "left", "of", "permits")

    def __init__(self, of: Record, permits: int = 1, count: Callable[[], int] | None = None) -> None:
        self.of = of
        self.permits = permits
        self.left = -1
        self._count = count

    def tell(self) -> None:
        """Report them now; `left` is the number of the record's permits that later requests report."""
        if self.left < 0:
            if self._count is not None:
                self.permits = self._count()
            self.left = self.of.untold = self.of.untold - self.permits


def reserve(request: Request, ask: Ask, number: str, most: int) -> list[Any]:
    """Return the item that takes permits.

    Args:
        request: the request that carries it.
        ask: what is wanted.
        number: of the record.
        most: permits at most, where a limit is far from full.
    """
    charges = request.charges(ask.charges)
    backlog: Any = False
    if ask.backlog is not None:
        backlog = {request.ledger(key): units for key, units in ask.backlog.items()}
    ahead = {request.ledger(key): units for key, units in ask.ahead.items() if units}
    member, priority = ask.who
    return [
        "reserve", charges, ask.scopes, member_name(member), priority, backlog, ahead, ask.weight, ask.lease // MICRO, number,
        ask.lane, most, SHARE, ask.most,
    ]  # fmt: skip


def settle(request: Request, end: End, told: Settlement = AS_RESERVED) -> list[Any]:
    """Return the item that spends permits of a record, as in `Store.settle`."""
    end.tell()
    of, permits = end.of, end.permits
    charges = request.charges(of.charges, permits)
    for part, charge, mark in zip(charges, of.charges, of.record.marks, strict=True):
        key = charge.key
        part += (told.actual.get(key, part[2]), told.used.get(key, False), mark, key in told.full)
    return ["settle", of.number, permits, charges, of.sent, member_name(of.record.who[0]), told.stated, end.left]


def refund(request: Request, end: End) -> list[Any]:
    """Return the item that gives permits of a record back."""
    end.tell()
    of, permits = end.of, end.permits
    member, priority = of.record.who
    return ["refund", of.number, permits, request.charges(of.charges, permits), member_name(member), priority, end.left]


def adopt(request: Request, of: Record, lease: int) -> list[Any]:
    """Return the item that puts a permit of the fallback in flight; `lease`: its end, us."""
    member, priority = of.record.who
    return ["adopt", of.number, 1, request.charges(of.charges), of.sent, member_name(member), priority, lease]


def regain(request: Request, of: Record, lease: int) -> list[Any]:
    """Return the item that restores a record to a server that lost its memory; `lease`: its end, us."""
    member, priority = of.record.who
    return ["regain", of.number, of.left, request.charges(of.charges), member_name(member), priority, lease]


def spent(request: Request, grant: Grant, actual: Units, end: tuple[int, int, int]) -> list[Any]:
    """Return the item that records what the fallback spent by the instant `end` of the server's clock (us)."""
    charges = request.charges(grant.charges)
    for part, charge in zip(charges, grant.charges, strict=True):
        part[2] = actual.get(charge.key, charge.cost)
    return ["spent", charges, end]
