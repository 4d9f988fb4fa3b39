"""One decision over many limits: a call takes units of all of them, or of none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ratekeeper.ledger.base import NEVER, Ledger
from ratekeeper.ledger.limit import Charge, Instant
from ratekeeper.ledger.shares import Who

__all__ = ["Refusal", "refusal"]


class Refusal(NamedTuple):
    """Why a call may not go now.

    Attributes:
        key: the ledger (or the blocked scope) that holds it longest.
        available_at: steady instant (ns) at which the call could pass, as far as is known now; at least `later` if nothing is
            known.
        unknown: another call must settle first; `available_at` is then only the time of the next recheck.
        never: the cost is above the limit.
        kind: ``limit``, or the kind of block: ``ban``, ``throttle``, ``pause``.
        reason: the block's reason, if it is a block.
    """

    key: str
    available_at: int
    unknown: bool = False
    never: bool = False
    kind: str = "limit"
    reason: str = ""


def refusal(
    charges: Sequence[Charge],
    ledgers: Sequence[Ledger],
    who: Who,
    now: Instant,
    ahead: Mapping[str, int],
    later: int,
    short: list[tuple[Charge, Ledger, int]],
) -> Refusal | None:
    """Decide whether the charges may be taken from their ledgers, each advanced to `now`.

    Args:
        charges, ledgers: in the same order.
        who: (member, class).
        now: the instant.
        ahead: units per ledger key for which older calls of the same process wait.
        later: steady instant (ns) of a recheck where none can be computed.
        short: receives the charges that have no room now, each with its ledger and the instant of the next recheck.

    Returns:
        None if all may be taken now.
    """
    worst: Refusal | None = None
    for charge, ledger in zip(charges, ledgers, strict=True):
        if ledger.room - charge.cost >= ledger.floor and who[1] <= ledger.calm and not ahead:
            continue
        available_at = ledger.available_at(charge.cost, who, now, ahead.get(charge.key, 0))
        if available_at == 0:
            continue
        if available_at == NEVER:
            return Refusal(charge.key, 0, never=True)
        look = min(later, -available_at) if available_at < NEVER else later
        found = Refusal(charge.key, look, unknown=True) if available_at < 0 else Refusal(charge.key, available_at)
        short.append((charge, ledger, found.available_at))
        if worst is None or found.available_at > worst.available_at:
            worst = found._replace(unknown=found.unknown or (worst is not None and worst.unknown))
        elif found.unknown:
            worst = worst._replace(unknown=True)
    return worst
