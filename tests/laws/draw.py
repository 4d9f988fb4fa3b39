"""Random terms for worlds: any mix of limits, delays, clocks and misfortunes that the laws must stand."""

from __future__ import annotations

import random
from dataclasses import replace

from tests.laws.world import MILLI, Crew, Route, Terms

from ratekeeper.ledger.limit import SECOND, Limit, Window

KINDS = (Window.FIXED, Window.FIXED, Window.FIXED, Window.FIRST, Window.SLIDING, Window.BUCKET, Window.SLOTS)


def untidy(seed: int) -> Terms:
    """The world of that number, whose answers are dated by other clocks than the one that counts."""
    r = random.Random(~seed)
    terms = draw(seed, (Window.FIXED, Window.FIXED, Window.FIXED, Window.SLIDING))
    ahead = r.uniform(-1.5, 1.5)
    machines = r.choice(((ahead,), (ahead,), (ahead, r.uniform(-1.5, 1.5), r.uniform(-1.5, 1.5))))
    return replace(
        terms,
        chatty=True,
        lost=min(terms.lost, 0.05),
        timeout=max(terms.timeout, terms.up[1] + terms.work[1] + terms.down[1]),  # who hears nothing learns nothing
        ahead=tuple(int(each * SECOND) for each in (machines if terms.learns else machines[:1])),
        drift=r.choice((0, 0, -100_000, 100_000)),
    )


def blind(seed: int) -> Terms:
    """The same without used-counters: only a refusal shows that the dates are wrong."""
    return replace(untidy(seed), chatty=False)


def draw(seed: int, kinds: tuple[Window, ...] = KINDS) -> Terms:
    """The world of that number."""
    r = random.Random(seed)
    limits = tuple(_limit(r, f"l{i}", r.choice(kinds)) for i in range(r.choice((1, 1, 2, 3))))
    routes = tuple(_route(r, limits) for _ in range(r.choice((1, 2, 4))))
    longest = max(limit.period for limit in limits)
    low = r.choice((MILLI, 20 * MILLI, 200 * MILLI))
    high = low + r.choice((MILLI, 20 * MILLI, 250 * MILLI, 1000 * MILLI, 3 * SECOND))
    delay = low, min(high, 3 * SECOND)
    members = r.choice((1, 1, 2, 3, 5))
    demand = r.choice((0.7, 1.0, 1.2, 2, 6))
    there_and_back = sum(delay)
    crews = tuple(
        Crew(
            member=member,
            routes=tuple(r.sample(range(len(routes)), r.randint(1, len(routes)))),
            priority=r.choice((0, 1, 2, 2, 2, 3, 4)),
            **_pace(limits, routes, demand / members, there_and_back),
            since=r.choice((0, 0, r.randrange(3 * SECOND))),
            rhythm=r.choice((0, 0, 0, r.randrange(longest // 4, longest + 4) + SECOND // 10)),
            patience=r.choice((1 << 60, 1 << 60, 5 * SECOND)),
        )
        for member in range(members)
        for _ in range(r.choice((1, 1, 2)))
    )
    span = max(4 * SECOND, min(longest * r.choice((3, 6)), 90 * SECOND if longest > 10 * SECOND else 30 * SECOND))
    learns = r.choice(("", "", "date", "ms"))
    if learns:
        doubt = (r.choice((0, 50 * MILLI, 900 * MILLI)),) * 2
    else:
        epsilon = r.choice((0, MILLI, 50 * MILLI, 500 * MILLI, SECOND))
        doubt = r.randint(0, epsilon), r.randint(0, epsilon)
    step = r.choice((0, 0, 3, -3))
    return Terms(
        seed=seed,
        limits=limits,
        routes=routes,
        crews=crews,
        span=span,
        up=delay,
        work=(0, r.choice((0, MILLI, SECOND))),
        down=delay if r.random() < 0.7 else (MILLI, r.choice((5 * MILLI, SECOND))),
        offset=r.randrange(-3600 * SECOND, 3600 * SECOND),
        doubt=doubt,
        learns=learns,
        steps=((r.randrange(span), step * SECOND),) if learns and step else (),
        chatty=r.random() < 0.6,
        lost=r.choice((0, 0, 0.05, 0.3)),
        timeout=r.choice((1 << 60, 1 << 60, delay[1], SECOND, 3 * SECOND)),
        cancelled=r.choice((0, 0, 0.1)),
        crashes=tuple((r.randrange(span), r.randrange(members)) for _ in range(r.choice((0, 0, 1, 3)))),
        lease=r.choice((8 * SECOND, 15 * SECOND, 60 * SECOND)),
        late=r.choice((0, MILLI, 20 * MILLI)),
        weights=tuple(r.choice((1, 1, 3)) for _ in range(members)),
    )


def _pace(limits: tuple[Limit, ...], routes: tuple[Route, ...], demand: float, rtt: int) -> dict[str, int]:
    """Workers and pauses that ask for about `demand` times the tightest budget, so that calls are under way over edges."""
    costs = [sum(route.costs.get(i, 0) for route in routes) / len(routes) for i in range(len(limits))]
    wanted = demand * min(
        x.capacity / (cost * (x.period or rtt)) for x, cost in zip(limits, costs, strict=True) if cost
    )
    workers = min(60, max(2, round(wanted * rtt * 2)))
    return {"workers": workers, "pause": max(0, int(workers / wanted) - rtt)}


def _limit(r: random.Random, name: str, kind: Window) -> Limit:
    if kind is Window.SLOTS:
        return Limit(name, "slots", r.choice((1, 3, 10)), 0, kind)
    period = r.choice((SECOND, SECOND, 2 * SECOND, 5 * SECOND, 10 * SECOND, 60 * SECOND))
    capacity = r.choice((4, 20, 100, 100, 400))
    return Limit(
        name, "weight", capacity, period, kind,
        headroom=r.choice((0, 0, 1)),
        refill=r.choice((0, capacity // 2, capacity * 3)) if kind is Window.BUCKET else 0,
        origin=r.choice((0, 0, r.randrange(period))) if kind is Window.FIXED else 0,
    )  # fmt: skip


def _route(r: random.Random, limits: tuple[Limit, ...]) -> Route:
    chosen = r.sample(range(len(limits)), r.randint(1, len(limits)))
    costs = {}
    for i in chosen:
        usable = limits[i].usable
        most = max(1, usable // r.choice((1, 4, 10, 20, 40, 100)))
        costs[i] = r.randint(1, min(most, usable))
    return Route(costs, r.choice((0, 0, 0, 0.5)))
