"""The trader against an emulated Binance and all that can go wrong, in under a minute: ``python run.py [--json]``.

The trader's own intervals and the waits after failures are shortened; the exchange's limits are the real ones.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from network import report

from ratekeeper.testing import Emulator

HERE = Path(__file__).parent
RATEKEEPER = [sys.executable, "-m", "ratekeeper"]
KEY = "k1"
FAULTS = {"hangup": 0.10, "errors": 0.05, "hang": 0.04}
BAN = 4.0
PATIENCE = 30.0
"""Seconds in which the next thing must have happened."""
SHORTER = (
    ("first = 2.0, longest = 32.0", "first = 0.2, longest = 3.2"),
    ("failures = 10", "failures = 10, cooldown = 1.0, longest = 2.0"),
    ('balance" = 10', 'balance" = 0.5'),
    ('positionRisk" = 10', 'positionRisk" = 0.5'),
)


class Stage:
    """The exchange, the trader in a process of its own, and what it tells."""

    def __init__(self, folder: Path, emulator: Emulator, *, quiet: bool) -> None:
        config = (HERE / "ratekeeper.toml").read_text()
        for real, here in SHORTER:
            assert real in config, real
            config = config.replace(real, here)
        (folder / "ratekeeper.toml").write_text(config)
        self.emulator, self.quiet = emulator, quiet
        self.history = folder / "network.jsonl"
        self.told: list[dict[str, Any]] = []
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("RATEKEEPER_", "TRADER_"))}
        self.environment = {
            **clean,
            "RATEKEEPER_HOME": str(folder / "home"),
            "RATEKEEPER_CONFIG": str(folder / "ratekeeper.toml"),
            "RATEKEEPER_HOSTS": emulator.hosts,
            "BINANCE_URL": emulator.url,
            "BINANCE_STREAM": emulator.url.replace("http://", "ws://") + "/stream",
            "BINANCE_KEY": KEY,
            "BINANCE_SECRET": "any",
            "TRADER_INTERVAL": "0.5",
            "TRADER_PACE": "0.2",
            "TRADER_TIMEOUT": "1",
            "TRADER_RECV_WINDOW": "1000",
            "TRADER_HISTORY": str(self.history),
        }
        self._said = (folder / "said.txt").open("w+")
        self.trader = subprocess.Popen(
            [sys.executable, str(HERE / "trader.py")],
            env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._said,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.trader.stdout is not None
        for line in self.trader.stdout:
            self.told.append(json.loads(line))
            if not self.quiet:
                print("  " + line.decode().rstrip()[:160], flush=True)

    def tell(self, text: str) -> None:
        """For people who watch."""
        if not self.quiet:
            print(f"--- {text}", flush=True)

    def until(self, what: str, done: Callable[[], bool]) -> None:
        """Wait until something is so."""
        end = time.monotonic() + PATIENCE
        while not done():
            if time.monotonic() > end or self.trader.poll() is not None:
                raise SystemExit(f"{what}: not in {PATIENCE:g} s\n{self.said()}")
            time.sleep(0.05)

    def hear(self, what: str, count: int = 1, **fields: Any) -> None:
        """Wait for so many more lines of the trader that say this."""
        since = len(self.told)
        self.until(
            f"{count} of {what} {fields}",
            lambda: sum(line["what"] == what and fields.items() <= line.items() for line in self.told[since:]) >= count,
        )

    def mode(self) -> str:
        """Whether it leaves out what can wait, as it said last."""
        said = [line["what"] for line in self.told if line["what"] in ("degraded", "all jobs again")]
        return said[-1] if said else "all jobs again"

    def orders(self) -> dict[str, Any]:
        """The trader's orders by client id, as the exchange knows them."""
        owned = self.emulator.stats()["orders"].get(Emulator.account(KEY), {})
        return dict(owned.get("by_client_id", {}))

    def trade(self, count: int) -> None:
        """Wait until so many more orders were placed."""
        before = len(self.orders())
        self.until(f"{count} orders", lambda: len(self.orders()) >= before + count)

    def ratekeeper(self, *arguments: str) -> None:
        """A command, as a person gives it."""
        subprocess.run([*RATEKEEPER, *arguments], env=self.environment, stdout=subprocess.DEVNULL, check=True)

    def said(self) -> str:
        """What the trader and Ratekeeper wrote to the terminal."""
        self._said.seek(0)
        return self._said.read()

    def close(self) -> int:
        """End the trader as a service manager would; its exit status."""
        self.trader.terminate()
        status = self.trader.wait(PATIENCE)
        self._reader.join()
        assert self.trader.stdout is not None
        self.trader.stdout.close()
        return status


def perform(stage: Stage, log: Path) -> dict[str, Any]:
    """The whole run; returns its figures."""
    emulator = stage.emulator
    stage.trade(3)

    stage.tell("A bad network: hang-ups, 503s, answers that never come, websockets that are cut.")
    emulator.options(**FAULTS)
    for how in ("abort", "close", "silent"):
        emulator.cut(how)
        stage.trade(8)
    stage.until("an order without an answer", lambda: any("unknown" in line.get("said", "") for line in stage.told))
    stage.tell("No websocket lasts.")
    emulator.options(ws_refuse=1.0)
    emulator.cut("abort")
    stage.hear("polled prices")
    emulator.options(ws_refuse=0)

    stage.tell("Nothing works.")
    emulator.options(errors=1.0)
    stage.hear("shut", kind="breaker")
    stage.until("leaving out what can wait", lambda: stage.mode() == "degraded")
    emulator.options(**FAULTS)
    stage.trade(3)

    stage.tell(f"A ban of {BAN:g} seconds.")
    emulator.ban("127.0.0.1", BAN)
    stage.hear("shut", kind="ban")
    stage.trade(3)

    stage.tell("ratekeeper pause orders")
    stage.ratekeeper("pause", "orders", "--reason", "looking first")
    before = len(stage.orders())  # the command is over: from here on there must be no more
    stage.hear("withdrawn", why="paused")
    stage.hear("failed", 5, job="trade", error="Blocked")
    paused = len(stage.orders()) - before
    resting = sum(order["status"] == "NEW" for order in stage.orders().values())
    stage.tell("ratekeeper resume orders")
    stage.ratekeeper("resume", "orders")
    stage.trade(3)

    emulator.options(**dict.fromkeys(FAULTS, 0))
    stage.until("all jobs again", lambda: stage.mode() == "all jobs again")
    stage.trade(3)
    alive = stage.trader.poll() is None
    exit_status = stage.close()
    stats, orders = emulator.stats(), stage.orders()
    (since, until), *more = stats["ips"]["127.0.0.1"]["bans"]
    arrivals = [json.loads(line) for line in log.read_text().splitlines()]
    return {
        "alive": alive,
        "exit": exit_status,
        "orders": len(orders),
        "placed_twice": [name for name, order in orders.items() if order["placed"] > 1],
        "sent_twice": [name for name, order in orders.items() if order["arrived"] > 1],
        "left_open": [name for name, order in orders.items() if order["status"] == "NEW"],
        "unknown": sum("unknown" in line.get("said", "") for line in stage.told),
        "paused": {"placed": paused, "resting": resting},
        "bans": 1 + len(more),
        "ban": [since, until],
        "refused_by_the_ban": sorted(round(row["t"] - since, 3) for row in arrivals if row["status"] == 418),
        "totals": stats["totals"],
        "routes": stats["routes"],
        "told": dict(Counter(line["what"] for line in stage.told)),
        "shut": [line for line in stage.told if line["what"] == "shut"],
        "history": report(stage.history),
        "said": stage.said(),
    }


def main() -> None:
    """Exit status 1 if an order was placed twice, or a limit was overrun."""
    parser = argparse.ArgumentParser(description="The trader against an emulated Binance.")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, and nothing else")
    quiet = parser.parse_args().json
    with TemporaryDirectory(prefix="trader-") as name:
        folder, log = Path(name), Path(name) / "arrivals.jsonl"
        with Emulator("binance-usdm", latency=(5, 20), seed=7, ban_after=0, log=str(log)) as emulator:
            stage = Stage(folder, emulator, quiet=quiet)
            try:
                found = perform(stage, log)
            finally:
                stage.close()
    if quiet:
        print(json.dumps(found, indent=2))
    else:
        for name in ("orders", "placed_twice", "unknown", "paused", "told"):
            print(f"{name}: {found[name]}")
        print("\n".join(f"  {name}: {value}" for name, value in found["history"].items()))
    sys.exit(1 if found["placed_twice"] or found["totals"]["throttled"] else 0)


if __name__ == "__main__":
    main()
