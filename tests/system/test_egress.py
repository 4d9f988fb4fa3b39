"""Several addresses to leave from, against an exchange that counts and bans by source address.

127.0.0.2, .3, .4 and .5 are real, distinct addresses of the loopback.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
import requests
from tests.support.stood import Stood
from tests.support.tidy import TidyServer

from ratekeeper import Event, Gate, Rejected
from ratekeeper.adapters.aiohttp import Connector, Middleware
from ratekeeper.adapters.httpx import AsyncTransport, Transport
from ratekeeper.adapters.requests import Adapter
from ratekeeper.testing import Emulator

sys.path.append(str(Path(__file__).parents[1] / "support"))

from forward import ForwardProxy

WINDOW, CAPACITY, WORKERS = 3, 300, 16
KLINES = "/fapi/v1/klines?symbol=BTCUSDT&interval=1m&limit=500"
"""Costs 5."""
FOUR = """
[egress.addresses]
a = "127.0.0.2"
b = "127.0.0.3"
c = { bind = "127.0.0.4" }
d = "127.0.0.5"
[egress.pools.binance-usdm]
primary = ["a", "b"]
backups = ["c", "d"]
"""


class Venue:
    """The exchange, a configuration, and a gate for both."""

    def __init__(self, folder: Path, stack: ExitStack, config: str, **options: Any) -> None:
        folder.mkdir()
        self._log = folder / "arrivals.jsonl"
        self.config = folder / "ratekeeper.toml"
        self.config.write_text(config)
        settings = {"window": WINDOW, "capacity": CAPACITY, "log": str(self._log), **options}
        self.emulator = stack.enter_context(Emulator("binance-usdm", **settings))
        self.gate = stack.enter_context(Gate("memory://", config=self.config, hosts=self.emulator.hosts, max_wait=20))
        self.events: list[Event] = []
        self.gate.on(self.events.append)
        self.url = self.emulator.url + KLINES

    def arrivals(self) -> list[dict[str, Any]]:
        """All that arrived, but not what was asked at first contact."""
        self.emulator.stats()  # has the log written
        rows = [json.loads(line) for line in self._log.read_text().splitlines()]
        return [row for row in rows if "exchangeInfo" not in row["route"]]

    def sources(self) -> Counter[str]:
        """How many calls came from each address."""
        return Counter(row["ip"] for row in self.arrivals())

    def refused(self) -> int:
        """Calls that were answered with 429 or 418."""
        totals = self.emulator.stats()["totals"]
        return int(totals["throttled"] + totals["banned"])

    def client(self) -> httpx.Client:
        """A governed client."""
        return httpx.Client(transport=Transport(gate=self.gate))

    def work(self, seconds: float) -> None:
        """Call without a pause from several threads."""
        end = time.monotonic() + seconds

        def one(client: httpx.Client) -> None:
            while time.monotonic() < end:
                client.get(self.url)

        with self.client() as client, ThreadPoolExecutor(WORKERS) as threads:
            for done in [threads.submit(one, client) for _ in range(WORKERS)]:
                done.result()


@pytest.fixture
def venue(tmp_path: Path) -> Iterator[Callable[..., Venue]]:
    """Makes a `Venue` with a configuration and options of the emulator."""
    numbers = itertools.count()
    with ExitStack() as stack:
        yield lambda config=FOUR, **options: Venue(tmp_path / f"venue{next(numbers)}", stack, config, **options)


# --- clients: each calls without a pause for so many seconds ------------------------------------------------------


def by_httpx(venue: Venue, seconds: float) -> None:
    """Asyncio, httpx."""

    async def main() -> None:
        end = time.monotonic() + seconds

        async def one(client: httpx.AsyncClient) -> None:
            while time.monotonic() < end:
                (await client.get(venue.url)).raise_for_status()

        async with httpx.AsyncClient(transport=AsyncTransport(gate=venue.gate)) as client:
            await asyncio.gather(*[one(client) for _ in range(WORKERS)])

    asyncio.run(main())


def by_aiohttp(venue: Venue, seconds: float) -> None:
    """Asyncio, aiohttp."""

    async def main() -> None:
        end = time.monotonic() + seconds

        async def one(session: aiohttp.ClientSession) -> None:
            while time.monotonic() < end:
                async with session.get(venue.url) as answer:
                    answer.raise_for_status()
                    await answer.read()

        middlewares = (Middleware(venue.gate),)
        async with aiohttp.ClientSession(connector=Connector(), middlewares=middlewares) as session:
            await asyncio.gather(*[one(session) for _ in range(WORKERS)])

    asyncio.run(main())


def by_requests(venue: Venue, seconds: float) -> None:
    """Threads, requests."""
    end = time.monotonic() + seconds
    with requests.Session() as session, ThreadPoolExecutor(WORKERS) as threads:
        session.mount("http://", Adapter(gate=venue.gate, pool_maxsize=WORKERS))

        def one() -> None:
            while time.monotonic() < end:
                session.get(venue.url).raise_for_status()

        for done in [threads.submit(one) for _ in range(WORKERS)]:
            done.result()


CLIENTS = pytest.mark.parametrize("call", [by_httpx, by_aiohttp, by_requests], ids=["httpx", "aiohttp", "requests"])


@pytest.mark.alone
@CLIENTS
def test_capacity_adds_up(call: Callable[[Venue, float], None], venue: Callable[..., Venue]) -> None:
    """Four addresses have four budgets: all used in every whole window, and nobody refused.

    On a machine that is busy with other things the share is measured a second time; a refusal is one too many in either.
    """
    used = used_together(call, venue())
    assert min(used) >= 0.97 * 4 * CAPACITY or min(used_together(call, venue())) >= 0.97 * 4 * CAPACITY, used


def used_together(call: Callable[[Venue, float], None], here: Venue) -> list[float]:
    """Units used in each whole window, of all addresses together, and those for which the machine left no time."""
    begin = here.emulator.stats()["now"]
    with Stood() as stood:
        call(here, 2 * WINDOW + 1.5)
    end = here.emulator.stats()["now"]
    assert here.refused() == 0
    whole = [row for row in here.emulator.windows() if row["start"] >= begin and row["start"] + WINDOW <= end]
    by_window: Counter[float] = Counter()
    for row in whole:
        by_window[row["start"]] += row["accepted"]
    # All four are among them if the sum is what four have.
    assert {row["owner"] for row in whole} <= {f"ip:127.0.0.{n}" for n in (2, 3, 4, 5)}
    return [units + 4 * CAPACITY * stood.share(at, at + WINDOW) for at, units in by_window.items()] or [0]


def test_backups_rest_while_the_primaries_have_room(venue: Callable[..., Venue]) -> None:
    """A light load leaves from the primaries only, evenly."""
    here = venue(capacity=10_000)
    with here.client() as client:
        for _ in range(20):  # a new window begins with the first address again, wherever it falls into the sixty
            for _ in range(60):
                client.get(here.url)
            if len(found := here.sources()) > 1:
                break
    assert set(found) == {"127.0.0.2", "127.0.0.3"}


def test_a_banned_address_is_left_and_taken_back(venue: Callable[..., Venue]) -> None:
    """A ban of one address: the service goes on at once from the others, and from that one when its ban has ended."""
    here = venue(capacity=100_000)
    threads = threading.Thread(target=here.work, args=(7,))
    threads.start()
    time.sleep(1.5)
    here.emulator.ban("127.0.0.2", seconds=3)
    threads.join()
    rows = here.arrivals()
    shut = [row["t"] for row in rows if row["status"] == 418]
    assert 1 <= len(shut) <= WORKERS
    assert {row["ip"] for row in rows if row["status"] == 418} == {"127.0.0.2"}
    end = here.emulator.stats()["ips"]["127.0.0.2"]["banned_until"]
    assert end - shut[-1] > 2
    during = [row for row in rows if shut[-1] < row["t"] < end]
    assert during
    assert "127.0.0.2" not in {row["ip"] for row in during}
    assert "127.0.0.2" in {row["ip"] for row in rows if row["t"] >= end}
    # Nobody waited for its end: the calls never stopped.
    times = [row["t"] for row in during]
    assert max(after - before for before, after in itertools.pairwise(times)) < 1.0


def test_who_waits_for_an_address_that_is_banned_goes_elsewhere(venue: Callable[..., Venue]) -> None:
    """A call that stands in line for an address does not wait for the end of its ban."""
    here = venue(
        """
[egress.addresses]
a = "127.0.0.2"
b = "127.0.0.3"
[egress.pools."*"]
primary = ["a", "b"]
""",
        window=60,
    )
    gate, namespace = here.gate, f"binance-usdm@{here.emulator.url.removeprefix('http://')}"
    cost = {"symbol": "BTCUSDT", "limit": 1500}
    # Nothing is left anywhere, and b opens last: the call will stand in a's line.
    gate.block(f"{namespace}/ip:b", 1.5, "pause", "for the test")
    gate.block(f"{namespace}/ip:a", 0.7, "pause", "for the test")
    got: list[str] = []

    def wait() -> None:
        with gate.permit("binance-usdm", "GET", "/fapi/v1/klines", params=cost, timeout=30) as permit:
            got.append(permit.egress.name)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.2)
    gate.block(f"{namespace}/ip:a", 600, "ban", "for the test")
    thread.join(10)
    assert got == ["b"]


def test_a_pinned_account_uses_its_address_only(venue: Callable[..., Venue]) -> None:
    """Calls that show a pinned key leave from its address, whatever is free elsewhere; the key is known by its digest."""
    here = venue()
    key = "k" * 12
    with here.client() as client:
        client.get(f"{here.emulator.url}/fapi/v1/listenKey", headers={"X-MBX-APIKEY": key})
        owners = {view.key.rpartition(":")[2] for view in here.gate.read().ledgers}
        plan = here.gate.permit("binance-usdm", "GET", "/fapi/v2/balance", headers={"X-MBX-APIKEY": key}).plan
        digest = next(scope.rpartition(":")[2] for scope in plan.scopes if "/account:" in scope)
    assert key not in digest and key not in owners
    pool = here.gate.egress.pools["binance-usdm"]
    pool.pins[digest] = ["d"]
    before = here.sources()
    with here.client() as client:
        for _ in range(10):
            client.get(f"{here.emulator.url}/fapi/v2/balance", headers={"X-MBX-APIKEY": key})
    assert here.sources() - before == Counter({"127.0.0.5": 10})


@CLIENTS
def test_an_address_may_be_a_proxy(call: Callable[[Venue, float], None], venue: Callable[..., Venue]) -> None:
    """What leaves through a proxy is counted where the proxy's own address is."""
    with ForwardProxy("127.0.0.9") as proxy:
        login = proxy.url.replace("//", "//me:pass@")
        here = venue(
            f"""
[egress.addresses]
near = "127.0.0.2"
far = {{ proxy = "{login}", scope = "nat-1" }}
[egress.pools.binance-usdm]
primary = ["near", "far"]
"""
        )
        call(here, 1.5)
    assert here.refused() == 0
    found = here.sources()
    assert set(found) == {"127.0.0.2", "127.0.0.9"}
    assert len(proxy.asked) == found["127.0.0.9"] and proxy.asked[0][0].startswith(here.emulator.url)
    assert {shown for _, shown in proxy.asked} == {"Basic bWU6cGFzcw=="}
    keys = {view.key.rpartition("/")[2] for view in here.gate.read().ledgers}
    assert keys == {"ip:near", "ip:nat-1"}
    assert "pass" not in repr(here.gate.egress.addresses)


@CLIENTS
def test_a_dead_address_is_left(call: Callable[[Venue, float], None], venue: Callable[..., Venue]) -> None:
    """An address that this machine has not, and a proxy that is not there: no call fails, and each is left after one try."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = probe.getsockname()[1]
    here = venue(
        f"""
[egress.addresses]
gone = "192.0.2.1"
shut = {{ proxy = "http://127.0.0.1:{closed}" }}
good = "127.0.0.4"
[egress.pools.binance-usdm]
primary = ["gone", "shut"]
backups = ["good"]
""",
        capacity=100_000,
    )
    call(here, 1.5)
    assert set(here.sources()) == {"127.0.0.4"}
    said = [event.fields["address"] for event in here.events if event.kind == "egress"]
    # The first contact has tried them already and says nothing; the calls that follow do not try them again.
    assert set(said) <= {"gone", "shut"} and len(said) <= 2
    resting = {block.scope.rpartition(":")[2] for block in here.gate.read().blocks if block.kind == "rest"}
    assert resting == {"gone", "shut"}
    views = {view.key.rpartition(":")[2]: view for view in here.gate.read().ledgers if "/weight-1m/" in view.key}
    assert all(view.used + view.inflight == 0 for name, view in views.items() if name != "good")


def test_a_connection_that_fails_is_made_from_elsewhere(venue: Callable[..., Venue]) -> None:
    """An address dies while it is in use: the very call that finds out is served from another one."""
    with ForwardProxy("127.0.0.9") as proxy:
        here = venue(
            f"""
[egress.addresses]
far = {{ proxy = "{proxy.url}" }}
near = "127.0.0.2"
[egress.pools.binance-usdm]
primary = "far"
backups = ["near"]
"""
        )
        with here.client() as client:
            assert client.get(here.url).status_code == 200
    with here.client() as client:
        assert client.get(here.url).status_code == 200
    assert here.sources() == {"127.0.0.9": 1, "127.0.0.2": 1}
    assert [event.fields["address"] for event in here.events if event.kind == "egress"] == ["far"]


def test_names_that_share_a_scope_share_one_budget(venue: Callable[..., Venue]) -> None:
    """Two addresses behind one public address have one budget between them."""
    here = venue(
        """
[egress.addresses]
a = { bind = "127.0.0.2", scope = "nat" }
b = { bind = "127.0.0.3", scope = "nat" }
[egress.pools.binance-usdm]
primary = ["a", "b"]
""",
        window=60,
    )
    done = 0
    with httpx.Client(transport=Transport(gate=here.gate)) as client:
        here.gate.max_wait = 0.5
        try:
            while done < CAPACITY:
                client.get(here.url).raise_for_status()
                done += 1
        except Rejected:
            pass
    assert CAPACITY - 25 <= 5 * done <= CAPACITY
    assert here.refused() == 0


class _Echo(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        """The caller's address."""
        self.server.asked.append(self.client_address[0])  # type: ignore[attr-defined]
        body = json.dumps({"origin": self.client_address[0]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def test_an_echo_names_the_scopes(venue: Callable[..., Venue]) -> None:
    """What the echo says of each address names its ledgers; every address is asked once, also through a proxy."""
    server = TidyServer(("127.0.0.1", 0), _Echo)
    server.asked = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        with ForwardProxy("127.0.0.3") as proxy:
            here = venue(
                f"""
[egress]
echo = "http://127.0.0.1:{server.server_address[1]}/ip"
[egress.addresses]
a = "127.0.0.2"
b = "127.0.0.3"
far = {{ proxy = "{proxy.url}" }}
[egress.pools.binance-usdm]
primary = ["a", "b"]
backups = ["far"]
"""
            )
            here.work(1.0)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert sorted(server.asked) == ["127.0.0.2", "127.0.0.3", "127.0.0.3"]  # type: ignore[attr-defined]
    keys = {view.key.rpartition("/")[2] for view in here.gate.read().ledgers}
    assert keys == {"ip:127.0.0.2", "ip:127.0.0.3"}
    assert here.refused() == 0


PROGRAMS = {
    "httpx": "import httpx\nwith httpx.Client() as c:\n    for _ in range(80): c.get(URL).raise_for_status()",
    "requests": "import requests\nwith requests.Session() as c:\n    for _ in range(80): c.get(URL).raise_for_status()",
    "aiohttp": """
import aiohttp, asyncio
async def main():
    async with aiohttp.ClientSession() as c:
        for _ in range(80):
            async with c.get(URL) as r: r.raise_for_status(); await r.read()
asyncio.run(main())
""",
    "ccxt": """
import ccxt
e = ccxt.binanceusdm(); e.urls["api"] = {k: v and BASE + "/" + v.split("/", 3)[3] for k, v in e.urls["api"].items()}
for _ in range(80): e.fapiPublicGetKlines({"symbol": "BTCUSDT", "interval": "1m", "limit": 500})
""",
    "ccxt async": """
import asyncio, ccxt.async_support as ccxt
async def main():
    e = ccxt.binanceusdm(); e.urls["api"] = {k: v and BASE + "/" + v.split("/", 3)[3] for k, v in e.urls["api"].items()}
    for _ in range(80): await e.fapiPublicGetKlines({"symbol": "BTCUSDT", "interval": "1m", "limit": 500})
    await e.close()
asyncio.run(main())
""",
}


@pytest.mark.usefixtures("warm_program")
@pytest.mark.parametrize("name", PROGRAMS)
def test_an_unchanged_program_uses_all_addresses(name: str, venue: Callable[..., Venue], own_home: Path) -> None:
    """Under ``ratekeeper run``: 80 calls that cost more than one address has, from several addresses, none refused."""
    here = venue(window=600, capacity=205)
    source = f"BASE = {here.emulator.url!r}\nURL = BASE + {KLINES!r}\n{PROGRAMS[name]}\nprint('done')"
    environment = {**os.environ, "RATEKEEPER_HOSTS": here.emulator.hosts, "RATEKEEPER_CONFIG": str(here.config)}
    begin = [
        sys.executable,
        "-m",
        "ratekeeper",
        "run",
        "--",
        sys.executable,
        "-W",
        "error::ResourceWarning",
        "-c",
        source,
    ]
    done = subprocess.run(begin, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "done", done.stderr
    assert "ungoverned" not in done.stderr
    assert here.refused() == 0
    found = here.sources()
    assert sum(found.values()) == 80
    assert set(found) >= {"127.0.0.2", "127.0.0.3"} and "127.0.0.1" not in found
    shown = subprocess.run(
        [sys.executable, "-m", "ratekeeper", "status", "--json"],
        env=environment, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    rows = {row["address"]: row for row in json.loads(shown.stdout)["addresses"]}
    assert set(rows) == {"a", "b", "c", "d"}
    assert {row["state"] for row in rows.values()} == {"active"}
    assert rows["a"]["limit"] == "weight-1m" and rows["a"]["capacity"] == 205 and rows["a"]["used"] >= 190
