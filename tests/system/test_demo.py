"""``ratekeeper demo`` as a newcomer meets it: without a terminal, as JSON, and stopped with Ctrl-C."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.support.stood import Stood

DEMO = [sys.executable, "-m", "ratekeeper", "demo"]


@pytest.mark.alone
def test_bare_gets_banned_and_governed_uses_everything(own_home: Path) -> None:
    """The figures say what the demo is for, and the user's own state is not touched."""
    begin = time.monotonic()
    with Stood() as stood:
        done = subprocess.run(
            [*DEMO, "--json", "--seconds", "32"], capture_output=True, text=True, timeout=90, check=False
        )
    lost = stood.share(time.time() - 32, time.time())
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - begin < 45
    found = json.loads(done.stdout)
    assert done.stderr == ""
    assert found["budget"] == {"capacity": 2400, "unit": "weight", "seconds": 10}
    bare, governed = found["without_ratekeeper"], found["with_ratekeeper"]
    assert bare["throttled"] > 0
    assert bare["bans"] >= 1
    assert bare["banned_seconds"] > 2
    assert (governed["throttled"], governed["banned"], governed["bans"]) == (0, 0, 0)
    assert governed["budget_used"] + lost >= 0.95
    assert set(governed["programs"]) == {"ccxt_bot", "requests_bot", "httpx_bot"}
    assert all(each["answered"] for each in governed["programs"].values())
    assert governed["waits"]["low"]["calls"] > 0
    assert not own_home.exists()


def test_ctrl_c_leaves_nothing_running() -> None:
    """On a terminal: a live picture; Ctrl-C in the middle of a half ends the emulators and all programs."""
    leader, follower = pty.openpty()
    child = subprocess.Popen(
        DEMO, stdin=follower, stdout=follower, stderr=follower, start_new_session=True, preexec_fn=_own_terminal
    )
    os.close(follower)
    started: list[int] = []
    deadline = time.monotonic() + 40
    seen = b""
    while len(started) < 5 and time.monotonic() < deadline:
        seen += os.read(leader, 65536)
        started = _children(child.pid)
    while b"BANNED" not in seen and time.monotonic() < deadline:
        seen += os.read(leader, 65536)
    os.write(leader, b"\x03")
    while True:  # a terminal that nobody reads would hold it up
        try:
            if not os.read(leader, 65536):
                break
        except OSError:  # its other end is closed
            break
    assert child.wait(timeout=15) != 0
    os.close(leader)
    assert len(started) == 5  # two emulators, three programs
    assert "Three programs, one IP address, one budget" in seen.decode(errors="replace")
    assert b"BANNED" in seen
    deadline = time.monotonic() + 5
    while (left := [pid for pid in started if _alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def _own_terminal() -> None:
    """In the child: standard input is the controlling terminal, so that Ctrl-C becomes a signal."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _children(pid: int) -> list[int]:
    done = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in done.stdout.split()]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
