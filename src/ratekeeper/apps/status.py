"""``ratekeeper status``: every budget of this machine at a glance."""

from __future__ import annotations

import json

import click

from ratekeeper.apps.state import as_data, as_table, read_state

__all__ = ["command"]


@click.command("status")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
def command(as_json: bool) -> None:
    """Every budget, who spends it, bans, and the state of the store."""
    data = as_data(*read_state())
    if as_json:
        click.echo(json.dumps(data, indent=2))
        return
    from rich.console import Console

    Console().print(as_table(data))
