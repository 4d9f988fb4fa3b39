"""Programs take seconds to start, many on a busy machine: what they do together counts from when all of them are served."""

from __future__ import annotations

import time

from ratekeeper.testing import Emulator

__all__ = ["served", "until_served"]


def served(emulator: Emulator) -> dict[str, int]:
    """Units spent so far, by the name that a program gives itself."""
    return {name: row["accepted"] for name, row in emulator.stats()["clients"].items()}


def until_served(emulator: Emulator, programs: int, before: dict[str, int], seconds: float = 60) -> float:
    """Wait until so many programs have got more than `before`; returns the exchange's time then."""
    end = time.monotonic() + seconds
    while sum(units > before.get(name, 0) for name, units in served(emulator).items()) < programs:
        assert time.monotonic() < end, (before, served(emulator))
        time.sleep(0.05)
    return float(emulator.stats()["now"])
