"""How each address fares at each provider: warnings, failures to connect, and the rests that follow from them.

A ban is a block on the scope of the address and stops every call of it. A rest is softer: the address is left while
another one will do. Both lie in the store, so every process knows them.
"""

from __future__ import annotations

import struct
import time
from typing import Final

from ratekeeper.ledger.limit import SECOND
from ratekeeper.pools.when import age, stamp
from ratekeeper.stores.base import Store

__all__ = ["REST", "WARNINGS", "Health"]

REST: Final = "rest"
"""The kind of block by which an address is left for a while."""
WARNINGS: Final = 3
"""Refusals by the provider after which an address is left."""

_CALM: Final = 600 * SECOND
"""Without trouble for so long, warnings are forgotten, ns; failures and rests after the longest rest on top."""
_AFTER_WARNINGS: Final = (60 * SECOND, 900 * SECOND)
_AFTER_FAILURE: Final = (5 * SECOND, 300 * SECOND)
"""First and longest rest; each further one is twice as long, ns."""
_NOTE: Final = struct.Struct("<qqq")


class Health:
    """Warnings and failures of addresses, counted together by all processes of the store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._failing: set[str] = set()

    def warned(self, place: str) -> tuple[int, int]:
        """The provider refused a call from there.

        Args:
            place: ``namespace/egress:name``.

        Returns:
            Warnings so far, and how long the address now rests, ns (0: it does not).
        """

        def count_it() -> tuple[int, int]:
            count, rests = self._count(f"warnings:{place}")
            count += 1
            length = 0
            if count >= WARNINGS:
                length = self._rest(place, _AFTER_WARNINGS, rests, f"{count} warnings")
                count, rests = 0, rests + 1
            self._store.remember(f"warnings:{place}", _NOTE.pack(count, rests, stamp(self._store)))
            return (count or WARNINGS), length

        return self._store.transact(count_it)

    def failed(self, place: str) -> int:
        """No connection could be made from there. Returns how long the address now rests, ns."""

        def count_it() -> int:
            count, rests = self._count(f"failures:{place}")
            if self.rests(place):  # calls that were on their way at the first failure are no news
                return 0
            length = self._rest(place, _AFTER_FAILURE, rests, "no connection")
            self._store.remember(f"failures:{place}", _NOTE.pack(count + 1, rests + 1, stamp(self._store)))
            return length

        length = self._store.transact(count_it)
        if length:
            self._failing.add(place)
        return length

    def worked(self, place: str) -> None:
        """An answer came from there: the next failure is a first one again."""
        if place in self._failing and not self.rests(place):
            self._failing.discard(place)
            self._store.remember(f"failures:{place}", _NOTE.pack(0, 0, stamp(self._store)))

    def rests(self, place: str) -> int:
        """Steady ns until which it is left; 0: it is not."""
        return self._until(place, REST)

    def banned(self, scope: str) -> int:
        """Steady ns until which a ban (or any other block) holds that scope; 0: none does."""
        return self._until(scope, "")

    def warnings(self, place: str) -> int:
        """Warnings that are not forgotten."""
        return self._count(f"warnings:{place}")[0]

    def _until(self, scope: str, kind: str) -> int:
        blocks = self._store.blocks
        if not blocks:
            return 0
        now = time.monotonic_ns()
        ends = [state.ends() for state in blocks.states() if state.scope == scope and kind in ("", state.kind)]
        return max([end for end in ends if end > now], default=0)

    def _count(self, topic: str) -> tuple[int, int]:
        note = self._store.remember(topic)
        if note is None or len(note) != _NOTE.size:
            return 0, 0
        count, rests, at = _NOTE.unpack(note)
        if not (0 <= count < 1 << 32 and 0 <= rests < 1 << 32):
            return 0, 0  # garbled
        old = age(self._store, at)
        if old < 0:
            return 0, 0
        # A rest is itself calm: how many there were must outlive the longest.
        return 0 if old > _CALM else count, 0 if old > _CALM + _AFTER_WARNINGS[1] else rests

    def _rest(self, place: str, lengths: tuple[int, int], rests: int, why: str) -> int:
        first, longest = lengths
        length = min(longest, first << min(rests, 20))
        self._store.block(place, length, REST, why, time.monotonic_ns(), time.time_ns())
        return length
