"""The egress addresses of one gate: which ones a call may use, which it should try first, and how people see them."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ratekeeper.ledger.limit import SECOND
from ratekeeper.pools.address import Address, EgressSettings, addresses_of, listed, pins
from ratekeeper.pools.health import REST, AddressHealth, Gauge
from ratekeeper.rules.call import Plan
from ratekeeper.rules.reading import ANONYMOUS
from ratekeeper.stores.base import Store
from ratekeeper.stores.records import LedgerView, Snapshot
from ratekeeper.stores.worker import Worker

if TYPE_CHECKING:
    from ratekeeper.pools.echo import Echo

__all__ = ["AddressView", "Choice", "Egress", "Pool", "views"]

_FINE, _RESTING, _BANNED = range(3)
_COARSE: Final = 20
"""Shares of room are rounded to this many steps, so that consecutive calls prefer the address of the last one."""


class Choice:
    """The addresses that one call may use, best first, and its cost on each.

    Attributes:
        namespace: the provider's.
        address: the call's address: the best one, then the one of its permit.
        moved: whether the call is in a queue that it leaves when its address is banned.
    """

    __slots__ = ("_addresses", "_plan", "_plans", "address", "egress", "moved", "namespace")

    def __init__(
        self, egress: Egress, namespace: str, addresses: Sequence[Address], plan: Callable[[Address], Plan]
    ) -> None:
        self.egress = egress
        self.namespace = namespace
        self._addresses = addresses
        self._plan = plan
        self._plans: dict[str, Plan] = {}
        self.address = addresses[0]
        self.moved = False

    def __iter__(self) -> Iterator[Address]:
        """Iterate best first; of several with the same scope, only the best."""
        seen: set[str] = set()
        for address in self._addresses:
            scope = self.egress.scope(address)
            if scope not in seen:
                seen.add(scope)
                yield address

    @property
    def every(self) -> Sequence[Address]:
        """Return all addresses, including those that share a scope."""
        return self._addresses

    @property
    def only(self) -> bool:
        """Whether there is only one option."""
        return len(self._addresses) == 1

    def plan(self, address: Address) -> Plan:
        """Return the plan of the call from that address."""
        plan = self._plans.get(address.name)
        if plan is None:
            plan = self._plans[address.name] = self._plan(address)
        return plan

    def took(self, address: Address) -> None:
        """Note that the call's permit is for that address."""
        self.address = address
        self.egress.gauge.took(self.scope(address), self.plan(address).charges)

    def full(self, address: Address) -> None:
        """Note that the address had no room for the call."""
        self.egress.gauge.full(self.scope(address), self.plan(address).charges)

    def scope(self, address: Address) -> str:
        """Return the owner of an address's ledgers at this provider, in the stores' form."""
        return f"{self.namespace}/ip:{self.egress.scope(address)}"

    def place(self, address: Address) -> str:
        """Return the address at this provider, in the stores' form."""
        return f"{self.namespace}/egress:{address.name}"


class Pool:
    """The addresses of one provider.

    Attributes:
        primary, backups: in the order of the configuration.
        pins: account -> addresses it may use.
    """

    def __init__(self, primary: Sequence[Address], backups: Sequence[Address], pins: dict[str, list[str]]) -> None:
        self.primary = tuple(primary)
        self.backups = tuple(backups)
        self.pins = pins

    def members(self, accounts: Iterable[str]) -> list[tuple[int, Address]]:
        """Return the addresses that an account's call may use, with their rank; `accounts` are its names and digests."""
        found = [(0, address) for address in self.primary] + [(1, address) for address in self.backups]
        if not self.pins:
            return found
        shown = [account for account in accounts if account and account != ANONYMOUS]
        allowed = next((self.pins[account] for account in shown if account in self.pins), None)
        if allowed is None and shown:
            allowed = self.pins.get("*")
        return found if allowed is None else [entry for entry in found if entry[1].name in allowed]


class Egress:
    """All addresses of one gate.

    Args:
        settings: consistent settings of the addresses (`ratekeeper.pools.address.checked`).
        store: keeps the health.
        tell: called with the kind and the text of an event, and its fields.
        worker: changes the store's notes; None: the caller does.
    """

    def __init__(
        self, settings: EgressSettings, store: Store, tell: Callable[..., object], worker: Worker | None = None
    ) -> None:
        self.addresses = addresses_of(settings)
        self.pools: dict[str, Pool] = {}
        for provider, pool in settings.pools.items():
            primary = [self.addresses[name] for name in listed(pool.primary)]
            backups = [self.addresses[name] for name in pool.backups]
            self.pools[provider] = Pool(primary, backups, pins(pool))
        self.health = AddressHealth(store)
        self._worker = worker or Worker()
        self.gauge = Gauge()
        self._name = settings.name
        self._echo = _echo(settings.echo, store, tell) if settings.echo else None
        self._plain = Address("default")
        self._tell = tell

    @property
    def changes(self) -> bool:
        """Whether the default address of a provider, or its scope, may still change."""
        return self._echo is not None

    def pool(self, provider: str) -> Pool | None:
        """Return the pool of a provider, if any."""
        return self.pools.get(provider) or self.pools.get("*") if self.pools else None

    def default(self, provider: str = "") -> Address:
        """Return the address of a call without a choice: the address named so, else the provider's first primary."""
        if self._name:
            return self.named(self._name)
        pool = self.pool(provider)
        return pool.primary[0] if pool is not None else self._plain

    def reachable(self, provider: str, namespace: str) -> list[Address]:
        """Return the default address, then the others of the pool, without banned and resting ones."""
        default, pool = self.default(provider), self.pool(provider)
        if pool is None:
            return [default]
        return [
            address
            for address in dict.fromkeys([default, *pool.primary, *pool.backups])
            if not self.health.rests(f"{namespace}/egress:{address.name}")
            and not self.health.banned(f"{namespace}/ip:{self.scope(address)}")
        ]

    def named(self, name: str) -> Address:
        """Return the address of that name. An unconfigured name is a scope; its calls leave by the system's own choice of
        address."""
        return self.addresses.get(name) or Address(name, scope=name)

    def scope(self, address: Address) -> str:
        """Return the owner of the ledgers that an address spends on, as far as known."""
        if address.scope or self._echo is None:
            return address.scope or address.name
        return self._echo.known(address) or address.name

    def discover(self, provider: str) -> None:
        """Ask the echo for a provider's addresses with unknown scope. May take seconds; never raises."""
        if self._echo is not None:
            for address in self._unsaid(provider):
                self._echo.ask(address)

    def recall(self) -> None:
        """Take the scopes that other processes learned from the echo; asks no server."""
        if self._echo is not None:
            for address in (*self.addresses.values(), self.default()):
                self._echo.recall(address)

    def discovered(self, provider: str) -> bool:
        """Whether `discover` has nothing to do."""
        return self._echo is None or all(map(self._echo.fresh, self._unsaid(provider)))

    def _unsaid(self, provider: str) -> list[Address]:
        """Return the addresses of a provider whose scope the configuration does not state."""
        pool = self.pool(provider)
        members = [*pool.primary, *pool.backups] if pool else []
        return [address for address in dict.fromkeys([*members, self.default(provider)]) if not address.scope]

    def choose(self, pool: Pool, namespace: str, accounts: Iterable[str], plan: Callable[[Address], Plan]) -> Choice:
        """Return the addresses for one call, best first: primaries before backups, by the room left; banned ones last;
        resting ones only if there is no other."""
        found = []
        for at, (rank, address) in enumerate(pool.members(accounts)):
            scope = f"{namespace}/ip:{self.scope(address)}"
            banned = self.health.banned(scope)
            rests = self.health.rests(f"{namespace}/egress:{address.name}")
            state = _BANNED if banned else _RESTING if rests else _FINE
            left = round(self.gauge.share(scope) * _COARSE)
            found.append((state, banned or rests, left == 0, rank, -left, at, address))
        if any(entry[0] == _FINE for entry in found):
            found = [entry for entry in found if entry[0] != _RESTING]
        found.sort(key=lambda entry: entry[:-1])
        return Choice(self, namespace, [entry[-1] for entry in found], plan)

    # -- results of calls --------------------------------------------------------------------------------------------

    def refused(self, choice: Choice) -> None:
        """Count a refusal by the provider at the choice's address."""
        address, place = choice.address, choice.place(choice.address)

        def count() -> None:
            warnings, rests = self.health.warned(place)
            self._tell_rest(choice.namespace, address, rests, f"{warnings} warnings")

        self._worker.later(place, count)

    def unreachable(self, choice: Choice) -> bool:
        """Count a failed connection to the provider from the choice's address. True if another address is left."""
        address, place = choice.address, choice.place(choice.address)

        def count() -> None:
            rests = self.health.counted(place)
            self._tell_rest(choice.namespace, address, rests, f"no connection from {address.leaves}")

        if not self.health.rests(place):  # else the call left before the failure was known
            self._worker.later(place, count)
            if not self.health.rests(place):
                self.health.rest_first(place)  # at once, so that the next call of this process uses another address
        return any(
            other != address
            and not self.health.rests(choice.place(other))
            and not self.health.banned(choice.scope(other))
            for other in choice.every
        )

    def failed(self, namespace: str, address: Address) -> None:
        """Count a connection to the provider that failed before any call had a choice: that of a first contact."""
        rests = self.health.failed(f"{namespace}/egress:{address.name}")
        self._tell_rest(namespace, address, rests, f"no connection from {address.leaves}")

    def worked(self, choice: Choice, used: Mapping[str, int]) -> None:
        """Note an answer, perhaps with the provider's own used-counters (by ledger)."""
        place = choice.place(choice.address)
        if self.health.mended(place):
            self._worker.later(place, functools.partial(self.health.worked, place))
        if used:
            self.gauge.told(choice.scope(choice.address), choice.plan(choice.address).charges, used)

    def _tell_rest(self, namespace: str, address: Address, rests: int, why: str) -> None:
        """Emit the event that an address begins to rest for `rests` ns; 0: it does not."""
        if rests:
            name, seconds = address.name, rests / SECOND
            text = f"{name} rests for {seconds:.0f} s: {why}"
            self._tell("egress", text, namespace, address=name, seconds=seconds)


def _echo(url: str, store: Store, tell: Callable[..., object]) -> Echo:
    from ratekeeper.pools.echo import Echo  # imports an HTTP client, only where an echo is configured

    return Echo(url, store, tell)


@dataclass(slots=True)
class AddressView:
    """One address at one provider.

    Attributes:
        provider: namespace.
        name, leaves, scope: of the address.
        state: ``active``, ``warning``, ``resting`` or ``banned``.
        warnings: refusals by the provider that have not expired.
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
    """Return every address of every called provider: those of its pool, and any other scope with spending."""
    egress.recall()
    spent: dict[str, dict[str, list[LedgerView]]] = {}
    for view in found.ledgers:
        namespace, _, owner = (*view.key.split("/", 2), "", "")[:3]
        # Some limits have several owners, the address being one: ``ip:main,endpoint:/ticker``.
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
