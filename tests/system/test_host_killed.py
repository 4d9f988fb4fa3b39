"""Processes that are killed: nothing is lost, no lock stays shut, no unit is granted twice."""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.support.hand import KEY, SHOP, Worker, charges, now

from ratekeeper.ledger.decide import Refusal
from ratekeeper.ledger.limit import SECOND, Instant
from ratekeeper.stores.host import HostStore
from ratekeeper.stores.records import Ask, Grant

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked, for speed")
WHO = (7, 0)
KILLS = 150


def later(seconds: int) -> Instant:
    """A present that lies so many seconds ahead."""
    return Instant(*(clock + seconds * SECOND for clock in now()))


def state(store: HostStore, at: Instant | None = None) -> tuple[int, int, int]:
    """(used, in flight, permits held)."""
    found = store.read(lambda _: at or now())
    return found.ledgers[0].used, found.ledgers[0].inflight, found.permits


def kill_inside(store: HostStore, rounds: int, capacity: int) -> None:
    """Fork a child that is killed inside a transaction that took something, and wait for it, so many times."""
    plan = charges(capacity)
    for number in range(rounds):
        child = os.fork()
        if not child:
            try:

                def inside(number: int = number) -> None:
                    got = store.reserve(Ask(SHOP, plan, (SHOP,), WHO, backlog=None), now())
                    store.block(f"shop/{number}", SECOND, "ban", "never written", now().mono, time.time_ns())
                    if isinstance(got, Grant):
                        store.settle(got, now())
                    os.kill(os.getpid(), signal.SIGKILL)

                store.transact(inside)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL


def test_killed_inside_a_transaction(tmp_path: Path) -> None:
    """Killed 150 times inside a transaction: each time the lock is free at once, and the ledger as it was before."""
    store = HostStore(tmp_path / "h", patience=5.0)
    plan = charges(10_000)
    for done in range(KILLS // 10):
        kill_inside(store, 10, 10_000)
        begin = time.monotonic()
        got = store.reserve(Ask(SHOP, plan, (SHOP,), WHO, backlog=None), now())
        assert time.monotonic() - begin < 2.0
        assert isinstance(got, Grant)
        store.settle(got, now())
        assert state(store) == (done + 1, 0, 0)
    store.close()


def test_killed_at_any_instant(tmp_path: Path) -> None:
    """Killed 150 times at random instants of a rush of calls: what others took is all there, and nobody is kept out."""
    store = HostStore(tmp_path / "h", patience=5.0)
    plan, mine = charges(10**9), 0
    running: list[int] = []
    for number in range(KILLS):
        child = os.fork()
        if not child:
            try:
                while True:
                    got = store.reserve(Ask(SHOP, plan, (SHOP,), (number, 0), backlog=None), now())
                    if isinstance(got, Grant):
                        store.settle(got, now())
            finally:
                os._exit(1)
        running.append(child)
        for _ in range(3):
            got = store.reserve(Ask(SHOP, plan, (SHOP,), WHO, backlog=None), now())
            assert isinstance(got, Grant)
            mine += 1
        time.sleep(0.001 * (number % 7))
        if len(running) == 2:
            os.kill(running[0], signal.SIGKILL)
            os.waitpid(running.pop(0), 0)
    for child in running:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    used, inflight, _ = state(store)
    assert inflight >= mine
    store.reserve(Ask(SHOP, plan, (SHOP,), WHO, backlog=None), later(61))  # everybody's lease has ended
    assert state(store, later(61)) == (used + inflight, 1, 1)
    store.close()


def test_holders_killed_all_at_once(tmp_path: Path) -> None:
    """Four greedy processes are killed together: the kernel says so, and their permits count as spent soon, each once."""
    home, capacity = tmp_path / "h", 400
    workers = [Worker(home, capacity).__enter__() for _ in range(4)]
    for worker in workers:
        worker.tell("take", 80)
    assert [worker.hear() for worker in workers] == [80] * 4
    for worker in workers:
        worker.tell("spend", 30.0, 10)
    for worker in workers:
        worker.hear()
    for worker in workers:
        worker.process.kill()
    for worker in workers:
        worker.kill()
    store, plan = HostStore(home, patience=5.0), charges(capacity)
    assert state(store) == (40, 320, 320)
    granted = 0
    while isinstance(got := store.reserve(Ask(SHOP, plan, (SHOP,), WHO, backlog=None), now()), Grant):
        granted += 1
        assert granted <= 40
    assert granted == 40
    assert got.key == KEY
    end = time.monotonic() + 20
    while state(store) != (360, 40, 40) and time.monotonic() < end:
        time.sleep(0.05)
        assert not isinstance(store.reserve(Ask(SHOP, plan, (SHOP,), WHO, backlog=None), now()), Grant)
    assert state(store) == (360, 40, 40)
    no = store.reserve(Ask(SHOP, plan, (SHOP,), WHO, backlog=None), later(61))
    assert isinstance(no, Refusal)
    assert state(store, later(61)) == (400, 0, 0)
    assert store.read(now).members == {}
    store.close()


def test_killed_while_many_write(tmp_path: Path) -> None:
    """Of six processes that spend a limit together, three are killed at some instant: not a unit is granted twice."""
    home, capacity = tmp_path / "h", 6000
    workers = [Worker(home, capacity, patience=10.0).__enter__() for _ in range(6)]
    for worker in workers:
        worker.tell("spend", 1.0)
    for number, worker in enumerate(workers[:3]):
        time.sleep(0.04 + 0.03 * number)
        worker.kill()
    granted = 0
    for _ in range(20):  # a busy machine takes longer
        granted += sum(worker.hear() for worker in workers[3:])
        found = workers[5]("state")
        if found["used"] + found["inflight"] >= capacity:
            break
        for worker in workers[3:]:
            worker.tell("spend", 1.0)
    for worker in workers[3:]:
        worker.kill()
    assert granted <= found["used"]
    assert found["used"] + found["inflight"] == capacity


def test_killed_again_and_again_by_interpreters_of_their_own(tmp_path: Path) -> None:
    """Workers that are not forks, killed inside a transaction, leave the next one a free lock and whole ledgers."""
    home = tmp_path / "h"
    for number in range(6):
        with Worker(home, 300) as worker:
            state = worker("state")
            assert state["used"] + state["inflight"] == number
            assert worker("take", 1) == 1
            worker.tell("die_inside")
            assert worker.process.wait(20) == -signal.SIGKILL


def test_what_a_killed_process_held_in_flight_is_free_soon(tmp_path: Path) -> None:
    """All slots are held by a process that is killed: another one has them long before the lease of 60 s ends."""
    slots = ("slots", 0)
    with Worker(tmp_path / "h", 5, limit=slots) as holder, Worker(tmp_path / "h", 5, limit=slots) as other:
        assert (holder("take", 5), other("take", 1)) == (5, 0)
        holder.kill()
        assert taken(other, 5, seconds=20.0) == 5
        assert other("take", 1) == 0


@pytest.mark.parametrize("killed", [1, 3])
def test_the_share_of_a_killed_process_comes_back(tmp_path: Path, killed: int) -> None:
    """Processes go on with their shares while another one is stopped, and are killed: what they may have spent counts in one
    window of 2 s, and not for a lease of 60 s."""
    options: dict[str, Any] = {"safe": True, "patience": 0.25, "limit": ("sliding", 2)}
    with Worker(tmp_path / "h", 20, **options) as one, ExitStack() as stack:
        others = [stack.enter_context(Worker(tmp_path / "h", 20, **options)) for _ in range(killed)]
        assert [worker("take", 1) for worker in [one, *others]] == [1] * (killed + 1)
        for worker in [one, *others]:
            worker("settle")
        one.stop_inside(spend=False)
        for worker in others:
            assert worker("take", 1) <= 1
            assert worker("state")["degraded"]
            worker.kill()
        one.go_on()
        one.hear()
        assert taken(one, 20, seconds=20.0) == 20
        assert one("take", 1) == 0


def taken(worker: Worker, units: int, seconds: float) -> int:
    """How many units a worker gets at once at last, if it gives back all of them after each attempt in vain."""
    end, got = time.monotonic() + seconds, 0
    while time.monotonic() < end and got < units:
        worker("give_back")
        time.sleep(0.1)
        got = worker("take", units)
    return got
