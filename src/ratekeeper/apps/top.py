"""``ratekeeper top``: the status, live."""

from __future__ import annotations

import time

import click

from ratekeeper.apps.state import as_data, as_table, read_state

__all__ = ["command"]


@click.command("top")
@click.option("--interval", default=0.5, show_default=True, help="Seconds between two looks.")
@click.option("--seconds", default=0.0, help="End after so many seconds; 0: until Ctrl-C.")
def command(interval: float, seconds: float) -> None:
    """The status, live. Ctrl-C ends it."""
    from rich.live import Live

    end = time.monotonic() + seconds if seconds else float("inf")
    try:
        with Live(as_table(as_data(*read_state())), refresh_per_second=8, screen=False) as live:
            while time.monotonic() < end:
                time.sleep(min(interval, max(0.0, end - time.monotonic())))
                live.update(as_table(as_data(*read_state())))
    except KeyboardInterrupt:
        pass
