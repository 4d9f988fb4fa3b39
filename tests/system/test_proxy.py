"""`ratekeeper proxy` as a process of its own, used by curl, Node and Python programs that know nothing of Ratekeeper."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.support.stood import Stood

from ratekeeper import Gate
from ratekeeper.testing import Emulator

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "support"))

from raw import Raw  # noqa: E402

EXAMPLES = ROOT / "examples" / "proxy"
WINDOW, CAPACITY = 5, 1000
TIME, KLINES = "/binance-usdm/fapi/v1/time", "/binance-usdm/fapi/v1/klines?symbol=BTCUSDT&interval=1m&limit=500"

PYTHON = """
import collections, json, sys, threading, time, urllib.error, urllib.request
url, end, seen = sys.argv[1], time.time() + float(sys.argv[2]), collections.Counter()

def work():
    while time.time() < end:
        try:
            with urllib.request.urlopen(url) as answer:
                answer.read()
                seen[answer.status] += 1
        except urllib.error.HTTPError as error:
            seen[error.code] += 1

threads = [threading.Thread(target=work) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(json.dumps({"statuses": seen}))
"""

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed")


class Running:
    """A proxy in a process of its own.

    Attributes:
        url: its base URL.
        said: its first line.
    """

    def __init__(self, *options: str, home: Path, hosts: str = "") -> None:
        line = [sys.executable, "-m", "ratekeeper", "proxy", "--port", "0", *options]
        environment = {**os.environ, "RATEKEEPER_HOME": str(home), "RATEKEEPER_HOSTS": hosts}
        self._ended: tuple[int, str] | None = None
        self.child = subprocess.Popen(
            line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert self.child.stdout is not None
        self.said = self.child.stdout.readline()
        self.url = self.said.split(" on ", 1)[-1].split(" ", 1)[0]

    def get(self, path: str, **headers: str) -> tuple[int, Any, bytes]:
        """Status, headers and body of one call."""
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=30)
        try:
            connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Stop it (signal 0: it ends by itself); returns its exit code and what else it said."""
        if self._ended is not None:
            return self._ended
        if self.child.poll() is None:
            self.child.send_signal(number)
        assert self.child.stdout is not None
        with self.child.stdout as stream:
            rest = stream.read()
        self._ended = self.child.wait(30), rest
        return self._ended


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Starts proxies; they end with the test."""
    with ExitStack() as stack:

        def start(*options: str, hosts: str = "") -> Running:
            made = Running(*options, home=tmp_path / "home", hosts=hosts)
            stack.callback(made.end)
            return made

        yield start


def run(*line: str, url: str = "") -> subprocess.CompletedProcess[str]:
    """A command to its end."""
    environment = {**os.environ, "RATEKEEPER_PROXY": url}
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.alone
@needs_curl
@needs_node
def test_three_languages_and_a_governed_program_share_one_budget(proxy: Callable[..., Running], tmp_path: Path) -> None:
    """Node, curl and Python through the proxy, and a gate of its own beside it: all of the budget, and no refusal."""
    with Emulator("binance-usdm", window=WINDOW, capacity=CAPACITY) as emulator, Stood() as stood:
        here = proxy(hosts=emulator.hosts)
        begin, seconds = float(emulator.stats()["now"]), 17
        lines = {
            "node": ["node", str(EXAMPLES / "klines.mjs"), str(seconds)],
            "curl": ["sh", str(EXAMPLES / "klines.sh"), str(seconds)],
            "python": [sys.executable, "-c", PYTHON, here.url + KLINES, str(seconds)],
        }
        found: dict[str, subprocess.CompletedProcess[str]] = {}
        threads = [
            threading.Thread(target=lambda name=name, line=line: found.update({name: run(*line, url=here.url)}))
            for name, line in lines.items()
        ]
        for thread in threads:
            thread.start()
        with Gate(hosts=emulator.hosts, home=tmp_path / "home") as gate:
            place = emulator.url.removeprefix("http://")
            while float(emulator.stats()["now"]) < begin + seconds:
                with gate.permit("binance-usdm", "GET", "/fapi/v1/time") as permit:
                    connection = http.client.HTTPConnection(place, timeout=10)
                    connection.request("GET", "/fapi/v1/time")
                    answer = connection.getresponse()
                    answer.read()
                    permit.settle(answer.status, dict(answer.getheaders()))
                    connection.close()
                time.sleep(0.05)
            names = set(gate.read().members.values())
        for thread in threads:
            thread.join()
        end = float(emulator.stats()["now"])
        totals = emulator.stats()["totals"]
        rows = [row for row in emulator.windows() if begin + 2 <= row["start"] and row["start"] + WINDOW <= end - 1]
    assert (totals["throttled"], totals["banned"]) == (0, 0)
    assert set(json.loads(found["node"].stdout)["statuses"]) == {"200"}, found["node"]
    assert set(json.loads(found["python"].stdout)["statuses"]) == {"200"}, found["python"]
    assert [line.split()[1] for line in found["curl"].stdout.splitlines()] == ["200"], found["curl"]
    shares = [row["accepted"] / row["capacity"] + stood.share(row["start"], row["start"] + WINDOW) for row in rows]
    assert len(shares) >= 2
    assert min(shares) >= 0.95, shares
    assert any(name.startswith("ratekeeper proxy") for name in names)


@needs_curl
@needs_node
def test_curl_and_node_see_their_bytes_arrive(proxy: Callable[..., Running]) -> None:
    """The target is what they typed; what they post arrives; the token and our headers do not."""
    with Raw() as raw:
        here = proxy("--token", "t-1", "--upstream", f"echo={raw.url}")
        query = "?a=%2F1&b=@x&list=[1,%202]&sig=A%3d%3D"
        curl = run("curl", "-sg", "--path-as-is", "-H", "X-Ratekeeper-Token: t-1", f"{here.url}/echo/a//b/../c{query}")
        code = (
            f"const url = '{here.url}/t/t-1/echo/n%7Eode{query}'; const body = new Uint8Array(300000).fill(255);"
            "const answer = await fetch(url, {method: 'POST', body, headers: {'X-Ratekeeper-Priority': 'high'}});"
            "process.stdout.write(String((await answer.arrayBuffer()).byteLength))"
        )
        node = run("node", "--input-type=module", "-e", code)
        assert run("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", f"{here.url}/echo/a").stdout == "401"
    assert curl.stdout.startswith(f"GET /a//b/../c{query} HTTP/1.1\r\nHost: {raw.place}\r\n".replace("\r\n", "\n"))
    head, _, body = raw.requests[1].partition(b"\r\n\r\n")
    assert head.startswith(f"POST /n%7Eode{query} HTTP/1.1\r\n".encode())
    assert body == b"\xff" * 300_000
    assert node.stdout == str(len(raw.requests[1])), node
    assert not any(secret in b"".join(raw.requests).lower() for secret in (b"t-1", b"x-ratekeeper"))
    assert len(raw.requests) == 2


@needs_curl
def test_curl_sees_a_stream_as_it_comes(proxy: Callable[..., Running]) -> None:
    """The first part is printed before the provider has sent the second."""
    go = threading.Event()

    def stream(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        connection.sendall(b"5\r\none\r\n\r\n")
        go.wait(30)
        connection.sendall(b"5\r\ntwo\r\n\r\n0\r\n\r\n")

    with Raw() as raw:
        raw.acts["/s"] = stream
        here = proxy("--upstream", f"echo={raw.url}")
        with subprocess.Popen(["curl", "-sN", f"{here.url}/echo/s"], stdout=subprocess.PIPE) as curl:
            assert curl.stdout is not None
            assert curl.stdout.readline() == b"one\r\n"
            go.set()
            assert curl.stdout.read() == b"two\r\n"


def test_a_ban_is_passed_on_once_and_then_kept_from_the_provider(proxy: Callable[..., Running]) -> None:
    """The first 418 is the provider's own; after it nothing is sent, and the client is told the same until its end."""
    with Emulator("binance-usdm") as emulator:
        here = proxy(hosts=emulator.hosts)
        assert here.get(TIME)[0] == 200
        emulator.ban(seconds=60)
        status, headers, _ = here.get(TIME)
        assert (status, "X-Ratekeeper-Error" in headers) == (418, False)
        arrived = emulator.stats()["totals"]["arrivals"]
        status, headers, body = here.get(TIME)
        told = json.loads(body)
        assert (status, told["code"], headers["X-Ratekeeper-Error"]) == (418, -1003, "Blocked")
        assert "banned until" in told["msg"]
        assert 50 <= int(headers["Retry-After"]) <= 65
        # A second proxy, started only now, knows of it too.
        assert proxy(hosts=emulator.hosts).get(TIME)[0] == 418
        assert emulator.stats()["totals"]["arrivals"] == arrived


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_line_and_a_clean_end(number: signal.Signals, proxy: Callable[..., Running]) -> None:
    """It says where it is and nothing of what passes; a call on its way is finished."""
    go, here_it_is = threading.Event(), threading.Event()

    def slow(connection: socket.socket) -> None:
        here_it_is.set()
        go.wait(30)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    with Raw() as raw:
        raw.acts["/slow"] = slow
        here = proxy("--upstream", f"echo={raw.url}")
        assert here.said == f"Proxying on {here.url} (for this machine only): echo\n"
        assert here.get("/echo/a?signature=abc", X_Key="k1")[0] == 200
        found: list[tuple[int, Any, bytes]] = []
        call = threading.Thread(target=lambda: found.append(here.get("/echo/slow")))
        call.start()
        here_it_is.wait(30)
        here.child.send_signal(number)
        while True:  # it takes no new connections any more
            try:
                socket.create_connection(("127.0.0.1", int(here.url.rsplit(":", 1)[1])), 5).close()
            except OSError:
                break
        go.set()
        call.join(30)
        code, rest = here.end(0)
    assert [(status, body) for status, _, body in found] == [(200, b"ok")]
    assert (code, rest) == (0, "")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--host", "0.0.0.0"), "set --token-file too"),
        (("--host", "::"), "set --token-file too"),
        (("--token", "a/b"), "letters, digits"),
        (("--token", "a", "--token-file", "b"), "not both"),
        (("--token-file", "/nowhere/at/all"), "No such file"),
        (("--upstream", "nowhere"), "no rules for 'nowhere'"),
        (("--upstream", "x=ftp://a"), "--upstream"),
    ],
)
def test_what_cannot_be_is_said_at_once(options: tuple[str, ...], told: str, proxy: Callable[..., Running]) -> None:
    """One plain message, no traceback, exit code 2."""
    here = proxy(*options)
    code, rest = here.end(0)
    assert code == 2
    assert told in here.said + rest
    assert "Traceback" not in rest


def test_a_port_in_use_is_said_plainly(proxy: Callable[..., Running], tmp_path: Path) -> None:
    """No traceback, and exit code 1."""
    first = proxy("--upstream", "binance-usdm")
    second = proxy("--port", first.url.rsplit(":", 1)[1])
    code, rest = second.end(0)
    assert code == 1
    assert second.said.startswith("Error: 127.0.0.1:") and "Traceback" not in rest


def test_a_token_file_lets_it_listen_elsewhere(proxy: Callable[..., Running], tmp_path: Path) -> None:
    """With a token any address may be used."""
    (tmp_path / "token").write_text("t-1\n")
    here = proxy("--host", "0.0.0.0", "--token-file", str(tmp_path / "token"), "--upstream", "binance-usdm")
    assert "(with a token)" in here.said
    here.url = here.url.replace("0.0.0.0", "127.0.0.2")
    assert here.get("/")[0] == 401
    assert here.get("/t/t-1/")[0] == 200


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has 127.0.0.2 without preparation")
def test_calls_leave_from_several_addresses(proxy: Callable[..., Running], tmp_path: Path) -> None:
    """Each address brings its own budget; a banned one is left, and nothing is sent from it."""
    config = tmp_path / "ratekeeper.toml"
    config.write_text(
        '[egress.addresses]\na = "127.0.0.2"\nb = "127.0.0.3"\n[egress.pools.binance-usdm]\nprimary = ["a", "b"]\n'
    )
    with Emulator("binance-usdm", window=86_400, capacity=40) as emulator:
        here = proxy("--config", str(config), hosts=emulator.hosts)
        statuses = [here.get(TIME, X_Ratekeeper_Timeout="0")[0] for _ in range(60)]
        assert statuses == [200] * 60
        assert {"127.0.0.2", "127.0.0.3"} <= set(emulator.stats()["ips"])
    with Emulator("binance-usdm") as emulator:
        here = proxy("--config", str(config), hosts=emulator.hosts)
        emulator.ban("127.0.0.2", seconds=60)
        statuses = [here.get(TIME)[0] for _ in range(12)]
        assert statuses.count(418) <= 1
        assert statuses[-8:] == [200] * 8


def test_messages_of_a_websocket_wait_for_their_limit(proxy: Callable[..., Running]) -> None:
    """A client that sends as fast as it can is held back instead of being thrown out; what it is sent comes at once."""
    from websockets.sync.client import connect

    with Emulator("binance-spot", limits={"ws-messages-1s": (5, 1.0)}) as emulator:
        here = proxy(hosts=emulator.hosts)
        url = here.url.replace("http", "ws", 1) + "/binance-spot/stream"
        acknowledged = 0
        with connect(url) as socket:
            for number in range(9):
                topic = f"{['btcusdt', 'ethusdt', 'bnbusdt'][number % 3]}@bookTicker"
                socket.send(json.dumps({"method": "SUBSCRIBE", "params": [topic], "id": number}))
            while acknowledged < 9:
                acknowledged += "result" in json.loads(socket.recv(20))
        sockets = emulator.stats()["sockets"]
    assert set(sockets["ended"]) <= {"by client"}, sockets
