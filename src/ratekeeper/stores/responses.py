"""The response storage: bounded, shared by all users of a store, and never in the way: any failure is a cache miss."""

from __future__ import annotations

import logging
import os
import threading
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ratekeeper.stores.blocks import boot_id
from ratekeeper.stores.files import make_folder, write_private

if TYPE_CHECKING:
    from ratekeeper.stores.redis.connection import Connection

__all__ = ["FileResponses", "MemoryResponses", "ResponseStorage", "ServerResponses"]

_LOG: Final = logging.getLogger("ratekeeper")
_NANO: Final = 1_000_000_000
_SWEEP: Final = 32
"""Puts of a process between two checks of the folder's size."""
_LONGEST: Final = 7 * 86_400.0
"""Seconds after which every response is dropped."""


class ResponseStorage(ABC):
    """Cached responses by key, each kept for a limited time. Thread-safe. A response that cannot be read or written counts as
    missing."""

    @abstractmethod
    def get(self, key: bytes) -> bytes | None:
        """Return the response of a key."""

    @abstractmethod
    def put(self, key: bytes, value: bytes, keep: float) -> None:
        """Store a response for `keep` seconds at most."""

    def close(self) -> None:
        """Close files and connections."""

    _said = False

    def _trouble(self, where: str, what: str | None) -> None:
        """Log once that responses cannot be stored."""
        if not self._said:
            self._said = True
            _LOG.warning("ratekeeper: answers cannot be kept %s: %s", where, what)


class MemoryResponses(ResponseStorage):
    """Storage in this process: it drops the least recently used responses first.

    Args:
        most: bytes of all together.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._bytes = 0
        self._lock = threading.Lock()
        self._held: OrderedDict[bytes, tuple[int, bytes]] = OrderedDict()

    def get(self, key: bytes) -> bytes | None:
        with self._lock:
            held = self._held.get(key)
            if held is None or held[0] < time.monotonic_ns():
                return None
            self._held.move_to_end(key)
            return held[1]

    def put(self, key: bytes, value: bytes, keep: float) -> None:
        if len(value) > self._most:
            return
        with self._lock:
            self._bytes += len(value) - len(self._held.pop(key, (0, b""))[1])
            self._held[key] = time.monotonic_ns() + int(keep * _NANO), value
            while self._bytes > self._most:
                _, (_, gone) = self._held.popitem(last=False)
                self._bytes -= len(gone)


class FileResponses(ResponseStorage):
    """Storage for all processes of a machine: one file per response, replaced as a whole, so that no reader sees half a file
    or waits for another. The head of a file names the boot in which its instants are valid.

    Args:
        folder: created on first use, accessible only to its owner.
        most: bytes of all together.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self._folder = folder
        self._most = most
        self._head = f"{boot_id()} ".encode()
        self._puts = 0
        self._lock = threading.Lock()

    def get(self, key: bytes) -> bytes | None:
        try:
            raw = (self._folder / key.hex()).read_bytes()
        except OSError:
            return None
        if not raw.startswith(self._head):
            return None  # of another boot
        until, _, value = raw[len(self._head) :].partition(b" ")
        return value if until.isdigit() and int(until) >= time.monotonic_ns() else None

    def put(self, key: bytes, value: bytes, keep: float) -> None:
        if len(value) > self._most:
            return
        until = time.monotonic_ns() + int(min(keep, _LONGEST) * _NANO)
        path, content = self._folder / key.hex(), b"%b%d %b" % (self._head, until, value)
        try:
            try:
                write_private(path, content)
            except FileNotFoundError:
                make_folder(self._folder)
                write_private(path, content)
        except OSError as error:
            self._trouble(f"under {self._folder}", error.strerror or str(error))
            return
        with self._lock:
            self._puts += 1
            due = self._puts % _SWEEP == 1
        if due:
            self._sweep()

    def _sweep(self) -> None:
        """Delete expired responses, then the oldest beyond the size limit."""
        found: list[tuple[float, int, str]] = []
        try:
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    about = entry.stat()
                    found.append((about.st_mtime, about.st_size, entry.path))
        except OSError:
            return
        found.sort(reverse=True)
        held, oldest = 0, time.time() - _LONGEST
        for written, size, path in found:
            held += size
            if held > self._most or written < oldest:
                Path(path).unlink(missing_ok=True)


_KEEP: Final = """
local now, until_, size, most = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
redis.call('SET', KEYS[1], ARGV[5], 'PX', until_ - now)
redis.call('ZADD', KEYS[2], until_, KEYS[1])
local held = tonumber(redis.call('HGET', KEYS[3], KEYS[1]) or '0')
local total = redis.call('HINCRBY', KEYS[3], '', size - held)
redis.call('HSET', KEYS[3], KEYS[1], size)
local gone = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, 100)
for round = 1, 1000 do
  if #gone == 0 and total > most then gone = redis.call('ZRANGE', KEYS[2], 0, 0) end
  if #gone == 0 then break end
  for g = 1, #gone do
    total = redis.call('HINCRBY', KEYS[3], '', -tonumber(redis.call('HGET', KEYS[3], gone[g]) or '0'))
    redis.call('HDEL', KEYS[3], gone[g])
    redis.call('ZREM', KEYS[2], gone[g])
    redis.call('DEL', gone[g])
  end
  gone = {}
end
redis.call('PEXPIRE', KEYS[2], 604800000)
redis.call('PEXPIRE', KEYS[3], 604800000)
"""
"""Store a response; then delete expired responses, then those beyond the size limit that expire first."""


class ServerResponses(ResponseStorage):
    """Storage for all machines of a Redis or Valkey server. All responses lie in one hash slot, with an index by expiry.

    Args:
        connection: to the server.
        most: bytes of all together.
    """

    def __init__(self, connection: Connection, most: int) -> None:
        self._connection = connection
        self._most = most

    def get(self, key: bytes) -> bytes | None:
        try:
            found: bytes | None = self._connection.redis.get(_name(key))
        except Exception as error:  # noqa: BLE001 - of redis-py, of the network: a miss
            self._trouble("on the server", type(error).__name__)
            return None
        return found

    def put(self, key: bytes, value: bytes, keep: float) -> None:
        if len(value) > self._most:
            return
        now = time.time_ns() // 1_000_000
        until = now + int(min(keep, _LONGEST) * 1000) + 1
        try:
            self._connection.redis.eval(
                _KEEP, 3, _name(key), f"{_PREFIX}ends", f"{_PREFIX}sizes", now, until, len(value), self._most, value
            )
        except Exception as error:  # noqa: BLE001 - as above
            self._trouble("on the server", type(error).__name__)


_PREFIX: Final = "{hg:answers}:"


def _name(key: bytes) -> str:
    return _PREFIX + key.hex()
