"""Dials of one host: whose turn it is among all processes, leave from the gate, and what became of it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from ratekeeper.adapters._governor import Governor
from ratekeeper.adapters._line import Line, dialled
from ratekeeper.adapters.websockets import handshake
from ratekeeper.gate.steps import drive_async
from ratekeeper.ledger.limit import SECOND
from ratekeeper.sessions.liveness import Dials, Liveness

if TYPE_CHECKING:
    from ratekeeper import Gate, Priority
    from ratekeeper.sessions.transports import Open, Transport

__all__ = ["Dialler"]

_LOOK: Final = 1.0
"""Seconds after which somebody who waits for a turn looks again: others may have found that all is well."""


class Dialler:
    """Dials one URL again and again.

    Args:
        gate: whose limits count.
        url: what to dial.
        headers: of the handshake.
        transport: with which library.
        liveness: how patiently.
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
        """Waits until this process may dial: at once if all is well, else one of all processes after the other."""
        while True:
            wait = await self._apart(self._ask)
            if not wait:
                return
            await asyncio.sleep(min(wait, _LOOK))

    async def dial(self) -> tuple[Open, Line | None]:
        """One dial, charged before it is made.

        Raises:
            Rejected: the gate said no; nothing was dialled.
            Exception: what the library raises.
        """

        def dial() -> Awaitable[Open]:
            self.dials += 1
            return self._transport.open(self._url, self._headers)

        return await drive_async(
            dialled(
                self._governor, self.outbound, lambda: OSError, dial,
                refused=self._transport.answer, leave=lambda opened: opened.close(), is_async=True,
            )
        )  # fmt: skip

    async def failed(self, *, good: bool) -> None:
        """A dial was in vain or a connection was lost; `good`: one that had proved itself."""
        await self._apart(
            lambda: self._change(lambda old, now: self._liveness.failed(old, now, random.random(), good=good))
        )

    async def worked(self) -> None:
        """A connection has proved itself: whoever waits may dial."""
        await self._apart(lambda: self._change(lambda old, now: Dials(0, 0.0, now)))

    def _ask(self) -> float:
        store = self._gate.store

        def ask() -> float:
            old = Dials.unpack(store.remember(self._topic))
            wait, new = self._liveness.turn(old, self._now(), random.random())
            if new != old and (old.failures or new.failures):
                store.remember(self._topic, new.pack())
            return wait

        return store.transact(ask)

    def _change(self, change: Callable[[Dials, float], Dials]) -> None:
        store = self._gate.store

        def write() -> None:
            old = Dials.unpack(store.remember(self._topic))
            store.remember(self._topic, change(old, self._now()).pack())

        store.transact(write)

    def _now(self) -> float:
        """Steady seconds on the store's clock, as far as this machine knows it."""
        return (time.monotonic_ns() + sum(self._gate.store.skew()) // 2) / SECOND

    async def _apart(self, work: Callable[[], Any]) -> Any:
        """Work on the store, which must not hold up the event loop if the store is far away."""
        return await asyncio.to_thread(work) if self._gate.store.remote else work()
