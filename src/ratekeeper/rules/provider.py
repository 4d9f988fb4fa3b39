"""Puts the rule file of one provider to work: it turns a call into a plan, and an answer into feedback."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from copy import copy
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING

from ratekeeper.ledger.limit import SECOND, Charge
from ratekeeper.rules.answer import Listener
from ratekeeper.rules.call import PRIORITIES, Identity, Plan, Request
from ratekeeper.rules.numbers import UNADJUSTED, Adjustments, capped, chosen, in_force, smoothed
from ratekeeper.rules.reading import (
    ANYONE,
    OwnerOf,
    cleaned,
    digest,
    listed,
    number,
    owner_of,
    reader,
    scope_text,
    text,
    whole,
)
from ratekeeper.rules.routing import CompiledRoute, Router
from ratekeeper.rules.schema import File, Signing
from ratekeeper.rules.times import duration, instant

if TYPE_CHECKING:
    from ratekeeper.rules.denial import Denial, Denials
    from ratekeeper.rules.explanation import Explanation
    from ratekeeper.rules.handling import Handling

__all__ = ["Provider"]

_DIGITS = 20
"""Digits of a nonce at most: 64 bits."""
_LONGEST_UNLISTED = 900 * SECOND
_MOST_PLANS = 4096
"""Plans kept per route; beyond it they are dropped. They differ by cost and owners, so few programs have more."""


class _Place:
    """One route as one provider plans it, with the plans made so far.

    Attributes:
        amounts: costs of the route in the order of `CompiledRoute.costs`.
        constant: the same as numbers, if none depends on the call.
        own: whether any owner must be looked up for every call (a parameter, a key); else `ready` holds them.
        fixed: whether one plan per identity is all there is.
        ready: the last identity, its owners, and its plan if `fixed`. One tuple, so that threads see all or nothing.
    """

    __slots__ = ("amounts", "constant", "fixed", "kinds", "own", "owners", "plans", "ready", "route")

    def __init__(self, route: CompiledRoute, kinds: tuple[str, ...], owners: tuple[OwnerOf, ...]) -> None:
        self.route = route
        self.kinds = kinds
        self.owners = owners
        self.amounts = tuple(route.costs.values())
        numbers = tuple(amount for amount in self.amounts if isinstance(amount, int))
        self.constant = numbers if len(numbers) == len(self.amounts) else None
        self.own = route.own_path or any(kind not in {"ip", "endpoint"} for kind in kinds)
        self.fixed = self.constant is not None and not self.own
        self.plans: dict[tuple[tuple[str, ...], tuple[int, ...]], Plan] = {}
        self.ready: tuple[Identity | None, tuple[str, ...], Plan | None] = (None, (), None)


class _Signature:
    """How a provider's calls are signed; `read` reads the signature of a call, `name` names its window's parameter."""

    __slots__ = ("_default", "_format", "_longest", "_made", "_window", "name", "read")

    def __init__(self, signing: Signing) -> None:
        self.read = reader(signing.signature)
        self._made = reader(signing.timestamp)
        self._window = reader(signing.window) if signing.window else None
        self._format = signing.timestamp_format
        self._default = duration(signing.default)
        self._longest = duration(signing.longest)
        self.name = signing.window.rpartition(".")[2]

    def end(self, call: Request) -> int | None:
        """Unix ns at which the signature of a signed call goes stale; None if its time cannot be read."""
        made = self._made(call)
        milliseconds = whole(made) if self._format == "epoch-ms" else None
        if milliseconds and milliseconds > 0:  # the usual form
            # Binance allows microseconds as well.
            signed: int | None = milliseconds * (1000 if milliseconds > 10**14 else 1_000_000)
        else:
            signed = None if made is None else instant(text(made), self._format, 0)
        if signed is None:
            return None
        return signed + self.length(call)

    def length(self, call: Request) -> int:
        """Nanoseconds for which the signature of a signed call is valid."""
        window = number(self._window(call)) if self._window else None
        length = self._default if window is None else max(window, 0) * (SECOND // 1000)
        return min(length, self._longest)


class _Nonce:
    """Where the nonces of a provider's calls stand, and the keys whose they are."""

    __slots__ = ("_keys", "_nonces")

    def __init__(self, signing: Signing) -> None:
        self._nonces = [reader(each) for each in listed(signing.nonce)]
        self._keys = [reader(each) for each in listed(signing.key)]

    def read(self, call: Request, secret: bytes) -> tuple[int, str] | None:
        """The nonce that a call carries, and a keyed digest of its API key; None: it carries none, or no key."""
        said = next((text(found) for read in self._nonces if (found := read(call)) is not None), "")
        key = next((text(found) for read in self._keys if (found := read(call)) is not None), "")
        if not key or not (said.isdecimal() and said.isascii() and len(said) <= _DIGITS and int(said) < 1 << 64):
            return None
        return int(said), digest(secret, key)


class Provider:
    """The rules of one provider as one namespace sees them.

    Attributes:
        name: of the rule file.
        namespace: begins every `Charge.key`; differs from `name` where the user mapped hosts of their own to it.
        file: the rule file.
        limits: by name; the file's numbers, or those chosen or learned (see `ratekeeper.rules.numbers`).
        feedback: reads what an answer tells (`Listener.feedback`).
        wants_body: whether the body of an answer could tell something (`Listener.wants_body`).
        nonce: reads the nonce that a call carries and a keyed digest of its API key; None: the order of its calls does not
            matter.
    """

    def __init__(
        self,
        file: File,
        namespace: str = "",
        adjustments: Adjustments = UNADJUSTED,
        *,
        learned: Mapping[str, tuple[int, int]] | None = None,
    ) -> None:
        """Put the rules of `file` to work.

        Args:
            file: checked.
            namespace: begins every key; "" for the file's name.
            adjustments: the user's.
            learned: by limit, or by limit and scope (``orders-1s/account:3fa1c0de9b12``), what the provider stated:
                (capacity in units, period in ns).

        Raises:
            RuleError: a limit or a tier that does not exist, or a number that leaves nothing.
        """
        self.name = file.name
        self.namespace = namespace or file.name
        self.file = file
        self._smooth = adjustments.smooth
        self._wanted = chosen(file, adjustments)
        self._caps = adjustments.caps
        self._router = Router(file)
        signing = file.signing
        self._signature = _Signature(signing) if signing is not None and signing.signature else None
        self.nonce = _Nonce(signing).read if signing is not None and signing.nonce else None
        self._owner_of = {kind: owner_of(kind, file.owners) for kind in _kinds(file)}
        self._learn(dict(learned or {}))

    def _learn(self, learned: Mapping[str, tuple[int, int]]) -> None:
        """Begin anew with other numbers of the provider's."""
        self._learned = learned
        self.limits = {name: in_force(limit, name, learned) for name, limit in self._wanted.items()}
        self._ledgers = {
            ledger: in_force(self._wanted[name], ledger, learned)
            for ledger in learned
            if (name := ledger.partition("/")[0]) != ledger and name in self._wanted
        }
        self._capped = {name: (cap, capped(self.limits[name], cap)) for name, cap in self._caps.items()}
        self._listener = Listener(self.file, self.namespace, self.limits, self._router.labels, learned)
        self.feedback, self.wants_body = self._listener.feedback, self._listener.wants_body
        self._denials: Denials | None = None
        self._places: dict[CompiledRoute, _Place] = {}
        self._plain: dict[tuple[str, str], _Place] = {}  # those that method and path alone decide

    def __repr__(self) -> str:
        return f"Provider({self.namespace!r}, {len(self.limits)} limits, {len(self._router.labels) - 1} routes)"

    def plan(self, call: Request, identity: Identity = ANYONE) -> Plan:
        """What `call` will spend and on whose ledgers. The same call gives the same (shared) plan."""
        place = self._plain.get((call.method, call.path))
        if place is None:
            route = self._router.find(call)
            place = self._places.get(route) or self._place(route)
        known, owners, plan = place.ready
        if known is not identity:
            owners, plan = self._owners(place, call, identity), None
        elif place.own:
            owners = self._owners(place, call, identity, owners[0])
        elif plan is not None:
            return plan
        costs = place.constant
        if costs is None:
            costs = tuple([amount if isinstance(amount, int) else amount(call) or 0 for amount in place.amounts])
        plan = place.plans.get((owners, costs))
        if plan is None:
            plan = self._make(place, owners, costs)
            if len(place.plans) >= _MOST_PLANS:
                place.plans.clear()
            place.plans[owners, costs] = plan
        if known is not identity:
            place.ready = (identity, owners, plan if place.fixed else None)
        return plan

    def with_learned(self, learned: Mapping[str, tuple[int, int]]) -> Provider:
        """The same provider with other numbers: limit, or limit and scope -> (capacity, period ns). Keys stay the same."""
        known = {ledger: numbers for ledger, numbers in learned.items() if ledger.partition("/")[0] in self.limits}
        other = copy(self)
        other._learn({**self._learned, **known})
        return other

    @cached_property
    def handling(self) -> Handling:
        """What may be done around its calls."""
        from ratekeeper.rules.handling import Handling  # for those who do something

        return Handling(self.file)

    @cached_property
    def learn_route(self) -> tuple[str, str] | None:
        """Method and path at which limits can be read without a key, or None."""
        for learn in self.file.learn:
            method, _, path = learn.route.partition(" ")
            states = learn.rows is not None and learn.limit and not set(path) & set("*{?[")
            if (
                method == "GET"
                and states
                and self._router.find(Request(method, path)).rule.class_ in {"market", "other"}
            ):
                return method, path
        return None

    def signed_until(self, call: Request) -> int | None:
        """Unix ns at which the signature that `call` already carries goes stale; None if it is not signed."""
        signature = self._signature
        return None if signature is None or signature.read(call) is None else signature.end(call)

    def signing_window(self, call: Request) -> tuple[int, str]:
        """Nanoseconds for which the signature of a signed `call` is valid, and the name of the parameter that says so."""
        assert self._signature is not None
        return self._signature.length(call), self._signature.name

    def denial(self, plan: Plan, kind: str, scope: str, until: int, now: int, words: str) -> Denial:
        """What it would answer to a call that a block holds; arguments as for `Denials.make`."""
        if self._denials is None:
            from ratekeeper.rules.denial import Denials  # for those who are shut out

            self._denials = Denials(self.file, self.name, self.limits, self.feedback)
        return self._denials.make(plan, kind, scope, until, now, words)

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of owners that its limits and pauses name: ``ip``, ``account``, …"""
        return frozenset(self._owner_of)

    def ban_length(self, earlier: int = 0, first: int = 0) -> int:
        """Nanoseconds that a ban without a stated end lasts, after `earlier` such bans.

        `first`: ns of the first one, where the rule file knows nothing of such bans. Each further one is twice as long, up to
        a quarter of an hour.
        """
        if first:
            return min(first << min(earlier, 32), _LONGEST_UNLISTED)
        ban = self.file.ban
        longest = duration(ban.longest)
        return int(min(duration(ban.first) * ban.factor ** min(earlier, 64), longest))

    def explain(self, call: Request, identity: Identity = ANYONE) -> Explanation:
        """The plan of `call` with the provenance of every number."""
        from ratekeeper.rules.explanation import explain  # for people

        rule = self._router.find(call).rule
        plan = self.plan(call, identity)
        return explain(self.file, self.namespace, self.handling, rule, call, plan, self._learned)

    def _place(self, route: CompiledRoute) -> _Place:
        kinds = ["ip"]
        if route.rule.class_ in {"order", "cancel", "account"} and "account" in self.file.owners:
            kinds.append("account")
        for name in route.costs:
            kinds += [kind for kind in self.limits[name].scope if kind not in kinds]
        if self._listener.blocks_endpoint and "endpoint" not in kinds:
            kinds.append("endpoint")
        place = _Place(route, tuple(kinds), tuple([self._owner_of[kind] for kind in kinds]))
        self._places[route] = place
        method, _, path = route.match.partition(" ")
        if not route.tests and route in self._router.plain.get((method, path), ())[:1]:
            self._plain[method, path] = place
        return place

    def _owners(self, place: _Place, call: Request, identity: Identity, ip: str = "") -> tuple[str, ...]:
        """Who owns the limits of a call; `ip`: the address, if it is known."""
        endpoint = ""
        if "endpoint" in place.kinds:
            route = place.route
            path = route.match.partition(" ")[2]
            if route.own_path:
                from ratekeeper.rules.secrets import concealed  # for routes that have no template

                path = concealed(call.path, identity.secret).replace(",", "_")
            endpoint = call.method.upper() + path
        others = place.owners[1:] if ip else place.owners
        found = [owner(call, identity, endpoint) for owner in others]
        return (ip, *found) if ip else tuple(found)

    def _make(self, place: _Place, values: tuple[str, ...], costs: tuple[int, ...]) -> Plan:
        route = place.route
        owners = dict(zip(place.kinds, values, strict=True))
        charges = []
        for name, cost in zip(route.costs, costs, strict=True):
            # What costs nothing is not charged at all, or a full limit would hold up calls that it does not meter.
            if cost > 0:
                for scope, part in _parts(cost, [(kind, owners[kind]) for kind in self.limits[name].scope]):
                    limit = self._ledgers.get(f"{name}/{scope}") or self.limits[name]
                    charges.append(Charge(f"{self.namespace}/{name}/{scope}", limit, part))
                    even = smoothed(limit) if self._smooth else None
                    if even is not None:  # a call larger than a part of the window takes the whole part
                        charges.append(Charge(f"{self.namespace}/{even.name}/{scope}", even, min(part, even.capacity)))
                if name in self._capped:
                    cap, own = self._capped[name]
                    scope = scope_text((("program", cleaned(cap.program)),))
                    charges.append(Charge(f"{self.namespace}/{own.name}/{scope}", own, cost))
        scopes = [self.namespace, f"{self.namespace}/class:{route.rule.class_}"]
        for kind, value in owners.items():
            scopes += [f"{self.namespace}/{kind}:{each}" for each in dict.fromkeys(value.split(","))]
        return Plan(
            provider=self.namespace,
            route=route.label,
            charges=tuple(charges),
            scopes=tuple(scopes),
            priority=PRIORITIES[route.rule.class_],
            feedback=route.rule.feedback,
        )


def _parts(cost: int, owners: list[tuple[str, str]]) -> Iterator[tuple[str, int]]:
    """A cost spread over its ledgers, as (scope, units), rounded up: one ledger but where a kind has several owners."""
    if not any("," in value for _, value in owners):
        yield scope_text(tuple(owners)), cost
        return
    total = 1
    for _, value in owners:
        total *= value.count(",") + 1
    for combination in product(
        *[[(kind, *item) for item in Counter(value.split(",")).items()] for kind, value in owners]
    ):
        share = 1
        for _, _, count in combination:
            share *= count
        yield scope_text(tuple((kind, name) for kind, name, _ in combination)), -(-cost * share // total)


def _kinds(file: File) -> set[str]:
    kinds = {"ip", "account", "endpoint"}
    for limit in file.limits.values():
        kinds.update(listed(limit.scope))
    return kinds
