"""``headgate config``, and what each key of the file does to a gate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from headgate import Gate, Priority
from headgate.apps.config import command

FULL = """
store = "redis://me:hush@127.0.0.1:1/0"
max_wait = 30
[egress.addresses]
main = "127.0.0.2"
spare = { bind = "127.0.0.3", scope = "nat" }
[egress.pools.binance-usdm]
primary = "main"
backups = ["spare"]
[providers.binance-usdm]
headroom = "5%"
limits.orders-10s = { capacity = 100, period = "10s" }
[providers.kraken]
tier = "pro"
[priorities]
"binance-usdm GET /fapi/v1/klines" = "background"
[programs."trader.py"]
weight = 3
priority = "high"
[alerts]
at = [0.7, 0.9]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file that says something of everything."""
    path = tmp_path / "headgate.toml"
    path.write_text(FULL)
    return path


def told(*arguments: str) -> tuple[int, str]:
    """Exit code and output of ``headgate config``."""
    result = CliRunner().invoke(command, [*arguments], catch_exceptions=False)
    return result.exit_code, result.output


def test_a_right_file_is_called_right_and_its_effects_are_told(file: Path) -> None:
    """What differs from the rules, and what is not used yet."""
    code, text = told("check", str(file))
    assert code == 0
    assert f"{file} is right" in text
    assert "binance-usdm orders-10s: 95 of 100 orders in 10s (the rules: 300 orders in 10s)" in text
    assert "alerts: accepted, but not used yet" in text


def test_all_mistakes_are_told_with_their_lines(tmp_path: Path) -> None:
    """Exit code 2, one line each."""
    wrong = tmp_path / "headgate.toml"
    wrong.write_text("wieght = 1\nmax_wait = 'x'\n")
    code, text = told("check", str(wrong))
    assert code == 2
    assert f"{wrong}:1: wieght: no such key. Did you mean 'weight'?" in text
    assert f"{wrong}:2: max_wait: expected a number of seconds" in text


def test_without_a_file_the_defaults_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And it is said where a file would be."""
    monkeypatch.setenv("HEADGATE_HOME", str(tmp_path))
    code, text = told("check")
    assert code == 0
    assert f"headgate.toml in {tmp_path}" in text


def test_every_value_has_its_origin_and_passwords_have_none(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File and line, variable, or default."""
    monkeypatch.setenv("HEADGATE_WEIGHT", "7")
    code, text = told("show", "--json", str(file))
    values = json.loads(text)["values"]
    assert code == 0
    assert values["max_wait"] == {"value": 30.0, "from": f"{file}:3"}
    assert values["weight"] == {"value": 7, "from": "HEADGATE_WEIGHT"}
    assert values["learn"] == {"value": True, "from": "default"}
    assert "hush" not in text + told("show", str(file))[1]


def test_what_a_file_says_a_gate_does(file: Path, tmp_path: Path) -> None:
    """Numbers, headroom, tiers, classes, a program's own weight, addresses."""
    file.write_text(FULL.replace("redis://me:hush@127.0.0.1:1/0", "memory://"))
    with Gate(config=file, home=tmp_path, name="trader.py") as gate:
        limits = gate.provider("binance-usdm").limits
        assert (limits["orders-10s"].capacity, limits["orders-10s"].usable) == (100, 95)
        assert limits["weight-1m"].usable == 2280
        assert gate.provider("kraken").limits["orders"].capacity == 180
        assert (gate.weight, gate.max_wait) == (3, 30)
        with gate.permit("binance-usdm", "GET", "/fapi/v1/time", timeout=0) as permit:
            assert permit.egress.name == "main"
    with Gate(config=file, home=tmp_path, name="other.py") as gate:
        assert gate.weight == 1
        assert gate.permit("binance-usdm", "GET", "/fapi/v1/klines")._klass == Priority.BACKGROUND
