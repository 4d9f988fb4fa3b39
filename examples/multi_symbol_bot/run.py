"""Two bots on this machine against an emulated Bitget, in three quarters of a minute: ``python run.py [--json]``.

First a neighbour that knows no limits asks for candles from the same address. Then the exchange fails. A minute of the
bots' memory for trouble is six seconds here.
"""

import argparse
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ratekeeper.testing import Emulator

HERE = Path(__file__).parent
NAMES = ("one", "two")
MINUTE, PAUSE = 6.0, 1.0
REFUSED = 12
"""The neighbour goes when the bots were refused so often: more than five times, one of them, at the least."""
TROUBLE, FAILED = 0.4, 25
"""Share of requests that fail, and how many of them at the least: it lasts until a bot asks less at once."""
PATIENCE = 45.0
"""Seconds in which the next thing must have happened."""
CANDLES = "/api/v2/mix/market/candles?symbol=BTCUSDT&productType=USDT-FUTURES&granularity=1m&limit=1"


@contextmanager
def neighbour(url: str, threads: int = 4) -> Iterator[None]:
    """A program without Ratekeeper that asks for candles some hundred times a second: five times what the address may."""
    over = threading.Event()

    def ask() -> None:
        wire = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
        while not over.is_set():
            wire.request("GET", CANDLES, headers={"User-Agent": "neighbour"})
            wire.getresponse().read()
            time.sleep(0.03)
        wire.close()

    running = [threading.Thread(target=ask) for _ in range(threads)]
    for thread in running:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in running:
            thread.join()


class Bots:
    """The two bots, and what they tell."""

    def __init__(self, environment: dict[str, str], said: Path, tell: Callable[[str], None]) -> None:
        self.rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in NAMES}
        self._tell = tell
        self._said = said.open("wb")
        self._children = [
            subprocess.Popen(
                [sys.executable, str(HERE / "bot.py"), name],
                env={**environment, "BITGET_KEY": f"key of {name}"},
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._said,
            )
            for name in NAMES
        ]  # fmt: skip
        self._readers = [threading.Thread(target=self._read, args=(child,)) for child in self._children]
        for reader in self._readers:
            reader.start()

    def _read(self, child: subprocess.Popen[bytes]) -> None:
        assert child.stdout is not None
        for line in child.stdout:
            told = json.loads(line)
            self.rounds[told["bot"]].append(told)
            heard = ", ".join(f"{n} {kind}" for kind, n in sorted(told["events"].items()))
            answers = f"{told['answered']} of {2 * told['symbols']}"
            self._tell(
                f"  {told['bot']:4} {told['round']:2}  {answers}  side by side {told['widths']}  {told['order']}  {heard}"
            )

    def until(self, what: str, done: Callable[[list[dict[str, Any]]], bool]) -> None:
        """Wait until each bot has told rounds of which `done` says so."""
        end = time.monotonic() + PATIENCE
        while not all(done(told) for told in self.rounds.values()):
            if time.monotonic() > end or any(child.poll() is not None for child in self._children):
                raise SystemExit(f"{what}: not in {PATIENCE:g} s")
            time.sleep(0.05)

    def more(self, count: int) -> None:
        """Wait for so many more rounds of each."""
        told = {name: len(rounds) + count for name, rounds in self.rounds.items()}
        self.until(f"{count} more rounds", lambda rounds: len(rounds) >= told[rounds[0]["bot"]] if rounds else False)

    def calm(self) -> None:
        """Wait until each has made a whole round at full width."""
        now = time.time()
        self.until("full width again", lambda rounds: rounds[-1]["at"] > now and rounds[-1]["widths"] == [10, 10, 10])

    def narrowed(self, since: float) -> bool:
        """Whether one of them has asked less at once in a round that ended after an instant."""
        told = [told for rounds in self.rounds.values() for told in rounds]
        return any(each["at"] > since and min(each["widths"]) < 10 for each in told)

    def close(self) -> list[int]:
        """Let them finish their rounds and cancel their orders; returns their exit statuses."""
        for child in self._children:
            child.terminate()
        statuses = [child.wait() for child in self._children]
        for child, reader in zip(self._children, self._readers, strict=True):
            reader.join()
            assert child.stdout is not None
            child.stdout.close()
        self._said.close()
        return statuses


def throttled(emulator: Emulator) -> dict[str, int]:
    """Refusals so far, by program."""
    clients = emulator.stats()["clients"]
    return {name: clients.get(name, {}).get("throttled", 0) for name in NAMES}


def perform(folder: Path, tell: Callable[[str], None], *, tables: bool) -> dict[str, Any]:
    """The whole run; returns its figures."""
    others = {
        name: value for name, value in os.environ.items() if not name.startswith(("RATEKEEPER_", "BOT_", "BITGET_"))
    }
    with Emulator("bitget", latency=(10, 30), seed=7, ban_after=0) as emulator, ExitStack() as stack:
        environment = {
            **others,
            "RATEKEEPER_CONFIG": str(HERE / "ratekeeper.toml"),
            "RATEKEEPER_HOME": str(folder / "home"),
            "RATEKEEPER_HOSTS": emulator.hosts,
            "BITGET_URL": emulator.url,
            "BITGET_SECRET": "any",
            "BITGET_PASSWORD": "any",
            "BOT_MINUTE": str(MINUTE),
            "BOT_PAUSE": str(PAUSE),
        }
        bots = Bots(environment, folder / "said.txt", tell)
        stack.callback(bots.close)
        tell(
            "Two bots, 43 futures each; one of them is off. By round: answers, width before, least, after; what was heard."
        )
        bots.more(2)
        if tables:
            subprocess.run([sys.executable, str(HERE / "tables.py")], env=environment, check=True)
        refused, made = [throttled(emulator)], emulator.stats()["routes"]
        asked = sum(len(rounds) for rounds in bots.rounds.values())
        tell("A neighbour floods the same address.")
        phases = [time.time()]
        with neighbour(emulator.url):
            bots.until("refusals", lambda _: sum(throttled(emulator).values()) > REFUSED)
        phases.append(time.time())
        time.sleep(1.5)  # its last second is still in the window, and answers are on the way
        refused.append(throttled(emulator))
        bots.calm()
        tell(f"Bitget answers {TROUBLE:.0%} of all requests with 503.")
        phases.append(time.time())
        emulator.options(errors=TROUBLE)
        bots.until(
            "errors", lambda _: emulator.stats()["totals"]["errors"] > FAILED and bots.narrowed(phases[-1])
        )  # fmt: skip
        bots.more(1)
        emulator.options(errors=0)
        phases.append(time.time())
        bots.calm()
        bots.more(1)
        statuses = bots.close()
        refused.append(throttled(emulator))
        stats = emulator.stats()
    return {
        "rounds": bots.rounds,
        "phases": phases,
        "refused": refused,
        "made_in_calm": {"rounds": asked, **made},
        "routes": stats["routes"],
        "totals": stats["totals"],
        "orders": {name: stats["orders"].get(Emulator.account(f"key of {name}"), {}) for name in NAMES},
        "exits": statuses,
        "said": (folder / "said.txt").read_text(),
    }


def show(found: dict[str, Any]) -> None:
    """The figures for people."""
    rounds = [told for rounds in found["rounds"].values() for told in rounds]
    tickers = sum(told["symbols"] for told in rounds)
    calls = {
        name: found["routes"].get(f"GET /api/v2/mix/market/{name}", 0) for name in ("ticker", "tickers", "candles")
    }
    heard = sum((Counter(told["events"]) for told in rounds), Counter[str]())
    answered = sum(told["answered"] for told in rounds)
    print(
        f"{len(rounds)} rounds: {answered:,} of {2 * tickers:,} questions answered, {heard['cache stale']} by an old answer"
    )
    print(f"{tickers} tickers in {calls['ticker'] + calls['tickers']} calls, {heard['cache hit']} answers given twice")
    before, burst, end = (sum(each.values()) for each in found["refused"])
    print(f"refused (429): {before} before the burst, {burst - before} in it, {end - burst} after it")
    print(f"{heard['retry']} calls made again, {heard['gave up']} given up, {heard['breaker']} times a breaker opened")
    placed = [known["placed"] for owner in found["orders"].values() for known in owner["by_client_id"].values()]
    print(f"{sum(placed)} orders placed, {sum(n > 1 for n in placed)} of them twice")


def main() -> None:
    """Exit status 1 if something was refused outside the burst, or an order placed twice."""
    parser = argparse.ArgumentParser(description="Two bots against an emulated Bitget.")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, and nothing else")
    quiet = parser.parse_args().json
    with TemporaryDirectory(prefix="bots-") as folder:
        tell = (lambda text: None) if quiet else (lambda text: print(text, flush=True))
        found = perform(Path(folder), tell, tables=not quiet)
    print(json.dumps(found, indent=2)) if quiet else show(found)
    before, burst, end = (sum(each.values()) for each in found["refused"])
    placed = [known["placed"] for owner in found["orders"].values() for known in owner["by_client_id"].values()]
    sys.exit(1 if before or end > burst or max(placed) > 1 else 0)


if __name__ == "__main__":
    main()
