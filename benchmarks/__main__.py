"""Run every benchmark and write the table: ``python -m benchmarks [--quick] [--only a,b,c,d,e,f,g,h,i]``."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from benchmarks import overhead
from benchmarks.contenders import CONTENDERS, permits
from benchmarks.measure import interleaved
from benchmarks.ours import FORMS
from benchmarks.peers import PEERS
from benchmarks.policies import stacks
from benchmarks.processes import rush
from benchmarks.proxy import passages
from benchmarks.redis import FULL, LOADED, LOOPS, TASKS, load
from benchmarks.servers import Spec
from benchmarks.truth import SERVERS, WORKERS, truths
from benchmarks.waiters import CAPACITY, PATIENCE, crowd

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "benchmarks.md"
Lines = Iterator[str]


def said(text: str) -> Lines:
    """A paragraph."""
    yield from textwrap.wrap(text, 120, break_on_hyphens=False)
    yield ""


def chapter(title: str, text: str) -> Lines:
    """A heading and a paragraph."""
    yield from (title, "")
    yield from said(text)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Lines:
    """A Markdown table; all columns but the first to the right."""
    yield f"| {' | '.join(head)} |"
    yield f"|---|{'---:|' * (len(head) - 1)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)
    yield ""


def speed(quick: bool, folder: Path) -> Lines:
    """(a) Permits that nobody else wants, in one process."""
    yield from chapter(
        "## (a) One process, nobody else",
        "Microseconds per permit on limits that are never reached; the ratio is to three aiolimiter acquires. "
        "Peers only take; Ratekeeper takes, and settles when the answer is there. `ratekeeper` is the whole "
        "`async with gate.permit(...)`, `ratekeeper store` the two verbs inside it. The calls of limits, "
        "throttled-py and pyrate-limiter are their synchronous ones.",
    )
    count, rounds = (2000, 3) if quick else (10_000, 9)
    names = (*FORMS, *PEERS)
    one, three = (
        interleaved({name: permits(name, limits, folder) for name in names}, count, rounds) for limits in (1, 3)
    )
    rows = [
        [name, f"{one[name]:.1f}", f"{three[name]:.1f}", f"{three[name] / three['aiolimiter']:.1f}×"] for name in names
    ]
    yield from table(["", "one limit", "three limits", "ratio"], rows)


def sharing(quick: bool, folder: Path) -> Lines:
    """(b) The same through a store that other processes could share."""
    yield from chapter(
        "## (b) The same, shared with other processes",
        "Microseconds per permit, one process, through the store that all processes of the machine share. "
        "Among the peers only pyrate-limiter has one that needs no server: its SQLite bucket with its file "
        "lock.",
    )
    count, rounds = (500, 3) if quick else (3000, 7)
    names = [*(f"{form} host" for form in FORMS), "pyrate-limiter SQLite"]
    found = [interleaved({name: permits(name, limits, folder) for name in names}, count, rounds) for limits in (1, 3)]
    rows = [[name, *(f"{times[name]:.0f}" for times in found)] for name in found[0]]
    yield from table(["", "one limit", "three limits"], rows)


def contention(quick: bool, folder: Path) -> Lines:
    """(c) Four processes that want the same limit at once."""
    yield from chapter(
        "## (c) Four processes contend",
        "Four processes take permits on one limit as fast as they can. Spread: the slowest process beside the fastest.",
    )
    seconds = 1.0 if quick else 5.0
    names = (*FORMS, "pyrate-limiter")
    found = {name: sorted(rush(name, 4, seconds) for _ in range(1 if quick else 3)) for name in names}
    middle = {name: runs[len(runs) // 2] for name, runs in found.items()}
    rows = [
        [
            f"{name} {'SQLite' if name == 'pyrate-limiter' else 'host'}",
            f"{it.total:,.0f}",
            f"{it.total / middle['pyrate-limiter'].total:.1f}×",
            f"{it.slowest:,.0f} to {it.fastest:,.0f}",
            f"{it.worst * 1000:.0f} ms",
        ]
        for name, it in middle.items()
    ]
    yield from table(["", "permits/s, all four", "ratio", "permits/s, each", "longest single permit"], rows)


def crowds(quick: bool, folder: Path) -> Lines:
    """(d) Very many waiters."""
    yield "## (d) Ten thousand and fifty thousand waiters"
    yield ""
    sizes = (2000, 10_000) if quick else (10_000, 50_000)
    ideal = [max(0.0, size / CAPACITY - 1) for size in sizes]
    yield from said(
        f"So many tasks wait at once for a bucket of {CAPACITY:,}, refilled {CAPACITY:,} a second: at best "
        f"{ideal[0]:.0f} s and {ideal[1]:.0f} s. Elapsed time, and the time one core was busy. After "
        f"{PATIENCE:.0f} s a contender is stopped."
    )
    rows = []
    for name in CONTENDERS:
        row = [name]
        for size in sizes:
            it = crowd(name, size)
            if it is None or it.through < size:
                row += [f"{it.through:,} through" if it else "hung", f"{it.cpu:.1f} s" if it else ""]
            else:
                row += [f"{it.seconds:.1f} s", f"{it.cpu:.1f} s"]
        rows.append(row)
    yield from table(["", f"{sizes[0]:,}", "busy", f"{sizes[1]:,}", "busy"], rows)


def truthfulness(quick: bool, folder: Path) -> Lines:
    """(e) Against strict servers."""
    spec = Spec("fixed")
    periods = 4 if quick else 12
    low, high = (int(2000 * way) for way in spec.delay)
    yield from chapter(
        "## (e) Truthfulness",
        f"A strict server allows {spec.capacity} requests in {spec.period:g} s and counts each when it "
        f"arrives. The round trip takes {low} to {high} ms, and {WORKERS} workers want 1.2 times the limit. "
        "Each limiter is set to the published limit and to the algorithm of its own that is nearest to the "
        f"server's. Share of the limit used, and share of the requests refused, over {periods} s. The server "
        "does not count what it refuses, and bans nobody; real ones do.",
    )
    names = ("ratekeeper", *PEERS, "no limiter")
    for processes in (1, 3):
        found = truths(names, processes, periods)
        rows = [
            [name, *(f"{it.share:.1%}, {f'**{it.refusals:.1%}**' if it.refused else '0'}" for it in reports.values())]
            for name, reports in found.items()
        ]
        if processes == 1:
            yield from said("One program:")
        else:
            yield from said(
                "Three programs on one address. Ratekeeper and pyrate-limiter (SQLite, file lock) share the limit; the "
                "others cannot without a server, so each program believes that the limit is its own, as unrelated "
                "programs do:"
            )
        yield from table(["used, refused", *SERVERS], rows)


def costs(quick: bool, folder: Path) -> Lines:
    """(f) What a program pays."""
    yield "## (f) What a program pays"
    yield ""
    calls = overhead.governed(100, 3 if quick else 9, folder)
    times = overhead.imports(3 if quick else 15)
    rows = [[f"`{what}`, above `import asyncio`", f"{ms:.1f} ms"] for what, ms in times.items()]
    rows += [
        [f"a governed httpx call, above a bare one, `{store}`", f"{added:.0f} µs"]
        for store, (_, added) in calls.items()
    ]
    rows.append(["the bare httpx call beside it (answered from memory)", f"{calls['memory://'][0]:.0f} µs"])
    yield from table(["", "median"], rows)


def passing(quick: bool, folder: Path) -> Lines:
    """(g) The proxy."""
    yield from chapter(
        "## (g) The proxy",
        "One call on one connection, then as many as 16 connections get answered, through `ratekeeper proxy` and straight "
        "to the same upstream, which does nothing but answer. `aiohttp alone` is the shortest proxy that can be made of "
        "the library that ours is made of; `no rules` is ours for a host that is not governed. `busy` is what the proxy's "
        "process spends on a call, and a million divided by it is what one core could pass on in a second. The programs "
        "that ask and answer share the cores with the proxy.",
    )
    found = passages(0.5 if quick else 3.0, 2 if quick else 7, folder)
    direct, bare = found["direct"], found["aiohttp alone"]
    rows = [
        [
            way,
            f"{it.alone:.2f} ms",
            f"{it.alone - direct.alone:.2f} ms" if it.cpu else "",
            f"{it.rate:,.0f}",
            f"{it.cpu:.0f} µs" if it.cpu else "",
            f"{it.cpu / bare.cpu:.2f}×" if it.cpu else "",
        ]
        for way, it in found.items()
    ]
    yield from table(["", "alone", "added", "calls/s", "busy", "ratio"], rows)


def server(quick: bool, folder: Path) -> Lines:
    """(h) Through a Redis or Valkey server."""
    yield from chapter(
        "## (h) Through a Redis or Valkey server",
        "Permits on one limit that is never reached, in the last row on one that is, through one server on the same "
        f"machine, in one process and in four: one caller in a loop, then {TASKS} tasks of an event loop. limits takes its "
        "fixed window, pyrate-limiter its Redis bucket. Round trips are what the server reads from its connections; busy "
        "is the time that the server's thread spends per permit. The server and the processes share the cores.",
    )
    seconds, rounds = (1.0, 1) if quick else (3.0, 3)
    for names in (LOOPS, (*LOADED, FULL)):
        one, four = (load(names, processes, seconds, rounds) for processes in (1, 4))
        best = max(it.rate for name, it in four.items() if not name.startswith("ratekeeper"))
        rows = [
            [
                name,
                f"{one[name].rate:,.0f}",
                f"{four[name].rate:,.0f}",
                f"{four[name].rate / best:.1f}×" if name != FULL else "",
                f"{one[name].trips:.3f}",
                f"{four[name].trips:.3f}",
                f"{four[name].busy:.1f} µs",
            ]
            for name in names
        ]
        head = ["", "permits/s, one", "four", "ratio", "round trips per permit, one", "four", "server busy, four"]
        yield from table(head, rows)


def around(quick: bool, folder: Path) -> Lines:
    """(i) The policies."""
    yield from chapter(
        "## (i) Retry, breaker, cache and batches around a call",
        "Microseconds per call that succeeds at once, in one process, answered from memory: one that is made, and one "
        "whose answer is kept. Ratekeeper does what the stack does, under the limits that its ledger counts; with `host://` "
        "limits, breaker and kept answers are shared by all processes. The stack's retries, breaker and cache are this "
        "process's own.",
    )
    found = stacks(500 if quick else 5000, 3 if quick else 9, folder)
    best = min(made for name, (made, _) in found.items() if not name.startswith("ratekeeper"))
    rows = [[name, f"{made:.1f}", f"{made / best:.1f}×", f"{hit:.1f}"] for name, (made, hit) in found.items()]
    yield from table(["", "made", "ratio", "kept"], rows)


CASES = {
    "a": speed,
    "b": sharing,
    "c": contention,
    "d": crowds,
    "e": truthfulness,
    "f": costs,
    "g": passing,
    "h": server,
    "i": around,
}


def preamble() -> Lines:
    """What was measured, and on what."""
    peers = ", ".join(f"{name} {version(name)}" for name in PEERS)
    yield "# Benchmarks"
    yield ""
    yield from said(
        "Written by `make bench` (about a quarter of an hour); do not edit. Contenders take turns in one run, figures "
        "are medians."
    )
    yield from said(
        f"Python {platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} "
        f"cores. Ratekeeper {version('ratekeeper')}; {peers}."
    )


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a rough run in about two minutes; writes no page")
    parser.add_argument("--only", default=",".join(CASES), help="cases to run, such as a,c; writes no page")
    options = parser.parse_args()
    chosen = options.only.split(",")
    if unknown := set(chosen) - set(CASES):
        parser.error(f"no case {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    lines: list[str] = []
    # One folder for the whole run: some peers' threads still look at their files after they were closed.
    with tempfile.TemporaryDirectory() as name:
        for part in (preamble(), *(CASES[case](options.quick, Path(name)) for case in chosen)):
            for line in part:
                print(line, flush=True)
                lines.append(line)
    if not options.quick and chosen == list(CASES):
        PAGE.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
        print(f"wrote {PAGE}", file=sys.stderr)


if __name__ == "__main__":
    main()
