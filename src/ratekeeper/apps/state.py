"""``ratekeeper status``, ``top``, ``pause`` and ``resume``: what all processes share, and a stop that every process obeys
from its next decision on. ``demo`` shows the data, too."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from ratekeeper.apps.cli import print_json, screen
from ratekeeper.apps.view import as_data, as_table
from ratekeeper.config.resolution import configure
from ratekeeper.config.schema import store_address
from ratekeeper.errors import RuleError, StoreError
from ratekeeper.gate.override import spoken
from ratekeeper.gate.times import Times
from ratekeeper.gate.waits import read_waits
from ratekeeper.ledger.limit import SECOND
from ratekeeper.policy.breaker import OPEN
from ratekeeper.policy.policies import Policies
from ratekeeper.pools.pool import Egress, views
from ratekeeper.stores.base import SharedStore
from ratekeeper.stores.members import WakeSockets
from ratekeeper.stores.records import Snapshot
from ratekeeper.stores.redis.address import is_address

if TYPE_CHECKING:
    from pathlib import Path

    from ratekeeper.gate.gate import Gate

__all__ = ["pause", "paused", "read_state", "resume", "status", "top"]

_LONGEST = 7 * 86_400
"""Seconds that stores keep a block with an end at most."""


@click.command("status")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
def status(as_json: bool) -> None:
    """Every budget, who spends it, bans, and the state of the store. Exit code 1 if the store cannot be read."""
    data = read_state()
    if as_json:
        print_json(data)
    else:
        screen().print(as_table(data))
    if data["degraded"]:
        raise SystemExit(1)


@click.command("top")
@click.option("--interval", default=0.5, show_default=True, help="Seconds between two looks.")
@click.option("--seconds", default=0.0, help="End after so many seconds; 0: until Ctrl-C.")
def top(interval: float, seconds: float) -> None:
    """The status, live. Ctrl-C ends it."""
    from rich.live import Live

    end = time.monotonic() + seconds if seconds else float("inf")
    data = read_state()
    try:
        with Live(as_table(data), console=screen(), refresh_per_second=8, screen=False) as live:
            while time.monotonic() < end:
                time.sleep(min(interval, max(0.0, end - time.monotonic())))
                data = read_state()
                live.update(as_table(data))
    except KeyboardInterrupt:
        pass
    if not sys.stdout.isatty():
        click.echo()  # rich leaves the last line open there
    if data["degraded"]:
        raise SystemExit(1)


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


def read_state(home: Path | None = None) -> dict[str, Any]:
    """Return the state of the host store of `home`, or (None) of the shared store in force, as JSON types. Reads it without
    entering it as a member. `degraded` says why it cannot be read; then only what this machine knows is there.

    Raises:
        RuleError: the configuration is wrong.
        StoreError: there is no such kind of store.
    """
    configuration = configure(home=home)
    if home is None and not is_address(str(configuration.store)) and _absent(configuration.home):
        return as_data(Snapshot(), {})  # and no folder is made
    store = _store(home)
    try:
        found = store.read(Times(store).now)
        egress = Egress(configuration.egress, store, lambda *_, **__: None)
        waits = read_waits(store)
        return as_data(found, waits, views(egress, found))
    except (StoreError, OSError) as error:
        return _known_here(store, configuration.home, error)
    finally:
        try:
            store.close()
        except (StoreError, OSError):
            pass


def _absent(folder: Path) -> bool:
    try:
        folder.stat()
    except FileNotFoundError:
        return True
    except OSError:
        pass  # the store tells what is wrong with it
    return False


def _known_here(store: SharedStore, home: Path, error: Exception) -> dict[str, Any]:
    """What this machine knows by itself: the blocks on its disk, how many processes live."""
    try:
        store.recall()
    except (StoreError, OSError):
        pass
    sockets = WakeSockets(home / "wake")
    living = len(sockets.living())
    sockets.close()
    return as_data(Snapshot(blocks=store.blocks.states(), degraded=str(error)), {}, here=living)


def _store(home: Path | None) -> SharedStore:
    if home is None and is_address(name := store_address(str(configure().store))):
        from ratekeeper.stores.redis.store import RedisStore

        return RedisStore(name)
    from ratekeeper.stores.host import HostStore

    return HostStore(configure(home=home).home, patience=2.0)
