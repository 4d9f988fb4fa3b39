"""The server's clock against this machine's steady clock: bounds of their difference, and conversion of instants."""

from __future__ import annotations

from typing import Final

from ratekeeper.ledger.limit import SECOND, Instant
from ratekeeper.stores.redis.protocol import EVER, FAR, MICRO

__all__ = ["ServerClock"]

_DRIFT: Final = 5_000
"""The clocks drift apart by at most one part in this many."""
_WIDE: Final = 300 * SECOND
"""After the clocks jumped against each other, both are believed for this long, ns."""


class ServerClock:
    """Bounds of (the server's clock - this machine's steady clock), ns, from round trips.

    After the server's clock steps, or another server takes its place, both clocks are believed for a while. So units dated on
    the server's clock are neither forgotten early nor promised early.

    Args:
        given: calls supply the instants, so both clocks are one.
    """

    def __init__(self, *, given: bool = False) -> None:
        self.given = given
        self.lo = self.hi = 0
        self.at = 1 if given else 0
        """Steady ns at which the server's clock was last read; 0: never."""
        self.jumps = 0
        """How often the clocks jumped against each other."""
        self._new = (0, 0)
        self._wide = 0

    def learn(self, sent: int, answered: int, stamp: int) -> None:
        """Apply a reading: the server stated `stamp` (us) between the steady instants `sent` and `answered`."""
        if self.given:
            return
        lo, hi = stamp * MICRO - answered, (stamp + 1) * MICRO - sent
        if not self.at:
            self.lo, self.hi = lo, hi
        else:
            drift = max(0, answered - self.at) // _DRIFT
            old_lo, old_hi = self.lo - drift, self.hi + drift
            if self._wide and answered > self._wide:
                self._wide, (old_lo, old_hi) = 0, self._new
            if lo > old_hi or hi < old_lo or self._wide:
                if not self._wide:
                    self.jumps += 1
                    self._wide = answered + _WIDE
                self._new = lo, hi
                self.lo, self.hi = min(lo, old_lo), max(hi, old_hi)
            else:
                self.lo, self.hi = max(lo, old_lo), min(hi, old_hi)
        self.at = answered

    def here(self, instant: int) -> int:
        """Convert a steady instant of the server (us) to this machine's clock (ns), the later if uncertain."""
        return EVER if instant >= FAR else instant * MICRO - self.lo

    def there(self, instant: int) -> int:
        """Convert a steady instant of this machine (ns) to the server's clock (us), the later if uncertain."""
        return FAR if instant >= EVER else -(-(instant + self.hi) // MICRO)

    def stamp(self, now: Instant) -> tuple[int, int, int]:
        """Convert an instant to the server's clock, us: (steady, lo, hi)."""
        mono = (now.mono + self.lo) // MICRO
        return mono, mono + (now.lo - now.mono - self.hi) // MICRO, mono - ((now.mono - now.hi + self.lo) // MICRO)

    def instant(self, now: Instant) -> Instant:
        """Convert an instant of this machine to the server's clock, ns, the earlier if uncertain."""
        return Instant(now.mono + self.lo, now.lo, now.hi)

    def header(self, now: Instant) -> dict[str, int]:
        """Return the request header that states the instant: bounds of (the provider's clock - the server's), us."""
        if self.given:
            return {
                "now": now.mono // MICRO,
                "dlo": (now.lo - now.mono) // MICRO,
                "dhi": -((now.mono - now.hi) // MICRO),
            }
        return {
            "dlo": (now.lo - now.mono - self.hi) // MICRO,
            "dhi": -((now.mono - now.hi + self.lo) // MICRO),
        }
