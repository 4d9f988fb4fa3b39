"""The proxy's server: it checks who calls, finds the upstream of a call, and finishes running calls before it stops."""

from __future__ import annotations

import asyncio
import gc
import hmac
import logging
import math
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiohttp import web
from multidict import istr

from ratekeeper import __version__
from ratekeeper.adapters._governor import Governor
from ratekeeper.apps.proxy.forward import Forward, Target
from ratekeeper.apps.proxy.guard import Guard, crooked
from ratekeeper.apps.proxy.refusal import Refusals, failure
from ratekeeper.apps.proxy.session import LONGEST_LINE, open_session
from ratekeeper.apps.proxy.upstreams import Upstream, Upstreams
from ratekeeper.apps.proxy.websocket import Relays, wants_websocket
from ratekeeper.apps.proxy.wire import LEASES, Leases
from ratekeeper.errors import Blocked, RatekeeperError, Rejected
from ratekeeper.rules.call import Priority

if TYPE_CHECKING:
    from collections.abc import Callable

    import aiohttp

    from ratekeeper import Gate

__all__ = ["Options", "Proxy", "listen", "serve"]

log = logging.getLogger("ratekeeper")

_TOKEN, _PRIORITY, _TIMEOUT = (istr(f"X-Ratekeeper-{word}") for word in ("Token", "Priority", "Timeout"))
_FINISH = 10.0
"""Seconds that calls which were sent have to end when the proxy stops."""
_YOUNG = 10_000
"""Objects that are made, less those that are freed, between two collections of garbage."""


@dataclass(frozen=True)
class Options:
    """Where to listen, and what to serve.

    Attributes:
        host, port: where to listen; port 0 takes a free one.
        token: what clients must show; ``""``: nothing.
        upstreams: what to serve, as `Upstreams` takes it.
        hosts, origins: as for `Guard`.
        silence: seconds without a byte from an upstream after which a call fails.
    """

    host: str = "127.0.0.1"
    port: int = 9200
    token: str = ""
    upstreams: Mapping[str, Upstream | None] = field(default_factory=dict)
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    silence: float = 300.0


class Proxy:
    """The handler of every request.

    Args:
        gate: the gate that is asked.
        upstreams: where calls may go.
        session: what to send with.
        token: what clients must show; ``""``: nothing.
        guard: who may come in; None: who calls the proxy by a name of the loopback.
    """

    def __init__(
        self,
        gate: Gate,
        upstreams: Upstreams,
        session: aiohttp.ClientSession,
        token: str = "",
        guard: Guard | None = None,
    ) -> None:
        self._gate = gate
        self._upstreams = upstreams
        self._token = token.encode()
        self._guard = guard or Guard(token=token)
        self._governor = Governor(gate)
        self._forward = Forward(session)
        self._refusals = Refusals(gate)
        self._stopping = False
        self.relays = Relays(session)

    def stop(self) -> None:
        """Refuse what still waits, and end websockets. What was sent goes on."""
        self._stopping = True
        self._gate.room.close()
        self.relays.stop()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        try:
            found = self._addressed(request)
            if isinstance(found, web.Response):
                return found
            target, governor = found
            upgrade = wants_websocket(request)
            try:
                return await (self.relays if upgrade else self._forward).exchange(target, governor)
            except Blocked as error:
                rules = governor.match(target.outbound(None, upgrade=upgrade))
                if self._stopping or rules is None:
                    raise
                return self._refusals.shut(error, rules, target.outbound(None, upgrade=upgrade).request())
        except Rejected as error:
            if self._stopping:
                return failure(503, "Stopping", "the proxy stops; nothing was sent", headers={"Retry-After": "1"})
            return self._refusals.answer(error)
        except RatekeeperError as error:
            return failure(500, type(error).__name__, str(error))
        except ConnectionError:
            raise  # the client left
        except Exception as error:  # noqa: BLE001 - logged by its kind alone
            # Neither the message nor the traceback: they may quote the URL, and query strings hold signatures.
            log.error("ratekeeper proxy: %s while a call was passed on", type(error).__name__)
            return failure(500, type(error).__name__, "an error of the proxy's own; the call may have been sent")

    def _addressed(self, request: web.BaseRequest) -> tuple[Target, Governor] | web.Response:
        """The target of a request, and how it waits; or an answer of the proxy's own."""
        unwelcome = self._guard.refusal(request)
        if unwelcome is not None:
            return unwelcome
        raw = request.raw_path
        if not raw.startswith("/"):
            return failure(
                400, "BadRequest", "this is no forward proxy: use it as a base URL, as in /binance-usdm/fapi/v1/time"
            )
        segment, rest = _split(raw)
        if segment == "healthz":
            return web.json_response({"ok": True})
        shown = ""
        if segment == "t":
            shown, rest = _split(rest)
            segment, rest = _split(rest)
        elif self._token:
            shown = request.headers.get(_TOKEN, "")
        if self._token and not hmac.compare_digest(shown.encode("utf-8", "replace"), self._token):
            return failure(401, "Token", "send the proxy's token: X-Ratekeeper-Token: …, or /t/TOKEN before the path")
        if not segment and rest.partition("?")[0] == "/":
            return web.json_response({"ratekeeper": __version__, "upstreams": self._upstreams.urls()})
        upstream = self._upstreams.find(segment)
        if upstream is None:
            urls = self._upstreams.urls()
            return failure(
                404,
                "UnknownUpstream",
                f"no upstream is called {segment!r}: use one of {', '.join(urls)}",
                upstreams=urls,
            )
        try:
            governor = self._steered(request)
        except (RatekeeperError, ValueError) as error:
            return failure(400, "BadRequest", str(error))
        reason = crooked(rest.partition("?")[0])
        if reason:
            return failure(400, "Path", f"nothing was sent: {reason}")
        target = Target(request, upstream, rest)
        self._guard.strip(target.headers)
        return target, governor

    def _steered(self, request: web.BaseRequest) -> Governor:
        """A governor with the priority and the timeout of the client's headers. Only with a timeout does a call wait for the
        end of a long block."""
        asked = request.headers.get(_PRIORITY)
        patience = request.headers.get(_TIMEOUT)
        if asked is None and patience is None:
            return self._governor
        priority = None if asked is None else Priority.of(asked)
        if patience is None:
            return Governor(self._gate, priority=priority)
        try:
            seconds = float(patience)
        except ValueError:
            seconds = -1.0
        if not (seconds >= 0 and math.isfinite(seconds)):
            raise ValueError("X-Ratekeeper-Timeout is a number of seconds, such as 2.5; 0: now or never")
        return Governor(self._gate, priority=priority, timeout=seconds)


def _split(raw: str) -> tuple[str, str]:
    """First segment, and the rest as a path with a slash in front; the query stays where it is."""
    path, mark, query = raw.partition("?")
    segment, _, rest = path[1:].partition("/")
    return segment, f"/{rest}{mark}{query}"


async def serve(gate: Gate, options: Options, say: Callable[[str], object]) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        gate: the gate that is asked; it is left open.
        options: where to listen, and what to serve.
        say: prints one line.

    Raises:
        OSError: the address cannot be listened on.
        UnknownProvider: an upstream has neither rules nor a URL.
    """
    upstreams = Upstreams(gate.book, options.upstreams)
    guard = Guard(options.host, options.token, options.hosts, options.origins)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with open_session(options.silence) as session:
        proxy = Proxy(gate, upstreams, session, options.token, guard)
        runner = await listen(proxy, options.host, options.port)
        try:
            place = _place(*runner.addresses[0][:2])
            guarded = "with a token" if options.token else "for this machine only"
            gc.collect()
            gc.freeze()  # rules and modules stay as long as the proxy does: no collection needs to look at them again
            gc.set_threshold(_YOUNG)
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
    LEASES.set(Leases())  # connections are served in copies of the context in which the server starts
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
