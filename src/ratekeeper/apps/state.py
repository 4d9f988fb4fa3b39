"""``ratekeeper status`` and ``top``: what all processes share, as data and as a table. ``demo`` shows the data, too."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from ratekeeper.apps.cli import print_json, screen
from ratekeeper.apps.view import as_data, as_table
from ratekeeper.config.resolution import configure
from ratekeeper.errors import StoreError
from ratekeeper.gate.opening import bare_store
from ratekeeper.gate.times import Times
from ratekeeper.gate.waits import read_waits
from ratekeeper.pools.pool import Egress, views
from ratekeeper.stores.base import SharedStore
from ratekeeper.stores.members import WakeSockets
from ratekeeper.stores.records import Snapshot
from ratekeeper.stores.redis.address import is_address

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["read_state", "status", "top"]


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
    store = bare_store(home)
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
    """What this machine knows by itself: the bans on its disk, the pauses ordered here, how many processes live."""
    try:
        store.recall()
        store.heed()
    except (StoreError, OSError):
        pass
    sockets = WakeSockets(home / "wake")
    living = len(sockets.living())
    sockets.close()
    return as_data(Snapshot(blocks=store.blocks.states(), degraded=str(error)), {}, here=living)
