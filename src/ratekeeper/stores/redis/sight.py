"""The server's ledgers as people, and the safe share, look at them: on this machine's clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ratekeeper.errors import StoreUnavailable
from ratekeeper.ledger.base import Ledger
from ratekeeper.ledger.limit import SECOND, Instant
from ratekeeper.rules.reading import FAULTS
from ratekeeper.stores.records import LEASE, Snapshot, view
from ratekeeper.stores.redis.line import keys_of
from ratekeeper.stores.redis.lua import from_lua

if TYPE_CHECKING:
    from ratekeeper.stores.redis.store import RedisStore
    from ratekeeper.stores.redis.trips import Trips

__all__ = ["ledger_at", "over_there", "read_all", "surely_left"]

_SHORT: Final = 30 * SECOND
_LONG: Final = 300 * SECOND
"""Windows between these can be emptied in a moment only by a great burst; longer ones not at all, ns."""
_MOMENT: Final = 2 * SECOND
"""In this time much may have been spent that was not seen, ns."""


def ledger_at(raw: bytes, now: Instant) -> Ledger:
    """A ledger as it lies on the server, brought up to `now` on the server's clock. Raises StoreUnavailable if garbled."""
    try:
        ledger = from_lua(msgspec.msgpack.decode(raw))
        if now.mono >= ledger.turn:
            ledger.advance(now)
    except FAULTS as error:
        raise StoreUnavailable(f"a ledger on the server is garbled: {type(error).__name__}") from error
    return ledger


def over_there(now: Instant, skew: tuple[int, int]) -> Instant:
    """An instant of this machine on the server's clock, the earlier if in doubt."""
    return Instant(now.mono + skew[0], now.lo, now.hi)


def surely_left(ledger: Ledger, there: Instant, mono: int, seen: int, held: int) -> int:
    """Units of a ledger that processes without the server may share among them.

    Others may go on with the server for about a second before it holds our share, and may have spent much that this
    process has not seen. So of a window in which the server was lost nothing is taken if it is short, young or nearly
    spent, else half of what was left; of one that began later, all.

    Args:
        ledger: as it was last seen, brought up to `there`.
        there: now, on the server's clock.
        mono: now, on this machine's steady clock (ns); so are the other instants.
        seen: when the ledger was last told.
        held: from when on the others leave us our share.
    """
    limit, room = ledger.limit, max(0, ledger.room)
    if ledger.melts:
        to_come, span = ledger.left(there, True)
        begun = mono - max(0, span - to_come)
    else:
        begun = mono - (limit.period or LEASE)
    if begun >= held:
        return limit.usable
    if limit.period > _LONG:
        return room // 2
    short = 0 < limit.period < _SHORT
    stale = seen < held - _MOMENT - SECOND or begun > seen - _MOMENT
    return 0 if short or stale or room < limit.usable // 4 else room // 2


def read_all(trips: Trips, store: RedisStore, now: Callable[[str], Instant]) -> Snapshot:
    """All namespaces of the server.

    Raises:
        StoreUnavailable: it did not answer.
    """
    found = Snapshot(learned=store.learned)
    skew = trips.skew()
    heads = {key.partition(b"}")[0] for key in trips.line.ask(lambda client: list(client.scan_iter("hg:{*", 1000)))}
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
        names = _read_many(trips, [f"{keys_of('notes')}N:member:{member.decode()}" for member in members])
        for member, name in zip(members, names, strict=True):
            found.members[int(member, 16)] = "?" if name is None else name.decode()
        found.permits += permits
    found.learned = store.learned
    found.blocks = store.blocks.states()
    return found


def _read_many(trips: Trips, keys: list[str]) -> list[bytes | None]:
    found: list[bytes | None] = trips.line.ask(lambda client: client.mget(keys)) if keys else []
    return found
