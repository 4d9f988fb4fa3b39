"""The emulator itself: every request passes latency, faults, bans and the count, and then gets the exchange's answer."""

from __future__ import annotations

import asyncio
import hashlib
import random
import socket
import struct
import time
from collections import Counter
from email.utils import formatdate
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qsl

from aiohttp import web

from .accounting import Meter
from .bans import Bans
from .control import add_control
from .exchange import plain_body
from .incoming import Fault, Incoming
from .journal import Journal
from .spot import Spot
from .tariff import Tariff, bills
from .usdm import Usdm
from .wording import Wording, check_key, check_signed

if TYPE_CHECKING:
    from headgate.rules.provider import Provider

    from .accounting import Bill
    from .bans import Address
    from .exchange import Exchange
    from .incoming import Route
    from .options import Options
    from .tariff import Price

__all__ = ["Answer", "Asked", "Emulation"]

SECOND = 1_000_000_000
SILENCE = 120.0
"""Seconds after which the connection of a lost request is cut; clients give up long before."""
_LINGER_NONE = struct.pack("ii", 1, 0)


class Asked(NamedTuple):
    """A request line taken apart. Public ones are kept, since bots ask the same again and again."""

    path: str
    params: dict[str, str]
    price: Price
    route: Route | None


class Answer(NamedTuple):
    """What goes back."""

    status: int
    body: bytes
    headers: dict[str, str]
    held: list[Bill]
    """Slots that the request holds until it is answered."""


class Emulation:
    """One running emulation: state, and the handler of every request.

    Args:
        options: what was asked for; its `Live` part may change at any time.
        provider: the rules that are enforced.
    """

    def __init__(self, options: Options, provider: Provider) -> None:
        self.options = options
        self.tariff = Tariff(provider, options)
        self.meter = Meter()
        futures = options.provider == "binance-usdm"
        self.wording = Wording(futures=futures)
        self.exchange: Exchange = (Usdm if futures else Spot)(self.tariff.declared)
        window = self.tariff.main.period
        self.bans = Bans(after=0, first=0, calm=2 * window)
        self.dice = random.Random(options.seed)
        self.journal = Journal(options.log)
        self.totals: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.routes: Counter[str] = Counter()
        self.clients: dict[str, Counter[str]] = {}
        self.busy = 0
        self.most_busy = 0
        self._asked: dict[str, Asked] = {}
        self._labels: dict[str, str] = {"": "anonymous"}
        self._date = (0, "")
        self.apply()
        self.started = self.clock()

    def apply(self) -> None:
        """Take over options that live elsewhere; called when they change."""
        self.tariff.set_capacity(self.options.capacity)
        self.bans.after = self.options.ban_after
        ban = self.options.ban
        self.bans.first = 2 * self.tariff.main.period if ban is None else int(ban * SECOND)

    def clock(self) -> int:
        """The emulator's clock in nanoseconds."""
        return time.time_ns() + int(self.options.skew * SECOND)

    def application(self) -> web.Application:
        """The web application: control routes, and one handler for everything else."""
        app = web.Application(client_max_size=4 * 1024 * 1024)
        add_control(app, self)
        app.router.add_route("*", "/{anything:.*}", self.handle)
        app.on_response_prepare.append(self._prepare)
        return app

    async def _prepare(self, _request: web.Request, response: web.StreamResponse) -> None:
        if not self.options.date:
            response.headers.popall("Date", None)

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
            fate = dice.random() if options.loss or options.hangup else 1.0
            lost, hung_up = fate < options.loss, options.loss <= fate < options.loss + options.hangup
            if (lost or hung_up) and dice.random() < 0.5:
                return await self._vanish(request, cut=hung_up)
            answer = self.arrive(request, body)
            try:
                if high:
                    await asyncio.sleep(dice.uniform(low, high) / 1000)
            finally:
                if answer.held:
                    self.meter.credit(self.clock(), answer.held)
            if lost or hung_up:
                return await self._vanish(request, cut=hung_up)
        finally:
            self.busy -= 1
        return web.Response(status=answer.status, body=answer.body, headers=answer.headers)

    async def _vanish(self, request: web.Request, *, cut: bool) -> web.StreamResponse:
        """Reset the connection, or leave the client waiting until it gives up."""
        self.totals["hung_up" if cut else "lost"] += 1
        transport = request.transport
        if not cut:
            self.busy -= 1  # a client that waits in vain occupies nobody here
            try:
                await asyncio.sleep(SILENCE)
            finally:
                self.busy += 1
        if transport is not None:
            connection = transport.get_extra_info("socket")
            if connection is not None and not transport.is_closing():
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
            transport.abort()
        return web.Response(status=500)

    def arrive(self, request: web.Request, body: bytes) -> Answer:
        """The instant of arrival: count the request, decide, and make the answer."""
        now = self.clock()
        ip = request.remote or ""
        key = request.headers.get("X-MBX-APIKEY", "")
        account = self._label(key)
        address = self.bans.address(ip)
        address.arrivals += 1
        self.totals["arrivals"] += 1
        asked = self._ask(request.method, request.raw_path, body)
        charged = bills(asked.price, ip, account, asked.params)
        held: list[Bill] = []
        try:
            trouble = self._admit(charged, address, now)
            held = [bill for bill in charged if bill.limit.window == "slots"]
            incoming = Incoming(asked.params, now // 1_000_000, account)
            content = self._carry_out(request.method, asked, charged, key, incoming, now)
            if trouble is not None:
                raise trouble
            status, until = 200, 0
        except Fault as fault:
            status, content, until = fault.status, fault.body, fault.until
        self.statuses[status] += 1
        self.routes[asked.price.route] += 1
        self._note_client(request.headers.get("User-Agent", ""), status, charged)
        headers = self._headers(asked.path, charged, ip, now)
        if until and self.options.retry_after:
            headers["Retry-After"] = str(max(1, -(-(until - now) // SECOND)))
        if self.journal.open:
            used = {bill.limit.name: self.meter.used(now, bill.limit, bill.owner) for bill in charged}
            cost = {bill.limit.name: bill.cost for bill in charged}
            route = asked.price.route or f"{request.method} {asked.path}"
            self.journal.write(now, ip=ip, account=account, route=route, cost=cost, used=used, status=status)
        return Answer(status, content, headers, held)

    def _note_client(self, agent: str, status: int, charged: list[Bill]) -> None:
        """Which program it was, as far as it says so: several share one address."""
        if agent not in self.clients and len(self.clients) >= 256:
            agent = "others"
        client = self.clients.setdefault(agent, Counter(arrivals=0, accepted=0, throttled=0, banned=0))
        client["arrivals"] += 1
        if status in (418, 429):
            client["banned" if status == 418 else "throttled"] += 1
        else:
            client["accepted"] += sum(bill.cost for bill in charged if bill.limit is self.tariff.main)

    def _admit(self, charged: list[Bill], address: Address, now: int) -> Fault | None:
        """Let the request in, or raise the `Fault` that refuses it; returned is one that hides a request carried out."""
        if now < address.banned_until:
            address.shut_out += 1
            raise self.wording.banned(address.ip, address.banned_until)
        hidden: Fault | None = None
        if self.options.errors and self.dice.random() < self.options.errors:
            self.totals["errors"] += 1
            trouble, carried_out = self.wording.trouble(self.dice)
            if not carried_out:
                raise trouble
            hidden = trouble
        refusal = self.meter.arrive(now, charged)
        if refusal is None:
            return hidden
        if self.bans.strike(address, now):
            address.shut_out += 1
            raise self.wording.banned(address.ip, address.banned_until)
        address.throttled += 1
        raise self.wording.throttled(refusal, address.ip)

    def _carry_out(
        self, method: str, asked: Asked, charged: list[Bill], key: str, incoming: Incoming, now: int
    ) -> bytes:
        route = asked.route
        if route is None:
            if not asked.price.route:
                raise self.wording.unknown_path(method, asked.path)
            return plain_body(asked.path)
        if route.keyed:
            check_key(key)
        if route.signed:
            check_signed(asked.params, incoming.now)
        filled = self.exchange.desk.filled
        body = route.handler(incoming)
        if route.free:
            self.meter.credit(now, [bill for bill in charged if bill.limit.unit == "weight"])
            if self.exchange.desk.filled > filled:  # a taker's first fill takes one off every order window
                self.meter.credit(now, [bill._replace(cost=1) for bill in charged if bill.limit.unit == "orders"])
        return body

    def _ask(self, method: str, target: str, body: bytes) -> Asked:
        line = f"{method} {target}"
        asked = self._asked.get(line)
        if asked is not None and not body:
            return asked
        path, _, query = target.partition("?")
        params = dict(parse_qsl(query, keep_blank_values=True))
        if body:
            params |= dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True))
        price = self.tariff.price(method, path, params)
        asked = Asked(path, params, price, self.exchange.routes.get((method, path)))
        if not body and "signature" not in params:
            if len(self._asked) >= 4_096:
                self._asked.clear()
            self._asked[line] = asked
        return asked

    def _label(self, key: str) -> str:
        """An account's label: a digest, so that no key shows up in statistics or the log."""
        label = self._labels.get(key)
        if label is None:
            if len(self._labels) >= 4_096:
                self._labels = {"": "anonymous"}
            label = self._labels[key] = hashlib.sha256(key.encode()).hexdigest()[:12]
        return label

    # -- headers

    def _headers(self, path: str, charged: list[Bill], ip: str, now: int) -> dict[str, str]:
        seconds = now // SECOND
        if self._date[0] != seconds:
            self._date = (seconds, formatdate(seconds, usegmt=True))
        headers = {"Content-Type": "application/json;charset=UTF-8", "Server": "nginx", "Date": self._date[1]}
        if not self.options.usage_headers:
            return headers
        main = self.tariff.main
        if not path.startswith("/sapi/"):  # the wallet's routes report their own pools only
            used = str(self.meter.used(now, main, f"ip:{ip}"))
            if not self.wording.futures:
                headers["X-MBX-USED-WEIGHT"] = used
            headers[self.wording.usage_header(main) or ""] = used
        for bill in charged:
            if bill.limit is not main and (name := self.wording.usage_header(bill.limit)):
                headers[name] = str(self.meter.used(now, bill.limit, bill.owner))
        return headers
