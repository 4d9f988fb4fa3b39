"""`headgate rules`."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner, Result

from headgate.apps.rules import command
from headgate.rules.book import DATA
from headgate.rules.schema import schema_json


def run(*arguments: str, hosts: str = "") -> Result:
    """The command with these arguments."""
    return CliRunner().invoke(command, list(arguments), env={"HEADGATE_HOSTS": hosts})


def test_list() -> None:
    """All providers with their hosts, the user's first."""
    done = run("list", hosts="127.0.0.1:9300=binance-usdm")
    assert "binance-spot" in done.output
    assert "127.0.0.1:9300, fapi.binance.com" in done.output
    rows = {row["name"]: row for row in json.loads(run("list", "--json").output)}
    assert "api.binance.com" in rows["binance-spot"]["hosts"]


def test_show() -> None:
    """Limits with their sources, or the file itself."""
    done = run("show", "binance-usdm")
    assert "2400 weight per 1m, fixed, per ip" in done.output
    assert "confidence D" in done.output
    assert run("show", "binance-usdm", "--file").output == (DATA / "binance-usdm.toml").read_text("utf-8")


def test_check(tmp_path: Path) -> None:
    """Good files exit 0; a wrong one exits 1 and names file, key and remedy, and the others are checked as well."""
    good = DATA / "binance-usdm.toml"
    assert run("check", str(good)).exit_code == 0
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(good.read_text("utf-8").replace("capacity = 2400", 'capacity = "2400"'), encoding="utf-8")
    done = run("check", str(wrong), str(good))
    assert done.exit_code == 1
    assert f"{wrong} at $.limits.weight-1m.capacity: Expected `int`, got `str`. Write what is expected" in done.output
    assert f"{good}: good" in done.output


def test_check_later(tmp_path: Path) -> None:
    """A file that needs what is not evaluated yet cannot be used, and is not called good."""
    later = tmp_path / "later.toml"
    text = (DATA / "binance-usdm.toml").read_text("utf-8")
    later.write_text(text.replace("capacity = 2400", "adaptive = true\ncapacity = 2400"), encoding="utf-8")
    done = run("check", str(later))
    assert done.exit_code == 1
    assert "$.limits.weight-1m.adaptive" in done.output
    assert "good" not in done.output


def test_schema() -> None:
    """The schema is printed as it is stored."""
    assert run("schema").output.encode() == schema_json()
