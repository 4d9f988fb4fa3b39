"""``ratekeeper pause`` and ``resume``, and how ``status`` shows what they did."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from ratekeeper import Breaker, Gate, Policies
from ratekeeper.apps.cli import main
from ratekeeper.apps.state import pause, resume, status
from ratekeeper.errors import BreakerOpen


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
        "mine ip:default sliding 60 s 1 of 80",
        "weight-1m (now per 10s) ip:default fixed 10 s 1 of 90",
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
