"""What one process knows of one provider's ledgers on the server, and what it has still to tell it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any, Final

from ratekeeper.ledger.limit import Instant
from ratekeeper.stores.blocks import EVERYWHERE
from ratekeeper.stores.redis.line import Load
from ratekeeper.stores.redis.slices import Slice

__all__ = ["NOTES", "Province", "Wish", "province_of"]

NOTES: Final = "notes"
"""The namespace of notes, tasks and of what holds for all providers; it has no ledgers."""


def province_of(scope: str) -> str:
    """The namespace in which a block of that scope is kept."""
    namespace = scope.partition("/")[0]
    return NOTES if namespace == EVERYWHERE else namespace


class Wish:
    """Something for the next script call.

    Args:
        write: makes the item, given the load it travels with.
        done: called with the item's result and the load; may be left out.
    """

    __slots__ = ("done", "write")

    def __init__(self, write: Callable[[Load], list[Any]], done: Callable[[Any, Load], object] | None = None) -> None:
        self.write = write
        self.done = done


class Province:
    """One namespace.

    Attributes:
        epoch: the server's; -1 before anything is held there.
        away: whether this process went on without the server since the last reply.
        gen: the generation of blocks and limits that is known; -1 before the first reply.
        copies: ledger key -> (number of the write, the ledger as it lies on the server, steady ns at which that was told).
            Should the server lose its memory, whoever wrote last has the last word.
        slices: records of permits that are in flight or can be drawn, by number: given again to a server without memory.
        pending: what has still to be told, oldest first.
        rides: what callers wait for while a round trip is under way; the next takes it along.
        plain: permits by slice that were spent at their reserved cost: told together.
        now: the latest instant on the provider's clock that was given.
        members: how many were heard of lately.
        beat, silence: steady ns of the last sign of life, and how long after it others wait for the next, ns.
        asked: steady ns at which anything was wanted last.
        greeted: number of the connection over which the server was last asked who it is.
        jumps: how often the server's clock had jumped when its ledgers were last told.
    """

    __slots__ = (
        "asked",
        "away",
        "beat",
        "copies",
        "epoch",
        "gen",
        "greeted",
        "jumps",
        "lock",
        "members",
        "name",
        "now",
        "pending",
        "plain",
        "rides",
        "silence",
        "slices",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.gen = self.epoch = -1
        self.away = False
        self.copies: dict[str, tuple[int, bytes, int]] = {}
        self.slices: dict[str, Slice] = {}
        self.pending: list[Wish] = []
        self.rides: list[Any] = []
        self.plain: dict[Slice, int] = {}
        self.now: Instant | None = None
        self.members = 1
        self.beat = self.silence = self.asked = 0
        self.greeted = -1
        self.jumps = 0
        self.lock = threading.Lock()

    def put_back(self, wishes: Iterable[Wish]) -> None:
        """The call came to nothing."""
        with self.lock:
            self.pending[:0] = wishes
