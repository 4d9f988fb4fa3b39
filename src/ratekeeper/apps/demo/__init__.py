"""``ratekeeper demo``: three programs on one address, without Ratekeeper and with it."""

from __future__ import annotations

import signal
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

import click

from ratekeeper.apps.cli import print_json

if TYPE_CHECKING:
    from ratekeeper.apps.demo.stage import Half, Plan

__all__ = ["command"]

WINDOW, MINUTE = 10, 60
"""Seconds of a window; of a real one."""
AROUND = 12
"""Seconds it takes beside the two halves, at most: the start, and the wait for a window's edge."""


@click.command("demo")
@click.option(
    "--seconds", type=click.IntRange(30), help="About how long it takes, both halves together.  [default: 72]"
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON, and nothing else.")
@click.option("--real", is_flag=True, help="Real minutes instead of 10-second windows; takes five minutes.")
@click.option("--svg", type=click.Path(dir_okay=False), hidden=True, help="Save the closing view as a picture.")
def command(seconds: int | None, as_json: bool, real: bool, svg: str | None) -> None:
    """Three programs that know nothing of each other share one IP address: ccxt, requests and httpx.

    First they run alone, and the exchange bans the address. Then the same programs run under `ratekeeper run`. The
    exchange is an emulator on this machine; nothing leaves it, and your own Ratekeeper state is not touched. Exit status 1
    if anything was refused with Ratekeeper.
    """
    missing = [name for name in ("aiohttp", "ccxt", "httpx", "requests") if find_spec(name) is None]
    if missing:
        raise click.ClickException(
            f"the demo needs {', '.join(missing)}: pip install '.[demo]' in a clone of Ratekeeper"
        )
    from ratekeeper.apps.demo.stage import Plan
    from ratekeeper.apps.demo.stage import as_json as figures

    window = MINUTE if real else WINDOW
    windows = 2 if real else 3
    if seconds is not None:
        windows = max(1, (seconds - AROUND) // (2 * window))
    plan = Plan(window, windows, workers=2 if real else 4, real=real)
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        bare, governed = _run(plan, quiet=as_json)
    finally:
        signal.signal(signal.SIGTERM, before)
    if as_json:
        print_json(figures(plan, bare, governed))
    else:
        from rich.console import Console

        from ratekeeper.apps.demo.view import closing

        Console().print(closing(plan, bare, governed))
    if svg:
        _save(svg, plan, bare, governed)
    if governed.throttled or governed.banned:
        sys.exit(1)


def _run(plan: Plan, *, quiet: bool) -> tuple[Half, Half]:
    """Run both halves and show them: live on a terminal, else line by line."""
    from rich.console import Console
    from rich.live import Live

    from ratekeeper.apps.demo.stage import perform
    from ratekeeper.apps.demo.view import live, plain_line

    if quiet:
        return perform(plan, lambda bare, governed, wait: None)
    console = Console()
    if console.is_terminal:
        with Live(console=console, refresh_per_second=8, transient=True) as screen:
            return perform(plan, lambda bare, governed, wait: screen.update(live(plan, bare, governed, wait)))
    told = -1.0

    def tell(bare: Half, governed: Half, wait: float) -> None:
        nonlocal told
        half = governed if governed.seconds else bare
        at = (plan.seconds if half.governed else 0.0) + half.seconds
        if half.seconds and at - told >= plan.window / 4:
            told = at
            click.echo(plain_line(plan, half))

    click.echo(
        f"Three programs, one address, one budget: {plan.seconds} s without Ratekeeper, then {plan.seconds} s with it."
    )
    return perform(plan, tell)


def _save(name: str, plan: Plan, bare: Half, governed: Half) -> None:
    """The closing view as a picture that needs nothing from elsewhere."""
    import io
    import re
    from pathlib import Path

    from rich.console import Console

    from ratekeeper.apps.demo.view import WIDTH, closing

    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(closing(plan, bare, governed))
    picture = console.export_svg(title="ratekeeper demo")
    Path(name).write_text(re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL), encoding="utf-8")
