"""One connection of a stream: what it has brought, whether it still lives, and its clean end."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from ratekeeper.gate.steps import drive_async
from ratekeeper.sessions.liveness import Gaps, Liveness

if TYPE_CHECKING:
    from ratekeeper.adapters._line import Line
    from ratekeeper.sessions.dialects import Dialect, Habits
    from ratekeeper.sessions.transports import Open

__all__ = ["Wire", "ping_every"]


class Wire:
    """One open connection. Instants are steady seconds.

    Attributes:
        opened: when it was opened; `since` is the same in Unix seconds.
        gaps: how its messages came.
        anything: when anything at all came last.
        good: whether it has proved itself.
        busy: whether a message waits for the consumer: then silence is not the provider's.
        held: messages that wait until this connection is the live one.
        heard: set with the first message.
        reader: the task that reads it; its result says how it ended.
    """

    def __init__(self, connection: Open, line: Line | None, now: float) -> None:
        self.connection = connection
        self.line = line
        self.opened = now
        self.since = time.time()
        self.gaps = Gaps()
        self.pinged = self.anything = now
        self.good = False
        self.busy = False
        self.held: deque[Any] = deque()
        self.heard = asyncio.Event()
        self.reader: asyncio.Task[str] | None = None
        self.pinging: asyncio.Task[None] | None = None

    async def send(self, text: str | None) -> None:
        """Send text, or None to take leave for a ping, when its limits allow."""
        if self.line is not None:
            await drive_async(self.line.sending(text, is_async=True))
        if text is not None:
            await self.connection.send(text)

    def look(self, liveness: Liveness, dialect: Dialect, habits: Habits, now: float) -> tuple[str, str] | None:
        """Pings; (why, kind of event) if the connection is as good as lost."""
        every = ping_every(liveness, habits)
        if self.pinging is not None and self.pinging.done() and (error := self.pinging.exception()) is not None:
            return (f"no answer to a ping: {error}" if str(error) else "no answer to a ping"), "stream stale"
        if now - self.pinged >= every and (self.pinging is None or self.pinging.done()):
            self.pinged = now
            self.pinging = asyncio.create_task(
                self._ping(liveness, dialect, habits, every), name="ratekeeper-stream-ping"
            )
        if not self.busy and liveness.stale(self.gaps, self.opened, now):
            return f"no message for {liveness.patience(self.gaps):.1f} s", "stream stale"
        return None

    async def _ping(self, liveness: Liveness, dialect: Dialect, habits: Habits, every: float) -> None:
        patience = min(liveness.ping_patience, 0.9 * every)
        if not (dialect.ping and habits.client_pings):
            await self.send(None)
            await self.connection.ping(patience)
            return
        sent = time.monotonic()
        await self.send(dialect.ping)
        await asyncio.sleep(patience)
        if self.anything < sent and not self.busy:
            raise TimeoutError

    async def end(self, *, at_once: bool = False) -> None:
        """Closes it; what has come is still read and handed on, unless it must end at once."""
        tasks = [task for task in (self.pinging, self.reader if at_once else None) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            await self.connection.close()
            if self.reader is not None:
                await asyncio.wait({self.reader})
        finally:
            if self.reader is not None:
                self.reader.cancel()
                await asyncio.gather(self.reader, return_exceptions=True)
            if self.line is not None:
                self.line.close()


def ping_every(liveness: Liveness, habits: Habits) -> float:
    """Seconds between two pings of ours."""
    return habits.ping_every if habits.client_pings and habits.ping_every else liveness.ping_every
