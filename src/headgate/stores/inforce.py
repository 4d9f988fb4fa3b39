"""The limit in force: the rule file's, unless the provider has stated another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from headgate.ledger.limit import Charge, Limit

__all__ = ["InForce"]


class InForce:
    """Limits as they hold now, looked up by charge."""

    def __init__(self) -> None:
        self._limits: dict[str, tuple[Limit, Limit]] = {}

    def of(self, charge: Charge, learned: Mapping[str, Mapping[str, tuple[int, int]]]) -> Limit:
        """The limit under which `charge` is taken.

        Args:
            charge: on a limit of the rule file.
            learned: by namespace and limit, or limit and scope, what the provider stated: (capacity in units, period in ns).
        """
        if not learned or charge.limit.own:
            return charge.limit
        limit, stated = self._limits.get(charge.key, (None, None))
        if limit is charge.limit and stated is not None:
            return stated
        limit = stated = charge.limit
        namespace, _, ledger = charge.key.partition("/")
        known = learned.get(namespace, {})
        numbers = known.get(ledger) or known.get(limit.name)
        if numbers is not None:
            capacity, period = numbers
            headroom = limit.headroom * capacity // limit.capacity
            refill = max(1, limit.refill * capacity // limit.capacity) if limit.refill else 0
            try:
                stated = replace(limit, capacity=capacity, period=period, headroom=headroom, refill=refill)
            except ValueError:
                pass  # a provider that states nonsense is not believed
        self._limits[charge.key] = limit, stated
        return stated

    def forget(self) -> None:
        """What is learned has changed."""
        self._limits.clear()
