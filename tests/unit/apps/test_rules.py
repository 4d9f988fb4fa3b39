"""`ratekeeper rules`."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner, Result
from msgspec.structs import replace

from ratekeeper.apps.rules import Difference, command, differences, page, table
from ratekeeper.rules.book import DATA, Rulebook
from ratekeeper.rules.files import parse, read
from ratekeeper.rules.provider import Provider
from ratekeeper.rules.reading import listed
from ratekeeper.rules.schema import schema_json


def run(*arguments: str, hosts: str = "") -> Result:
    """The command with these arguments."""
    return CliRunner().invoke(command, list(arguments), env={"RATEKEEPER_HOSTS": hosts})


def test_list() -> None:
    """All providers with their hosts, the user's first."""
    done = run("list", hosts="127.0.0.1:9300=binance-usdm")
    assert "binance-spot" in done.output
    assert "127.0.0.1:9300, fapi.binance.com" in done.output
    rows = {row["name"]: row for row in json.loads(run("list", "--json").output)}
    assert "api.binance.com" in rows["binance-spot"]["hosts"]
    assert rows["binance-usdm"]["limits"] == 9 and rows["binance-usdm"]["confidence"].startswith("D")
    assert rows["binance-usdm"]["read"] == "2025-11-30"  # of the oldest number


def test_show() -> None:
    """Limits with their sources, or the file itself."""
    done = run("show", "binance-usdm")
    assert "2400 weight per 1m, fixed, per ip" in done.output
    assert "confidence D" in done.output
    assert run("show", "binance-usdm", "--file").output == (DATA / "binance-usdm.toml").read_text("utf-8")


def test_show_from_ccxt(tmp_path: Path) -> None:
    """Derived rules are marked, point to what is known better, and are a file that can be kept."""
    done = run("show", "bitso", "--from-ccxt")
    assert "ccxt-bitso: Bitso (derived from ccxt" in done.output
    assert "4000000 pace per 4s, bucket, per ip" in done.output
    assert "grade C, client code" in done.output
    assert run("show", "ccxt-bitso").output == done.output
    assert (
        "api.kraken.com has better rules: ratekeeper rules show kraken" in run("show", "kraken", "--from-ccxt").output
    )
    assert "All hosts of binanceusdm belong to binance" in run("show", "binanceusdm", "--from-ccxt").output
    kept = tmp_path / "ccxt-binance.toml"
    kept.write_text(run("show", "binance", "--from-ccxt", "--toml").output, encoding="utf-8")
    assert run("check", str(kept)).exit_code == 0
    book = Rulebook.load(extra=[kept])  # no host of a bundled file is in it
    assert book.for_host("papi.binance.com") is book.provider("ccxt-binance")


def test_unknown_names() -> None:
    """One line that says what is there instead."""
    assert "Did you mean 'kraken'" in str(run("show", "krakn", "--from-ccxt").exception)
    assert "binance-usdm" in str(run("show", "leviathan").exception)


def test_diff(tmp_path: Path) -> None:
    """Exit 1 and a table if anything differs, 0 if not; against ccxt by time; one thing to compare with."""
    same = DATA / "binance-usdm.toml"
    done = run("diff", "binance-usdm", str(same))
    assert done.exit_code == 0 and "agree" in done.output
    other = tmp_path / "other.toml"
    other.write_text(same.read_text("utf-8").replace("capacity = 2400", "capacity = 2399"), encoding="utf-8")
    done = run("diff", "binance-usdm", str(other))
    assert done.exit_code == 1
    assert done.output.splitlines()[1].split("  ") == [
        "weight-1m",
        "2400 weight per 1m, fixed, per ip",
        "2399 weight per 1m, fixed, per ip",
    ]
    done = run("diff", "binance-usdm", "--from-ccxt")
    assert done.exit_code == 1 and "ccxt-binance" in done.output and " ms" in done.output
    assert run("diff", "binance-usdm").exit_code == run("diff", "binance-usdm", str(same), "--from-ccxt").exit_code == 2


def test_check_bundled() -> None:
    """Without a file the bundled ones are checked."""
    done = run("check")
    assert done.exit_code == 0 and done.output.count(": good (") == len(list(DATA.glob("*.toml")))


def test_check(tmp_path: Path) -> None:
    """Good files exit 0; a wrong one exits 1 and names file, key and remedy, and the others are checked as well."""
    good = DATA / "binance-usdm.toml"
    assert run("check", str(good)).exit_code == 0
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(good.read_text("utf-8").replace("capacity = 2400", 'capacity = "2400"'), encoding="utf-8")
    done = run("check", str(wrong), str(good))
    assert done.exit_code == 1
    assert (
        f'{wrong} at $.limits.weight-1m.capacity: expected a whole number from 1, got "2400". See docs/' in done.output
    )
    assert f"{good}: good" in done.output


def test_check_later(tmp_path: Path) -> None:
    """A file that needs what is not evaluated yet cannot be used, and is not called good."""
    later = tmp_path / "later.toml"
    text = (DATA / "binance-usdm.toml").read_text("utf-8")
    later.write_text(text.replace("capacity = 2400", 'calendar = "week"\ncapacity = 2400'), encoding="utf-8")
    done = run("check", str(later))
    assert done.exit_code == 1
    assert "$.limits.weight-1m.calendar" in done.output
    assert "good" not in done.output


def test_schema() -> None:
    """The schema is printed as it is stored."""
    assert run("schema").output.encode() == schema_json()


# --- How two rule files differ. --------------------------------------------------------------------------------------


OURS = read(DATA / "binance-usdm.toml")
OTHER_UNITS = """
format = 1
name = "other"
title = "The same exchange, counted in another unit"
source = "S"
[sources]
S = { title = "t", read = 2026-11-20, confidence = "C" }
[limits.pace]
unit = "pace"
capacity = 1000
period = "1s"
[default]
cost = { pace = 1 }
[[routes]]
match = ["GET /fapi/v1/ping", "GET /fapi/v1/nowhere"]
cost = { pace = 60 }
"""


def test_same() -> None:
    """A file does not differ from itself, in either way of comparing."""
    assert differences(OURS, OURS) == differences(OURS, OURS, spacing=True) == []


def test_limits_and_costs() -> None:
    """A changed capacity, a limit that is missing, a changed cost and a route that is new."""
    limits = {**OURS.limits, "weight-1m": replace(OURS.limits["weight-1m"], capacity=1200)}
    del limits["orders-1m"]
    at = next(index for index, rule in enumerate(OURS.routes) if "GET /fapi/v1/ping" in listed(rule.match))
    routes = [*OURS.routes]
    routes[at] = replace(routes[at], match="GET /fapi/v9/ping", cost={"weight": 3})
    found = {each.what: each for each in differences(OURS, replace(OURS, limits=limits, routes=routes))}
    assert found["weight-1m"].theirs == "1200 weight per 1m, fixed, per ip"
    assert found["orders-1m"].theirs == ""
    assert found["GET /fapi/v1/ping"].ours == "{ weight = 1 }" and found["GET /fapi/v1/ping"].theirs == ""
    assert found["GET /fapi/v9/ping"] == Difference("GET /fapi/v9/ping", "", "{ weight = 3 }")


def test_spacing() -> None:
    """Files that count in other units are compared by time, on the routes that both know."""
    (found,) = differences(OURS, parse(OTHER_UNITS), spacing=True)
    assert found == Difference("GET /fapi/v1/ping", "25 ms", "60 ms")  # 1 of 2400 in a minute; 60 of 1000 in a second


def test_table() -> None:
    """Columns, with the names above; a dash where one side has nothing."""
    text = table([Difference("weight-1m", "a", ""), Difference("GET /long/path", "", "b")], "ours", "theirs")
    assert text.splitlines() == [
        "                ours  theirs",
        "weight-1m       a     -",
        "GET /long/path  -     b",
    ]


# --- The documentation's page of providers. --------------------------------------------------------------------------


PAGE = Path(__file__).parents[3] / "docs" / "reference" / "providers.md"
SMALL = """
format = 1
name = "small"
title = "Small exchange (v1)"
hosts = ["api.small.example"]
paths = ["/v1/"]
source = "S"
[sources]
S = { title = "Its documentation", url = "https://small.example/docs", read = 2026-11-20, confidence = "D" }
T = { title = "Used by nothing", read = 2026-11-20, confidence = "?" }
[limits.calls-1s]
unit = "calls"
capacity = 7
period = "1s"
note = "a | b"
headers.limit = "x-limit"
[default]
cost = { calls = 1 }
[[routes]]
match = ["GET /v1/a", "GET /v1/b"]
cost = { calls = 2 }
[[refusals]]
status = [429]
body = { code = [1015] }
outcome = "throttled"
block = "ip"
hold = "5m"
charged = false
"""


def test_page_is_fresh() -> None:
    """The page is what the rule files say; else: `ratekeeper rules page > docs/reference/providers.md`."""
    book = Rulebook.load()
    assert PAGE.read_text("utf-8") == page([book.provider(name) for name in book.names()])


def test_everything_is_told() -> None:
    """Hosts, paths, limits with source, date and grade, refusals, and the sources that are used."""
    text = page([Provider(parse(SMALL))])
    assert "* [Small exchange (v1)](#small-exchange-v1): `small`" in text
    assert "`small` · hosts `api.small.example` · paths `/v1/` · 2 routes, 1 costs" in text
    limit = "| `calls-1s` | 7 calls per 1s, sliding, per ip, *learned*<br>a \\| b | S | 2026-11-20 | D |"
    assert limit in text
    assert "Refusals: 429 with code 1015: throttled, holds ip for 5m, not counted." in text
    assert "* S: [Its documentation](https://small.example/docs), read 2026-11-20, D" in text
    assert "Used by nothing" not in text
