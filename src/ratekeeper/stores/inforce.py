"""The limit in force: the rule file's, unless the provider has stated another; less of it after refusals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from ratekeeper.ledger.limit import Charge, Limit, Window
from ratekeeper.rules.numbers import in_force

__all__ = ["PACED", "REFUSED", "InForce"]

PACED: Final = "~pace/"
"""Begins the rows among the stated limits that say how much of a ledger's limit to use: (thousandths, ns that mean nothing).
No limit of a rule file can have such a name, so what the provider states is never overwritten."""

REFUSED: Final = "~refused/"
"""Begins the rows that say how often in a row a scope was refused without a stated end: (times, steady ns of the store
until which it is held)."""


class InForce:
    """Limits as they hold now, looked up by charge."""

    def __init__(self) -> None:
        self._limits: dict[str, tuple[Limit, Limit, Limit]] = {}
        """By key: the file's limit, the stated one, and what is used of it."""

    def of(self, charge: Charge, learned: Mapping[str, Mapping[str, tuple[int, int]]]) -> Limit:
        """The limit under which `charge` is taken.

        Args:
            charge: on a limit of the rule file.
            learned: by namespace and limit, or limit and scope, what the provider stated: (capacity in units, period in
                ns); and rows that begin with `PACED`.
        """
        if not learned:
            return charge.limit
        known = self._limits.get(charge.key)
        if known is None or known[0] is not charge.limit:
            known = self._limits[charge.key] = self._find(charge, learned)
        _, stated, used = known
        if used.usable < charge.cost <= stated.usable:
            # One that is larger than the part in use still fits the limit: it must wait for it, not be refused for ever.
            return replace(used, headroom=used.capacity - charge.cost)
        return used

    def _find(self, charge: Charge, learned: Mapping[str, Mapping[str, tuple[int, int]]]) -> tuple[Limit, Limit, Limit]:
        namespace, _, ledger = charge.key.partition("/")
        known = learned.get(namespace, {})
        stated = in_force(charge.limit, ledger, known)
        part = known.get(PACED + ledger, (1000, 0))[0]
        return charge.limit, stated, _part_of(stated, part) if 0 < part < 1000 else stated

    def forget(self) -> None:
        """What is learned has changed."""
        self._limits.clear()


def _part_of(limit: Limit, part: int) -> Limit:
    """So many thousandths of a limit: of its units, and of the rate at which a bucket's come back."""
    usable = max(1, limit.usable * part // 1000)
    refill = max(1, (limit.refill or limit.capacity) * part // 1000) if limit.window is Window.BUCKET else limit.refill
    return replace(limit, headroom=limit.capacity - usable, refill=refill)
