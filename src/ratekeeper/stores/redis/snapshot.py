"""The server's ledgers on this machine's clock, as people and the fallback see them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

from ratekeeper.ledger.base import Ledger
from ratekeeper.ledger.limit import SECOND, Instant
from ratekeeper.stores.records import FEW, LEASE, Snapshot, view
from ratekeeper.stores.redis.client import Client
from ratekeeper.stores.redis.lua import member_name
from ratekeeper.stores.redis.protocol import NOTES, keys_of, read_ledger
from ratekeeper.typed import msgpack_decoder

__all__ = ["read_all", "surely_left"]

_AWAY: Final = "away:"
"""Begins the permit under which the server holds the share of a client that goes on without it."""
_SHORT: Final = 30 * SECOND
_LONG: Final = 300 * SECOND
"""A window between these lengths can be emptied in a moment only by a great burst; a longer one cannot, ns."""
_PAGE: Final = 512
"""Ledgers read in one command, because the server serves no other client while it runs."""
_MOMENT: Final = 2 * SECOND
"""In this time others may spend much that this process does not see, ns."""


def surely_left(ledger: Ledger, there: Instant, mono: int, seen: int, held: int) -> int:
    """Return the units of a ledger that processes without the server may share among them.

    Other processes may use the server for about a second before it holds our share, and may have spent much that this process
    has not seen. So of the window in which the server was lost, this returns nothing if the window is short, young or nearly
    spent, else half of what was left. Of a window that began later, it returns all.

    Args:
        ledger: as it was last seen, advanced to `there`.
        there: now, on the server's clock.
        mono: now, on this machine's steady clock (ns); so are the other instants.
        seen: when the server last sent the ledger.
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


def read_all(client: Client, now: Callable[[str], Instant]) -> Snapshot:
    """Return ledgers, members and permits of all namespaces of the server.

    Args:
        client: of the server.
        now: returns the present instant on the clock of a namespace.

    Raises:
        StoreUnavailable: the server did not answer, or one of its records is garbled.
    """
    found = Snapshot()
    ask, clock = client.connection.ask, client.connection.clock
    for namespace in ask(_namespaces):
        client.call(namespace, [])
        there = clock.instant(now(namespace))
        ask(partial(_add, found, namespace, there))
    return found


def _namespaces(redis: Any) -> list[str]:
    return sorted({key.partition(b"}")[0].decode()[4:] for key in redis.scan_iter("hg:{*", 1000)})


def _add(found: Snapshot, namespace: str, there: Instant, redis: Any) -> None:
    """Add the contents of one namespace."""
    prefix, mentioned = keys_of(namespace), set[int]()
    keys = sorted(key.decode() for key in redis.smembers(f"{prefix}ledgers"))
    for first in range(0, len(keys), _PAGE):
        page = keys[first : first + _PAGE]
        for key, raw in zip(page, redis.mget([f"{prefix}L:{key}" for key in page]), strict=True):
            ledger = read_ledger(raw) if raw is not None else None
            if ledger is not None and (len(keys) <= FEW or ledger.rests_at() > there.mono):
                found.ledgers.append(view(key, ledger, there))
                mentioned.update(member for member, _ in ledger.rows)
    members = [member.decode() for member in redis.zrange(f"{prefix}members", 0, -1)]
    found.members.update(_names(redis, [int(member, 16) for member in members], "?"))
    found.former.update(_names(redis, mentioned - found.members.keys() - found.former.keys(), ""))
    found.permits += int(redis.zcard(f"{prefix}permits"))
    held: Counter[str] = Counter()
    for raw in redis.hmget(f"{prefix}held", [f"{_AWAY}{member}" for member in members]) if members else ():
        kept = msgpack_decoder(list[Any])(raw)[3:] if raw is not None else []
        held.update({str(key): int(units) for key, units in zip(kept[::2], kept[1::2], strict=True)})
    found.hold(held)


def _names(redis: Any, members: Iterable[int], unknown: str) -> dict[int, str]:
    """Return the names of members; of one without a name `unknown`, unless that is empty."""
    asked = list(members)
    keys = [f"{keys_of(NOTES)}N:member:{member_name(member)}" for member in asked]
    names = redis.mget(keys) if keys else []
    found = {member: unknown if name is None else name.decode() for member, name in zip(asked, names, strict=True)}
    return {member: name for member, name in found.items() if name}
