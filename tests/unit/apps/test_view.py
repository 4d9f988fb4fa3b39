"""What `ratekeeper status` and `top` draw: numbers survive every width, and what is not used stands apart."""

from __future__ import annotations

import io
import json
import re
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from ratekeeper import Gate
from ratekeeper.apps.cli import main
from ratekeeper.apps.pause import pause
from ratekeeper.apps.state import status, top
from ratekeeper.apps.view import as_data, as_table
from ratekeeper.gate.times import Times
from ratekeeper.gate.waits import Wait
from ratekeeper.ledger.limit import SECOND, Charge, Limit, Window
from ratekeeper.pools.pool import AddressView
from ratekeeper.rules.call import Priority
from ratekeeper.stores.blocks import Blocks, write_blocks
from ratekeeper.stores.environment import boot_id
from ratekeeper.stores.host import HostStore
from ratekeeper.stores.records import Ask, LedgerView, Snapshot

LONG = "market-making-desk-singapore-subaccount-00000000000000000017"
MOST = 10_000_000


@pytest.fixture(autouse=True)
def _shown(monkeypatch: pytest.MonkeyPatch, own_home: Path) -> None:
    monkeypatch.setenv("RATEKEEPER_HOSTS", "")


def ledger(key: str, window: Window = Window.FIXED, capacity: int = MOST, **more: Any) -> LedgerView:
    """One ledger as a store tells it."""
    name = key.split("/")[1]
    period = 0 if window is Window.SLOTS else 60 * SECOND
    limit = Limit(name, "weight", capacity, period, window, headroom=more.pop("headroom", 0))
    whole: dict[str, Any] = {
        "used": 0, "inflight": 0, "room": 0, "foreign": 0, "expected": 0, "rows": {}, "turn": 0, "era": 0, **more,
    }  # fmt: skip
    return LedgerView(key, limit, **whole)


def row(taken: int, waiting: int = 0) -> list[int]:
    """What one member took in this window."""
    return [taken, 0, 0, waiting, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]


def drawn(data: dict[str, Any], width: int) -> str:
    """The screen as plain text."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(as_table(data))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def crowded() -> dict[str, Any]:
    """Many long names and great numbers."""
    mono = time.monotonic_ns()
    full = ledger(
        f"binance-usdm/weight-1m/ip:{LONG}", used=9_876_543, inflight=111_222, foreign=1_333_444, expected=1_555_666,
        carried=17_890, held=100_111, rows={(1, 3): row(8_525_209, 2_345_678), (2, 1): row(7_654)},
    )  # fmt: skip
    blocks = Blocks()
    blocks.add(f"okx/account:{LONG}", 7_200 * SECOND, "ban", "418: " + "too fast " * 20, mono, time.time_ns())
    blocks.add(f"okx/class:order,{LONG}", None, "pause", "by hand", mono, time.time_ns())
    found = Snapshot(
        [
            full,
            ledger(f"okx@127.0.0.1:9300/orders-10s-per-instrument/account:{LONG}", Window.SLIDING, used=9_999_999),
            ledger(f"bitget/streams/ip:{LONG}", Window.SLOTS, 25, inflight=24),
        ],
        blocks.states(),
        {"binance-usdm": {f"~pace/weight-1m/ip:{LONG}": (700, SECOND), "weight-1m": (MOST, 60 * SECOND)}},
        {1: LONG + ".py[1234567]", 2: "bot.py[4242424]"},
        1_234_567,
    )
    waits = {Priority.HIGH: Wait(1_234_567, 8_641_975 * SECOND, 86_399 * SECOND)}
    address = AddressView("binance-usdm", LONG, "203.0.113.10", LONG, "banned", 3, mono + 118 * SECOND, full)
    other = AddressView("binance-usdm", "spare", "203.0.113.11", "spare", "active", 0, 0, None)
    return as_data(found, waits, [address, other])


NUMBERS = (
    "9,858,653 of 10,000,000", "9,999,999 of 10,000,000", "24 of 25", "11,111 more reserved", "17,890 more carried over",
    "1,333,444 of it used by other programs", "222,222 more set aside for other programs", "100,111 more held",
    "8,525,209 (2,345,678 waiting)", "1,234,567 calls", "7.0 s on average", "86399.0 s at longest",
    "paced after a refusal: 70% of it for now", "permits held: 1,234,567", "weight-1m 9,858,653 of 10,000,000", "99%",
    "other programs 1,333,444 (1,555,666 expected)", "bot.py[4242424] high 7,654",
)  # fmt: skip


@pytest.mark.parametrize("width", [60, 80, 100, 132, 400])
def test_numbers_survive_every_width(width: int) -> None:
    """No line is longer than the terminal, and every number is whole; only names are cut, in their middle."""
    text = drawn(crowded(), width)
    assert all(len(line) <= width for line in text.splitlines())
    together = re.sub(r"\s+", " ", text)
    for number in NUMBERS:
        assert number in together, (number, text)
    assert not [cut for cut in re.findall(r"\S*…\S*", text) if re.fullmatch(r"[\d,.…%]+", cut)]


def test_used_is_what_was_used() -> None:
    """What is reserved, carried over, set aside or held is told apart, in the data and in words."""
    (limit,) = [each for each in crowded()["limits"] if each["limit"] == "weight-1m"]
    assert (limit["used"], limit["inflight"], limit["carried"]) == (9_858_653, 11_111, 17_890)
    assert (limit["set_aside"], limit["held"], limit["foreign"]) == (222_222, 100_111, 1_333_444)
    assert (limit["pace"], limit["stated"], limit["utilisation"]) == (0.7, True, 0.9988)
    assert "[others]" not in drawn(crowded(), 80)


def test_what_nobody_here_sent_is_told() -> None:
    """After a loss a ledger begins as used up: the screen does not say that programs used it."""
    found = Snapshot([ledger("okx/a/ip:default", used=500, capacity=1000, rows={(1, 2): row(20)})])
    data = as_data(found, {})
    assert data["limits"][0]["unexplained"] == 480
    assert "480 of it sent by no program here, or counted to be safe" in drawn(data, 80)


def test_a_quiet_limit_takes_one_line() -> None:
    """Nothing is noted where there is nothing to note; headroom is."""
    found = Snapshot([ledger("okx/a/ip:default", capacity=1000), ledger("okx/b/ip:default", capacity=10, headroom=2)])
    text = drawn(as_data(found, {}), 80)
    assert "\n  a ip:default  fixed 1m  0 of 1,000\n  b ip:default" in text
    assert text.count("left unused (headroom)") == 1


def test_what_is_held_for_an_offline_process_is_not_in_use(tmp_path: Path) -> None:
    """A process that cannot reach the store left its mark: its share is held, and shown apart."""
    store = HostStore(tmp_path)
    now = Times(store).now("okx")
    spent = Charge("okx/a/ip:default", Limit("a", "requests", 100, 60 * SECOND, Window.FIXED), 10)
    store.reserve(Ask("okx", (spent,), (), (1, 2)), now)
    store.detach()
    store._environment._checked = 0  # as if some time had passed
    try:
        (view,) = store.read(Times(store).now).ledgers
        assert (view.inflight, view.held) == (60, 50)
        (limit,) = as_data(store.read(Times(store).now), {})["limits"]
        assert (limit["inflight"], limit["held"], limit["used"]) == (10, 50, 0)
    finally:
        store.close()


@pytest.mark.parametrize("width", [60, 80, 100])
def test_status_of_real_records(width: int, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several addresses, a ban, a pause, a paced limit, a number that the provider stated."""
    monkeypatch.setenv("COLUMNS", str(width))
    config = own_home / "ratekeeper.toml"
    own_home.mkdir()
    config.write_text(
        f'[egress.addresses]\n{LONG} = "127.0.0.2"\nspare = "127.0.0.3"\n'
        f'[egress.pools.binance-usdm]\nprimary = "{LONG}"\nbackups = ["spare"]\n'
    )
    limit = Limit("weight-1m", "weight", MOST, 300 * 86_400 * SECOND)  # no edge comes between
    key = f"binance-usdm/weight-1m/ip:{LONG}"
    with Gate(name=f"{LONG}.py", learn=False) as gate:
        gate.permit("binance-usdm", "GET", "/fapi/v1/time").acquire()  # the process has a name now
        now = gate.times.now("binance-usdm")
        for cost in (1_234_005, 5):
            ask = Ask("binance-usdm", (Charge(key, limit, cost),), (), (gate.member, 3))
            grant = gate.store.reserve(ask, now)
            if cost > 5:
                gate.store.settle(grant, now)  # type: ignore[arg-type]
        gate.store.learn("binance-usdm", {"weight-1m": (MOST, 0), f"~pace/weight-1m/ip:{LONG}": (700, SECOND)})
        gate.block("binance-usdm/ip:spare", 3600, "ban", "too fast")
        gate.block(f"okx/account:{LONG}", None, "pause", "by hand")
        shown = run(status)
    assert shown.exit_code == 0
    assert all(len(line) <= width for line in shown.output.splitlines()), shown.output
    text = re.sub(r"\s+", " ", shown.output)
    for told in (
        "1,234,005 of 10,000,000", "6 more reserved for calls under way", "70% of it for now",
        "stated by the provider", "banned for 3", "weight-1m 1,234,005 of 10,000,000", "until resumed",
    ):  # fmt: skip
        assert told in text, shown.output
    assert "…" in text


# -- a store that is away ----------------------------------------------------------------------------------------------


def run(command: Any, *arguments: str) -> Result:
    """A command's output and exit code."""
    return CliRunner().invoke(command, arguments)


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a server that is not there."""
    monkeypatch.setenv("RATEKEEPER_STORE", "redis://:secret@127.0.0.1:1")
    return "redis://127.0.0.1:1"


def test_status_without_its_server(away: str, own_home: Path) -> None:
    """Valid JSON with the reason, what this machine knows, exit code 1; the same in words."""
    living = HostStore(own_home)
    living.join(7, "bot.py[1]")
    try:
        done = run(status, "--json")
        assert done.exit_code == 1
        data = json.loads(done.stdout)
        assert data["degraded"] == f"{away}: it cannot be reached: Connection refused"
        assert (data["limits"], data["processes_here"], data["store"]) == ([], 1, away)
        run(pause, "okx", "--reason", "looking")
        for shown in (run(status), run(top, "--seconds", "0.1")):
            assert shown.exit_code == 1
            assert "PAUSE okx until resumed  looking" in shown.output
            assert "SAFE SHARE" in shown.output and "1 on this machine" in shown.output
            assert "ConnectionError" not in shown.output and "secret" not in shown.output
    finally:
        living.leave(7)
        living.close()


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"], ids=["silent", "garbled"])
def test_status_of_a_server_that_is_none(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes no longer than the address allows, and says what is wrong."""
    lines = []

    def serve(server: socket.socket) -> None:
        while True:
            try:
                line, _ = server.accept()
            except OSError:
                return
            lines.append(line)
            if line.recv(1000) and answer:
                line.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=(server,))
        thread.start()
        monkeypatch.setenv("RATEKEEPER_STORE", f"redis://127.0.0.1:{server.getsockname()[1]}?timeout=0.2")
        done = run(status, "--json")
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)
    for line in lines:
        line.close()
    assert done.exit_code == 1
    assert ("Bad Request" if answer else "it does not answer in time") in json.loads(done.stdout)["degraded"]


def test_status_of_a_store_that_cannot_be_opened(own_home: Path) -> None:
    """The bans on its disk are known all the same."""
    banned = Blocks(boot_id()).add("okx/ip:default", 300 * SECOND, "ban", "fast", time.monotonic_ns(), time.time_ns())
    own_home.mkdir()
    write_blocks(own_home / "blocks.json", [banned])
    (own_home / "lock").mkdir()
    done = run(status, "--json")
    assert done.exit_code == 1
    data = json.loads(done.stdout)
    assert str(own_home) in data["degraded"]
    assert [block["scope"] for block in data["blocks"]] == ["okx/ip:default"]


def test_status_makes_no_folder(own_home: Path) -> None:
    """Whoever mistypes `RATEKEEPER_HOME` finds no new folder."""
    done = run(status, "--json")
    assert (done.exit_code, json.loads(done.stdout)["degraded"]) == (0, "")
    assert not own_home.exists()


@pytest.mark.parametrize(
    "line",
    [
        ["status", "--json"],
        ["sessions", "list", "--json"],
        ["config", "show", "--json"],
        ["rules", "list", "--json", "--no"],
    ],
    ids=" ".join,
)
def test_errors_are_json_too(
    line: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where JSON was asked for, whatever is wrong."""
    monkeypatch.setenv("RATEKEEPER_CONFIG", "/nowhere.toml")
    with pytest.raises(SystemExit) as ended:
        main(line)
    told = capsys.readouterr()
    assert ended.value.code == 2
    assert json.loads(told.out)["error"]
    assert told.err
