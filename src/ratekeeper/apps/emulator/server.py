"""The emulator itself: every request passes latency, faults, bans and the count, and then gets the provider's answer.

`serve` starts it, says where it is, and sums up when it is told to stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections import Counter
from email.utils import formatdate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from aiohttp import web

from ratekeeper.rules.book import Rulebook
from ratekeeper.rules.files import read_head, to_toml

from .incoming import Arrival, Failure, read_call
from .sockets import Sockets, reset
from .state import State

if TYPE_CHECKING:
    from collections.abc import Callable

    from ratekeeper.rules.provider import Provider

    from .accounting import Charge
    from .options import Options
    from .refusing import Address

__all__ = ["Answer", "Emulation", "load_provider", "serve", "summary"]

SECOND = 1_000_000_000
SILENCE = 120.0
"""Seconds after which the connection of a lost request is cut; clients give up long before."""
_SWITCHING = 101


class Answer(NamedTuple):
    """What goes back."""

    status: int
    body: bytes
    headers: dict[str, str]
    held: list[Charge]
    """Slots that the request holds until it is answered."""


class Emulation(State):
    """One running emulation: the handler of every request. Arguments as for `State`."""

    def __init__(self, options: Options, provider: Provider) -> None:
        super().__init__(options, provider)
        self.sockets = Sockets(self)
        self._date = (0, "")

    def application(self) -> web.Application:
        """The web application: control routes, and one handler for everything else."""
        app = web.Application(client_max_size=4 * 1024 * 1024)
        _add_control(app, self)
        app.router.add_route("*", "/{anything:.*}", self.handle)
        app.on_response_prepare.append(self._prepare)
        app.on_shutdown.append(self._shut_down)
        return app

    async def _shut_down(self, _app: web.Application) -> None:
        await self.sockets.close()

    async def _prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        if not self.options.date:
            response.headers.popall("Date", None)
        elif isinstance(response, web.WebSocketResponse):  # all other answers that are counted come with their own
            dated = self.clocks.dating(time.time_ns(), self.port(request))
            response.headers["Date"] = formatdate(dated // SECOND, usegmt=True)

    # -- one request

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request, after all that the network does to it."""
        body = await request.read() if request.can_read_body else b""
        self.busy += 1
        self.most_busy = max(self.most_busy, self.busy)
        try:
            options, dice = self.options, self.dice
            low, high = options.latency
            if high:
                await asyncio.sleep(dice.uniform(low, high) / 1000)
            lost = self.chances.strikes("loss", options.loss)
            hung_up = not lost and self.chances.strikes("hangup", options.hangup)
            if (lost or hung_up) and dice.random() < 0.5:
                return await self._vanish(request, cut=hung_up)
            answer = self.arrive(request, body)
            if answer.status == _SWITCHING:
                return await self.sockets.converse(request, answer.held)
            try:
                if high:
                    await asyncio.sleep(dice.uniform(low, high) / 1000)
            finally:
                if answer.held:
                    self.meter.credit(self.clock(), answer.held)
            if lost or hung_up:
                return await self._vanish(request, cut=hung_up)
            if self.chances.strikes("hang", options.hang):
                return await self._vanish(request, counted="hung")
        finally:
            self.busy -= 1
        return web.Response(status=answer.status, body=answer.body, headers=answer.headers)

    async def _vanish(self, request: web.Request, *, cut: bool = False, counted: str = "") -> web.StreamResponse:
        """Reset the connection, or leave the client waiting until it gives up."""
        self.totals[counted or ("hung_up" if cut else "lost")] += 1
        transport = request.transport
        if not cut:
            self.busy -= 1  # a client that waits in vain keeps no request running
            try:
                await asyncio.sleep(SILENCE)
            finally:
                self.busy += 1
        if transport is not None:
            reset(transport)
        return web.Response(status=500)

    def arrive(self, request: web.Request, body: bytes) -> Answer:
        """The instant of arrival: count the request, decide, and make the answer."""
        handshake = request.headers.get("Upgrade", "").lower() == "websocket"
        method = "WS-CONNECT" if handshake else request.method
        arrival = self.priced(read_call(method, request.raw_path, body, request.headers), request)
        charged, now = arrival.charges, arrival.now
        address = self.bans.address(arrival.ip)
        address.arrivals += 1
        self.totals["arrivals"] += 1
        held: list[Charge] = []
        more: dict[str, str] = {}
        until, turned_away = 0, ""
        try:
            trouble = self._admit(arrival, address)
            held = [charge for charge in charged if charge.limit.window == "slots"]
            if handshake:
                status, content = _SWITCHING, b""
            else:
                content, back = self.venue.carry_out(arrival, self.meter)
                self.meter.credit(now, back)
                status = 200
            if trouble is not None:
                raise trouble
        except Failure as failure:
            status, content, more, until = failure.status, failure.body, failure.headers, failure.until
            turned_away = failure.turned_away
        self.statuses[status] += 1
        self.routes[arrival.plan.route] += 1
        if handshake:
            self.sockets.dialled(arrival.ip, now, status)
        self._note_client(request.headers.get("User-Agent", ""), arrival, turned_away)
        headers = self._headers(arrival) | more
        if until and self.options.retry_after:
            headers["Retry-After"] = str(max(1, -(-(until - now) // SECOND)))
        if self.journal.open:
            used = {charge.limit.name: self.meter.used(now, charge.limit, charge.owner) for charge in charged}
            cost = Counter[str]()
            for charge in charged:
                cost[charge.limit.name] += charge.cost
            route = arrival.plan.route or f"{arrival.method} {arrival.path}"
            self.journal.write(
                now, ip=arrival.ip, account=arrival.account, route=route, cost=cost, used=used, status=status
            )
        return Answer(status, content, headers, held)

    def _admit(self, arrival: Arrival, address: Address) -> Failure | None:
        """Let the request in, or raise the `Failure` that refuses it; returned is one that hides a request carried out."""
        now = arrival.now
        self._stop_the_shut_out(arrival, address)
        hidden: Failure | None = None
        if self.chances.strikes("errors", self.options.errors):
            self.totals["errors"] += 1
            trouble, carried_out = self.venue.trouble(self.dice)
            if not carried_out:
                raise trouble
            hidden = trouble
        full = self.meter.arrive(now, arrival.charges)
        if full is None:
            return hidden
        failure = self.venue.throttled(arrival, full)
        if failure.penalty is not None:
            kind, span = failure.penalty
            if kind == "ip":
                self.bans.ban(address, now, span, failure)
            else:
                self.shut[self.limits.owner(arrival.plan, kind)] = (now + span, failure)
        elif self.bans.strike(address, now):
            failure = self.venue.banned(arrival, address.banned_until, None)
        raise _turned_away(failure, address)

    def _stop_the_shut_out(self, arrival: Arrival, address: Address) -> None:
        if arrival.now < address.banned_until:
            raise _turned_away(self.venue.banned(arrival, address.banned_until, address.cause), address)
        for kind in {name.partition(":")[0] for name in self.shut}:
            until, cause = self.shut.get(self.limits.owner(arrival.plan, kind), (0, None))
            if arrival.now < until:
                raise _turned_away(self.venue.banned(arrival, until, cause), address)

    def _note_client(self, agent: str, arrival: Arrival, turned_away: str) -> None:
        """Which program it was, as far as it says so: several share one address."""
        if agent not in self.clients and len(self.clients) >= 256:
            agent = "others"
        client = self.clients.setdefault(agent, Counter(arrivals=0, accepted=0, throttled=0, banned=0))
        client["arrivals"] += 1
        if turned_away:
            client[turned_away] += 1
        else:
            client["accepted"] += sum(charge.cost for charge in arrival.charges if charge.limit is self.limits.main)

    # -- headers

    def _headers(self, arrival: Arrival) -> dict[str, str]:
        seconds = arrival.dated // SECOND
        if self._date[0] != seconds:
            self._date = (seconds, formatdate(seconds, usegmt=True))
        headers = {"Content-Type": "application/json;charset=UTF-8", "Server": "nginx", "Date": self._date[1]}
        return headers | self.venue.reports(arrival, self.meter) if self.options.usage_headers else headers


def _turned_away(failure: Failure, address: Address) -> Failure:
    """Count a refusal as throttled or banned, as the provider calls it."""
    if failure.bans:
        address.shut_out += 1
        failure.turned_away = "banned"
    else:
        address.throttled += 1
        failure.turned_away = "throttled"
    return failure


def _add_control(app: web.Application, state: Emulation) -> None:
    """Add the routes under ``/__emulator__/``: what a test may ask and tell. These calls are not counted."""

    async def show_stats(_request: web.Request) -> web.Response:
        state.journal.flush()
        return _json(state.stats(state.sockets.stats()))

    async def told(request: web.Request) -> dict[str, Any]:
        """What the request says, in its query or its JSON body; `ValueError` if that is broken."""
        body = msgspec.json.decode(await request.read() or b"{}", type=dict[str, Any])
        return {**request.query, **body}

    async def ban(request: web.Request) -> web.Response:
        try:
            asked = await told(request)
            seconds = float(asked.get("seconds", 120))
        except (TypeError, ValueError):
            return _json({"error": "seconds must be a number"}, status=400)
        address = state.bans.address(str(asked.get("ip", "127.0.0.1")))
        if seconds > 0:
            state.bans.ban(address, state.clock(), int(seconds * SECOND))
        else:
            address.banned_until = 0
        return _json({"ip": address.ip, "until": address.banned_until // 1_000_000})

    async def cut(request: web.Request) -> web.Response:
        try:
            asked = await told(request)
            ended = state.sockets.cut(str(asked.get("mode", "close")), str(asked.get("ip", "")))
        except ValueError as error:
            return _json({"error": str(error)}, status=400)
        return _json({"cut": ended})

    async def show_options(_request: web.Request) -> web.Response:
        return _json(state.live())

    async def set_options(request: web.Request) -> web.Response:
        try:
            state.options.change(await told(request))
        except ValueError as error:  # msgspec's decoding errors are ValueErrors too
            return _json({"error": str(error)}, status=400)
        state.apply()
        return _json(state.live())

    async def show_rules(_request: web.Request) -> web.Response:
        return web.Response(text=to_toml(state.limits.rules()), content_type="application/toml")

    app.router.add_get("/__emulator__/stats", show_stats)
    app.router.add_get("/__emulator__/rules", show_rules)
    app.router.add_post("/__emulator__/ban", ban)
    app.router.add_post("/__emulator__/cut", cut)
    app.router.add_get("/__emulator__/options", show_options)
    app.router.add_post("/__emulator__/options", set_options)


def _json(body: Any, *, status: int = 200) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(body), content_type="application/json")


async def serve(options: Options, say: Callable[[str], None], *, tied: bool = False) -> None:
    """Emulate until SIGINT or SIGTERM.

    Args:
        options: the options in force.
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
    totals, share = emulation.stats(emulation.sockets.stats())["totals"], emulation.share_used()
    main = emulation.limits.main
    used = "no complete window" if share is None else f"{share:.1%} of {main.name} used in complete windows"
    return (
        f"{totals['arrivals']} requests arrived: {totals['throttled']} answered 429, {totals['banned']} answered 418, "
        f"{totals['bans']} bans, {totals['errors']} errors, {totals['lost']} lost, {totals['hung_up']} hung up; {used}."
    )
