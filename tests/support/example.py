"""An example, run from end to end as its README says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["figures_of"]

_TOLD = 8000
"""Characters of its output that are shown at most if it fails."""


def figures_of(folder: Path, timeout: float) -> dict[str, Any]:
    """What ``run.py --json`` prints. It makes a home of its own, and drops what the environment says of Ratekeeper."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(folder / "run.py"), "--json"],
        env=os.environ, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-_TOLD:] + done.stderr[-_TOLD:]
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures
