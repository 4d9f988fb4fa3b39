"""Who is banned: addresses that go on after refusals, for longer each time.

Instants are nanoseconds of the emulator's clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .incoming import Failure

__all__ = ["Address", "Bans"]

LONGEST = 3 * 86_400 * 1_000_000_000
"""Three days: the longest ban Binance states."""


@dataclass(slots=True)
class Address:
    """What the emulator remembers of one source address."""

    ip: str
    arrivals: int = 0
    throttled: int = 0
    """Refusals for a limit that was full."""
    shut_out: int = 0
    """Refusals because of a ban."""
    strikes: int = 0
    """Refusals since it was last calm or banned."""
    last_strike: int = 0
    banned_until: int = 0
    cause: Failure | None = None
    """The answer with which the ban began, if it was a refusal."""
    bans: list[tuple[int, int]] = field(default_factory=list)
    """Every ban so far: from, until."""


class Bans:
    """Counts refusals per address and bans at the threshold; every further ban of an address lasts twice as long.

    Args:
        after: refusals at which a ban begins; 0 never bans.
        first: nanoseconds of the first ban of an address.
        calm: nanoseconds without a refusal after which the strikes are forgotten (the bans are not).
    """

    def __init__(self, *, after: int, first: int, calm: int) -> None:
        self.after = after
        self.first = first
        self.calm = calm
        self._addresses: dict[str, Address] = {}

    def address(self, ip: str) -> Address:
        """The record of `ip`, made when first seen."""
        found = self._addresses.get(ip)
        if found is None:
            found = self._addresses[ip] = Address(ip)
        return found

    def all(self) -> list[Address]:
        """Every address seen so far."""
        return list(self._addresses.values())

    def strike(self, address: Address, now: int) -> bool:
        """Note one refusal; true if it was one too many and a ban begins."""
        if now - address.last_strike > self.calm:
            address.strikes = 0
        address.last_strike = now
        address.strikes += 1
        if not self.after or address.strikes < self.after:
            return False
        self.ban(address, now, min(LONGEST, self.first << min(len(address.bans), 40)))
        return True

    @staticmethod
    def ban(address: Address, now: int, span: int, cause: Failure | None = None) -> None:
        """Ban `address` for `span` nanoseconds from `now`."""
        address.strikes = 0
        address.cause = cause
        address.banned_until = now + span
        address.bans.append((now, now + span))
