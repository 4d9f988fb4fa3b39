"""Two machines, each a gate with a state folder of its own, and a real server: bans, forks, passwords, TLS, losses."""

from __future__ import annotations

import json
import os
import select
import signal
import ssl
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis
from tests.support.relay import Relay
from tests.support.server import Server, free_port

from ratekeeper import Gate
from ratekeeper.errors import Rejected, StoreError
from ratekeeper.ledger.limit import SECOND

RULES = Path(__file__).parents[1] / "support" / "testland.toml"
Machines = Callable[..., Gate]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server of this test's own."""
    with Server(tmp_path / "server") as made:
        yield made


@pytest.fixture
def machine(tmp_path: Path, server: Server) -> Iterator[Machines]:
    """Makes gates that share the server, each as if on a machine of its own."""
    with ExitStack() as stack:
        numbers = iter(range(100))

        def made(url: str = "") -> Gate:
            home = tmp_path / f"home{next(numbers)}"
            return stack.enter_context(Gate(url or server.url, home=home, rules=[RULES], hosts={}))

        yield made


def take(gate: Gate, path: str = "/", timeout: float = 5.0) -> None:
    """One call."""
    with gate.permit("testland", "GET", path, timeout=timeout):
        pass


def until(true: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait for something that happens soon."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def spent(gate: Gate, limit: str = "requests-1d") -> int:
    """Units that the server counts as spent or in flight."""
    return sum(view.used + view.inflight for view in gate.read().ledgers if f"/{limit}/" in view.key)


@pytest.mark.alone
def test_a_ban_stops_the_other_machine_within_a_tenth_of_a_second(machine: Machines) -> None:
    """What one machine learned, the other knows without asking: the median of nine bans is below 100 ms."""
    mine, yours = machine(), machine()
    take(mine)
    take(yours)
    known: list[float] = []
    for number in range(9):
        scope = f"testland/ip:{number}"
        begun = time.monotonic()
        mine.block(scope, 60, "ban", "the provider said so")
        until(lambda scope=scope: any(state.scope == scope for state in yours.store.blocks.states()))
        known.append(time.monotonic() - begun)
    assert statistics.median(known) < 0.1, known
    mine.block("testland", 60, "ban", "all of it")
    until(lambda: any(state.scope == "testland" for state in yours.store.blocks.states()))
    with pytest.raises(Rejected, match="all of it"):
        take(yours, timeout=0)


def test_pause_and_resume_reach_every_machine(machine: Machines) -> None:
    """A pause on one machine holds the calls of another; when it is taken back there, they go on at once."""
    mine, yours = machine(), machine()
    take(yours)
    mine.block("testland", 20, "pause", "by hand")
    until(lambda: yours.store.blocks.states())
    done = threading.Event()

    def call() -> None:
        take(yours, timeout=30)
        done.set()

    thread = threading.Thread(target=call)
    thread.start()
    assert not done.wait(0.3)
    assert mine.unblock("testland", "pause")
    assert done.wait(10)
    thread.join()


def test_units_that_one_machine_frees_wake_the_other(machine: Machines) -> None:
    """Two slots are held on one machine; a call that waits for one on the other goes on when one is let go."""
    mine, yours = machine(), machine()
    held = [mine.permit("testland", "GET", "/stream") for _ in range(2)]
    for permit in held:
        permit.acquire()
    done = threading.Event()

    def call() -> None:
        take(yours, "/stream", 30)
        done.set()

    thread = threading.Thread(target=call)
    thread.start()
    assert not done.wait(0.3)
    for permit in held:
        permit.settle(200, {})
    assert done.wait(10)
    thread.join()


def test_status_shows_the_store_in_force(machine: Machines, server: Server) -> None:
    """`ratekeeper status` from a third machine: limits, spenders, bans, waits, and where they were read; no password."""
    gate = machine()
    for _ in range(7):
        take(gate)
    gate.block("testland/ip:9", 60, "ban", "too fast")
    until(lambda: spent(gate) == 7)
    done = subprocess.run(
        [sys.executable, "-m", "ratekeeper", "status", "--json"],
        env={**os.environ, "RATEKEEPER_STORE": server.url.replace("//", "//:@")},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    data = json.loads(done.stdout)
    assert data["store"] == f"{server.url}"
    (row,) = [row for row in data["limits"] if row["limit"] == "requests-1d"]
    assert row["used"] == 7
    assert len(data["processes"]) == 1
    assert [block["reason"] for block in data["blocks"]] == ["too fast"]


def test_after_a_fork(machine: Machines) -> None:
    """A child counts on the same ledgers over connections of its own, and its parent goes on."""
    gate = machine()
    take(gate)
    child = os.fork()
    if not child:
        code = 1
        try:
            for _ in range(3):
                take(gate)
            gate.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    take(gate)
    until(lambda: spent(gate) == 5)


def test_closed_while_the_server_is_down(machine: Machines, server: Server) -> None:
    """A gate whose server is gone lets itself be closed, without an error and without waiting long."""
    gate = machine()
    permit = gate.permit("testland", "GET", "/")
    permit.acquire()
    server.kill()
    permit.settle(200, {})
    gate.close()


def test_started_while_the_server_is_down(machine: Machines, server: Server) -> None:
    """Without a server from the first moment a gate works with its safe share; later what it spent stands in the ledgers."""
    server.kill()
    gate = machine()
    said: list[str] = []
    gate.on(lambda event: said.append(event.kind))
    for _ in range(3):
        take(gate)
    assert gate.read().degraded
    assert said.count("store lost") == 1
    server.start()
    until(lambda: "store back" in said)
    take(gate)
    until(lambda: spent(gate) == 4)
    assert not gate.read().degraded


def test_a_wrong_password_is_told_once_and_not_shown(tmp_path: Path) -> None:
    """One clear sentence names the server and the reason; neither it nor any other word shows the password."""
    with Server(tmp_path / "locked", "--requirepass", "correct") as server:
        wrong = "wrong-word"
        url = server.url.replace("//", f"//:{wrong}@")
        said: list[str] = []
        with Gate(url, home=tmp_path / "home", rules=[RULES], hosts={}) as gate:
            gate.on(lambda event: said.append(f"{event.kind}: {event.message}"))
            take(gate)
            take(gate)
            lost = [text for text in said if text.startswith("store lost")]
            assert len(lost) == 1, said
            assert f"127.0.0.1:{server.port}" in lost[0]
            assert "password" in lost[0].lower() or "auth" in lost[0].lower()
            assert wrong not in " ".join(said) + repr(gate.read()) + repr(vars(gate))
        done = subprocess.run(
            [sys.executable, "-m", "ratekeeper", "status"], env={**os.environ, "RATEKEEPER_STORE": url},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode != 0
        assert wrong not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


def test_an_acl_user_with_few_rights(machine: Machines, server: Server) -> None:
    """A user that may only run what the documentation lists, on keys that begin with hg:, is enough for everything."""
    word = "limited"
    with redis.Redis(port=server.port) as client:
        client.execute_command("ACL", "SETUSER", "ratekeeper", "reset", "on", f">{word}", *rights())
    url = server.url.replace("//", f"//ratekeeper:{word}@")
    mine, yours = machine(url), machine(url)
    take(mine)
    take(yours)
    mine.block("testland/ip:9", 60, "ban", "too fast")
    until(lambda: yours.store.blocks.states())
    until(lambda: spent(mine) == 2)
    assert not mine.read().degraded
    with redis.Redis(port=server.port) as client:
        denied = [row for row in client.acl_log() if row["username"] == "ratekeeper"]
    assert not denied, denied


def rights() -> list[str]:
    """The ACL rules as the how-to page has them."""
    page = Path(__file__).parents[2] / "docs" / "how-to" / "share-a-budget-between-machines.md"
    (line,) = [text for text in page.read_text().splitlines() if text.startswith("user ratekeeper ")]
    return [word for word in line.split()[2:] if word != "on" and not word.startswith(("#", ">"))]


def certificates(folder: Path) -> tuple[Path, Path]:
    """A key and a certificate for 127.0.0.1 that signs itself."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
            "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate),
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    return key, certificate


def test_tls(machine: Machines, server: Server, tmp_path: Path) -> None:
    """Over TLS with a certificate that the address names; one that nobody vouches for is refused."""
    key, certificate = certificates(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with Relay(server.port, tls=context) as relay:
        trusting, doubting = machine(f"{relay.url}?ssl_ca_certs={certificate}"), machine(relay.url)
        take(trusting)
        until(lambda: spent(trusting) == 1)
        assert not trusting.read().degraded
        take(doubting)
        assert "certificate" in doubting.read().degraded.lower()
        trusting.close()
        doubting.close()


HOLDER = """
import sys
from ratekeeper import Gate
gate = Gate(sys.argv[1], home=sys.argv[2], rules=[sys.argv[3]], hosts={})
held = [gate.permit("testland", "GET", "/") for _ in range(5)]
for permit in held:
    permit.acquire()
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_killed_machine_leaves_its_units_in_flight_until_its_lease_ends(
    machine: Machines, server: Server, tmp_path: Path
) -> None:
    """kill -9: what it held stays charged, is given to nobody, and counts as spent in the end."""
    gate = machine()
    take(gate)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, server.url, str(tmp_path / "other"), str(RULES)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout is not None and holder.stdin is not None
    assert select.select([holder.stdout], [], [], 30)[0]
    assert holder.stdout.readline() == b"ready\n"
    with redis.Redis(port=server.port) as client:
        records = client.zrange("hg:{testland}:permits", 0, -1, withscores=True)
        holder.send_signal(signal.SIGKILL)
        holder.wait(10)
        holder.stdin.close()
        holder.stdout.close()
        assert spent(gate) >= 6
        seconds, micros = client.time()
        now = seconds * 1_000_000 + micros
        leases = [score - now for _, score in records]
        assert leases and 0 < max(leases) <= 60_000_000
        for name, _ in records:  # a minute later
            client.zadd("hg:{testland}:permits", {name: now - 1})
    take(gate)
    until(lambda: gate.read().permits == 0 or spent(gate) >= 7)
    (view,) = [view for view in gate.read().ledgers if "requests-1d" in view.key]
    assert view.used >= 7


def test_providers_lie_in_slots_of_their_own(tmp_path: Path) -> None:
    """In a cluster all keys of one provider lie in one slot, and providers in different ones, on different nodes."""
    from .test_redis_machines import cluster

    with ExitStack() as stack:

        class Place:
            def server(self, *options: str) -> Server:
                return stack.enter_context(Server(tmp_path / str(free_port()), *options))

        nodes = cluster(Place())
        url = f"redis+cluster://127.0.0.1:{nodes[1].port}"
        names = ("testland", "binance-usdm", "binance-spot", "okx", "kraken-spot")
        with Gate(url, home=tmp_path / "home", rules=[RULES], hosts={}) as gate:
            known = [name for name in names if name in gate.book.names()]
            for name in known:
                with gate.permit(name, "GET", "/", timeout=5):
                    pass
            assert not gate.read().degraded
            keys: dict[str, set[int]] = {}
            for number, node in enumerate(nodes):
                with redis.Redis(port=node.port) as client:
                    for key in client.keys("hg:*"):
                        keys.setdefault(key.decode().split("}")[0], set()).add(number)
            assert all(len(where) == 1 for where in keys.values()), keys
            assert len(set.union(*keys.values())) > 1, keys
            assert {f"hg:{{{name}" for name in known} <= keys.keys()


@pytest.mark.parametrize("url", ["redis+nothing://x", "redis+sentinel://127.0.0.1", "redis://:k1@h:port"])
def test_an_address_that_makes_no_sense_is_told_at_once(url: str, tmp_path: Path) -> None:
    """A wrong address is an error of its own at the start, not a safe share, and shows no password."""
    with pytest.raises(StoreError) as error:
        Gate(url, home=tmp_path, hosts={})
    assert "k1" not in str(error.value)


def test_a_lease_that_is_moved_is_moved_on_the_server(machine: Machines, server: Server) -> None:
    """A stream that goes on holds its permit beyond the minute."""
    gate = machine()
    permit = gate.permit("testland", "GET", "/stream")
    permit.acquire()
    assert permit._grant is not None
    gate.store.hold(permit._grant, time.monotonic_ns() + 300 * SECOND)
    with redis.Redis(port=server.port) as client:

        def longest() -> float:
            seconds, _ = client.time()
            found = client.zrange("hg:{testland}:permits", 0, -1, withscores=True)
            return max(score for _, score in found) / 1e6 - seconds

        until(lambda: longest() > 200)
    permit.settle(200, {})


def test_a_server_that_forgot_is_told_of_bans_and_pauses(machine: Machines, server: Server) -> None:
    """Emptied, it gets them back from whoever knew them, before anybody may go on; what was lifted stays lifted."""
    one, other = machine(), machine()
    for gate in (one, other):
        with gate.permit("testland", "GET", "/priced"):
            pass
    one.block("testland/ip:default", 300, "ban", "for this test")
    one.block("*/class:order", None, "pause", "for this test")
    one.block("testland/class:account", 300, "pause", "lifted soon")
    until(lambda: len(other.read().blocks) == 3)
    other.unblock("testland/class:account")
    known = [("*/class:order", "pause"), ("testland/ip:default", "ban")]
    until(lambda: sorted((block.scope, block.kind) for block in other.read().blocks) == known)
    redis.Redis.from_url(server.url).flushall()
    time.sleep(0.6)  # signs of life
    third = machine()
    assert sorted((block.scope, block.kind) for block in third.read().blocks) == known
    for gate in (one, other, third):
        with pytest.raises(Rejected), gate.permit("testland", "GET", "/priced", timeout=0):
            pytest.fail("the ban was forgotten")
