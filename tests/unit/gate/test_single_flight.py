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
from ratekeeper.gate.policies import single_flight
from ratekeeper.gate.policies.single_flight import Follower, Leader, SingleFlight
from ratekeeper.gate.steps import drive, drive_async

KEY = b"k" * 16
STORES = pytest.mark.parametrize("store", ["memory://", "host://"])


def flights(store: str, home: Path) -> SingleFlight:
    """The flights of a new gate."""
    gate = Gate(store, home=home, hosts={})
    return SingleFlight(gate.store, gate.worker)


def join(of: SingleFlight, key: bytes) -> Leader | Follower:
    """Take part in one."""
    return drive(of.join(key, is_async=False))


def landed(follow: Follower, seconds: float) -> bool:
    """Whether it landed in so many seconds."""
    return drive(follow.wait(seconds, is_async=False))


@STORES
def test_the_first_leads_and_the_others_follow(tmp_path: Path, store: str) -> None:
    """Until it landed; then the next one leads. Other keys have flights of their own."""
    here = flights(store, tmp_path)
    lead = join(here, KEY)
    assert isinstance(lead, Leader)
    assert isinstance(join(here, b"x" * 16), Leader)
    follow = join(here, KEY)
    assert isinstance(follow, Follower)
    assert not landed(follow, 0.01)
    threading.Timer(0.05, lead.finish).start()
    assert landed(follow, 5)
    lead.finish()
    assert isinstance(join(here, KEY), Leader)


@STORES
def test_tasks_follow_as_threads_do(tmp_path: Path, store: str) -> None:
    """And one that is cancelled leaves nothing behind."""

    async def main() -> None:
        here = flights(store, tmp_path)
        lead = await drive_async(here.join(KEY, is_async=True))
        assert isinstance(lead, Leader)
        joined = [await drive_async(here.join(KEY, is_async=True)) for _ in range(4)]
        waits = [
            asyncio.create_task(drive_async(each.wait(5, is_async=True)))
            for each in joined
            if isinstance(each, Follower)
        ]
        await asyncio.sleep(0.01)
        waits.pop().cancel()
        lead.finish()
        assert await asyncio.gather(*waits) == [True] * 3

    asyncio.run(main())


def test_a_lead_that_is_forgotten_lands(tmp_path: Path) -> None:
    """A task that died does not keep others waiting."""
    here = flights("memory://", tmp_path)
    lead = join(here, KEY)
    follow = join(here, KEY)
    assert isinstance(follow, Follower)
    del lead
    assert landed(follow, 1)


def test_another_process_s_flight_is_followed(tmp_path: Path) -> None:
    """By all who ask here, one of whom looks; when it landed, or was killed and its time is over, one of them leads."""
    one, other = flights("host://", tmp_path), flights("host://", tmp_path)
    lead = join(one, KEY)
    assert isinstance(lead, Leader)
    first, second = join(other, KEY), join(other, KEY)
    assert isinstance(first, Follower)
    assert isinstance(second, Follower)
    threading.Timer(0.1, lead.finish).start()
    woken: list[bool] = []
    thread = threading.Thread(target=lambda: woken.append(landed(second, 5)))
    thread.start()
    assert landed(first, 5)
    thread.join(5)
    assert woken == [True]
    assert isinstance(join(other, KEY), Leader)


def test_a_leader_goes_on_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The claim of a call that takes long is renewed: those who follow in other processes go on waiting, until it ends."""
    monkeypatch.setattr(single_flight, "_CLAIM", 0.5)
    monkeypatch.setattr(single_flight, "_RENEW_EVERY", 0.1)
    one, other = flights("host://", tmp_path), flights("host://", tmp_path)
    lead = join(one, KEY)
    assert isinstance(lead, Leader)
    follow = join(other, KEY)
    assert isinstance(follow, Follower)
    assert not landed(follow, 1.2)
    again = join(other, KEY)
    assert isinstance(again, Follower)
    lead.finish()
    assert landed(again, 5)


def test_a_killed_leader_s_time_ends(tmp_path: Path) -> None:
    """SIGKILL: nobody renews its claim, so somebody else leads a few seconds later."""
    code = (
        "import sys, time; from ratekeeper import Gate;"
        "from ratekeeper.gate.policies.single_flight import SingleFlight, Leader;"
        "from ratekeeper.gate.steps import drive; gate = Gate('host://', home=sys.argv[1], hosts={});"
        "lead = drive(SingleFlight(gate.store, gate.worker).join(b'k' * 16, is_async=False));"
        "print(type(lead).__name__, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "Leader"
        os.kill(process.pid, signal.SIGKILL)
    here, begun = flights("host://", tmp_path), time.monotonic()
    follow = join(here, KEY)
    assert isinstance(follow, Follower)
    assert landed(follow, 10)
    assert time.monotonic() - begun < 5
    assert isinstance(join(here, KEY), Leader)
