"""Websockets of a governed aiohttp session, against the emulator: what they hold while open, and that it comes back."""

from __future__ import annotations

import asyncio
import gc
import time
import warnings
from collections.abc import Awaitable, Callable, Iterator

import aiohttp
import pytest

from ratekeeper import Gate
from ratekeeper.adapters.aiohttp import govern
from ratekeeper.errors import Rejected
from ratekeeper.testing import Emulator

PATH = "/v2/ws/public"
CONNECTIONS, DIALS, MESSAGES = "ws-connections", "ws-connects-5m", "ws-messages-1s"


class Place:
    """Bitget, as far as its websockets go, and a gate for it."""

    def __init__(self, emulator: Emulator, gate: Gate) -> None:
        self.emulator = emulator
        self.gate = gate
        self.url = emulator.url.replace("http://", "ws://") + PATH

    def spent(self, limit: str) -> tuple[int, int]:
        """What is used of a limit, and what is in flight."""
        found = [view for view in self.gate.read().ledgers if f"/{limit}/" in view.key]
        return sum(view.used for view in found), sum(view.inflight for view in found)

    def names(self) -> int:
        """Names that connections have had: those that ledgers are kept under."""
        return len({view.key for view in self.gate.read().ledgers if f"/{MESSAGES}/" in view.key})

    async def until_free(self) -> None:
        """Until no connection is held any more, which takes the event loop a few turns."""
        async with asyncio.timeout(10):
            while self.spent(CONNECTIONS)[1]:
                await asyncio.sleep(0.01)


@pytest.fixture
def place() -> Iterator[Place]:
    """An emulator and a gate that end with the test."""
    with Emulator("bitget", ws_interval=0.05) as emulator, Gate("memory://", hosts=emulator.hosts) as gate:
        yield Place(emulator, gate)


async def _by_client(_: Place, __: aiohttp.ClientSession, socket: aiohttp.ClientWebSocketResponse) -> None:
    await socket.close()


async def _by_server(place: Place, _: aiohttp.ClientSession, socket: aiohttp.ClientWebSocketResponse) -> None:
    await asyncio.to_thread(place.emulator.cut, "close")
    assert (await socket.receive()).type is aiohttp.WSMsgType.CLOSE


async def _lost(place: Place, _: aiohttp.ClientSession, __: aiohttp.ClientWebSocketResponse) -> None:
    await asyncio.to_thread(place.emulator.cut, "abort")  # and nobody reads


async def _with_session(_: Place, session: aiohttp.ClientSession, __: aiohttp.ClientWebSocketResponse) -> None:
    await session.close()


ENDS: list[Callable[..., Awaitable[None]]] = [_by_client, _by_server, _lost, _with_session]


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__.strip("_"))
def test_it_holds_its_place_until_it_ends(place: Place, end: Callable[..., Awaitable[None]]) -> None:
    """The dial is spent with the handshake; the place among the connections comes back, whoever ends it."""

    async def main() -> None:
        async with aiohttp.ClientSession() as session:
            govern(session, gate=place.gate)
            socket = await session.ws_connect(place.url)
            assert place.spent(DIALS) == (1, 0)
            assert place.spent(CONNECTIONS)[1] == 1
            await end(place, session, socket)
            await place.until_free()
            await socket.close()

    asyncio.run(main())
    assert place.names() == 1


def test_one_that_is_forgotten_gives_its_place_back(place: Place) -> None:
    """A program drops a socket without closing it."""

    async def main() -> None:
        async with aiohttp.ClientSession() as session:
            govern(session, gate=place.gate)
            socket = await session.ws_connect(place.url)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)  # some versions of aiohttp complain
                del socket
                gc.collect()
            await place.until_free()

    asyncio.run(main())


def test_a_refused_dial_is_told(place: Place) -> None:
    """What the handshake met holds for the next one, which is not made; nothing stays held."""
    place.emulator.ban(seconds=60)

    async def main() -> None:
        async with aiohttp.ClientSession() as session:
            govern(session, gate=place.gate)
            with pytest.raises(aiohttp.WSServerHandshakeError):
                await session.ws_connect(place.url)
            place.gate.max_wait = 1.0
            with pytest.raises(Rejected):
                await session.ws_connect(place.url)

    asyncio.run(main())
    assert place.emulator.stats()["routes"][f"WS-CONNECT {PATH}"] == 1
    assert place.spent(CONNECTIONS)[1] == 0


def test_cancelled_at_every_step(place: Place) -> None:
    """After each turn of the event loop that a dial takes: no place is held, and no connection stays open."""

    async def main() -> None:
        async with aiohttp.ClientSession() as session:
            govern(session, gate=place.gate)

            async def dial() -> aiohttp.ClientWebSocketResponse:
                return await session.ws_connect(place.url)

            for turns in range(60):
                task = asyncio.create_task(dial())
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                (found,) = await asyncio.gather(task, return_exceptions=True)
                if isinstance(found, aiohttp.ClientWebSocketResponse):
                    await found.close()
            await place.until_free()

    asyncio.run(main())
    end = time.monotonic() + 10
    while place.emulator.stats()["sockets"]["open"]:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert place.names() <= 2


def test_messages_wait_for_their_limit_and_a_ping_goes_first(place: Place) -> None:
    """Twenty-five at once where ten a second are allowed: none is too many, and a ping need not wait for all of them."""

    async def main() -> None:
        async with aiohttp.ClientSession() as session:
            govern(session, gate=place.gate)
            async with session.ws_connect(place.url) as socket:
                order: list[str] = []

                async def say(number: int) -> None:
                    await socket.send_str("ping")
                    order.append(f"message {number}")

                tasks = [asyncio.create_task(say(number)) for number in range(25)]
                await asyncio.sleep(0.2)
                await socket.ping()
                order.append("ping")
                await asyncio.gather(*tasks)
                assert order.index("ping") < 20, order
                answers = [await socket.receive_str() for _ in range(25)]
        assert set(answers) == {"pong"}

    asyncio.run(main())
    assert place.emulator.stats()["totals"]["sockets_closed"] == 0


def test_a_pause_holds_messages_and_no_pings(place: Place) -> None:
    """While everything at the provider is paused a message waits, and a ping does not."""

    async def main() -> None:
        async with aiohttp.ClientSession() as session:
            govern(session, gate=place.gate)
            async with session.ws_connect(place.url) as socket:
                (scope,) = {view.key.partition("/")[0] for view in place.gate.read().ledgers}
                place.gate.block(scope, 1.0)
                sent = asyncio.create_task(socket.send_str("ping"))
                await socket.ping()
                await asyncio.sleep(0.1)
                assert not sent.done()
                await sent
                assert await socket.receive_str() == "pong"

    asyncio.run(main())
