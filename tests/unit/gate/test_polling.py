"""Pollers, on asyncio and in threads."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from ratekeeper import Interval, Poller
from ratekeeper.errors import Blocked

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
