"""``ratekeeper config``: what it says of a configuration, right or wrong."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ratekeeper import Gate, Priority
from ratekeeper.apps.config import command, masked

ROOT = Path(__file__).parents[3]
WRITTEN = re.compile(r"^```toml\n(# ratekeeper\.toml\n.*?)^```$", re.S | re.M)
"""A configuration file in the documentation."""
PAGES = [page for page in (ROOT / "docs").rglob("*.md") if WRITTEN.search(page.read_text("utf-8"))]

TEXT = """\
weight = 2
store = "redis://me:word@10.0.0.9/0?timeout=2"

[providers.binance-usdm]
limits.weight-1m = { capacity = 3000, headroom = "10%" }

[egress.addresses]
here = "127.0.0.2"
gone = "203.0.113.9"
far = { proxy = "http://me:word@10.0.0.2:3128" }

[programs."bot.py"]
weight = 5

[pollers.positions]
shortest = 10

[hosts]
"127.0.0.1:9300" = "binance-usdm"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A configuration file that only its owner may read."""
    path = tmp_path / "ratekeeper.toml"
    path.write_text(TEXT)
    path.chmod(0o600)
    return path


def run(*arguments: object) -> Result:
    """``ratekeeper config ...``."""
    return CliRunner().invoke(command, list(map(str, arguments)))


def test_check_says_what_changes_and_what_to_look_at(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A right file: the limits it changes, and all that may not be meant; passwords are not shown."""
    monkeypatch.setenv("RATEKEEPER_WEIGHT", "3")
    done = run("check", file)
    assert done.exit_code == 0
    assert done.output.splitlines() == [
        f"{file} is right",
        "  binance-usdm weight-1m: 2,700 of 3,000 weight in 1m (the rules: 2,400 weight in 1m)",
        f"warning: {file}:1: weight: RATEKEEPER_WEIGHT is set and goes before it",
        f"warning: {file}:5: weight-1m: above the 2,400 weight in 1m of the rules: the provider may refuse or ban",
        f"warning: {file}:9: gone: 203.0.113.9 is not an address of this machine",
    ]
    file.chmod(0o644)
    assert f"warning: {file}: holds a password, and other users may read it: chmod 600" in run("check", file).output


def test_check_says_all_mistakes(file: Path) -> None:
    """A wrong file: exit code 2, and each mistake in a line of its own."""
    file.write_text("weight = 0\n[providers.kraken]\ntier = 5\n")
    done = run("check", file)
    assert done.exit_code == 2
    assert [line.partition(": ")[0] for line in done.stderr.splitlines()] == [f"{file}:1", f"{file}:3"]
    file.write_text('[providers.kraken]\ntier = "x"\n[providers.nobody]\n')
    done = run("check", file)
    assert done.exit_code == 2
    assert [line.partition(": ")[0] for line in done.stderr.splitlines()] == [f"{file}:2", f"{file}:3"]


def test_check_without_a_file(own_home: Path) -> None:
    """Nothing must be configured; it says where a file would be."""
    done = run("check")
    assert done.exit_code == 0
    assert f"It would be ratekeeper.toml in {own_home}" in done.output


def test_show_says_who_said_it(file: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every value with its source, also as JSON and for one program; secrets are left out."""
    monkeypatch.setenv("RATEKEEPER_HOSTS", "b.test=okx")
    done = run("show", "--json", file)
    assert done.exit_code == 0
    assert "word" not in done.output
    said = json.loads(done.output)
    assert said["file"] == str(file)
    assert {key: (each["value"], each["from"].replace(str(file), "file")) for key, each in said["values"].items()} == {
        "home": (str(own_home), "RATEKEEPER_HOME"),
        "store": ("redis://…@10.0.0.9/0?…", "file:2"),
        "priority": (None, "default"),
        "weight": (2, "file:1"),
        "max_wait": (900.0, "default"),
        "max_block_wait": (30.0, "default"),
        "learn": (True, "default"),
        "ungoverned_on_error": (False, "default"),
        "policies": ("none", "default"),
        'hosts."127.0.0.1:9300"': ("binance-usdm", "file:19"),
        'hosts."b.test"': ("okx", "RATEKEEPER_HOSTS"),
        "egress.addresses.here": ("127.0.0.2", "file:8"),
        "egress.addresses.gone": ("203.0.113.9", "file:9"),
        "egress.addresses.far.proxy": ("http://…@10.0.0.2:3128", "file:10"),
        "providers.binance-usdm.limits.weight-1m.capacity": (3000, "file:5"),
        "providers.binance-usdm.limits.weight-1m.headroom": ("10%", "file:5"),
        'programs."bot.py".weight': (5, "file:13"),
        "pollers.positions.shortest": (10.0, "file:16"),
    }
    table = run("show", file, "--program", "bot.py").output
    assert "word" not in table
    assert [line.split() for line in table.splitlines() if line.startswith("weight ")] == [
        ["weight", "5", f"{file}:13"]
    ]


def test_a_further_limit(file: Path) -> None:
    """It is told with what it counts, whose it is and where it stands."""
    file.write_text(
        "[providers.orderly]\n"
        "limits.mine = { unit = 'requests', capacity = 80, period = '1m', scope = 'account', use = 0.7 }\n"
    )
    assert (
        f"orderly mine: 56 of 80 requests in 1m, per account (your own limit, by {file}:2)" in run("check", file).output
    )
    said = json.loads(run("show", "--json", file).output)["values"]
    assert {key.rpartition(".")[2]: each["value"] for key, each in said.items() if ".mine." in key} == {
        "unit": "requests", "capacity": 80, "period": "1m", "scope": "account", "use": 0.7,
    }  # fmt: skip


def test_show_policies(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table as it is written; but the variable goes before it."""
    file.write_text("[policies]\nretry = true\ncache.market = 2.0\n")
    said = json.loads(run("show", "--json", file).output)["values"]
    assert {key: each["value"] for key, each in said.items() if key.startswith("policies")} == {
        "policies.retry": True, "policies.cache.market": 2.0,
    }  # fmt: skip
    monkeypatch.setenv("RATEKEEPER_POLICIES", "batch, retry")
    said = json.loads(run("show", "--json", file).output)["values"]
    assert {key: (each["value"], each["from"]) for key, each in said.items() if key.startswith("policies")} == {
        "policies": ("retry,batch", "RATEKEEPER_POLICIES")
    }


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://:a@b/c@host:1/0", "redis://…@host:1/0"),
        ("https://echo.example/ip?token=a", "https://echo.example/ip?…"),
        ("host://", "host://"),
        ("what?", "what?"),
    ],
)
def test_addresses_lose_their_secrets(text: str, shown: str) -> None:
    """User, password and query are left out; what is no address stays as it is."""
    assert masked(text) == shown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_in_the_documentation_are_right(page: Path, tmp_path: Path) -> None:
    """Every example that calls itself ratekeeper.toml passes the check."""
    shutil.copy(ROOT / "tests" / "support" / "testland.toml", tmp_path / "my-provider.toml")
    for text in WRITTEN.findall(page.read_text("utf-8")):
        file = tmp_path / "ratekeeper.toml"
        file.write_text(text)
        done = run("check", file)
        assert done.exit_code == 0, done.output


def test_the_example_of_the_page_does_what_it_says(tmp_path: Path) -> None:
    """Numbers, headroom, tiers, classes, a program's own weight, addresses: as the reference describes them."""
    shutil.copy(ROOT / "tests" / "support" / "testland.toml", tmp_path / "my-provider.toml")
    page = ROOT / "docs" / "reference" / "configuration.md"
    file = tmp_path / "ratekeeper.toml"
    file.write_text(WRITTEN.findall(page.read_text("utf-8"))[0])
    with Gate("memory://", config=file, home=tmp_path, hosts={}, name="trader.py") as gate:
        limits = gate.provider("binance-usdm").limits
        assert (limits["orders-10s"].capacity, limits["orders-10s"].usable) == (100, 95)
        assert (limits["weight-1m"].headroom, limits["orders-1m"].headroom) == (200, 60)
        assert gate.provider("kraken").limits["orders"].capacity == 180
        assert (gate.weight, gate.max_wait, gate.permit("okx", "GET", "/any")._priority) == (3, 120, Priority.HIGH)
        assert gate.permit("binance-usdm", "GET", "/fapi/v1/klines")._priority == Priority.BACKGROUND
        assert gate.permit("binance-usdm", "GET", "/fapi/v2/balance")._priority == Priority.HIGH
        assert "testland" in gate.book.names()
        with gate.permit("binance-usdm", "GET", "/fapi/v1/time", timeout=0) as permit:
            assert permit.egress.name == "main"
    with Gate("memory://", config=file, home=tmp_path, name="other.py") as gate:
        assert (gate.weight, gate.permit("okx", "GET", "/any")._priority) == (2, Priority.LOW)
