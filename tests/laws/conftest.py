"""How many random worlds the suite tries; `python -m tests.laws.long_run` (`make laws`) tries ten thousand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2]))


@pytest.fixture
def scenarios() -> int:
    """Random worlds per law: a sample."""
    return 200
