"""The pytest plugin, in a real pytest run of a user's project."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

USERS_TEST = '''
import urllib.request


def test_my_bot(ratekeeper_emulator):
    """A bot of one request stays under the limit."""
    first = ratekeeper_emulator("binance-usdm", window=5, capacity=200)
    second = ratekeeper_emulator("binance-spot")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    opener.open(first.url + "/fapi/v1/time").read()
    opener.open(second.url + "/api/v3/time").read()
    assert first.stats()["totals"] ["arrivals"] == 1
    assert second.stats()["totals"]["throttled"] == 0
'''


def test_the_fixture_starts_and_stops_emulators(tmp_path: Path) -> None:
    """One line in conftest.py is all that a user adds."""
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["ratekeeper.testing.plugin"]\n')
    (tmp_path / "test_bot.py").write_text(USERS_TEST)
    line = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
