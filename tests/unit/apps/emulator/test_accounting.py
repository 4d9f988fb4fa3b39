"""The emulator's strict counters."""

from __future__ import annotations

import random

import pytest

from ratekeeper.apps.emulator.accounting import Charge, Meter, StrictLimit

SECOND = 1_000_000_000


def limit(window: str = "fixed", capacity: int = 10, seconds: int = 10, **changes: object) -> StrictLimit:
    """A limit of ten units in ten seconds."""
    return StrictLimit("l", "weight", capacity, seconds * SECOND, window, **changes)  # type: ignore[arg-type]


def arrive(meter: Meter, rule: StrictLimit, at: float, cost: int = 1, owner: str = "ip:a") -> bool:
    """Whether one request is let through at `at` seconds."""
    return meter.arrive(int(at * SECOND), [Charge(rule, owner, cost)]) is None


def test_a_fixed_window_lets_exactly_its_capacity_through_and_starts_again_at_the_edge() -> None:
    """The count ends at a whole multiple of the period, not a period after the first request."""
    meter, rule = Meter(), limit()
    assert arrive(meter, rule, 19.0, 10)
    assert not arrive(meter, rule, 19.999_999)
    assert arrive(meter, rule, 20.0, 10)
    assert not arrive(meter, rule, 29.999_999)


def test_a_fixed_window_obeys_its_origin() -> None:
    """Edges lie `origin` after whole multiples of the period."""
    meter, rule = Meter(), limit(origin=3 * SECOND)
    assert arrive(meter, rule, 22.9, 10)
    assert arrive(meter, rule, 23.0, 10)
    assert not arrive(meter, rule, 32.9)


def test_a_window_from_the_first_request_ends_a_period_after_it() -> None:
    """Such a window is not aligned to the clock."""
    meter, rule = Meter(), limit("first")
    assert arrive(meter, rule, 19.0, 10)
    assert not arrive(meter, rule, 28.9)
    assert arrive(meter, rule, 29.0, 10)


def test_a_sliding_window_holds_every_arrival_for_a_full_period() -> None:
    """Units come back one by one, each a period after it was spent."""
    meter, rule = Meter(), limit("sliding")
    assert arrive(meter, rule, 1.0, 4)
    assert arrive(meter, rule, 5.0, 6)
    assert not arrive(meter, rule, 10.9)
    assert arrive(meter, rule, 11.0, 4)
    assert not arrive(meter, rule, 14.9)
    assert arrive(meter, rule, 15.0, 6)


def test_a_bucket_leaks_at_a_steady_rate() -> None:
    """One unit a second comes back from a bucket of ten in ten seconds; a refill of its own changes the rate."""
    meter, rule = Meter(), limit("bucket")
    assert arrive(meter, rule, 1.0, 10)
    assert not arrive(meter, rule, 1.9)
    assert arrive(meter, rule, 2.0)
    assert arrive(meter, rule, 7.0, 5)
    fast = limit("bucket", refill=100)
    meter = Meter()
    assert arrive(meter, fast, 1.0, 10)
    assert arrive(meter, fast, 1.1)
    assert not arrive(meter, fast, 1.1)


def test_slots_come_back_when_they_are_given_back() -> None:
    """Slots have no period; time alone frees none."""
    meter, rule = Meter(), StrictLimit("s", "slots", 2, 0, "slots")
    assert arrive(meter, rule, 1)
    assert arrive(meter, rule, 1)
    assert not arrive(meter, rule, 1_000)
    meter.credit(1_000 * SECOND, [Charge(rule, "ip:a", 1)])
    assert arrive(meter, rule, 1_000)


def test_owners_have_tallies_of_their_own() -> None:
    """What one address spends does not touch another."""
    meter, rule = Meter(), limit()
    assert arrive(meter, rule, 1, 10, "ip:a")
    assert arrive(meter, rule, 1, 10, "ip:b")
    assert not arrive(meter, rule, 1, 1, "ip:a")


def test_a_refused_request_is_counted_only_where_the_limit_says_so() -> None:
    """Refusals count against an address, but a refused order is not an order; the fullest limit is the one named."""
    weight = limit(counts_refused=True)
    orders = StrictLimit("o", "orders", 1, 60 * SECOND)
    meter = Meter()
    charges = [Charge(weight, "ip:a", 4), Charge(orders, "account:a", 1)]
    assert meter.arrive(SECOND, charges) is None
    refusal = meter.arrive(SECOND, charges)
    assert refusal is not None
    assert refusal.limit is orders
    assert refusal.free_at == 60 * SECOND
    assert meter.used(SECOND, weight, "ip:a") == 8
    assert meter.used(SECOND, orders, "account:a") == 1
    spans = {tally.limit.name: tally.spans[-1] for tally in meter}
    assert (spans["l"].accepted, spans["l"].refused, spans["l"].peak, spans["l"].calls) == (4, 4, 8, 2)


def test_what_costs_nothing_passes_a_full_limit() -> None:
    """A cost of zero needs no room."""
    meter, rule = Meter(), limit()
    assert arrive(meter, rule, 1, 10)
    assert arrive(meter, rule, 1, 0)


def test_a_credit_never_takes_the_count_below_zero() -> None:
    """A fill of yesterday's order may lower today's count, but not below nothing."""
    meter, rule = Meter(), limit()
    assert arrive(meter, rule, 1, 2)
    meter.credit(2 * SECOND, [Charge(rule, "ip:a", 5)])
    assert meter.used(2 * SECOND, rule, "ip:a") == 0
    assert arrive(meter, rule, 3, 10)
    assert not arrive(meter, rule, 3)


@pytest.mark.parametrize("window", ["fixed", "sliding"])
def test_random_arrivals_never_exceed_the_window(window: str) -> None:
    """Recounted by hand from the accepted arrivals, no window holds more than the capacity."""
    dice = random.Random(7)
    meter, rule = Meter(), limit(window)
    taken: list[tuple[int, int]] = []
    now = 0
    for _ in range(2_000):
        now += dice.randrange(SECOND)
        cost = dice.randrange(1, 5)
        if meter.arrive(now, [Charge(rule, "ip:a", cost)]) is None:
            taken.append((now, cost))
        if window == "fixed":
            held = sum(cost for at, cost in taken if at // rule.period == now // rule.period)
        else:
            held = sum(cost for at, cost in taken if now - rule.period < at <= now)
        assert held <= rule.capacity
        assert held == meter.used(now, rule, "ip:a")


def test_an_unknown_kind_of_window_is_an_error() -> None:
    """A rule file with a window that the emulator cannot count must not be let through unmetered."""
    with pytest.raises(ValueError, match="unknown window 'weekly'"):
        arrive(Meter(), limit("weekly"), 1)
