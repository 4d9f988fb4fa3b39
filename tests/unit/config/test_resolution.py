"""What is in force, who states it, and that the documentation tells all of it."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from ratekeeper import Gate, RuleError
from ratekeeper.config.resolution import SETTINGS, configure
from ratekeeper.config.rulebook import rulebook
from ratekeeper.config.schema import Settings

ROOT = Path(__file__).parents[3]
Config = Callable[[str], Path]


def test_who_is_heard(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments before the environment, before the program's own part, before the file, before the default."""
    file = config("weight = 2\nmax_wait = 9\n[programs.bot]\nweight = 3\n")
    found = [configure(file), configure(file, name="bot")]
    monkeypatch.setenv("RATEKEEPER_WEIGHT", "4")
    found += [configure(file, name="bot"), configure(file, name="bot", weight=5)]
    assert [each.weight for each in found] == [2, 3, 4, 5]
    sources = [each.sources["weight"] for each in found]
    assert sources == [f"{file}:1", f"{file}:4", "RATEKEEPER_WEIGHT", "argument"]
    assert (found[0].sources["max_wait"], found[0].sources["learn"]) == (f"{file}:2", "default")


def test_how_long_a_block_is_waited_for(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """30 s, unless file, program, variable or argument say otherwise; ``inf`` is as long as it takes."""
    assert configure(config("")).max_block_wait == 30
    file = config("max_block_wait = 5\n[programs.bot]\nmax_block_wait = inf\n")
    found = [configure(file), configure(file, name="bot"), configure(file, max_block_wait=0)]
    monkeypatch.setenv("RATEKEEPER_MAX_BLOCK_WAIT", "900")
    found.append(configure(file))
    assert [each.max_block_wait for each in found] == [5, math.inf, 0, 900]
    sources = [each.sources["max_block_wait"] for each in found]
    assert sources == [f"{file}:1", f"{file}:3", "argument", "RATEKEEPER_MAX_BLOCK_WAIT"]
    for wrong in ("soon", "-1", "nan"):
        monkeypatch.setenv("RATEKEEPER_MAX_BLOCK_WAIT", wrong)
        with pytest.raises(RuleError, match=r"RATEKEEPER_MAX_BLOCK_WAIT.*a number of seconds from 0"):
            configure(file)


def test_hosts_of_file_and_environment_together(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment's hosts are added to the file's, and go before them."""
    monkeypatch.setenv("RATEKEEPER_HOSTS", "a.test=okx,b.test=okx")
    found = configure(config('[hosts]\n"A.test" = "bybit"\n"c.test" = "bybit"'))
    assert found.hosts == {"a.test": "okx", "b.test": "okx", "c.test": "bybit"}
    assert found.sources["hosts.a.test"] == "RATEKEEPER_HOSTS"
    assert found.sources["hosts.c.test"].endswith(":3")
    book = rulebook(found)
    served = {host: book.for_host(host) for host in found.hosts}
    assert {host: rules.name for host, rules in served.items() if rules} == found.hosts
    monkeypatch.setenv("RATEKEEPER_HOSTS", "A.test.:443=okx,d.test:80=okx")
    found = configure(config('[hosts]\n"a.Test" = "bybit"\n"c.test." = "bybit"'))
    assert found.hosts == {"a.test:443": "okx", "d.test:80": "okx", "c.test": "bybit"}  # however one host is written


def test_a_wrong_value_is_blamed_on_who_states_it(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that does not exist: the argument's, the variable's with its name, the file's with its line."""
    file = config('\npolicies = "retri"')
    with pytest.raises(RuleError, match=r"^no policy is called 'cash'"):
        configure(file, policies="cash")
    with pytest.raises(RuleError, match=r"toml:2: policies: no policy is called 'retri'"):
        configure(file)
    monkeypatch.setenv("RATEKEEPER_POLICIES", "braker")
    with pytest.raises(RuleError, match=r"^RATEKEEPER_POLICIES: no policy is called 'braker'"):
        configure(file)


def test_a_program_that_is_told_its_address_has_no_pools(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable names one address, which keeps what the file states of it; there is nothing to choose."""
    file = config('[egress]\nname = "a"\naddresses = { a = "127.0.0.2" }\npools = { okx = { primary = "a" } }')
    assert list(configure(file).egress.pools) == ["okx"]
    monkeypatch.setenv("RATEKEEPER_EGRESS", "b")
    found = configure(file).egress
    assert (found.name, list(found.addresses), found.pools) == ("b", ["a"], {})


def rows(heading: str) -> dict[str, tuple[str, str]]:
    """The table under a heading of the configuration's page: meaning and default by name, without links."""
    page = (ROOT / "docs" / "reference" / "configuration.md").read_text("utf-8")
    part = page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", part)
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in plain.splitlines() if line.startswith("| `")
    ]
    return {names: (means, default) for names, means, *rest in cells for default in rest or [""]}


def told(key: str) -> tuple[str, str]:
    """What the page should tell of a setting."""
    default = getattr(Settings(), key)
    shown = f"`{default}`" if isinstance(default, bool) else f"{default:g}" if isinstance(default, int | float) else ""
    return SETTINGS[key].means, SETTINGS[key].default or shown


def test_the_page_tells_every_variable() -> None:
    """The table of the environment is that of the settings; no variable in the code is missing from the page."""
    found = rows("Environment")
    own = {setting.variable: told(key) for key, setting in SETTINGS.items() if setting.variable}
    assert {f"`{name}`": row for name, row in own.items()}.items() <= found.items()
    code = "".join(path.read_text("utf-8") for path in (ROOT / "src" / "ratekeeper").rglob("*.py"))
    used = set(re.findall(r"RATEKEEPER_[A-Z]+(?:_[A-Z]+)*", code)) - {"RATEKEEPER_RUN_FROM"}  # `run` tells its children
    named = " ".join(found).replace("`_", "`RATEKEEPER_EXCHANGE_").replace("`", "")
    missing = {name for name in used if name not in named}
    assert {name for name in missing if not name.startswith("RATEKEEPER_TELEGRAM_")} == set()


def test_the_page_tells_every_argument() -> None:
    """The arguments of a gate, with the meaning and default of those settings that have no variable."""
    found = rows("Arguments of `Gate`")
    assert [name.strip("`") for name in found] == list(inspect.signature(Gate).parameters)
    for key, setting in SETTINGS.items():
        if not setting.variable:
            assert found[f"`{key}`"] == told(key)


def test_the_page_tells_every_key() -> None:
    """No table or value of the configuration file is missing from the page."""
    found = "; ".join(rows("The configuration file"))
    assert [key for key in Settings.__struct_fields__ if not re.search(rf"`{key}\b", found)] == ["headroom"]
