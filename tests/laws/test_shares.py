"""No idle quota, and a fair share of it: what saturating demand gets out of a budget, and who gets it."""

from __future__ import annotations

from statistics import mean

import pytest
from tests.laws.world import MILLI, Account, Crew, Route, Terms, World

from ratekeeper.ledger.limit import SECOND, Limit, Window

CAPACITY = 2400
ROUTES = (Route({0: 10}), Route({0: 20}), Route({0: 40}), Route({0: 1}))
TRIO = (Crew(0, 32, (0,)), Crew(1, 16, (1,)), Crew(2, 16, (2,)))


def run(period: int, crews: tuple[Crew, ...], window: Window = Window.FIXED, seed: int = 1, **more: object) -> Account:
    """Saturate one limit of `CAPACITY` per `period` seconds."""
    terms = Terms(
        seed=seed,
        limits=(Limit("weight", "weight", CAPACITY, period * SECOND, window),),
        routes=ROUTES,
        crews=crews,
        span=period * SECOND * (12 if period > 1 else 30),
        **{"doubt": (5 * MILLI, 5 * MILLI), **more},  # type: ignore[arg-type]
    )
    account = World(terms).run()
    assert not account.leaks
    return account


def critical(period: int) -> Crew:
    """A program whose critical calls want 2 % of the budget, at random moments."""
    return Crew(3, 1, (3,), priority=0, pause=period * SECOND * 50 // CAPACITY)


@pytest.mark.parametrize("chatty", [True, False], ids=["counters", "mute"])
@pytest.mark.parametrize(
    "crews", [(Crew(0, 64, (0, 1)),), TRIO, (*TRIO, critical(60))], ids=["alone", "trio", "critical"]
)
def test_minutes_are_used(crews: tuple[Crew, ...], chatty: bool) -> None:
    """At least 99.5 % of 60 s windows are used, also with something kept for upper classes and for others."""
    accounts = [run(60, crews, chatty=chatty, seed=seed) for seed in (1, 2, 3)]
    assert not sum(account.refusals for account in accounts)
    assert mean(account.shares[0] for account in accounts) >= 0.995


@pytest.mark.parametrize(
    "crews", [(Crew(0, 64, (0, 1)),), TRIO, (*TRIO, critical(1))], ids=["alone", "trio", "critical"]
)
def test_seconds_are_used(crews: tuple[Crew, ...]) -> None:
    """At least 96 % of 1 s windows are used with 20-80 ms each way."""
    account = run(1, crews)
    assert not account.refusals
    assert account.shares[0] >= 0.96


@pytest.mark.parametrize(
    ("window", "period", "least"),
    [
        (Window.FIRST, 60, 0.99),
        (Window.FIRST, 1, 0.90),
        (Window.SLIDING, 60, 0.98),
        (Window.SLIDING, 1, 0.87),  # a charge is held from its sending until a period after its answer
        (Window.BUCKET, 60, 0.99),
        (Window.BUCKET, 1, 0.99),
    ],
)
def test_other_windows_are_used(window: Window, period: int, least: float) -> None:
    """The other kinds lose little more than the time that a call is under way."""
    account = run(period, TRIO, window)
    assert not account.refusals
    assert account.shares[0] >= least


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_unequal_programs_end_equal(seed: int) -> None:
    """Three greedy programs of one class with different costs and workers end within 10 % of each other."""
    taken = run(60, TRIO, seed=seed).taken
    assert max(taken.values()) <= 1.1 * min(taken.values())


def test_a_crowd_does_not_crowd_out() -> None:
    """Two hundred workers of one program leave two programs of two workers what those can use."""
    taken = run(60, (Crew(0, 200, (0,)), Crew(1, 2, (0,)), Crew(2, 2, (0,)))).taken
    assert min(taken[1], taken[2]) >= 0.28 * sum(taken.values())


def test_what_others_do_not_want_is_not_kept() -> None:
    """A program that asks for little costs the greedy ones nothing."""
    account = run(60, (Crew(0, 50, (0,)), Crew(1, 50, (0,)), Crew(2, 1, (3,), pause=SECOND)))
    assert account.shares[0] >= 0.995
    assert account.taken[0] + account.taken[1] >= 0.95 * sum(account.taken.values())


def test_weights_divide() -> None:
    """A program of weight 3 gets about three times as much as one of weight 1."""
    taken = run(60, (Crew(0, 40, (0,)), Crew(1, 40, (0,))), weights=(3, 1)).taken
    assert 2.3 <= taken[0] / taken[1] <= 3.7


@pytest.mark.parametrize("window", [Window.FIXED, Window.FIRST, Window.SLIDING, Window.BUCKET])
def test_critical_calls_go_at_once(window: Window) -> None:
    """Critical calls (2 % of the budget at random moments of a saturated window) wait under 100 ms at p99."""
    account = run(60, (*TRIO, critical(60)), window)
    waits = sorted(account.waits[3])
    assert len(waits) > 200
    assert waits[len(waits) * 99 // 100] < 100 * MILLI
    assert account.shares[0] >= 0.98


def beside(
    window: Window, part: float, low: int = 3, high: int = 0, seed: int = 1, **more: object
) -> tuple[Account, list[int]]:
    """Calls of weight 5 that want `part` of 600 a minute and may wait for 5 s, beside thirty greedy tasks of a class below
    them in another process. Returns what became of it and how long the calls waited, from the third minute on."""
    crew = Crew(0, 1, (0,), priority=high, every=int(300 * SECOND / (600 * part)), patience=5 * SECOND, **more)  # type: ignore[arg-type]
    account = World(
        Terms(
            seed=seed,
            limits=(Limit("weight", "weight", 600, 60 * SECOND, window),),
            routes=(Route({0: 5}), Route({0: 1})),
            crews=(crew, Crew(1, 30, (1,), priority=low)),
            span=720 * SECOND,
            doubt=(5 * MILLI, 5 * MILLI),
            warm=120 * SECOND,
        )
    ).run()
    assert not account.refusals
    assert not account.leaks
    return account, sorted(account.waits[0])


@pytest.mark.parametrize("part", [0.25, 0.5, 0.8])
@pytest.mark.parametrize(
    ("window", "least"),
    # Where units come back all the time, room for the next call must lie there when it comes.
    [(Window.FIXED, 0.99), (Window.FIRST, 0.99), (Window.SLIDING, 0.95), (Window.BUCKET, 0.99)],
)
def test_critical_demand_is_served_first(window: Window, least: float, part: float) -> None:
    """Critical demand of up to 80 % of a limit: none fails, hardly any waits for 100 ms, and the rest is used by others."""
    account, waits = beside(window, part)
    assert account.failed[0] == 0
    assert waits[len(waits) * 99 // 100] < 100 * MILLI
    assert account.shares[0] >= least
    assert account.taken[1] > 0.7 * (1 - part) * 600 * 12


@pytest.mark.parametrize(("high", "low"), [(0, 1), (1, 2), (2, 4), (3, 4)])
def test_each_class_is_served_before_those_below(high: int, low: int) -> None:
    """What holds for critical calls holds for every class against the ones below it."""
    account, waits = beside(Window.FIXED, 0.5, low, high)
    assert account.failed[0] == 0
    assert waits[len(waits) * 99 // 100] < 100 * MILLI
    assert account.shares[0] >= 0.98


@pytest.mark.parametrize("window", [Window.FIXED, Window.FIRST, Window.BUCKET])
@pytest.mark.parametrize("part", [0.25, 0.8])
def test_critical_demand_at_random_is_served_first(window: Window, part: float, scenarios: int) -> None:
    """The same for calls that come at random moments, so that their number differs from minute to minute."""
    late = calls = 0
    for seed in range(max(2, scenarios // 50)):
        account, waits = beside(window, part, seed=seed, random=True)
        assert account.shares[0] >= 0.97
        calls += len(waits) + account.failed[0]
        late += account.failed[0] + sum(wait > 100 * MILLI for wait in waits)
    assert late <= 0.02 * calls


@pytest.mark.parametrize(
    ("window", "most"),
    # Where nothing melts, less is kept for a demand that may be none.
    [(Window.FIXED, 1), (Window.FIRST, 1), (Window.BUCKET, 1), (Window.SLIDING, 10)],
)
def test_a_new_demand_is_believed_from_its_first_call(window: Window, most: int) -> None:
    """Critical calls that began three seconds before thirty low tasks do not fail in the first window either."""
    failed = calls = 0
    for seed in range(4):
        account = World(
            Terms(
                seed=seed,
                limits=(Limit("weight", "weight", 600, 60 * SECOND, window),),
                routes=(Route({0: 5}), Route({0: 1})),
                crews=(
                    Crew(0, 1, (0,), priority=0, every=2 * SECOND, patience=5 * SECOND),
                    Crew(1, 30, (1,), priority=3, since=3 * SECOND),
                ),
                span=70 * SECOND,
            )
        ).run()
        failed += account.failed[0]
        calls += len(account.waits[0])
    assert calls + failed > 130
    assert failed <= most


def test_bursts_of_critical_calls_fit() -> None:
    """Six critical calls at once every ten seconds: a whole burst is left free, whenever it comes."""
    account = World(
        Terms(
            seed=1,
            limits=(Limit("weight", "weight", 600, 60 * SECOND),),
            routes=(Route({0: 5}), Route({0: 1})),
            crews=(
                Crew(0, 6, (0,), priority=0, every=10 * SECOND, patience=5 * SECOND),
                Crew(1, 30, (1,), priority=3),
            ),
            span=720 * SECOND,
            warm=120 * SECOND,
        )
    ).run()
    assert account.failed[0] == 0
    assert max(account.waits[0]) < 100 * MILLI
    assert account.shares[0] >= 0.99


def test_slots_that_critical_calls_had_are_left_to_them() -> None:
    """Eight of ten slots are always in critical hands, call after call, beside thirty low tasks; the others are used."""
    account = World(
        Terms(
            seed=1,
            limits=(Limit("slots", "slots", 10, 0, Window.SLOTS),),
            routes=(Route({0: 1}),),
            crews=(Crew(0, 8, (0,), priority=0, pause=20 * MILLI), Crew(1, 30, (0,), priority=3)),
            span=60 * SECOND,
            warm=5 * SECOND,
        )
    ).run()
    waits = sorted(account.waits[0])
    assert waits[len(waits) * 99 // 100] < 100 * MILLI
    # About 100 ms each way in use: ten calls a second and slot.
    assert account.taken[1] > 0.7 * 2 * 10 * 60
    assert account.taken[0] > 0.7 * 8 * 8 * 60


def test_slots_are_not_left_for_long() -> None:
    """Ten seconds after the last critical call all slots are used by others again."""
    account = World(
        Terms(
            seed=1,
            limits=(Limit("slots", "slots", 10, 0, Window.SLOTS),),
            routes=(Route({0: 1}),),
            crews=(Crew(0, 8, (0,), priority=0, every=1000 * SECOND), Crew(1, 30, (0,), priority=3)),
            span=100 * SECOND,
        )
    ).run()
    assert account.taken[1] > 0.9 * 10 * 10 * 90 * 0.9


def test_low_classes_age() -> None:
    """A background program is served in the end although a higher class of its own process takes all it can."""
    account = run(1, (Crew(0, 64, (1,), priority=2), Crew(0, 4, (1,), priority=4)))
    assert account.taken.get(1, 0) > 0
    assert max(account.waits[1]) < 120 * SECOND


@pytest.mark.parametrize("window", [Window.FIXED, Window.FIRST, Window.SLIDING, Window.BUCKET])
@pytest.mark.parametrize("member", [0, 1], ids=["one process", "two processes"])
def test_big_costs_are_not_starved(window: Window, member: int) -> None:
    """A call that needs most of a budget goes within some windows although small ones want all of it.

    Who is first at an edge is chance, so the longest wait is that of an ordinary world: the middle one of five.
    """
    longest = []
    for seed in range(1, 6):
        account = World(
            Terms(
                seed=seed,
                limits=(Limit("weight", "weight", 100, 10 * SECOND, window),),
                routes=(Route({0: 1}), Route({0: 90})),
                crews=(Crew(0, 40, (0,)), Crew(member, 1, (1,))),
                span=200 * SECOND,
            )
        ).run()
        assert not account.refusals
        assert len(account.waits[1]) >= 5
        assert account.taken[0] > 0
        longest.append(max(account.waits[1]))
    assert sorted(longest)[2] <= 62 * SECOND  # six windows and what blurs their ends


def test_big_costs_get_slots() -> None:
    """A call that needs nearly all slots is served beside many that need one."""
    account = World(
        Terms(
            seed=1,
            limits=(Limit("slots", "slots", 10, 0, Window.SLOTS),),
            routes=(Route({0: 1}), Route({0: 9})),
            crews=(Crew(0, 40, (0,)), Crew(0, 1, (1,)), Crew(1, 1, (1,))),
            span=30 * SECOND,
        )
    ).run()
    assert not account.refusals
    assert min(len(account.waits[1]), len(account.waits[2])) > 8


def test_no_blocking_between_calls_that_share_no_limit() -> None:
    """Calls that wait for one limit do not delay calls on another, in the same process and class."""
    account = World(
        Terms(
            seed=1,
            limits=(Limit("a", "weight", 2, 60 * SECOND), Limit("b", "weight", 1000, SECOND)),
            routes=(Route({0: 1}), Route({1: 1}), Route({0: 1, 1: 1})),
            crews=(Crew(0, 20, (0,)), Crew(0, 20, (2,)), Crew(0, 4, (1,))),
            span=20 * SECOND,
        )
    ).run()
    assert max(account.waits[2]) < 20 * MILLI


def test_a_limit_that_waits_elsewhere_keeps_nothing() -> None:
    """Slots are not kept idle for high calls that wait for their minute's budget."""
    account = World(
        Terms(
            seed=1,
            limits=(Limit("slots", "slots", 4, 0, Window.SLOTS), Limit("minute", "requests", 5, 60 * SECOND)),
            routes=(Route({0: 1, 1: 1}), Route({0: 1})),
            crews=(Crew(0, 20, (0,), priority=1), Crew(1, 20, (0,), priority=1), Crew(1, 20, (1,), priority=3)),
            span=50 * SECOND,
        )
    ).run()
    # Four slots, about 100 ms each way in use: some forty calls a second, if the slots are never idle.
    assert account.taken[2] > 25 * 50


def test_room_is_made_for_strangers() -> None:
    """A program outside that spends 20 % is found; after the first window hardly anything of ours is refused."""
    account = run(60, TRIO, foreign=60 * SECOND * 5 // CAPACITY)
    assert account.found > CAPACITY
    assert account.shares[0] >= 0.95
    later = [at for at in account.refused_at if at > 60 * SECOND]
    assert len(later) <= 5  # of some 1,900: its pace is random, and now and then outruns what is set aside
