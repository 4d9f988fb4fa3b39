"""``ratekeeper sessions``: what programs keep alive, and how it fares; recover or stop one of them by hand."""

from __future__ import annotations

import sys
import time
from typing import Any, Literal

import click

from ratekeeper.apps.cli import bare_table, print_json
from ratekeeper.config.resolution import configure
from ratekeeper.sessions.control import ask, listing
from ratekeeper.sessions.history import Record
from ratekeeper.sessions.restarts import remaining, summary

__all__ = ["as_row", "command"]


@click.group("sessions")
def command() -> None:
    """Sessions that programs keep alive with a `Supervisor`."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def show(as_json: bool) -> None:
    """All sessions: state, attempts, the last failure, how often and how soon recoveries succeeded."""
    rows = [as_row(record, alive) for record, alive in listing(configure().home)]
    if as_json:
        print_json(rows)
        return
    if not rows:
        click.echo("no sessions yet: docs/how-to/keep-sessions-alive.md")
        return
    from rich.console import Console

    # Piped, it is as wide as it must be: what is cut off is just what other commands are given.
    Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 400).print(_table(rows))


@command.command("recover")
@click.argument("session")
def recover(session: str) -> None:
    """Start SESSION (its name or id) again at once, also while it cools down, has stopped or has failed."""
    _ask(session, "recover")


@command.command("stop")
@click.argument("session")
def stop(session: str) -> None:
    """Stop SESSION (its name or id) cleanly; its program and the others go on."""
    _ask(session, "stop")


def _ask(session: str, do: Literal["recover", "stop"]) -> None:
    record = ask(configure().home, session, do)
    if record is None:
        raise click.ClickException("its program lives but has not done it in 30 s; it will as soon as it can")
    click.echo(f"{record.id} is {record.state}")


def as_row(record: Record, alive: bool) -> dict[str, Any]:
    """A session as JSON types; instants in Unix seconds, spans in seconds."""
    rate, mean = summary(record.history)
    return {
        "id": record.id,
        "program": record.id.rpartition("@")[2],
        "pid": record.pid,
        "running": alive,
        "state": record.state,
        "since": round(record.since, 3),
        "attempts": record.progress.attempts,
        "cooldowns": record.progress.cooldowns,
        "next_in": round(remaining(record.progress, time.time()), 1),
        "failure": record.why,
        "recoveries": len(record.history),
        "success_rate": None if rate is None else round(rate, 4),
        "mean_time_to_recover": None if mean is None else round(mean, 3),
    }


def _table(rows: list[dict[str, Any]]) -> Any:
    from rich.text import Text

    colours = {"healthy": "green", "stopped": "dim", "failed": "bold red"}
    table = bare_table("session", "pid", "state", "for", "attempts", "recovered", "in", "last failure")
    for row in rows:
        state = row["state"] if row["running"] else f"no program ({row['state']})"
        table.add_row(
            Text(row["id"]),
            str(row["pid"]) if row["running"] else "",
            Text(state, style=colours.get(row["state"], "yellow") if row["running"] else "dim"),
            _span(time.time() - row["since"]),
            str(row["attempts"] or ""),
            "" if row["success_rate"] is None else f"{row['success_rate']:.0%} of {row['recoveries']}",
            "" if row["mean_time_to_recover"] is None else _span(row["mean_time_to_recover"]),
            Text(row["failure"]),
        )
    return table


def _span(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
