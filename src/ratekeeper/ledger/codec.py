"""Converts ledgers to integers and back, so that one arithmetic serves every store."""

from __future__ import annotations

import struct

from ratekeeper.ledger.base import Ledger
from ratekeeper.ledger.first import First
from ratekeeper.ledger.fixed import Fixed
from ratekeeper.ledger.flows import Bucket, Sliding, Slots
from ratekeeper.ledger.limit import Instant, Limit, Window

__all__ = ["convert", "create", "pack", "unpack"]

_KINDS: dict[Window, type[Ledger]] = {
    Window.FIXED: Fixed,
    Window.FIRST: First,
    Window.SLIDING: Sliding,
    Window.BUCKET: Bucket,
    Window.SLOTS: Slots,
}
_NUMBER = {kind: number for number, kind in enumerate(Window)}
_WINDOWS = tuple(Window)
_HEAD = 12
_ROW = 16
_FORMAT = 16
"""Added to the number of the kind; it marks the length of the rows. Rows of another length are dropped: they state demand,
not what is spent."""


def create(limit: Limit) -> Ledger:
    """Return a new ledger of the limit's kind."""
    return _KINDS[limit.window](limit)


def convert(ledger: Ledger, limit: Limit, now: Instant) -> Ledger:
    """Convert the ledger to a limit that changed live. If its kind changed, all spent units count as spent just now."""
    ledger.advance(now)
    if isinstance(ledger, _KINDS[limit.window]):
        ledger.adopt(limit, now)
        return ledger
    other = create(limit)
    other.advance(now)
    other.take(ledger.inflight, (0, 0), now)
    other.spend(ledger.used, now)
    other.rows.clear()
    other.cool()
    return other


def pack(ledger: Ledger) -> bytes:
    """Encode all numbers of a ledger as little-endian 64-bit integers."""
    limit = ledger.limit
    own = ledger.dump_own()
    numbers = [
        _NUMBER[limit.window] + _FORMAT, limit.capacity, limit.headroom, limit.period, limit.refill, limit.origin,
        ledger.used, ledger.inflight, ledger.tally, ledger.era, ledger.hot, len(own), *own,
    ]  # fmt: skip
    for (member, priority), row in ledger.rows.items():
        numbers += (member, priority)
        numbers += row
    return struct.pack(f"<{len(numbers)}q", *numbers)


def unpack(raw: bytes, limit: Limit | None = None) -> Ledger:
    """Inverse of `pack`.

    Args:
        raw: the bytes from `pack`.
        limit: the limit as the caller knows it, if it does. If its numbers differ from those in `raw`, the ledger still
            carries the written ones, and the caller decides whether to `convert`.

    Raises:
        ValueError: `raw` is not a ledger.
    """
    if len(raw) % 8 or len(raw) < _HEAD * 8:
        raise ValueError(f"a ledger has at least {_HEAD} whole numbers, not {len(raw)} bytes")
    numbers = list(struct.unpack(f"<{len(raw) // 8}q", raw))
    number, capacity, headroom, period, refill, origin, used, inflight, tally, era, hot, owned = numbers[:_HEAD]
    number, rest = number % _FORMAT, numbers[_HEAD + owned :] if number // _FORMAT == 1 else []
    if owned < 0 or len(rest) % _ROW or not 0 <= number < len(_NUMBER):
        raise ValueError("numbers of a ledger do not add up")
    if limit is None or (number, capacity, headroom, period, refill, origin) != (
        _NUMBER[limit.window], limit.capacity, limit.headroom, limit.period, limit.refill, limit.origin,
    ):  # fmt: skip
        name, unit, scope = (limit.name, limit.unit, limit.scope) if limit else ("", "", ())
        limit = Limit(name, unit, capacity, period, _WINDOWS[number], scope, headroom, refill, origin)
    ledger = create(limit)
    ledger.used, ledger.inflight, ledger.tally, ledger.era, ledger.hot = used, inflight, tally, era, hot
    for i in range(0, len(rest), _ROW):
        ledger.rows[rest[i], rest[i + 1]] = rest[i + 2 : i + _ROW]
    ledger.room = limit.usable - used - inflight
    ledger.cool()
    ledger.load_own(numbers[_HEAD : _HEAD + owned])
    return ledger
