"""The plan of each call: the rules of its provider, the owners of its limits, and the address it leaves from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ratekeeper.gate.override import OVERRIDING, overriding
from ratekeeper.pools.address import Address
from ratekeeper.pools.pool import Choice, Egress
from ratekeeper.rules.book import Rulebook
from ratekeeper.rules.call import Identity, Plan, Request
from ratekeeper.rules.reading import owner_of
from ratekeeper.stores.base import Store

if TYPE_CHECKING:
    from ratekeeper.rules.provider import Provider

__all__ = ["Plans"]

_MOST: Final = 4096
"""The number of plans and identities that the gate keeps."""


class Plans:
    """The plans of one gate, with learned limits.

    Args:
        book: the rules.
        store: its learned limits override the rules.
        egress: the addresses.
        secret: the secret that hashes API keys.
    """

    def __init__(self, book: Rulebook, store: Store, egress: Egress, secret: bytes) -> None:
        self.book = book
        self.untouched_hosts: dict[str, int] = {}
        """The number of ungoverned calls, by host without rules."""
        self._store = store
        self._egress = egress
        self._secret = secret
        self._identities: dict[tuple[str, str], Identity] = {}
        self._providers: dict[str, Provider] = {}
        self._usual: dict[tuple[str | Provider, str, str, str, str], tuple[Provider, Plan, Address]] = {}
        self._plain: dict[str | Provider, tuple[Provider, Identity, Address]] = {}
        """By provider: rules, identity and address for calls that name neither an address nor an account."""
        self._matches: dict[tuple[Rulebook, str, str], Provider] = {}
        self._generation = -1

    def provider(self, name: str | Provider) -> Provider:
        """Return the rules of a provider, with learned limits."""
        if self._generation != self._store.generation:
            self._generation = self._store.generation
            self._providers.clear()
            self._usual.clear()
            self._plain.clear()
            self._matches.clear()
        key = name if isinstance(name, str) else name.namespace
        found = self._providers.get(key)
        if found is None:
            found = self.book.provider(name) if isinstance(name, str) else name
            learned = self._store.learned.get(found.namespace)
            if learned:
                found = found.with_learned(learned)
            self._providers[key] = found
        return found

    def match(self, host: str, path: str) -> Provider | None:
        """Return the rules for a host (``name`` or ``name:port``). None: the call passes ungoverned; the gate counts it."""
        if self._generation == self._store.generation:
            known = self._matches.get((self.book, host, path))
            if known is not None:
                return known
        found = self.book.for_host(host, path)
        if found is None:
            if len(self.untouched_hosts) < 1000:
                self.untouched_hosts[host] = self.untouched_hosts.get(host, 0) + 1
            return None
        rules = self.provider(found)
        if len(self._matches) >= _MOST:
            self._matches.clear()
        self._matches[self.book, host, path] = rules
        return rules

    def identity(self, address: Address, account: str = "") -> Identity:
        """Return the identity that a provider sees for calls from that address."""
        scope = self._egress.scope(address)
        known = self._identities.get((scope, account))
        if known is None:
            known = Identity(scope, account, self._secret)
            if len(self._identities) < _MOST:
                self._identities[scope, account] = known
        return known

    def plan(self, provider: str | Provider, request: Request) -> Plan:
        """Return the plan (what a request would spend) from the default address."""
        plan = self.leaving(provider, request, "", "")[1]
        return overriding(plan) if OVERRIDING.get() else plan

    def leaving(
        self, provider: str | Provider, request: Request, egress: str, account: str
    ) -> tuple[Provider, Plan, Address]:
        """Return rules, plan and address of a request from the named address (``""``: the default one)."""
        if not egress and not account and self._generation == self._store.generation:
            known = self._plain.get(provider)
            if known is not None:
                rules, identity, address = known
                return rules, rules.plan(request, identity), address
        rules = self.provider(provider)
        address = self._egress.named(egress) if egress else self._egress.default(rules.name)
        identity = self.identity(address, account)
        if not egress and not account and not self._egress.changes:
            if len(self._plain) > _MOST:
                self._plain.clear()
            self._plain[provider] = rules, identity, address
        return rules, rules.plan(request, identity), address

    def usual(
        self, provider: str | Provider, request: Request, egress: str, account: str
    ) -> tuple[Provider, Plan, Address]:
        """Do the same as `leaving` for a request known only by its route; keep the result for the next one."""
        key = (provider, request.method, request.path, egress, account)
        known = self._usual.get(key) if self._generation == self._store.generation else None
        if known is None:
            known = self.leaving(provider, request, egress, account)
            if len(self._usual) > _MOST:
                self._usual.clear()
            self._usual[key] = known
        return known

    def choice(self, provider: str | Provider, request: Request, account: str) -> tuple[Provider, Choice] | None:
        """Return the addresses of the provider's pool for one request; None: it has no pool."""
        rules = self.provider(provider)
        pool = self._egress.pool(rules.name)
        if pool is None:
            return None
        if not self._egress.discovered(rules.name):
            self._egress.discover(rules.name)
        accounts = [account]
        if pool.pins:
            nobody = Identity(secret=self._secret)
            accounts += [owner_of(kind, rules.file.owners)(request, nobody, "") for kind in ("account", "key")]
        return rules, self._egress.choose(
            pool,
            rules.namespace,
            accounts,
            lambda address: overriding(rules.plan(request, self.identity(address, account))),
        )
