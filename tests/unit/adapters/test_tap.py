"""Something goes wrong inside Ratekeeper, in an unchanged program: the safe share or a refusal, never an open tap."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3
from origin import Origin

from ratekeeper import Gate
from ratekeeper.adapters._governor import Governor
from ratekeeper.adapters.urllib3 import pool_classes
from ratekeeper.errors import RatekeeperError, RuleError
from ratekeeper.rules.call import Answer

SUPPORT = Path(__file__).parents[2] / "support"
MOST = 1000
"""What Testland allows a day."""


class Stop(Exception):
    """A soft time limit."""


@pytest.fixture
def ask(gate: Gate, origin: Origin, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Makes calls as an unchanged program does; returns how many were sent, and the errors."""
    monkeypatch.setattr(Gate, "_default", gate)
    monkeypatch.setattr(Gate, "_spare", None)
    monkeypatch.setenv("RATEKEEPER_HOSTS", f"{origin.place}=testland")
    config = Path(SUPPORT / "testland.toml")
    real = Gate.__init__

    def made(self: Gate, *values: Any, **options: Any) -> None:
        real(self, *values, **{"rules": [config], "max_wait": 0.0, **options})

    monkeypatch.setattr(Gate, "__init__", made)

    def calls(times: int = 1, path: str = "/x") -> tuple[int, list[Exception]]:
        pools = urllib3.PoolManager(retries=False)
        pools.pool_classes_by_scheme = pool_classes(Governor(lenient=True), pools.pool_classes_by_scheme)
        errors: list[Exception] = []
        before = len(origin.arrivals)
        for _ in range(times):
            try:
                pools.request("GET", f"http://{origin.place}{path}")
            except Exception as error:
                errors.append(error)
        pools.clear()
        return len(origin.arrivals) - before, errors

    yield calls
    if Gate._spare is not None:
        Gate._spare.close()


OURS: dict[str, Any] = {"__name__": "ratekeeper.somewhere"}
exec("def broken(*_, **__):\n    return {}['nobody thought of it']", OURS)
broken = OURS["broken"]


def test_an_error_of_ours_means_the_safe_share(
    ask: Callable[..., Any], gate: Gate, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a limit of two a day half is left after something went wrong: one call passes, the others are refused, and it
    is said once."""
    caplog.set_level(logging.WARNING, "ratekeeper")
    monkeypatch.setattr("ratekeeper.adapters._client.ClientCall.wait", _once_broken(gate))
    sent, errors = ask(6, "/few")
    assert sent <= 2
    assert len(errors) == 6 - sent
    assert all(
        isinstance(error, RatekeeperError) and isinstance(error, urllib3.exceptions.HTTPError) for error in errors
    )
    assert len([record for record in caplog.records if "safe share" in record.message]) == 2  # the call, the share


def _once_broken(gate: Gate) -> Any:
    from ratekeeper.adapters._client import ClientCall

    real = ClientCall.wait

    def wait(self: Any, governor: Any, timeout: Any) -> Any:
        if governor.gate is gate:
            broken()
        return (yield from real(self, governor, timeout))

    return wait


def test_where_even_that_fails_the_call_is_refused(
    ask: Callable[..., Any], gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can govern the call: one clear error of the client's own family, and nothing is sent."""
    monkeypatch.setattr(Gate, "permit_for", broken)
    sent, (error,) = ask()
    assert sent == 0
    assert isinstance(error, RatekeeperError)
    assert isinstance(error, urllib3.exceptions.HTTPError)
    assert "refused" in str(error)


def test_rules_that_cannot_be_told(ask: Callable[..., Any], gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody can say whether a host has rules, its calls are not taken for those of a host without."""
    monkeypatch.setattr(Gate, "match", broken)
    sent, (error,) = ask()
    assert sent == 0
    assert isinstance(error, RatekeeperError)


def test_the_user_may_prefer_an_open_tap(ask: Callable[..., Any], gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """The switch, and only the switch, lets calls pass."""
    monkeypatch.setattr(Gate, "permit_for", broken)
    monkeypatch.setenv("RATEKEEPER_UNGOVERNED_ON_ERROR", "1")
    assert ask(3) == (3, [])
    monkeypatch.setenv("RATEKEEPER_UNGOVERNED_ON_ERROR", "0")
    assert ask(3)[0] == 0


def test_a_broken_configuration_names_its_line(
    ask: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may say something of any host: calls are refused, with file and line."""
    config = tmp_path / "ratekeeper.toml"
    config.write_text("weight = 1\nweigth = 2\n")
    monkeypatch.setenv("RATEKEEPER_CONFIG", str(config))
    monkeypatch.setattr(Gate, "_default", None)
    sent, (error,) = ask()
    assert sent == 0
    assert f"{config}:2" in str(error)
    assert isinstance(error.__cause__, RuleError)


def test_what_a_signal_raises_is_the_programs(
    ask: Callable[..., Any], gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A soft time limit that strikes in the middle of our code is raised, and the call is not sent."""

    def handler(*_: object) -> None:
        raise Stop

    before = signal.signal(signal.SIGALRM, handler)
    try:
        monkeypatch.setattr(gate, "permit_for", lambda *_, **__: signal.raise_signal(signal.SIGALRM))
        sent, (error,) = ask()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert sent == 0
    assert type(error) is Stop


def test_a_ban_whose_body_is_brackets(gate: Gate) -> None:
    """A 418 is a ban, and a 429 a refusal, whatever its body is; the permit is settled at what it was reserved for."""
    rules = gate.provider("binance-usdm")
    for body in (b"[" * 2000, b"\xff\xfe\x00", b'{"code":' + b"9" * 9000, "\ud800" * 99, b'{"a":' * 5000):
        for status, outcome in ((418, "banned"), (429, "throttled")):
            permit = gate.permit(rules, "GET", "/fapi/v1/time")
            told = rules.feedback(permit.plan, Answer(status, {}, body), now=10**18)
            assert told.outcome == outcome
            assert told.blocks or told.full


def test_a_code_is_found_in_what_is_no_json(gate: Gate) -> None:
    """A body that cannot be parsed is read as text for signatures."""
    rules = gate.provider("binance-usdm")
    plan = gate.permit(rules, "GET", "/fapi/v1/time").plan
    body = b'{"code": -1003, "msg": "banned until 1700000060000", "x": ' + b"[" * 500
    told = rules.feedback(plan, Answer(403, {}, body), now=1_700_000_000 * 10**9)
    assert told.outcome == "banned"
    assert told.wait is not None
    assert told.wait.at == 1_700_000_060 * 10**9
    assert "body" in told.unreadable
