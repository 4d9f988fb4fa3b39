"""``ratekeeper sessions``: what programs keep alive, and how it fares; recover or stop one of them by hand."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import click
import msgspec

from ratekeeper.apps.cli import print_json, screen
from ratekeeper.apps.layout import columns, paragraph
from ratekeeper.config.resolution import configure
from ratekeeper.sessions.control import ask, listing
from ratekeeper.sessions.history import Record
from ratekeeper.sessions.restarts import remaining, summary

if TYPE_CHECKING:
    from rich.text import Text

__all__ = ["as_row", "command"]


@click.group("sessions")
def command() -> None:
    """Sessions that programs keep alive with a `Supervisor`."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="As JSON, with the whole history.")
@click.option("--history", default=3, show_default=True, type=click.IntRange(min=0), help="Latest recoveries to show.")
def show(as_json: bool, history: int) -> None:
    """All sessions: state, attempts, the last failure, how often and how soon recoveries succeeded, the latest of them."""
    rows = [as_row(record, alive) for record, alive in listing(configure().home)]
    if as_json:
        print_json(rows)
        return
    if not rows:
        click.echo("no sessions yet: docs/how-to/keep-sessions-alive.md")
        return
    console = screen()
    console.print(*_lines(rows, console.width, history), sep="\n")


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
        "history": [msgspec.structs.asdict(each) for each in record.history],
        "success_rate": None if rate is None else round(rate, 4),
        "mean_time_to_recover": None if mean is None else round(mean, 3),
    }


def _lines(rows: list[dict[str, Any]], width: int, history: int) -> Iterator[Text]:
    from rich.text import Text

    colours = {"healthy": "green", "stopped": "dim", "failed": "bold red"}
    heads = ("pid", "state", "for", "attempts", "recovered", "in")
    cells = [
        (
            str(row["pid"]) if row["running"] else "",
            row["state"] if row["running"] else f"no program ({row['state']})",
            _span(time.time() - row["since"]),
            str(row["attempts"] or ""),
            "" if row["success_rate"] is None else f"{row['success_rate']:.0%} of {row['recoveries']}",
            "" if row["mean_time_to_recover"] is None else _span(row["mean_time_to_recover"]),
        )
        for row in rows
    ]
    head, *lines = columns(
        [("", "session", heads), *(("", row["id"], each) for row, each in zip(rows, cells, strict=True))], width
    )
    yield Text("\n".join(head), style="bold")
    for row, (_, state, *_), told in zip(rows, cells, lines, strict=True):
        drawn = Text("\n".join(told))
        drawn.highlight_words([state], style=colours.get(row["state"], "yellow") if row["running"] else "dim")
        yield drawn
        if row["failure"]:
            yield paragraph(f"last failure: {row['failure']}", width)
        for each in row["history"][len(row["history"]) - min(history, len(row["history"])) :]:
            yield paragraph(_recovery(each), width)


def _recovery(each: dict[str, Any]) -> str:
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each["at"]))
    end = "healthy" if each["ok"] else "failed again"
    return (
        f"{at} {each['reason']}: start {each['attempt']} after a wait of {_span(each['delay'])}, {end}, "
        f"{_span(each['took'])} after the first failure"
    )


def _span(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
