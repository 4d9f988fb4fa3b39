"""Programs that keep sessions alive, as processes: killed and started again, terminated, commanded from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 30.0

ASYNC = """
import asyncio, sys
from pathlib import Path
from ratekeeper.sessions.restarts import Restart
from ratekeeper.sessions.supervisor import Supervisor

async def grid(session):
    print("began", flush=True)
    if not Path("well").exists():
        raise ConnectionError("the websocket was cut")
    try:
        await asyncio.Event().wait()
    finally:
        print("ended", flush=True)

async def main():
    async with Supervisor(name="bot") as supervisor:
        supervisor.add("grid", grid, settings=Restart(attempts=2, first=0.01, cooldown=600, proven=0.05))
        await asyncio.Event().wait()

asyncio.run(main())
"""

THREADS = """
from ratekeeper.sessions.supervisor import Supervisor

def grid(session):
    print("began", flush=True)
    session.stopping.wait()
    print("ended", flush=True)

def other(session):
    session.stopping.wait()
    print("other ended", flush=True)

with Supervisor(name="bot") as supervisor:
    supervisor.add("grid", grid)
    supervisor.add("other", other)
    while True:
        supervisor.wait(1.0)
        if supervisor["grid"].state == supervisor["other"].state == "stopped":
            break
"""


def _mind_ctrl_c() -> None:
    """Whoever runs the tests in the background has Ctrl-C ignored, by him and all his children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Program:
    """A program in a process of its own."""

    def __init__(self, folder: Path, code: str) -> None:
        self.folder = folder
        with (folder / "errors.txt").open("a") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code],
                cwd=folder,
                env=env(folder),
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                preexec_fn=_mind_ctrl_c,
            )

    def line(self) -> str:
        """The next line it prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def rest(self) -> list[str]:
        """What it prints until its end."""
        return self.process.communicate(timeout=PATIENCE)[0].split("\n")[:-1]


def env(folder: Path) -> dict[str, str]:
    """The environment of programs and commands."""
    return {**os.environ, "RATEKEEPER_HOME": str(folder / "home"), "PYTHONWARNINGS": "default"}


@contextmanager
def program(folder: Path, code: str) -> Iterator[Program]:
    """A program that does not outlive the test."""
    made = Program(folder, code)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait()
        assert made.process.stdout is not None
        made.process.stdout.close()


def run(folder: Path, *arguments: str, code: int = 0) -> str:
    """What ``ratekeeper sessions …`` says."""
    words = [sys.executable, "-m", "ratekeeper", "sessions", *arguments]
    done = subprocess.run(words, env=env(folder), capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == code, done.stderr
    return (done.stdout + done.stderr).strip()


def row(folder: Path, name: str = "grid@bot") -> dict[str, Any]:
    """A session as the list shows it."""
    rows: list[dict[str, Any]] = json.loads(run(folder, "list", "--json"))
    return next(each for each in rows if each["id"] == name)


def until(folder: Path, holds: Callable[[dict[str, Any]], bool], name: str = "grid@bot") -> dict[str, Any]:
    """Ask for the list until a session is as it should be."""
    end = time.monotonic() + PATIENCE
    while not holds(found := row(folder, name)):
        assert time.monotonic() < end, found
    return found


def test_killed_during_a_cooldown(tmp_path: Path) -> None:
    """Killed while its session cools down, a program goes on with the cooldown; a command from outside ends it."""
    with program(tmp_path, ASYNC) as first:
        assert [first.line() for _ in range(3)] == ["began"] * 3
        found = until(tmp_path, lambda each: each["state"] == "cooldown")
        assert found["pid"] == first.process.pid
        assert found["running"] is True
        assert found["cooldowns"] == 1
        first.process.kill()
        first.process.wait()
        found = row(tmp_path)
        assert found["running"] is False
        assert "no program runs" in run(tmp_path, "recover", "grid", code=2)
    with program(tmp_path, ASYNC) as second:
        found = until(tmp_path, lambda each: bool(each["running"]))
        assert (found["state"], found["cooldowns"], found["recoveries"]) == ("cooldown", 1, 2)
        assert 500 < found["next_in"] <= 600
        (tmp_path / "well").touch()
        assert run(tmp_path, "recover", "grid@bot") in ("grid@bot is recovering", "grid@bot is healthy")
        assert second.line() == "began"
        found = until(tmp_path, lambda each: each["state"] == "healthy")
        assert found["success_rate"] == pytest.approx(1 / 3, abs=1e-3)
        assert "grid@bot" in run(tmp_path, "list")
        second.process.send_signal(signal.SIGTERM)
        assert second.rest() == ["ended"]
        assert second.process.returncode == 143
    assert "Traceback" not in (tmp_path / "errors.txt").read_text()
    assert row(tmp_path)["state"] == "stopped"


def test_stop_from_outside(tmp_path: Path) -> None:
    """One session is stopped from outside, cleanly; the program and its other session go on."""
    with program(tmp_path, THREADS) as bot:
        assert bot.line() == "began"
        until(tmp_path, lambda each: each["state"] == "healthy", "other@bot")
        assert run(tmp_path, "stop", "grid") == "grid@bot is stopped"
        assert bot.line() == "ended"
        assert row(tmp_path, "other@bot")["state"] == "healthy"
        assert run(tmp_path, "recover", "grid") == "grid@bot is healthy"
        assert bot.line() == "began"
        run(tmp_path, "stop", "grid")
        run(tmp_path, "stop", "other@bot")
        assert bot.rest() == ["ended", "other ended"]
        assert bot.process.returncode == 0
    assert "there is no session" in run(tmp_path, "stop", "nobody", code=2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("code", [ASYNC, THREADS], ids=["async", "threads"])
def test_signals_stop_cleanly(tmp_path: Path, number: signal.Signals, code: str) -> None:
    """Ctrl-C and SIGTERM stop every session, last first, and end the program."""
    (tmp_path / "well").touch()
    with program(tmp_path, code) as bot:
        assert bot.line() == "began"
        if code == THREADS:
            until(tmp_path, lambda each: each["state"] == "healthy", "other@bot")
        bot.process.send_signal(number)
        assert bot.rest() == (["other ended", "ended"] if code == THREADS else ["ended"])
        assert bot.process.returncode in ((-signal.SIGINT, 130) if number == signal.SIGINT else (143,))


def test_second_program_is_refused(tmp_path: Path) -> None:
    """Two programs do not run one session: the second is told who does, until the first is killed."""
    with program(tmp_path, THREADS) as first:
        assert first.line() == "began"
        with program(tmp_path, THREADS) as second:
            assert second.process.wait(PATIENCE) == 1
        assert f"already run by process {first.process.pid}" in (tmp_path / "errors.txt").read_text()
        first.process.kill()
        first.process.wait()
        with program(tmp_path, THREADS) as third:
            assert third.line() == "began"


def test_killed_at_any_instant(tmp_path: Path) -> None:
    """Killed again and again while its session falls over all the time, the history is whole each time, and grows."""
    code = ASYNC.replace("attempts=2, first=0.01", "attempts=100000, first=0.001, longest=0.002, most=100000")
    seen = 0
    for number in range(8):
        with program(tmp_path, code) as bot:
            for _ in range(5 + number):
                assert bot.line() == "began"
            bot.process.kill()
            bot.process.wait()
        found = row(tmp_path)
        assert found["attempts"] > seen
        seen = found["attempts"]
