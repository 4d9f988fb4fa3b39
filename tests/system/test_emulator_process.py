"""The emulator as a real process: started as users start it, and as `ratekeeper.testing` does."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest

from ratekeeper.testing import Emulator

TIME = "/fapi/v1/time"


def get(emulator: Emulator, path: str = TIME, *, source: str = "127.0.0.1") -> tuple[int, Any]:
    """Status and headers of one call from a source address."""
    place = emulator.url.removeprefix("http://")
    connection = http.client.HTTPConnection(place, timeout=5, source_address=(source, 0))
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        return answer.status, answer.headers
    finally:
        connection.close()


def start(*arguments: str, **more: Any) -> subprocess.Popen[str]:
    """`ratekeeper emulate` with these arguments."""
    line = [sys.executable, "-m", "ratekeeper", "emulate", *arguments]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more)


def second_address() -> bool:
    """Whether this machine lets a program leave from 127.0.0.2 (Linux does; macOS needs an alias)."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.2", 0))
        except OSError:
            return False
        return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_line_at_the_start_and_a_summary_at_the_end(number: signal.Signals) -> None:
    """The first line can be copied into RATEKEEPER_HOSTS; Ctrl-C and SIGTERM end it cleanly."""
    child = start("binance-usdm", "--port", "0")
    assert child.stdout is not None
    line = child.stdout.readline().strip()
    port = line.split("127.0.0.1:", 1)[1].split(" ", 1)[0]
    assert line == f"Emulating binance-usdm on http://127.0.0.1:{port} (RATEKEEPER_HOSTS=127.0.0.1:{port}=binance-usdm)"
    child.send_signal(number)
    rest, _ = child.communicate(timeout=10)
    assert child.returncode == 0
    assert rest.startswith("0 requests arrived: 0 answered 429, 0 answered 418, 0 bans")


def test_a_port_in_use_is_said_plainly() -> None:
    """No traceback, and exit status 1."""
    with Emulator() as emulator:
        child = start("binance-spot", "--port", emulator.url.rsplit(":", 1)[1])
        said, _ = child.communicate(timeout=20)
    assert child.returncode == 1
    assert said.startswith("Error: ")
    assert "Traceback" not in said


def test_the_test_class_says_why_it_could_not_start() -> None:
    """The child's own words are in the error."""
    with pytest.raises(RuntimeError, match="has no limit 'nope'"):
        Emulator(limits={"nope": (1, 1)})


def test_it_stops_when_the_program_that_started_it_dies() -> None:
    """A killed test run leaves no emulator behind."""
    code = (
        "import os, signal; from ratekeeper.testing import Emulator; emulator = Emulator();"
        "print(emulator.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    pid = int(done.stdout)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and _alive(pid):
        time.sleep(0.05)
    assert not _alive(pid)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_refused_then_banned_then_free_again() -> None:
    """In real time: 429, then 418 for whoever goes on, then service again when the ban is over."""
    with Emulator(window=1, capacity=3, ban_after=3, ban=1.5) as emulator:
        seen = []
        while not seen or seen[-1] != 418:
            seen.append(get(emulator)[0])
        assert seen.count(429) == 2
        banned = time.monotonic()
        status, headers = get(emulator)
        assert (status, headers["Retry-After"]) in ((418, "1"), (418, "2"))
        while get(emulator)[0] == 418:
            time.sleep(0.05)
        assert 1.2 < time.monotonic() - banned < 6
        assert emulator.stats()["totals"]["bans"] == 1


@pytest.mark.skipif(not second_address(), reason="this machine has no second loopback address")
def test_another_source_address_is_another_ip() -> None:
    """127.0.0.2 has its own budget and its own bans."""
    with Emulator(window=86_400, capacity=1, ban_after=2) as emulator:
        assert [get(emulator)[0] for _ in range(3)] == [200, 429, 418]
        assert get(emulator, source="127.0.0.2")[0] == 200
        emulator.ban("127.0.0.2", seconds=60)
        assert get(emulator, source="127.0.0.2")[0] == 418
        assert set(emulator.stats()["ips"]) == {"127.0.0.1", "127.0.0.2"}


def test_windows_tell_what_was_used_of_each() -> None:
    """Complete windows come oldest first and never hold more than the capacity."""
    with Emulator(window=1, capacity=20, ban_after=0) as emulator:
        until = time.monotonic() + 3.2
        while time.monotonic() < until:
            get(emulator)
        rows = emulator.windows()
        assert len(rows) >= 2
        assert all(row["accepted"] == 20 and row["refused"] > 0 for row in rows)
        assert [row["start"] for row in rows] == sorted(row["start"] for row in rows)
        assert "100.0% of weight-1m used in complete windows" in emulator.close()


def test_latency_is_on_both_ways() -> None:
    """The delay before counting and the delay after it add up."""
    with Emulator(latency=(60, 80)) as emulator:
        get(emulator)
        begin = time.monotonic()
        get(emulator)
        assert 0.12 <= time.monotonic() - begin < 5
        assert emulator.options(latency=(0, 0))["latency"] == [0.0, 0.0]
        with pytest.raises(ValueError, match="loss"):
            emulator.options(loss=2)


def test_a_second_clock_dates_the_answers() -> None:
    """``Date`` 30 s ahead of the clock that counts, from the start; put right, and behind, while it runs."""
    with Emulator(window=60, date_offset=30, date_spread=2, date_per="answer") as emulator:

        def ahead() -> float:
            dated = parsedate_to_datetime(get(emulator)[1]["Date"]).timestamp()
            return dated - float(emulator.stats()["now"])

        assert 25 < ahead() < 32
        assert emulator.options(date_spread=0)["date_offset"] == 30
        emulator.options(date_offset=-1_000)
        assert -1_006 < ahead() < -999
        (row,) = emulator.windows(complete=False)[-1:]
        assert row["start"] <= float(emulator.stats()["now"]) < row["start"] + 60
        with pytest.raises(ValueError, match="date_per"):
            emulator.options(date_per="window")
    child = start("binance-usdm", "--port", "0", "--date-per", "moon")
    assert "Invalid value for '--date-per'" in child.communicate(timeout=20)[0]


def test_refused_calls_count_or_do_not() -> None:
    """By default an address pays for what was refused."""
    with Emulator(window=86_400, capacity=2, ban_after=0) as emulator:
        assert [get(emulator)[1]["X-MBX-USED-WEIGHT-1D"] for _ in range(4)] == ["1", "2", "3", "4"]
    with Emulator(window=86_400, capacity=2, ban_after=0, count_refused=False) as emulator:
        assert [get(emulator)[1]["X-MBX-USED-WEIGHT-1D"] for _ in range(4)] == ["1", "2", "2", "2"]
