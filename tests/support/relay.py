"""A small TCP relay on loopback: the network between a program and a server, slow, cut, or encrypted, as a test wants it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
import threading
from types import TracebackType

__all__ = ["Relay"]


class Relay:
    """Passes on to a port of loopback what comes in at a port of its own.

    Args:
        onward: the port.
        delay: milliseconds each way, (from, to); bytes keep their order.
        tls: with it the near side speaks TLS.

    Attributes:
        port: of the near side.
        passed: chunks that went towards the server.
    """

    def __init__(self, onward: int, delay: tuple[float, float] = (0, 0), tls: ssl.SSLContext | None = None) -> None:
        self.onward = onward
        self.delay = delay
        self.passed = 0
        self._tls = tls
        self._dice = random.Random(7)
        self._open = asyncio.Event()
        self._open.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls))
        self.port = int(self._server.sockets[0].getsockname()[1])
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Its address for a store."""
        return f"{'rediss' if self._tls else 'redis'}://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Nothing passes any more; nobody is told. What is sent meanwhile arrives after `mend`, as with TCP."""
        self._loop.call_soon_threadsafe(self._open.clear)

    def mend(self) -> None:
        """All passes again."""
        self._loop.call_soon_threadsafe(self._open.set)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            there, away = await asyncio.open_connection("127.0.0.1", self.onward)
        except OSError:
            writer.close()
            return
        both = {writer, away}
        self._writers.add(away)
        tasks = [
            asyncio.ensure_future(self._pass(reader, away, 1)), asyncio.ensure_future(self._pass(there, writer, 0))
        ]  # fmt: skip
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for one in both:
                one.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: int) -> None:
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def deliver() -> None:
            while True:
                due, chunk = await waiting.get()
                await asyncio.sleep(due - self._loop.time())
                await self._open.wait()
                if not chunk:
                    return
                self.passed += count
                writer.write(chunk)
                await writer.drain()

        async def take() -> None:
            due = 0.0
            chunk = b"-"
            while chunk:
                try:
                    chunk = await reader.read(65536)
                except OSError:
                    chunk = b""
                due = max(due, self._loop.time() + self._dice.uniform(*self.delay) / 1000)
                waiting.put_nowait((due, chunk))

        with contextlib.suppress(OSError):
            taking = asyncio.ensure_future(take())
            try:
                await deliver()
            finally:
                taking.cancel()
                await asyncio.gather(taking, return_exceptions=True)

    def close(self) -> None:
        """Break every connection, and take no more."""

        async def end() -> None:
            self._server.close()
            running = asyncio.all_tasks() - {asyncio.current_task()}
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            for writer in self._writers:
                writer.transport.abort()  # also one that has something left to send
            await asyncio.sleep(0)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def __enter__(self) -> Relay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
