"""Pollers, on asyncio and in threads."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest

from ratekeeper import Gate, Interval, Poller
from ratekeeper.errors import Blocked, RuleError

QUICK = Interval(shortest=0.001, longest=0.004, errors=1, look=3, calm=2)


def test_async_iteration_skips_errors_and_slows_down() -> None:
    """Answers come as they are made; after too many errors the interval is longer, and after calm as before."""
    polls, seconds, told = 0, [], []

    async def ask() -> int:
        nonlocal polls
        polls += 1
        if polls in {2, 3}:
            raise ConnectionError
        return polls

    async def main() -> list[int]:
        poller: Poller[int] = Poller(ask, QUICK, on_error=told.append)
        got = []
        async for answer in poller:
            got.append(answer)
            seconds.append(poller.seconds)
            if len(got) == 4:
                poller.stop()
        return got

    assert asyncio.run(main()) == [1, 4, 5, 6]
    assert seconds == [0.001, 0.002, 0.002, 0.001]
    assert [type(error) for error in told] == [ConnectionError] * 2


def test_a_thread_polls_until_it_is_stopped() -> None:
    """Answers go to the handler, one that raises disturbs nothing, and `stop` waits for the end."""
    seen, enough = [], threading.Event()

    def on(answer: int) -> None:
        seen.append(answer)
        if len(seen) == 5:
            enough.set()
        raise KeyError(answer)

    poller: Poller[int] = Poller(lambda: 7, QUICK, on=on).start()
    assert enough.wait(10)
    assert poller.stop()
    polls = len(seen)
    assert set(seen) == {7}
    assert len(seen) == polls


def test_a_refusal_of_ours_moves_the_next_poll() -> None:
    """It waits until the block ends, and the interval stays as it is."""
    polls: list[float] = []

    async def ask() -> str:
        polls.append(time.time())
        if len(polls) == 1:
            raise Blocked("banned", retry_at=polls[0] + 0.2)
        return "open"

    async def main() -> float:
        poller: Poller[str] = Poller(ask, QUICK)
        async for _ in poller:
            poller.stop()
        return poller.seconds

    assert asyncio.run(main()) == QUICK.shortest
    assert len(polls) == 2
    assert polls[1] >= polls[0] + 0.199


def test_it_never_overlaps_itself() -> None:
    """Whoever runs it a second time at once is told."""

    async def main() -> None:
        poller: Poller[int] = Poller(lambda: 1, Interval())
        task = asyncio.create_task(poller.run_async())
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="runs already"):
            poller.run()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_stop_ends_a_long_wait() -> None:
    """A poller that sleeps for half a minute stops at once, from another thread."""
    made = threading.Event()
    poller: Poller[None] = Poller(made.set, Interval()).start()
    assert made.wait(10)
    assert poller.stop()


def test_intervals_of_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the poller's name; `*` is every other; what the program states goes before the file."""
    file = tmp_path / "ratekeeper.toml"
    file.write_text('[pollers."*"]\nshortest = 20\n[pollers.positions]\nshortest = 5\nlongest = 60\n')
    with Gate("memory://", config=file) as gate:
        assert Poller(print, gate=gate).seconds == 20
    assert Poller(print).seconds == 30
    monkeypatch.setenv("RATEKEEPER_CONFIG", str(file))
    assert [Poller(print, name=name).seconds for name in ("", "orders", "positions")] == [20, 20, 5]
    assert Poller(print, Interval(shortest=1), name="positions").seconds == 1
    file.write_text("[pollers.positions]\nshortest = 5\n")
    assert [Poller(print, name=name).seconds for name in ("", "orders", "positions")] == [30, 30, 5]
    file.write_text("[pollers.positions]\nshortest = 0\n")
    with pytest.raises(RuleError, match=r"ratekeeper.toml:2: pollers.positions.shortest: expected seconds above 0"):
        Poller(print, name="positions")
