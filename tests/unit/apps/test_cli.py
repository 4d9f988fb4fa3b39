"""ratekeeper.apps.cli: each command loads what it needs, and nothing else; how data is printed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ratekeeper.apps.cli import aligned, print_json

HEAVY = "aiohttp asyncio ccxt httpx lmdb msgspec redis requests rich urllib3".split()  # noqa: SIM905


def loaded(tmp_path: Path, *arguments: str) -> set[str]:
    """Which heavy packages, and which of ours, a command loads until it ends or becomes the user's program."""
    code = f"""
import os, sys
from ratekeeper.apps.cli import main
def end(*_):
    raise SystemExit
os.execvpe = end
try:
    main({list(arguments)!r})
except SystemExit:
    pass
print("LOADED", *[name for name in sys.modules if name in {HEAVY!r} or name.startswith("ratekeeper.")])
"""
    environment = {"PATH": "", "RATEKEEPER_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, env=environment
    )
    return set(done.stdout.rpartition("LOADED")[2].split())


def test_help_loads_nothing_but_the_table_of_commands(tmp_path: Path) -> None:
    """No store, no rules, no client library."""
    ours = {"ratekeeper.apps", "ratekeeper.apps.cli", "ratekeeper.errors"}
    assert loaded(tmp_path, "--help") == ours


def test_run_opens_the_store_without_a_gate(tmp_path: Path) -> None:
    """What it checks for the program needs no event loop and no client library."""
    found = loaded(tmp_path, "run", "--", "true")
    assert found & set(HEAVY) == {"lmdb", "msgspec"}
    assert "ratekeeper.gate.gate" not in found
    assert (tmp_path / "secret").exists()


def test_columns_are_aligned() -> None:
    """No line ends in blanks."""
    assert aligned([("a", "b", "c"), ("long", "", "x"), ("", "yy", "")]) == ["a     b   c", "long      x", "      yy"]
    assert aligned([]) == []


def test_json_is_indented(capsys: pytest.CaptureFixture[str]) -> None:
    """As readable text."""
    print_json({"a": [1, "ä"]})
    assert capsys.readouterr().out == '{\n  "a": [\n    1,\n    "ä"\n  ]\n}\n'
