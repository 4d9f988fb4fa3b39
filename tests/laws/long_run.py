"""Ten thousand random worlds and more: `python -m tests.laws.long_run [worlds] [first seed]`. Prints refusals and shares.

The law holds if no world ends with a refusal, a leak or somebody still waiting. A failing seed is printed with its terms.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ProcessPoolExecutor
from statistics import median

from tests.laws.draw import draw, untidy
from tests.laws.world import World

AT_ONCE = 50


def try_some(first: int) -> tuple[int, list[str], list[float]]:
    """Calls made in `AT_ONCE` worlds from seed `first` on, what was wrong, and the busiest limit's share in each."""
    calls, wrong, shares = 0, [], []
    for seed in range(first, first + AT_ONCE):
        terms = (draw, untidy)[seed % 2](seed)  # every other one has clocks that date apart from the one that counts
        account = World(terms).run()
        calls += account.calls
        shares.append(max(account.shares))
        if account.refusals or account.leaks or account.found:
            wrong.append(f"{account.refusals} refusals, {account.leaks or 'no leaks'}; {terms.describe()}")
    return calls, wrong, shares


def main(worlds: int = 10_000, first: int = 0, processes: int = 2) -> int:
    """Run them all; returns how many broke the law."""
    begun = time.monotonic()
    calls, shares, bad = 0, [], 0
    with ProcessPoolExecutor(processes) as pool:
        for some, wrong, found in pool.map(try_some, range(first, first + worlds, AT_ONCE)):
            calls += some
            shares += found
            bad += len(wrong)
            for line in wrong:
                print(line, flush=True)
    seconds, middle = time.monotonic() - begun, median(shares)
    print(f"{len(shares)} worlds, {calls} calls, {bad} broke the law, median share {middle:.3f}, {seconds:.0f} s")
    return bad


if __name__ == "__main__":
    sys.exit(1 if main(*map(int, sys.argv[1:])) else 0)
