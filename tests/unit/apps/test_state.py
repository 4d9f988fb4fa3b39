"""``ratekeeper pause`` and ``resume``, and how ``status`` shows what they did."""

from __future__ import annotations

import fcntl
import os
import re
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest
from click.testing import CliRunner

from ratekeeper import Breaker, Gate, Policies
from ratekeeper.apps.cli import _ratekeeper, main
from ratekeeper.apps.pause import pause, resume
from ratekeeper.apps.state import status
from ratekeeper.errors import Blocked, BreakerOpen, DeadlineExceeded, RatekeeperError
from ratekeeper.stores.host import HostStore


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder of the test's own."""
    monkeypatch.setenv("RATEKEEPER_HOME", str(tmp_path))
    monkeypatch.setenv("RATEKEEPER_HOSTS", "")
    return tmp_path


def run(made: object, *arguments: str) -> str:
    """What a command says."""
    done = CliRunner().invoke(made, arguments)  # type: ignore[arg-type]
    assert done.exit_code == 0, done.output
    return done.output.strip()


def test_pause_status_resume() -> None:
    """Each in the words that were typed; what else is paused is told."""
    assert run(pause, "*") == "everything is paused: ratekeeper resume everything"
    assert run(pause, "class:order", "--seconds", "90") == "class:order is paused for 90 s"
    assert run(pause, "okx/account:main", "--reason", "looking").startswith("okx/account:main is paused")
    shown = run(status)
    assert "PAUSE everything until resumed  paused by hand" in shown
    assert "PAUSE orders for" in shown
    assert "PAUSE okx/account:main until resumed  looking" in shown
    assert run(resume, "everything") == "everything is open again; still paused: orders, okx/account:main"
    assert run(resume, "everything") == "everything was not paused; still paused: orders, okx/account:main"
    assert run(resume, "okx/account:main") == "okx/account:main is open again; still paused: orders"
    assert run(resume, "orders") == "orders is open again"


def test_a_pause_that_lasts_longer_stays() -> None:
    """And the second command says so."""
    run(pause, "orders")
    assert run(pause, "orders", "--seconds", "30") == "orders is paused already, and stays so: ratekeeper resume orders"
    assert run(pause, "okx", "--seconds", "90") == "okx is paused for 90 s"
    assert run(pause, "okx", "--seconds", "30") == "okx is paused for 90 s"


def test_status_shows_own_limits(home: Path) -> None:
    """A further limit with its period; a limit whose name tells another period, with its real one."""
    (home / "ratekeeper.toml").write_text(
        "[providers.binance-usdm]\n"
        "limits.mine = { unit = 'requests', capacity = 80, period = '1m' }\n"
        "limits.weight-1m = { capacity = 90, period = '10s' }\n"
    )
    with Gate() as gate, gate.permit("binance-usdm", "GET", "/fapi/v1/time"):
        shown = [" ".join(line.split()) for line in run(status).splitlines()]
    assert [line for line in shown if line.startswith(("mine ", "weight-1m "))][:2] == [
        "mine ip:default sliding 1m 0 of 80",
        "weight-1m (now per 10s) ip:default fixed 10s 0 of 90",
    ]


def test_resume_closes_a_breaker() -> None:
    """Also by the name under which `status` shows that it wants a probe; its provider counts as well again."""
    with Gate(policies=Policies(breaker=Breaker(failures=1))) as gate:
        answer = (503, {}, b"")
        for scope in ("okx/class:market", "okx/class:market/probing"):
            assert gate.call("okx", "GET", "/api/v5/market/ticker", lambda _: answer).status == 503
            with pytest.raises(BreakerOpen):
                gate.call("okx", "GET", "/api/v5/market/ticker", lambda _: answer)
            assert run(resume, "orders") == "orders was not paused; still paused: okx/class:market (breaker)"
            assert run(resume, scope) == "okx/class:market is open again"
            threading.Event().wait(0.06)  # how long a process may take to hear of it
            assert gate.call("okx", "GET", "/api/v5/market/ticker", lambda _: (200, {}, b"{}")).status == 200


@pytest.mark.parametrize(
    "slip",
    [["orders/okx"], ["order"], ["orders", "--seconds", "-5"], ["orders", "--seconds", "0"], ["orders", "--seconds", "nan"],
     ["orders", "--seconds", "1e12"]],
    ids=" ".join,
)  # fmt: skip
def test_a_slip_is_one_line(slip: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """With the remedy, exit code 2; nothing is paused."""
    with pytest.raises(SystemExit) as ended:
        main(["pause", *slip])
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    with Gate(policies=Policies()) as gate:
        assert not gate.read().blocks


AWAY = "redis://127.0.0.1:1"
"""A server that refuses connections."""


def tried(*arguments: str) -> tuple[int, str, str]:
    """A command line: (exit code, what it says, what it warns of)."""
    done = CliRunner().invoke(_ratekeeper, arguments)
    error = done.exception
    if isinstance(error, RatekeeperError):  # `main` prints it, and ends with 2
        return 2, "", str(error)
    assert error is None or isinstance(error, SystemExit), error
    return done.exit_code, done.stdout.strip(), done.stderr.strip()


def blocked(home: Path, store: str = AWAY) -> str:
    """Why a call of a program that starts now does not go, or ``""``."""
    with Gate(store, home=home, hosts={}, learn=False, policies=Policies()) as gate:
        try:
            with gate.permit("okx", "GET", "/api/v5/market/ticker", timeout=0.0):
                return ""
        except Blocked as error:
            return error.reason or "blocked"
        except DeadlineExceeded:
            return ""


def test_a_pause_while_the_server_is_away(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds for every program of this machine, also one that starts afterwards; the words and the exit code say that
    nobody else was reached. The end of the pause likewise."""
    monkeypatch.setenv("RATEKEEPER_STORE", AWAY)
    code, said, warned = tried("pause", "everything", "--reason", "looking")
    assert (code, said) == (1, "everything is paused on this machine only: ratekeeper resume everything")
    assert warned.startswith(f"NOT REACHED: {AWAY}: it cannot be reached: Connection refused")
    assert "other machines do not know" in warned
    assert blocked(home) == "looking"
    assert blocked(home, "host://") == "looking"  # a program with another store, on the same machine
    code, said, warned = tried("resume", "everything")
    assert (code, said) == (1, "everything is open again on this machine only")
    assert "NOT REACHED" in warned
    assert blocked(home) == blocked(home, "host://") == ""
    assert tried("resume", "everything")[:2] == (1, "everything was not paused on this machine only")


def test_what_can_be_written_nowhere_is_not_paused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No folder and no server, a folder alone that cannot be written, a store of one program: one line, exit code 2."""
    (home / "pauses").write_text("in the way")
    monkeypatch.setenv("RATEKEEPER_STORE", AWAY)
    code, said, warned = tried("pause", "everything")
    assert (code, said) == (2, "")
    assert warned.startswith("nothing is paused: ")
    assert tried("resume", "everything")[2].startswith("nothing is resumed: ")
    (home / "ledgers").write_text("in the way too")
    monkeypatch.setenv("RATEKEEPER_STORE", "host://")
    assert tried("pause", "everything")[2].startswith("nothing is paused: ")
    monkeypatch.setenv("RATEKEEPER_STORE", "memory://")
    code, said, warned = tried("pause", "everything")
    assert (code, said) == (2, "")
    assert warned.startswith("nothing is paused: memory:// is known to one program only")
    (home / "ratekeeper.toml").write_text("hosts = 7")
    assert tried("pause", "everything")[2].startswith("nothing is paused: ")


def test_a_pause_while_the_ledgers_are_locked(home: Path) -> None:
    """Every program of the machine obeys all the same, so the exit code is 0; why it took another way is said."""
    held = HostStore(home, patience=20.0)  # a process opens the ledgers once
    run(pause, "okx")
    run(resume, "okx")
    lock = os.open(home / "lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    held._environment.patience = 0.0
    try:
        code, said, warned = tried("pause", "everything", "--reason", "looking")
        assert (code, said) == (0, "everything is paused: ratekeeper resume everything")
        assert "another process has held the lock" in warned
        assert "obey all the same" in warned
        assert blocked(home, "host://") == "looking"
    finally:
        os.close(lock)
        held._environment.patience = 20.0
    assert "PAUSE everything" in run(status)
    assert tried("resume", "everything")[:2] == (0, "everything is open again")
    assert "PAUSE" not in run(status)
    held.close()


def test_a_mistyped_owner_is_refused() -> None:
    """With the nearest names; what nobody can know is paused, and that is said; --unseen pauses it in any case."""
    with Gate(policies=Policies(), learn=False) as gate, gate.permit("okx", "GET", "/api/v5/market/ticker"):
        pass
    for slip, near in [
        ("okx/ip:defualt", "ip:default"), ("ip:defualt", "ip:default"), ("okx/pi:default", "ip"),
        ("lwo", "low"), ("priority:lo", "low"), ("evrything", "everything"), ("okx/class:ordr", "order"), ("okxx", "okx"),
    ]:  # fmt: skip
        code, said, warned = tried("pause", slip)
        assert (code, said) == (2, ""), slip
        assert near in warned, slip
        assert "\n" not in warned
    assert "PAUSE" not in run(status)
    assert tried("pause", "okx/ip:default") == (0, "okx/ip:default is paused: ratekeeper resume okx/ip:default", "")
    code, said, warned = tried("pause", "okx/account:main")
    assert (code, said) == (0, "okx/account:main is paused: ratekeeper resume okx/account:main")
    assert "could not be checked" in warned
    assert tried("pause", "okx/ip:second", "--unseen")[0] == 0


def test_a_ban_is_told_and_lifted_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """`resume` of what is banned says so, and nothing changes; --lift-ban asks, or takes --yes, and lifts it."""
    with Gate(policies=Policies(), learn=False) as gate:
        gate.block("okx/ip:default", 600, "ban", "50011: too many requests")
    for scope in ("okx/ip:default", "okx", "everything", "ip:default"):
        code, said, _ = tried("resume", scope)
        first, ban, remedy = said.splitlines()
        assert (code, first) == (0, f"{scope} was not paused")
        assert re.fullmatch(r"okx/ip:default is shut for \d+ s more \(ban: 50011: too many requests\)", ban)
        assert remedy.endswith(f"ratekeeper resume {scope} --lift-ban")
    assert tried("resume", "binance-usdm")[:2] == (0, "binance-usdm was not paused")
    assert "say --yes" in tried("resume", "okx/ip:default", "--lift-ban")[2]
    assert "BAN okx/ip:default" in run(status)
    code, said, _ = tried("resume", "okx/ip:default", "--lift-ban", "--yes")
    assert (code, said) == (0, "okx/ip:default was not paused\nlifted: ban of okx/ip:default")
    assert "BAN" not in run(status)
    assert tried("resume", "okx", "--lift-ban")[1].endswith("okx is not banned")
    with Gate(policies=Policies(), learn=False) as gate, gate.permit("okx", "GET", "/api/v5/market/ticker", timeout=1):
        pass


def test_a_priority_is_paused() -> None:
    """Calls of that priority stop, whatever their class; others, and cancels, go on."""
    with Gate(policies=Policies(), learn=False) as gate:
        assert run(pause, "low") == "low is paused: ratekeeper resume low"
        for priority, method, path, goes in [
            ("low", "GET", "/api/v5/market/ticker", False), ("normal", "GET", "/api/v5/market/ticker", True),
            ("low", "POST", "/api/v5/trade/order", False), ("high", "POST", "/api/v5/trade/order", True),
            ("low", "POST", "/api/v5/trade/cancel-order", True), (None, "GET", "/api/v5/market/ticker", False),
        ]:  # fmt: skip
            stopped = nullcontext() if goes else pytest.raises(Blocked, match="ratekeeper resume low")
            with stopped, gate.permit("okx", method, path, priority=priority, timeout=1):
                pass
        assert run(resume, "low") == "low is open again"
        with gate.permit("okx", "GET", "/api/v5/market/ticker", timeout=1):
            pass
