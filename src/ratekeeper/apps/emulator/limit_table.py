"""The limit table: which limits a request spends, how much, and whose. Limits, costs and owners come from the rule file."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from ratekeeper.rules.call import Identity
from ratekeeper.rules.routing import spread
from ratekeeper.rules.times import duration

from .accounting import Charge, StrictLimit

if TYPE_CHECKING:
    from ratekeeper.rules.call import Plan, Request
    from ratekeeper.rules.provider import Provider
    from ratekeeper.rules.schema import File

    from .options import Options

__all__ = ["LimitTable"]

SECOND = 1_000_000_000
DECLARED = ("REQUEST_WEIGHT", "ORDERS", "RAW_REQUESTS")
"""Kinds of limit that Binance's REST ``exchangeInfo`` lists."""
MOST_KEPT = 50_000
"""Plans and identities that are kept at most."""


class LimitTable:
    """The limits of one provider as they are enforced, and the price of every request.

    Attributes:
        provider: whose rules are enforced.
        by_name: the limits by name.
        main: the limit that the summary, ``--window`` and ``--capacity`` mean: the weight of an address where there is
            one, else the limit that most routes spend.

    Raises:
        ValueError: an option names a limit that the rules do not have.
    """

    def __init__(self, provider: Provider, options: Options) -> None:
        self.provider = provider
        self._prefix = len(provider.namespace) + 1
        self._identities: dict[tuple[str, str], Identity] = {}
        self._charges: dict[Plan, tuple[Charge, ...]] = {}
        names = {unit: name for learn in provider.file.learn for name, unit in learn.units.items() if name in DECLARED}
        self.by_name = {
            limit.name: StrictLimit(
                name=limit.name,
                unit=limit.unit,
                capacity=limit.capacity,
                period=round(limit.period * options.scale),
                window=str(limit.window.value),
                scope=limit.scope,
                origin=round(limit.origin * options.scale),
                refill=limit.refill,
                # An address pays for what it was refused; an account only for orders that were let through.
                counts_refused="ip" in limit.scope and limit.window.value in ("fixed", "first"),
                # Limits per endpoint share a unit with those of a whole address, but are not in the list.
                declared=names.get(limit.unit, "") if len(limit.scope) == 1 else "",
            )
            for limit in provider.limits.values()
        }
        self.main = self._find_main()
        self.published = self.main.capacity
        if options.window is not None:
            self.main.period = round(options.window * SECOND)
        for change in options.limits:
            limit = self.by_name.get(change.name)
            if limit is None:
                raise ValueError(f"{provider.name} has no limit {change.name!r}; it has: {', '.join(self.by_name)}")
            # A bucket that is made larger also refills faster, as when a provider states another capacity.
            limit.refill = max(1, limit.refill * change.capacity // limit.capacity) if limit.refill else 0
            limit.capacity = change.capacity
            if change.seconds is not None:
                limit.period = round(change.seconds * SECOND)
            if limit is self.main:
                self.published = change.capacity
        self.set_capacity(options.capacity)

    def _find_main(self) -> StrictLimit:
        shared = [limit for limit in self.by_name.values() if limit.unit == "weight" and limit.scope == ("ip",)]
        if shared:
            return min(shared, key=lambda limit: limit.period)
        file = self.provider.file
        routes = Counter(name for rule in (file.default, *file.routes) for name in spread(rule.cost, file.limits))
        lasting = [limit for limit in self.by_name.values() if limit.period] or list(self.by_name.values())
        return max(lasting, key=lambda limit: (routes[limit.name], -limit.period))

    def set_capacity(self, capacity: int | None) -> None:
        """Give the main limit another capacity; ``None`` gives it back its own."""
        self.main.capacity = capacity or self.published

    def stretched(self, span: int) -> int:
        """A ban or a penalty of `span` nanoseconds, as much shorter or longer as the main window is."""
        published = self.provider.limits[self.main.name].period
        return span * self.main.period // published if published else span

    @property
    def declared(self) -> list[StrictLimit]:
        """The limits that Binance's ``exchangeInfo`` names."""
        return [limit for limit in self.by_name.values() if limit.declared]

    def plan(self, call: Request, ip: str, account: str) -> tuple[Plan, tuple[Charge, ...]]:
        """The price of a request, with its owners. `account` is a label, or ``""`` if nothing names one."""
        who = (ip, account)
        identity = self._identities.get(who)
        if identity is None:
            if len(self._identities) >= MOST_KEPT:
                self._identities.clear()
            identity = self._identities[who] = Identity(egress=ip, account=account)
        plan = self.provider.plan(call, identity)
        made = self._charges.get(plan)
        if made is None:
            if len(self._charges) >= MOST_KEPT:
                self._charges.clear()
            made = self._charges[plan] = tuple(
                Charge(self.by_name[charge.limit.name], charge.key[self._prefix :].partition("/")[2], charge.cost)
                for charge in plan.charges
            )
        return plan, made

    def owner(self, plan: Plan, kind: str) -> str:
        """Who `plan`'s owner of this kind is, as ``kind:name``; ``""`` if the plan has none."""
        start = f"{kind}:"
        names = (scope[self._prefix :] for scope in plan.scopes)
        return next((name for name in names if name.startswith(start)), "")

    def rules(self) -> File:
        """The rule file with the numbers in force, for a client whose provider does not state them."""
        file = self.provider.file
        limits = {
            name: msgspec.structs.replace(
                rule,
                capacity=(limit := self.by_name[name]).capacity,
                refill=limit.refill,
                period=_span(limit.period),
                origin=_span(limit.origin) if rule.origin else "",
                headroom=rule.headroom * limit.capacity // rule.capacity,
                tiers={},
            )
            for name, rule in file.limits.items()
        }
        refusals = [
            msgspec.structs.replace(rule, hold=_span(self.stretched(duration(rule.hold)))) if rule.hold else rule
            for rule in file.refusals
        ]
        ban = msgspec.structs.replace(file.ban, first=_span(self.stretched(duration(file.ban.first))))
        return msgspec.structs.replace(file, limits=limits, refusals=refusals, ban=ban)


def _span(nanoseconds: int) -> str:
    """A duration as rule files write it; exact."""
    if not nanoseconds:
        return ""
    whole, rest = divmod(nanoseconds, SECOND)
    return f"{nanoseconds / 1_000_000:.6f}".rstrip("0").rstrip(".") + "ms" if rest else f"{whole}s"
