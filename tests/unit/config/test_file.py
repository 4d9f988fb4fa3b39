"""Where a gate finds what it needs to know, and what it says when that is wrong."""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratekeeper import Gate, Priority, RuleError, StoreError
from ratekeeper.config.file import find_settings, key_lines, line_of, read_settings
from ratekeeper.config.resolution import parse_hosts, program_name


def test_the_file_is_read_and_the_environment_goes_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments win over the environment, the environment over the file, the file over the defaults."""
    file = tmp_path / "ratekeeper.toml"
    file.write_text(
        'store = "memory://"\npriority = "low"\nmax_wait = 7.5\nweight = 3\n'
        '[hosts]\n"127.0.0.1:9300" = "binance-usdm"\n[headroom.binance-usdm]\nweight-1m = "10%"\norders-10s = 20\n'
    )
    monkeypatch.setenv("RATEKEEPER_CONFIG", str(file))
    with Gate() as gate:
        limits = gate.provider("binance-usdm").limits
        assert (limits["weight-1m"].headroom, limits["orders-10s"].headroom) == (240, 20)
        assert limits["weight-1m"].usable == 2160
        assert (gate.max_wait, gate.weight) == (7.5, 3)
        assert gate.permit("binance-usdm", "GET", "/fapi/v1/time")._priority == Priority.LOW
        found = gate.match("127.0.0.1:9300")
        assert found is not None
        assert found.namespace == "binance-usdm@127.0.0.1:9300"
    monkeypatch.setenv("RATEKEEPER_PRIORITY", "high")
    monkeypatch.setenv("RATEKEEPER_WEIGHT", "5")
    with Gate(max_wait=1) as gate:
        assert gate.permit("binance-usdm", "GET", "/fapi/v1/time")._priority == Priority.HIGH
        assert (gate.max_wait, gate.weight) == (1, 5)


WRONG = {
    "max_wait = 'long'": '1: max_wait: expected a number of seconds from 0, got "long". Write for example 120.',
    "weight = 1\ncolour = 1": "2: colour: no such key. There are: home, store,",
    "wieght = 1": "1: wieght: no such key. Did you mean 'weight'?",
    "weight = 0": "1: weight: expected a whole number from 1, got 0.",
    "learn = 1": "1: learn: expected true or false, got 1.",
    "\n\nmax_wait =": "3: is not TOML",
    "egress = 5": "1: egress: expected a string or a table, got 5.",
    "priority = 'hihg'": '1: priority: expected one of critical, high, normal, low, background, got "hihg". '
    "Did you mean 'high'?",
    "store = 'sqlite://x'": "1: store: no store is called",
    "store = 'rediss://me:word@h:nan'": "1: store: the address of the rediss server cannot be read",
    "[hosts]\n'127.0.0.1:9300' = 'binance'": "2: hosts.127.0.0.1:9300: no rules for 'binance'. Known are: ",
    "[headroom.binance-usdm]\nweight-1m = 99999": "2: headroom.binance-usdm.weight-1m: 99999 leaves nothing",
    "[headroom.binance-usdm]\nweigth = 1": "2: headroom.binance-usdm.weigth: binance-usdm has no such "
    "limit. It has: weight-1m",
    "[providers.binance]": "1: providers.binance: no provider is called 'binance'. There are: binance-coinm,",
    "[providers.okx]\nheadroom = '150%'": "2: providers.okx.headroom: '150%' leaves nothing",
    "[providers.okx]\nheadroom = 5": "2: providers.okx.headroom: expected per cent, got 5. Write for example '10%'.",
    "[providers.kraken]\ntier = 'gold'": "2: providers.kraken.tier: kraken has no tier 'gold' there. Choose one of",
    "[providers.binance-usdm.limits]\nweight-1m = { capacity = '24oo' }": "2: providers.binance-usdm.limits.weight-1m."
    'capacity: expected a whole number from 1, got "24oo". Write a whole number of units.',
    "[providers.binance-usdm]\nlimits.weigth-1m.capacity = 5": "2: providers.binance-usdm.limits.weigth-1m: binance-usdm has "
    "no such limit",
    "[providers.binance-usdm]\nlimits.weight-1m = { capacity = 5, period = 'soon' }": "2: providers.binance-usdm.limits."
    "weight-1m.period: expected a duration, got \"soon\". Write for example '10s'",
    "[providers.binance-usdm]\nlimits.weight-1m.period = '1m'": "a period without a number. Add the capacity.",
    "[providers.binance-usdm.limits.weight-1m]\ncapacity = 5\nheadroom = 5": "3: providers.binance-usdm.limits.weight-1m."
    "headroom: 5 leaves nothing or means nothing. Write units below 5",
    "[priorities]\n'binance-usdm' = 'urgent'": "2: priorities.binance-usdm: expected one of critical,",
    "[priorities]\n'binanze GET /x' = 'low'": "2: priorities.binanze GET /x: no provider is called 'binanze'",
    "[priorities]\n'binance-usdm POST /fapi/v1/ordr' = 'low'": "has no such route. Did you mean 'POST /fapi/v1/order'?",
    "[priorities]\n'binance-usdm/class:orders' = 'low'": "There are: binance-usdm/class:cancel, binance-usdm/class:order,",
    "[programs.'bot.py']\ncolour = 1": "2: programs.bot.py.colour: no such key. There are: weight, priority, max_block",
    "weight = 1\n[alerts]\nat = [0.7]": "2: alerts: Ratekeeper sends no alerts yet. Take it out.",
    "[pollers.x]\nshortest = 0": "2: pollers.x.shortest: expected seconds above 0, got 0.",
    "[pollers.x]\nevery = 5": "2: pollers.x.every: no such key. There are: shortest, longest,",
    "\n[pollers.x]\nshortest = 600": "2: pollers.x: longest (300 s) is below shortest (600 s). See docs/",
    "[gathers.bitgett]\nwidth = 5": "1: gathers.bitgett: no provider is called 'bitgett'. There are: binance-coinm,",
    "[gathers.'*']\nwidth = 0": "2: gathers.*.width: expected a number from 1, got 0.",
    "[egress.addresses]\nmain = 'x'": "2: egress.addresses.main: 'x' is not an address.",
    "[egress.pools.nobody]\nprimary = []": "2: egress.pools.nobody.primary: names no address.",
    "[egress.addresses]\nm = '127.0.0.2'\n[egress.pools.nobody]\nprimary = 'm'": "3: egress.pools.nobody: no provider is "
    "called 'nobody'",
    "[egress.pools.okx]\nbackups = []": "1: egress.pools.okx: 'primary' is missing. Add it.",
}


@pytest.mark.parametrize(("text", "told"), WRONG.items())
def test_a_wrong_file_is_told_with_line_key_and_remedy(tmp_path: Path, text: str, told: str) -> None:
    """A gate does not start on a wrong file: one clear error names the place, and never a password."""
    file = tmp_path / "ratekeeper.toml"
    file.write_text(text)
    with pytest.raises(RuleError) as caught:
        Gate("memory://", config=file)
    shown = str(caught.value)
    assert shown.startswith(f"{file}:")
    assert told in shown
    assert "word" not in shown


def test_all_that_has_the_wrong_type_is_told(tmp_path: Path) -> None:
    """One error says the first mistake; its notes say the others."""
    file = tmp_path / "ratekeeper.toml"
    file.write_text("weight = 0\n\nlearn = 'no'\n")
    with pytest.raises(RuleError) as caught:
        read_settings(file)
    assert (caught.value.line, caught.value.key) == (1, "$.weight")
    assert [note.partition(": ")[0] for note in caught.value.__notes__] == [f"{file}:3"]


def test_where_the_file_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named, else by the environment, else in the state folder that is named, else in the platform's folder; never in the
    working directory."""
    monkeypatch.setenv("RATEKEEPER_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ratekeeper.toml").write_text("nonsense = 1")
    assert find_settings() is None
    homes = {}
    for name in ("home", "other", "xdg/ratekeeper"):
        homes[name] = tmp_path / name / "ratekeeper.toml"
        homes[name].parent.mkdir(parents=True)
        homes[name].write_text("weight = 2")
    assert find_settings() == homes["home"]
    assert find_settings(None, tmp_path / "other") == homes["other"]
    monkeypatch.delenv("RATEKEEPER_HOME")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    if sys.platform == "linux":
        assert find_settings() == homes["xdg/ratekeeper"]
    monkeypatch.setenv("RATEKEEPER_CONFIG", str(homes["other"]))
    assert find_settings() == homes["other"]
    assert find_settings(homes["home"]) == homes["home"]
    monkeypatch.setenv("RATEKEEPER_CONFIG", os.devnull)
    assert read_settings().settings.weight == 1


def test_folders_are_meant_from_the_file(tmp_path: Path) -> None:
    """Relative paths do not depend on where a program was started."""
    file = tmp_path / "ratekeeper.toml"
    file.write_text('home = "state"\nrules = ["mine.toml"]')
    said = read_settings(file).settings
    assert (said.home, said.rules) == (str(tmp_path / "state"), [str(tmp_path / "mine.toml")])


def test_a_module_is_called_by_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """``python -m collector`` is ``collector``, not ``__main__.py``."""
    monkeypatch.setattr(sys, "argv", ["/srv/collector/__main__.py"])
    assert program_name() == f"collector[{os.getpid()}]"


def test_a_missing_file_is_told() -> None:
    """A file that is named must be there."""
    with pytest.raises(RuleError, match="cannot be read"):
        read_settings("/no/such/ratekeeper.toml")


def test_hosts_in_text_and_their_errors() -> None:
    """The environment's form of hosts, and what a typing error in it says."""
    assert parse_hosts(" A:1 = x , b=y,") == {"a:1": "x", "b": "y"}
    with pytest.raises(RuleError, match="is not HOST"):
        parse_hosts("127.0.0.1:9300")


def test_an_unknown_store_is_refused() -> None:
    """A store that does not exist is named, with those that do."""
    with pytest.raises(StoreError, match="use host://, memory:// or redis://"):
        Gate("sqlite://x")


# --- Lines of keys. --------------------------------------------------------------------------------------------------


TEXT = '''\
# a comment
top = 1
"quoted.name" = 2

[table]   # another
a.b = 3
a.c = """
[not.a.table]
x = 1
"""
list = [
  1,  # one
  { deep = 2 },
]
[table."127.0.0.1:9300"]
inline = { k = { l = 1 }, m = [1] }

[[many]]
n = 1
[many.sub]
o = 1
[[many]]
n = 2
[many.sub]
o = 2
[[many.more]]
p = 1
'''


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_every_kind_of_key_has_its_line(ending: str) -> None:
    """Tables, dotted, quoted and inline keys, arrays of tables, texts and arrays over several lines."""
    lines = key_lines(TEXT.replace("\n", ending))
    assert {key.removeprefix("$."): line for key, line in lines.items() if key != "$"} == {
        "top": 2,
        "quoted.name": 3,
        "table": 5,
        "table.a": 6,
        "table.a.b": 6,
        "table.a.c": 7,
        "table.list": 11,
        "table.list[0]": 11,
        "table.list[1]": 11,
        "table.list[1].deep": 11,
        "table.127.0.0.1:9300": 15,
        "table.127.0.0.1:9300.inline": 16,
        "table.127.0.0.1:9300.inline.k": 16,
        "table.127.0.0.1:9300.inline.k.l": 16,
        "table.127.0.0.1:9300.inline.m": 16,
        "table.127.0.0.1:9300.inline.m[0]": 16,
        "many": 18,
        "many[0]": 18,
        "many[0].n": 19,
        "many[0].sub": 20,
        "many[0].sub.o": 21,
        "many[1]": 22,
        "many[1].n": 23,
        "many[1].sub": 24,
        "many[1].sub.o": 25,
        "many[1].more": 26,
        "many[1].more[0]": 26,
        "many[1].more[0].p": 27,
    }


def test_what_is_not_there_has_the_line_of_what_is_around_it() -> None:
    """A missing key is told at its table; one of nowhere has no line."""
    lines = key_lines(TEXT)
    assert line_of(lines, "$.table.a.z[3].y") == 6
    assert line_of(lines, "$.nowhere.[::1]:9300") == 0
    assert line_of(lines, "RATEKEEPER_HOSTS") == 0


NAME = st.text(st.characters(categories=("L", "N", "P", "S", "Zs")), min_size=1, max_size=6)


@given(st.dictionaries(NAME, st.dictionaries(NAME, st.text(max_size=8), max_size=3), min_size=1, max_size=4))
def test_any_table_is_found_where_it_was_written(tables: dict[str, dict[str, str]]) -> None:
    """Whatever names and texts hold, a key's line is the one on which it was written."""

    def quoted(text: str) -> str:
        return '"' + "".join(f"\\U{ord(each):08x}" for each in text) + '"'

    written: list[str] = []
    where: dict[str, int] = {}
    for name, table in tables.items():
        written.append(f"[{quoted(name)}]")
        where.setdefault(f"$.{name}", len(written))
        for key, value in table.items():
            written += [f"{quoted(key)} = '''", *value.replace("'", "").split("\n"), "'''"]
            where.setdefault(f"$.{name}.{key}", len(written) - len(value.replace("'", "").split("\n")) - 1)
    try:
        tomllib.loads("\n".join(written))
    except tomllib.TOMLDecodeError:
        return  # control characters in a text
    found = key_lines("\n".join(written))
    assert {key: found[key] for key in where} == where


@contextmanager
def nobody() -> Iterator[None]:
    """As a user who is not root, whom no mode keeps out."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_folder_that_may_not_be_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is one clear error: what the file in it states is unknown. A file in the place of the folder holds no other file."""
    shut, loop, file = tmp_path / "shut", tmp_path / "loop", tmp_path / "file"
    shut.mkdir(0o000)
    loop.symlink_to(loop)
    file.touch()
    with nobody():
        for home in (shut, shut / "inner"):
            with pytest.raises(
                RuleError, match=r"/shut\S*: cannot be entered: Permission denied\. Let this user enter"
            ):
                read_settings(home=home)
            monkeypatch.setenv("RATEKEEPER_HOME", str(home))
            with pytest.raises(RuleError, match="set RATEKEEPER_HOME to another one"):
                Gate()
    with pytest.raises(RuleError, match="cannot be entered: Too many levels"):
        find_settings(home=loop)
    assert find_settings(home=file) is None
