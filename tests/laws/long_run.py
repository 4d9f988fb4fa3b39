"""Ten thousand random worlds and more: `python -m tests.laws.long_run [worlds] [first seed]`. Prints refusals and shares.

The law holds if no world ends with a refusal, a leak or somebody still waiting. A failing seed is printed with its terms.
Every tenth world is lived through once more without counters: of those one in a hundred may need a second lesson.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ProcessPoolExecutor
from statistics import median

from tests.laws.draw import blind, draw, untidy
from tests.laws.world import World

from ratekeeper.ledger.limit import Window

AT_ONCE = 50
BLIND = 10


def lessons(seed: int) -> int:
    """How many refusals more than one for each fixed window taught something in a world without counters; those within a
    round trip of the first were under way then."""
    terms = blind(seed)
    trip, taught, until = terms.up[1] + terms.work[1] + terms.down[1] + 2 * terms.late, 0, -1
    for at in World(terms).run().refused_at:
        if at > until:
            taught, until = taught + 1, at + trip
    return taught - sum(limit.window is Window.FIXED for limit in terms.limits)


def try_some(first: int) -> tuple[int, list[str], list[float], int]:
    """Calls made in `AT_ONCE` worlds from seed `first` on, what was wrong, the busiest limit's share in each, and how many of
    the blind ones needed a second lesson."""
    calls, wrong, shares = 0, [], []
    for seed in range(first, first + AT_ONCE):
        terms = (draw, untidy)[seed % 2](seed)  # every other one has clocks that date apart from the one that counts
        account = World(terms).run()
        calls += account.calls
        shares.append(max(account.shares))
        if account.refusals or account.leaks or account.found:
            wrong.append(f"{account.refusals} refusals, {account.leaks or 'no leaks'}; {terms.describe()}")
    return calls, wrong, shares, sum(lessons(seed) > 0 for seed in range(first, first + AT_ONCE, BLIND))


def main(worlds: int = 10_000, first: int = 0, processes: int = 2) -> int:
    """Run them all; returns how many broke the law."""
    begun = time.monotonic()
    calls, shares, bad, more = 0, [], 0, 0
    with ProcessPoolExecutor(processes) as pool:
        for some, wrong, found, second in pool.map(try_some, range(first, first + worlds, AT_ONCE)):
            calls += some
            shares += found
            bad += len(wrong)
            more += second
            for line in wrong:
                print(line, flush=True)
    seconds, middle = time.monotonic() - begun, median(shares)
    print(f"{len(shares)} worlds, {calls} calls, {bad} broke the law, median share {middle:.3f}, {seconds:.0f} s")
    print(f"{more} of {len(shares) // BLIND} worlds without counters needed a second lesson")
    return bad + max(0, more - max(1, len(shares) // BLIND // 100))


if __name__ == "__main__":
    sys.exit(1 if main(*map(int, sys.argv[1:])) else 0)
