"""Whether what lies in a shared store can be meant: a record may hold any bytes, of a bad disk or of another program.

A ledger that cannot be meant counts as lost; so does a permit whose units are not in flight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from ratekeeper.ledger.base import Ledger
from ratekeeper.ledger.first import First
from ratekeeper.ledger.fixed import Fixed
from ratekeeper.ledger.flows import Bucket, Sliding
from ratekeeper.ledger.limit import SECOND
from ratekeeper.rules.numbers import believable
from ratekeeper.rules.reading import FAULTS
from ratekeeper.stores.blocks import BlockState
from ratekeeper.stores.inforce import PACED, REFUSED

__all__ = ["meant", "meant_blocks", "meant_learned", "read_or"]

E = TypeVar("E")
R = TypeVar("R")

_MOST: Final = 1 << 60
_AHEAD: Final = 3650 * 86_400 * SECOND
"""No steady instant of the past that is written down lies further ahead, ns."""


def read_or(otherwise: E, decode: Callable[[bytes], R], raw: bytes | None) -> R | E:
    """A record decoded; `otherwise` if there is none, or none that can be read."""
    if raw is None:
        return otherwise
    try:
        return decode(raw)
    except FAULTS:
        return otherwise


def meant(ledger: Ledger, mono: int) -> bool:
    """Whether the numbers of a ledger that was read at the steady instant `mono` (ns) can be its own."""
    counts = [ledger.used, ledger.inflight, ledger.tally]
    past: list[int] = []
    if isinstance(ledger, Fixed):
        edges, half = ledger.edges, ledger.limit.period // 2
        counts += [ledger.carry, ledger.foreign, ledger.expected, ledger.kept, ledger.again, ledger.held, edges.peak]
        counts += [ledger.least, ledger.loose]
        past = [ledger.stamp, ledger.kept_until, ledger.trial, ledger.probed, ledger.tried, edges.told]
        if not (edges.lo <= edges.hi and 0 <= edges.doubt <= edges.whole <= half):
            return False
    elif isinstance(ledger, First):
        counts += [ledger.begun, ledger.anchor, ledger.carry, ledger.last]
        past = [ledger.begun, ledger.anchor, ledger.last]
    elif isinstance(ledger, Sliding):
        marks = ledger.marks
        if len(marks) % 3 or sum(marks[1::3]) != ledger.used or marks[::3] != sorted(marks[::3]):
            return False
        counts += marks
        past = marks[-3::2]
    elif isinstance(ledger, Bucket):
        counts += [ledger.level]
        past = [ledger.at]
    if min(counts) < 0 or max(counts) > _MOST or any(at > mono + _AHEAD for at in past):
        return False
    if not isinstance(ledger, Fixed) and ledger.era > (mono + _AHEAD) // max(
        1, min(ledger.limit.period or SECOND, SECOND)
    ):
        return False
    if ledger.hot > ledger.era + 1:
        return False
    return all(
        0 <= who[1] < 16 and min(row) >= 0 and max(row) <= _MOST and row[5] <= mono + _AHEAD + 2 * ledger.limit.period
        for who, row in ledger.rows.items()
    )


def meant_blocks(states: list[BlockState]) -> list[BlockState]:
    """Those of the blocks that can be in force."""
    return [state for state in states if state.length is None or state.length >= 0]


def meant_learned(limits: dict[str, dict[str, tuple[int, int]]]) -> dict[str, dict[str, tuple[int, int]]]:
    """Those of the stated limits that can have been stated."""
    return {
        namespace: {
            name: numbers
            for name, numbers in rows.items()
            if (
                min(numbers) >= 0
                if name.startswith(REFUSED)
                else 0 < numbers[0] <= 1000
                if name.startswith(PACED)
                else believable(*numbers)
            )
        }
        for namespace, rows in limits.items()
    }
