"""Events: at the levels that the documentation says, and on stderr with the time where nobody set up logging."""

from __future__ import annotations

import logging
import re
from datetime import datetime
from pathlib import Path

import pytest

from ratekeeper.gate.events import LEVELS, Event, Events

ROOT = Path(__file__).parents[3]


def told() -> dict[str, str]:
    """Kind and level of every event, as the page of events says."""
    page = (ROOT / "docs" / "reference" / "errors.md").read_text("utf-8").partition("| kind | level |")[2]
    found: dict[str, str] = {}
    for row in re.findall(r"^\| (`[^|]*`) \| ([a-z, ]+) \| .+ \|$", page, re.M):
        kinds, levels = re.findall(r"`([^`]+)`", row[0]), row[1].split(", ")
        levels = levels * len(kinds) if len(levels) == 1 else levels
        found |= dict(zip(kinds, levels, strict=True))
    return found


def test_the_page_has_every_event_and_its_level() -> None:
    """One table in the code is the source of both."""
    assert told() == {kind: logging.getLevelName(level).lower() for kind, level in LEVELS.items()}


def test_every_event_of_the_code_is_in_the_table() -> None:
    """Whatever is emitted anywhere has a level, and whatever has a level is emitted."""
    code = "\n".join(file.read_text("utf-8") for file in (ROOT / "src").rglob("*.py"))
    emitted = set(re.findall(r"\b(?:say|_say|_tell|_told|say_seldom)\(\s*\"([a-z ]+)\"", code))
    passed_on = {"stream down", "stream stale"}  # as an argument
    assert emitted | passed_on == set(LEVELS)
    assert all(f'"{kind}"' in code for kind in passed_on)


@pytest.mark.parametrize("kind", sorted(LEVELS))
def test_the_log_has_it_at_that_level(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """Handlers get the event itself."""
    caplog.set_level(logging.DEBUG, "ratekeeper")
    events, heard = Events(), list[Event]()
    events.on(heard.append)
    events.say(kind, "a sentence", "okx", key="x")
    assert [(record.levelno, record.message) for record in caplog.records] == [(LEVELS[kind], "okx: a sentence")]
    assert [(event.kind, event.fields) for event in heard] == [(kind, {"key": "x"})]


def no_logging(patch: pytest.MonkeyPatch) -> None:
    """From here on the program has set up none."""
    patch.setattr(logging.getLogger(), "handlers", [])
    patch.setattr(logging.getLogger("ratekeeper"), "handlers", [])


def test_lines_on_stderr_have_the_time(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Each warning once, however many gates there are; information not at all."""
    no_logging(monkeypatch)
    for events in (Events(), Events()):
        events.say("banned", "ip:default is banned for 60 s", "okx")
        events.say("learned", "limits", "okx")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    for line in lines:
        day, clock, text = line.split(" ", 2)
        assert text == "ratekeeper: okx: ip:default is banned for 60 s"
        assert abs(datetime.strptime(f"{day} {clock}", "%Y-%m-%d %H:%M:%S%z").timestamp() - Event("", "").at) < 600


def test_a_program_with_logging_gets_its_own_lines_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether it was set up before or after the gate, for all loggers or for ours; or silenced."""
    no_logging(monkeypatch)
    events = Events()
    handler = logging.StreamHandler()
    for logger in (logging.getLogger(), logging.getLogger("ratekeeper")):
        logger.addHandler(handler)
        events.say("banned", "once")
        logger.removeHandler(handler)
        assert capsys.readouterr().err == "once\n"
    monkeypatch.setattr(logging, "lastResort", None)
    events.say("banned", "once")
    assert capsys.readouterr().err == ""
