"""``ratekeeper status``, ``top``, ``pause`` and ``resume``: what all processes share, as data and as a table, and a stop that
every process obeys from its next decision on. ``demo`` shows the data, too."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from ratekeeper.apps.cli import bare_table, print_json
from ratekeeper.config.resolution import configure
from ratekeeper.config.schema import store_address
from ratekeeper.errors import RuleError
from ratekeeper.gate.override import spoken
from ratekeeper.gate.times import Times
from ratekeeper.gate.waits import Wait, read_waits
from ratekeeper.ledger.limit import SECOND
from ratekeeper.ledger.shares import AGED
from ratekeeper.policy.breaker import OPEN
from ratekeeper.policy.policies import Policies
from ratekeeper.pools.pool import AddressView, Egress, views
from ratekeeper.rules.call import Priority
from ratekeeper.rules.times import real_period
from ratekeeper.stores.base import Store
from ratekeeper.stores.records import LedgerView, Snapshot
from ratekeeper.stores.redis.address import is_address, parse_address

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import RenderableType

    from ratekeeper.gate.gate import Gate

__all__ = ["as_data", "as_table", "pause", "paused", "read_state", "resume", "status", "top"]

_LONGEST = 7 * 86_400
"""Seconds that stores keep a block with an end at most."""


@click.command("status")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
def status(as_json: bool) -> None:
    """Every budget, who spends it, bans, and the state of the store."""
    data = as_data(*read_state())
    if as_json:
        print_json(data)
        return
    from rich.console import Console

    Console().print(as_table(data))


@click.command("top")
@click.option("--interval", default=0.5, show_default=True, help="Seconds between two looks.")
@click.option("--seconds", default=0.0, help="End after so many seconds; 0: until Ctrl-C.")
def top(interval: float, seconds: float) -> None:
    """The status, live. Ctrl-C ends it."""
    from rich.live import Live

    end = time.monotonic() + seconds if seconds else float("inf")
    try:
        with Live(as_table(as_data(*read_state())), refresh_per_second=8, screen=False) as live:
            while time.monotonic() < end:
                time.sleep(min(interval, max(0.0, end - time.monotonic())))
                live.update(as_table(as_data(*read_state())))
    except KeyboardInterrupt:
        pass


@click.command("pause")
@click.argument("scope")
@click.option("--seconds", type=float, help="How long; default: until it is resumed.")
@click.option("--reason", default="paused by hand", show_default=True)
def pause(scope: str, seconds: float | None, reason: str) -> None:
    """Stop calls of SCOPE in all processes: everything; orders; a provider (binance-usdm); one class of its calls
    (binance-usdm/class:order); one owner (binance-usdm/account:NAME, binance-usdm/ip:default, or ip:default for all
    providers), as `ratekeeper status` names them. Cancels pass, unless their own class is paused."""
    from ratekeeper.gate.gate import Gate

    if seconds is not None and not 0 < seconds <= _LONGEST:
        raise RuleError(f"--seconds is more than 0 and at most {_LONGEST:,} (a week), not {seconds:g}")
    with Gate(name="ratekeeper pause", policies=Policies()) as gate:
        place = gate.scope(scope)
        gate.block(place, seconds, reason=reason)
        # A pause that is there already and ends later stays.
        ends = [state.ends() for state in gate.store.blocks.states() if (state.scope, state.kind) == (place, "pause")]
    name, left = spoken(scope), (max(ends, default=0) - time.monotonic_ns()) / SECOND
    if left > _LONGEST + 1:
        earlier = " already, and stays so" if seconds else ""
        click.echo(f"{name} is paused{earlier}: ratekeeper resume {name}")
    else:
        click.echo(f"{name} is paused for {left:.0f} s")


@click.command("resume")
@click.argument("scope")
def resume(scope: str) -> None:
    """Take a pause of SCOPE back, or close its breaker; waiting calls go on at once. A ban stays."""
    from ratekeeper.gate.gate import Gate
    from ratekeeper.gate.policies.breaker import close

    scope = scope.removesuffix("/probing")  # as `ratekeeper status` names a breaker that wants a probe
    with Gate(name="ratekeeper resume", policies=Policies()) as gate:
        place = gate.scope(scope)
        gone = [gate.unblock(place, "pause"), close(gate.context, place)]
        left = paused(gate)
    still = f"; still paused: {', '.join(left)}" if left else ""
    click.echo(f"{spoken(scope)} {'is open again' if any(gone) else 'was not paused'}{still}")


def paused(gate: Gate) -> list[str]:
    """The scopes that are paused now, as people write them; open breakers too, which are marked."""
    mono = time.monotonic_ns()
    marks = {"pause": "", OPEN: " (breaker)"}
    states = [state for state in gate.store.blocks.states() if state.kind in marks and state.ends() > mono]
    return [spoken(state.scope) + marks[state.kind] for state in states]


def read_state(home: Path | None = None) -> tuple[Snapshot, dict[Priority, Wait], list[AddressView]]:
    """Read the host store of `home`, or (None) the shared store in force, without entering it as a member.

    Raises:
        StoreError: it cannot be read.
    """
    store = _store(home)
    found = store.read(Times(store).now)
    egress = Egress(configure().egress, store, lambda *_, **__: None)
    waits = read_waits(store)
    store.close()
    return found, waits, views(egress, found)


def _name() -> str:
    """The address of the store in force, as the user wrote it."""
    return store_address(str(configure().store))


def _store(home: Path | None) -> Store:
    if home is None and is_address(name := _name()):
        from ratekeeper.stores.redis.store import RedisStore

        return RedisStore(name)
    from ratekeeper.stores.host import HostStore

    return HostStore(configure(home=home).home, patience=2.0)


def as_data(found: Snapshot, waits: dict[Priority, Wait], addresses: Iterable[AddressView] = ()) -> dict[str, Any]:
    """The snapshot as JSON types; times in Unix seconds, periods in seconds."""
    mono, wall = time.monotonic_ns(), time.time()
    return {
        "home": str(configure().home),
        "store": str(parse_address(name)) if is_address(name := _name()) else name,
        "degraded": found.degraded,
        "processes": sorted(found.members.values()),
        "permits_held": found.permits,
        "limits": [_ledger(view, found.members) for view in sorted(found.ledgers, key=lambda v: v.key)],
        "blocks": [
            {
                "scope": block.scope,
                "kind": block.kind,
                "reason": block.reason,
                "until": None if block.length is None else round(wall + (block.ends() - mono) / SECOND, 3),
            }
            for block in found.blocks
            if block.ends() > mono
        ],
        "addresses": [_address(view, mono, wall) for view in addresses],
        "waits": {
            priority.name.lower(): {
                "calls": wait.calls,
                "mean_seconds": round(wait.total / max(1, wait.calls) / SECOND, 3),
                "longest_seconds": round(wait.longest / SECOND, 3),
            }
            for priority, wait in waits.items()
        },
        "learned": {
            provider: {
                name: {"capacity": c, "seconds": p / SECOND} for name, (c, p) in limits.items() if name[0] != "~"
            }
            for provider, limits in found.learned.items()
        },
    }


def _address(view: AddressView, mono: int, wall: float) -> dict[str, Any]:
    fullest = view.fullest
    spent = 0 if fullest is None else fullest.used + fullest.inflight
    return {
        "provider": view.provider.partition("@")[0],
        "host": view.provider.partition("@")[2],
        "address": view.name,
        "leaves": view.leaves,
        "scope": view.scope,
        "state": view.state,
        "warnings": view.warnings,
        "until": round(wall + (view.until - mono) / SECOND, 3) if view.until else None,
        "limit": "" if fullest is None else fullest.key.split("/")[1],
        "used": spent,
        "capacity": 0 if fullest is None else fullest.limit.capacity,
        "utilisation": 0.0 if fullest is None else round(spent / fullest.limit.usable, 4),
    }


def _addresses_table(rows: list[dict[str, Any]]) -> RenderableType:
    from rich.text import Text

    table = bare_table("address", "state", "used", "of", "warnings", right=("used", "warnings"), no_wrap=True)
    colours = {"active": "green", "warning": "yellow", "resting": "yellow", "banned": "red"}
    for row in rows:
        end = f" for {row['until'] - time.time():.0f} s more" if row["until"] else ""
        shown = row["scope"] if row["scope"] != row["address"] else row["leaves"]
        table.add_row(
            f"  {row['provider']} {row['address']}" + ("" if shown in ("default", row["address"]) else f" ({shown})"),
            Text(row["state"] + end, style=colours[row["state"]]),
            f"{row['utilisation']:.0%}",
            f"{row['limit']} {row['used']:,} of {row['capacity']:,}" if row["limit"] else "nothing yet",
            str(row["warnings"] or ""),
        )
    return table


def _ledger(view: LedgerView, members: dict[int, str]) -> dict[str, Any]:
    provider, name, scope = (*view.key.split("/", 2), "", "")[:3]
    spent = view.used + view.inflight
    return {
        "provider": provider.partition("@")[0],
        "host": provider.partition("@")[2],
        "limit": name,
        "scope": scope,
        "window": str(view.limit.window),
        "seconds": view.limit.period / SECOND,
        "capacity": view.limit.capacity,
        "headroom": view.limit.headroom,
        "used": view.used,
        "inflight": view.inflight,
        "utilisation": round(spent / view.limit.usable, 4),
        "foreign": view.foreign,
        "foreign_expected": view.expected,
        "spenders": [
            {
                "process": members.get(member, f"gone-{member % 10000:04d}"),
                "priority": Priority(priority % AGED).name.lower(),
                "taken": row[0],
                "taken_before": row[1],
                "waiting": row[3],
            }
            for (member, priority), row in sorted(view.rows.items(), key=lambda item: -item[1][0])
        ],
    }


def as_table(data: dict[str, Any]) -> RenderableType:
    """The state for a terminal."""
    from rich.console import Group
    from rich.text import Text

    table = bare_table("limit", "window", "used", "", right=("window", "used"), no_wrap=True)
    spenders: list[str] = []
    provider = None
    for row in data["limits"]:
        owner = row["provider"] + (f" at {row['host']}" if row["host"] else "")
        if owner != provider:
            provider = owner
            table.add_row(Text(owner, style="bold cyan"))
        share = row["utilisation"]
        colour = "red" if share >= 0.9 else "yellow" if share >= 0.7 else "green"
        who = ", ".join(
            f"{s['process']} {s['priority']} {s['taken']}" + (f" ({s['waiting']} waiting)" if s["waiting"] else "")
            for s in row["spenders"]
            if s["taken"] or s["waiting"]
        )
        if row["foreign"] or row["foreign_expected"]:
            who += f"{', ' if who else ''}[others] {row['foreign']} (expected {row['foreign_expected']})"
        seconds = f"{row['seconds']:g} s" if row["seconds"] else "at once"
        table.add_row(
            f"  {row['limit']}{real_period(row['limit'], round(row['seconds'] * SECOND))} {row['scope']}",
            f"{row['window']} {seconds}",
            f"{row['used'] + row['inflight']:,} of {row['capacity']:,}",
            Text("█" * min(20, round(20 * share)), style=colour),
        )
        if who:
            spenders.append(f"  {row['limit']}: {who}")
    parts: list[RenderableType] = []
    if data["degraded"]:
        parts.append(Text(f"SAFE SHARE: {data['degraded']}", style="bold red"))
    for block in data["blocks"]:
        end = "until resumed" if block["until"] is None else f"for {block['until'] - time.time():.0f} s more"
        parts.append(
            Text(f"{block['kind'].upper()} {spoken(block['scope'])} {end}  {block['reason']}", style="bold red")
        )
    if data["limits"]:
        parts.append(table)
        # One address without a name needs no table of its own: its limits are all above.
        if len(data["addresses"]) > 1 or any(row["state"] != "active" for row in data["addresses"]):
            parts += [Text(), _addresses_table(data["addresses"])]
        if spenders:
            parts.append(Text("\nspent by", style="bold"))
            parts.extend(Text(line) for line in spenders)
            parts.append(Text())
    else:
        place = data["store"] if is_address(data["store"]) else data["home"]
        parts.append(Text(f"Nothing has been spent under {place} yet. Try: ratekeeper run -- python your_bot.py"))
    for priority, wait in data["waits"].items():
        text = f"waited, {priority}: {wait['calls']:,} calls, {wait['mean_seconds']:.1f} s on average, "
        parts.append(Text(f"{text}{wait['longest_seconds']:.1f} s at longest", style="dim"))
    names = ", ".join(data["processes"]) or "none"
    parts.append(Text(f"processes: {names}   permits held: {data['permits_held']}", style="dim"))
    return Group(*parts)
