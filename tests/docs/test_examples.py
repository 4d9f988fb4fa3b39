"""Every example of the README and the documentation runs; `run_page.py` beside this file says how a block is read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ratekeeper.testing import Emulator

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
BINANCE = {"https://fapi.binance.com": "binance-usdm", "https://api.binance.com": "binance-spot"}


def examples(page: Path) -> bool:
    """Whether a page has anything to run."""
    text = page.read_text(encoding="utf-8")
    return "\n```python" in text or "\n```console" in text


@pytest.fixture(scope="module")
def emulators() -> Iterator[dict[str, str]]:
    """Settings that send what the examples ask of Binance to emulators on this machine."""
    with Emulator("binance-usdm") as usdm, Emulator("binance-spot") as spot:
        urls = {"binance-usdm": usdm, "binance-spot": spot}
        yield {
            "EXAMPLES_HOSTS": json.dumps({real: urls[name].url for real, name in BINANCE.items()}),
            "RATEKEEPER_HOSTS": f"{usdm.hosts},{spot.hosts}",
        }


@pytest.mark.parametrize("page", [p for p in PAGES if examples(p)], ids=lambda page: str(page.relative_to(ROOT)))
def test_page(page: Path, emulators: dict[str, str], tmp_path: Path) -> None:
    """The examples of one page run in order, in a fresh folder, and print what the page says."""
    paths = [str(HERE / "loopback_only"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        **emulators,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(paths),
        "COLUMNS": "120",
        "NO_COLOR": "1",
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", str(HERE / "run_page.py"), str(page)],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
