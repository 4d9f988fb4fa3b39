"""The law of instants: refused at every moment before the one that a refusal names, allowed at it (other things equal)."""

from __future__ import annotations

import random

import pytest

from ratekeeper.ledger.base import Ledger
from ratekeeper.ledger.codec import create, pack, unpack
from ratekeeper.ledger.decide import Refusal, refusal
from ratekeeper.ledger.first import First
from ratekeeper.ledger.limit import SECOND, Charge, Instant, Limit, Window

pytestmark = pytest.mark.usefixtures("dates_count")

KINDS = [Window.FIXED, Window.FIRST, Window.SLIDING, Window.BUCKET]
WORLDS = 400


def decide(ledger: Ledger, cost: int, who: tuple[int, int], at: Instant) -> Refusal | None:
    """The decision on a copy of the ledger at that moment."""
    copy = unpack(pack(ledger), ledger.limit)
    if at.mono >= copy.turn:
        copy.advance(at)
    return refusal([Charge("k", copy.limit, cost)], [copy], who, at, {}, 0, [])


def history(r: random.Random, limit: Limit, begin: int) -> tuple[Ledger, int]:
    """A ledger with a random past in which all that was sent was answered, and the steady instant it has reached."""
    ledger = create(limit)
    mono, flying = begin, []
    for _ in range(r.randrange(4, 60)):
        mono += r.randrange(limit.period // 10 + 1)
        now = Instant(mono, mono, mono)
        if now.mono >= ledger.turn:
            ledger.advance(now)
        who = (r.choice((1, 2, 3)), r.choice((0, 2, 2, 4)))
        cost = r.randint(1, max(1, limit.usable // 8))
        if ledger.available_at(cost, who, now) == 0:
            ledger.take(cost, who, now)
            flying.append(cost)
        elif limit.window is Window.FIXED:  # elsewhere others' claims end with a span that no limit knows of
            ledger.refused(who, cost, cost * r.choice((1, 3)), 1 << 60, 1)
        while flying and r.random() < 0.6:
            ledger.settle(flying[0], flying.pop(0), now)
    for cost in flying:
        ledger.settle(cost, cost, now)
    return ledger, mono


@pytest.mark.parametrize("window", KINDS)
def test_the_named_instant_is_exact(window: Window) -> None:
    """One nanosecond before it the call is refused, at it the call may go; nothing before it would do."""
    named = 0
    for seed in range(WORLDS):
        r = random.Random(seed)
        period = r.choice((SECOND, 7 * SECOND, 60 * SECOND))
        limit = Limit("l", "weight", r.choice((10, 100, 2400)), period, window, refill=r.choice((0, 7)))
        ledger, mono = history(r, limit, 1000 * period + r.randrange(period))
        who = (r.choice((1, 2, 9)), r.choice((0, 2, 4)))
        cost = r.randint(1, limit.usable // r.choice((1, 4, 10)))
        no = decide(ledger, cost, who, Instant(mono, mono, mono))
        if no is None or no.unknown:
            continue
        named += 1
        assert no.available_at > mono
        for at in {mono, no.available_at - 1, *(r.randrange(mono, no.available_at) for _ in range(20))}:
            early = f"seed {seed}: allowed {no.available_at - at} ns early"
            assert decide(ledger, cost, who, Instant(at, at, at)) is not None, early
        then = decide(ledger, cost, who, Instant(no.available_at, no.available_at, no.available_at))
        if then is not None and isinstance(ledger, First) and ledger.carry:
            assert (
                then.available_at > no.available_at
            )  # what is carried over the end may leave no room there: the end tells the next instant
            continue
        assert then is None, f"seed {seed}"
    assert named > WORLDS // 5


def test_the_latest_of_several_limits_counts() -> None:
    """With several limits the instant named is when the last of them opens, and never comes before all of the others'."""
    now = Instant(10 * SECOND, 10 * SECOND, 10 * SECOND)
    ledgers, charges = [], []
    for period in (5, 60):
        limit = Limit(f"l{period}", "weight", 10, period * SECOND)
        ledger = create(limit)
        ledger.advance(now)
        ledger.take(10, (1, 0), now)
        ledger.settle(10, 10, now)
        ledgers.append(ledger)
        charges.append(Charge(limit.name, limit, 1))
    no = refusal(charges, ledgers, (1, 0), now, {}, 0, [])
    assert no == Refusal("l60", 60 * SECOND)


def test_unknown_when_only_a_holder_can_tell() -> None:
    """Where units are in flight and no clock frees them, the refusal says that nobody can know, and when to look again."""
    now = Instant(SECOND, SECOND, SECOND)
    ledger = create(Limit("slots", "slots", 1, 0, Window.SLOTS))
    ledger.advance(now)
    ledger.take(1, (1, 0), now)
    no = refusal([Charge("k", ledger.limit, 1)], [ledger], (2, 0), now, {}, 77, [])
    assert no is not None and no.unknown and no.available_at == 77


def test_never() -> None:
    """A cost above what may ever be used is refused for good, headroom included."""
    now = Instant(SECOND, SECOND, SECOND)
    ledger = create(Limit("l", "weight", 10, SECOND, headroom=1))
    ledger.advance(now)
    no = refusal([Charge("k", ledger.limit, 10)], [ledger], (1, 0), now, {}, 0, [])
    assert no is not None and no.never
