"""The bot against an emulated Orderly on which everything goes wrong, in about a minute: ``python run.py [--json]``.

Exit status 1 if an order was placed twice, a refusal came without cause, or the session did not come back.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from stage import LEVELS, Stage

NOISE = {"hangup": 0.10, "loss": 0.025, "hang": 0.025, "errors": 0.03}
"""All the time but in the burst: 10 % of the calls are hung up on, 5 % get no answer, 3 % a 503."""
QUIET = dict.fromkeys(NOISE, 0.0)
BURST, BAN = 3.0, 4.0
"""Seconds. The ban stands for two minutes."""


class Storm:
    """What is done to the bot, one thing after the other."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.emulator = stage.emulator
        self.spans: dict[str, tuple[float, float]] = {}
        """From when to when the session was made to fall over, and by what; Unix seconds."""
        self.found: dict[str, Any] = {}

    def perform(self) -> dict[str, Any]:
        """All of it; returns the figures."""
        stage, emulator = self.stage, self.emulator
        began = time.monotonic()
        stage.tell("10 % of all calls are hung up on, 5 % get no answer, 3 % a 503: all the time.")
        emulator.options(**NOISE)
        stage.start()
        stage.until("placing", lambda: len(stage.orders()["by_client_id"]) >= LEVELS)
        self.kill(f"The bot lays {2 * LEVELS} orders; half way, kill -9.")
        self.burst()
        self.cuts()
        self.leap()
        self.ban()
        stage.tell("Nothing but 503s, until the session was started again in vain.")
        self.broken("outage", 2, lambda: emulator.options(**QUIET | {"errors": 1.0}), lambda: emulator.options(**NOISE))
        stage.tell("The exchange's name does not resolve, and every connection is cut.")
        with ExitStack() as stack:
            self.broken("names", 1, lambda: self.no_names(stack), stack.close)
        stage.tell("The exchange's clock goes back by 30 s.")
        emulator.options(skew=0)
        self.by_hand()
        stage.tell("All is well again.")
        emulator.options(**QUIET)
        stage.until("complete", lambda: stage.healthy() and stage.complete())
        return self.figures(began)

    def burst(self) -> None:
        """Another program spends the key's limits. The bot's first refusals come from what it could not know.

        Nothing else goes wrong meanwhile: a refusal whose answer is lost cannot be obeyed, and so would tell nothing.
        """
        stage = self.stage
        self.emulator.options(**QUIET)
        stage.tell(f"For {BURST:g} s another program uses the bot's key without a gate: 429s.")
        before, at = stage.throttled(), len(stage.arrivals())
        stage.burst(BURST)
        time.sleep(1.2)  # what it spent is counted for a second longer
        rows = stage.arrivals()[at:]
        self.found["burst"] = {"refused": stage.throttled() - before, "too_soon": too_soon(rows)}
        self.found["refused_before_the_burst"] = before
        self.emulator.options(**NOISE)

    def cuts(self) -> None:
        """Both websockets, in three ways."""
        stage, took = self.stage, {}
        for mode in ("close", "abort", "silent"):
            stage.tell(f"Both websockets are cut: {mode}.")
            enough = self.dials() + 2
            self.emulator.cut(mode)
            took[mode] = stage.until(f"back from a cut ({mode})", partial(self.dialled, enough))
            stage.until("connected", lambda: self.emulator.stats()["sockets"]["open"] >= 2)
        self.found["dialled_again_after"] = {mode: round(seconds, 1) for mode, seconds in took.items()}

    def dials(self) -> int:
        """Websockets opened so far."""
        rows = self.emulator.stats()["sockets"]["dials"].values()
        return sum(row["count"] - row["refused"] for row in rows)

    def dialled(self, enough: int) -> bool:
        """Whether so many websockets were opened."""
        return self.dials() >= enough

    def kill(self, told: str) -> None:
        """The bot dies without a word, and is started again."""
        stage = self.stage
        stage.tell(told)
        stage.kill()
        since = time.time()
        stage.start()
        stage.until("taken up", lambda: stage.record().since > since)
        stage.until("complete after kill -9", lambda: stage.healthy() and stage.complete())
        took = time.time() - since
        stage.until("connected", lambda: self.emulator.stats()["sockets"]["open"] >= 2)
        self.found.setdefault("complete_after_kill", []).append(round(took, 1))

    def leap(self) -> None:
        """The price leaps, orders are filled, and while others take their place the bot is killed again."""
        self.emulator.options(skew=30)
        time.sleep(0.3)
        self.kill("The exchange's clock leaps by 30 s, and the price with it; kill -9.")

    def ban(self) -> None:
        """The address is shut out; nobody knocks."""
        stage = self.stage
        stage.tell(f"The address is banned for two minutes ({BAN:g} s here).")
        at = len(stage.arrivals())
        self.emulator.ban("127.0.0.1", BAN)
        since, until = self.emulator.stats()["ips"]["127.0.0.1"]["bans"][-1]
        stage.until(
            "served again", lambda: any(row["t"] > until and row["status"] == 200 for row in stage.arrivals()[at:])
        )
        refused = [row["t"] for row in stage.arrivals()[at:] if row["status"] == 403]
        known = min(refused, default=since)
        self.found["ban"] = {"on_the_way": len(refused), "knocked": sum(t > known + 1 for t in refused)}

    def no_names(self, stack: ExitStack) -> None:
        """The name server fails."""
        stack.enter_context(self.stage.no_names())
        self.emulator.cut("abort")

    def broken(self, name: str, attempts: int, begin: Callable[[], Any], end: Callable[[], Any]) -> None:
        """Something that a session does not survive, until it has fallen over so often; then until it is well again."""
        stage = self.stage
        stage.until("healthy", stage.healthy)
        since = time.time()
        begin()
        stage.until(f"abnormal ({name})", lambda: stage.record().progress.attempts >= attempts)
        end()
        stage.until(f"recovered ({name})", stage.healthy)
        self.spans[name] = (since, time.time())

    def by_hand(self) -> None:
        """A person has the session started again."""
        since = time.time()
        said = self.stage.ratekeeper("sessions", "recover", "grid").strip()
        self.stage.tell(f"ratekeeper sessions recover grid: {said}")
        self.stage.until("recovered by hand", self.stage.healthy)
        self.spans["by hand"] = (since, time.time())

    def figures(self, began: float) -> dict[str, Any]:
        """What came of it."""
        stage = self.stage
        orders = stage.orders()
        rows = orders["by_client_id"].values()
        status = json.loads(stage.ratekeeper("status", "--json"))
        throttled = stage.throttled() - self.found["burst"]["refused"] - self.found["refused_before_the_burst"]
        state = stage.record().state
        return {
            **self.found,
            "state": state,
            "levels": LEVELS,
            "open": orders["open"],
            "orders": len(rows),
            "filled": sum(row["status"] == "FILLED" for row in rows),
            "arrived_twice": sum(row["arrived"] > 1 for row in rows),
            "placed_twice": sum(row["placed"] > 1 for row in rows),
            "refused_after_the_burst": throttled,
            "lookups_failed": stage.lookups,
            "faults": {name: self.emulator.stats()["totals"][name] for name in ("hung_up", "lost", "hung", "errors")},
            "status": status,
            "exit_status": stage.end(),
            "spans": self.spans,
            "history": [{name: getattr(row, name) for name in row.__struct_fields__} for row in stage.record().history],
            "events": dict(Counter(line.partition(":")[0] for line in stage.said.read_text().splitlines())),
            "said": stage.said.read_text(),
            "seconds": round(time.monotonic() - began, 1),
        }


def too_soon(rows: list[dict[str, Any]]) -> int:
    """Calls to an endpoint that had said less than a second before that it is full, and that were not on their way then."""
    full: dict[str, float] = {}
    found = 0
    for row in rows:
        found += 0.2 < row["t"] - full.get(row["route"], 0.0) < 0.95
        if row["status"] == 429:
            full[row["route"]] = row["t"]
    return found


def show(found: dict[str, Any]) -> None:
    """The figures for people."""
    ban, burst = found["ban"], found["burst"]
    print(f"\n{found['seconds']:.0f} s; faults that the exchange made: {found['faults']}")
    print(f"session {found['state']}; {found['open']} of {2 * found['levels']} orders open, {found['filled']} filled")
    print(f"{found['orders']} orders placed, {found['placed_twice']} of them twice")
    print(
        f"429s: {burst['refused']} in the burst, {found['refused_after_the_burst']} later; too soon: {burst['too_soon']}"
    )
    print(f"ban: {ban['on_the_way']} calls on their way, {ban['knocked']} after them")
    print(f"complete after kill -9: {' and '.join(map(str, found['complete_after_kill']))} s")
    for row in found["history"]:
        what = "recovered" if row["ok"] else "failed"
        print(f"  {row['kind']}: {what} at attempt {row['attempt']}, after {row['took']:.1f} s. {row['reason'][:90]}")


def main() -> None:
    """Exit status 1 if something is not as it should be."""
    parser = argparse.ArgumentParser(description="The bot against an exchange on which everything goes wrong.")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, and nothing else")
    quiet = parser.parse_args().json
    with TemporaryDirectory(prefix="grid-") as folder:
        stage = Stage(Path(folder), quiet=quiet)
        try:
            found = Storm(stage).perform()
        finally:
            stage.close()
    if quiet:
        print(json.dumps(found, indent=2))
    else:
        show(found)
    well = found["state"] == "healthy" and found["open"] == 2 * LEVELS
    if not well or found["placed_twice"] or found["refused_after_the_burst"] or found["ban"]["knocked"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
