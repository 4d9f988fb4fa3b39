"""Who uses the host store: what is held for whom, and what ends when the kernel says that a process is dead."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.hand import SHOP, now
from tests.unit.stores.conftest import Jump

from ratekeeper.ledger.limit import SECOND, Charge, Limit, Window
from ratekeeper.stores.host import HostStore
from ratekeeper.stores.records import LEASE, Ask, Grant
from ratekeeper.stores.verbs import MANY

MINUTE = Limit("weight", "weight", 100, 60 * SECOND, Window.SLIDING)
SLOTS = Limit("slots", "slots", 4, 0, Window.SLOTS)


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Callable[[int], HostStore]]:
    """Makes the stores of further processes, each with a member of that number."""
    made: list[HostStore] = []

    def one(member: int) -> HostStore:
        made.append(HostStore(tmp_path / "h", patience=20.0))
        made[-1].join(member, f"bot[{member}]")
        return made[-1]

    yield one
    for store in made:
        store.close()


def dies(store: HostStore) -> None:
    """What the kernel does for a process that is killed."""
    for sockets in (store._sockets, store._marks):
        for member in list(sockets._own):
            sockets.drop(member)


def take(store: HostStore, member: int, limit: Limit = MINUTE, scope: str = "ip:a", lease: int = LEASE) -> int:
    """Take units, one by one, until one is refused; returns how many were granted."""
    charges = (Charge(f"{SHOP}/{limit.name}/{scope}", limit, 1),)
    granted = 0
    while isinstance(store.reserve(Ask(SHOP, charges, (SHOP,), (member, 0), backlog=None, lease=lease), now()), Grant):
        granted += 1
    return granted


def test_permits_of_a_dead_process_end(stores: Callable[[int], HostStore], jump: Jump) -> None:
    """Slots that a dead process held are free within seconds, those of a living one are not."""
    dead, living, other = stores(1), stores(2), stores(3)
    charges = (Charge(f"{SHOP}/slots/ip:a", SLOTS, 1),)
    for store, member in ((dead, 1), (dead, 1), (dead, 1), (living, 2)):
        assert isinstance(store.reserve(Ask(SHOP, charges, (SHOP,), (member, 0)), now()), Grant)
    assert take(other, 3, SLOTS) == 0
    dies(dead)
    jump(2)
    other.transact(lambda: None)
    assert take(other, 3, SLOTS) == 3


def test_calls_of_a_dead_process_count_as_spent(stores: Callable[[int], HostStore], jump: Jump) -> None:
    """What a dead process had in flight may have arrived: it counts for one window from when the death was noticed."""
    dead, other = stores(1), stores(2)
    assert take(dead, 1) == 100
    dies(dead)
    jump(2)
    other.transact(lambda: None)
    assert take(other, 2) == 0
    found = other.read(lambda _: now())
    assert [(x.used, x.inflight) for x in found.ledgers] == [(100, 0)]
    jump(61)
    assert take(other, 2) == 100


def test_the_share_of_a_process_that_dies_offline(stores: Callable[[int], HostStore], jump: Jump) -> None:
    """Its share is held while it lives, for longer than a lease; then it counts as spent for one window."""
    offline, other = stores(1), stores(2)
    assert take(other, 2, lease=10**15) == 100
    jump(2)
    offline.detach()
    jump(120)
    for _ in range(6):
        jump(25)
        other.transact(lambda: None)
    (ledger,) = other.read(lambda _: now()).ledgers
    assert ledger.inflight == 150
    dies(offline)
    jump(1)
    other.transact(lambda: None)
    assert take(other, 2) == 0
    (ledger,) = other.read(lambda _: now()).ledgers
    assert (ledger.used, ledger.inflight) == (50, 100)
    jump(61)
    other.transact(lambda: None)
    assert other.read(lambda _: now()).permits == 100
    assert other.read(lambda _: now()).ledgers[0].inflight == 100
    assert list((other.home / "absent").iterdir()) == []


def test_the_share_of_a_process_that_was_dead_before_anyone_looked(
    stores: Callable[[int], HostStore], jump: Jump
) -> None:
    """Several processes die offline one after the other: their shares count as spent at once, and in one window only."""
    dead, other = [stores(number) for number in (1, 3, 4)], stores(2)
    other.reserve(Ask(SHOP, (Charge(f"{SHOP}/weight/ip:a", MINUTE, 1),), (SHOP,), (2, 0)), now())
    for store in dead:
        store.detach()
        dies(store)
    jump(1)
    assert take(other, 2) < 100 - 2 * (100 // 4)
    jump(61)
    assert take(other, 2, lease=10**15) >= 99


def test_a_ledger_that_begins_meanwhile(stores: Callable[[int], HostStore], jump: Jump) -> None:
    """The share of an offline process is held of ledgers that begin later too."""
    offline, other = stores(1), stores(2)
    mark = offline.detach()
    other._environment._checked = 0
    assert take(other, 2) == 50
    jump(70)
    assert take(other, 2) == 0  # nothing was settled, and its own permits count as spent now
    offline.reattach(mark, 2, (), ())
    jump(61)
    assert take(offline, 1) == 100


def test_a_forked_child_does_not_keep_its_parent_alive(stores: Callable[[int], HostStore], tmp_path: Path) -> None:
    """A child that never uses the store closes its copies of the sockets: the kernel can tell when the parent is dead."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    store = stores(1)
    child = os.fork()
    if not child:
        time.sleep(60)
        os._exit(0)
    try:
        dies(store)
        end = time.monotonic() + 20
        while store._sockets.census().get(1) and time.monotonic() < end:
            time.sleep(0.01)
        assert store._sockets.census() == {1: False}
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_the_share_of_many_ledgers_is_held_in_slices(stores: Callable[[int], HostStore], jump: Jump) -> None:
    """Each look holds it of a bounded number of ledgers; of one that is used before its turn it is held at once, and of each
    it is held once. So no transaction is long, however many owners there are."""
    offline, other = stores(1), stores(2)

    def begin() -> None:
        for owner in range(3 * MANY):
            charges = (Charge(f"{SHOP}/weight/key:{owner:05d}", MINUTE, 1),)
            assert isinstance(other.reserve(Ask(SHOP, charges, (SHOP,), (2, 0), lease=10**15), now()), Grant)

    def inflight() -> list[int]:
        return [ledger.inflight for ledger in sorted(other.read(lambda _: now()).ledgers, key=lambda found: found.key)]

    other.transact(begin)
    assert inflight() == [1] * 3 * MANY
    mark = offline.detach()
    jump(0.2)
    assert take(other, 2, scope=f"key:{3 * MANY - 1:05d}", lease=10**15) == 49
    for _ in range(5):
        jump(0.2)
        other.transact(lambda: None)
    assert inflight() == [51] * (3 * MANY - 1) + [100]
    assert take(other, 2, scope="key:new", lease=10**15) == 50
    offline.reattach(mark, 2, (), ())
    assert inflight() == [1] * (3 * MANY - 1) + [50, 50]


def test_it_dies_before_its_share_is_held_of_all(stores: Callable[[int], HostStore], jump: Jump) -> None:
    """What it may have spent of the other ledgers counts all the same, in one window."""
    offline, other = stores(1), stores(2)

    def begin() -> None:
        for owner in range(2 * MANY):
            charges = (Charge(f"{SHOP}/weight/key:{owner:05d}", MINUTE, 1),)
            assert isinstance(other.reserve(Ask(SHOP, charges, (SHOP,), (2, 0), lease=10**15), now()), Grant)

    other.transact(begin)
    offline.detach()
    other._leave_to_offline = lambda *_: None  # type: ignore[method-assign] - nobody looks before it is dead
    dies(offline)
    del other._leave_to_offline  # type: ignore[method-assign]
    for _ in range(5):
        jump(0.2)
        other.transact(lambda: None)
    assert take(other, 2, scope=f"key:{0:05d}") == take(other, 2, scope=f"key:{2 * MANY - 1:05d}") == 49
    jump(61)
    assert take(other, 2, scope=f"key:{2 * MANY - 1:05d}") == 50  # what it took before is still in flight


def test_a_look_between_the_return_and_the_end_of_the_mark(
    stores: Callable[[int], HostStore], jump: Jump, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever looks when an offline process has written its return, but its mark is still there, holds nothing for it."""
    offline, other = stores(1), stores(2)
    assert take(other, 2, lease=10**15) == 100
    mark = offline.detach()
    jump(0.2)
    other.transact(lambda: None)
    shut = offline._marks.shut

    def late(member: int) -> None:
        jump(0.2)
        other.transact(lambda: None)
        shut(member)

    monkeypatch.setattr(offline._marks, "shut", late)
    offline.reattach(mark, 2, (), ())
    jump(0.2)
    other.transact(lambda: None)
    (ledger,) = other.read(lambda _: now()).ledgers
    assert (ledger.used, ledger.inflight) == (0, 100)
    assert not other.transact(lambda: other._records(b"A"))
