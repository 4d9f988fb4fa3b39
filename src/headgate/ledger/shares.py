"""Who may take what is left: priority and fairness among members, with no central queue.

Beside each ledger stands a row per member (process) and class: what it took, whether it was refused, what it waits for.
From them follows how much a caller must leave free: for the upper classes the larger of a fixed share and what they
wait for; for the other members of its own class what they lack of their max-min fair share.

In a window that ends (`Ledger.melts`) both are multiplied by the share of the window still to come: nothing is wasted,
because what was kept melts away by the end. Where units come back all the time (sliding, bucket, slots) a caller leaves
to every waiting member that has been served less what it waits for, up to the difference: nothing lies idle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from headgate.ledger.base import Ledger
    from headgate.ledger.limit import Instant

__all__ = ["KEEP_UPPER", "Row", "Who", "fair_lack", "upper_blocked"]

KEEP_UPPER: Final = 5
"""Per cent of a limit kept for classes above the caller's, melting where the window ends."""

Who = tuple[int, int]
"""(member number, priority class)."""
Row = list[int]
"""[taken in this era, taken in the last, refused (1: in this era, 2: in the last), waiting units, cost of the next
call that waits, steady ns at which the waiting note expires, weight]. A list, because it is packed and unpacked with
every transaction of a shared store."""


def upper_blocked(rows: dict[Who, Row], who: Who, mono: int) -> int:
    """Units that classes above the caller's wait for now."""
    return sum(row[3] for (_, other), row in rows.items() if row[3] and other < who[1] and row[5] > mono)


def fair_lack(ledger: Ledger, who: Who, now: Instant) -> int:
    """Units that must be left to the other members of the caller's class."""
    member, klass = who
    peers = {m: row for (m, k), row in ledger.rows.items() if k == klass}
    if not ledger.melts:
        mine = peers.get(member)
        served = mine[0] // mine[6] if mine else 0
        return sum(
            min(row[3], max(row[4], served * row[6] - row[0]))
            for m, row in peers.items()
            if m != member and row[3] and row[5] > now.mono and row[0] // row[6] < served
        )
    usable = ledger.limit.usable
    # Somebody refused lately is taken to want everything; anybody else what it took.
    wants = {m: usable if row[2] else max(row[0], row[1]) for m, row in peers.items()}
    if wants.keys() <= {member}:
        return 0
    wants[member] = usable
    weights = {m: row[6] for m, row in peers.items()}
    weights.setdefault(member, 1)
    lack = 0
    rest, heavy = usable, sum(weights.values())
    # Max-min: those who want least per weight are served in full, the others share what is left by weight.
    for m in sorted(wants, key=lambda m: wants[m] / weights[m]):
        share = min(wants[m], rest * weights[m] // heavy)
        rest -= share
        heavy -= weights[m]
        if m != member:
            lack += max(0, share - peers[m][0])
    return lack
