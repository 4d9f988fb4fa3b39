"""A long run under faults: does anything leak? ``python -m benchmarks.soak_faults [--minutes 30]``.

One program does everything at once, for every client and with every policy, against an exchange that hangs up, loses answers,
is overloaded, refuses, bans, cuts websockets and steps its clock. Every ten seconds its memory, threads, files, tasks and
objects are written down; at the end the second quarter is compared with the last.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

__all__ = ["main", "soak"]

EVERY = 10.0
"""Seconds between two looks, and between two kinds of trouble."""
ALLOWED: dict[str, tuple[float, float]] = {
    "rss": (0.10, 8.0),
    "threads": (0.1, 4),
    "files": (0.1, 6),
    "tasks": (0.2, 6),
    "objects": (0.2, 60),
    "answers": (0.5, 200),
    "notes": (0.1, 8),
}
"""How much the last quarter may be above the second: a share of it, and so much more. Memory in MiB, else numbers."""


def soak(
    minutes: float, folder: Path, out: Any = sys.stdout, *, every: float = EVERY, seed: int | None = None
) -> dict[str, Any]:
    """Run it, with a look and other trouble after so many seconds; returns the figures, what grew, and what the exchange
    counted."""
    from ratekeeper.testing import Emulator

    dice = random.Random(seed)
    with Emulator("binance-usdm", latency=(1, 20), ban_after=40) as emulator:
        environment = {
            **os.environ,
            "RATEKEEPER_HOME": str(folder),
            "RATEKEEPER_HOSTS": emulator.hosts,
        }
        command = [sys.executable, "-m", "benchmarks.soak_faults", "--child", emulator.url, "--minutes", str(minutes)]
        with (folder / "child.log").open("w") as log:
            child = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        rows: list[dict[str, float]] = []
        end = time.monotonic() + minutes * 60
        calm = end - min(30.0, minutes * 12)
        try:
            while time.monotonic() < end and child.poll() is None:
                _trouble(emulator, dice, calm=time.monotonic() > calm)
                time.sleep(every)
                row = _figures(child.pid, folder)
                if row:
                    rows.append(row)
                    print(json.dumps(row), file=out, flush=True)
            code = child.wait(60)
        finally:
            child.kill()
        totals = emulator.stats()
    placed = [
        one["placed"] for account in totals["orders"].values() for one in account.get("by_client_id", {}).values()
    ]
    return {
        "rows": rows,
        "grew": _grown(rows),
        "code": code,
        "twice": sum(number > 1 for number in placed),
        "placed": len(placed),
        "totals": totals["totals"],
        "said": (folder / "child.log").read_text()[-2000:],
    }


def _trouble(emulator: Any, dice: random.Random, *, calm: bool) -> None:
    """Another ten seconds of it."""
    quiet = {"hangup": 0.0, "errors": 0.0, "loss": 0.0, "hang": 0.0, "skew": 0.0, "ws_silent": False}
    if calm:
        emulator.options(**quiet)
        return
    emulator.options(
        **quiet
        | dice.choice([
            {"hangup": 0.1},
            {"hangup": 0.05, "errors": 0.1},
            {"loss": 0.05, "hang": 0.02},
            {"errors": 0.6},
            {"skew": dice.uniform(-30, 30)},
            {"ws_silent": True},
            {},
        ])
    )  # fmt: skip
    what = dice.random()
    if what < 0.4:
        emulator.cut(mode=dice.choice(["close", "abort", "silent"]))
    elif what < 0.5:
        emulator.ban(seconds=3)


def _figures(pid: int, folder: Path) -> dict[str, float]:
    """What can be seen of the program, from outside and by its own word; nothing before it has said a word."""
    try:
        own = json.loads((folder / "own.json").read_text())
        status = Path(f"/proc/{pid}/status").read_text()
    except (OSError, ValueError):
        return {}
    memory = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")]
    if not memory:
        return {}  # it has just ended
    answers = folder / "answers"
    return {
        "rss": round(memory[0] / 1024, 1),
        "threads": sum(1 for _ in Path(f"/proc/{pid}/task").iterdir()),
        "files": sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()),
        "answers": sum(1 for _ in answers.iterdir()) if answers.exists() else 0,
        **own,
    }


def _grown(rows: list[dict[str, float]]) -> dict[str, tuple[float, float]]:
    """Of each figure that grew too much, its medians in the second and in the last quarter."""
    quarter = len(rows) // 4
    found = {}
    for name, (share, more) in ALLOWED.items():
        before, after = (
            statistics.median(row[name] for row in part) if part else 0.0
            for part in (rows[quarter : 2 * quarter], rows[-quarter:] if quarter else [])
        )
        if after > before * (1 + share) + more:
            found[name] = (before, after)
    return found


def main() -> int:
    """Run, print, judge."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak_faults", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--child", metavar="URL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        from benchmarks.soak_program import live

        live(options.child, options.minutes * 60)
        return 0
    with tempfile.TemporaryDirectory() as name:
        found = soak(options.minutes, Path(name))
    print(json.dumps({name: value for name, value in found.items() if name != "rows"}, indent=1))
    bad = bool(found["grew"] or found["twice"] or found["code"])
    print("something leaks" if bad else "nothing leaks: memory is flat, no task, thread or file is left")
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
