"""``headgate pause`` and ``headgate resume``: a stop that every process obeys from its next decision on."""

from __future__ import annotations

import time

import click

from headgate.gate.emergency import spoken
from headgate.gate.gate import Gate
from headgate.policy.policies import Policies

__all__ = ["command", "paused", "resume"]


@click.command("pause")
@click.argument("scope")
@click.option("--seconds", type=float, help="How long; default: until it is resumed.")
@click.option("--reason", default="paused by hand", show_default=True)
def command(scope: str, seconds: float | None, reason: str) -> None:
    """Stop calls of SCOPE in all processes: everything; orders; a provider (binance-usdm); one class of its calls
    (binance-usdm/class:order); one owner (binance-usdm/account:NAME, binance-usdm/ip:default, or ip:default for all
    providers), as `headgate status` names them. Cancels pass, unless their own class is paused."""
    with Gate(name="headgate pause", policies=Policies()) as gate:
        gate.block(gate.scope(scope), seconds, reason=reason)
    name = spoken(scope)
    click.echo(f"{name} is paused{f' for {seconds:g} s' if seconds else ': headgate resume ' + name}")


@click.command("resume")
@click.argument("scope")
def resume(scope: str) -> None:
    """Take a pause of SCOPE back; waiting calls go on at once."""
    with Gate(name="headgate resume", policies=Policies()) as gate:
        gone = gate.unblock(gate.scope(scope), "pause")
        left = paused(gate)
    still = f"; still paused: {', '.join(left)}" if left else ""
    click.echo(f"{spoken(scope)} {'is open again' if gone else 'was not paused'}{still}")


def paused(gate: Gate) -> list[str]:
    """The scopes that are paused now, as people write them."""
    mono = time.monotonic_ns()
    return [spoken(s.scope) for s in gate.store.blocks.states() if s.kind == "pause" and s.ends() > mono]
