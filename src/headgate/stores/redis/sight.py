"""The server's ledgers as people, and the safe share, look at them: on this machine's clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from headgate.ledger.base import Ledger
from headgate.ledger.limit import Instant
from headgate.stores.records import Snapshot, view
from headgate.stores.redis.line import keys_of
from headgate.stores.redis.lua import from_lua

if TYPE_CHECKING:
    from headgate.stores.redis.store import RedisStore
    from headgate.stores.redis.trips import Trips

__all__ = ["ledger_at", "over_there", "read_all"]


def ledger_at(raw: bytes, now: Instant) -> Ledger:
    """A ledger as it lies on the server, brought up to `now` on the server's clock."""
    ledger = from_lua(msgspec.msgpack.decode(raw))
    if now[ledger.base] >= ledger.turn:
        ledger.advance(now)
    return ledger


def over_there(now: Instant, skew: tuple[int, int]) -> Instant:
    """An instant of this machine on the server's clock, the earlier if in doubt."""
    return Instant(now.mono + skew[0], now.lo, now.hi)


def read_all(trips: Trips, store: RedisStore, now: Callable[[str], Instant]) -> Snapshot:
    """All namespaces of the server.

    Raises:
        StoreUnavailable: it did not answer.
    """
    found = Snapshot(learned=store.learned)
    skew = trips.skew()
    heads = {key.rpartition(b"}")[0] for key in trips.line.ask(lambda client: list(client.scan_iter("hg:{*", 1000)))}
    notes = trips.line.ask(lambda client: client.hgetall(f"{keys_of('notes')}meta"))
    names = {k.decode()[12:]: v.decode() for k, v in notes.items() if k.startswith(b"note:member:")}
    for head in sorted(heads):
        namespace = head.decode()[4:]
        prefix = keys_of(namespace)
        trips.go(namespace, [], None)

        def ask(client: Any, prefix: str = prefix) -> tuple[list[bytes], list[bytes], int]:
            keys = sorted(client.smembers(f"{prefix}ledgers"))
            members = client.zrange(f"{prefix}members", 0, -1)
            return keys, members, int(client.zcard(f"{prefix}permits"))

        keys, members, permits = trips.line.ask(ask)
        raws = _read_many(trips, [f"{prefix}L:{key.decode()}" for key in keys])
        for key, raw in zip(keys, raws, strict=True):
            if raw is not None:
                there = over_there(now(namespace), skew)
                found.ledgers.append(view(key.decode(), ledger_at(raw, there), there))
        for member in members:
            found.members[int(member, 16)] = names.get(member.decode(), "?")
        found.permits += permits
    found.learned = store.learned
    found.blocks = store.blocks.states()
    return found


def _read_many(trips: Trips, keys: list[str]) -> list[bytes | None]:
    found: list[bytes | None] = trips.line.ask(lambda client: client.mget(keys)) if keys else []
    return found
