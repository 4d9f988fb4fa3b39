"""``ratekeeper rules``: list the providers, show one, check files of your own, compare, print schema and docs page."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import click
import msgspec

from ratekeeper.apps.cli import aligned, print_json
from ratekeeper.config.resolution import configure
from ratekeeper.config.rulebook import rulebook
from ratekeeper.errors import RuleError, UnknownProvider
from ratekeeper.rules.book import Rulebook
from ratekeeper.rules.call import Request
from ratekeeper.rules.ccxt_tables import PREFIX, derive, exchanges_at
from ratekeeper.rules.checks import check as check_meaning
from ratekeeper.rules.checks import unready
from ratekeeper.rules.explanation import GRADES, describe, provenance
from ratekeeper.rules.files import inline, read, to_toml
from ratekeeper.rules.numbers import limit_of
from ratekeeper.rules.provider import Provider
from ratekeeper.rules.reading import listed
from ratekeeper.rules.schema import File, Refusal, Route, schema_json

__all__ = ["Difference", "command", "differences", "page", "table"]

_FROM_CCXT = click.option(
    "--from-ccxt", is_flag=True, help="NAME is an exchange of ccxt: derive its rules from ccxt's own tables."
)


@click.group("rules")
def command() -> None:
    """The providers' rules: list, show, check, diff."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """Every provider with a rule file: its limits, the date and the grade of their sources, its hosts."""
    book = rulebook(configure())
    rows = [_row(book, name) for name in book.names()]
    if as_json:
        print_json(rows)
        return
    click.echo(f"{'NAME':<20} {'LIMITS':>6}  {'READ':<10}  {'GRADES':<7} {'TITLE':<32} HOSTS")
    for row in rows:
        click.echo(
            f"{row['name']:<20} {row['limits']:>6}  {row['read']:<10}  {row['confidence']:<7} {row['title']:<32} "
            f"{', '.join(book.hosts(str(row['name'])))}"
        )
    click.echo("Any other exchange of ccxt: ratekeeper rules show NAME --from-ccxt")


@command.command("show")
@click.argument("name")
@_FROM_CCXT
@click.option("--toml", "--file", "whole", is_flag=True, help="Print the rule file itself.")
def show(name: str, from_ccxt: bool, whole: bool) -> None:
    """The limits of a provider and where their numbers come from."""
    book = rulebook(configure())
    if from_ccxt or name.startswith(PREFIX):
        _show_derived(book, name.removeprefix(PREFIX), whole=whole)
    elif whole:
        click.echo(book.path(name).read_text("utf-8"), nl=False)
    else:
        _show(book.provider(name), book.hosts(name))
        click.echo(f"  file    {book.path(name)}")


@command.command("check")
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
def check(files: tuple[Path, ...]) -> None:
    """Check rule files, or the bundled ones; exit 1 and name file, key and remedy if one cannot be used."""
    wrong = 0
    if not files:
        book = Rulebook.load()
        files = tuple(map(book.path, book.names()))
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


@command.command("diff")
@click.argument("name")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@_FROM_CCXT
def diff(name: str, file: Path | None, from_ccxt: bool) -> None:
    """The limits and costs in which FILE, or what ccxt says, differs from the rules in force; exit 1 if any does.

    Against ccxt costs are compared as what they stand for: how long a call keeps its tightest limit busy.
    """
    if (file is None) != from_ccxt:
        raise click.UsageError("compare with one thing: give a FILE, or --from-ccxt")
    ours = Rulebook.load().provider(name).file
    if file is None:
        theirs = _from_ccxt(ours)
    else:
        theirs = read(file)
        check_meaning(theirs, str(file))
    found = differences(ours, theirs, spacing=from_ccxt)
    if found:
        click.echo(table(found, name, str(file or theirs.name)))
        sys.exit(1)
    click.echo(f"{name} and {file or theirs.name} agree on every limit and cost")


@command.command("schema")
def schema() -> None:
    """The JSON schema of a rule file, for editors."""
    click.echo(schema_json(), nl=False)


@command.command("page")
def page_() -> None:
    """The page of the documentation that lists every bundled provider, in Markdown."""
    book = Rulebook.load()
    click.echo(page([book.provider(name) for name in book.names()]), nl=False)


# --- showing ----------------------------------------------------------------------------------------------------------


def _row(book: Rulebook, name: str) -> dict[str, object]:
    file = book.provider(name).file
    origins = [provenance(file, rule) for rule in file.limits.values()]
    dates = [origin.date for origin in origins if origin.date]
    return {
        "name": name,
        "title": file.title,
        "hosts": book.hosts(name),
        "limits": len(file.limits),
        "routes": _routes(file),
        "read": str(min(dates)) if dates else "",  # the list is as fresh as its oldest number
        "confidence": "".join(grade for grade in GRADES if any(origin.confidence == grade for origin in origins)),
        "file": str(book.path(name)),
    }


def _routes(file: File) -> int:
    return sum(len(listed(rule.match)) for rule in file.routes)


def _show(provider: Provider, hosts: list[str]) -> None:
    file = provider.file
    click.echo(f"{provider.name}: {file.title}")
    click.echo(f"  hosts   {', '.join(hosts)}")
    click.echo(f"  routes  {_routes(file)}")
    for limit in provider.limits.values():
        origin = provenance(file, file.limits[limit.name], limit.place)
        click.echo(f"  {limit.name:<20} {describe(limit)}")
        if origin.source:
            click.echo(f"  {'':<20} {origin.source}, read {origin.date}, confidence {origin.confidence}")
        if origin.note:
            click.echo(f"  {'':<20} {origin.note}")


def _show_derived(book: Rulebook, name: str, *, whole: bool) -> None:
    """Derived rules, without the hosts that a bundled file serves: those are better known there."""
    file = derive(name)
    served = {host: known.name for host in file.hosts if (known := book.for_host(host)) is not None}
    free = msgspec.structs.replace(file, hosts=[host for host in file.hosts if host not in served])
    remarks = ["Derived from ccxt's own tables, not from the provider's documentation: grade C, client code."]
    remarks += [f"{host} has better rules: ratekeeper rules show {known}" for host, known in served.items()]
    if file.name != PREFIX + name:
        remarks.append(f"All hosts of {name} belong to {file.name.removeprefix(PREFIX)}, so these are its rules.")
    if whole:
        click.echo(to_toml(free, "\n".join(remarks)), nl=False)
        return
    _show(Provider(free), free.hosts or ["none of its own"])
    click.echo("\n".join(f"  {remark}" for remark in remarks))
    click.echo(f"  To keep and change them: ratekeeper rules show {name} --from-ccxt --toml > {file.name}.toml")


def _from_ccxt(ours: File) -> File:
    """What ccxt says of the same provider: of the exchanges that call its hosts, the one with most of its routes."""
    found = [derive(name) for name in exchanges_at(ours.hosts)]
    if not found:
        raise UnknownProvider(f"no exchange of ccxt calls a host of {ours.name}. Compare with a FILE")
    known = {match for rule in ours.routes for match in listed(rule.match)}
    return max(found, key=lambda file: len(known & {match for rule in file.routes for match in listed(rule.match)}))


# --- comparing ------------------------------------------------------------------------------------------------------


class Difference(NamedTuple):
    """One limit or route; an empty text where a file does not have it."""

    what: str
    ours: str
    theirs: str


def differences(ours: File, theirs: File, *, spacing: bool = False) -> list[Difference]:
    """What differs, limits first.

    Args:
        spacing: for files that count in other units: only routes that both know are compared, by how long a call without
            parameters keeps its tightest limit busy.
    """
    if spacing:
        one, other = _spacings(ours), _spacings(theirs)
        one = {name: text for name, text in one.items() if name in other}
        other = {name: text for name, text in other.items() if name in one}
        return _different(one, other)
    return _different(_limits(ours), _limits(theirs)) + _different(_costs(ours), _costs(theirs))


def table(found: list[Difference], ours: str, theirs: str) -> str:
    """The differences in columns."""
    return "\n".join(aligned([("", ours, theirs), *((row.what, row.ours or "-", row.theirs or "-") for row in found)]))


def _different(ours: dict[str, str], theirs: dict[str, str]) -> list[Difference]:
    names = [*ours, *(name for name in theirs if name not in ours)]
    return [
        Difference(name, ours.get(name, ""), theirs.get(name, ""))
        for name in names
        if ours.get(name) != theirs.get(name)
    ]


def _limits(file: File) -> dict[str, str]:
    return {name: describe(limit_of(name, rule)) for name, rule in file.limits.items()}


def _costs(file: File) -> dict[str, str]:
    found = {"every call": _text(file, file.every), "unknown routes": _route(file, file.default)}
    for rule in file.routes:
        for match in listed(rule.match):
            where = f" where {inline(rule.where)}" if rule.where else ""
            found[match + where] = _route(file, rule)
    return found


def _route(file: File, rule: Route) -> str:
    parts = [_text(file, rule.cost)]
    parts += [f"{field} {_text(file, costs)}" for field in ("ok", "failed") if (costs := getattr(rule, field))]
    return ", ".join(parts)


def _text(file: File, costs: object) -> str:
    return inline(costs) if costs else "nothing"


def _spacings(file: File) -> dict[str, str]:
    """Milliseconds of its tightest limit that a call of each route takes."""
    provider = Provider(file)
    found = {}
    for rule in file.routes:
        for match in listed(rule.match):
            method, _, path = match.partition(" ")
            if not path.endswith("*") and not method.startswith("WS"):
                charges = provider.plan(Request(method, path)).charges
                times = [each.cost * each.limit.period / (each.limit.refill or each.limit.capacity) for each in charges]
                found[match] = f"{max(times, default=0) / 1e6:.5g} ms"
    return found


# --- the page of the documentation: made from the rule files, so that it cannot differ --------------------------------

_HEAD = """# Providers

Made from the rule files by `ratekeeper rules page`; do not edit. What the columns mean is in
[the format of rule files](rules-format.md).

Every number has a source with the day on which it was read, and a grade: {grades}.
Limits marked *learned* are read from the provider while programs run; the number here is what holds until then.

Every other exchange of [ccxt](https://github.com/ccxt/ccxt) is governed by what ccxt's own tables say, which
`ratekeeper rules show NAME --from-ccxt` prints ([how that is done](../how-to/use-with-ccxt.md)).
"""


def page(providers: Iterable[Provider]) -> str:
    """All of them, in Markdown."""
    providers = list(providers)
    grades = ", ".join(f"**{grade}** {meaning}" for grade, meaning in GRADES.items())
    index = "\n".join(f"* [{each.file.title}](#{_anchor(each.file.title)}): `{each.name}`" for each in providers)
    return "\n".join([_HEAD.format(grades=grades), index, *map(_provider, providers)]) + "\n"


def _provider(provider: Provider) -> str:
    file = provider.file
    learned = {
        name
        for learn in file.learn
        if learn.rows is not None and learn.limit
        for name, rule in file.limits.items()
        if name == learn.limit_name or rule.unit in learn.units.values()
    }
    lines = ["", f"## {file.title}", "", f"`{provider.name}` · hosts {_codes(file.hosts)}"]
    if file.paths:
        lines[-1] += f" · paths {_codes(file.paths)}"
    routes = sum(len(listed(rule.match)) for rule in file.routes)
    lines[-1] += f" · {routes} routes, {len(file.routes)} costs"
    lines += ["", "| limit | capacity | source | read | grade |", "|---|---|---|---|---|"]
    for limit in provider.limits.values():
        rule = file.limits[limit.name]
        origin = provenance(file, rule)
        text = describe(limit) + (f", {limit.refill} back each period" if limit.refill else "")
        text += ", *learned*" if limit.name in learned or rule.headers.limit else ""
        note = f"<br>{_cell(origin.note)}" if origin.note else ""
        lines.append(
            f"| `{limit.name}` | {_cell(text)}{note} | {_cell(origin.source)} | {origin.date} | {origin.confidence} |"
        )
    if file.refusals:
        lines += ["", "Refusals: " + "; ".join(map(_refusal, file.refusals)) + "."]
    lines += ["", "Sources:", ""]
    used = _used(file)
    for tag, source in file.sources.items():
        if tag in used:
            title = f"[{source.title}]({source.url})" if source.url else source.title
            lines.append(f"* {tag}: {title}, read {source.read}, {source.confidence}")
    return "\n".join(lines)


def _used(file: File) -> set[str]:
    rules = [file.default, *file.limits.values(), *file.routes]
    return {tag for rule in rules for tag in listed(rule.source) or listed(file.source)}


def _refusal(refusal: Refusal) -> str:
    """``429 with code 1015: throttled, holds ip``."""
    parts = [" or ".join(map(str, refusal.status))] if refusal.status else []
    parts += [f"{path} {' or '.join(map(str, values))}" for path, values in refusal.body.items()]
    parts += [f"`{refusal.text}`"] if refusal.text else []
    parts += [f"close {' or '.join(map(str, refusal.close))}"] if refusal.close else []
    text = f"{' with '.join(parts)}: {refusal.outcome}"
    held = [*refusal.limits, *([refusal.block] if refusal.block else [])]
    text += f", holds {' and '.join(held)}" if held else ""
    text += f" for {refusal.hold}" if refusal.hold else ""
    return text if refusal.charged else f"{text}, not counted"


def _codes(texts: list[str]) -> str:
    return ", ".join(f"`{text}`" for text in texts) or "none"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _anchor(title: str) -> str:
    """The fragment that forges make of a heading."""
    kept = "".join(each for each in title.lower() if each.isalnum() or each in "-_ ")
    return kept.strip().replace(" ", "-")
