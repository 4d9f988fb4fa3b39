"""The ``headgate`` command: a table of sub-commands, each loaded only when it is called."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import click

from headgate import __version__
from headgate.errors import HeadgateError

__all__ = ["main"]

_COMMANDS = {
    "config": ("headgate.apps.config", "The configuration: check it, show what is in force."),
    "demo": ("headgate.apps.demo", "Three programs on one address, without and with Headgate."),
    "emulate": ("headgate.apps.emulate", "A strict test server that enforces a provider's rules on loopback."),
    "exchange": (
        "headgate.apps.exchange",
        "Positions, orders, cancel and close by hand, also while trading is paused.",
    ),
    "explain": ("headgate.apps.explain", "What one call would cost, on which limits, and where the numbers come from."),
    "pause": ("headgate.apps.pause", "Stop a provider, a kind of call or everything, in all processes at once."),
    "proxy": ("headgate.apps.proxy", "A base URL for programs in any language: calls go on through the gate."),
    "resume": ("headgate.apps.resume", "Take a pause back."),
    "rules": ("headgate.apps.rules", "The providers' rules: list, show, check, diff."),
    "run": ("headgate.apps.run", "Run an unchanged program, and its Python children, through the gate."),
    "sessions": ("headgate.apps.sessions", "Jobs that programs keep alive: list, recover, stop."),
    "status": ("headgate.apps.status", "Every budget, who spends it, bans, and the state of the store."),
    "telegram": ("headgate.apps.telegram", "A bot: status, pause, resume, positions and close from a chat."),
    "top": ("headgate.apps.top", "The status, live."),
}


class _Lazy(click.Group):
    """Loads a sub-command's module when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = import_module(_COMMANDS[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="headgate")
def _headgate() -> None:
    """One gate for all the outbound API traffic of a machine."""


def main(args: list[str] | None = None) -> Any:
    """Entry point; errors of ours end in one line and exit code 2."""
    try:
        return _headgate.main(args, prog_name="headgate")
    except HeadgateError as error:
        click.echo(f"headgate: {error}", err=True)
        sys.exit(2)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("headgate"):
            raise
        click.echo(f"headgate: this command needs the package {error.name!r}: pip install {error.name}", err=True)
        sys.exit(2)
