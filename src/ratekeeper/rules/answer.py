"""Reads answers: usage headers, actual costs, the server's clock, stated limits. `refusal` reads refusals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, TypeAlias

import msgspec

from ratekeeper.ledger.limit import SECOND, Charge, Limit
from ratekeeper.rules.call import Answer, Block, Doubt, Feedback, Outcome, Plan, Request
from ratekeeper.rules.numbers import CAP, Plausible, believable, learn_rows, per
from ratekeeper.rules.reading import FAULTS, dig_json
from ratekeeper.rules.refusal import Refusals
from ratekeeper.rules.routing import Amount, CompiledRoute, evaluate
from ratekeeper.rules.schema import File, Learn, LimitHeaders
from ratekeeper.rules.times import DAY, date_name, http_date, instant, interval_name, stated

__all__ = ["Listener"]

_MOST_RECIPES = 8192
_BELIEVABLE = 10**15
"""Counters are cut to this."""
_DIGITS = 18
"""Digits of a counter that are read."""
_OVER = 16
"""A counter or a cost of this multiple of the limit cannot be meant."""
_EARLIEST, _LATEST = 1_767_225_600 * SECOND, 7_258_118_400 * SECOND
"""The years 2026 and 2200, Unix ns: what lies outside is not the time of any server, nor of a machine whose clock is set."""
_STRAY = 366 * DAY
"""A server's clock is not further than this from a clock that is set, ns: no certificate of its host would be valid."""

_ReadPart: TypeAlias = Callable[..., Any]
"""Calls a function that reads one part of an answer, given the name of the part; None if that part cannot be read."""


class _Report(NamedTuple):
    """Headers about one charged limit, other than its used-counter; names are final."""

    key: str
    limit: Limit
    headers: LimitHeaders


class _Recipe(NamedTuple):
    """What to look at in answers to one plan."""

    plain: bool
    """Whether a good answer can tell no more than the date and used-counters."""
    used: tuple[tuple[str, str, int], ...]
    """(header, charge key, the most that is believed)."""
    reports: tuple[_Report, ...]
    ok: tuple[tuple[str, int, Amount], ...]
    """(charge key, reserved, actual)."""
    failed: tuple[tuple[str, int, Amount], ...]
    learns: tuple[Learn, ...]
    needs_body: bool
    caps: tuple[tuple[str, str], ...]
    """(charge key, key of the charge on the program's cap), where what the call really costs is known of one owner."""


class Listener:
    """Reads answers for one `Provider`."""

    def __init__(
        self,
        file: File,
        namespace: str,
        limits: Mapping[str, Limit],
        routes: Mapping[str, CompiledRoute],
        learned: Mapping[str, tuple[int, int]],
    ) -> None:
        self._file = file
        self._limits = limits
        self._routes = routes
        self._learned = learned
        self._start = len(namespace) + 1
        self._refusals = Refusals(file, namespace, limits)
        self._odd = self._refusals.odd_statuses
        self._headers = {name: _named(file.limits[name].headers, limit) for name, limit in limits.items()}
        self._recipes: dict[Plan, _Recipe] = {}
        self._bounds: dict[str, Plausible] = {}
        self._date: tuple[str, tuple[int, int] | None] = ("", None)
        self.blocks_endpoint = self._refusals.blocks_endpoint

    def wants_body(self, plan: Plan, status: int) -> bool:
        """Whether `feedback` could learn from the body of an answer with this status. Bodies of refusals always tell."""
        if status >= 400 or status in self._odd:
            return True
        return (self._recipes.get(plan) or self._recipe(plan)).needs_body

    def feedback(self, plan: Plan, answer: Answer, now: int) -> Feedback:
        """Read what `answer` tells about the limits that `plan` charged. A part that cannot be read is left out, and the rest
        counts.

        Args:
            plan: of the call.
            answer: to it.
            now: the earliest time that the server's clock can show, Unix ns. It separates past from future where the answer
                has no date of its own.
        """
        recipe = self._recipes.get(plan) or self._recipe(plan)
        status, headers, _ = answer
        result = Feedback()
        if recipe.plain and status < 400 and status not in self._odd:  # the usual answer: read here, without a call
            try:
                date = headers.get("date")
                if date is not None:
                    known, bounds = self._date
                    result.server_time = bounds if date == known else self._server_time(date, now, result)
                for name, key, most in recipe.used:
                    value = headers.get(name)
                    if value is not None and value.isdecimal() and value.isascii():
                        count = int(value[:_DIGITS])
                        if count < most:
                            result.used[key] = count
                        else:
                            self._doubt_use(key, value, result)
                return result
            except FAULTS:
                result = Feedback()
        self._read(recipe, plan, answer, now, result, _part_of(result))
        return result

    def _read(self, recipe: _Recipe, plan: Plan, answer: Answer, now: int, result: Feedback, part: _ReadPart) -> None:
        """Read any answer into `result`, each part of it by itself."""
        headers = answer.headers
        date = part("date", headers.get, "date")
        if date is not None:
            known, bounds = self._date
            result.server_time = bounds if date == known else part("date", self._server_time, date, now, result)
        seen = now if result.server_time is None else result.server_time[0]
        charged = True
        if answer.status >= 400 or answer.status in self._odd:
            charged = self._refused(plan, answer, seen, result, part)
        if recipe.used:
            part("counters", self._count_used, recipe.used, headers, result)
        for report in recipe.reports:
            part("reports", self._report, report, headers, seen, result)
        if not charged or recipe.ok or recipe.failed:
            self._cost(recipe, plan, answer, result, part, charged)
        if result.actual:
            result.actual.update({cap: result.actual[key] for key, cap in recipe.caps if key in result.actual})
        if recipe.learns and answer.body and result.outcome is Outcome.OK:
            part("limits", self._learn, recipe.learns, plan, answer.body, now, result)
        if result.used or result.actual:
            self._bound(plan, result)

    @staticmethod
    def _cost(recipe: _Recipe, plan: Plan, answer: Answer, result: Feedback, part: _ReadPart, charged: bool) -> None:
        """What the call really cost."""
        if not charged:
            result.actual = {charge.key: 0 for charge in plan.charges}
        elif recipe.ok and result.outcome is Outcome.OK:
            part("cost", _settle, recipe.ok, answer, result)
        elif recipe.failed and 400 <= answer.status < 500:
            part("cost", _settle, recipe.failed, answer, result)

    def _refused(self, plan: Plan, answer: Answer, now: int, result: Feedback, part: _ReadPart) -> bool:
        """Read a refusal. Returns whether the provider charges it."""
        readable = answer
        for name in ("body", "headers", "status"):
            result.blocks, result.full = (), ()
            charged: bool | None = part(name, self._refusals.read, plan, readable, now, result)
            if charged is not None:
                return charged
            # What could not be read with it is read without: first the body, then the headers.
            readable = Answer(answer.status, answer.headers if name == "body" else {})
        return True

    def _server_time(self, date: str, now: int, result: Feedback) -> tuple[int, int] | None:
        """A Date header is cut to whole seconds: the clock shows [t, t + 1 s]. One string serves a second's answers."""
        seconds = http_date(date)
        bounds = None
        if seconds is not None and self._near(seconds * SECOND, now, "date", result):
            bounds = (seconds * SECOND, (seconds + 1) * SECOND)
        self._date = (date, bounds)
        return bounds

    @staticmethod
    def _near(moment: int, now: int, about: str, result: Feedback) -> bool:
        """Whether `moment` can be the time of a server. A clock of ours that was never set (`now`) judges none."""
        if _EARLIEST <= moment <= _LATEST and (abs(moment - now) <= _STRAY or now < _EARLIEST):
            return True
        used = f"the clock of this machine, {round(abs(moment - now) / DAY)} days apart,"
        result.doubted += (Doubt(about, f"the time {date_name(moment)}", used),)
        return False

    def _learn(self, learns: tuple[Learn, ...], plan: Plan, body: bytes | str, now: int, result: Feedback) -> None:
        keys = {charge.limit.name: charge.key for charge in plan.charges}
        for learn in learns:
            if learn.clock:
                moment = instant(dig_json(body, learn.clock), learn.clock_format, 0)
                if moment is not None and self._near(moment, now, learn.clock, result):
                    bounds = (moment, moment + (SECOND if learn.clock_format == "epoch-s" else SECOND // 1000))
                    dated = result.server_time
                    # A body made earlier (cached) contradicts the Date header, which is made with the answer.
                    if dated is None or (bounds[1] >= dated[0] and bounds[0] <= dated[1]):
                        result.server_time = bounds
            if learn.rows is not None:
                learned, used = learn_rows(
                    dig_json(body, learn.rows),
                    learn,
                    self._limits,
                    lambda limit, capacity, period: self._believes(
                        limit, capacity, period, keys.get(limit.name) or self._refusals.key(limit, plan), result
                    ),
                )
                for name, numbers in learned.items():
                    # A private answer speaks of one account, a public one of all.
                    key = self._refusals.key(self._limits[name], plan) if _is_private(plan) else ""
                    result.learned[self._ledger(self._limits[name], key) if key else name] = numbers
                result.used.update({keys[name]: count for name, count in used.items() if name in keys})

    def _believes(self, limit: Limit, capacity: int, period: int, key: str, result: Feedback) -> bool:
        """Whether the provider can mean a limit that it states. If not, it is doubted. If it allows less than the limit in
        force, the ledger `key` ("" if unknown) is held for a short time."""
        bounds = self._bounds.get(limit.name)
        if bounds is None:
            bounds = self._bounds[limit.name] = Plausible.of(self._file.limits[limit.name])
        if believable(capacity, period, limit.window) and bounds.holds(capacity, period):
            return True
        less = 0 < capacity * max(limit.period, 1) < limit.capacity * max(period, 1)
        result.doubted += (
            Doubt(
                self._ledger(limit, key) if key else limit.name,
                f"a limit of {per(capacity, limit.unit, period)}",
                per(limit.capacity, limit.unit, limit.period),
                key if less else "",
            ),
        )
        return False

    def _count_used(self, used: tuple[tuple[str, str, int], ...], headers: Mapping[str, str], result: Feedback) -> None:
        for name, key, most in used:
            value = headers.get(name)
            if value is not None and value.isdecimal() and value.isascii():
                result.used[key] = min(int(value[:_DIGITS]), most)

    def _doubt_use(self, key: str, stated: object, result: Feedback) -> None:
        """Doubt a used-counter that is many times the limit. Its ledger is held for a short time."""
        about = f"use of {key[self._start :]}"
        result.doubted += (Doubt(about, f"{str(stated)[:_DIGITS]} units used", "our own count", key),)

    def _report(self, report: _Report, headers: Mapping[str, str], seen: int, result: Feedback) -> None:
        """Read limit, rest, reset and cost as headers state them.

        The provider counts what remains in its own window, which may be another than ours when the answer arrives. So it
        becomes a used-counter, which the ledger weighs, and never fills a limit by itself.
        """
        names, limit = report.headers, report.limit
        capacity = _count(headers.get(names.limit)) if names.limit else None
        doubted = False
        if capacity is not None and capacity != limit.capacity:
            ledger = self._ledger(limit, report.key)
            doubted = not self._believes(limit, capacity, limit.period, report.key, result)
            if not doubted and self._learned.get(ledger) != (capacity, limit.period):
                result.learned[ledger] = (capacity, limit.period)
        # What remains of a limit that cannot be meant tells nothing.
        remaining = _count(headers.get(names.remaining)) if names.remaining and not doubted else None
        if remaining is not None:
            result.used[report.key] = max((capacity or limit.capacity) - remaining, 0)
            wait = stated(headers.get(names.reset), names.reset_format) if names.reset and not remaining else None
            ahead = 0 if wait is None else wait.after or wait.at - seen
            longest = max(2 * limit.period, 60 * SECOND)
            # A reset that is not ahead says nothing (Bybit sends "now" when it does not limit).
            if 0 < ahead <= longest:
                result.blocks += (Block(report.key, wait, "limit", "no units remain until the stated reset"),)
            elif ahead > longest + DAY:  # then nobody knows what the rest is worth
                about = f"{names.reset} of {self._ledger(limit, report.key)}"
                used = "our own count"
                result.doubted += (Doubt(about, f"a reset in {ahead // DAY} days", used, report.key),)
                del result.used[report.key]
        cost = _count(headers.get(names.cost)) if names.cost else None
        if cost is not None:
            result.actual[report.key] = cost

    def _ledger(self, limit: Limit, key: str) -> str:
        """The name under which a stated capacity is kept: that of an address holds for all addresses, that of any other owner
        for this owner alone."""
        return limit.name if limit.scope == ("ip",) else key[self._start :]

    def _bound(self, plan: Plan, result: Feedback) -> None:
        """Leave out counters and costs that cannot be meant. In place of such a cost the reserved one stays."""
        used, actual = result.used, result.actual
        for charge in plan.charges:
            key, most = charge.key, _most(charge)
            if used.get(key, 0) >= most:
                self._doubt_use(key, used.pop(key), result)
            if key not in actual:
                continue
            actual[key] = max(actual[key], 0)
            if actual[key] >= most:
                about = f"cost on {charge.limit.name}"
                stated = f"a cost of {actual.pop(key)} {charge.limit.unit}"
                result.doubted += (Doubt(about, stated, f"the reserved {charge.cost}"),)

    def _recipe(self, plan: Plan) -> _Recipe:
        route = self._routes.get(plan.route)
        used, reports = [], []
        for charge in plan.charges if plan.feedback else ():
            names = self._headers.get(charge.limit.name)
            if names is None:
                continue
            if names.used:
                used.append((names.used, charge.key, _most(charge)))
            if names.remaining or names.limit or names.cost:
                reports.append(_Report(charge.key, charge.limit, names))
        ok = _changes(plan, route.ok if route else {})
        failed = _changes(plan, route.failed if route else {})
        learns = tuple(learn for learn in self._file.learn if _speaks_of(learn, plan.route))
        needs_body = bool(learns) or any(not isinstance(amount, int) for _, _, amount in ok)
        plain = not (reports or ok or learns)
        recipe = _Recipe(plain, tuple(used), tuple(reports), ok, failed, learns, needs_body, _caps(plan))
        if len(self._recipes) >= _MOST_RECIPES:
            self._recipes.clear()
        self._recipes[plan] = recipe
        return recipe


def _part_of(result: Feedback) -> _ReadPart:
    """The function that reads the parts of an answer one by one, and names in `result` those that cannot be read."""

    def part(name: str, read: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return read(*arguments)
        except FAULTS as error:
            result.unreadable = ", ".join(filter(None, (result.unreadable, f"{name} ({type(error).__name__})")))
            return None

    return part


def _most(charge: Charge) -> int:
    return _OVER * max(charge.limit.capacity, charge.cost)


def _named(headers: LimitHeaders, limit: Limit) -> LimitHeaders:
    """The headers with the interval in force written into their names."""
    interval = interval_name(limit.period) if limit.period else ""
    names = {
        field: name.replace("{interval}", interval).lower()
        for field in ("used", "remaining", "limit", "reset", "cost")
        if (name := getattr(headers, field))
    }
    return msgspec.structs.replace(headers, **names)


def _count(value: str | None) -> int | None:
    """A header's whole number from 0, at most `_BELIEVABLE`; None if it is none."""
    if value is None:
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return int(min(number, _BELIEVABLE)) if number >= 0 else None


def _settle(changes: tuple[tuple[str, int, Amount], ...], answer: Answer, result: Feedback) -> None:
    call = None
    for key, reserved, amount in changes:
        if not isinstance(amount, int) and call is None:
            call = Request("", "", body=dig_json(answer.body, ""))
        actual = amount if isinstance(amount, int) else evaluate(amount, call or Request("", ""))
        if actual is not None and actual != reserved:
            result.actual[key] = actual


def _changes(plan: Plan, amounts: Mapping[str, Amount]) -> tuple[tuple[str, int, Amount], ...]:
    names = [charge.limit.name for charge in plan.charges]
    # A cost that is spread over several owners stays as it was reserved: the answer does not say whose share changed.
    return tuple(
        (charge.key, charge.cost, amounts[charge.limit.name])
        for charge in plan.charges
        if charge.limit.name in amounts and names.count(charge.limit.name) == 1
    )


def _caps(plan: Plan) -> tuple[tuple[str, str], ...]:
    names = [charge.limit.name for charge in plan.charges]
    keys = {charge.limit.name: charge.key for charge in plan.charges}
    return tuple((keys[name], keys[name + CAP]) for name in names if name + CAP in keys and names.count(name) == 1)


def _is_private(plan: Plan) -> bool:
    return any(scope.endswith(("/class:account", "/class:order", "/class:cancel")) for scope in plan.scopes)


def _speaks_of(learn: Learn, label: str) -> bool:
    route = label.partition(" #")[0]
    return bool(route) and (learn.route == route or fnmatchcase(route, learn.route))
