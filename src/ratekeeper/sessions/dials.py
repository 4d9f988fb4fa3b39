"""Dials of one host: whose turn it is among all processes, leave from the gate, and what became of it."""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Final, TypeVar

from ratekeeper.adapters._governor import Governor
from ratekeeper.adapters._line import Line, dialled
from ratekeeper.adapters.websockets import handshake
from ratekeeper.gate.steps import apart, drive_async
from ratekeeper.ledger.limit import Instant
from ratekeeper.policy.shared import seconds
from ratekeeper.sessions.liveness import Dials, Liveness

if TYPE_CHECKING:
    from ratekeeper import Gate, Priority
    from ratekeeper.sessions.transports import Open, Transport

__all__ = ["Dialler"]

T = TypeVar("T")

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
            wait = await self._change(self._liveness.turn, 0.0)
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
        failed = functools.partial(self._liveness.failed, good=good)
        await self._change(lambda old, now, dice: (None, failed(old, now, dice)), None)

    async def worked(self) -> None:
        """A connection has proved itself: whoever waits may dial."""
        await self._change(lambda old, now, dice: (None, Dials(0, 0.0, now)), None)

    async def _change(self, after: Callable[[Dials, float, float], tuple[T, Dials]], otherwise: T) -> T:
        """Changes what all processes know of dialling this host.

        Args:
            after: given that, the present in steady seconds of the store and a die from 0 to 1, what `_change` returns, and
                what is known then.
            otherwise: what it returns where the store cannot be asked.
        """
        store, dice = self._gate.store, random.random()

        def change(old: Dials | None, now: Instant) -> tuple[Dials | None, T]:
            result, new = after(old or Dials(), seconds(now), dice)
            # Where all was well and is, there is nothing to write down.
            return (new if new.failures or (old is not None and old.failures) else old), result

        work = functools.partial(store.update, self._topic, Dials, change)
        return await drive_async(apart(self._gate.worker, self._topic, work, otherwise, is_async=True))
