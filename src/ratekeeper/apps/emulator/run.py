"""Start the emulator, say where it is, serve until told to stop, and sum up."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web

from ratekeeper.rules.book import Rulebook
from ratekeeper.rules.files import read_head

from .control import share_used, stats
from .server import Emulation

if TYPE_CHECKING:
    from collections.abc import Callable

    from ratekeeper.rules.provider import Provider

    from .options import Options

__all__ = ["load_provider", "serve", "summary"]


async def serve(options: Options, say: Callable[[str], None], *, tied: bool = False) -> None:
    """Emulate until SIGINT or SIGTERM.

    Args:
        options: what was asked for.
        say: prints one line.
        tied: also stop when standard input is closed, so that no emulator outlives the program that started it.
    """
    provider = load_provider(options.provider)
    emulation = Emulation(options, provider)
    runner = web.AppRunner(emulation.application(), access_log=None, handle_signals=False, shutdown_timeout=0.2)
    await runner.setup()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    if tied:
        loop.add_reader(sys.stdin.fileno(), lambda: None if os.read(sys.stdin.fileno(), 1024) else stop.set())
    try:
        site = web.TCPSite(runner, options.host, options.port, backlog=1024)
        await site.start()
        host, port = runner.addresses[0][:2]
        place = f"{host}:{port}"
        say(f"Emulating {provider.name} on http://{place} (RATEKEEPER_HOSTS={place}={provider.name})")
        flushing = asyncio.create_task(_flush(emulation))
        await stop.wait()
        flushing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await flushing
    finally:
        if tied:
            loop.remove_reader(sys.stdin.fileno())
        await runner.cleanup()
        emulation.journal.close()
    say(summary(emulation))


def load_provider(name: str) -> Provider:
    """The rules of a bundled provider, or of the file at the path `name`.

    Raises:
        RuleError: there are none, or the file is wrong.
    """
    if name.endswith(".toml"):
        path = Path(name)
        return Rulebook.load(extra=[path]).provider(read_head(path).name)
    return Rulebook.load().provider(name)


async def _flush(emulation: Emulation) -> None:
    while True:
        await asyncio.sleep(0.5)
        emulation.journal.flush()


def summary(emulation: Emulation) -> str:
    """What happened, in one line."""
    totals, share = stats(emulation)["totals"], share_used(emulation)
    main = emulation.limits.main
    used = "no complete window" if share is None else f"{share:.1%} of {main.name} used in complete windows"
    return (
        f"{totals['arrivals']} requests arrived: {totals['throttled']} answered 429, {totals['banned']} answered 418, "
        f"{totals['bans']} bans, {totals['errors']} errors, {totals['lost']} lost, {totals['hung_up']} hung up; {used}."
    )
