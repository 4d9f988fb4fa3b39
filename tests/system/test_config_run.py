"""The configuration file under ``ratekeeper run``: real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os
os.chdir("/")
from ratekeeper import Gate
gate = Gate.shared()
print(gate.weight, gate.permit("binance-usdm", "POST", "/fapi/v1/order")._priority, gate.home)
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``ratekeeper run`` in `folder`."""
    return subprocess.run(
        [sys.executable, "-m", "ratekeeper", "run", *arguments],
        cwd=folder,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_file_reaches_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path holds for a program that changes its folder; the program's own part is found by its script's name."""
    (tmp_path / "bot.py").write_text(PROGRAM)
    (tmp_path / "ratekeeper.toml").write_text(
        '[programs."bot.py"]\nweight = 7\n[priorities]\n"binance-usdm POST /fapi/v1/order" = "critical"\n'
    )
    done = run(tmp_path, "--config", "ratekeeper.toml", "--", sys.executable, "bot.py")
    assert done.stdout.split() == ["7", "0", os.environ["RATEKEEPER_HOME"]], done.stderr
    monkeypatch.setenv("RATEKEEPER_CONFIG", "ratekeeper.toml")
    done = run(tmp_path, "--weight", "9", "--", sys.executable, "bot.py")
    assert done.stdout.split()[:2] == ["9", "0"], done.stderr


def test_a_wrong_file_stops_the_program_before_it_starts(tmp_path: Path) -> None:
    """Exit code 2, one line that names the place; nothing ran."""
    (tmp_path / "bot.py").write_text("print('ran')")
    (tmp_path / "ratekeeper.toml").write_text("weight = 1\n\n[providers.okx]\nlimit = 1\n")
    done = run(tmp_path, "--config", "ratekeeper.toml", "--", sys.executable, "bot.py")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"ratekeeper: {tmp_path / 'ratekeeper.toml'}:4: providers.okx.limit: no such key.")
    assert len(done.stderr.splitlines()) == 1


def test_names_of_ccxt_are_judged_before_the_start(tmp_path: Path) -> None:
    """What a gate alone would find only at the first call stops the program here: it must not run ungoverned."""
    pytest.importorskip("ccxt")
    (tmp_path / "bot.py").write_text("print('ran')")
    (tmp_path / "ratekeeper.toml").write_text("[providers.ccxt-bitso]\nlimits.nothing.capacity = 1\n")
    done = run(tmp_path, "--config", "ratekeeper.toml", "--", sys.executable, "bot.py")
    assert (done.returncode, done.stdout) == (2, "")
    assert "toml:2: providers.ccxt-bitso.limits.nothing: ccxt-bitso has no such limit." in done.stderr
