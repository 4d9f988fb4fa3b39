"""The health of each address at each provider: room left, warnings, failures to connect, and the rests that follow.

A ban is a block on the scope of the address and stops all its calls. A rest is softer: calls avoid the address while another
one is available. The store keeps both, so every process knows them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Final

from ratekeeper.ledger.limit import Charge, Instant
from ratekeeper.policy.shared import WARNINGS, Trouble
from ratekeeper.stores.base import Store

__all__ = ["REST", "WARNINGS", "AddressHealth", "Gauge"]

REST: Final = "rest"
"""The kind of block that makes calls avoid an address for a while."""


class AddressHealth:
    """Counts warnings and failures of addresses, together for all processes of the store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._failing: set[str] = set()

    def warned(self, place: str) -> tuple[int, int]:
        """Count a refusal by the provider.

        Args:
            place: ``namespace/egress:name``.

        Returns:
            Warnings so far, and how long the address now rests, ns (0: it does not).
        """
        count, length = self._store.update(f"warnings:{place}", Trouble, _warned)
        if length:
            self._rest(place, length, f"{count} warnings")
        return count, length

    def failed(self, place: str) -> int:
        """Count a failure to connect. Returns how long the address now rests, ns."""
        if self.rests(place):  # calls in flight at the first failure add nothing
            return 0
        return self.counted(place)

    def counted(self, place: str) -> int:
        """`failed`, for a failure that certainly counts."""
        self._failing.add(place)
        length = self._store.update(f"failures:{place}", Trouble, _failed)
        self._rest(place, length, "no connection")
        return length

    def rest_first(self, place: str) -> None:
        """Rest an address as after a first failure, until the real number of failures is known."""
        self._rest(place, Trouble().failed(self._store.present())[1], "no connection")

    def worked(self, place: str) -> None:
        """An answer came: the next failure counts as a first one again."""
        if self.mended(place):
            self._failing.discard(place)
            self._store.update(f"failures:{place}", Trouble, lambda old, now: (None, None))

    def mended(self, place: str) -> bool:
        """Whether an answer from there ends a series of failures."""
        return place in self._failing and not self.rests(place)

    def rests(self, place: str) -> int:
        """Return the steady ns until which the address rests; 0: it does not."""
        return self._until(place, REST)

    def banned(self, scope: str) -> int:
        """Return the steady ns until which a ban (or any other block) holds that scope; 0: none does."""
        return self._until(scope, "")

    def warnings(self, place: str) -> int:
        """Return the number of warnings that have not expired."""
        found = self._store.get(f"warnings:{place}", Trouble)
        return 0 if found is None else found.still(self._store.present()).number

    def _until(self, scope: str, kind: str) -> int:
        blocks = self._store.blocks
        if not blocks:
            return 0
        now = time.monotonic_ns()
        ends = [state.ends() for state in blocks.states() if state.scope == scope and kind in ("", state.kind)]
        return max([end for end in ends if end > now], default=0)

    def _rest(self, place: str, length: int, why: str) -> None:
        self._store.block(place, length, REST, why, time.monotonic_ns(), time.time_ns())


class Gauge:
    """Estimates the room left on the limits of each scope, as this process saw it. It only orders the attempts; the store
    decides what may be spent."""

    def __init__(self) -> None:
        self._left: dict[str, dict[str, tuple[float, int, int]]] = {}

    def share(self, scope: str) -> float:
        """Return the share left, 0 to 1, of the limit with the least left."""
        mono = time.monotonic_ns()
        limits = self._left.get(scope)
        if not limits:
            return 1.0
        return min(min(1.0, left + (mono - at) / period) for left, at, period in list(limits.values()))

    def took(self, scope: str, charges: Iterable[Charge]) -> None:
        """Note a granted permit."""
        mono = time.monotonic_ns()
        for name, charge in _of_address(charges):
            left, at, period = self._left.setdefault(scope, {}).get(name, (1.0, mono, charge.limit.period))
            left = min(1.0, left + (mono - at) / period) - charge.cost / charge.limit.usable
            self._left[scope][name] = max(0.0, left), mono, period

    def full(self, scope: str, charges: Iterable[Charge]) -> None:
        """Note that the scope has no room."""
        mono = time.monotonic_ns()
        for name, charge in _of_address(charges):
            self._left.setdefault(scope, {})[name] = 0.0, mono, charge.limit.period

    def told(self, scope: str, charges: Iterable[Charge], used: Mapping[str, int]) -> None:
        """Note the provider's own counters."""
        mono = time.monotonic_ns()
        for name, charge in _of_address(charges):
            if charge.key in used:
                left = 1.0 - used[charge.key] / charge.limit.usable
                self._left.setdefault(scope, {})[name] = max(0.0, left), mono, charge.limit.period


def _of_address(charges: Iterable[Charge]) -> list[tuple[str, Charge]]:
    return [(c.limit.name, c) for c in charges if "ip" in c.limit.scope and c.limit.period]


def _warned(old: Trouble | None, now: Instant) -> tuple[Trouble, tuple[int, int]]:
    return (old or Trouble()).warned(now)


def _failed(old: Trouble | None, now: Instant) -> tuple[Trouble, int]:
    return (old or Trouble()).failed(now)
