"""``headgate rules``: list the providers, show one, check files of your own, print the schema."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import msgspec

from headgate.errors import RuleError
from headgate.gate.settings import parse_hosts
from headgate.rules.book import Rulebook
from headgate.rules.check_costs import unready
from headgate.rules.checks import check as check_meaning
from headgate.rules.explanation import describe, provenance
from headgate.rules.files import read
from headgate.rules.schema import schema_json

__all__ = ["command"]


@click.group("rules")
def command() -> None:
    """The providers' rules: list, show, check."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """Every provider with rules, and its hosts."""
    book = Rulebook.load(hosts=parse_hosts(None))
    rows = [{"name": name, "hosts": book.hosts(name), "file": str(book.path(name))} for name in book.names()]
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(rows), indent=2))
        return
    for name in book.names():
        click.echo(f"{name:<20} {', '.join(book.hosts(name))}")


@command.command("show")
@click.argument("name")
@click.option("--file", "whole", is_flag=True, help="Print the rule file itself.")
def show(name: str, whole: bool) -> None:
    """The limits of a provider and where their numbers come from."""
    book = Rulebook.load(hosts=parse_hosts(None))
    if whole:
        click.echo(book.path(name).read_text("utf-8"), nl=False)
        return
    provider = book.provider(name)
    click.echo(f"{name}: {provider.file.title}")
    click.echo(f"  hosts   {', '.join(book.hosts(name))}")
    click.echo(
        f"  routes  {sum(len(rule.match) if isinstance(rule.match, list) else 1 for rule in provider.file.routes)}"
    )
    for limit in provider.limits.values():
        origin = provenance(provider.file, provider.file.limits[limit.name])
        click.echo(f"  {limit.name:<20} {describe(limit)}")
        click.echo(f"  {'':<20} {origin.source}, read {origin.date}, confidence {origin.confidence}")
        if origin.note:
            click.echo(f"  {'':<20} {origin.note}")
    click.echo(f"  file    {book.path(name)}")


@command.command("check")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
def check(files: tuple[Path, ...]) -> None:
    """Check rule files; exit 1 and name file, key and remedy if one cannot be used."""
    wrong = 0
    for path in files:
        try:
            file = read(path)
            check_meaning(file, str(path))
        except RuleError as error:
            click.echo(str(error), err=True)
            wrong += 1
            continue
        later = unready(file)
        for key, what in later:
            click.echo(f"{path} at {key}: `{what}` is part of the format, but not evaluated yet", err=True)
        wrong += bool(later)
        if not later:
            click.echo(f"{path}: good ({file.name}: {len(file.limits)} limits, {len(file.routes)} routes)")
    if wrong:
        sys.exit(1)


@command.command("schema")
def schema() -> None:
    """The JSON schema of a rule file, for editors."""
    click.echo(schema_json(), nl=False)
