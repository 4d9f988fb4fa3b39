"""Everything that parses what a server says, or what lies in a store, against random input: nothing escapes."""

from __future__ import annotations

import os
import time

import pytest
from tests.fuzz.worlds import Fuzz

SEED = int(os.environ.get("FUZZ_SEED", "1"))
TIMES = {
    "addresses": 500, "answers": 1500, "by_hand": 500, "copies": 1000, "ledgers": 1500, "lines": 500, "messages": 1000,
    "notes": 1000, "paths": 5000, "records": 300, "replies": 2000, "requests": 1500, "telegram": 500, "toml": 300,
    "urls": 2000,
}  # fmt: skip
MOST = 3.5
"""Seconds after which one kind of input is enough: all of them take a minute at most."""


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
