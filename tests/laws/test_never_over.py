"""Law 1, never over; law 3, nothing lost: random worlds, each named by its number."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tests.laws.draw import draw, untidy
from tests.laws.long_run import lessons
from tests.laws.world import MILLI, Crew, Route, Terms, World

from ratekeeper.ledger.limit import SECOND, Limit
from ratekeeper.stores.host import HostStore

BATCHES = 20
BLIND_WORLDS = 400
"""A rate of one in a hundred wants that many."""


@pytest.mark.parametrize("batch", range(BATCHES))
def test_no_refusal_no_leak_in_random_worlds(batch: int, scenarios: int) -> None:
    """Whatever delays, losses, clocks, cancellations and crashes: the provider refuses nothing, and all units come back."""
    for seed in range(batch, scenarios, BATCHES):
        terms = draw(seed)
        account = World(terms).run()
        assert not account.refusals, f"{account.refusals} refusals; {terms.describe()}"
        assert not account.leaks, f"{account.leaks}; {terms.describe()}"
        assert account.tries < 60 * account.calls + 2000, f"{account.tries} tries; {terms.describe()}"


@pytest.mark.parametrize("batch", range(BATCHES))
def test_no_refusal_where_dates_are_wrong(batch: int, scenarios: int) -> None:
    """The same where answers are dated by other clocks than the one that counts: apart, drifting, several that disagree. What
    a counter shows after an edge is never taken for another program."""
    for seed in range(batch, scenarios, BATCHES):
        terms = untidy(seed)
        account = World(terms).run()
        assert not account.refusals, f"{account.refusals} refusals; {terms.describe()}"
        assert not account.found, f"{account.found} units taken for another program's; {terms.describe()}"
        assert not account.leaks, f"{account.leaks}; {terms.describe()}"
        assert account.tries < 60 * account.calls + 2000, f"{account.tries} tries; {terms.describe()}"


OFFSETS = (-1.5, -0.4, -0.05, 0.05, 0.4, 1.5)


def minutes(ahead: float, seed: int, chatty: bool, longest: int = 150 * MILLI) -> Terms:
    """Eight minutes of three busy programs whose provider dates its answers by a clock that is so many seconds ahead."""
    weight = Limit("weight", "weight", 2400, 60 * SECOND)
    return Terms(
        seed=seed, limits=(weight,), routes=(Route({0: 10}),), crews=tuple(Crew(member, 13, (0,)) for member in range(3)),
        span=480 * SECOND, up=(10 * MILLI, longest), down=(10 * MILLI, longest), learns="date",
        doubt=(300 * MILLI, 300 * MILLI), ahead=(int(ahead * SECOND),), chatty=chatty,
    )  # fmt: skip


def shares(world: World) -> list[float]:
    """The part of each full minute that was used, by the clock that counts."""
    used: dict[int, int] = {}
    for at, cost in world.servers[0].log:
        used[at // (60 * SECOND)] = used.get(at // (60 * SECOND), 0) + cost
    return [used[minute] / 2400 for minute in sorted(used)[1:-1]]


@pytest.mark.parametrize("ahead", OFFSETS)
def test_full_minutes_where_dates_are_wrong(ahead: float) -> None:
    """With counters nothing is refused, and each full minute is used to 98 %, also while the edge is learned."""
    for seed, longest in ((1, 150 * MILLI), (2, 50 * MILLI), (3, 1200 * MILLI)):
        world = World(minutes(ahead, seed, chatty=True, longest=longest))
        account = world.run()
        assert not (account.refusals or account.found)
        assert min(shares(world)) >= 0.98


@pytest.mark.parametrize("ahead", OFFSETS)
def test_one_refusal_teaches_where_there_are_no_counters(ahead: float) -> None:
    """Without counters a clock that is far off costs one refusal, one that is a little off none."""
    for seed in range(4):
        world = World(minutes(ahead, seed, chatty=False))
        assert world.run().refusals <= (abs(ahead) > 0.25)
        assert min(shares(world)) >= 0.97


@pytest.mark.parametrize("ahead", [0.4, 1.5])
def test_one_refusal_teaches_whenever_programs_start(ahead: float) -> None:
    """What a window holds is not known well when its first calls may have counted in the one before: a call that goes well
    is no proof then that the next has begun."""
    for seed in range(40):
        r = random.Random(seed)
        pause = r.choice((0, 0, 100, 300)) * MILLI
        crews = tuple(Crew(member, 4, (0, 1, 2), pause=pause, since=r.randrange(8 * SECOND)) for member in range(3))
        terms = Terms(
            seed=seed, limits=(Limit("weight", "weight", 700, 8 * SECOND),), crews=crews,
            routes=(Route({0: 10}), Route({0: 20}), Route({0: 5})), span=40 * SECOND, up=(MILLI, 150 * MILLI),
            down=(MILLI, 20 * MILLI), learns="date", doubt=(300 * MILLI, 300 * MILLI), ahead=(int(ahead * SECOND),),
            chatty=False,
        )  # fmt: skip
        assert World(terms).run().refusals <= 1, seed


def test_a_lesson_without_counters_is_learned_once() -> None:
    """In random worlds without counters refusals come within one round trip of the first: what is under way then. A limit in
    a hundred needs a second lesson, because one refusal does not tell on which side of the dates the clock is."""
    assert sum(lessons(seed) > 0 for seed in range(BLIND_WORLDS)) <= BLIND_WORLDS // 100


def test_the_same_on_disk(tmp_path: Path) -> None:
    """The shared store on disk keeps the law by the same arithmetic."""
    for seed in range(16):
        store = HostStore(tmp_path / str(seed))
        account = World((draw, untidy)[seed % 2](seed), store).run()
        store.close()
        assert not account.refusals
        assert not account.leaks
