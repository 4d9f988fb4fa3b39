"""What each request costs: limits and costs come from the provider's rules, owners are told apart by the emulator itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from headgate.rules.call import Call

from .accounting import Bill, StrictLimit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headgate.rules.provider import Provider

    from .options import Options

__all__ = ["Price", "Tariff", "bills"]

SECOND = 1_000_000_000
DECLARED = ("REQUEST_WEIGHT", "ORDERS", "RAW_REQUESTS")
"""Kinds of limit that the REST ``exchangeInfo`` lists."""


class Price(NamedTuple):
    """The cost of one request, before it is known who sent it."""

    route: str
    """The route's name in the rule file; ``""`` if it has none."""
    lines: tuple[tuple[StrictLimit, int], ...]


class Tariff:
    """The limits of one provider as they are enforced, and the price of every request.

    Raises:
        ValueError: an option names a limit that the rules do not have.
    """

    def __init__(self, provider: Provider, options: Options) -> None:
        self._provider = provider
        names = {unit: name for learn in provider.file.learn for name, unit in learn.units.items() if name in DECLARED}
        self.limits = {
            limit.name: StrictLimit(
                name=limit.name,
                unit=limit.unit,
                capacity=limit.capacity,
                period=limit.period,
                window=str(limit.window.value),
                scope=limit.scope,
                origin=limit.origin,
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
            self.main.period = options.window * SECOND
        for change in options.limits:
            limit = self.limits.get(change.name)
            if limit is None:
                raise ValueError(f"{provider.name} has no limit {change.name!r}; it has: {', '.join(self.limits)}")
            limit.capacity = change.capacity
            if change.seconds is not None:
                limit.period = change.seconds * SECOND
            if limit is self.main:
                self.published = change.capacity
        self.set_capacity(options.capacity)

    def _find_main(self) -> StrictLimit:
        shared = [limit for limit in self.limits.values() if limit.unit == "weight" and limit.scope == ("ip",)]
        if not shared:
            raise ValueError(f"{self._provider.name} has no weight limit per address; it cannot be emulated")
        return min(shared, key=lambda limit: limit.period)

    def set_capacity(self, capacity: int | None) -> None:
        """Give the main weight limit another capacity; ``None`` gives it back its own."""
        self.main.capacity = capacity or self.published

    @property
    def declared(self) -> list[StrictLimit]:
        """The limits that ``exchangeInfo`` names."""
        return [limit for limit in self.limits.values() if limit.declared]

    def price(self, method: str, path: str, params: Mapping[str, str]) -> Price:
        """The price of a request."""
        plan = self._provider.plan(Call(method, path, params))
        return Price(plan.route, tuple((self.limits[charge.limit.name], charge.cost) for charge in plan.charges))


def bills(price: Price, ip: str, account: str, params: Mapping[str, str]) -> list[Bill]:
    """The price made out to its owners."""
    made = []
    for limit, cost in price.lines:
        if limit.scope == ("ip",):
            owner = f"ip:{ip}"
        elif limit.scope == ("account",):
            owner = f"account:{account}"
        else:
            known = {"ip": ip, "account": account, "key": account, "endpoint": price.route}
            owner = ",".join(f"{kind}:{known.get(kind) or params.get(kind, '')}" for kind in limit.scope)
        made.append(Bill(limit, owner, cost))
    return made
