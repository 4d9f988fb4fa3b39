"""Start the proxy, say where it is, serve until told to stop, finish what runs."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiohttp import web

from ratekeeper.apps.proxy.clients import LONGEST_LINE, open_session
from ratekeeper.apps.proxy.server import Proxy
from ratekeeper.apps.proxy.upstreams import Upstream, Upstreams

if TYPE_CHECKING:
    from collections.abc import Callable

    from ratekeeper import Gate

__all__ = ["Options", "listen", "serve"]

_FINISH = 10.0
"""Seconds that calls which were sent have to end when the proxy stops."""


@dataclass(frozen=True)
class Options:
    """What was asked for.

    Attributes:
        host, port: where to listen; port 0 takes a free one.
        token: what clients must show; ``""``: nothing.
        upstreams: what to serve, as `Upstreams` takes it.
        silence: seconds without a byte from an upstream after which a call fails.
    """

    host: str = "127.0.0.1"
    port: int = 9200
    token: str = ""
    upstreams: Mapping[str, Upstream | None] = field(default_factory=dict)
    silence: float = 300.0


async def serve(gate: Gate, options: Options, say: Callable[[str], object]) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        gate: the gate that is asked; it is left open.
        options: what was asked for.
        say: prints one line.

    Raises:
        OSError: the address cannot be listened on.
        UnknownProvider: an upstream has neither rules nor a URL.
    """
    upstreams = Upstreams(gate.book, options.upstreams)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with open_session(options.silence) as session:
        proxy = Proxy(gate, upstreams, session, options.token)
        runner = await listen(proxy, options.host, options.port)
        try:
            place = _place(*runner.addresses[0][:2])
            guarded = "with a token" if options.token else "for this machine only"
            say(f"Proxying on http://{place} ({guarded}): {', '.join(sorted(upstreams.named))}")
            await stop.wait()
            proxy.stop()
        finally:
            await runner.cleanup()


async def listen(proxy: Proxy, host: str, port: int) -> web.ServerRunner:
    """Take connections for a proxy; `cleanup` of what is returned ends that.

    Raises:
        OSError: the address cannot be listened on.
    """
    # A request line that is no HTTP would be quoted in the server's log, with all that its query holds.
    silent = logging.Logger("ratekeeper.proxy", logging.CRITICAL + 1)  # noqa: LOG001 - belongs to this server alone
    # When a client leaves, its call leaves the queue; a call that was sent stays charged.
    server = web.Server(
        proxy.handle, handler_cancellation=True, auto_decompress=False, access_log=None, logger=silent,
        max_line_size=LONGEST_LINE, max_field_size=LONGEST_LINE,
    )  # fmt: skip
    runner = web.ServerRunner(server, handle_signals=False, shutdown_timeout=_FINISH)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, backlog=1024).start()
    except BaseException:
        await runner.cleanup()
        raise
    return runner


def _place(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
