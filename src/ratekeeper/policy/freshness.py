"""For how long a cached response is fresh, and when a stale one is better than none. Pure."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

__all__ = ["Cache", "Kept", "Service"]

Seconds = Annotated[float, Meta(ge=0, title="seconds from 0")]


class Service(StrEnum):
    """Where an answer came from."""

    FRESH = "fresh"
    """From the provider, for this call."""
    HIT = "hit"
    """Kept, and not older than its time to live."""
    SHARED = "shared"
    """Asked for by another caller at the same moment."""
    BATCHED = "batched"
    """Part of an answer to several calls."""
    STALE = "stale"
    """Kept and older than that: the provider gave none."""
    REFUSED = "refused"
    """Made here, as the provider would answer: a ban or another block holds the call."""


class Kept(NamedTuple):
    """One cached response: when it was asked for (steady seconds of the store), and its time to live, seconds."""

    at: float
    ttl: float


class Cache(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which answers are kept and given again. Times to live come from the rule file (``[keep]``).

    Attributes:
        ttl: seconds by route (``binance-usdm GET /fapi/v1/klines``; ``*`` stands for anything), over the rule file's; 0:
            never kept.
        market: seconds for reads of market data that neither `ttl` nor the rule file names.
        stale_if_error: seconds beyond its time to live for which an answer serves if the provider gives none.
        stale_while_banned: the same while a ban or an open breaker forbids to ask.
        most_bytes: of all cached responses of a machine (or of a shared server) together.
        largest: bytes of one answer that is still kept.
    """

    ttl: dict[str, Seconds] = {}
    market: Seconds = 1.0
    stale_if_error: Seconds = 300.0
    stale_while_banned: Seconds = 3600.0
    most_bytes: Annotated[int, Meta(ge=1 << 20, title="bytes from 1 MiB")] = 64 << 20
    largest: Annotated[int, Meta(ge=0, title="bytes from 0")] = 16 << 20

    def fresh(self, kept: Kept, age: float) -> bool:
        """Whether an answer of that age (seconds, the latest it may be) is as good as a new one."""
        return -1.0 <= age <= kept.ttl

    def serves(self, kept: Kept, age: float, *, banned: bool) -> bool:
        """Whether a stale answer is better than none."""
        beyond = max(self.stale_while_banned, self.stale_if_error) if banned else self.stale_if_error
        return -1.0 <= age <= kept.ttl + beyond

    def keep(self, ttl: float) -> float:
        """Seconds after which an answer is of no use to anybody."""
        return ttl + max(self.stale_if_error, self.stale_while_banned)
