"""Many calls side by side."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

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


def test_a_change_of_width_or_gap_is_told(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once each: fewer at a refusal too many, and more again when calls go on."""
    told: list[tuple[str, dict[str, object]]] = []
    gate.on(lambda event: event.kind == "gather" and told.append((event.message, event.fields)))
    control, now = gate.congestion.of("shop"), time.monotonic()
    for _ in range(12):
        control.refused()
    assert [fields for _, fields in told] == [{"width": 5, "gap": 0.2}, {"width": 1, "gap": 1.0}]
    assert told[-1][0] == "gathers make fewer calls side by side: 1, 1 s apart"
    monkeypatch.setattr("ratekeeper.gate.congestion.time.monotonic", lambda: now + 3600)
    assert control.admit(0) == 0.0
    assert control.admit(1) == 0.0
    assert told[2:] == [("gathers make more calls side by side: 10", {"width": 10, "gap": 0.0})]


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


def test_widths_of_the_configuration(tmp_path: Path) -> None:
    """By provider; `*` is every other; what the program states goes before the file."""
    file = tmp_path / "ratekeeper.toml"
    file.write_text('[gathers."*"]\nwidth = 4\n[gathers.bitget]\nwidth = 20\nmany = 1\n')
    with Gate("memory://", config=file, hosts={"127.0.0.1:9": "bitget"}) as gate:
        controls = gate.congestion
        assert controls.of("bitget").congestion == Congestion(width=20, many=1)
        assert controls.of("bitget@127.0.0.1:9").congestion.width == 20
        assert controls.of("okx").congestion.width == 4
        assert controls.of("bybit", CALM).congestion is CALM
