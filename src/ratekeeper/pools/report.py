"""How the addresses fare, for people: what ``ratekeeper status`` shows of each."""

from __future__ import annotations

import time
from dataclasses import dataclass

from ratekeeper.pools.address import Address
from ratekeeper.pools.health import REST
from ratekeeper.pools.pool import Egress
from ratekeeper.stores.records import LedgerView, Snapshot

__all__ = ["AddressView", "views"]


@dataclass(slots=True)
class AddressView:
    """One address at one provider.

    Attributes:
        provider: namespace.
        name, leaves, scope: of the address.
        state: ``active``, ``warning``, ``resting`` or ``banned``.
        warnings: refusals by the provider that are not forgotten.
        until: steady ns at which the ban or the rest ends; 0: there is none.
        fullest: the limit of this scope that is nearest to full, if any was spent on.
    """

    provider: str
    name: str
    leaves: str
    scope: str
    state: str
    warnings: int
    until: int
    fullest: LedgerView | None


def views(egress: Egress, found: Snapshot) -> list[AddressView]:
    """Every address of every provider that was called: those of its pool, and any other scope that was spent on."""
    egress.recall()
    spent: dict[str, dict[str, list[LedgerView]]] = {}
    for view in found.ledgers:
        namespace, _, owner = (*view.key.split("/", 2), "", "")[:3]
        # Of some limits the address is one owner of several: ``ip:main,endpoint:/ticker``.
        for scope in [part[3:] for part in owner.split(",") if part.startswith("ip:")]:
            spent.setdefault(namespace, {}).setdefault(scope, []).append(view)
    made = []
    for namespace, scopes in sorted(spent.items()):
        pool = egress.pool(namespace.partition("@")[0])
        members: list[Address] = [*pool.primary, *pool.backups] if pool is not None else []
        covered = {egress.scope(address) for address in members}
        members += [Address(scope, scope=scope) for scope in sorted(scopes) if scope not in covered]
        made += [_view(egress, found, namespace, address, scopes) for address in members]
    return made


def _view(
    egress: Egress, found: Snapshot, namespace: str, address: Address, spent: dict[str, list[LedgerView]]
) -> AddressView:
    scope, place = egress.scope(address), f"{namespace}/egress:{address.name}"
    now = time.monotonic_ns()
    open_until = [(block.kind, block.scope, block.ends()) for block in found.blocks if block.ends() > now]
    banned = max([end for kind, of, end in open_until if kind == "ban" and of == f"{namespace}/ip:{scope}"], default=0)
    rests = max([end for kind, of, end in open_until if kind == REST and of == place], default=0)
    warnings = egress.health.warnings(place)
    return AddressView(
        provider=namespace,
        name=address.name,
        leaves=address.leaves,
        scope=scope,
        state="banned" if banned else "resting" if rests else "warning" if warnings else "active",
        warnings=warnings,
        until=banned or rests,
        fullest=max(
            spent.get(scope, []), key=lambda view: (view.used + view.inflight) / view.limit.usable, default=None
        ),
    )
