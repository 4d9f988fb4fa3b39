"""The values that a store returns: grants, effects of settling, and views of its state for people."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

from ratekeeper.ledger.base import Ledger
from ratekeeper.ledger.decide import Refusal
from ratekeeper.ledger.limit import SECOND, Charge, Instant, Limit
from ratekeeper.ledger.shares import Who
from ratekeeper.stores.blocks import BlockState

__all__ = [
    "AS_RESERVED",
    "FEW",
    "LEASE",
    "NOTHING",
    "UNSENT",
    "Answered",
    "Ask",
    "Decision",
    "Grant",
    "LedgerView",
    "Settlement",
    "Snapshot",
    "Units",
    "forget",
    "view",
]

LEASE: Final = 60 * SECOND
"""How long a permit is held without a renewal, ns."""
FEW: Final = 128
"""A store with this many records or fewer collects nothing: people still see the limits of their last calls."""
_HARSH: Final = 300 * SECOND
"""After a ledger was lost, windows up to this long count as used up, longer ones as half used, ns."""
Units: TypeAlias = Mapping[str, int]
"""Units by ledger key."""
NOTHING: Final[Units] = {}
"""No costs, no counters, no backlog."""


class Grant:
    """A permit: units in flight on several ledgers, held until settled, refunded or until `lease` ends.

    Attributes:
        id: 63-bit random number, unique in the store.
        charges: what is held.
        marks: running totals of the ledgers at the reservation, for feedback.
        sent: the instant of the reservation.
        who: (member, class).
        lease: steady ns at which the store counts it as spent.
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


Decision: TypeAlias = Grant | Refusal
"""The store's answer to an `Ask`."""


class Ask(NamedTuple):
    """One request to `Store.reserve`, as one value that every store passes on unchanged.

    Attributes:
        namespace: the provider's.
        charges: what to take; keys are distinct.
        scopes: owners whose blocks stop the call.
        who: (member, class).
        weight: the member's share in fairness.
        backlog: units by key that this process waits for in this class, at least this call's; noted beside the ledgers on a
            refusal. None: the caller will not wait.
        ahead: units by key that older calls of this process wait for.
        lease: ns for which the permit is held without a renewal.
        lane: among several asks sent together, those of one lane stop at its first refusal; 0: no lane.
        most: number of calls of this plan that want a permit, where asks are sent together.
    """

    namespace: str
    charges: tuple[Charge, ...]
    scopes: tuple[str, ...]
    who: Who
    weight: int = 1
    backlog: Units | None = NOTHING
    ahead: Units = NOTHING
    lease: int = LEASE
    lane: int = 0
    most: int = 1


class Settlement(NamedTuple):
    """What an answer states about the cost of its call.

    Attributes:
        actual: real cost by key, where it differs from the reserved one, units.
        used: the provider's used-counters by key, units.
        full: keys of limits that the provider reports as used up.
        stated: whether the provider also states for how long; then they do not count as used up until their windows end.
        sent: False: the call was certainly never sent, and all units go back.
    """

    actual: Units = NOTHING
    used: Units = NOTHING
    full: Collection[str] = ()
    stated: bool = False
    sent: bool = True


AS_RESERVED: Final = Settlement()
"""The call cost what was reserved; the answer states nothing more."""
UNSENT: Final = Settlement(sent=False)
"""The call was certainly never sent."""


class Answered(NamedTuple):
    """The effects of settling.

    Attributes:
        released: keys of ledgers that have more room now; calls that wait for them should be rechecked.
        wake: members of other processes that wait for one of them.
        foreign: units of other programs found, by ledger key.
        late: the lease had ended before; only the feedback was applied.
    """

    released: tuple[str, ...] = ()
    wake: frozenset[int] = frozenset()
    foreign: Mapping[str, int] = NOTHING
    late: bool = False


@dataclass(slots=True)
class LedgerView:
    """One ledger, for people. Units; instants in steady ns.

    Attributes:
        used: settled units that still count; `carried` and `foreign` are parts of it.
        carried: of them, units that arrived so late that the provider may have counted them in the window before.
        inflight: reserved and not settled; `held` is part of it.
        held: what processes that cannot reach the store may spend without it.
        foreign: spent by other programs, as far as the provider's counters show.
        expected: what other programs are expected to spend in a whole window.
    """

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
    carried: int = 0
    held: int = 0


@dataclass(slots=True)
class Snapshot:
    """The whole state of a store, for people."""

    ledgers: list[LedgerView] = field(default_factory=list)
    blocks: list[BlockState] = field(default_factory=list)
    learned: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)
    members: dict[int, str] = field(default_factory=dict)
    permits: int = 0
    degraded: str = ""
    former: dict[int, str] = field(default_factory=dict)
    """Names of members that ended, but have rows in a ledger."""

    def hold(self, held: Mapping[str, int]) -> None:
        """Note what processes that cannot reach the store may spend without it: units by ledger key."""
        for each in self.ledgers:
            if each.key in held:
                each.held = min(held[each.key], each.inflight)


def view(key: str, ledger: Ledger, instant: Instant) -> LedgerView:
    """Return a copy of a ledger as people see it at `instant`."""
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
        carried=min(getattr(ledger, "kept", 0), ledger.used),
        rows={who: list(row) for who, row in ledger.rows.items()},
        turn=ledger.turn,
        era=ledger.era,
    )


def forget(ledger: Ledger, now: Instant) -> None:
    """Charge a new ledger that replaces a lost one, because an unknown number of units was spent."""
    if ledger.limit.period <= _HARSH:
        ledger.fill(now)
    else:
        ledger.spend(ledger.limit.usable // 2, now)
