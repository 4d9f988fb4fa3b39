"""One provider's rules at work: a call becomes a plan, an answer becomes feedback."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from headgate.ledger.limit import SECOND, Charge, Limit, Window
from headgate.rules.answer import Listener
from headgate.rules.call import Answer, Call, Feedback, Identity, Plan, Priority
from headgate.rules.cost import evaluate
from headgate.rules.explanation import Explanation, LimitShare, provenance
from headgate.rules.reading import number, reader
from headgate.rules.routing import PRIORITIES, CompiledRoute, Router, listed
from headgate.rules.schema import File, LimitRule
from headgate.rules.scopes import ANYONE, OwnerOf, owner_of, scope_text
from headgate.rules.times import duration, instant

__all__ = ["Provider", "limit_of"]

_MOST_PLANS = 8192
"""Plans kept; beyond it the cache is emptied. Plans differ by route, cost and owners, so few programs have more."""


class _Slot(NamedTuple):
    """What `plan` needs to know of a route in one look-up."""

    route: CompiledRoute
    kinds: tuple[str, ...]
    owners: tuple[OwnerOf, ...]


class Provider:
    """The rules of one provider as one namespace sees them.

    Attributes:
        name: of the rule file.
        namespace: begins every `Charge.key`; differs from `name` where the user mapped hosts of their own to it.
        file: the rule file.
        limits: by name; the file's values, or those learned.
    """

    def __init__(
        self,
        file: File,
        namespace: str = "",
        *,
        learned: Mapping[str, tuple[int, int]] | None = None,
        router: Router | None = None,
    ) -> None:
        self.name = file.name
        self.namespace = namespace or file.name
        self.file = file
        self._learned = dict(learned or {})
        self.limits = {name: _changed(limit_of(name, rule), self._learned.get(name)) for name, rule in file.limits.items()}
        self._router = router or Router(file)
        self._owner_of = {kind: owner_of(kind, file.owners) for kind in _kinds(file)}
        self._listener = Listener(file, self.namespace, self.limits, self._router.labels)
        self._slots: dict[CompiledRoute, _Slot] = {}
        # The plans of routes that depend on nothing but the identity: (method, path) -> (identity, plan).
        self._ready: dict[tuple[str, str], tuple[Identity, Plan]] = {}
        self._plans: dict[tuple[object, ...], Plan] = {}

    def __repr__(self) -> str:
        return f"Provider({self.namespace!r}, {len(self.limits)} limits, {len(self._router.labels) - 1} routes)"

    def plan(self, call: Call, identity: Identity = ANYONE) -> Plan:
        """What `call` will spend and on whose ledgers. The same call gives the same (shared) plan."""
        ready = self._ready.get((call.method, call.path))
        if ready is not None and ready[0] is identity:
            return ready[1]
        route = self._router.find(call)
        slot = self._slots.get(route) or self._slot(route)
        endpoint = call.method.upper() + (call.path if route.own_path else route.match.partition(" ")[2])
        owners = tuple([owner(call, identity, endpoint) for owner in slot.owners])
        costs = tuple([evaluate(amount, call) or 0 for amount in route.costs.values()])
        key = (route, owners, costs)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._make(slot, dict(zip(slot.kinds, owners, strict=True)), costs)
            _bound(self._plans)
            self._plans[key] = plan
        if self._fixed(slot, call):
            self._ready[call.method, call.path] = (identity, plan)
        return plan

    def feedback(self, plan: Plan, answer: Answer, *, now: int) -> Feedback:
        """What `answer`, received at `now` (Unix ns), tells about the limits that `plan` charged."""
        return self._listener.feedback(plan, answer, now)

    def wants_body(self, plan: Plan, status: int) -> bool:
        """Whether `feedback` could learn from the body of an answer with this status. Bodies of refusals always tell."""
        return self._listener.wants_body(plan, status)

    def with_learned(self, learned: Mapping[str, tuple[int, int]]) -> Provider:
        """The same provider with other numbers: limit name -> (capacity, period ns). Keys stay the same."""
        known = {name: numbers for name, numbers in learned.items() if name in self.limits}
        return Provider(self.file, self.namespace, learned={**self._learned, **known}, router=self._router)

    def learn_route(self) -> tuple[str, str] | None:
        """Method and path at which limits can be read, or None."""
        for learn in self.file.learn:
            method, _, path = learn.route.partition(" ")
            if learn.rows is not None and learn.limit and not set(path) & set("*{?["):
                return method, path
        return None

    def signed_until(self, call: Call) -> int | None:
        """Unix ns at which the signature that `call` already carries goes stale; None if it is not signed."""
        signing = self.file.signing
        if signing is None or reader(signing.signature)(call) is None:
            return None
        made = reader(signing.timestamp)(call)
        signed = None if made is None else instant(made, signing.timestamp_format, 0)
        if signed is None:
            return None
        if signing.timestamp_format == "epoch-ms" and signed > 10**20:
            signed //= 1000  # sent in microseconds, as Binance allows
        window = number(reader(signing.window)(call)) if signing.window else None
        length = duration(signing.default) if window is None else max(window, 0) * (SECOND // 1000)
        return signed + min(length, duration(signing.longest))

    def ban_length(self, earlier: int = 0) -> int:
        """Nanoseconds that a ban lasts which states no end, after so many `earlier` ones."""
        ban = self.file.ban
        longest = duration(ban.longest)
        return int(min(duration(ban.first) * ban.factor ** min(earlier, 64), longest))

    def explain(self, call: Call, identity: Identity = ANYONE) -> Explanation:
        """The plan of `call` with the provenance of every number."""
        route = self._router.find(call)
        plan = self.plan(call, identity)
        shares = []
        for charge in plan.charges:
            rule = self.file.limits[charge.limit.name]
            learned = charge.limit.name in self._learned
            shares.append(LimitShare.of(charge, provenance(self.file, rule), learned=learned))
        return Explanation(
            provider=self.name,
            namespace=self.namespace,
            title=self.file.title,
            route=plan.route,
            known=bool(plan.route),
            route_class=route.rule.class_,
            priority=plan.priority.name.lower(),
            limits=shares,
            cost=provenance(self.file, route.rule),
            feedback=plan.feedback,
            blocked_by=list(plan.scopes),
        )

    def _slot(self, route: CompiledRoute) -> _Slot:
        kinds = ["ip"]
        if route.rule.class_ in {"order", "cancel", "account"} and "account" in self.file.owners:
            kinds.append("account")
        for name in route.costs:
            kinds += [kind for kind in self.limits[name].scope if kind not in kinds]
        if self._listener.blocks_endpoint and "endpoint" not in kinds:
            kinds.append("endpoint")
        slot = _Slot(route, tuple(kinds), tuple(self._owner_of[kind] for kind in kinds))
        self._slots[route] = slot
        return slot

    def _fixed(self, slot: _Slot, call: Call) -> bool:
        """Whether the next call to this place surely has the same plan, whatever its parameters and headers."""
        route = slot.route
        siblings = self._router.plain.get((call.method, call.path))
        return (
            siblings is not None
            and len(siblings) == 1
            and not route.tests
            and all(isinstance(amount, int) for amount in route.costs.values())
            and all(kind in {"ip", "endpoint"} for kind in slot.kinds)
        )

    def _make(self, slot: _Slot, owners: dict[str, str], costs: tuple[int, ...]) -> Plan:
        route = slot.route
        charges = []
        for name, cost in zip(route.costs, costs, strict=True):
            # What costs nothing is not charged at all, or a full limit would hold up calls that it does not meter.
            if cost > 0:
                limit = self.limits[name]
                scope = scope_text(tuple((kind, owners[kind]) for kind in limit.scope))
                charges.append(Charge(f"{self.namespace}/{name}/{scope}", limit, cost))
        scopes = [self.namespace, f"{self.namespace}/class:{route.rule.class_}"]
        scopes += [f"{self.namespace}/{kind}:{value}" for kind, value in owners.items()]
        return Plan(
            provider=self.namespace,
            route=route.label,
            charges=tuple(charges),
            scopes=tuple(scopes),
            priority=Priority(PRIORITIES[route.rule.class_]),
            feedback=route.rule.feedback,
        )


def limit_of(name: str, rule: LimitRule) -> Limit:
    """The ledger's limit of what the file says."""
    return Limit(
        name=name,
        unit=rule.unit,
        capacity=rule.capacity,
        period=duration(rule.period) if rule.window is not Window.SLOTS else 0,
        window=rule.window,
        scope=tuple(listed(rule.scope)),
        headroom=rule.headroom,
        refill=rule.refill,
        origin=duration(rule.origin) if rule.origin else 0,
    )


def _changed(limit: Limit, learned: tuple[int, int] | None) -> Limit:
    if learned is None:
        return limit
    capacity, period = learned
    # Headroom is the file's wish for the file's capacity: keep the share, not the number.
    headroom = limit.headroom * capacity // limit.capacity
    refill = limit.refill * capacity // limit.capacity
    return replace(limit, capacity=capacity, period=period or limit.period, headroom=headroom, refill=refill)


def _kinds(file: File) -> set[str]:
    kinds = {"ip", "account", "endpoint"}
    for limit in file.limits.values():
        kinds.update(listed(limit.scope))
    return kinds


def _bound(cache: dict[tuple[object, ...], Plan]) -> None:
    if len(cache) >= _MOST_PLANS:
        cache.clear()
