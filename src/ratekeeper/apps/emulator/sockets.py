"""Open websockets: limits on what clients send, data and order reports, pings, and the ways in which a socket ends."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import Counter, deque
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from aiohttp import WSMsgType, web

from ratekeeper.rules.schema import Socket
from ratekeeper.rules.times import duration

from .dialects import Heard, dialect_of
from .incoming import read_call
from .market import MARKETS
from .templates import Sheet

if TYPE_CHECKING:
    from aiohttp import WSMessage

    from .accounting import Charge
    from .dialects import Dialect
    from .orders import Order
    from .state import State

__all__ = ["Connection", "Sockets", "reset"]

SECOND = 1_000_000_000
STEP = 0.1
"""Seconds between two looks at the age and the pings of all sockets, at most."""
MOST_WAITING = 10_000
"""Messages that may wait for a client that does not read; one more and its connection is reset."""
FAREWELL = 2.0
"""Seconds that a client has to answer a close frame."""
GOING_AWAY, TOO_MANY, TRY_LATER = 1001, 1008, 1013
_LINGER_NONE = struct.pack("ii", 1, 0)


def reset(transport: asyncio.Transport) -> None:
    """Reset a connection: the client gets RST, and no close frame."""
    connection = transport.get_extra_info("socket")
    if connection is not None and not transport.is_closing():
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
    transport.abort()


class _Close(NamedTuple):
    """A close frame."""

    code: int
    reason: str


class _Control(NamedTuple):
    """A ping or a pong frame."""

    kind: WSMsgType
    data: bytes = b""


class Connection:
    """One connection and its state. Instants are the event loop's seconds."""

    def __init__(self, number: int, request: web.Request, dialect: Dialect, at: float) -> None:
        self.number = number
        self.request = request
        self.ip = request.remote or ""
        self.response = web.WebSocketResponse(autoping=False, timeout=FAREWELL, max_msg_size=0)
        self.dialect = dialect
        self.opened = at
        self.heard = at
        """When the client last sent anything."""
        self.pinged = at
        self.unanswered: float | None = None
        """Since when a ping of ours has had no answer."""
        self.dead = False
        """Cut silently: the server drops all that arrives, and sends nothing."""
        self.ending = False
        self.last_word = False
        """Whether a close frame is on its way."""
        self.slots: list[Charge] = []
        """Slots that its subscriptions hold."""
        self.queue: asyncio.Queue[tuple[float, str | bytes | _Close | _Control]] = asyncio.Queue(MOST_WAITING)

    def abort(self) -> None:
        """Reset the connection."""
        self.ending = True
        if self.request.transport is not None:
            reset(self.request.transport)


class Sockets:
    """All websockets of one emulation.

    Args:
        emulation: whose limits, options, clock and dice count.
    """

    def __init__(self, emulation: State) -> None:
        self._of = emulation
        provider = emulation.limits.provider
        self._dialect = dialect_of(provider.name)
        self._sheet = Sheet.of(self._dialect.venue)
        self._habits = provider.file.socket
        self._numbers = count(1)
        self._connections: dict[int, Connection] = {}
        self._task: asyncio.Task[None] | None = None
        self._seq = 0
        self._reports: Counter[str] = Counter()
        self._dials: dict[str, dict[str, Any]] = {}
        self._totals: Counter[str] = Counter()
        self._ended: Counter[str] = Counter()
        if emulation.venue.books:
            emulation.venue.book.on_change = self.report

    # -- one connection

    def dialled(self, ip: str, now: int, status: int) -> None:
        """Note an attempt to connect; `now` in nanoseconds, `status` is the handshake's answer."""
        seen = self._dials.setdefault(ip, {"count": 0, "refused": 0, "instants": deque(maxlen=5_000)})
        seen["count"] += 1
        seen["refused"] += status != 101
        seen["instants"].append(now / SECOND)

    async def converse(self, request: web.Request, held: list[Charge]) -> web.StreamResponse:
        """Serve one connection until it ends; `held` are the slots that it holds."""
        emulation, loop = self._of, asyncio.get_running_loop()
        symbols = MARKETS["usdm"] | (emulation.venue.book.symbols if emulation.venue.books else {})
        dialect = self._dialect(request.raw_path, emulation.label, symbols, emulation.account_of(request), self._sheet)
        connection = Connection(next(self._numbers), request, dialect, loop.time())
        writer = None
        try:
            await connection.response.prepare(request)
            if emulation.chances.strikes("ws_refuse", emulation.options.ws_refuse):
                self._ended["refused"] += 1
                await connection.response.close(code=TRY_LATER, message=b"")
                return connection.response
            self._connections[connection.number] = connection
            if self._task is None or self._task.done():
                self._task = asyncio.create_task(self._watch())
            writer = asyncio.create_task(self._write(connection))
            self._apply(connection, Heard(added=dialect.opening()), message=False)
            async for message in connection.response:
                if not connection.dead and not connection.ending:
                    self._take(connection, message)
        finally:
            self._connections.pop(connection.number, None)
            if not connection.ending:
                self._ended["by client"] += 1
            if writer is not None:
                if connection.last_word:  # let it finish the closing handshake
                    await asyncio.wait({writer}, timeout=FAREWELL)
                writer.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await writer
            emulation.meter.credit(emulation.clock(), [*held, *connection.slots])
        return connection.response

    def _take(self, connection: Connection, message: WSMessage) -> None:
        """One frame of the client."""
        self._totals["in"] += 1
        connection.heard = asyncio.get_running_loop().time()
        kind, dialect = message.type, connection.dialect
        if kind in (WSMsgType.PING, WSMsgType.PONG):
            if kind is WSMsgType.PING:
                self._send(connection, _Control(WSMsgType.PONG, bytes(message.data)))
            else:
                connection.unanswered = None
            if dialect.control_counts:
                self._apply(connection, Heard())
        elif kind is WSMsgType.TEXT:
            heard = dialect.hear(message.data, self._of.clock() // 1_000_000)
            if heard.pong:
                connection.unanswered = None
            self._apply(connection, heard)
        elif kind is WSMsgType.BINARY and self._apply(connection, Heard()):
            self._send(connection, message.data)

    def _apply(self, connection: Connection, heard: Heard, *, message: bool = True) -> bool:
        """Charge what the client asks for and do it, or close the socket if a limit is full."""
        meter, now = self._of.meter, self._of.clock()
        charges: list[Charge] = []
        if heard.added:
            # Only what is new takes slots; every dialect's way of naming it is one of these.
            body = {"params": heard.added, "args": heard.added, "topic": heard.added[0]}
            charges += self._priced(connection, "WS-SUBSCRIBE", msgspec.json.encode(body))
        slots = [charge for charge in charges if charge.limit.window == "slots"]
        if not message:
            charges = slots
        else:
            charged = {charge.limit.name for charge in charges}
            charges += [
                charge for charge in self._priced(connection, "WS-SEND", b"") if charge.limit.name not in charged
            ]
        if meter.arrive(now, charges) is not None:
            self._of.totals["sockets_closed"] += 1
            self._close(connection, TOO_MANY, "Too many requests", "too many")
            return False
        connection.slots += slots
        for topic in heard.removed:
            connection.dialect.topics.pop(topic, None)
        if heard.removed:
            self._free(connection, len(heard.removed), now)
        connection.dialect.topics.update(dict.fromkeys(heard.added))
        for reply in heard.replies:
            self._send(connection, reply)
        return True

    def _priced(self, connection: Connection, method: str, body: bytes) -> list[Charge]:
        call = read_call(method, connection.request.raw_path, body, connection.request.headers)
        named = call._replace(params={**(call.params or {}), "connection": str(connection.number)})
        arrival = self._of.priced(named, connection.request)
        return list(arrival.charges) if arrival.plan.route else []

    def _free(self, connection: Connection, units: int, now: int) -> None:
        """Give `units` slots back, those that were taken last first."""
        left = Counter[str]()
        kept: list[Charge] = []
        for charge in reversed(connection.slots):
            back = min(charge.cost, units - left[charge.limit.name])
            left[charge.limit.name] += back
            self._of.meter.credit(now, [charge._replace(cost=back)])
            if charge.cost > back:
                kept.append(charge._replace(cost=charge.cost - back))
        connection.slots = kept[::-1]

    # -- what goes out

    def _send(self, connection: Connection, item: str | bytes | _Close | _Control) -> None:
        if connection.dead:
            return
        due = asyncio.get_running_loop().time() + self._of.options.ws_lag / 1000
        try:
            connection.queue.put_nowait((due, item))
        except asyncio.QueueFull:
            self._ended["slow"] += 1
            connection.abort()

    def _close(self, connection: Connection, code: int, reason: str, why: str) -> None:
        """Close a connection with a close frame; the figures count it under `why`."""
        if not connection.ending:
            self._ended[why] += 1
            self._send(connection, _Close(code, reason))
            connection.ending = connection.last_word = True

    async def _write(self, connection: Connection) -> None:
        loop, response = asyncio.get_running_loop(), connection.response
        while True:
            due, item = await connection.queue.get()
            if (delay := due - loop.time()) > 0:
                await asyncio.sleep(delay)
            if connection.dead:
                continue
            try:
                match item:
                    case _Close(code, reason):
                        await response.close(code=code, message=reason.encode())
                        return
                    case _Control(kind, data):
                        await (response.ping(data) if kind is WSMsgType.PING else response.pong(data))
                    case str():
                        await response.send_str(item)
                    case bytes():
                        await response.send_bytes(item)
            except (ConnectionError, RuntimeError):  # it ended meanwhile
                return
            self._totals["out"] += 1

    def report(self, account: str, order: Order, now: int) -> None:
        """Send a changed order to the sockets that subscribe to it. `now` is milliseconds."""
        self._reports[account] += 1
        if self._of.options.ws_silent:
            return
        for connection in list(self._connections.values()):
            if not connection.ending:
                for text in connection.dialect.report(account, order, self._reports[account], now):
                    self._send(connection, text)

    # -- as time goes by

    async def _watch(self) -> None:
        """Send ticks and pings, and end old sockets, as long as any socket is open."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while self._connections:
            at, options = loop.time(), self._of.options
            ticks = at >= due
            if ticks:
                self._seq += 1
                due = max(at, due + options.ws_interval)
            now = self._of.clock() // 1_000_000
            if self._of.venue.books:
                self._of.venue.book.match(now)  # so that a fill is told without anybody asking
            for connection in list(self._connections.values()):
                if not connection.ending and not connection.dead:
                    self._look_after(connection, at, now)
                    if ticks and not options.ws_silent:
                        for topic in connection.dialect.topics:
                            if (text := connection.dialect.tick(topic, self._seq, now)) is not None:
                                self._send(connection, text)
            await asyncio.sleep(min(STEP, options.ws_interval))

    def _look_after(self, connection: Connection, at: float, now: int) -> None:
        """Ping the client when it is time, and end what is too old or does not answer."""
        habits = self._habit(connection.request.path)
        lifetime = self._of.options.ws_lifetime
        if lifetime is None:
            lifetime = self._seconds(habits.lifetime)
        if lifetime and at - connection.opened >= lifetime:
            if farewell := connection.dialect.farewell(now):
                self._send(connection, farewell)
            self._close(connection, GOING_AWAY, "lifetime", "lifetime")
            return
        every, patience = self._seconds(habits.ping_every), self._seconds(habits.drop_after)
        if habits.ping_from == "server" and every and at - connection.pinged >= every:
            connection.pinged = at
            connection.unanswered = at if connection.unanswered is None else connection.unanswered
            self._send(connection, connection.dialect.ping(now) or _Control(WSMsgType.PING, b"%d" % now))
        since = connection.heard if habits.ping_from == "client" else connection.unanswered
        if patience and since is not None and at - since > patience:
            self._close(connection, TOO_MANY, "no pong", "no pong")  # the code is a guess

    def _habit(self, path: str) -> Socket:
        kind = "api" if "/ws-api" in path or "/ws-fapi" in path else "streams"
        habits = self._habits
        return habits.get(kind) or habits.get("all") or next(iter(habits.values()), Socket())

    def _seconds(self, text: str) -> float:
        return duration(text) / SECOND * self._of.options.scale if text else 0.0

    # -- what a test may ask

    def cut(self, mode: str, ip: str = "") -> int:
        """End every socket (of `ip`); returns how many.

        Args:
            mode: ``close`` with 1001, ``abort`` with a reset, or ``silent``: the connection stays open, and no
                frame passes any more.
            ip: only those of this address.

        Raises:
            ValueError: the mode is none of the three.
        """
        if mode not in ("close", "abort", "silent"):
            raise ValueError(f"mode must be close, abort or silent, not {mode!r}")
        found = [
            connection
            for connection in self._connections.values()
            if ip in ("", connection.ip) and not connection.ending and not connection.dead
        ]
        for connection in found:
            if mode == "close":
                self._close(connection, GOING_AWAY, "cut", "cut")
                continue
            self._ended["cut"] += mode == "abort"
            if mode == "abort":
                connection.abort()
            else:
                connection.dead = True
        return len(found)

    def stats(self) -> dict[str, Any]:
        """Sockets, dials, subscriptions and messages; instants are Unix seconds of the emulator's clock."""
        return {
            "open": len(self._connections),
            "open_by_ip": dict(Counter(connection.ip for connection in self._connections.values())),
            "dials": {ip: {**seen, "instants": list(seen["instants"])} for ip, seen in self._dials.items()},
            "subscriptions": dict(
                Counter(topic for connection in self._connections.values() for topic in connection.dialect.topics)
            ),
            "messages": {"in": self._totals["in"], "out": self._totals["out"]},
            "seq": self._seq,
            "ended": dict(self._ended),
        }

    async def close(self) -> None:
        """End everything, before the server ends."""
        for connection in list(self._connections.values()):
            connection.abort()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
