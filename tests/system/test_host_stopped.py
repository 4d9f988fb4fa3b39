"""A process that is stopped inside a transaction: the others go on with their safe share, and come back together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.support.hand import Worker

CAPACITY = 300


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Callable[..., list[Worker]]]:
    """Makes so many workers behind a safe share, all with a gate's usual patience."""
    with ExitStack() as stack:

        def make(number: int, **options: Any) -> list[Worker]:
            made = [Worker(tmp_path / "h", CAPACITY, safe=True, patience=0.25, **options) for _ in range(number)]
            return [stack.enter_context(worker) for worker in made]

        yield make


def test_others_go_on_within_a_second(workers: Callable[..., list[Worker]]) -> None:
    """One stops inside a transaction: the next call of another is decided within a second, and the loss is said once."""
    one, two = workers(2)
    assert two("take", 1) == 1
    one.stop_inside()
    granted, seconds, _ = two("ask")
    assert granted
    assert seconds < 1.0
    assert two("state")["said"] == ["store lost"]
    assert "stopped" in two("state")["degraded"]


def test_everyone_keeps_to_its_share_meanwhile(workers: Callable[..., list[Worker]]) -> None:
    """While one of three is stopped, the others take a third of the room each and not a unit more."""
    three = workers(3)
    assert [worker("spend", 5.0, 20) for worker in three] == [20, 20, 20]
    three[0].stop_inside()
    for worker in three[1:]:
        worker.tell("spend", 0.8)
    got = [worker.hear() for worker in three[1:]]
    assert max(got) <= (CAPACITY - 60) // 3
    assert min(got) >= (CAPACITY - 60) // 3 - 1


@pytest.mark.parametrize("before", [0, 10, 60])
def test_never_over_in_total(workers: Callable[..., list[Worker]], before: int) -> None:
    """Greedy from before the stop until long after: what is granted, with what is held, is exactly the limit."""
    three = workers(3)
    total = sum(worker("spend", 5.0, before) for worker in three)
    three[0].stop_inside()
    three[1].tell("spend", 2.0)
    three[2].tell("spend", 0.8)
    total += three[2].hear()  # it asks nothing for a while: what it spent must not be given away
    three[0].go_on()
    total += three[0].hear()
    three[0].tell("spend", 1.5)
    total += three[1].hear() + three[0].hear()
    assert total <= CAPACITY
    assert back(three[2])["said"] == ["store lost", "store back"]
    total += sum(worker("spend", 0.3) for worker in three)
    state = back(three[2])
    assert state["inflight"] <= 1  # that of the stopped call, whose caller was told that it did not go
    assert (total, total + state["inflight"]) == (state["used"], CAPACITY)


def test_permits_over_the_stop_count_once(workers: Callable[..., list[Worker]]) -> None:
    """Permits taken before, during and after the stop, settled during and after it: each counts once."""
    one, two = workers(2)
    assert two("take", 5) == 5
    one.stop_inside()
    two("settle")
    assert two("take", 7) == 7
    one.go_on()
    stray = 1 - one.hear()  # written too late: its caller was told that it did not go, and it ends with its lease
    back(two)
    back(one)
    assert two("state")["inflight"] == 7 + stray
    assert two("settle") == 7
    state = back(two)
    assert (state["used"], state["inflight"], state["permits"]) == (12, stray, stray)


def test_one_who_never_saw_the_ledger_reads_it(workers: Callable[..., list[Worker]]) -> None:
    """A process that starts while another is stopped takes no more than its part of what is really left."""
    one, two = workers(2)
    assert two("spend", 10.0, CAPACITY - 8) == CAPACITY - 8
    one.stop_inside()
    (late,) = workers(1)
    assert late("spend", 0.6) <= 8 // 2


def test_a_ban_learned_meanwhile_reaches_all(workers: Callable[..., list[Worker]]) -> None:
    """A ban learned while the store is away stops its learner at once and everyone when the store is back."""
    one, two = workers(2)
    one.stop_inside()
    assert two("ask")[0]
    two("block", "shop", 600)
    assert two("ask")[2] == "ban"
    one.go_on()
    one.hear()
    back(two)
    assert back(one)["blocks"] == ["shop"]
    assert one("ask")[2] == "ban"


def test_killed_while_stopped(workers: Callable[..., list[Worker]]) -> None:
    """A stopped process that is killed lets go of the lock, and what it had begun never happened."""
    one, two = workers(2)
    one.stop_inside()
    assert two("ask")[0]
    one.kill()
    state = back(two)
    assert state["used"] + state["inflight"] == 1


def back(worker: Worker) -> dict[str, Any]:
    """Wait until the worker is on the shared store again; returns what it knows."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        state: dict[str, Any] = worker("state")
        if not state["degraded"]:
            return state
        time.sleep(0.05)
    raise AssertionError(f"still on its own: {state}")
