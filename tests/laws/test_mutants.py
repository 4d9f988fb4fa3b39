"""The law tests can fail: a ledger that is wrong in one place is caught by the same worlds."""

from __future__ import annotations

import pytest
from tests.laws.draw import draw, untidy
from tests.laws.world import World

from ratekeeper.ledger import codec, edge, fixed
from ratekeeper.ledger.edge import Edges
from ratekeeper.ledger.first import First
from ratekeeper.ledger.fixed import Fixed
from ratekeeper.ledger.flows import Bucket, Sliding, Slots
from ratekeeper.ledger.limit import Instant, Window
from ratekeeper.ledger.shares import Who
from ratekeeper.stores.memory import MemoryStore

WORLDS = [386, 546, *range(1000)]
"""A thousand. Two that show what few others do come first."""


class ChargedAtSend(Fixed):
    """What most limiters do: the window is the one in which the request left."""

    __slots__ = ()

    def take(self, cost: int, who: Who, now: Instant) -> None:
        super().take(cost, who, now)
        super().settle(cost, cost, Instant(now.mono, now.lo, now.lo))

    def settle(self, reserved: int, actual: int, at: Instant) -> None:
        pass

    def refund(self, reserved: int) -> None:
        self.used -= reserved
        self.room += reserved


class WithoutCarry(Fixed):
    """Forgets that what settles near an edge may lie behind it."""

    __slots__ = ()

    def settle(self, reserved: int, actual: int, at: Instant) -> None:
        carried = self.carry
        super().settle(reserved, actual, at)
        self.carry = carried


class TrustsCounters(Fixed):
    """Takes a used-counter for all that counts, as if nothing had been under way."""

    __slots__ = ()

    def observe(self, used: int, sent: Instant, mark: int, reserved: int, actual: int, now: Instant) -> int:
        self.used = min(self.used, used)
        self._place()
        return 0


class AnyAnswerBegins(First):
    """Believes that every answer proves that the window has begun."""

    __slots__ = ()

    def settle(self, reserved: int, actual: int, at: Instant) -> None:
        self.owed = 0
        super().settle(reserved, actual, at)


class BeginsAtSend(First):
    """Believes that the window begins when the first request leaves."""

    __slots__ = ()

    def take(self, cost: int, who: Who, now: Instant) -> None:
        super().take(cost, who, now)
        self.anchor = self.anchor or now.mono


class LeavesAfterSend(Sliding):
    """Lets a charge leave one period after it was sent."""

    __slots__ = ()

    def take(self, cost: int, who: Who, now: Instant) -> None:
        super().take(cost, who, now)
        super().settle(cost, cost, now)

    def settle(self, reserved: int, actual: int, at: Instant) -> None:
        pass

    def refund(self, reserved: int) -> None:
        pass


class DrainsInFlight(Bucket):
    """Lets a charge drain from when it was sent."""

    __slots__ = ()

    def take(self, cost: int, who: Who, now: Instant) -> None:
        super().take(cost, who, now)
        super().settle(cost, cost, now)

    def settle(self, reserved: int, actual: int, at: Instant) -> None:
        pass

    def refund(self, reserved: int) -> None:
        pass


class FreeAtOnce(Slots):
    """Counts one unit for a call that takes several."""

    __slots__ = ()

    def take(self, cost: int, who: Who, now: Instant) -> None:
        super().take(min(cost, 1), who, now)

    def refund(self, reserved: int) -> None:
        super().refund(min(reserved, 1))


class TakesLowerForLater(Edges):
    """Believes that a counter that is a little lower has dropped, and that the answers came in the order of the calls."""

    __slots__ = ()

    def counter(self, used: int, sent: int, mark: int, now: int, origin: int) -> bool:
        agrees = used >= self.peak or self._between(self.sent, now, origin)
        self.peak, self.sent, self.told, self.mark = used, sent, now, mark
        return agrees


class TakesAnswerForEdge(Edges):
    """Believes that the window turned over when the answer that shows it came."""

    __slots__ = ()

    def _between(self, after: int, before: int, origin: int) -> bool:
        return super()._between(before - 1, before, origin)


class NeverOpens(Edges):
    """Begins with what dates say, and sees no reason to doubt it."""

    __slots__ = ()

    def open(self, now: Instant) -> None:
        self.doubt = self.whole


class BelievesDates(Edges):
    """Takes the middle of what dates say for the clock that counts."""

    __slots__ = ()

    def begin(self, now: Instant) -> None:
        self.whole = self.doubt = 0
        self.dated(now)

    def dated(self, now: Instant) -> bool:
        self.lo = self.hi = (now.lo + now.hi) // 2 - now.mono
        return True

    def counter(self, used: int, sent: int, mark: int, now: int, origin: int) -> bool:
        return True


class AnyEdge(Edges):
    """Believes in the nearest edge where a drop may be of two."""

    __slots__ = ()

    def _between(self, after: int, before: int, origin: int) -> bool:
        edge = ((after + before + self.lo + self.hi) // 2 - origin + self.period // 2) // self.period * self.period
        self.lo, self.hi = max(self.lo, edge + origin - before), min(self.hi, edge + origin - after)
        if self.lo > self.hi:
            self.lo = self.hi = (self.lo + self.hi) // 2
        return True


def caught(*kinds: Window) -> bool:
    """Whether the provider refuses something in some world."""
    return any(World(draw(seed, kinds)).run().refusals for seed in WORLDS)


@pytest.mark.parametrize(
    "mutant",
    [
        ChargedAtSend,
        WithoutCarry,
        TrustsCounters,
        AnyAnswerBegins,
        BeginsAtSend,
        LeavesAfterSend,
        DrainsInFlight,
        FreeAtOnce,
    ],
    ids=lambda mutant: mutant.__name__,
)
def test_a_wrong_ledger_is_caught(mutant: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger with one mistake is refused in some worlds."""
    window = next(window for window, kind in codec._KINDS.items() if issubclass(mutant, kind))
    monkeypatch.setitem(codec._KINDS, window, mutant)
    assert caught(window)


def test_a_clock_without_doubt_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ledgers that believe the middle of what dates say, without doubt, are refused in some worlds."""
    monkeypatch.setattr(fixed, "Edges", BelievesDates)
    assert caught(Window.FIXED)


def test_dates_that_are_believed_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Members who take the clock that dates for the one that counts are refused in some worlds."""
    monkeypatch.setattr(edge, "FIRST_DOUBT", 0)
    monkeypatch.setattr(edge, "BLIND_DOUBT", 0)
    assert any(World(untidy(seed)).run().refusals for seed in WORLDS)


@pytest.mark.parametrize(
    "mutant", [TakesLowerForLater, TakesAnswerForEdge, NeverOpens, AnyEdge], ids=lambda mutant: mutant.__name__
)
def test_wrong_edges_are_caught(mutant: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds that are learned in a wrong way are refused in some worlds, or show programs that are not there."""
    monkeypatch.setattr(fixed, "Edges", mutant)
    accounts = (World(untidy(seed)).run() for seed in WORLDS)
    assert any(account.refusals or account.found for account in accounts)


def test_forgotten_permits_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that gives back what a dead or silent holder had is refused in some worlds."""

    def give_back(self: MemoryStore, namespace: str, now: Instant) -> None:
        for _, held in self._due(namespace, now.mono):
            for key, units in held:
                ledger = self._open(key)
                assert ledger is not None
                ledger.refund(units)

    monkeypatch.setattr(MemoryStore, "_reap", give_back)
    assert caught(Window.FIXED, Window.SLIDING)
