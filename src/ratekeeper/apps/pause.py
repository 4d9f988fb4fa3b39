"""``ratekeeper pause`` and ``resume``: a stop that every process obeys from its next decision on, and whom it reached."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from ratekeeper.config.resolution import configure
from ratekeeper.config.schema import store_address
from ratekeeper.errors import RatekeeperError, RuleError, StoreError, StoreUnavailable
from ratekeeper.gate.opening import bare_store
from ratekeeper.gate.override import spoken
from ratekeeper.gate.pausing import Reached, holding, order, owner_seen
from ratekeeper.ledger.limit import SECOND
from ratekeeper.policy.breaker import OPEN
from ratekeeper.policy.policies import Policies
from ratekeeper.stores.blocks import PAUSE, BlockState

if TYPE_CHECKING:
    from ratekeeper.gate.gate import Gate

__all__ = ["pause", "paused", "resume"]

_LONGEST = 7 * 86_400
"""Seconds that stores keep a block with an end at most."""


@click.command("pause")
@click.argument("scope")
@click.option("--seconds", type=float, help="How long; default: until it is resumed.")
@click.option("--reason", default="paused by hand", show_default=True)
@click.option("--unseen", is_flag=True, help="Also pause an address or account that has made no call yet.")
def pause(scope: str, seconds: float | None, reason: str, unseen: bool) -> None:
    """Stop calls of SCOPE in all processes: everything; orders; a priority (low); a provider (binance-usdm); one class of
    its calls (binance-usdm/class:order); one owner (binance-usdm/account:NAME, binance-usdm/ip:default, or ip:default for all
    providers), as `ratekeeper status` names them. Cancels pass, unless their own class is paused.

    The programs of this machine obey at once, whatever a shared server does. Exit code 1: the server was not reached, and
    programs on other machines go on until it answers. Exit code 2: nothing is paused.
    """
    if seconds is not None and not 0 < seconds <= _LONGEST:
        raise RuleError(f"--seconds is more than 0 and at most {_LONGEST:,} (a week), not {seconds:g}")
    with _by_hand("pause") as gate:
        place = gate.scope(scope)
        seen = unseen or owner_seen(gate, place)
        done = order(gate.store, place, None if seconds is None else int(seconds * SECOND), reason)
        # A pause that is there already and ends later stays.
        ends = [state.ends() for state in gate.store.blocks.states() if (state.scope, state.kind) == (place, PAUSE)]
        name, left = spoken(scope), (max(ends, default=0) - time.monotonic_ns()) / SECOND
        where = _reached(gate, done, "paused")
        if left > _LONGEST + 1:
            earlier = " already, and stays so" if seconds else ""
            click.echo(f"{name} is paused{where}{earlier}: ratekeeper resume {name}")
        else:
            click.echo(f"{name} is paused{where} for {left:.0f} s")
        if not seen:
            click.echo(f"Nothing of that kind has made a call yet, so {name} could not be checked.", err=True)
        _end(gate, done, "pause")


@click.command("resume")
@click.argument("scope")
@click.option("--lift-ban", is_flag=True, help="Also lift bans that answers of the provider announced.")
@click.option("--yes", is_flag=True, help="Do not ask before lifting a ban.")
def resume(scope: str, lift_ban: bool, yes: bool) -> None:
    """Take a pause of SCOPE back, or close its breaker; waiting calls go on at once. A ban stays, unless you lift it.

    Exit code 1: a shared server was not reached, and what is paused there stays paused on other machines until it answers.
    """
    from ratekeeper.gate.policies.breaker import close

    scope = scope.removesuffix("/probing")  # as `ratekeeper status` names a breaker that wants a probe
    with _by_hand("resume") as gate:
        place = gate.scope(scope)
        done, closed = order(gate.store, place, None, resumed=True), False
        if not done.store:
            try:
                closed = close(gate.context, place)
                gate.read()  # brings the blocks of all providers
            except StoreError as error:
                done = done._replace(store=str(error))
        where = _reached(gate, done, "resumed")
        left = paused(gate)
        still = f"; still paused: {', '.join(left)}" if left else ""
        name = spoken(scope)
        click.echo(f"{name} {'is open again' if done.changed or closed else 'was not paused'}{where}{still}")
        bans = holding(gate.store.blocks.states(), place, time.monotonic_ns())
        if lift_ban:
            _lift(gate, name, bans, yes)
        elif bans:
            click.echo("\n".join(map(_told_of, bans)), err=True)
            click.echo(
                f"A ban ends by itself. If you know that it is over: ratekeeper resume {name} --lift-ban", err=True
            )
        _end(gate, done, "resume")


def _by_hand(command: str) -> Gate:
    """A gate on the shared store itself, without a fallback: a person wants to know what was reached."""
    from ratekeeper.gate.gate import Gate

    try:
        name = store_address(str(configure().store))
        if name.startswith("memory"):
            raise RuleError(
                f"{name} is known to one program only, and no command reaches it. Set RATEKEEPER_STORE to the store of the "
                "programs that you mean (host:// or redis://HOST)"
            )
        return Gate(bare_store(), name=f"ratekeeper {command}", policies=Policies())
    except RatekeeperError as error:  # also a wrong configuration, or a package that is missing
        raise RuleError(f"nothing is {command}d: {error}") from None


def _reached(gate: Gate, done: Reached, what: str) -> str:
    """Where it holds, for the sentence that tells it.

    Raises:
        StoreUnavailable: nowhere.
    """
    if done.here and done.store:
        raise StoreUnavailable(f"nothing is {what}: {done.here}; {done.store}")
    return " on this machine only" if done.store and gate.store.together else ""


def _end(gate: Gate, done: Reached, what: str) -> None:
    """Say what was not reached; exit code 1 if programs do not know of it."""
    if done.here and gate.store.together:
        click.echo(
            f"{done.here}: this machine could not note it. Programs that start while the server is away do not know of the "
            f"{what}.",
            err=True,
        )
    if not (done.store or gate.store.together) and any(gate.home.glob("secret-*")):
        click.echo(
            "Programs of this machine have also used a shared server, and its other machines are not told: set "
            "RATEKEEPER_STORE to its address and repeat the command to reach them.",
            err=True,
        )
    if not done.store:
        return
    if not gate.store.together:
        click.echo(
            f"{done.store}. The programs of this machine obey all the same: the {what} is noted beside the ledgers.",
            err=True,
        )
        return
    click.echo(
        f"NOT REACHED: {done.store}\nPrograms on other machines do not know of the {what}. It is handed on when the server "
        "answers: by any program that runs here under Ratekeeper, or by the next pause, resume or status.",
        err=True,
    )
    sys.exit(1)


def _told_of(ban: BlockState) -> str:
    end = (
        "until it is lifted" if ban.length is None else f"for {(ban.ends() - time.monotonic_ns()) / SECOND:.0f} s more"
    )
    return f"{spoken(ban.scope)} is shut {end} ({ban.kind}: {ban.reason})"


def _lift(gate: Gate, name: str, bans: list[BlockState], yes: bool) -> None:
    from ratekeeper.apps.exchange import agreed

    if not bans:
        click.echo(f"{name} is not banned")
        return
    agreed(f"{'; '.join(map(_told_of, bans))}. If the provider still refuses you, calls prolong the ban. Lift it?", yes)
    try:
        for ban in bans:
            gate.unblock(ban.scope, ban.kind)
    except StoreError as error:
        raise StoreUnavailable(f"not lifted: {error}") from None
    click.echo(f"lifted: {', '.join(f'{ban.kind} of {spoken(ban.scope)}' for ban in bans)}")


def paused(gate: Gate) -> list[str]:
    """The scopes that are paused now, as people write them; open breakers too, which are marked."""
    mono = time.monotonic_ns()
    marks = {PAUSE: "", OPEN: " (breaker)"}
    states = [state for state in gate.store.blocks.states() if state.kind in marks and state.ends() > mono]
    return [spoken(state.scope) + marks[state.kind] for state in states]
