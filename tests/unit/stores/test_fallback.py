"""The safe share: never an open tap while the store is away, and nothing lost when it is back."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.hand import KEY, SHOP, charges, now
from tests.support.notes import noted, write

from ratekeeper.errors import StoreUnavailable
from ratekeeper.ledger.decide import Refusal
from ratekeeper.ledger.limit import SECOND, Window
from ratekeeper.stores.base import Store
from ratekeeper.stores.fallback import FallbackStore
from ratekeeper.stores.host import HostStore
from ratekeeper.stores.records import Ask, Grant, Settlement

PLAN = charges(100)
WHO = (7, 0)


class Away:
    """A safe store of which the lock can be taken away, as by a process that is stopped.

    Attributes:
        store: behind it, one of two members alive.
        said: what it told, kinds only.
    """

    def __init__(self, home: Path) -> None:
        self.said: list[str] = []
        self.host = HostStore(home, patience=20.0)  # so that a loaded machine does not count as a stopped process
        self.store = FallbackStore(self.host, lambda kind, _: self.said.append(kind))
        for member in (7, 8):
            self.store.join(member, "test")
        self._lock = -1

    def go(self) -> None:
        """The store does not answer from now on."""
        self._lock = os.open(self.host.home / "lock", os.O_RDWR)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.host._environment.patience = 0.0

    def come(self) -> None:
        """It answers again, and it is time to look."""
        if self._lock >= 0:
            os.close(self._lock)
        self._lock, self.store._tried = -1, 0
        self.host._environment.patience = 20.0

    def take(self, plan: tuple[object, ...] = PLAN) -> Grant | Refusal:
        """One try."""
        return self.store.reserve(Ask(SHOP, plan, (SHOP,), WHO, backlog=None), now())  # type: ignore[arg-type]

    def get(self) -> Grant:
        """One try that is granted."""
        got = self.take()
        assert isinstance(got, Grant)
        return got

    def all(self, plan: tuple[object, ...] = PLAN) -> int:
        """How many are granted until one is refused."""
        granted = 0
        while isinstance(self.take(plan), Grant):
            granted += 1
        return granted

    def state(self) -> tuple[int, int, int]:
        """(used, in flight, permits) of the shared store."""
        found = self.host.read(now)
        return found.ledgers[0].used, found.ledgers[0].inflight, found.permits


@pytest.fixture
def away(tmp_path: Path) -> Iterator[Away]:
    """A store that can go away."""
    made = Away(tmp_path / "h")
    yield made
    made.come()
    made.store.close()


def test_it_is_said_once(away: Away) -> None:
    """The loss and the return are told once each, and the reason stands in snapshots meanwhile."""
    away.get()
    away.go()
    away.get()
    away.get()
    assert away.said == ["store lost"]
    assert "another process" in away.store.read(now).degraded
    away.come()
    assert away.store.read(now).degraded == ""
    assert away.said == ["store lost", "store back"]


@pytest.mark.parametrize("before", [0, 40, 99, 100])
def test_the_share_is_a_part_of_what_was_left(away: Away, before: int) -> None:
    """Of what was left one of two processes takes half, and all that it took is in the store afterwards."""
    for _ in range(before):
        away.get()
    away.go()
    assert away.all() == (100 - before) // 2
    away.come()
    assert away.all() == 100 - before - (100 - before) // 2
    assert away.state() == (0, 100, 100)


def test_permits_of_before_end_meanwhile(away: Away) -> None:
    """Settled, refunded and held on while the store is away: each is so when it is back."""
    permits = [away.get() for _ in range(4)]
    away.go()
    away.store.settle(permits[0], now())
    away.store.settle(permits[1], now(), Settlement(actual={KEY: 0}))
    away.store.refund(permits[2], now())
    assert away.store.hold(permits[3], now().mono + 120 * SECOND)
    away.come()
    away.store.read(now)
    assert away.state() == (1, 1, 1)
    assert away.store.settle(permits[3], now()).late is False
    assert away.state() == (2, 0, 0)


def test_permits_of_the_share(away: Away) -> None:
    """Permits given meanwhile end meanwhile or later, each once and at its real cost."""
    away.get()
    away.go()
    permits = [away.get() for _ in range(4)]
    away.store.settle(permits[0], now())
    away.store.settle(permits[1], now(), Settlement(actual={KEY: 3}))
    away.store.refund(permits[2], now())
    away.come()
    away.store.read(now)
    assert away.state() == (4, 2, 2)
    away.store.settle(permits[3], now(), Settlement(actual={KEY: 0}))
    assert away.state() == (4, 1, 1)
    assert away.store.settle(permits[0], now()).late


def test_going_away_twice(away: Away) -> None:
    """A second loss begins a share anew, from what is left then."""
    for _ in range(2):
        away.go()
        away.get()
        away.come()
        away.store.read(now)
    assert away.said == ["store lost", "store back"] * 2
    assert away.state() == (0, 2, 2)


def test_a_limit_smaller_than_the_processes(away: Away) -> None:
    """What cannot be divided is not given: it waits for the store, and is not called impossible."""
    one = charges(1)
    away.go()
    no = away.take(one)
    assert isinstance(no, Refusal)
    assert (no.key, no.never, no.unknown) == (KEY, False, True)
    away.come()
    assert isinstance(away.take(one), Grant)


def test_a_cost_above_the_share_waits(away: Away) -> None:
    """A cost that fits the limit but not the share is refused for now; one above the limit is refused for now too."""
    big = charges(100, cost=60)
    away.go()
    no = away.take(big)
    assert isinstance(no, Refusal)
    assert not no.never
    assert no.available_at <= now().mono + SECOND
    away.come()
    assert isinstance(away.take(big), Grant)


def test_slots_are_shared_too(away: Away) -> None:
    """Of ten slots, four of them held, one of two processes may take three, again and again."""
    slots = charges(10, window=Window.SLOTS, period=0)
    for _ in range(4):
        away.take(slots)
    away.go()
    held = [got for got in (away.take(slots) for _ in range(6)) if isinstance(got, Grant)]
    assert len(held) == 3
    away.store.settle(held[0], now())
    assert away.all(slots) == 1


def test_a_ban_meanwhile(away: Away) -> None:
    """A ban that is learned while the store is away is in force at once, on disk, and in the store when it is back."""
    away.get()
    away.go()
    away.store.block(SHOP, 600 * SECOND, "ban", "test", now().mono, 0)
    no = away.take()
    assert isinstance(no, Refusal)
    assert no.kind == "ban"
    assert b"shop" in (away.host.home / "blocks.json").read_bytes()
    away.come()
    assert [state.scope for state in away.store.read(now).blocks] == [SHOP]
    assert isinstance(away.take(), Refusal)


def test_a_pause_meanwhile_reaches_every_program_and_the_store(away: Away) -> None:
    """Another process pauses while nobody reaches the store, and ends: this one obeys at once, and hands it on. So with
    the end of the pause."""
    away.get()
    away.go()
    away.get()
    other = HostStore(away.host.home, patience=0.0)
    person = FallbackStore(other, lambda *_: None)
    person.block("*", None, "pause", "by hand", now().mono, 0)
    no = away.take()
    assert isinstance(no, Refusal)
    assert (no.kind, no.reason) == ("pause", "by hand")
    away.come()
    assert [state.scope for state in away.store.read(now).blocks] == ["*"]
    fresh = HostStore(away.host.home, patience=20.0)
    assert [(state.scope, state.kind) for state in fresh.blocks.stored()] == []
    fresh.read(now)
    assert [(state.scope, state.kind) for state in fresh.blocks.stored()] == [("*", "pause")]
    away.go()
    assert isinstance(away.take(), Refusal)
    assert person.unblock("*", "pause")
    assert isinstance(away.take(), Grant)
    away.come()
    assert isinstance(away.take(), Grant)
    fresh.read(now)
    assert fresh.blocks.states() == []
    assert away.store.read(now).blocks == []
    fresh.close()
    other.close()


def test_what_is_learned_meanwhile(away: Away) -> None:
    """Learned limits, notes and doubts of that time are there when the store is back."""
    away.get()
    away.go()
    assert not away.store.learn(SHOP, {"weight": (50, 3600 * SECOND)})
    assert write(away.store, "topic", b"value") is None
    assert noted(away.store, "topic") == b"value"
    away.store.doubt(SHOP, now())
    away.store.withdraw([KEY], WHO, now())
    assert not away.store.unblock(SHOP)
    away.come()
    assert noted(away.store, "topic") == b"value"
    assert away.store.learned == {SHOP: {"weight": (50, 3600 * SECOND)}}
    assert away.all() == 49


def test_notes_are_changed_meanwhile_and_afterwards(away: Away) -> None:
    """What is counted while the store is away is counted here, and added to what others have counted when it is back; what
    is of use for a moment only stays here."""

    def add(store: Store, topic: str, keep: int = 0) -> int:
        return store.update(topic, int, lambda old, now: ((old or 0) + 1, (old or 0) + 1), keep)

    assert [add(away.store, "sum"), add(away.store, "sum")] == [1, 2]
    away.go()
    assert [add(away.store, "sum"), add(away.store, "sum"), add(away.store, "short", SECOND)] == [1, 2, 1]
    assert away.store.get("sum", int) == 2
    away.come()
    assert add(away.store, "sum") == 5
    assert away.store.get("short", int) is None


def test_a_batch_goes_on(away: Away) -> None:
    """A transaction that cannot begin is done with the share; one that cannot be written is an error, then the share."""
    away.go()
    away.store.transact(away.get)
    away.come()
    away.store.read(now)

    def stopped() -> None:
        away.get()
        away.host._environment._begun -= 10**11  # stopped for a hundred seconds

    with pytest.raises(StoreUnavailable, match="did not wait"):
        away.store.transact(stopped)
    assert away.store.degraded
    away.get()
    assert away.said == ["store lost", "store back", "store lost"]


def test_work_whose_writing_fails_runs_again_on_the_share(away: Away, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was stopped inside a transaction cannot write it. Its work runs once more, on the share."""
    away.get()
    whole, runs = away.host.transact, 0

    def work() -> Grant | Refusal:
        nonlocal runs
        runs += 1
        return away.take()

    def torn(inside: Callable[[], Any]) -> Any:
        def begun() -> None:
            inside()
            raise StoreUnavailable("it was stopped meanwhile")

        return whole(begun)

    monkeypatch.setattr(away.host, "transact", torn)
    assert isinstance(away.store.transact_again(work), Grant)
    assert (runs, away.said) == (2, ["store lost"])
    monkeypatch.undo()
    away.come()
    away.get()
    assert away.said == ["store lost", "store back"]


def test_closing_while_away(away: Away) -> None:
    """A program may end while the store is away: no error, no waiting."""
    away.go()
    away.get()
    away.store.leave(7)
    away.store.close()
