"""The ``ratekeeper`` command: a table of sub-commands, each loaded only when it is called; and how they print data."""

from __future__ import annotations

import os
import sys
from collections.abc import Container, Iterable, Sequence
from importlib import import_module
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any

import click

from ratekeeper import __version__
from ratekeeper.errors import RatekeeperError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["aligned", "bare_table", "main", "print_json", "screen"]

_COMMANDS = {
    "config": ("ratekeeper.apps.config", "The configuration: check it, show what is in force."),
    "demo": ("ratekeeper.apps.demo", "Three programs on one address, without and with Ratekeeper."),
    "emulate": ("ratekeeper.apps.emulator", "A strict test server that enforces a provider's rules on loopback."),
    "exchange": (
        "ratekeeper.apps.exchange",
        "Positions, orders, cancel and close by hand, also while trading is paused.",
    ),
    "explain": (
        "ratekeeper.apps.explain",
        "What one call would cost, on which limits, and where the numbers come from.",
    ),
    "pause": (
        "ratekeeper.apps.pause:pause",
        "Stop a provider, a kind of call or everything, in all processes at once.",
    ),
    "proxy": ("ratekeeper.apps.proxy", "A base URL for programs in any language: calls go on through the gate."),
    "resume": ("ratekeeper.apps.pause:resume", "Take a pause back."),
    "rules": ("ratekeeper.apps.rules", "The providers' rules: list, show, check, diff."),
    "run": ("ratekeeper.apps.run", "Run an unchanged program, and its Python children, through the gate."),
    "sessions": ("ratekeeper.apps.sessions", "Jobs that programs keep alive: list, recover, stop."),
    "status": ("ratekeeper.apps.state:status", "Every budget, who spends it, bans, and the state of the store."),
    "telegram": ("ratekeeper.apps.telegram", "A bot: stop, status, pause, resume, positions and close from a chat."),
    "top": ("ratekeeper.apps.state:top", "The status, live."),
}


class _Lazy(click.Group):
    """Loads a sub-command's module when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), name or "command")
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the command line; keep it for `invoke`."""
        ctx.meta[__name__] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command. One that was to print JSON prints its error as JSON, too."""
        try:
            return super().invoke(ctx)
        except (RatekeeperError, click.ClickException, click.Abort, ModuleNotFoundError) as error:
            given = ctx.meta[__name__]
            if "--json" in given and given[0] != "run":  # what stands behind `run` is for the program
                told = error.format_message() if isinstance(error, click.ClickException) else str(error)
                print_json({"error": told or "aborted"})
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ratekeeper")
def _ratekeeper() -> None:
    """One gate for all the outbound API traffic of a machine."""


def print_json(data: Any) -> None:
    """Print data (whatever msgspec encodes) as indented JSON."""
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(data), indent=2))


def aligned(rows: Iterable[Sequence[str]]) -> list[str]:
    """Rows as lines whose columns begin at the same place, two blanks apart."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def bare_table(*heads: str, right: Container[str] = (), **columns: Any) -> Table:
    """A table for a terminal, without lines, to be filled row by row.

    Args:
        heads: of the columns.
        right: heads of columns that are set to the right.
        columns: further options of all columns, as rich has them.
    """
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in heads:
        table.add_column(head, justify="right" if head in right else "left", **columns)
    return table


def screen() -> Console:
    """A console for tables: as wide as its terminal, or as ``COLUMNS`` says. Piped, it is as wide as it must be, because what
    is cut off is just what other commands are given."""
    from rich.console import Console

    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without bars and dots must not cost the numbers
    wide = not (sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdecimal())
    return Console(highlight=False, soft_wrap=wide, width=400 if wide else None)


def main(args: list[str] | None = None) -> Any:
    """Entry point; errors of ours end in one line and exit code 2."""
    try:
        return _ratekeeper.main(args, prog_name="ratekeeper")
    except RatekeeperError as error:
        click.echo(f"ratekeeper: {error}", err=True)
        sys.exit(2)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("ratekeeper"):
            raise
        click.echo(f"ratekeeper: this command needs the package {error.name!r}: pip install {error.name}", err=True)
        sys.exit(2)
