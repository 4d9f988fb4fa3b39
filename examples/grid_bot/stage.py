"""The stage of the demonstration: an emulated Orderly, the bot in a process of its own, and everything that can go wrong."""

import http.client
import json
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from exchange import Key, base58

from ratekeeper.sessions.history import Record, Records
from ratekeeper.testing import Emulator

HERE = Path(__file__).parent
HASTE = 60
"""A minute of the bot's own intervals lasts a second. The exchange's limits are the real ones."""
LEVELS = 10
ACCOUNT = "demo-account"
NAME = "orderly.test"
"""What the bot knows the exchange by, so that the name can fail to resolve."""
STRANGER = "127.0.0.3"
PATIENCE = 30.0

NAME_SERVER = f'''"""Stands in for a name server: the one name resolves, or fails while a certain file exists."""
import os, socket

_real = socket.getaddrinfo

def getaddrinfo(host, *rest, **more):
    if host in ("{NAME}", b"{NAME}"):
        try:
            with open(os.environ["GRID_NO_DNS"], "r+") as failures:  # does not make the file anew
                failures.seek(0, os.SEEK_END)
                failures.write("failed\\n")
        except FileNotFoundError:
            pass
        else:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        host = "127.0.0.1"
    return _real(host, *rest, **more)

socket.getaddrinfo = getaddrinfo
'''


class Stage:
    """One run. Close it at the end.

    Attributes:
        emulator: the exchange.
        lookups: how often its name did not resolve.
    """

    def __init__(self, folder: Path, *, quiet: bool) -> None:
        self.quiet = quiet
        self.lookups = 0
        self._folder = folder
        self._log = folder / "arrivals.jsonl"
        self.said = folder / "said.txt"
        self._no_dns = folder / "no-dns"
        (folder / "names").mkdir()
        (folder / "names" / "sitecustomize.py").write_text(NAME_SERVER)
        config = (HERE / "ratekeeper.toml").read_text()
        for real, here in (("first = 1.0, longest = 16.0", "first = 0.2, longest = 2.0"),
                           ("cooldown = 5.0, longest = 60.0", "cooldown = 1.0, longest = 4.0"),
                           ("cache = true", 'cache = { ttl = { "orderly GET /v1/positions" = 2.0 } }')):  # fmt: skip
            assert real in config
            config = config.replace(real, here)
        (folder / "ratekeeper.toml").write_text(config)
        self.emulator = Emulator("orderly", latency=(2, 6), log=str(self._log), ban_after=0, seed=7)
        port = self.emulator.url.rpartition(":")[2]
        self.home = folder / "home"
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RATEKEEPER_")}
        self.environment = {
            **clean,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(folder / "names"), clean.get("PYTHONPATH", "")])),
            "NO_PROXY": "*",
            "RATEKEEPER_HOME": str(self.home),
            "RATEKEEPER_CONFIG": str(folder / "ratekeeper.toml"),
            "RATEKEEPER_HOSTS": f"{NAME}:{port}=orderly",
            "ORDERLY_URL": f"http://{NAME}:{port}",
            "ORDERLY_ACCOUNT": ACCOUNT,
            "ORDERLY_SECRET": base58(secrets.token_bytes(32)),
            "GRID_STATE": str(folder / "grid.json"),
            "GRID_LEVELS": str(LEVELS),
            "GRID_STEP": "3",
            "GRID_HASTE": str(HASTE),
            "GRID_NO_DNS": str(self._no_dns),
        }
        self._bot: subprocess.Popen[bytes] | None = None

    def tell(self, text: str) -> None:
        """For people who watch."""
        if not self.quiet:
            print(f"--- {text}", flush=True)

    # -- the bot

    def start(self) -> None:
        """Start the bot."""
        with self.said.open("ab") as said:
            self._bot = subprocess.Popen(
                [sys.executable, str(HERE / "bot.py")],
                env=self.environment, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def kill(self) -> None:
        """Kill it: nothing of it runs any further."""
        assert self._bot is not None
        self._bot.kill()
        self._bot.wait()

    def end(self) -> int:
        """End it as a service manager would; its exit status."""
        assert self._bot is not None
        self._bot.terminate()
        return self._bot.wait(PATIENCE)

    def close(self) -> None:
        """End everything."""
        if self._bot is not None:
            self.kill()
        self.emulator.close()

    def record(self) -> Record:
        """What is kept of the session."""
        return Records(self.home).read("grid@grid_bot")

    def healthy(self) -> bool:
        """Whether the session is."""
        return self.record().state == "healthy"

    def orders(self) -> dict[str, Any]:
        """The account's orders, as the exchange counted them."""
        return dict(self.emulator.stats()["orders"].get(Emulator.account(ACCOUNT), {"open": 0, "by_client_id": {}}))

    def complete(self) -> bool:
        """Whether every level but the gap has its order, and the bot has them all on disk."""
        with suppress(OSError, ValueError):
            there = {name for name, row in self.orders()["by_client_id"].items() if row["status"] == "NEW"}
            kept = json.loads((self._folder / "grid.json").read_text())
            ours = {order["client_id"] for order in kept["orders"].values()}
            return there == ours and sorted([*map(int, kept["orders"]), kept["gap"]]) == [*range(-LEVELS, LEVELS + 1)]
        return False

    def ratekeeper(self, *arguments: str) -> str:
        """What a command of Ratekeeper prints."""
        command = [sys.executable, "-m", "ratekeeper", *arguments]
        return subprocess.run(command, env=self.environment, stdout=subprocess.PIPE, check=True, text=True).stdout

    # -- what it met with

    def throttled(self) -> int:
        """How often the bot was told 429."""
        return int(self.emulator.stats()["clients"].get("grid_bot", {}).get("throttled", 0))

    def arrivals(self) -> list[dict[str, Any]]:
        """Every request of the bot that came to the exchange, in order."""
        self.emulator.stats()  # has the log written
        rows = [json.loads(line) for line in self._log.read_text().splitlines()]
        return [row for row in rows if row["ip"] != STRANGER]

    def until(self, what: str, true: Callable[[], bool], patience: float = PATIENCE) -> float:
        """Wait until something is true; returns the seconds it took."""
        begin = time.monotonic()
        while not true():
            if time.monotonic() - begin > patience:
                raise SystemExit(f"not {what} after {patience:g} s:\n{self.said.read_text()[-6000:]}")
            time.sleep(0.1)
        return time.monotonic() - begin

    # -- what goes wrong

    def burst(self, seconds: float) -> None:
        """Another program spends the key's limits on two endpoints, without asking anybody."""
        threads = [
            threading.Thread(target=self._hammer, args=(method, path, time.monotonic() + seconds))
            for method, path in (("GET", "/v1/orders"), ("POST", "/v1/order"))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _hammer(self, method: str, path: str, until: float) -> None:
        place = self.emulator.url.removeprefix("http://")
        headers = {
            "orderly-account-id": ACCOUNT,
            "orderly-key": Key(ACCOUNT, self.environment["ORDERLY_SECRET"]).public,
        }
        while time.monotonic() < until:
            connection = http.client.HTTPConnection(place, timeout=0.3, source_address=(STRANGER, 0))
            with suppress(OSError, http.client.HTTPException):
                connection.request(method, path, headers=headers)
                connection.getresponse().read()
            connection.close()
            time.sleep(0.02)

    @contextmanager
    def no_names(self) -> Iterator[None]:
        """No name resolves, until the block ends."""
        self._no_dns.touch()
        try:
            yield
        finally:
            self.lookups += len(self._no_dns.read_text().splitlines())
            self._no_dns.unlink()
