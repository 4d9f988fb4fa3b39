"""When a block of some feedback ends, as a number to compare."""

from __future__ import annotations

from ratekeeper.ledger.limit import Instant
from ratekeeper.rules.call import Block

__all__ = ["until"]


def until(block: Block, now: int) -> int:
    """Unix ns of its end where the server's clock shows `now` without doubt; 0 if none is stated."""
    return 0 if block.wait is None else now + block.wait.length(Instant(0, now, now))
