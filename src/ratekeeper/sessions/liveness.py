"""Liveness of a stream: whether it is alive, when it is renewed, and the backoff between dials.

Pure: instants and dice are arguments. All instants are steady seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ratekeeper.policy.retry import backoff
from ratekeeper.policy.shared import Count, Steady

__all__ = ["Dials", "Gaps", "Liveness"]


class Gaps(NamedTuple):
    """The usual time between messages.

    Attributes:
        usual: seconds, a decaying mean; 0 while too few messages came.
        last: when the last came; None: none yet.
        heard_of: how many came.
    """

    usual: float = 0.0
    last: float | None = None
    heard_of: int = 0

    def heard(self, now: float) -> Gaps:
        """Return the gaps after one more message."""
        if self.last is None:
            return Gaps(0.0, now, 1)
        gap = now - self.last
        usual = gap if self.heard_of == 1 else self.usual + (gap - self.usual) / min(self.heard_of, 50)
        return Gaps(usual, now, self.heard_of + 1)


class Dials(NamedTuple):
    """What all processes know of dials to one host.

    Attributes:
        failures: dials in a row that failed.
        following: no process dials before this.
        at: when it was written; a state older than `Liveness.forget` is ignored.
    """

    failures: Count = 0
    following: Steady = 0.0
    at: Steady = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Liveness:
    """When a stream counts as dead, and how patiently it is replaced. All in seconds; the values are our choices unless
    stated otherwise.

    Attributes:
        stale_after: a stream without any message for this long is stale; None: `stale_gaps` times the usual gap.
        stale_gaps: see above.
        stale_least, stale_most: bounds of that product; the latter also applies while no gap is known.
        ping_every: between two of our pings, where the provider does not state its interval.
        ping_patience: how long a pong may take while nothing else arrives either.
        dial_within: how long a dial may take once it is allowed.
        setup_within: how long the user's `setup` of a new connection may take.
        first, factor, longest: backoff between dials, with full jitter.
        good_after: a connection that lasted this long, or brought data, was a good one.
        forget: failures are forgotten after this long without a dial.
        roll_before: how long before the provider would close it a connection is replaced; at most a tenth of its life.
        roll_spread: share of its life by which that is earlier at random, so that not all are replaced at one moment.
        overlap: how long both connections are read after the new one has brought its first data.
        overlap_most: how long to wait for the first data of the new one.
    """

    stale_after: float | None = None
    stale_gaps: float = 20.0
    stale_least: float = 5.0
    stale_most: float = 60.0
    ping_every: float = 20.0
    ping_patience: float = 20.0
    dial_within: float = 15.0
    setup_within: float = 60.0
    first: float = 1.0
    factor: float = 2.0
    longest: float = 60.0
    good_after: float = 10.0
    forget: float = 600.0
    roll_before: float = 600.0
    roll_spread: float = 0.05
    overlap: float = 2.0
    overlap_most: float = 30.0

    def patience(self, gaps: Gaps) -> float:
        """Return the seconds without a message after which the stream is stale."""
        if self.stale_after is not None:
            return self.stale_after
        if gaps.heard_of < 3:
            return self.stale_most
        return min(max(gaps.usual * self.stale_gaps, self.stale_least), self.stale_most)

    def stale(self, gaps: Gaps, opened: float, now: float) -> bool:
        """Whether no message has come for too long."""
        return now - (opened if gaps.last is None else max(gaps.last, opened)) > self.patience(gaps)

    def good(self, opened: float, now: float, *, data: bool) -> bool:
        """Whether a connection has proved itself: one that is accepted and closed again has not."""
        return data or now - opened >= self.good_after

    def roll_at(self, opened: float, lifetime: float, dice: float) -> float | None:
        """Return when to replace a connection that the provider closes after `lifetime` seconds; None: it does not."""
        if lifetime <= 0:
            return None
        return opened + lifetime - min(self.roll_before, lifetime / 10) - dice * self.roll_spread * lifetime

    # --- dialling, all processes together -------------------------------------------------------------------------

    def turn(self, dials: Dials, now: float, dice: float) -> tuple[float, Dials]:
        """Return the seconds until the host may be dialled, and the state to write if that is now.

        In trouble, one dial of all processes goes first, and the next only after the backoff.
        """
        past = abs(now - dials.at) > self.forget or dials.following - dials.at > 2 * self.longest
        if not dials.failures or past:
            return 0.0, Dials(0, 0.0, now)
        if now < dials.following:
            return dials.following - now, dials
        return 0.0, Dials(dials.failures, now + self._delay(dials.failures, dice), now)

    def failed(self, dials: Dials, now: float, dice: float, *, good: bool) -> Dials:
        """Return the state after a failed dial, or a lost connection; `good`: the connection had proved itself."""
        old = dials.failures if now - dials.at <= self.forget else 0
        failures = max(1, old) if good else old + 1
        return Dials(failures, max(dials.following if old else 0.0, now + self._delay(failures, dice)), now)

    def _delay(self, failures: int, dice: float) -> float:
        return dice * backoff(failures, self.first, self.factor, self.longest)
