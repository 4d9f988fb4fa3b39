"""The line to the server: one script call at a time, what it carries, and what time it is over there."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from ratekeeper.errors import StoreUnavailable
from ratekeeper.ledger.limit import SECOND, Instant, Limit
from ratekeeper.rules.reading import FAULTS
from ratekeeper.stores.redis.address import Address, connect
from ratekeeper.stores.redis.lua import script, spec

__all__ = ["MICRO", "Line", "Load", "Reply", "Skew", "keys_of"]

MICRO: Final = 1_000
"""Nanoseconds in a microsecond, the server's unit."""
_DRIFT: Final = 5_000
_WIDE: Final = 300 * SECOND
_FIXED: Final = ("meta", "permits", "held", "blocks", "members", "ledgers")
_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder().decode


def keys_of(namespace: str) -> str:
    """How all keys of a provider begin; the braces put them into one hash slot of a cluster."""
    return f"hg:{{{namespace}}}:"


class Skew:
    """Bounds of (the server's clock - this machine's steady clock), ns, from round trips.

    A server whose clock steps, or another that took its place, is believed along with the old one for a while: what counts
    on the server's clock is then neither forgotten early nor promised early.
    """

    def __init__(self) -> None:
        self.lo = self.hi = 0
        self.at = 0
        self.jumps = 0
        """How often the clocks jumped against each other."""
        self._new = (0, 0)
        self._wide = 0

    def learn(self, sent: int, answered: int, stamp: int) -> None:
        """The server said `stamp` (us) between the steady instants `sent` and `answered`."""
        lo, hi = stamp * MICRO - answered, (stamp + 1) * MICRO - sent
        if not self.at:
            self.lo, self.hi = lo, hi
        else:
            drift = max(0, answered - self.at) // _DRIFT
            old_lo, old_hi = self.lo - drift, self.hi + drift
            if self._wide and answered > self._wide:
                self._wide, (old_lo, old_hi) = 0, self._new
            if lo > old_hi or hi < old_lo or self._wide:
                if not self._wide:
                    self.jumps += 1
                    self._wide = answered + _WIDE
                self._new = lo, hi
                self.lo, self.hi = min(lo, old_lo), max(hi, old_hi)
            else:
                self.lo, self.hi = max(lo, old_lo), min(hi, old_hi)
        self.at = answered


class Load:
    """What one script call carries for one namespace."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.items: list[list[Any]] = []
        self.names: list[str] = []
        self.blobs: list[bytes] = []
        self.limits: list[list[int]] = []
        self._ledgers: dict[str, int] = {}
        self._limit_at: dict[int, tuple[int, Limit]] = {}

    def ledger(self, key: str) -> int:
        """The number by which items name a ledger."""
        number = self._ledgers.get(key)
        if number is None:
            self.names.append(key)
            number = self._ledgers[key] = len(self.names)
        return number

    def limit(self, limit: Limit) -> int:
        """The number by which items name a limit."""
        known = self._limit_at.get(id(limit))
        if known is None:
            self.limits.append(spec(limit))
            known = self._limit_at[id(limit)] = len(self.limits), limit  # kept, so that its id stays its own
        return known[0]

    def blob(self, raw: bytes) -> int:
        """The number by which items name some bytes."""
        self.blobs.append(raw)
        return len(self.blobs)


class Reply(NamedTuple):
    """What the script said.

    Attributes:
        kind: ``ok``, ``stale`` or ``lost``.
        now: the server's clock, us.
        gen: generation of blocks and learned limits.
        rest: by kind.
        blobs: raw bytes, named from 1.
    """

    kind: str
    now: int
    gen: int
    rest: list[Any]
    blobs: Sequence[bytes]


class Line:
    """One process's way to the server. Thread-safe.

    Args:
        address: of the server.
        connected: called whenever a connection was made: it may be another server than before.
    """

    def __init__(self, address: Address, connected: Callable[[], None]) -> None:
        self.address = address
        self.took = 0
        """How long the last call took, ns."""
        self._connected = connected
        self._client: Any = None
        self.skew = Skew()
        self.trips = 0
        """Script calls made so far."""
        self._text = script()
        self._sha = hashlib.sha1(self._text.encode(), usedforsecurity=False).hexdigest()
        self._lock = threading.Lock()
        self._making = threading.Lock()

    @property
    def client(self) -> Any:
        """redis-py's client, made on first use: that of a cluster asks for the nodes at once.

        Raises:
            StoreUnavailable: no node of the cluster answers.
            StoreError: redis-py is missing.
        """
        if self._client is None:
            with self._making:
                if self._client is None:
                    self._client = connect(self.address, self._connected)
        return self._client

    def carry(self, load: Load, header: dict[str, Any]) -> Reply:
        """Run the script once.

        Raises:
            StoreUnavailable: the server did not answer; whether the script ran is not known.
        """
        prefix = keys_of(load.namespace)
        keys = [prefix + name for name in _FIXED] + [f"{prefix}L:{name}" for name in load.names]
        arguments = (*keys, _encode({**header, "limits": load.limits}), _encode(load.items), *load.blobs)
        with self._lock:
            sent = time.monotonic_ns()
            raw = self._call(len(keys), arguments)
            answered = time.monotonic_ns()
            self.trips += 1
            self.took = answered - sent
        try:
            kind, now, gen, *rest = _decode(raw[0])
            found = Reply(str(kind), int(now), int(gen), rest, raw)
        except FAULTS as error:
            raise StoreUnavailable(f"{self.address}: an answer that cannot be read: {type(error).__name__}") from None
        if "now" not in header:
            self.skew.learn(sent, answered, found.now)
        return found

    def _call(self, count: int, arguments: tuple[Any, ...]) -> Sequence[bytes]:
        import redis

        try:
            try:
                found: Sequence[bytes] = self.client.evalsha(self._sha, count, *arguments)
            except redis.exceptions.NoScriptError:  # a server that was restarted, or another one
                found = self.client.eval(self._text, count, *arguments)
            return found
        except (redis.exceptions.RedisError, redis.exceptions.RedisClusterException, OSError) as error:
            raise StoreUnavailable(f"{self.address}: {_plain(error)}") from None

    def ask(self, command: Callable[[Any], Any]) -> Any:
        """Any other command, given redis-py's client.

        Raises:
            StoreUnavailable: the server did not answer.
        """
        import redis

        try:
            return command(self.client)
        except (redis.exceptions.RedisError, redis.exceptions.RedisClusterException, OSError) as error:
            raise StoreUnavailable(f"{self.address}: {_plain(error)}") from None

    def learn_time(self) -> None:
        """Ask the server for its clock, so that `skew` is known."""
        sent = time.monotonic_ns()
        seconds, micros = self.ask(lambda client: _one(client.time()))
        self.skew.learn(sent, time.monotonic_ns(), seconds * 1_000_000 + micros)

    def offsets(self, now: Instant) -> tuple[int, int]:
        """Bounds of (the provider's clock - the server's), us."""
        return (now.lo - now.mono - self.skew.hi) // MICRO, -((now.mono - now.hi + self.skew.lo) // MICRO)

    def close(self) -> None:
        """Let go of the connections."""
        if self._client is not None:
            self._client.close()


def _one(answer: Any) -> Any:
    """A cluster answers for every node; any of them will do."""
    return next(iter(answer.values())) if isinstance(answer, dict) else answer


def _plain(error: BaseException) -> str:
    """An error of redis-py as one line, without what was sent."""
    text = str(error).splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
