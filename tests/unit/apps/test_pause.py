"""``headgate pause`` and ``resume``, and how ``status`` shows what they did."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from headgate.apps.cli import main
from headgate.apps.pause import command, resume
from headgate.apps.status import command as status


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder of the test's own."""
    monkeypatch.setenv("HEADGATE_HOME", str(tmp_path))
    monkeypatch.setenv("HEADGATE_HOSTS", "")
    return tmp_path


def run(made: object, *arguments: str) -> str:
    """What a command says."""
    done = CliRunner().invoke(made, arguments)  # type: ignore[arg-type]
    assert done.exit_code == 0, done.output
    return done.output.strip()


def test_pause_status_resume() -> None:
    """Each in the words that were typed; what else is paused is told."""
    assert run(command, "*") == "everything is paused: headgate resume everything"
    assert run(command, "class:order", "--seconds", "90") == "class:order is paused for 90 s"
    assert run(command, "okx/account:main", "--reason", "looking").startswith("okx/account:main is paused")
    shown = run(status)
    assert "PAUSE everything until resumed  paused by hand" in shown
    assert "PAUSE orders for" in shown
    assert "PAUSE okx/account:main until resumed  looking" in shown
    assert run(resume, "everything") == "everything is open again; still paused: orders, okx/account:main"
    assert run(resume, "everything") == "everything was not paused; still paused: orders, okx/account:main"
    assert run(resume, "okx/account:main") == "okx/account:main is open again; still paused: orders"
    assert run(resume, "orders") == "orders is open again"


def test_a_slip_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """With the remedy, exit code 2."""
    with pytest.raises(SystemExit) as ended:
        main(["pause", "orders/okx"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
