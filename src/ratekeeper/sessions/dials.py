"""One connection of a stream: its dial, the turn to dial among all processes, its liveness, and its clean end."""

from __future__ import annotations

import asyncio
import functools
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ratekeeper.adapters._governor import Governor
from ratekeeper.adapters._line import Line, dialled
from ratekeeper.adapters.websockets import handshake
from ratekeeper.gate.steps import apart, drive_async
from ratekeeper.ledger.limit import Instant
from ratekeeper.policy.shared import seconds
from ratekeeper.sessions.liveness import Dials, Gaps, Liveness

if TYPE_CHECKING:
    from ratekeeper import Gate, Priority
    from ratekeeper.sessions.dialects import Dialect, Habits
    from ratekeeper.sessions.transports import Open, Transport

__all__ = ["Connection", "Dialler", "bounded"]

T = TypeVar("T")

_LOG: Final = logging.getLogger("ratekeeper")
_CLOSE_WITHIN: Final = 5.0
"""Seconds to wait for a close."""
_LOOK: Final = 1.0
"""Seconds after which a process that waits for its turn rechecks, because another may have connected."""


class Dialler:
    """Dials one URL again and again.

    Args:
        gate: its limits apply.
        url: what to dial.
        headers: of the handshake.
        transport: the client library to use.
        liveness: timeouts and backoff.
        priority: class of the dials and messages.
    """

    def __init__(
        self,
        gate: Gate,
        url: str,
        headers: Mapping[str, str],
        transport: Transport,
        liveness: Liveness,
        priority: Priority | int | str | None,
    ) -> None:
        outbound = handshake(url, headers)
        if outbound is None or outbound.scheme not in ("ws", "wss"):
            raise ValueError("the URL of a stream begins with ws:// or wss://, and names a host")
        self.outbound = outbound
        self.provider = gate.match(outbound.netloc, outbound.path)
        self.namespace = self.provider.namespace if self.provider is not None else outbound.netloc
        self.dials = 0
        self._gate = gate
        self._url = url
        self._headers = headers
        self._transport = transport
        self._liveness = liveness
        self._governor = Governor(gate, priority=priority)
        self._topic = f"dial:{outbound.netloc}"

    async def turn(self) -> None:
        """Wait until this process may dial: at once without trouble, else one process after the other."""
        while True:
            wait = await self._change(self._liveness.turn, 0.0)
            if not wait:
                return
            if wait > _LOOK:
                self._gate.events.say_seldom(
                    "waiting", self._topic, 60.0,
                    f"the dial of {self.outbound.netloc} waits {wait:.0f} s: dials before it came to nothing",
                    self.namespace, key=self._topic, seconds=wait,
                )  # fmt: skip
            await asyncio.sleep(min(wait, _LOOK))

    async def dial(self) -> tuple[Open, Line | None]:
        """Dial once; the dial is charged before it is made.

        Raises:
            Rejected: the gate refused; nothing was dialled.
            Exception: from the library.
        """

        def dial() -> Awaitable[Open]:
            self.dials += 1
            opening = self._transport.open(self._url, self._headers)
            return bounded(opening, self._liveness.dial_within, "the dial")

        return await drive_async(
            dialled(
                self._governor, self.outbound, lambda: OSError, dial,
                refused=self._transport.answer, leave=lambda opened: opened.close(), is_async=True,
            )
        )  # fmt: skip

    async def failed(self, *, good: bool) -> None:
        """Record a failed dial or a lost connection; `good`: the connection had proved itself."""
        failed = functools.partial(self._liveness.failed, good=good)
        await self._change(lambda old, now, dice: (None, failed(old, now, dice)), None)

    async def worked(self) -> None:
        """Record that a connection has proved itself: waiting processes may dial."""
        await self._change(lambda old, now, dice: (None, Dials(0, 0.0, now)), None)

    async def _change(self, after: Callable[[Dials, float, float], tuple[T, Dials]], otherwise: T) -> T:
        """Change what all processes know of dials to this host.

        Args:
            after: receives that state, the present in steady seconds of the store and a die from 0 to 1; returns the result
                and the new state.
            otherwise: the result if the store is unavailable.
        """
        store, dice = self._gate.store, random.random()

        def change(old: Dials | None, now: Instant) -> tuple[Dials | None, T]:
            result, new = after(old or Dials(), seconds(now), dice)
            # While there was and is no trouble, nothing needs to be written.
            return (new if new.failures or (old is not None and old.failures) else old), result

        work = functools.partial(store.update, self._topic, Dials, change)
        return await drive_async(apart(self._gate.worker, self._topic, work, otherwise, is_async=True))


class Connection:
    """One open connection. Instants are steady seconds.

    Attributes:
        opened: when it was opened; `since` is the same in Unix seconds.
        ready: when it was subscribed; None: not yet.
        topics: what it is subscribed to, or is about to be.
        gaps: the intervals between its messages.
        anything: when it last received anything at all.
        good: whether it has proved itself.
        busy: whether a message waits for the consumer: then silence is not the provider's.
        held: messages that wait until this connection is the live one.
        heard: set with the first message.
        reader: the task that reads it; its result tells how it ended.
    """

    def __init__(self, socket: Open, line: Line | None, liveness: Liveness, dialect: Dialect, habits: Habits) -> None:
        self.socket = socket
        self.line = line
        self._liveness = liveness
        self._ping_text = dialect.ping if habits.client_pings and dialect.ping else None
        self._ping_every = habits.ping_every if habits.client_pings and habits.ping_every else liveness.ping_every
        self.opened = time.monotonic()
        self.since = time.time()
        self.ready: float | None = None
        self.topics: list[Any] = []
        self.gaps = Gaps()
        self.pinged = self.anything = self.opened
        self.good = False
        self.busy = False
        self.held: deque[Any] = deque()
        self.heard = asyncio.Event()
        self.reader: asyncio.Task[str] | None = None
        self.pinging: asyncio.Task[None] | None = None

    async def send(self, text: str) -> None:
        """Send text as soon as its limits allow."""
        await self._allowed(text)
        await self.socket.send(text)

    async def _allowed(self, text: str | None) -> None:
        """Wait until a message, or (None) a ping, may be sent."""
        if self.line is not None:
            await drive_async(self.line.sending(text, is_async=True))

    @property
    def tick(self) -> float:
        """Return the seconds until the next check."""
        return min(1.0, self._liveness.patience(self.gaps) / 4, self._ping_every / 4)

    def look(self, now: float) -> tuple[str, str] | None:
        """Ping when due; returns (why, kind of event) if the connection counts as lost."""
        if self.pinging is not None and self.pinging.done() and (error := self.pinging.exception()) is not None:
            return (f"no answer to a ping: {error}" if str(error) else "no answer to a ping"), "stream stale"
        if now - self.pinged >= self._ping_every and (self.pinging is None or self.pinging.done()):
            self.pinged = now
            self.pinging = asyncio.create_task(self._ping(), name="ratekeeper-stream-ping")
        if self.ready is not None and not self.busy and self._liveness.stale(self.gaps, self.ready, now):
            return f"no message for {self._liveness.patience(self.gaps):.1f} s", "stream stale"
        return None

    async def _ping(self) -> None:
        patience, text = min(self._liveness.ping_patience, 0.9 * self._ping_every), self._ping_text
        await self._allowed(text)
        sent = time.monotonic()
        try:
            async with asyncio.timeout(patience):
                if text is None:
                    await self.socket.ping(patience)
                else:
                    await self.socket.send(text)
                    await asyncio.sleep(patience)
        except TimeoutError:
            # Anything received counts as an answer. While a message waits for the consumer, pongs wait behind it.
            if self.anything < sent and not self.busy:
                raise

    async def end(self, *, at_once: bool = False) -> None:
        """Close the connection. Received messages are still read and handed on, unless it must end at once."""
        tasks = [task for task in (self.pinging, self.reader if at_once else None) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            await bounded(self.socket.close(), _CLOSE_WITHIN, "the close of a websocket")
            if self.reader is not None:
                await asyncio.wait({self.reader})
        except TimeoutError as error:
            _LOG.warning("%s: it is left behind", error)
        finally:
            if self.reader is not None:
                self.reader.cancel()
                await asyncio.gather(self.reader, return_exceptions=True)
            if self.line is not None:
                self.line.close()


async def bounded(work: Awaitable[T], seconds: float, what: str) -> T:
    """Await `work` for `seconds` seconds at most.

    Raises:
        TimeoutError: it took longer; the text begins with `what`.
    """
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            return await work
    except TimeoutError:
        if limit.expired():
            raise TimeoutError(f"{what} took more than {seconds:g} s") from None
        raise
