"""The ledger arithmetic inside Redis and Valkey: the script's text, and the conversion of ledgers to and from its format.

``ledger.lua`` mirrors `ratekeeper.ledger` number for number, ``verbs.lua`` the verbs of a store. The top of each file
explains its calls and its data. `tests/conformance/test_lua.py` drives both sides through the same random worlds.

In the script all instants and periods are whole microseconds on the server's clock, and members are hexadecimal strings.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from ratekeeper.ledger.base import Ledger
from ratekeeper.ledger.codec import create
from ratekeeper.ledger.first import First
from ratekeeper.ledger.fixed import Fixed
from ratekeeper.ledger.flows import Bucket, Sliding
from ratekeeper.ledger.limit import Limit, Window

__all__ = ["from_lua", "limit_of", "member_name", "script", "spec", "to_lua"]

MICRO: Final = 1_000
"""Nanoseconds in a microsecond."""
_NANO: Final = 1_000_000_000
_WINDOWS: Final = tuple(Window)
_UNITS_OF_FIXED: Final = frozenset((0, 3, 4, 6, 7, 9, 17, 20, 21, 22, 23))
"""Indexes of units and window numbers among a fixed ledger's own numbers; all others are instants or lengths."""
_EARLY_OF_FIXED: Final = frozenset((5, 11, 12, 13, 15, 16, 18))
"""Indexes of those that are rounded down: earlier instants and lower bounds."""
_ROW: Final = 16
_NAME: Final = re.compile(r"\b[A-Z][A-Z_]+\b")
_CONSTANTS: Final = re.compile(r"^local ([A-Z_]+(?:, [A-Z_]+)*) = ([^\n\[({]+)$", re.M)
_PARTS: Final = ("ledger.lua", "verbs.lua", "seldom.lua", "call.lua")


def script() -> str:
    """Return the text for ``SCRIPT LOAD``.

    It replaces names in capitals by the numbers or words that they stand for, because every call creates all functions anew
    and pays for each local that a function captures.
    """
    folder = Path(__file__).parent
    text = "\n".join((folder / part).read_text(encoding="utf-8") for part in _PARTS)
    values: dict[str, str] = {}

    def put_in(found: re.Match[str]) -> str:
        return values.get(found[0], found[0])

    def collect(line: re.Match[str]) -> str:
        for name, value in zip(line[1].split(", "), line[2].split(", "), strict=True):
            values[name] = f"({_NAME.sub(put_in, value)})"
        return ""

    return _NAME.sub(put_in, _CONSTANTS.sub(collect, text))


def _up(ns: int) -> int:
    """Convert nanoseconds to microseconds, rounded up."""
    return -(-ns // MICRO)


def member_name(member: int) -> str:
    """Return a member's number in the script's form."""
    return f"{member:016x}"


def spec(limit: Limit) -> list[int]:
    """Return a limit as the script's header lists it."""
    return [
        _WINDOWS.index(limit.window), limit.capacity, limit.headroom, _up(limit.period), limit.refill, _up(limit.origin),
    ]  # fmt: skip


def limit_of(state: list[Any], like: Limit | None = None) -> Limit:
    """Return the limit under which a ledger was written, with the names of `like`."""
    number, capacity, headroom, period, refill, origin = state[2:8]
    name, unit, scope = (like.name, like.unit, like.scope) if like else ("", "", ())
    window = _WINDOWS[number]
    return Limit(name, unit, capacity, period * MICRO, window, scope, headroom, refill, origin * MICRO)


def to_lua(ledger: Ledger, seq: int = 1) -> list[Any]:
    """Convert a ledger to the script's form.

    Fractions of a microsecond are rounded to the side that holds units longer. Eras are copied; they match only if the ledger
    counts time as the server does.

    Args:
        ledger: any kind.
        seq: number of the write; the highest wins.
    """
    own: list[int] = []
    if isinstance(ledger, Fixed):
        numbers = enumerate(ledger.dump_own())
        own = [x if i in _UNITS_OF_FIXED else x // MICRO if i in _EARLY_OF_FIXED else _up(x) for i, x in numbers]
    elif isinstance(ledger, First):
        begun = max(1, ledger.begun // MICRO) if ledger.begun else 0  # 0 means that no window is open
        own = [begun, _up(ledger.anchor), ledger.carry, _up(ledger.last), ledger.owed]
    elif isinstance(ledger, Sliding):
        own = [units if i % 3 == 1 else _up(units) for i, units in enumerate(ledger.marks)]
    elif isinstance(ledger, Bucket):
        own = [*divmod(ledger.level, _NANO), _up(ledger.at)]
    rows: list[int | str] = []
    for (member, priority), row in ledger.rows.items():
        rows += (
            member_name(member),
            priority,
            *row[:5],
            _up(row[5]),
            *row[6:10],
            _up(row[10]),
            *row[11:13],
            _up(row[13]),
        )
    return [
        seq, 0, *spec(ledger.limit), ledger.used, ledger.inflight, ledger.tally, ledger.era, ledger.hot, own, rows,
        0, 0, 0, 0, _ROW,
    ]  # fmt: skip


def from_lua(state: list[Any], limit: Limit | None = None) -> Ledger:
    """Inverse of `to_lua`, exact; instants are on the server's clock, in ns.

    Args:
        state: the decoded copy.
        limit: names for its limit; the numbers are those in `state`.
    """
    limit = limit_of(state, limit)
    ledger = create(limit)
    ledger.used, ledger.inflight, ledger.tally, ledger.era, ledger.hot = state[8:13]
    own, rows = state[13], state[14] if len(state) > 19 and state[19] == _ROW else []
    for r in range(0, len(rows), _ROW):
        row = rows[r + 2 : r + _ROW]
        row[5] *= MICRO
        row[10] *= MICRO
        row[13] *= MICRO
        ledger.rows[int(rows[r], 16), rows[r + 1]] = row
    ledger.room = limit.usable - ledger.used - ledger.inflight
    ledger.cool()
    if isinstance(ledger, Fixed):
        own = [number if i in _UNITS_OF_FIXED else number * MICRO for i, number in enumerate(own)]
    elif isinstance(ledger, First):
        begun, anchor, carry, last, owed = own
        own = [begun * MICRO, anchor * MICRO, carry, last * MICRO, owed]
    elif isinstance(ledger, Sliding):
        own = [units if i % 3 == 1 else units * MICRO for i, units in enumerate(own)]
    elif isinstance(ledger, Bucket):
        level, part, at = own
        own = [level * _NANO + part, at * MICRO]
    ledger.load_own(own)
    return ledger
