"""``ratekeeper run -- COMMAND``: governs an unchanged program and all its Python children."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import click

import ratekeeper
from ratekeeper.config.resolution import UNGOVERNED_ON_ERROR, configure
from ratekeeper.config.rulebook import rulebook
from ratekeeper.gate.events import Events
from ratekeeper.gate.opening import opened
from ratekeeper.rules.call import Priority

__all__ = ["command", "environment"]


def environment(base: dict[str, str]) -> dict[str, str]:
    """The environment in which every Python process is governed.

    Args:
        base: the environment to add to.
    """
    package = Path(ratekeeper.__file__).parent
    startup = str(package / "adapters" / "startup")
    rest = [place for place in base.get("PYTHONPATH", "").split(os.pathsep) if place and place != startup]
    # Another interpreter of the same kind may not have Ratekeeper: it is told where ours is (the start-up file reads it).
    places = dict.fromkeys([str(package.parent), *map(_folder, ("msgspec", "lmdb"))])
    return {
        **base,
        "PYTHONPATH": os.pathsep.join([startup, *rest]),
        "RATEKEEPER_RUN_FROM": os.pathsep.join([str(sys.implementation.cache_tag), *places]),
    }


def _folder(package: str) -> str:
    """Where a package of ours is installed."""
    spec = find_spec(package)
    assert spec is not None
    return str(Path(str(spec.origin)).parent.parent)


@click.command(
    "run",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    short_help="Run a program, unchanged, under the gate.",
)
@click.option("--config", type=click.Path(exists=True, dir_okay=False, resolve_path=True), help="Configuration file.")
@click.option(
    "--priority",
    type=click.Choice([item.name.lower() for item in Priority]),
    help="Class of this program's calls, unless a call says otherwise.",
)
@click.option("--weight", type=click.IntRange(min=1), help="This program's share among equals (others have 1).")
@click.option(
    "--name", help="This program's name in lists and in [programs.NAME] of the configuration ($RATEKEEPER_NAME)."
)
@click.option("--home", type=click.Path(file_okay=False, resolve_path=True), help="State folder ($RATEKEEPER_HOME).")
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED, metavar="COMMAND [ARGS]...")
def command(
    config: str | None,
    priority: str | None,
    weight: int | None,
    name: str | None,
    home: str | None,
    argv: tuple[str, ...],
) -> None:
    """Run COMMAND with every HTTP call of it, and of its Python children, governed.

    Nothing in the program changes. httpx, httpx2, requests, urllib3, aiohttp, ccxt and the SDKs of Binance, Bybit
    and OKX are covered. The command takes this process's place: signals, terminal and exit code are its own.
    """
    chosen = {
        "RATEKEEPER_CONFIG": config,
        "RATEKEEPER_PRIORITY": priority,
        "RATEKEEPER_WEIGHT": weight and str(weight),
        "RATEKEEPER_NAME": name,
        "RATEKEEPER_HOME": home,
    }
    os.environ.update({variable: value for variable, value in chosen.items() if value})
    if os.environ.get("RATEKEEPER_CONFIG"):  # a child that changes its folder must find it too
        os.environ["RATEKEEPER_CONFIG"] = str(Path(os.environ["RATEKEEPER_CONFIG"]).expanduser().resolve())
    said = configure()
    rulebook(said, derived=True)
    if said.ungoverned_on_error:
        os.environ[UNGOVERNED_ON_ERROR] = "1"  # also where no configuration can be read
    # An error that every child would meet with its gate is shown once, before the program starts.
    opened(said.store, said.home, Events().say)[0].close()
    env = environment(dict(os.environ))
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execvpe(argv[0], list(argv), env)  # noqa: S606 - running the user's own command is what this is for
    except OSError as error:
        click.echo(f"ratekeeper run: {argv[0]}: {error.strerror}", err=True)
        raise SystemExit(127 if isinstance(error, FileNotFoundError) else 126) from None
