"""``ratekeeper config``: whether the configuration is right, and every value in force with its source."""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import click
import msgspec

from ratekeeper.apps.cli import aligned, print_json
from ratekeeper.config.resolution import SETTINGS, Configuration, configure
from ratekeeper.config.rulebook import mistakes, rulebook, unchecked
from ratekeeper.config.schema import CREDENTIALS, VARIABLE
from ratekeeper.errors import RuleError
from ratekeeper.ledger.limit import Limit
from ratekeeper.policy.policies import Policies
from ratekeeper.pools.address import EgressSettings, addresses_of
from ratekeeper.rules.book import Rulebook
from ratekeeper.rules.call import Priority
from ratekeeper.rules.numbers import Adjustments
from ratekeeper.rules.provider import Provider
from ratekeeper.rules.times import interval_name

__all__ = ["command", "masked", "values"]

_FILE = click.argument("file", required=False, type=click.Path(path_type=Path))
_TABLES = (
    "egress",
    "providers",
    "priorities",
    "policies",
    "programs",
    "pollers",
    "gathers",
    "exchanges",
    "telegram",
    "headroom",
)
"""Tables of the file, which are shown as they are written: no variable or argument can state them."""


@click.group("config")
def command() -> None:
    """The configuration: check it, show what is in force."""


@command.command("check")
@_FILE
def check(file: Path | None) -> None:
    """Check FILE, or the configuration file in force: exit code 0, or 2 with file, line, key and remedy of all mistakes."""
    try:
        configuration = configure(file)
        book = unchecked(configuration)
        wrong = list(mistakes(configuration, book, derived=True))
    except RuleError as error:
        _fail([str(error), *getattr(error, "__notes__", ())])
    if wrong:
        _fail(map(str, wrong))
    if configuration.file.path is None:
        click.echo(f"There is no configuration file: defaults and environment hold. It would be {_would_be()}")
    else:
        click.echo(f"{configuration.file.path} is right")
    for line in _changes(configuration, book):
        click.echo(f"  {line}")
    for line in _warnings(configuration, book):
        click.echo(f"warning: {line}")


@command.command("show")
@_FILE
@click.option("--program", metavar="NAME", help="As for the program of that name (`ratekeeper status` shows names).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(file: Path | None, program: str | None, as_json: bool) -> None:
    """Every value in force and where it comes from: a variable of the environment, FILE:LINE or the default. Passwords are
    left out."""
    configuration = configure(file, name=program)
    rulebook(configuration)
    rows = list(values(configuration))
    if as_json:
        path = configuration.file.path and str(configuration.file.path)
        data = {"file": path, "values": {key: {"value": value, "from": source} for key, value, source in rows}}
        print_json(data)
        return
    click.echo(f"file: {configuration.file.path or 'none; it would be ' + _would_be()}")
    for line in aligned((key, _text(value), source) for key, value, source in rows):
        click.echo(line)


def values(configuration: Configuration) -> Iterator[tuple[str, Any, str]]:
    """Every value in force: its key, the value without secrets, its source."""
    own = configuration.settings
    named = isinstance(own.egress, str) or configuration.sources["egress"] == SETTINGS["egress"].variable
    by_name = isinstance(own.policies, str) or configuration.policies != own.policies
    for key in SETTINGS:
        value = getattr(configuration, key)
        if key == "policies" and by_name:
            value = ",".join(name for name in Policies.__struct_fields__ if getattr(value, name)) or "none"
        elif key == "egress" and named:
            value = value.name or "default"
        elif key in ("egress", "policies", "hosts"):
            continue  # tables, shown below as they are written
        yield key, _plain(value), configuration.sources[key]
    for host, name in configuration.hosts.items():
        yield f"hosts.{_quoted(host)}", name, configuration.sources[f"hosts.{host}"]
    for at, rule in enumerate(own.rules):
        yield f"rules[{at}]", rule, configuration.file.place(f"$.rules[{at}]")
    for table in _TABLES:
        part = getattr(own, table)
        if not (isinstance(part, str) or (table == "policies" and by_name)):
            yield from _leaves(msgspec.to_builtins(part), f"$.{table}", table, configuration)


def _leaves(value: Any, path: str, shown: str, configuration: Configuration) -> Iterator[tuple[str, Any, str]]:
    if not configuration.file.states(path):
        return
    if isinstance(value, dict) and value:
        for key, each in value.items():
            yield from _leaves(each, f"{path}.{key}", f"{shown}.{_quoted(key)}", configuration)
    else:
        if (
            shown.startswith("exchanges.")
            and shown.rpartition(".")[2] in CREDENTIALS
            and not VARIABLE.fullmatch(str(value))
        ):
            value = "…"  # it should name a variable, and may be the key itself
        yield shown, masked(value) if isinstance(value, str) else value, configuration.file.place(path)


def _plain(value: Any) -> Any:
    """A value as JSON has it, without secrets."""
    if isinstance(value, Priority):
        return value.name.lower()
    return masked(str(value)) if isinstance(value, Path | str) else value


def masked(text: str) -> str:
    """An address without user, password and query, which may hold secrets; any other text as it is."""
    return re.sub(r"\?.*", "?…", re.sub(r"://.*@", "://…@", text)) if "://" in text else text


def _quoted(key: str) -> str:
    return key if re.fullmatch(r"[\w-]+", key, re.ASCII) else f'"{key}"'


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(_text, value)) if isinstance(value, list) else str(value)


def _fail(lines: Iterable[str]) -> NoReturn:
    for line in lines:
        click.echo(line, err=True)
    sys.exit(2)


def _would_be() -> str:
    folder = os.environ.get("RATEKEEPER_HOME") or "the platform's folder (docs/reference/configuration.md)"
    return f"ratekeeper.toml in {folder}"


def _changes(configuration: Configuration, book: Rulebook) -> Iterator[str]:
    """The limits that the configuration changes."""
    for name in dict.fromkeys([*configuration.settings.providers, *configuration.settings.headroom]):
        provider = book.provider(name)
        before = Provider(provider.file).limits
        for limit in provider.limits.values():
            if limit.place:
                whose = " + ".join(limit.scope)
                yield f"{name} {limit.name}: {_limit(limit)}, per {whose} ({limit.place})"
            elif limit != before[limit.name]:
                yield f"{name} {limit.name}: {_limit(limit)} (the rules: {_limit(before[limit.name])})"
    for program, own in configuration.settings.programs.items():
        for name, units in own.limits.items():
            provider_name, _, limit_name = name.partition("/")
            limit = book.provider(provider_name).limits[limit_name]
            yield f"program {program}: {units:,} of {provider_name} {limit_name} ({_limit(limit)})"


def _limit(limit: Limit) -> str:
    span = f" in {interval_name(limit.period)}" if limit.period else ""
    used = f"{limit.usable:,} of " if limit.headroom else ""
    return f"{used}{limit.capacity:,} {limit.unit}{span}"


def _warnings(configuration: Configuration, book: Rulebook) -> Iterator[str]:
    """What is allowed, and yet may not be what was meant."""
    own = configuration.settings
    for key, source in configuration.sources.items():
        if source.startswith("RATEKEEPER_") and configuration.file.states(f"$.{key}"):
            yield f"{configuration.file.place(f'$.{key}')}: {key}: {source} is set and goes before it"
    for name, wishes in own.providers.items():
        tiers = {"*": wishes.tier} if isinstance(wishes.tier, str) else wishes.tier
        rules = Provider(book.provider(name).file, adjustments=Adjustments(tiers))
        for limit in book.provider(name).limits.values():
            published = rules.limits[limit.name]
            if limit.own and limit.capacity * (published.period or 1) > published.capacity * (limit.period or 1):
                place = configuration.file.place(f"$.providers.{name}.limits.{limit.name}")
                yield f"{place}: {limit.name}: above the {_limit(published)} of the rules: the provider may refuse or ban"
    if isinstance(own.egress, EgressSettings):
        for address in addresses_of(own.egress).values():
            if address.bind and not _is_here(address.bind):
                place = configuration.file.place(f"$.egress.addresses.{address.name}")
                yield f"{place}: {address.name}: {address.bind} is not an address of this machine"
    path = configuration.file.path
    if path is not None and path.stat().st_mode & 0o077 and re.search(r"://[^\s\"']*@", path.read_text("utf-8")):
        yield f"{path}: holds a password, and other users may read it: chmod 600"


def _is_here(address: str) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True
