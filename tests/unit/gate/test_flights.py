"""One flight for many askers, of one process and of several."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ratekeeper import Gate
from ratekeeper.gate.policies.single_flight import Flights, Follow, Lead

KEY = b"k" * 16
STORES = pytest.mark.parametrize("store", ["memory://", "host://"])


def flights(store: str, home: Path) -> Flights:
    """The flights of a new gate."""
    return Flights(Gate(store, home=home, hosts={}).store)


@STORES
def test_the_first_leads_and_the_others_follow(tmp_path: Path, store: str) -> None:
    """Until it landed; then the next one leads. Other keys have flights of their own."""
    here = flights(store, tmp_path)
    lead = here.join(KEY, 10)
    assert isinstance(lead, Lead)
    assert isinstance(here.join(b"x" * 16, 10), Lead)
    follow = here.join(KEY, 10)
    assert isinstance(follow, Follow)
    assert not follow.wait(0.01)
    threading.Timer(0.05, lead.land).start()
    assert follow.wait(5)
    lead.land()
    assert isinstance(here.join(KEY, 10), Lead)


@STORES
def test_tasks_follow_as_threads_do(tmp_path: Path, store: str) -> None:
    """And one that is cancelled leaves nothing behind."""

    async def main() -> None:
        here = flights(store, tmp_path)
        lead = await here.join_async(KEY, 10)
        assert isinstance(lead, Lead)
        joined = [await here.join_async(KEY, 10) for _ in range(4)]
        waits = [asyncio.create_task(each.wait_async(5)) for each in joined if isinstance(each, Follow)]
        await asyncio.sleep(0.01)
        waits.pop().cancel()
        lead.land()
        assert await asyncio.gather(*waits) == [True] * 3

    asyncio.run(main())


def test_a_lead_that_is_forgotten_lands(tmp_path: Path) -> None:
    """A task that died does not keep others waiting."""
    here = flights("memory://", tmp_path)
    lead = here.join(KEY, 10)
    follow = here.join(KEY, 10)
    assert isinstance(follow, Follow)
    del lead
    assert follow.wait(1)


def test_another_process_s_flight_is_followed(tmp_path: Path) -> None:
    """By all who ask here, one of whom looks; when it landed, or was killed and its time is over, one of them leads."""
    one, other = flights("host://", tmp_path), flights("host://", tmp_path)
    lead = one.join(KEY, 10)
    assert isinstance(lead, Lead)
    first, second = other.join(KEY, 10), other.join(KEY, 10)
    assert isinstance(first, Follow)
    assert isinstance(second, Follow)
    threading.Timer(0.1, lead.land).start()
    woken: list[bool] = []
    thread = threading.Thread(target=lambda: woken.append(second.wait(5)))
    thread.start()
    assert first.wait(5)
    thread.join(5)
    assert woken == [True]
    assert isinstance(other.join(KEY, 10), Lead)


def test_a_killed_leader_s_time_ends(tmp_path: Path) -> None:
    """SIGKILL: nobody lands it; after the time that was allowed to it somebody else leads."""
    code = (
        "import sys, time; from ratekeeper import Gate; from ratekeeper.gate.policies.single_flight import Flights, Lead;"
        "lead = Flights(Gate('host://', home=sys.argv[1], hosts={}).store).join(b'k' * 16, 1.0);"
        "print(type(lead).__name__, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "Lead"
        os.kill(process.pid, signal.SIGKILL)
    here, begun = flights("host://", tmp_path), time.monotonic()
    follow = here.join(KEY, 10)
    assert isinstance(follow, Follow)
    assert follow.wait(10)
    assert time.monotonic() - begun < 5
    assert isinstance(here.join(KEY, 10), Lead)
