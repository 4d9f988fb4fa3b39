"""``ratekeeper explain METHOD URL``: what one call would cost, on which limits, and where the numbers come from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import click
import msgspec

from ratekeeper.apps.cli import bare_table, print_json
from ratekeeper.config.resolution import Configuration, configure
from ratekeeper.config.rulebook import rulebook
from ratekeeper.rules.book import normal_host
from ratekeeper.rules.call import Request
from ratekeeper.rules.ccxt_tables import derive, exchanges_at
from ratekeeper.rules.explanation import GRADES, Explanation, ProgramCap, Provenance
from ratekeeper.rules.provider import Provider
from ratekeeper.rules.times import interval_name

__all__ = ["command"]


@click.command("explain")
@click.argument("method")
@click.argument("url")
@click.option("--body", default="", metavar="JSON", help="The JSON body, where a cost depends on it.")
@click.option("--rules", "extra", multiple=True, type=click.Path(path_type=Path), help="A rule file of your own.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(method: str, url: str, body: str, extra: tuple[Path, ...], as_json: bool) -> None:
    """What a call would cost: provider, route, every limit with its cost, scope, source, date and confidence."""
    place = urlsplit(url if "://" in url else f"//{url}")
    if not place.hostname:
        raise click.UsageError(f"{url!r} names no host. Write for example https://fapi.binance.com/fapi/v1/time")
    host = normal_host(place.netloc.rpartition("@")[2])
    path = place.path or "/"
    said = configure(rules=extra)
    provider = rulebook(said).for_host(host, path)
    derived = exchanges_at([host]) if provider is None else []
    if derived:
        provider = Provider(derive(derived[0]))
    if provider is None:
        _untouched(host, as_json=as_json)
        return
    try:
        parsed = msgspec.json.decode(body) if body else None
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise click.UsageError(f"--body is not JSON: {error}") from None
    found = provider.explain(Request(method.upper(), path, parse_qs(place.query, keep_blank_values=True), parsed))
    found = msgspec.structs.replace(found, caps=list(_caps(said, provider, found)))
    if as_json:
        print_json(found)
    else:
        _show(method.upper(), url, found)
        if derived:
            click.echo(
                f"  Only calls through ccxt are governed so. For all: ratekeeper rules show {derived[0]} --from-ccxt"
            )


def _caps(said: Configuration, provider: Provider, found: Explanation) -> Iterator[ProgramCap]:
    """What the configuration leaves to programs of the limits that the call spends."""
    for program, own in said.settings.programs.items():
        for share in found.limits:
            name = f"{provider.name}/{share.name}"
            if name in own.limits:
                place = said.file.place(f"$.programs.{program}.limits.{name}")
                yield ProgramCap(program, share.name, own.limits[name], place)


def _untouched(host: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"provider": None, "host": host, "untouched": True})
    else:
        click.echo(f"No rules speak of {host}: the call passes untouched (and is counted).")
        click.echo("To treat it as a provider, set RATEKEEPER_HOSTS, for example 127.0.0.1:9300=binance-usdm.")


def _show(method: str, url: str, found: Explanation) -> None:
    from rich.console import Console
    from rich.markup import escape

    # Narrow terminals and pipes: rather long lines than columns squeezed to nothing.
    console = Console(highlight=False, soft_wrap=True, width=max(Console().width, 140))
    console.print(f"[bold]{escape(method)} {escape(url)}[/bold]")
    known = escape(found.route) if found.known else "[yellow]none matches: the default cost is taken[/yellow]"
    facts = {
        "provider": found.provider if found.namespace == found.provider else f"{found.provider} ({found.namespace})",
        "route": known,
        "class": f"{found.route_class}, priority {found.priority}",
        "cost from": escape(_origin(found.cost)),
        "policies": escape(_around(found)),
    }
    if not found.feedback:
        facts["feedback"] = "ignored: the usage headers of this answer are not reliable"
    for name, text in facts.items():
        console.print(f"  {name:<10} {text}")
    if not found.limits:
        console.print("  It spends nothing; only a ban or a pause can hold it.")
        return
    heads = ("LIMIT", "COST", "OF", "WINDOW", "SCOPE", "SOURCE", "READ", "CONFIDENCE")
    table = bare_table(*heads, right=("COST", "OF"), overflow="fold")
    for share in found.limits:
        origin = share.provenance
        span = f"{interval_name(round(share.period * 1e9))} {share.window}" if share.period else share.window
        table.add_row(
            share.name,
            str(share.cost),
            f"{share.capacity - share.headroom} of {share.capacity} {share.unit}"
            if share.headroom
            else f"{share.capacity} {share.unit}",
            span,
            " + ".join(share.scope),
            origin.source,
            str(origin.date or ""),
            _grade(origin.confidence),
        )
    console.print(table)
    witnesses = {
        each.tag: each for origin in (found.cost, *(s.provenance for s in found.limits)) for each in origin.sources
    }
    for tag, each in sorted(witnesses.items()):
        console.print(f"  {tag}: {escape(each.title)}, read {each.read}, {_grade(each.confidence)}")
    for cap in found.caps:
        console.print(escape(f"  {cap.limit}: program {cap.program} may spend {cap.units} of it ({cap.place})"))
    for share in found.limits:
        if share.provenance.note:
            console.print(f"  {share.name}: {escape(share.provenance.note)}")


def _around(found: Explanation) -> str:
    """What the policies may do around the call, where they are switched on."""
    if found.kept:
        words = [f"kept {interval_name(round(found.kept * 1e9))}"]
    elif found.kept is None and found.route_class == "market" and found.route.startswith("GET "):
        words = ["kept as your cache says"]
    else:
        words = ["not kept"]
    if found.merged:
        words.append(f"made with others as {found.merged}")
    words.append("may be repeated" if found.twice else "not repeated where its fate is unknown")
    if found.ask:
        words.append(f"{found.ask} tells")
    return "; ".join(words)


def _origin(origin: Provenance) -> str:
    since = f", since {origin.since}" if origin.since else ""
    note = f". {origin.note}" if origin.note else ""
    return f"{origin.source}, read {origin.date}, {_grade(origin.confidence)}{since}{note}"


def _grade(grade: str) -> str:
    return f"{grade} ({GRADES[grade]})" if grade in GRADES else grade
