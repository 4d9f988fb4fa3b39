"""What a store hands out: grants, what settling changed, and views of its state for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

from ratekeeper.ledger.base import Ledger
from ratekeeper.ledger.limit import SECOND, Charge, Instant, Limit
from ratekeeper.ledger.shares import Who
from ratekeeper.stores.blocks import BlockState

__all__ = ["LEASE", "NOTHING", "Answered", "Ask", "Grant", "LedgerView", "Snapshot", "Units", "forget", "view"]

LEASE: Final = 60 * SECOND
"""How long a permit is held when its holder is not heard of again, ns."""
_HARSH: Final = 300 * SECOND
"""Windows up to this long are taken as used up when their ledger was lost; longer ones as used by half, ns."""
Units: TypeAlias = Mapping[str, int]
"""Units by ledger key."""
NOTHING: Final[Units] = {}
"""No costs, no counters, no backlog."""


class Grant:
    """Units in flight on several ledgers, held until settled, refunded or until `lease` ends.

    Attributes:
        id: 63-bit random number, unique in the store.
        charges: what is held.
        marks: running totals of the ledgers when it was taken, for feedback.
        sent: the instant of the reservation.
        who: (member, class).
        lease: steady ns at which it counts as spent by itself.
    """

    __slots__ = ("charges", "id", "lease", "marks", "namespace", "sent", "who")

    def __init__(
        self,
        id: int,  # noqa: A002 - the attribute's own name
        namespace: str,
        charges: tuple[Charge, ...],
        marks: Sequence[int],
        sent: Instant,
        who: Who,
        lease: int,
    ) -> None:
        self.id = id
        self.namespace = namespace
        self.charges = charges
        self.marks = marks
        self.sent = sent
        self.who = who
        self.lease = lease


class Ask(NamedTuple):
    """What `Store.reserve` is asked, as one value.

    Attributes:
        namespace, charges, scopes, who, backlog, ahead, weight: as there.
        lane: asks of one lane stop at its first refusal.
        most: so many calls of this plan want a permit.
    """

    namespace: str
    charges: tuple[Charge, ...]
    scopes: tuple[str, ...]
    who: Who
    backlog: Mapping[str, int] | None = NOTHING
    ahead: Mapping[str, int] = NOTHING
    weight: int = 1
    lane: int = 0
    most: int = 1


class Answered(NamedTuple):
    """What settling changed.

    Attributes:
        freed: keys of ledgers that have more room now; whoever waits for them should look.
        wake: members of other processes that wait for one of them.
        foreign: units of other programs found, by ledger key.
        late: the lease had ended before; nothing was changed but the feedback.
    """

    freed: tuple[str, ...] = ()
    wake: frozenset[int] = frozenset()
    foreign: Mapping[str, int] = NOTHING
    late: bool = False


@dataclass(slots=True)
class LedgerView:
    """One ledger, for people. Units; instants in steady ns."""

    key: str
    limit: Limit
    used: int
    inflight: int
    room: int
    foreign: int
    expected: int
    rows: dict[Who, list[int]]
    turn: int
    era: int


@dataclass(slots=True)
class Snapshot:
    """Everything a store knows, for people."""

    ledgers: list[LedgerView] = field(default_factory=list)
    blocks: list[BlockState] = field(default_factory=list)
    learned: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)
    members: dict[int, str] = field(default_factory=dict)
    permits: int = 0
    degraded: str = ""


def view(key: str, ledger: Ledger, instant: Instant) -> LedgerView:
    """A copy of a ledger as people see it at `instant`."""
    if instant.mono >= ledger.turn:
        ledger.advance(instant)
    return LedgerView(
        key=key,
        limit=ledger.limit,
        used=ledger.used,
        inflight=ledger.inflight,
        room=ledger.room,
        foreign=getattr(ledger, "foreign", 0),
        expected=getattr(ledger, "expected", 0),
        rows={who: list(row) for who, row in ledger.rows.items()},
        turn=ledger.turn,
        era=ledger.era,
    )


def forget(ledger: Ledger, now: Instant) -> None:
    """A ledger begins anew although units were spent on it, nobody knows how many."""
    if ledger.limit.period <= _HARSH:
        ledger.fill(now)
    else:
        ledger.spend(ledger.limit.usable // 2, now)
