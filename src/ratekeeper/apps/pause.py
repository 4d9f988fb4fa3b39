"""``ratekeeper pause`` and ``ratekeeper resume``: a stop that every process obeys from its next decision on."""

from __future__ import annotations

import time

import click

from ratekeeper.errors import RuleError
from ratekeeper.gate.gate import Gate
from ratekeeper.gate.override import spoken
from ratekeeper.gate.policies.breaker import close
from ratekeeper.ledger.limit import SECOND
from ratekeeper.policy.breaker import OPEN
from ratekeeper.policy.policies import Policies

__all__ = ["command", "paused", "resume"]

_LONGEST = 7 * 86_400
"""Seconds that stores keep a block with an end at most."""


@click.command("pause")
@click.argument("scope")
@click.option("--seconds", type=float, help="How long; default: until it is resumed.")
@click.option("--reason", default="paused by hand", show_default=True)
def command(scope: str, seconds: float | None, reason: str) -> None:
    """Stop calls of SCOPE in all processes: everything; orders; a provider (binance-usdm); one class of its calls
    (binance-usdm/class:order); one owner (binance-usdm/account:NAME, binance-usdm/ip:default, or ip:default for all
    providers), as `ratekeeper status` names them. Cancels pass, unless their own class is paused."""
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
