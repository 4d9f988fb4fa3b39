"""Three unchanged programs under ``ratekeeper run`` on real minutes: ``make soak``, or
``python -m benchmarks.soak [MINUTES]``.

The emulator enforces Binance's published rules for futures (2,400 weight a minute). Shown: how much of each full minute was
used, and what was refused. Exit status 1 if a full minute was used to less than 98 %, or anything was refused.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

from ratekeeper.apps.demo.stage import Programs
from ratekeeper.testing import Emulator

MINUTE = 60
ENOUGH = 0.98
STARTING = 3.0
"""Seconds that three interpreters may take; a minute that began earlier is not counted."""


def soak(minutes: int) -> bool:
    """Run for so many full minutes and print a table; returns whether all was well."""
    console = Console()
    with TemporaryDirectory() as home, Emulator("binance-usdm", latency=(20, 80)) as emulator:
        begin = time.time()
        first = -(-(begin + STARTING) // MINUTE) * MINUTE
        end = first + minutes * MINUTE
        console.print(f"Three programs, {minutes} full minutes: ends in {end - begin:.0f} s", highlight=False)
        with Programs(emulator.url, end - begin + 60, 4, hosts=emulator.hosts, home=Path(home)):
            time.sleep(end - time.time() + 0.2)
            stats = emulator.stats()
    used = {row["start"]: row for row in stats["windows"] if row["limit"] == stats["main"]}
    table = Table("minute", "calls", "weight used", "of", "share")
    shares = []
    for number in range(minutes):
        row = used.get(first + number * MINUTE, {"calls": 0, "accepted": 0, "capacity": 2400})
        shares.append(row["accepted"] / row["capacity"])
        table.add_row(
            time.strftime("%H:%M", time.localtime(first + number * MINUTE)),
            *(f"{row[name]:,}" for name in ("calls", "accepted", "capacity")),
            f"{shares[-1]:.2%}",
        )
    console.print(table)
    totals = stats["totals"]
    console.print(f"refused (429): {totals['throttled']}   banned (418): {totals['banned']}", highlight=False)
    weights = {agent: counts["accepted"] for agent, counts in stats["clients"].items()}
    console.print("weight by program: " + ", ".join(f"{n} {w:,}" for n, w in sorted(weights.items())), highlight=False)
    return min(shares) >= ENOUGH and not totals["throttled"] and not totals["banned"]


if __name__ == "__main__":
    sys.exit(0 if soak(int(sys.argv[1]) if len(sys.argv) > 1 else 3) else 1)
