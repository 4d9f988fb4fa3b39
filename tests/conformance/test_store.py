"""What every store must do, whatever it is made of: one suite, each test once per store.

`stores()` opens the store as one more process would see it. Instants are made up; they lie far ahead of the machine's own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import redis
from tests.support.notes import noted, write
from tests.support.server import Server

from ratekeeper.gate.waits import Wait, Waits, read_waits
from ratekeeper.ledger.decide import Refusal
from ratekeeper.ledger.limit import SECOND, Charge, Instant, Limit, Window
from ratekeeper.stores.base import Store
from ratekeeper.stores.host import HostStore
from ratekeeper.stores.memory import MemoryStore
from ratekeeper.stores.records import LEASE, Ask, Grant, LedgerView, Settlement
from ratekeeper.stores.redis.store import RedisStore
from ratekeeper.stores.worker import Worker

Open = Callable[[], Store]

BLIND, WHOLE = SECOND // 4, 2 * SECOND
"""How far the clock that counts may be from the one that dates, before and after a counter was seen."""
BASE = (time.monotonic_ns() // (3600 * SECOND) + 1000) * 3600 * SECOND + BLIND
MINUTE = 60 * SECOND
ME, YOU = (11, 2), (22, 2)
WEIGHT = Limit("weight", "weight", 100, MINUTE)
ORDERS = Limit("orders", "orders", 5, 10 * SECOND)
SLOTS = Limit("slots", "slots", 2, 0, Window.SLOTS)
NS = "shop"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for all tests of this suite."""
    with Server(tmp_path_factory.mktemp("server")) as made:
        yield made


@pytest.fixture(params=["memory", "host", "redis"])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens the store; all openings of a test see the same ledgers."""
    opened: list[Store] = []
    memory = MemoryStore()

    def one() -> Store:
        if request.param == "redis":
            store: Store = RedisStore(request.getfixturevalue("server").url, given=True)
            if not opened:
                redis.Redis(port=request.getfixturevalue("server").port).flushall()
        else:
            store = memory if request.param == "memory" else HostStore(tmp_path / "home")
        opened.append(store)
        return store

    yield one
    for store in opened:
        store.close()


def at(seconds: float, doubt: float = 0) -> Instant:
    """The moment so many seconds after the beginning, at which a window has surely begun: so much later than its edge as the
    clock that counts may be behind the one that dates, where no counter was seen."""
    mono = BASE + int(seconds * SECOND)
    return Instant(mono, mono - int(doubt * SECOND), mono + int(doubt * SECOND))


def charge(limit: Limit, cost: int, scope: str = "ip:a") -> Charge:
    """A cost on a limit of the provider."""
    return Charge(f"{NS}/{limit.name}/{scope}", limit, cost)


def reserve(store: Store, *charges: Charge, who: tuple[int, int] = ME, t: float = 0, **more: object) -> Grant | Refusal:
    """Ask for a permit."""
    more.setdefault("scopes", (f"{NS}/ip:a",))
    scopes = more.pop("scopes")
    return store.reserve(Ask(NS, charges, scopes, who, **more), at(t))  # type: ignore[arg-type]


def granted(store: Store, *charges: Charge, who: tuple[int, int] = ME, t: float = 0, **more: object) -> Grant:
    """Ask for a permit and get it."""
    got = reserve(store, *charges, who=who, t=t, **more)
    assert isinstance(got, Grant), got
    return got


def refused(store: Store, *charges: Charge, who: tuple[int, int] = ME, t: float = 0, **more: object) -> Refusal:
    """Ask for a permit in vain."""
    got = reserve(store, *charges, who=who, t=t, **more)
    assert isinstance(got, Refusal), "granted"
    return got


def ledger(store: Store, limit: Limit = WEIGHT, t: float = 0) -> LedgerView:
    """How a ledger stands."""
    found = [x for x in store.read(lambda _: at(t)).ledgers if x.key == charge(limit, 0).key]
    assert found, "no such ledger"
    return found[0]


# -- reserve, settle, refund -------------------------------------------------------------------------------------------


def test_reserve_holds_and_settle_spends(stores: Open) -> None:
    """What is reserved is in flight; what is settled is used; others see both at once."""
    mine, yours = stores(), stores()
    grant = granted(mine, charge(WEIGHT, 40))
    assert (ledger(yours).inflight, ledger(yours).used, ledger(yours).room) == (40, 0, 60)
    done = mine.settle(grant, at(1))
    assert not done.late
    assert (ledger(yours).inflight, ledger(yours).used, ledger(yours).room) == (0, 40, 60)
    assert yours.read(lambda _: at(1)).permits == 0


def test_asks_that_go_together(stores: Open) -> None:
    """Each gets as many permits as it wants while there is room, and the refusal of its first where there is none."""
    store = stores()
    asks = [
        Ask(NS, (charge(limit, cost),), (), (9, 0), most=most) for limit, cost, most in ((ORDERS, 1, 3), (SLOTS, 2, 1))
    ]
    first, second = store.reserve_all(asks, lambda _: at(0))
    assert isinstance(first, list) and isinstance(second, list)
    assert (len(first), len(second)) == (3, 1)
    assert len({grant.id for grant in (*first, *second)}) == 4
    (no,) = store.reserve_all([asks[1]._replace(who=ME)], lambda _: at(0))
    assert isinstance(no, Refusal) and no.key == asks[1].charges[0].key
    for grant in first:
        store.refund(grant, at(0))
    assert ledger(store, ORDERS).inflight == 0


def test_all_or_nothing(stores: Open) -> None:
    """A call that one of its limits refuses takes nothing from the others."""
    store = stores()
    granted(store, charge(ORDERS, 5), who=(9, 0))
    no = refused(store, charge(WEIGHT, 10), charge(ORDERS, 1))
    assert no.key == charge(ORDERS, 1).key
    assert no.available_at == at(10).mono
    assert not no.unknown and not no.never
    granted(store, charge(WEIGHT, 1), who=(9, 0))
    assert ledger(store, WEIGHT).inflight == 1
    assert ledger(store, ORDERS).inflight == 5


def test_never(stores: Open) -> None:
    """A cost above the limit can never fit, and is not noted as waiting."""
    store = stores()
    assert refused(store, charge(ORDERS, 6)).never
    granted(store, charge(ORDERS, 1), who=YOU)
    assert not any(row[3] for row in ledger(store, ORDERS).rows.values())


def test_owners_have_ledgers_of_their_own(stores: Open) -> None:
    """The same limit for another owner is another ledger."""
    store = stores()
    granted(store, charge(ORDERS, 5, "account:x"), who=(9, 0))
    granted(store, charge(ORDERS, 5, "account:y"), who=(9, 0))
    assert isinstance(reserve(store, charge(ORDERS, 1, "account:x")), Refusal)


def test_zero_cost_passes_a_full_ledger(stores: Open) -> None:
    """A call that costs nothing only asks that its owner is not blocked."""
    store = stores()
    granted(store, charge(ORDERS, 5), who=(9, 0))
    granted(store, charge(ORDERS, 0))


def test_refund_gives_everything_back_and_wakes(stores: Open) -> None:
    """What was never sent comes back, and whoever waits for it is named."""
    mine, yours = stores(), stores()
    grant = granted(mine, charge(SLOTS, 2), charge(WEIGHT, 100), who=(11, 0))
    refused(yours, charge(SLOTS, 1), who=(22, 0))
    done = mine.refund(grant, at(0.1))
    assert set(done.released) == {c.key for c in grant.charges}
    assert done.wake == {22}
    assert ledger(yours, SLOTS).inflight == ledger(yours, WEIGHT).inflight == 0
    granted(yours, charge(SLOTS, 2), who=(22, 0), t=0.1)


def test_settle_twice_counts_once(stores: Open) -> None:
    """A second settle, and a refund after a settle, change nothing and say so."""
    store = stores()
    grant = granted(store, charge(WEIGHT, 10))
    store.settle(grant, at(1))
    assert store.settle(grant, at(1)).late
    assert store.refund(grant, at(1)).late
    assert ledger(store).used == 10


def test_actual_cost(stores: Open) -> None:
    """Settling takes the real cost, less or more than was reserved, and tells that room came back."""
    store = stores()
    first, second = granted(store, charge(WEIGHT, 50)), granted(store, charge(WEIGHT, 10))
    done = store.settle(first, at(1), Settlement(actual={charge(WEIGHT, 0).key: 5}))
    assert done.released == (charge(WEIGHT, 0).key,)
    store.settle(second, at(1), Settlement(actual={charge(WEIGHT, 0).key: 12}))
    assert (ledger(store).used, ledger(store).inflight) == (17, 0)


def test_full(stores: Open) -> None:
    """A limit that the provider calls used up has no room until its window is over, by whatever clock that counts."""
    store = stores()
    grant = granted(store, charge(WEIGHT, 1), t=10)
    store.settle(grant, at(11), Settlement(full=[charge(WEIGHT, 0).key]))
    assert refused(store, charge(WEIGHT, 1), t=12).available_at == at(60).mono - BLIND + WHOLE
    granted(store, charge(WEIGHT, 1), t=62)


def test_full_just_after_an_edge(stores: Open) -> None:
    """A refusal just after our edge says that the window before is not over: the next begins at the latest possible edge."""
    store = stores()
    grant = granted(store, charge(WEIGHT, 1))
    store.settle(grant, at(0.5), Settlement(full=[charge(WEIGHT, 0).key]))
    assert refused(store, charge(WEIGHT, 1), t=1).available_at == at(0).mono - BLIND + WHOLE
    granted(store, charge(WEIGHT, 99), t=2)


def test_used_counter_finds_strangers(stores: Open) -> None:
    """What the provider counts beyond all of ours is a stranger's, is counted, and set aside in the next window."""
    store = stores()
    grant = granted(store, charge(WEIGHT, 10), t=30)
    done = store.settle(grant, at(31), Settlement(used={charge(WEIGHT, 0).key: 40}))
    assert dict(done.foreign) == {charge(WEIGHT, 0).key: 30}
    assert ledger(store, t=31).used == 40
    granted(store, charge(WEIGHT, 1), t=63, who=(9, 0))
    assert ledger(store, t=63).expected > 30


def test_a_counter_that_goes_on_is_no_stranger(stores: Open) -> None:
    """After our edge the counter goes on: the window had not turned over. Ours is found to be ours, and what was spent since
    counts on both sides; when the counter has dropped, every process knows where the edge is."""
    mine, yours = stores(), stores()
    key = charge(WEIGHT, 0).key
    for t, used in ((20, 40), (58.5, 80)):
        assert not mine.settle(
            granted(mine, charge(WEIGHT, 40), t=t), at(t + 0.1), Settlement(used={key: used})
        ).foreign
    late = granted(mine, charge(WEIGHT, 5), t=62)
    assert not mine.settle(
        late, at(62.1), Settlement(used={key: 5})
    ).foreign  # it has turned over, between 58.5 and 62.1
    for t, used in ((119, 100), (121, 5)):
        assert not yours.settle(
            granted(yours, charge(WEIGHT, 5), t=t, who=YOU), at(t + 0.1), Settlement(used={key: used})
        ).foreign


def test_used_counter_corrects_downwards(stores: Open) -> None:
    """What the provider does not count is not spent, as far as nothing under way can explain it."""
    store = stores()
    first = granted(store, charge(WEIGHT, 50), t=10)
    store.settle(first, at(11))
    second = granted(store, charge(WEIGHT, 10), t=12)
    store.settle(second, at(13), Settlement(used={charge(WEIGHT, 0).key: 10}))
    assert ledger(store, t=13).used == 10


def test_over_the_edge_it_counts_in_both_windows(stores: Open) -> None:
    """What is under way over a window's edge is held against both windows."""
    store = stores()
    grant = granted(store, charge(WEIGHT, 90), t=59, who=(9, 0))
    assert isinstance(reserve(store, charge(WEIGHT, 20), t=60, who=(9, 0)), Refusal)
    store.settle(grant, at(61))
    assert isinstance(reserve(store, charge(WEIGHT, 20), t=62, who=(9, 0)), Refusal)
    granted(store, charge(WEIGHT, 20), t=120, who=(9, 0))


# -- leases ------------------------------------------------------------------------------------------------------------


def test_a_lease_that_ends_counts_as_spent(stores: Open) -> None:
    """A permit of which nobody is heard again is spent when its lease ends; a slot is free again."""
    mine, yours = stores(), stores()
    granted(mine, charge(WEIGHT, 30), charge(SLOTS, 2), lease=5 * SECOND)
    assert isinstance(reserve(yours, charge(SLOTS, 1), who=(22, 0), t=4.9), Refusal)
    granted(yours, charge(SLOTS, 1), who=(22, 0), t=5.1)
    assert (ledger(yours).inflight, ledger(yours).used) == (0, 30)
    assert ledger(yours, SLOTS).inflight == 1


def test_a_late_answer_is_counted_once(stores: Open) -> None:
    """An answer after the lease ended changes nothing but what it tells."""
    store = stores()
    grant = granted(store, charge(WEIGHT, 30), lease=5 * SECOND)
    granted(store, charge(WEIGHT, 1), t=6)
    assert store.settle(grant, at(7)).late
    assert (ledger(store).inflight, ledger(store).used) == (1, 30)


def test_a_lease_that_ended_in_an_old_window_is_gone_with_it(stores: Open) -> None:
    """What was surely counted in a window that is over does not burden the new one."""
    store = stores()
    granted(store, charge(WEIGHT, 90), t=0, lease=5 * SECOND)
    granted(store, charge(WEIGHT, 95), t=70, who=(9, 0))
    assert ledger(store, t=70).used == 0


def test_hold_moves_the_lease(stores: Open) -> None:
    """A stream that goes on is held longer; a request without an answer, shorter."""
    store = stores()
    long = granted(store, charge(SLOTS, 1), lease=5 * SECOND)
    short = granted(store, charge(SLOTS, 1))
    assert store.hold(long, at(100).mono)
    assert store.hold(short, at(10).mono)
    assert isinstance(reserve(store, charge(SLOTS, 1), t=9, who=(9, 0)), Refusal)
    granted(store, charge(SLOTS, 1), t=11, who=(9, 0))
    assert isinstance(reserve(store, charge(SLOTS, 1), t=12, who=(9, 0)), Refusal)
    assert not store.hold(short, at(200).mono)
    assert not store.settle(long, at(50)).late


def test_leases_are_reaped_by_provider(stores: Open) -> None:
    """A permit of another provider does not get in the way."""
    store = stores()
    other = Charge("other/weight/ip:a", WEIGHT, 7)
    assert isinstance(store.reserve(Ask("other", (other,), (), ME, lease=SECOND), at(0)), Grant)
    granted(store, charge(WEIGHT, 1), t=5)
    assert isinstance(store.reserve(Ask("other", (other,), (), ME), at(6)), Grant)
    found = {view.key: view for view in store.read(lambda _: at(6)).ledgers}
    assert (found["other/weight/ip:a"].used, found["other/weight/ip:a"].inflight) == (7, 7)


# -- waiting -----------------------------------------------------------------------------------------------------------


def test_waiting_is_noted_and_withdrawn(stores: Open) -> None:
    """Who waits stands beside the limit that has no room, and nowhere else, until it is taken back."""
    store = stores()
    granted(store, charge(SLOTS, 2), who=(9, 0))
    refused(store, charge(SLOTS, 1), charge(WEIGHT, 3), backlog={charge(SLOTS, 0).key: 8, charge(WEIGHT, 0).key: 24})
    assert ledger(store, SLOTS).rows[ME][3] == 8
    granted(store, charge(WEIGHT, 1), who=YOU)
    assert ME not in ledger(store, WEIGHT).rows
    store.withdraw([charge(SLOTS, 0).key], ME, at(0))
    assert ledger(store, SLOTS).rows[ME][3] == 0


def test_who_will_not_wait_is_not_noted(stores: Open) -> None:
    """A caller that only asks leaves nothing behind."""
    store = stores()
    granted(store, charge(SLOTS, 2), who=(9, 0))
    refused(store, charge(SLOTS, 1), backlog=None)
    assert ME not in ledger(store, SLOTS).rows


def test_wake_names_only_those_who_wait_here(stores: Open) -> None:
    """Settling wakes members that wait for that ledger, not the own one, and not one whose note has expired."""
    store = stores()
    grant = granted(store, charge(SLOTS, 2), who=(11, 0))
    refused(store, charge(SLOTS, 1), who=(11, 2))
    refused(store, charge(SLOTS, 1), who=(22, 2))
    assert store.settle(grant, at(0.5)).wake == {22}
    again = granted(store, charge(SLOTS, 2), who=(11, 0), t=60)
    assert store.settle(again, at(61)).wake == frozenset()


def test_upper_classes_find_something_left(stores: Open) -> None:
    """A low class leaves 5 % to those above it, melting with the window; a critical call takes it at once."""
    store = stores()
    granted(store, charge(WEIGHT, 95), who=(11, 2))
    no = refused(store, charge(WEIGHT, 2), who=(11, 2))
    assert at(0).mono < no.available_at < at(60).mono
    granted(store, charge(WEIGHT, 2), who=(22, 0))


# -- blocks ------------------------------------------------------------------------------------------------------------


def test_a_ban_stops_everyone_until_it_ends(stores: Open) -> None:
    """A ban is in force for every process from its next decision on, names its reason, and ends."""
    mine, yours = stores(), stores()
    granted(yours, charge(WEIGHT, 1))
    mine.block(f"{NS}/ip:a", 120 * SECOND, "ban", "too many", at(0).mono, 0)
    no = refused(yours, charge(WEIGHT, 1), t=1)
    assert (no.kind, no.reason, no.key, no.available_at) == ("ban", "too many", f"{NS}/ip:a", at(120).mono)
    granted(yours, charge(WEIGHT, 1), t=1, scopes=(f"{NS}/ip:b",))
    granted(yours, charge(WEIGHT, 1), t=120.001)


def test_a_block_may_hold_one_ledger(stores: Open) -> None:
    """A block on a ledger's key stops only calls that charge it."""
    store = stores()
    store.block(charge(ORDERS, 0).key, 10 * SECOND, "throttle", "", at(0).mono, 0)
    assert refused(store, charge(ORDERS, 1)).kind == "throttle"
    granted(store, charge(WEIGHT, 1))


def test_a_shorter_ban_does_not_cut_a_longer_one(stores: Open) -> None:
    """Of two bans of a scope the later end holds."""
    store = stores()
    store.block(f"{NS}/ip:a", 100 * SECOND, "ban", "long", at(0).mono, 0)
    store.block(f"{NS}/ip:a", 10 * SECOND, "ban", "short", at(1).mono, 0)
    assert refused(store, charge(WEIGHT, 1), t=50).available_at == at(100).mono


def test_absurd_bans_are_clamped(stores: Open) -> None:
    """No ban lasts longer than a week, and a negative one not at all."""
    store = stores()
    store.block(f"{NS}/ip:a", 10**18, "ban", "", at(0).mono, 0)
    assert refused(store, charge(WEIGHT, 1)).available_at == at(7 * 86_400).mono
    store.block(f"{NS}/ip:b", -5, "ban", "", at(0).mono, 0)
    granted(store, charge(WEIGHT, 1), scopes=(f"{NS}/ip:b",), t=0.001)


def test_a_pause_lasts_until_it_is_resumed(stores: Open) -> None:
    """A pause without an end holds until somebody takes it away; bans stay."""
    mine, yours = stores(), stores()
    mine.block(f"{NS}/ip:a", None, "pause", "lunch", at(0).mono, 0)
    no = refused(yours, charge(WEIGHT, 1), t=86_400)
    assert no.kind == "pause" and no.unknown
    assert yours.unblock(f"{NS}/ip:a", "pause")
    assert not mine.unblock(f"{NS}/ip:a", "pause")
    granted(mine, charge(WEIGHT, 1), t=86_400)


CLASSES = {kind: (NS, f"{NS}/class:{kind}", f"{NS}/ip:a") for kind in ("order", "cancel", "market")}


def passing(store: Store, t: float = 0) -> set[str]:
    """The classes of calls that get a permit now."""
    return {kind for kind, scopes in CLASSES.items() if isinstance(reserve(store, scopes=scopes, t=t), Grant)}


@pytest.mark.parametrize(
    ("scope", "kind", "still"),
    [
        (NS, "pause", {"cancel"}),
        (f"{NS}/ip:a", "pause", {"cancel"}),
        (NS, "breaker", {"cancel"}),
        (f"{NS}/class:order", "pause", {"cancel", "market"}),
        (f"{NS}/class:cancel", "pause", {"order", "market"}),
        ("*", "pause", {"cancel"}),
        ("*/class:order", "pause", {"cancel", "market"}),
        ("*/class:cancel", "pause", {"order", "market"}),
        ("*/ip:a", "pause", {"cancel"}),
        ("*/ip:b", "pause", {"order", "cancel", "market"}),
        ("other/class:order", "pause", {"order", "cancel", "market"}),
        (NS, "ban", set()),
        ("*", "ban", set()),
    ],
)
def test_what_passes_a_block(stores: Open, scope: str, kind: str, still: set[str]) -> None:
    """A pause and a breaker let cancels pass unless they are of cancels; a ban lets nothing pass; a star is everybody."""
    mine, yours = stores(), stores()
    mine.block(scope, None if kind == "pause" else 60 * SECOND, kind, "by hand", at(0).mono, 0)
    assert passing(yours) == still
    assert passing(stores()) == still  # whoever comes later knows it before its first call
    assert passing(mine) == still
    assert yours.unblock(scope, kind)
    assert not mine.unblock(scope, kind)
    assert passing(mine) == passing(yours) == set(CLASSES)


def test_an_emergency_passes_every_pause_and_no_ban(stores: Open) -> None:
    """What a person wants done now is not stopped by what a person stopped; what the provider shut stays shut."""
    mine, yours = stores(), stores()
    wanted = (*CLASSES["order"], "emergency")
    for scope in (NS, f"{NS}/class:order", "*", "*/class:order"):
        mine.block(scope, None, "pause", "by hand", at(0).mono, 0)
        mine.block(scope, 60 * SECOND, "breaker", "trouble", at(0).mono, 0)
    assert isinstance(reserve(yours, scopes=wanted), Grant)
    assert isinstance(reserve(yours, scopes=CLASSES["order"]), Refusal)
    mine.block(f"{NS}/ip:a", 60 * SECOND, "ban", "too many", at(0).mono, 0)
    assert refused(yours, scopes=wanted).kind == "ban"


def test_a_pause_of_everything_ends_by_itself(stores: Open) -> None:
    """One with an end holds until then, in every process."""
    mine, yours = stores(), stores()
    mine.block("*", 30 * SECOND, "pause", "lunch", at(0).mono, 0)
    no = refused(yours, scopes=CLASSES["order"], t=1)
    assert (no.key, no.kind, no.reason, no.unknown) == ("*", "pause", "lunch", False)
    assert no.available_at == at(30).mono
    assert passing(yours, 30) == set(CLASSES)


def test_changes_are_noticed(stores: Open) -> None:
    """The generation grows in every process when blocks or learned limits change."""
    mine, yours = stores(), stores()
    granted(yours, charge(WEIGHT, 1))
    before = yours.generation
    mine.block(f"{NS}/ip:z", SECOND, "ban", "", at(0).mono, 0)
    granted(yours, charge(WEIGHT, 1))
    assert yours.generation > before


# -- limits ------------------------------------------------------------------------------------------------------------


def test_learned_limits_are_everyones(stores: Open) -> None:
    """A limit that the provider stated holds in every process; what is spent stays spent."""
    mine, yours = stores(), stores()
    mine.settle(granted(mine, charge(WEIGHT, 60)), at(0))
    assert mine.learn(NS, {"weight": (70, MINUTE)})
    assert not mine.learn(NS, {"weight": (70, MINUTE)})
    assert isinstance(reserve(yours, charge(WEIGHT, 11), t=1, who=(9, 0)), Refusal)
    granted(yours, charge(WEIGHT, 10), t=1, who=(9, 0))
    assert yours.learned[NS]["weight"] == (70, MINUTE)


def test_a_shrinking_limit_never_opens(stores: Open) -> None:
    """Below what is spent there is no room until the window is over; then as much as the new number."""
    store = stores()
    store.settle(granted(store, charge(WEIGHT, 60)), at(0))
    store.learn(NS, {"weight": (40, MINUTE)})
    assert refused(store, charge(WEIGHT, 1), t=1).available_at == at(60).mono
    granted(store, charge(WEIGHT, 38), t=60)
    assert refused(store, charge(WEIGHT, 41), t=60).never


@pytest.mark.parametrize("window", [Window.FIXED, Window.FIRST, Window.SLIDING, Window.BUCKET])
def test_a_changing_period_keeps_what_is_spent(stores: Open, window: Window) -> None:
    """A limit whose period changes live does not forget what was spent a moment ago."""
    store = stores()
    limit = Limit("weight", "weight", 100, MINUTE, window)
    store.settle(granted(store, charge(limit, 90), t=29.5, who=(9, 0)), at(29.6))
    store.learn(NS, {"weight": (100, 5 * SECOND)})
    assert isinstance(reserve(store, charge(limit, 50), t=29.7, who=(9, 0)), Refusal)
    granted(store, charge(limit, 50), t=45, who=(9, 0))


def test_nonsense_is_not_learned(stores: Open) -> None:
    """A provider that states a limit of nothing is not believed."""
    store = stores()
    store.learn(NS, {"weight": (0, MINUTE)})
    granted(store, charge(WEIGHT, 50))


def test_doubt_carries_over(stores: Open) -> None:
    """When the provider's clock proves to be another, what was spent counts in the window in which it then is."""
    store = stores()
    store.settle(granted(store, charge(WEIGHT, 90), t=10, who=(9, 0)), at(11))
    right = Instant(at(12).mono, at(12 + 3600).lo, at(12 + 3600).hi)
    store.doubt(NS, right)
    got = store.reserve(Ask(NS, (charge(WEIGHT, 20),), (), (9, 0)), right)
    assert isinstance(got, Refusal)


def test_a_clock_set_back_is_no_open_tap(stores: Open) -> None:
    """Whoever sees an earlier window than the ledger's neither waits for the future nor spends without being counted."""
    store = stores()
    store.settle(granted(store, charge(WEIGHT, 30), t=600, who=(9, 0)), at(601))
    spent = 30
    for i in range(10):
        got = reserve(store, charge(WEIGHT, 20), t=1 + i, who=(9, 0))
        if isinstance(got, Grant):
            store.settle(got, at(1.5 + i))
            spent += 20
    assert spent <= 100
    granted(store, charge(WEIGHT, 20), t=130, who=(9, 0))


# -- notes, batches, members -------------------------------------------------------------------------------------------


def test_notes(stores: Open) -> None:
    """A note is shared; reading changes nothing; writing returns what stood there."""
    mine, yours = stores(), stores()
    assert noted(mine, "topic") is None
    assert write(mine, "topic", b"1") is None
    assert write(yours, "topic", b"2") == b"1"
    assert noted(mine, "topic") == b"2"
    assert write(mine, "topic", b"3") == b"2"
    assert write(mine, "x" * 2000, b"long") is None
    assert noted(yours, "x" * 2000) == b"long"
    assert yours.update("topic", bytes, lambda old, now: (None, old)) == b"3"
    assert noted(mine, "topic") is None


def test_a_batch_joins_verbs(stores: Open) -> None:
    """Verbs inside a batch see each other; others see all of them afterwards."""
    mine, yours = stores(), stores()

    def verbs() -> None:
        first = granted(mine, charge(WEIGHT, 30))
        mine.transact(lambda: granted(mine, charge(WEIGHT, 30)))
        mine.settle(first, at(1))

    mine.transact(verbs)
    assert (ledger(yours).used, ledger(yours).inflight) == (30, 30)


def test_members(stores: Open) -> None:
    """Members are listed by name while they are there."""
    store = stores()
    store.join(7, "bot[1]")
    assert store.read(lambda _: at(0)).members == {7: "bot[1]"}
    assert store.alive() >= 1
    store.leave(7)
    assert store.read(lambda _: at(0)).members == {}


def test_numbers_are_unique(stores: Open) -> None:
    """No two permits have the same number."""
    mine, yours = stores(), stores()
    numbers = [store.new_id() for store in (mine, yours) for _ in range(500)]
    assert len(set(numbers)) == len(numbers)
    assert all(0 < number < 1 << 63 for number in numbers)


def test_snapshot_tells_all(stores: Open) -> None:
    """A snapshot holds ledgers as of now, blocks, learned limits and the number of permits, and changes nothing."""
    store = stores()
    store.settle(granted(store, charge(WEIGHT, 60)), at(0))
    granted(store, charge(SLOTS, 1), t=1)
    store.block("s", SECOND, "ban", "r", at(0).mono, 0)
    store.learn("other", {"l": (5, SECOND)})
    for _ in range(2):
        seen = store.read(lambda _: at(61))
        assert {view.key: view.used for view in seen.ledgers}[charge(WEIGHT, 0).key] == 0
        assert seen.permits == 1
        assert [block.scope for block in seen.blocks] == ["s"]
        assert seen.learned == {"other": {"l": (5, SECOND)}}
    assert refused(store, charge(WEIGHT, 50), t=2, who=(9, 0)).available_at == at(60).mono


def test_default_lease(stores: Open) -> None:
    """Without another word a permit is held for a minute."""
    store = stores()
    assert granted(store, charge(WEIGHT, 1)).lease == at(0).mono + LEASE


def test_many_processes_one_budget(stores: Open) -> None:
    """However many openings of a store take turns, together they get exactly the budget."""
    processes = [stores() for _ in range(4)]
    got = 0
    for i in range(200):
        if isinstance(reserve(processes[i % 4], charge(WEIGHT, 1), who=(i % 4, 0), t=i / 100, backlog=None), Grant):
            got += 1
    assert got == 100


def test_sums_are_shared(stores: Open) -> None:
    """What processes add to a sum stands there once each, with the greatest third number."""
    mine, yours = stores(), stores()
    for store, lengths in ((mine, (7, 3)), (yours, (4, 1, 0))):
        waits = Waits(store, Worker())
        for length in lengths:
            waits.add(2, length)
        waits.share()
    assert read_waits(mine) == {2: Wait(5, 15, 7)}


def test_what_is_held_for_a_lost_client_is_told(server: Server) -> None:
    """A server's permits `away:MEMBER` are no calls under way: people see them apart."""
    with redis.Redis(port=server.port) as client:
        client.flushall()
        store = RedisStore(server.url, given=True)
        granted(store, charge(WEIGHT, 50))
        assert ledger(store).held == 0
        client.zadd(f"hg:{{{NS}}}:members", {"ab": at(600).mono // 1000})
        client.hset(f"hg:{{{NS}}}:held", "away:ab", msgspec.msgpack.encode([1, "ab", 0, charge(WEIGHT, 0).key, 30]))
        assert (ledger(store).inflight, ledger(store).held) == (50, 30)
        store.close()


def test_names_of_members_that_ended(stores: Open) -> None:
    """A member that ended keeps its name for as long as a ledger shows what it spent."""
    store = stores()
    store.join(ME[0], "bot[1]")
    store.join(YOU[0], "idle[2]")
    store.settle(granted(store, charge(WEIGHT, 40)), at(1))
    store.leave(ME[0])
    store.leave(YOU[0])
    found = stores().read(lambda _: at(1))
    assert (found.members, found.former.get(ME[0])) == ({}, "bot[1]")
    assert [who for view in found.ledgers for who in view.rows] == [ME]


def test_stated_limits_of_owners_that_are_gone(stores: Open) -> None:
    """Numbers that were stated for one owner go some time after its ledger; those of living owners and of all stay."""
    store = stores()
    granted(store, charge(WEIGHT, 1, "key:0"))
    store.learn(NS, {"weight": (90, MINUTE), "weight/key:0": (80, MINUTE), "~pace/weight/key:0": (500, SECOND)})
    for first in range(1, 6_000, 100):
        store.learn(NS, {f"weight/key:{number}": (70, MINUTE) for number in range(first, first + 100)})
    reserve(store, charge(WEIGHT, 1, "key:0"))
    known = store.learned[NS]
    assert len(known) < 2_500
    assert {"weight", "weight/key:0", "~pace/weight/key:0", "weight/key:6000"} <= known.keys()
