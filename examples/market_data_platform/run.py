"""The platform on this machine, against emulated exchanges, in half a minute: ``python run.py [--json]``.

Three programs in three processes share four addresses. In mid-run the exchange bans one of them for an hour, which is six
seconds here: windows and bans are as much shorter as a minute is shortened to four seconds.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from figures import Span, answered, the_ban, utilisation

from ratekeeper.testing import Emulator

HERE = Path(__file__).parent
RATEKEEPER = [sys.executable, "-m", "ratekeeper"]
PROGRAMS = {
    "collector": [*RATEKEEPER, "run", "--", sys.executable, str(HERE / "collector.py")],
    "trader": [sys.executable, str(HERE / "trader.py")],  # has the one line itself
    "monitor": [*RATEKEEPER, "run", "--", sys.executable, str(HERE / "monitor.py")],
}
ADDRESSES = [f"127.0.0.{n}" for n in (2, 3, 4, 5)]
BANNED = ADDRESSES[0]
WINDOW, CAPACITY = 4, 300
"""Seconds and weight of Binance's weight limit here; a minute and 2,400 there."""
BEFORE, BAN, AFTER = 2 * WINDOW + 0.1, 9.0, 2 * WINDOW
"""Seconds."""
LATENCY = (20.0, 40.0)
"""Milliseconds each way."""


@contextmanager
def programs(environment: Mapping[str, str], said: Path) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """The three programs, until the block ends."""
    with said.open("ab") as errors:
        running = {
            name: subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stderr=errors)
            for name, command in PROGRAMS.items()
        }
    try:
        yield running
    finally:
        for child in running.values():
            child.terminate()
        for child in running.values():
            child.wait()


class Stage:
    """One run: the exchanges, the state folder, and what is shown."""

    def __init__(self, folder: Path, stack: ExitStack, *, quiet: bool) -> None:
        self.quiet = quiet
        self._log = folder / "arrivals.jsonl"
        self.said = folder / "said.txt"
        self.waits: dict[str, dict[str, float]] = {}
        self.binance = stack.enter_context(
            Emulator("binance-usdm", window=WINDOW, capacity=CAPACITY, latency=LATENCY, log=self._log)
        )
        self.okx = stack.enter_context(Emulator("okx", latency=LATENCY))
        others = {name: value for name, value in os.environ.items() if not name.startswith("RATEKEEPER_")}
        self.environment = {
            **others,
            "RATEKEEPER_CONFIG": str(HERE / "ratekeeper.toml"),
            "RATEKEEPER_HOME": str(folder / "home"),
            "RATEKEEPER_HOSTS": f"{self.binance.hosts},{self.okx.hosts}",
            "BINANCE_URL": self.binance.url,
            "OKX_URL": self.okx.url,
            "BINANCE_KEY": "k1",
            "BINANCE_SECRET": "s1",
        }

    def tell(self, text: str) -> None:
        """Show a line."""
        if not self.quiet:
            print(text, flush=True)

    def now(self) -> float:
        """The exchange's time."""
        return float(self.binance.stats()["now"])

    def status(self) -> list[dict[str, Any]]:
        """What `ratekeeper status` says of each address, shown and returned."""
        said = self._run([*RATEKEEPER, "status", "--json"])
        rows: list[dict[str, Any]] = said["addresses"]
        self.waits = said["waits"]
        for row in rows:
            end = f" for {row['until'] - time.time():.0f} s more" if row["until"] else ""
            used = f"{row['utilisation']:5.0%}  {row['limit']} {row['used']:,} of {row['capacity']:,}"
            self.tell(f"  {row['provider']:13} {row['address']:7} {row['leaves']:10} {row['state'] + end:24} {used}")
        self.tell("")
        return rows

    def ask(self, *arguments: str) -> dict[str, Any]:
        """One call that asks for a permit; its answer is shown."""
        said = self._run([sys.executable, str(HERE / "ask.py"), *arguments])
        self.tell(f"  ask {' '.join(arguments)}\n    -> {json.dumps(said)}\n")
        return said

    def watch(self, until: float) -> list[dict[str, Any]]:
        """Show the addresses every few seconds."""
        rows = self.status()
        while (left := until - self.now()) > 0:
            time.sleep(min(left, 3.0))
            if until - self.now() > 1:
                rows = self.status()
        return rows

    def begin(self) -> float:
        """Wait until each program was served, then for the next window; returns its start."""
        patience = time.monotonic() + 30
        while len(answered(self.binance.stats())) < len(PROGRAMS):
            if time.monotonic() > patience:
                raise SystemExit(f"the programs do not get through: {self.said.read_text()}")
            time.sleep(0.2)
        now = self.now()
        begin = now - now % WINDOW + WINDOW
        time.sleep(begin - now)
        return begin

    def arrivals(self) -> list[dict[str, Any]]:
        """Every request that came to Binance."""
        self.binance.stats()  # has the log written
        return [json.loads(line) for line in self._log.read_text().splitlines()]

    def _run(self, command: list[str]) -> dict[str, Any]:
        done = subprocess.run(command, env=self.environment, stdout=subprocess.PIPE, check=True)
        found: dict[str, Any] = json.loads(done.stdout)
        return found


def perform(stage: Stage) -> dict[str, Any]:
    """The whole run; returns its figures."""
    with programs(stage.environment, stage.said):
        stage.tell("Starting collector, trader and monitor. Four addresses, one of them primary.\n")
        begin = stage.begin()
        stage.watch(begin + BEFORE - 0.3)
        time.sleep(max(0.0, begin + BEFORE - stage.now()))
        before = answered(stage.binance.stats())
        stage.binance.ban(BANNED, BAN)
        stage.tell(f"Binance bans {BANNED} for an hour ({BAN:.0f} s here).\n")
        since, until = stage.binance.stats()["ips"][BANNED]["bans"][-1]
        time.sleep(1)
        asked = [
            stage.ask("GET", "/fapi/v1/depth", "--wait", "5"),
            stage.ask("GET", "/fapi/v1/depth", "--account", "reports"),
        ]
        during = stage.watch(until - 1)
        time.sleep(max(0.0, until - stage.now()))
        served = answered(stage.binance.stats())
        stage.tell("The hour is over.\n")
        end = begin + -(-(until + AFTER - begin) // WINDOW) * WINDOW
        after = stage.watch(end)
        stats, okx = stage.binance.stats(), stage.okx.stats()
    ban = (BANNED, since, until)
    by_address, together = utilisation(stats, Span(begin, end, WINDOW), ban, ADDRESSES)
    return {
        "addresses": {
            ip: {
                "calls": stats["ips"][ip]["arrivals"],
                "throttled": stats["ips"][ip]["throttled"] + okx["ips"].get(ip, {}).get("throttled", 0),
                "refused_by_the_ban": stats["ips"][ip]["banned"],
                "utilisation": by_address[ip],
                "okx_calls": okx["ips"].get(ip, {}).get("arrivals", 0),
            }
            for ip in ADDRESSES
        },
        "together": together,
        "ban": the_ban(stage.arrivals(), ban),
        "served_during_the_ban": {name: served[name] - before[name] for name in served},
        "served": answered(stats),
        "waits": stage.waits,
        "asked_during_the_ban": asked,
        "status_during_the_ban": during,
        "status_after_the_ban": after,
        "said": stage.said.read_text(),
    }


def show(found: dict[str, Any]) -> None:
    """The figures for people."""
    print("address      calls  429  refused by the ban  of its budget used   OKX calls")
    for ip, row in found["addresses"].items():
        used = f"{row['utilisation']:.1%}"
        print(
            f"{ip:11} {row['calls']:6} {row['throttled']:4} {row['refused_by_the_ban']:19} {used:>20} {row['okx_calls']:11}"
        )
    together, ban = found["together"], found["ban"]
    print(f"together: {together['used']:,} of {together['offered']:,} weight, {together['utilisation']:.1%}\n")
    print(f"{ban['address']} was banned for {ban['seconds']:.0f} s:")
    print(f"  {ban['on_the_way']} requests were on their way, {ban['sent_during_the_ban']} were sent after them,")
    print(f"  {ban['served_by_others']} were served from the other addresses meanwhile,")
    print(f"  and the first from there again came {ban['taken_back_after']} s after its end.")
    print("served during the ban: " + ", ".join(f"{name} {n}" for name, n in found["served_during_the_ban"].items()))
    for name, wait in found["waits"].items():
        mean, longest = wait["mean_seconds"], wait["longest_seconds"]
        print(f"waited, {name}: {wait['calls']:.0f} calls, {mean:.1f} s on average, {longest:.1f} s at longest")


def main() -> None:
    """Exit status 1 if anything was refused that should not have been sent."""
    parser = argparse.ArgumentParser(description="The platform against emulated exchanges, in half a minute.")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, and nothing else")
    quiet = parser.parse_args().json
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="platform-")))
        found = perform(Stage(folder, stack, quiet=quiet))
    if quiet:
        print(json.dumps(found, indent=2))
    else:
        show(found)
    if found["ban"]["sent_during_the_ban"] or any(row["throttled"] for row in found["addresses"].values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
