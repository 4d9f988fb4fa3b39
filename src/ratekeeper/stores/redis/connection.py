"""The connection to the server, and the one place where its failures become `StoreUnavailable`."""

from __future__ import annotations

import hashlib
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from ratekeeper.errors import StoreUnavailable
from ratekeeper.rules.reading import FAULTS
from ratekeeper.stores.redis.address import Address, connect, failures
from ratekeeper.stores.redis.clock import ServerClock
from ratekeeper.stores.redis.lua import script
from ratekeeper.stores.redis.protocol import Reply, Request

__all__ = ["Connection"]

R = TypeVar("R")

_UNREACHED: Final = {
    "RedisClusterException": "no node of the cluster can be reached",
    "MasterNotFoundError": "no sentinel that can be reached knows the group",
}
"""Errors of redis-py whose own text is long and tells nothing more."""


class Connection:
    """One process's connection to the server, and the server's clock. Thread-safe.

    Args:
        address: of the server.
        given: see `RedisStore`.

    Attributes:
        seen: the server's clock as last known, without asking.
        made: how many connections were made; after each the server may be another.
        calls: script calls made so far.
        took: duration of the last one, ns.
    """

    def __init__(self, address: Address, *, given: bool = False) -> None:
        self.address = address
        self.made = self.calls = self.took = 0
        self.seen = ServerClock(given=given)
        self._redis: Any = None
        self._text = script()
        self._sha = hashlib.sha1(self._text.encode(), usedforsecurity=False).hexdigest()
        self._calling = threading.Lock()
        self._making = threading.Lock()

    @property
    def redis(self) -> Any:
        """redis-py's client, made on first use, because a cluster client asks for the nodes at once.

        Raises:
            StoreError: redis-py is missing.
            Exception: of redis-py: no node of the cluster answers.
        """
        if self._redis is None:
            with self._making:
                if self._redis is None:
                    here = weakref.ref(self)

                    def made() -> None:
                        connection = here()
                        if connection is not None:
                            connection.made += 1

                    self._redis = connect(self.address, made)
        return self._redis

    @property
    def clock(self) -> ServerClock:
        """Return the server's clock; asks the server for the time if it is not known yet.

        Raises:
            StoreUnavailable: the server did not answer.
        """
        if not self.seen.at:
            sent = time.monotonic_ns()
            seconds, micros = self.ask(_time)
            self.seen.learn(sent, time.monotonic_ns(), seconds * 1_000_000 + micros)
        return self.seen

    def ask(self, command: Callable[[Any], R]) -> R:
        """Send a command and read the answer.

        Args:
            command: does both, given redis-py's client.

        Raises:
            StoreUnavailable: the server did not answer, refused the command, or sent an unreadable answer. It may have
                executed the command.
        """
        return self.read(lambda: command(self.redis))

    def read(self, reading: Callable[[], R]) -> R:
        """Run code that writes for the server or reads its answer. Every failure becomes `StoreUnavailable`, here and nowhere
        else.

        Raises:
            StoreUnavailable: see `ask`.
        """
        try:
            return reading()
        except failures() as error:
            raise StoreUnavailable(f"{self.address}: {_plain(error)}") from None
        except FAULTS as error:
            what = type(error).__name__
            raise StoreUnavailable(f"{self.address}: a request or an answer that cannot be read: {what}") from None

    def call(self, request: Request, header: Mapping[str, Any]) -> Reply:
        """Run the script once.

        Raises:
            StoreUnavailable: see `ask`.
        """
        count, arguments = request.encode(header)

        def carry(redis: Any) -> Reply:
            with self._calling:
                sent = time.monotonic_ns()
                raw = self._evaluate(redis, count, arguments)
                answered = time.monotonic_ns()
                self.calls += 1
                self.took = answered - sent
            reply = request.read(raw)
            self.seen.learn(sent, answered, reply.now)
            return reply

        return self.ask(carry)

    def _evaluate(self, redis: Any, count: int, arguments: list[Any]) -> Any:
        from redis.exceptions import NoScriptError

        try:
            return redis.evalsha(self._sha, count, *arguments)
        except NoScriptError:  # a server that was restarted, or another one
            return redis.eval(self._text, count, *arguments)

    def close(self) -> None:
        """Close the connections."""
        if self._redis is not None:
            self._redis.close()


def _time(redis: Any) -> tuple[int, int]:
    told = redis.time()
    if isinstance(told, dict):  # a cluster answers for every node; any of them will do
        told = next(iter(told.values()))
    seconds, micros = told
    return int(seconds), int(micros)


def _plain(error: BaseException) -> str:
    """Return an error of redis-py as one line of words, without the command."""
    text = next(iter(str(error).splitlines()), "")[:200]
    kind = type(error).__name__
    if kind in ("ConnectionError", "TimeoutError"):
        seen: BaseException | None = error
        while seen is not None and not (isinstance(seen, OSError) and seen.strerror):
            seen = seen.__cause__ or seen.__context__
        if kind == "TimeoutError" or isinstance(seen, TimeoutError):
            return f"it does not answer in time ({text or kind})"
        return f"it cannot be reached: {getattr(seen, 'strerror', None) or text or 'the connection broke'}"
    if kind in _UNREACHED:
        return _UNREACHED[kind]
    return f"{kind}: {text}" if text else kind
