"""Any provider as a venue, told from its rule file alone: small bodies, its headers, its refusals, its bans."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import msgspec

from ratekeeper.rules.call import Answer
from ratekeeper.rules.denial import Envelope, filled, put
from ratekeeper.rules.reading import dig
from ratekeeper.rules.times import duration, interval_name

from .incoming import Failure
from .refusing import Refused, Refuser, write_instant
from .wording import interval

if TYPE_CHECKING:
    import random

    from ratekeeper.rules.schema import Learn

    from .accounting import Bill, Meter, Refusal, StrictLimit
    from .incoming import Arrival
    from .options import Live
    from .orders import OrderDesk
    from .tariff import Tariff

__all__ = ["Plain"]


class Plain:
    """A provider without bodies of its own; see `Venue` for what the methods are."""

    desk: OrderDesk | None = None

    def __init__(self, tariff: Tariff, options: Live) -> None:
        self._tariff = tariff
        self._provider = tariff.provider
        self._file = tariff.provider.file
        self._envelope = Envelope.of(tariff.provider.name)
        self._refuser = Refuser(tariff, self._envelope, options)
        routes = (self._file.default, *self._file.routes)
        self._settles = any(route.ok or route.failed for route in routes)
        self._reported = {
            name: rule.headers
            for name, rule in self._file.limits.items()
            if msgspec.to_builtins(rule.headers, str_keys=True)
        }

    # -- answers

    def carry_out(self, arrival: Arrival, meter: Meter) -> tuple[bytes, list[Bill]]:
        label = arrival.plan.route.partition(" #")[0] or f"{arrival.method} {arrival.path}"
        body = filled(self._envelope.routes.get(label, self._envelope.ok), arrival.dated)
        learns = [learn for learn in self._file.learn if fnmatchcase(label, learn.route) or label == learn.route]
        if learns:
            tree = msgspec.json.decode(body)
            for learn in learns:
                tree = self._taught(tree, learn, arrival, meter)
            body = msgspec.json.encode(tree)
        return body, self._given_back(arrival, body)

    def _taught(self, tree: Any, learn: Learn, arrival: Arrival, meter: Meter) -> Any:
        """The body with what the file says is read from it: limits in force, counters, the clock."""
        if learn.clock:
            value = write_instant(learn.clock_format, arrival.dated, arrival.dated)
            if (
                dig(tree, tuple(learn.clock.split("."))) is None
            ):  # else the envelope has told it already, in its own form
                tree = put(tree, learn.clock, int(value) if value.isdecimal() else value)
        if learn.rows is None:
            return tree
        owners = {bill.limit.name: bill.owner for bill in arrival.bills}
        rows = []
        for word, unit in (learn.units or {"": ""}).items():
            for limit in self._tariff.limits.values():
                if limit.period and (limit.unit == unit if learn.units else limit.name == learn.limit_name):
                    count = meter.used(arrival.now, limit, owners[limit.name]) if limit.name in owners else 0
                    rows.append(_row(learn, word, limit, count))
        if not learn.rows and not learn.type and rows:
            for path, value in rows[0].items():
                tree = put(tree, path, value)
            return tree
        made: list[Any] = [{} for _ in rows]
        for at, row in enumerate(rows):
            for path, value in row.items():
                made[at] = put(made[at], path, value)
        return put(tree, learn.rows, made)

    def _given_back(self, arrival: Arrival, body: bytes) -> list[Bill]:
        """What the answer makes cheaper, as the file's `ok` says."""
        if not self._settles:
            return []
        told = self._provider.feedback(arrival.plan, Answer(200, {}, body), now=arrival.now)
        found = zip(arrival.plan.charges, arrival.bills, strict=True)
        less = [bill._replace(cost=bill.cost - told.actual.get(charge.key, bill.cost)) for charge, bill in found]
        return [bill for bill in less if bill.cost]

    # -- refusals

    def throttled(self, arrival: Arrival, refusal: Refusal) -> Failure:
        return self._refuser.throttled(arrival, refusal.limit, refusal.free_at)

    def banned(self, arrival: Arrival, until: int, cause: Failure | None) -> Failure:
        if isinstance(cause, Refused):
            return self._refuser.answer(cause.rule, cause.status, until, arrival.now, limit=cause.limit)
        rule = self._refuser.ban
        if rule is None:  # nothing is known of bans here: what a firewall would say
            return Failure(403, self._envelope.failed.encode(), until=until, bans=True)
        return self._refuser.banned(rule, arrival, until)

    def ban_span(self) -> int:
        rule = self._refuser.ban
        if rule is None:
            return 0
        return self._tariff.stretched(duration(rule.hold) if rule.hold else self._provider.ban_length())

    def trouble(self, dice: random.Random) -> tuple[Failure, bool]:
        rules = [rule for rule in self._file.refusals if rule.outcome == "overloaded"]
        if not rules:
            return Failure(503, self._envelope.failed.encode()), dice.random() < 0.5
        rule = dice.choice(rules)
        return self._refuser.answer(rule, (rule.status or [503])[0], 0, 0), rule.charged

    # -- headers

    def reports(self, arrival: Arrival, meter: Meter) -> dict[str, str]:
        headers: dict[str, str] = {}
        for bill in arrival.bills:
            names = self._reported.get(bill.limit.name)
            if names is None:
                continue
            limit, count = bill.limit, meter.used(arrival.now, bill.limit, bill.owner)
            span = interval_name(limit.period) if limit.period else ""
            values = {
                names.used: str(count),
                names.remaining: str(max(0, limit.capacity - count)),
                names.limit: str(limit.capacity),
                names.cost: str(bill.cost),
            }
            if names.reset:
                full = count >= limit.capacity or limit.window in ("fixed", "first")
                end = meter.tally(limit, bill.owner).counter.free_at(arrival.now) if full else arrival.now
                values[names.reset] = write_instant(names.reset_format, end, arrival.now)
            headers |= {name.replace("{interval}", span): value for name, value in values.items() if name}
        return headers

    def orders(self) -> dict[str, Any]:
        return {}


def _row(learn: Learn, word: str, limit: StrictLimit, count: int) -> dict[str, Any]:
    name, number = interval(limit.period)
    if not learn.number:
        name = interval_name(limit.period)
    values = {
        learn.type: word,
        learn.interval: name,
        learn.number: number,
        learn.limit: limit.capacity,
        learn.used: count,
    }
    return {path: value for path, value in values.items() if path}
