"""Everything that parses what a server says, or what lies in a store, against random input: nothing escapes."""

from __future__ import annotations

import os
import time

import pytest
from tests.fuzz.worlds import Fuzz

SEED = int(os.environ.get("FUZZ_SEED", "1"))
TIMES = {"answers": 3000, "messages": 2000, "addresses": 1000, "notes": 3000, "ledgers": 4000, "copies": 2000}
MOST = 20.0
"""Seconds after which one kind of input is enough on a slow machine."""


@pytest.mark.parametrize("what", sorted(Fuzz.names()))
def test_nothing_escapes(what: str) -> None:
    """So many random inputs of one kind; a failure tells the seed that makes it again (``FUZZ_SEED``)."""
    end, seed = time.monotonic() + MOST, SEED
    for seed in range(SEED, SEED + 10):
        try:
            Fuzz(seed).run(what, TIMES[what] // 10)
        except BaseException as error:
            error.add_note(f"FUZZ_SEED={seed} {what}")
            raise
        if time.monotonic() > end:
            break
