"""`ratekeeper sessions list`: the state of every session, and how its latest recoveries went."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from ratekeeper.apps.sessions import command
from ratekeeper.sessions.history import Record, Records
from ratekeeper.sessions.restarts import Progress, Recovery

NOW = 1_795_820_000.0
LONG = "grid-strategy-with-a-name-that-nobody-would-choose@a-program-with-a-long-name.py"


@pytest.fixture(autouse=True)
def _sessions(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sessions of programs that are gone; one has recovered often."""
    monkeypatch.setenv("COLUMNS", "120")
    rows = [
        Recovery(NOW + 60 * nth, "Cut", "Cut: the line broke", 1.5 * nth, 3.0 * nth, nth, nth == 5)
        for nth in range(1, 6)
    ]
    records = Records(own_home)
    records.write(Record(LONG, 1_234_567, 5, "healthy", time.time() - 100, "Cut: the line broke", history=tuple(rows)))
    records.write(Record("x@bot", 12, 5, "cooldown", time.time() - 86_400 * 3, progress=Progress(4)))


def listed(*arguments: str) -> str:
    """What the command says."""
    done = CliRunner().invoke(command, ["list", *arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_the_history_is_shown() -> None:
    """The latest three recoveries, or as many as are wanted; when, why, which start, how it ended."""
    shown = listed()
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(NOW + 300))
    assert (
        f"    {at} Cut: the line broke: start 5 after a wait of 8 s, healthy, 15 s after the first failure\n" in shown
    )
    assert shown.count("failed again") == 2
    assert "start 3 after a wait of 4 s" in shown and "start 2" not in shown
    assert listed("--history", "10").count("failed again") == 4
    assert "start" not in listed("--history", "0")
    assert "last failure: Cut: the line broke" in shown
    assert "20% of 5" in shown


def test_all_of_it_is_in_the_json() -> None:
    """Whatever `--history` says."""
    first, second = json.loads(listed("--json", "--history", "0"))
    assert [each["attempt"] for each in first["history"]] == [1, 2, 3, 4, 5]
    assert first["history"][-1] == {
        "at": NOW + 300, "kind": "Cut", "reason": "Cut: the line broke", "delay": 7.5, "took": 15.0, "attempt": 5, "ok": True,
    }  # fmt: skip
    assert second["history"] == []


@pytest.mark.parametrize("width", [60, 80, 100])
def test_numbers_survive_every_width(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names of sessions are shortened."""
    monkeypatch.setenv("COLUMNS", str(width))
    shown = listed()
    assert all(len(line) <= width for line in shown.splitlines())
    for number in ("20% of 5", "15 s", "3 d", "4"):
        assert number in shown
    assert LONG not in shown and "grid" in shown and "name.py" in shown
