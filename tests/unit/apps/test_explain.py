"""`ratekeeper explain`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ratekeeper.apps.explain import command

KLINES = "https://fapi.binance.com/fapi/v1/klines?limit=1500"


def run(*arguments: str, hosts: str = "") -> Result:
    """The command with these arguments."""
    return CliRunner().invoke(command, list(arguments), env={"RATEKEEPER_HOSTS": hosts})


def test_table() -> None:
    """The table names provider, route, limit, cost, scope, source, date and confidence."""
    done = run("GET", KLINES)
    assert done.exit_code == 0
    for words in (
        "binance-usdm",
        "GET /fapi/v1/klines",
        "weight-1m",
        "10",
        "2400 weight",
        "1m fixed",
        "ip",
        "B3",
        "B4",
    ):
        assert words in done.output
    assert "2026-08-21" in done.output
    assert "vendor documentation" in done.output


def test_json() -> None:
    """The JSON has the same facts."""
    found = json.loads(run("get", KLINES, "--json").output)
    assert (found["provider"], found["route"], found["known"]) == ("binance-usdm", "GET /fapi/v1/klines", True)
    (share,) = found["limits"]
    assert (share["name"], share["cost"], share["capacity"], share["period"], share["scope"]) == (
        "weight-1m",
        10,
        2400,
        60,
        ["ip"],
    )
    assert share["provenance"]["source"] == "B4+B8"
    assert share["provenance"]["date"] == "2026-08-21"
    assert found["cost"]["confidence"] == "D"


@pytest.mark.parametrize(
    ("method", "url", "words"),
    [
        ("GET", "https://fapi.binance.com/fapi/v1/exchangeInfo", "kept 1h; may be repeated"),
        ("GET", "https://fapi.binance.com/fapi/v1/time", "not kept; may be repeated"),
        (
            "GET",
            "https://fapi.binance.com/fapi/v1/premiumIndex?symbol=A",
            "kept as your cache says; made with others as GET /fapi/v1/premiumIndex; may be repeated",
        ),
        (
            "POST",
            "https://fapi.binance.com/fapi/v1/order?symbol=A&newClientOrderId=a1",
            "not repeated where its fate is unknown; GET /fapi/v1/order?origClientOrderId=a1&symbol=A tells",
        ),
    ],
)
def test_policies(method: str, url: str, words: str) -> None:
    """What the policies may do around the call stands in one line."""
    assert words in run(method, url).output


def test_policies_in_json() -> None:
    """The JSON tells the same."""
    found = json.loads(run("GET", "https://fapi.binance.com/fapi/v3/account", "--json").output)
    assert (found["kept"], found["merged"], found["twice"], found["ask"]) == (30, "", True, "")


def test_unknown_host() -> None:
    """A host without rules passes untouched, and the command says so."""
    done = run("GET", "https://unknown.example/x")
    assert done.exit_code == 0
    assert "passes untouched" in done.output
    assert json.loads(run("GET", "https://unknown.example/x", "--json").output) == {
        "provider": None,
        "host": "unknown.example",
        "untouched": True,
    }


def test_a_further_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit of the user's own stands beside the others, with its line; what is left unused shows."""
    file = tmp_path / "ratekeeper.toml"
    file.write_text(
        "[providers.binance-usdm]\nlimits.mine = { unit = 'requests', capacity = 80, period = '10s', use = 0.7 }\n"
    )
    monkeypatch.setenv("RATEKEEPER_CONFIG", str(file))
    line = next(line for line in run("GET", KLINES).output.splitlines() if line.startswith("mine"))
    assert line.split()[:6] == ["mine", "1", "56", "of", "80", "requests"]
    assert f"mine: your own limit, by {file}:2" in run("GET", KLINES).output
    shares = json.loads(run("GET", KLINES, "--json").output)["limits"]
    assert [(share["name"], share["cost"], share["headroom"]) for share in shares] == [
        ("weight-1m", 10, 0),
        ("mine", 1, 24),
    ]


def test_mapped_host() -> None:
    """RATEKEEPER_HOSTS is obeyed, and the namespace shows it."""
    done = run("POST", "http://127.0.0.1:9300/fapi/v1/batchOrders", "--json", hosts="127.0.0.1:9300=binance-usdm")
    found = json.loads(done.output)
    assert found["namespace"] == "binance-usdm@127.0.0.1:9300"
    assert {share["name"]: share["cost"] for share in found["limits"]} == {
        "weight-1m": 5,
        "orders-10s": 5,
        "orders-1m": 1,
    }


def test_unknown_route() -> None:
    """A route that is not known is said to cost the default."""
    assert "default cost" in run("GET", "https://fapi.binance.com/fapi/v9/new").output


def test_unreliable_and_free() -> None:
    """Ignored feedback and calls that spend nothing are said."""
    assert "not reliable" in run("GET", "https://fapi.binance.com/fapi/v1/ticker/bookTicker").output
    assert "spends nothing" in run("WS-CONNECT", "wss://fstream.binance.com/ws/x").output


def test_own_rules_and_body(tmp_path: Path) -> None:
    """A rule file of one's own can be tried, and a JSON body is read."""
    path = tmp_path / "mine.toml"
    path.write_text(
        'format = 1\nname = "mine"\ntitle = "Mine"\nhosts = ["mine.example"]\nsource = "S"\n'
        '[sources]\nS = { title = "t", read = 2026-11-20, confidence = "D" }\n'
        '[limits.calls-1s]\nunit = "calls"\ncapacity = 9\nperiod = "1s"\n'
        '[default]\ncost = { calls = { by = "body.n", each = 1, missing = 1 } }\n',
        encoding="utf-8",
    )
    done = run("POST", "https://mine.example/q", "--rules", str(path), "--body", '{"n": 4}', "--json")
    assert json.loads(done.output)["limits"][0]["cost"] == 4


@pytest.mark.parametrize("arguments", [("GET", "/no/host"), ("GET", KLINES, "--body", "{")])
def test_wrong_use(arguments: tuple[str, ...]) -> None:
    """Wrong use ends with exit code 2 and a message."""
    done = run(*arguments)
    assert done.exit_code == 2
    assert "Error" in done.output
