"""The laws are tried in worlds made beside this file; `python -m tests.laws.long_run` uses the same."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))
