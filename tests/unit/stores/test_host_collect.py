"""What the host store forgets, and what it never may: many owners, programs that come and go, notes whose time is over."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.hand import SHOP, now
from tests.unit.stores.conftest import Jump

from ratekeeper.apps.state import as_data
from ratekeeper.ledger.limit import SECOND, Charge, Instant, Limit, Window
from ratekeeper.stores.host import HostStore
from ratekeeper.stores.host_collect import _MOST
from ratekeeper.stores.records import FEW, Ask, Grant, Settlement

OWNERS = 1_000
KINDS = [
    Limit("fixed", "weight", 100, 2 * SECOND),
    Limit("first", "weight", 100, 2 * SECOND, Window.FIRST),
    Limit("sliding", "weight", 100, 2 * SECOND, Window.SLIDING),
    Limit("bucket", "weight", 100, 2 * SECOND, Window.BUCKET),
    Limit("slots", "slots", 100, 0, Window.SLOTS),
]
DAY = Limit("day", "weight", 100_000, 86_400 * SECOND, Window.SLIDING)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[HostStore]:
    """A store."""
    made = HostStore(tmp_path / "h", patience=20.0)
    yield made
    made.close()


def ask(*limits: Limit, owner: object, member: int = 7, cost: int = 1) -> Ask:
    """What a call of an owner asks for."""
    charges = tuple(Charge(f"{SHOP}/{limit.name}/key:{owner}", limit, cost) for limit in limits)
    return Ask(SHOP, charges, (SHOP,), (member, 0), backlog=None)


def call(store: HostStore, *limits: Limit, owner: object, member: int = 7, cost: int = 1) -> None:
    """A call from its permit to its answer."""
    got = store.reserve(ask(*limits, owner=owner, member=member, cost=cost), now())
    assert isinstance(got, Grant)
    store.settle(got, now())


def generation(store: HostStore, number: int, limit: Limit) -> None:
    """One call of each of many owners that nobody saw before."""

    def some(first: int) -> None:
        for owner in range(first, first + 100):
            call(store, limit, owner=f"{number}-{owner}")

    for first in range(0, OWNERS, 100):
        store.transact(lambda: some(first))  # noqa: B023 - run at once


def records(store: HostStore) -> int:
    """How many there are."""
    entries: int = store.transact(lambda: store._txn.stat()["entries"])
    return entries


def rounds(store: HostStore, jump: Jump, number: int = 20) -> None:
    """So many looks, each a little later."""
    for _ in range(number):
        jump(0.2)
        store.transact(lambda: None)


@pytest.mark.parametrize("limit", KINDS, ids=lambda limit: limit.name)
def test_owners_come_and_go(store: HostStore, jump: Jump, limit: Limit) -> None:
    """The ledgers of owners that are heard of no more go when their windows are over, and the file does not grow."""
    data = store.home / "ledgers" / "data.mdb"
    sizes = []
    for number in range(3):
        before = records(store)
        generation(store, number, limit)
        assert records(store) - before > OWNERS // 2  # some may be at rest already, where the machine is slow
        jump(200)
        rounds(store, jump)
        assert records(store) <= FEW + 10
        sizes.append(data.stat().st_size)
    assert sizes[-1] <= 1.5 * sizes[0]


def test_those_at_rest_go_while_others_come(store: HostStore, jump: Jump) -> None:
    """Where owners come without a pause, those at rest never make up more than part of the store."""
    for owner in range(3 * OWNERS):
        call(store, KINDS[0], owner=owner)
        jump(0.02)
        if not owner % 100:
            assert records(store) < 1_200  # 300 owners in the 6 s until one is at rest


def test_what_counts_stays(store: HostStore, jump: Jump) -> None:
    """A ledger in its window, units in flight and a long window stay, however many others go."""
    call(store, DAY, owner="day", cost=60_000)
    held = store.reserve(ask(KINDS[2], owner="held", cost=100), now())
    assert isinstance(held, Grant)
    assert store.hold(held, now().mono + 10**15)
    generation(store, 0, KINDS[2])
    jump(3600)
    rounds(store, jump)
    assert records(store) <= FEW + 10
    assert not isinstance(store.reserve(ask(DAY, owner="day", cost=60_000), now()), Grant)
    assert not isinstance(store.reserve(ask(KINDS[2], owner="held"), now()), Grant)
    store.settle(held, now())
    jump(1)
    assert not isinstance(store.reserve(ask(KINDS[2], owner="held"), now()), Grant)


def test_a_late_answer_does_not_mistake_a_new_ledger(store: HostStore, jump: Jump) -> None:
    """A ledger was collected and began anew while a call went on without a lease: its counter takes no units from it."""
    for _ in range(30):
        call(store, KINDS[2], owner="late")
        jump(1)
    got = store.reserve(ask(KINDS[2], owner="late"), now())
    assert isinstance(got, Grant)
    jump(70)
    generation(store, 0, KINDS[2])
    jump(200)
    rounds(store, jump)
    call(store, KINDS[2], owner="late")
    answered = store.settle(got, now(), Settlement(used={got.charges[0].key: 3}))
    assert answered.late
    assert not answered.foreign
    (ledger,) = [x for x in store.read(now).ledgers if x.key == got.charges[0].key]
    assert ledger.used == 1


def test_reading_goes_in_slices(store: HostStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state of many owners is read in many short transactions, each over a bounded number of records; what is decoded is
    decoded outside of them."""
    generation(store, 0, DAY)
    pages: list[int] = []
    page, commit = store._page, store._environment.commit

    def counted(*values: Any) -> Any:
        found = page(*values)
        pages.append(len(found[0]))
        return found

    commits = []
    monkeypatch.setattr(store, "_page", counted)
    monkeypatch.setattr(store._environment, "commit", lambda: commits.append(1) or commit())

    def inside(namespace: str) -> Instant:
        assert not store._environment.open
        return now(namespace)

    assert len(store.read(inside).ledgers) == OWNERS
    assert sum(pages) >= OWNERS
    assert max(pages) <= 512
    assert len(commits) == len(pages)


def test_a_status_collects_too(store: HostStore, jump: Jump) -> None:
    """Whoever reads the state of many owners leaves out those at rest, and removes them."""
    generation(store, 0, KINDS[0])
    call(store, DAY, owner="day")
    jump(60)
    reader = HostStore(store.home, patience=20.0)
    assert [ledger.key for ledger in reader.read(now).ledgers] == [f"{SHOP}/day/key:day"]
    assert records(store) <= FEW
    reader.close()


def test_a_transaction_looks_at_few_records(store: HostStore, jump: Jump, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much there is to collect, one transaction looks at a bounded number of records."""
    generation(store, 0, KINDS[0])
    generation(store, 1, KINDS[0])
    jump(60)
    removed, collect = [], store._collect

    def counted(most: int) -> None:
        before = store._txn.stat()["entries"]
        collect(most)
        removed.append(before - store._txn.stat()["entries"])

    monkeypatch.setattr(store, "_collect", counted)
    rounds(store, jump, 30)
    assert 0 < max(removed) <= _MOST
    assert records(store) <= FEW + 10


def test_notes_whose_time_is_over(store: HostStore, jump: Jump) -> None:
    """Notes go when the time is over for which they were to be kept; others stay."""
    for number in range(500):
        store.update(f"trouble:{number}", bytes, lambda *_: (b"x", None), keep=60 * SECOND)
    store.update("waits", bytes, lambda *_: (b"x", None))
    jump(30)
    store.update("trouble:0", bytes, lambda *_: (b"y", None), keep=600 * SECOND)
    jump(31)
    rounds(store, jump, 60)
    assert records(store) <= FEW + 10
    assert store.get("trouble:0", bytes) == b"y"
    assert store.get("waits", bytes) == b"x"


def test_names_stay_while_their_spending_is_shown(store: HostStore, jump: Jump) -> None:
    """A program that ended keeps its name beside what it spent; when no ledger shows it any more, the name goes."""
    store.join(21, "trader[1]")
    call(store, DAY, owner="day", member=21)
    store.leave(21)
    other = HostStore(store.home, patience=20.0)
    other.join(22, "killed[2]")
    call(other, DAY, owner="day", member=22)
    other._sockets.drop(22)
    jump(2)
    data = as_data(store.read(now), {})
    assert data["processes"] == []
    assert {spender["process"] for row in data["limits"] for spender in row["spenders"]} == {"trader[1]", "killed[2]"}
    generation(store, 0, KINDS[0])
    jump(40_000)
    rounds(store, jump, 60)
    assert set(store.read(now).former.values()) == {"trader[1]", "killed[2]"}
    generation(store, 1, KINDS[0])
    jump(200_000)
    generation(store, 2, KINDS[0])
    jump(60)
    rounds(store, jump, 200)
    assert store.read(now).former == {}
    store.transact(lambda: store._end_round(now().mono))
    assert not store.transact(lambda: list(store._named(b"F")))
    other.close()


def test_programs_that_come_and_go(store: HostStore, jump: Jump) -> None:
    """A program that is started again and again does not fill the ledger of a long window: its rows merge."""
    for number in range(500):
        store.join(1000 + number, f"{'cron' if number % 2 else 'bot'}[{number}]")
        call(store, DAY, owner="day", member=1000 + number)
        store.leave(1000 + number)
        jump(0.2)
    generation(store, 0, DAY)
    rounds(store, jump, 200)
    (ledger,) = [x for x in store.read(now).ledgers if x.key.endswith("key:day")]
    assert len(ledger.rows) <= 18
    assert ledger.used == sum(row[0] for row in ledger.rows.values()) == 500
    names = store.read(now).former
    assert {names[member].partition("[")[0] for member, _ in ledger.rows} == {"cron", "bot"}
