"""``make fuzz``: the fuzz tests for an hour (``SECONDS=…``), with new seeds all the time."""

from __future__ import annotations

import logging
import sys
import time

from tests.fuzz.worlds import Fuzz

ROUND = 200


def main(seconds: float) -> None:
    """Try everything with one seed after the other."""
    logging.disable(logging.CRITICAL)  # what is garbled is told each time
    end, seed = time.monotonic() + seconds, time.time_ns() % 10**9
    while time.monotonic() < end:
        seed += 1
        world = Fuzz(seed)
        for what in world.names():
            try:
                world.run(what, ROUND)
            except BaseException:
                print(f"FUZZ_SEED={seed} {what}", file=sys.stderr)
                raise
    print(f"nothing escaped in {seconds:g} s; the last seed was {seed}")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 3600.0)
