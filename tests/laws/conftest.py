"""How many random worlds the suite tries; `python -m tests.laws.long_run` (`make laws`) tries ten thousand."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2]))


@pytest.fixture
def scenarios() -> int:
    """Random worlds per law: a sample, which ``make quick`` makes smaller still."""
    return int(os.environ.get("WORLDS", "200"))


@pytest.fixture(autouse=True)
def no_collections() -> Iterator[None]:
    """A world is garbage as a whole, when it is over."""
    gc.disable()
    yield
    gc.enable()
    gc.collect()
