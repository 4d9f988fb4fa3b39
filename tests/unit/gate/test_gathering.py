"""Many calls side by side."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable

import pytest

from ratekeeper import Congestion, Gate, gather_bounded, map_bounded
from ratekeeper.gate.gathering import gather_each

CALM = Congestion(width=3)


def test_one_failure_is_its_own() -> None:
    """The others are answered, and all stand in the order of the items."""

    async def call(item: int) -> int:
        await asyncio.sleep(0)
        return 12 // item

    done = asyncio.run(gather_bounded(call, [3, 0, 2, 1]))
    assert [each.value for each in done] == [4, None, 6, 12]
    assert [each.ok for each in done] == [True, False, True, True]
    assert isinstance(done[1].error, ZeroDivisionError)


def test_no_more_than_the_width_go_side_by_side() -> None:
    """And no less, while there is something to do."""
    running, most = 0, 0

    async def call(item: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(3):
            await asyncio.sleep(0)
        running -= 1

    asyncio.run(gather_bounded(call, range(50), congestion=CALM))
    assert most == 3


def test_input_without_end_is_taken_as_it_is_worked_on() -> None:
    """An asynchronous generator is asked for little more than was given out, also behind a slow item."""
    taken = 0

    async def numbers() -> AsyncIterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    async def call(item: int) -> int:
        await asyncio.sleep(0)
        return item

    async def some() -> list[int | None]:
        got: list[int | None] = []
        stream = gather_each(call, numbers(), congestion=CALM)
        async for each in stream:
            got.append(each.value)
            if len(got) == 20:
                break
        await stream.aclose()  # type: ignore[attr-defined]
        return got

    assert asyncio.run(some()) == list(range(1, 21))
    assert taken <= 26


def test_cancelled_it_leaves_nothing_running() -> None:
    """All children are cancelled, and have ended when it has."""
    begun, ended = [], []

    async def call(item: int) -> None:
        begun.append(item)
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(item)

    async def main() -> None:
        task = asyncio.create_task(gather_bounded(call, range(9), congestion=CALM))
        while len(begun) < 3:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert sorted(ended) == begun == [0, 1, 2]

    asyncio.run(main())


def test_trouble_of_the_gate_is_everybodys(gate: Gate) -> None:
    """Refusals that one call met make every gather from that provider go slower."""
    control = gate.congestion.of("shop")
    assert control.going().width == 10
    for _ in range(6):
        with gate.permit("shop", "GET", "/slot") as permit:
            permit.settle(429)
        gate.unblock(permit.plan.charges[0].key)  # which would be held a little longer each time
    assert gate.congestion.of("shop").going().width == 5
    for _ in range(5):
        with gate.permit("shop", "GET", "/slot") as permit:
            permit.settle(503)
    assert control.going() == (1, 1.0)
    assert gate.congestion.of("other").going().width == 10


def test_errors_of_the_function_can_mean_trouble() -> None:
    """Without a gate, `jam` tells which; more than ten leave one at a time."""
    running, most = 0, []
    hard = Congestion(width=4, gap=0, long_gap=0)

    async def call(item: int) -> None:
        nonlocal running
        running += 1
        most.append(running)
        await asyncio.sleep(0)
        running -= 1
        raise ConnectionError

    asyncio.run(gather_bounded(call, range(40), congestion=hard, jam=lambda error: isinstance(error, ConnectionError)))
    assert max(most[:6]) == 4
    assert set(most[-20:]) == {1}


@pytest.mark.parametrize("fails", [False, True])
def test_threads(fails: bool, new_gate: Callable[..., Gate]) -> None:
    """The same with threads: bounded, in order, one failure alone."""
    lock, running, most = threading.Lock(), 0, 0

    def call(item: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        try:
            return 10 // (item - 5 if fails else 1)
        finally:
            with lock:
                running -= 1

    done = list(map_bounded(call, range(20), gate=new_gate(), provider="shop", congestion=CALM))
    assert [each.item for each in done] == list(range(20))
    assert [each.item for each in done if not each.ok] == ([5] if fails else [])
    assert most <= 3
