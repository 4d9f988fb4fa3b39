"""The limit in force: the rule file's, unless the provider has stated another, reduced after refusals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from ratekeeper.ledger.limit import SECOND, Charge, Limit, Window
from ratekeeper.rules.numbers import in_force

__all__ = ["DOUBTED", "PACED", "REFUSED", "InForce", "stale"]

PACED: Final = "~pace/"
"""Prefix of rows among the stated limits that give the part of a ledger's limit to use: (thousandths, unused ns). No limit of
a rule file can have such a name, so these rows never overwrite what the provider states."""

REFUSED: Final = "~refused/"
"""Prefix of rows that count refusals of a scope in a row without a stated end: (times, steady ns of the store until which it
is held)."""
DOUBTED: Final = "~doubted/"
"""Prefix of rows that record which statements all processes doubt: (1, steady ns of the store until which its ledger was held
for it)."""
_DAY: Final = 86_400 * SECOND
"""A statement that was doubted holds no ledger again for so long, ns."""
_KNOWN: Final = 4096
_WHOLE: Final = 1000
"""The part that is a whole limit, thousandths."""


def stale(name: str, numbers: tuple[int, int], mono: int) -> str | None:
    """Whether a row of the stated limits may go, because no call needs it.

    Args:
        name, numbers: the row.
        mono: the store's steady clock, ns.

    Returns:
        None: it stays. Else the ledger without which it may go; empty: it may go in any case.
    """
    if name.startswith(REFUSED):
        return "" if numbers[1] <= mono else None
    if name.startswith(DOUBTED):
        return "" if numbers[1] + _DAY <= mono else None
    if name.startswith(PACED) and numbers[0] >= _WHOLE:
        return ""
    ledger = name.removeprefix(PACED)
    return ledger if "/" in ledger else None


class InForce:
    """Looks up the limit in force for a charge."""

    def __init__(self) -> None:
        self._limits: dict[str, tuple[Limit, Limit, Limit]] = {}
        """By key: the file's limit, the stated one, and the part of it in use."""

    def of(self, charge: Charge, learned: Mapping[str, Mapping[str, tuple[int, int]]]) -> Limit:
        """Return the limit under which `charge` is taken.

        Args:
            charge: on a limit of the rule file.
            learned: by namespace and limit, or limit and scope, what the provider stated: (capacity in units, period in ns);
                and rows that begin with `PACED`.
        """
        if not learned:
            return charge.limit
        known = self._limits.get(charge.key)
        if known is None or known[0] is not charge.limit:
            if len(self._limits) >= _KNOWN:
                self._limits.clear()
            known = self._limits[charge.key] = self._find(charge, learned)
        _, stated, used = known
        if used.usable < charge.cost <= stated.usable:
            # A charge larger than the part in use still fits the limit: it must wait, not be refused for ever.
            return replace(used, headroom=used.capacity - charge.cost)
        return used

    def _find(self, charge: Charge, learned: Mapping[str, Mapping[str, tuple[int, int]]]) -> tuple[Limit, Limit, Limit]:
        namespace, _, ledger = charge.key.partition("/")
        known = learned.get(namespace, {})
        stated = in_force(charge.limit, ledger, known)
        part = known.get(PACED + ledger, (1000, 0))[0]
        return charge.limit, stated, _part_of(stated, part) if 0 < part < 1000 else stated

    def forget(self) -> None:
        """Forget the looked-up limits, because `learned` changed."""
        self._limits.clear()


def _part_of(limit: Limit, part: int) -> Limit:
    """Return a limit scaled to `part` thousandths: its units, and the refill rate of a bucket."""
    usable = max(1, limit.usable * part // 1000)
    refill = max(1, (limit.refill or limit.capacity) * part // 1000) if limit.window is Window.BUCKET else limit.refill
    return replace(limit, headroom=limit.capacity - usable, refill=refill)
