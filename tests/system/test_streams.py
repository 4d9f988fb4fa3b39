"""Streams against the emulator and against servers that misbehave: they go on, without gaps and without storms."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, broadcast, serve

from ratekeeper import Gate
from ratekeeper.apps.run import environment
from ratekeeper.sessions import connections
from ratekeeper.sessions.dialects import Habits
from ratekeeper.sessions.dials import Dialler
from ratekeeper.sessions.liveness import Liveness
from ratekeeper.sessions.stream import Message, Stream
from ratekeeper.sessions.transports import Aiohttp, Transport, Websockets
from ratekeeper.testing import Emulator

QUICK = Liveness(stale_after=1.0, first=0.1, longest=1.0, overlap=0.3, overlap_most=3.0)
TOPIC = "btcusdt@trade"


@pytest.fixture
def spot() -> Iterator[Callable[..., tuple[Emulator, Gate]]]:
    """Makes an emulator of Binance spot, and a gate for it."""
    made: list[Any] = []

    def make(**options: Any) -> tuple[Emulator, Gate]:
        emulator = Emulator("binance-spot", ws_interval=0.02, **options)
        made.append(emulator)
        gate = Gate("memory://", hosts=emulator.hosts)
        made.append(gate)
        return emulator, gate

    yield make
    for each in reversed(made):
        each.close()


def url(emulator: Emulator) -> str:
    """Of its market streams."""
    return emulator.url.replace("http://", "ws://") + "/stream"


def number(message: Message) -> int:
    """The emulator's running number of a message."""
    return int(json.loads(message.data)["data"]["seq"])


async def take(stream: Stream, wanted: Callable[[Message], bool], seconds: float = 20) -> list[Message]:
    """Messages until one is wanted."""
    found = []
    async with asyncio.timeout(seconds):
        async for message in stream:
            found.append(message)
            if wanted(message):
                break
    return found


def transports() -> list[Any]:
    """Both libraries."""
    return [pytest.param(name, id=name) for name in ("websockets", "aiohttp")]


async def with_transport(name: str, use: Callable[[Transport], Any]) -> None:
    """Runs with one of the libraries; nothing is left behind."""
    if name == "websockets":
        await use(Websockets())
    else:
        import aiohttp

        async with aiohttp.ClientSession() as session:
            await use(Aiohttp(session))
    await asyncio.sleep(0)
    assert [task.get_name() for task in asyncio.all_tasks() if "ratekeeper" in task.get_name()] == []


@pytest.mark.parametrize("library", transports())
@pytest.mark.parametrize("mode", ["close", "abort", "silent"])
def test_survives_a_cut(spot: Callable[..., tuple[Emulator, Gate]], mode: str, library: str) -> None:
    """Closed, reset or silent: the stream dials again, subscribes again, and says so."""
    emulator, gate = spot()
    events: list[str] = []
    gate.on(lambda event: events.append(event.kind))

    async def use(transport: Transport) -> None:
        async with Stream(gate, url(emulator), [TOPIC], liveness=QUICK, transport=transport) as stream:
            first = await take(stream, lambda _: True)
            assert emulator.cut(mode) == 1
            await take(stream, lambda _: stream.state.reconnects == 1 and stream.state.state == "live")
            after = await take(stream, lambda message: number(message) > number(first[0]))
            assert after
            assert stream.state.dials == 2
        assert stream.state.state == "closed"

    asyncio.run(with_transport(library, use))
    down = "stream stale" if mode == "silent" else "stream down"
    assert [kind for kind in events if kind.startswith("stream")] == [down, "stream back"]
    assert emulator.stats()["sockets"]["open"] == 0


@pytest.mark.parametrize("library", transports())
def test_rolls_over_without_a_gap(spot: Callable[..., tuple[Emulator, Gate]], library: str, tmp_path: Path) -> None:
    """Before the provider ends a connection another has taken over: every message comes, once, in order."""
    emulator, _ = spot(ws_lifetime=5)
    # The bundled rules with another life: a file of the same name takes their place. It is told shorter than it is, for
    # a busy machine dials late.
    rules = tmp_path / "short.toml"
    rules.write_text(emulator.rules().replace('lifetime = "24h"', 'lifetime = "3s"'))
    with Gate("memory://", hosts=emulator.hosts, rules=[rules]) as gate:

        async def use(transport: Transport) -> None:
            async with Stream(gate, url(emulator), [TOPIC], liveness=QUICK, transport=transport) as stream:
                messages = await take(stream, lambda _: stream.state.rollovers == 2) + await take(
                    stream, lambda _: True
                )
                # The provider may also say that it is about to close.
                seen = [number(message) for message in messages if "serverShutdown" not in message.data]
                assert seen == list(range(seen[0], seen[0] + len(seen)))
                assert stream.state.reconnects == 0

        asyncio.run(with_transport(library, use))
    assert emulator.stats()["sockets"]["ended"].get("lifetime", 0) == 0


def test_falls_back_to_polling(spot: Callable[..., tuple[Emulator, Gate]]) -> None:
    """While it is down, what the fallback gives comes out marked as polled; then messages come again."""
    emulator, gate = spot()
    calls = 0

    async def fallback() -> str:
        nonlocal calls
        calls += 1
        return "by hand"

    async def run() -> None:
        async with Stream(
            gate, url(emulator), [TOPIC], liveness=QUICK, fallback=fallback, every=0.05, fallback_after=0
        ) as stream:
            await take(stream, lambda _: True)
            emulator.options(ws_refuse=1.0)
            emulator.cut("abort")
            polled = (await take(stream, lambda message: message.polled))[-1]
            assert polled.data == "by hand"
            assert stream.state.state == "polled"
            emulator.options(ws_refuse=0.0)
            await take(stream, lambda message: not message.polled)
            await take(stream, lambda _: stream.state.state == "live")
            before = calls
            await take(stream, lambda message: number(message) > 0 if not message.polled else False)
            for _ in range(10):
                assert not (await anext(stream)).polled
            assert calls == before

    asyncio.run(run())


def test_falls_back_while_the_first_dial_hangs() -> None:
    """A server that accepts and says nothing: the fallback serves before the first dial has failed."""

    async def fallback() -> str:
        return "by hand"

    async def run() -> None:
        hung = asyncio.Event()

        async def hang(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await hung.wait()
            writer.close()

        async with await asyncio.start_server(hang, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            with Gate("memory://") as gate:
                async with Stream(gate, f"ws://127.0.0.1:{port}/", fallback=fallback, fallback_after=0.05) as stream:
                    async with asyncio.timeout(5):  # the library gives up a handshake after 10 s
                        assert (await anext(stream)).data == "by hand"
                    assert (stream.state.state, stream.state.problem) == ("polled", "")
            hung.set()

    asyncio.run(run())


@contextlib.asynccontextmanager
async def server(handler: Callable[[ServerConnection], Awaitable[None]]) -> AsyncIterator[str]:
    """A websocket server; its URL."""
    async with serve(handler, "127.0.0.1", 0, ping_interval=None) as serving:
        yield f"ws://127.0.0.1:{serving.sockets[0].getsockname()[1]}/"


async def until(holds: Callable[[], Any], seconds: float = 10) -> None:
    """Waits until something holds."""
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("library", transports())
def test_a_dial_that_hangs_is_given_up(library: str) -> None:
    """A server that accepts and says nothing is given up, said, and dialled again, with both libraries."""
    said: list[str] = []

    came, gone = [0], [0]

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came[0] += 1
        await reader.read()  # until the client has gone
        writer.close()
        gone[0] += 1

    async def use(transport: Transport) -> None:
        async with await asyncio.start_server(hang, "127.0.0.1", 0) as hanging:
            place = f"ws://127.0.0.1:{hanging.sockets[0].getsockname()[1]}/"
            with Gate("memory://") as gate:
                gate.on(lambda event: said.append(event.message))
                quick = Liveness(dial_within=0.2, first=0.05, longest=0.1)
                async with Stream(gate, place, transport=transport, liveness=quick):
                    await until(lambda: came[0] >= 2)
            await until(lambda: gone == came)

    asyncio.run(with_transport(library, use))
    assert [text.partition(": ")[2] for text in said] == ["TimeoutError: the dial took more than 0.2 s"]


@pytest.mark.parametrize("lost", [False, True], ids=["hangs", "lost"])
def test_a_setup_that_hangs_is_given_up(lost: bool) -> None:
    """A `setup` that waits for what never comes, also because the connection is lost meanwhile: dialled again, and said."""
    said: list[str] = []

    async def handler(connection: ServerConnection) -> None:
        if lost:
            await connection.close(1001)
        await connection.wait_closed()

    async def setup(send: Callable[[str], Awaitable[None]]) -> None:
        await asyncio.Event().wait()

    async def run() -> None:
        async with server(handler) as place:
            with Gate("memory://") as gate:
                gate.on(lambda event: said.append(event.message))
                quick = Liveness(setup_within=60 if lost else 0.1, first=0.05, longest=0.1)
                async with Stream(gate, place, setup=setup, liveness=quick) as stream:
                    await until(lambda: stream.state.dials >= 2)
                assert [task.get_name() for task in asyncio.all_tasks() if "ratekeeper" in task.get_name()] == []

    asyncio.run(run())
    assert len(said) == 1
    assert ("1001" if lost else "the setup of a connection took more than 0.1 s") in said[0]


def test_topics_that_change_during_the_setup() -> None:
    """What is subscribed and unsubscribed before a connection is ready holds for that connection; no topic is sent twice."""
    heard: list[dict[str, Any]] = []

    async def handler(connection: ServerConnection) -> None:
        while True:
            heard.append(json.loads(await connection.recv()))

    async def run() -> None:
        ready = asyncio.Event()

        async def setup(send: Callable[[str], Awaitable[None]]) -> None:
            await send('{"op": "login"}')
            await ready.wait()

        async with server(handler) as place:
            with Gate("memory://") as gate:
                async with Stream(gate, place, ["a", "b"], setup=setup) as stream:
                    await until(lambda: heard)
                    await stream.subscribe("c", "a")
                    await stream.unsubscribe("b")
                    ready.set()
                    await until(lambda: stream.state.state == "live")
                    await stream.subscribe("d")
                    await until(lambda: len(heard) >= 3)

    asyncio.run(run())
    wanted = [{"op": "subscribe", "args": ["a", "c"]}, {"op": "subscribe", "args": ["d"]}]
    assert heard == [{"op": "login"}, *wanted]


def test_a_fallback_that_hangs_is_called_again(caplog: pytest.LogCaptureFixture) -> None:
    """A call of the fallback that never ends is given up and said; the next one serves."""
    calls = 0

    async def fallback() -> str:
        nonlocal calls
        calls += 1
        if calls == 1:
            await asyncio.Event().wait()
        return "polled"

    async def run() -> None:
        with Gate("memory://") as gate:
            stream = Stream(
                gate, "ws://127.0.0.1:9/", fallback=fallback, every=0.01, fallback_after=0, fallback_within=0.1
            )
            async with stream, asyncio.timeout(10):
                assert (await anext(stream)).data == "polled"

    asyncio.run(run())
    assert "the fallback of the stream of 127.0.0.1:9 failed: TimeoutError" in caplog.text


@pytest.mark.parametrize("library", transports())
def test_pings_behind_a_slow_consumer(library: str) -> None:
    """While messages wait for the consumer a pong cannot be read: the connection is not blamed, and no message is lost."""

    async def handler(connection: ServerConnection) -> None:
        for nth in range(100):
            await connection.send(str(nth))
        await connection.wait_closed()

    async def use(transport: Transport) -> None:
        async with server(handler) as place:
            with Gate("memory://") as gate:
                often = Liveness(ping_every=0.05, ping_patience=0.02)
                async with Stream(gate, place, transport=transport, liveness=often, backlog=5) as stream:
                    await anext(stream)
                    connection = stream._live
                    assert connection is not None
                    pings = set()
                    await until(lambda: pings.add(connection.pinging) or len(pings) > 5)
                    assert [(await anext(stream)).data for _ in range(99)] == [str(nth) for nth in range(1, 100)]
                    assert stream.state.dials == 1

    asyncio.run(with_transport(library, use))


def test_a_wait_for_a_turn_is_said() -> None:
    """A stream that may not dial yet, because dials of others came to nothing, says so."""
    said: list[str] = []

    async def run() -> None:
        with Gate("memory://") as gate:
            gate.on(lambda event: said.append(event.kind))
            patient = Liveness(first=1e6, longest=1e6)
            dialler = Dialler(gate, "ws://127.0.0.1:9/", {}, Websockets(), patient, None)
            await dialler.failed(good=False)
            async with Stream(gate, "ws://127.0.0.1:9/", liveness=patient):
                await until(lambda: said)

    asyncio.run(run())
    assert said == ["waiting"]


def test_a_rollover_behind_a_slow_consumer(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the consumer is slow, what the following connection brings is held up to a bound, and nothing is lost."""
    monkeypatch.setattr(connections, "_MOST_HELD", 20)
    open_now: set[ServerConnection] = set()

    async def handler(connection: ServerConnection) -> None:
        open_now.add(connection)
        try:
            await connection.wait_closed()
        finally:
            open_now.remove(connection)

    async def feed() -> None:
        for nth in itertools.count():
            broadcast(open_now, str(nth))
            await asyncio.sleep(0.002)

    async def run() -> None:
        async with server(handler) as place:
            feeding = asyncio.create_task(feed())
            with Gate("memory://") as gate:
                stream = Stream(gate, place, backlog=5, liveness=Liveness(ping_every=0.2, overlap=0.1))
                stream._habits = Habits(lifetime=0.5)
                async with stream:
                    seen = [int((await anext(stream)).data)]
                    await until(lambda: stream._next is not None and len(stream._next.held) >= 20)
                    await asyncio.sleep(0.3)
                    assert stream._next is not None and len(stream._next.held) == 20
                    async with asyncio.timeout(10):
                        while stream.state.rollovers < 1 or len(seen) < 500:
                            seen.append(int((await anext(stream)).data))
                    assert seen == list(range(seen[0], seen[0] + len(seen)))
                    assert stream.state.reconnects == 0
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)

    asyncio.run(run())


def test_no_storm_on_accept_and_close() -> None:
    """A server that accepts and closes at once is dialled as seldom by many streams of a gate as by one."""
    dials = 0

    async def close(connection: ServerConnection) -> None:
        nonlocal dials
        dials += 1
        await connection.close()

    async def run() -> None:
        async with serve(close, "127.0.0.1", 0) as server:
            place = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
            with Gate("memory://") as gate:
                patient = Liveness(first=30, longest=30)
                streams = [Stream(gate, place, liveness=patient) for _ in range(10)]
                for stream in streams:
                    await stream.__aenter__()
                async with asyncio.timeout(10):
                    while not all(stream.state.dials or stream.state.problem for stream in streams):
                        await asyncio.sleep(0.02)
                await asyncio.sleep(1.0)
                for stream in streams:
                    await stream.close()

    asyncio.run(run())
    assert 1 <= dials <= 20, "ten at first, and not again and again within a second"


def test_a_cancelled_consumer_closes(spot: Callable[..., tuple[Emulator, Gate]]) -> None:
    """Without a block around it, the stream ends with the task that reads it."""
    emulator, gate = spot()

    async def run() -> None:
        stream = Stream(gate, url(emulator), [TOPIC], liveness=QUICK)

        async def consume() -> None:
            async for _ in stream:
                pass

        task = asyncio.create_task(consume())
        while stream.state.age is None:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert stream.state.state == "closed"
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())
    assert emulator.stats()["sockets"]["open"] == 0


def test_a_slow_consumer_is_no_stale_stream(spot: Callable[..., tuple[Emulator, Gate]]) -> None:
    """When nobody takes messages, none is lost, and the connection is not blamed."""
    emulator, gate = spot()

    async def run() -> None:
        async with Stream(gate, url(emulator), [TOPIC], liveness=QUICK, backlog=5) as stream:
            await anext(stream)
            await asyncio.sleep(2.5)
            seen = [number(await anext(stream)) for _ in range(50)]
            assert seen == list(range(seen[0], seen[0] + 50))
            assert stream.state.dials == 1

    asyncio.run(run())


PROGRAMS = {
    "asyncio": """
        import asyncio, os, websockets
        async def one():
            async with websockets.connect(os.environ["URL"]) as socket:
                for _ in range(8):
                    await socket.send('{"method": "LIST_SUBSCRIPTIONS", "id": 1}')
                for _ in range(8):
                    await socket.recv()
        async def main():
            for _ in range(4):
                await one()
        asyncio.run(main())
    """,
    "aiohttp": """
        import aiohttp, asyncio, os
        async def one(session):
            async with session.ws_connect(os.environ["URL"], heartbeat=3) as socket:
                await asyncio.gather(*[socket.send_json({"method": "LIST_SUBSCRIPTIONS", "id": n}) for n in range(8)])
                for _ in range(8):
                    await socket.receive_json()
        async def main():
            async with aiohttp.ClientSession() as session:
                for _ in range(4):
                    await one(session)
        asyncio.run(main())
    """,
    "websocket_client": """
        import os, websocket
        refused = websocket.WebSocket()
        try:
            refused.connect("ws://127.0.0.1:9/")  # nobody is there, and nobody has rules for it
        except OSError:
            pass
        for _ in range(3):
            socket = websocket.create_connection(os.environ["URL"], header=["X-Bot: 1"])
            for _ in range(8):
                socket.send('{"method": "LIST_SUBSCRIPTIONS", "id": 1}')
            for _ in range(8):
                socket.recv()
            socket.close()
        got = []

        def opened(app):
            for _ in range(8):
                app.send('{"method": "LIST_SUBSCRIPTIONS", "id": 1}')

        def came(app, message):
            got.append(message)
            if len(got) == 8:
                app.close()

        app = websocket.WebSocketApp(os.environ["URL"], on_open=opened, on_message=came)
        app.run_forever(ping_interval=4, ping_timeout=3)
        assert len(got) == 8, got
    """,
    "threads": """
        import os
        from websockets.sync.client import connect
        for _ in range(4):
            with connect(os.environ["URL"]) as socket:
                for _ in range(8):
                    socket.send('{"method": "LIST_SUBSCRIPTIONS", "id": 1}')
                for _ in range(8):
                    socket.recv()
    """,
}


CCXT_PRO = """
    import asyncio, os
    import ccxt.pro

    def here(tree):
        base = os.environ["URL"].removesuffix("/stream")
        moved = {"https://fapi.binance.com": base.replace("ws", "http"), "wss://fstream.binance.com": base}
        for name, found in tree.items():
            if isinstance(found, dict):
                here(found)
            for old, new in moved.items():
                if str(found).startswith(old):
                    tree[name] = found.replace(old, new)

    async def main():
        exchange = ccxt.pro.binanceusdm()
        here(exchange.urls["api"])
        exchange.options["streamLimits"] = dict.fromkeys(exchange.options["streamLimits"], 1)  # one connection for all
        await exchange.load_markets()
        symbols = [symbol for symbol in exchange.symbols if exchange.market(symbol)["swap"]][:5]
        found = await asyncio.gather(*[exchange.watch_trades(symbol) for symbol in symbols])
        assert all(found), found
        await exchange.close()

    asyncio.run(main())
"""


GOVERNED = CCXT_PRO.replace(
    "exchange = ccxt.pro.binanceusdm()",
    "from ratekeeper.adapters.ccxt import govern; exchange = govern(ccxt.pro.binanceusdm())",
)


def run_all(emulator: Emulator, folder: Path, programs: dict[str, str], *, unchanged: bool = True) -> None:
    """Run programs at once, to their ends; Ratekeeper is told of the emulator, and of `unchanged` ones, by the
    environment."""
    rules = folder / "short.toml"
    rules.write_text(emulator.rules())
    settings = folder / "ratekeeper.toml"
    settings.write_text(f'rules = ["{rules}"]\n')
    env = {
        **(environment(dict(os.environ)) if unchanged else os.environ),
        "RATEKEEPER_HOSTS": emulator.hosts,
        "RATEKEEPER_HOME": str(folder / "home"),
        "RATEKEEPER_CONFIG": str(settings),
        "URL": url(emulator),
    }
    running = []
    for name, source in programs.items():
        file = folder / f"with_{name}.py"
        file.write_text(textwrap.dedent(source))
        running.append(
            subprocess.Popen(
                [sys.executable, str(file)], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    said = [program.communicate(timeout=60)[0] for program in running]
    assert [program.returncode for program in running] == [0] * len(running), said


def test_unchanged_programs_keep_to_the_limits(tmp_path: Path) -> None:
    """Programs that know nothing of Ratekeeper: dials wait across all, messages on each connection, and none is cut."""
    with Emulator("binance-spot", limits={"connections-5m": (5, 3.0)}) as emulator:
        run_all(emulator, tmp_path, PROGRAMS)
        stats = emulator.stats()
        assert stats["sockets"]["dials"]["127.0.0.1"]["count"] == 4 * len(PROGRAMS)
        assert stats["sockets"]["dials"]["127.0.0.1"]["refused"] == 0
        assert stats["totals"]["sockets_closed"] == 0, "five messages a second, and not one more"
        assert stats["totals"]["throttled"] == 0


@pytest.mark.parametrize("unchanged", [True, False], ids=["unchanged", "governed"])
def test_ccxt_pro_keeps_to_the_limits(tmp_path: Path, unchanged: bool) -> None:
    """Five subscriptions at once on a connection that takes two messages a second."""
    with Emulator("binance-usdm", ws_interval=0.05, limits={"ws-messages-1s": (2, 1.0)}) as emulator:
        run_all(emulator, tmp_path, {"ccxt_pro": CCXT_PRO if unchanged else GOVERNED}, unchanged=unchanged)
        stats = emulator.stats()
        assert stats["sockets"]["dials"]["127.0.0.1"]["count"] == 1
        assert stats["sockets"]["messages"]["in"] >= 5
        assert stats["totals"]["sockets_closed"] == 0
