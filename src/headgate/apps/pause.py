"""``headgate pause`` and ``headgate resume``: a stop that every process obeys from its next decision on."""

from __future__ import annotations

import click

from headgate.gate.gate import Gate

__all__ = ["command", "resume"]


@click.command("pause")
@click.argument("scope")
@click.option("--seconds", type=float, help="How long; default: until it is resumed.")
@click.option("--reason", default="paused by hand", show_default=True)
def command(scope: str, seconds: float | None, reason: str) -> None:
    """Stop calls of SCOPE in all processes: a provider (binance-usdm), one class of its calls (binance-usdm/class:order)
    or one owner (binance-usdm/ip:default), as `headgate status` names them."""
    with Gate(name="headgate pause") as gate:
        gate.provider(scope.partition("/")[0])
        gate.block(gate.scope(scope), seconds, reason=reason)
    click.echo(f"{scope} is paused{f' for {seconds:g} s' if seconds else ': headgate resume ' + scope}")


@click.command("resume")
@click.argument("scope")
def resume(scope: str) -> None:
    """Take a pause of SCOPE back; waiting calls go on at once."""
    with Gate(name="headgate resume") as gate:
        gone = gate.unblock(gate.scope(scope), "pause")
    click.echo(f"{scope} is open again" if gone else f"{scope} was not paused")
