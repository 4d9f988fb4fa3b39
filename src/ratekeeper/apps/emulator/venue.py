"""How a provider talks: any provider, told from its rule file, and from a data file where it has bodies of its own.

`Venue` alone is a whole provider: small bodies, its headers, its refusals, its bans. A subclass adds handlers, which the
routes of its data file name. A handler takes the request and the words beside its name, returns the ``data`` of the answer
(bytes are the whole body), and raises a `Fault`, which the file's table of errors puts into the provider's words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import msgspec

from ratekeeper.rules.call import Answer
from ratekeeper.rules.denial import Envelope, filled, interval, put, write_instant
from ratekeeper.rules.reading import dig, listed
from ratekeeper.rules.times import duration, interval_name

from .incoming import Failure, Fault, Incoming, flat
from .market import MARKETS, Quote, chosen
from .orders import OrderBook, statistics
from .refusing import Refused, Refuser
from .templates import Sheet, Word

if TYPE_CHECKING:
    import random

    from ratekeeper.rules.schema import Learn

    from .accounting import Charge, Full, Meter, StrictLimit
    from .incoming import Arrival
    from .limit_table import LimitTable
    from .options import Live
    from .templates import Books

__all__ = ["Venue", "check_fresh"]

Handler: TypeAlias = Callable[[Incoming], Any]
encode = msgspec.json.encode


class _Route(NamedTuple):
    """How one method and path is answered."""

    handle: Handler
    access: str
    """``public``, ``keyed``: it must name an account, or ``signed``: it must be fresh as well."""


class Venue:
    """One provider. It counts nothing; `Meter` does.

    Args:
        limits: the limits in force.
        options: the options in force.

    Attributes:
        sheet: what its data file says.
        books: its order books by name; websockets tell the changes of the first.
    """

    venue = ""
    """Whose data file has its bodies; none by itself."""

    def __init__(self, limits: LimitTable, options: Live) -> None:
        self.limits = limits
        self.sheet = Sheet.of(self.venue)
        self.books = {name: _opened(book) for name, book in self.sheet.books.items()}
        self._provider = limits.provider
        self._file = limits.provider.file
        self._envelope = Envelope.of(limits.provider.name)
        self._refuser = Refuser(limits, self._envelope, options, self.sheet.full)
        self._settling = {
            label for rule in self._file.routes if rule.ok or rule.failed for label in listed(rule.match)
        } | ({""} if self._file.default.ok or self._file.default.failed else set())
        """Labels of the routes whose price depends on the answer."""
        self._reported = {
            name: rule.headers
            for name, rule in self._file.limits.items()
            if msgspec.to_builtins(rule.headers, str_keys=True)
        }
        self._exact: dict[str, _Route] = {}
        self._patterns: list[tuple[re.Pattern[str], _Route]] = []
        for access, table in self.sheet.routes.items():
            for route, answer in table.items():
                found = _Route(self._handler(answer), access)
                if "{" in route:
                    pattern = re.compile(re.sub(r"{(\w+)}", r"(?P<\1>[^/]+)", route))
                    self._patterns.append((pattern, found))
                else:
                    self._exact[route] = found

    @property
    def book(self) -> OrderBook:
        """The first of its order books; `ValueError` if it keeps no orders."""
        first, *_ = self.books.values()
        return first

    def orders(self) -> dict[str, Any]:
        """What is known of orders, by account."""
        return statistics(*self.books.values())

    # -- bodies of its own

    def _handler(self, answer: str) -> Handler:
        if answer[0] in "{[":
            template = self.sheet.read(answer)
            return lambda asked: template({"asked": asked})
        name, *words = answer.split()
        handler = getattr(self, name)
        return lambda asked: handler(asked, *words)

    def find(self, route: str) -> tuple[_Route, dict[str, str]] | None:
        """The answer to ``METHOD /path``, and the parameters that are in the path; ``None`` if there is none here."""
        if route in self._exact:
            return self._exact[route], {}
        for pattern, found in self._patterns:
            if match := pattern.fullmatch(route):
                return found, match.groupdict()
        return None

    def carry_out(self, arrival: Arrival, meter: Meter) -> tuple[bytes, list[Charge]]:
        """The body of a request that was let through, and what is given back of its price; or raises `Failure`."""
        found = self.find(f"{arrival.method} {arrival.path}")
        if found is None:
            if self.sheet.routes and not arrival.plan.route:
                raise self._failure(Fault("no path", method=arrival.method, path=arrival.path), {}, arrival)
            body = self.unknown(arrival, meter)
        else:
            body = self._told(*found, arrival)
        return body, self.given_back(arrival, body)

    def _told(self, route: _Route, more: dict[str, str], arrival: Arrival) -> bytes:
        params = {**arrival.params, **(flat(arrival.tree) if self.sheet.takes_json else {}), **more}
        if route.access != "public" and not arrival.key:
            raise self._failure(Fault("no key"), params, arrival)
        asked = arrival.incoming(params)
        try:
            if route.access == "signed":
                check_fresh(params, asked.dated)
            for book in self.books.values():
                book.match(asked.now)
            data = route.handle(asked)
        except Fault as fault:
            raise self._failure(fault, params, arrival) from None
        if isinstance(data, bytes):
            return data
        return encode(self.sheet.fill("ok", data=data, now=asked.dated) if self.sheet.wraps else data)

    def word_for(self, fault: Fault, params: Mapping[str, str]) -> Word:
        """The provider's word for a fault of a request with these parameters; ``*`` is its word for any other fault."""
        errors = self.sheet.errors
        word, about = errors.get(fault.name) or errors["*"], {**params, **fault.about}
        return word._replace(text=re.sub(r"{(\w+)}", lambda found: about.get(found[1], ""), word.text))

    def failed(self, word: Word, now: int) -> Any:
        """The body of an error; `now` is milliseconds of the clock that dates."""
        return self.sheet.fill("failed", word=word, now=now)

    def _failure(self, fault: Fault, params: Mapping[str, str], arrival: Arrival) -> Failure:
        word = self.word_for(fault, params)
        return Failure(word.status, encode(self.failed(word, arrival.dated // 1_000_000)))

    def of_symbol(self, asked: Incoming, body: str, **more: Any) -> Any:
        """Handler: the body for the market that the request names."""
        symbol = self.book.symbol(asked)
        return self.sheet.fill(body, symbol=symbol, quote=Quote(symbol, asked.now), asked=asked, **more)

    def each(self, asked: Incoming, body: str, name: str = "") -> Any:
        """Handler: the body for each market that the request chooses, of the order book of that name or of the first."""
        symbols = chosen((self.books[name] if name else self.book).symbols, asked)
        return [self.sheet.fill(body, symbol=symbol, quote=Quote(symbol, asked.now)) for symbol in symbols]

    def every(self, asked: Incoming, body: str) -> Any:
        """Handler: the body for every market of the first order book."""
        return self.each(asked._replace(params={}), body)

    def batch(
        self, act: Callable[[Incoming], Any], asked: Incoming, several: Iterable[dict[str, str]]
    ) -> Iterator[tuple[dict[str, str], Any]]:
        """Each request of a batch: its parameters, and its own answer, or the `Word` for its fault."""
        for params in several:
            try:
                yield params, act(asked._replace(params=params))
            except Fault as fault:
                yield params, self.word_for(fault, params)

    # -- bodies told from the rules

    def unknown(self, arrival: Arrival, meter: Meter) -> bytes:
        """The body of a route that has rules but no body of its own."""
        label = arrival.plan.route.partition(" #")[0] or f"{arrival.method} {arrival.path}"
        body = filled(self._envelope.routes.get(label, self._envelope.ok), arrival.dated)
        learns = [learn for learn in self._file.learn if fnmatchcase(label, learn.route) or label == learn.route]
        if learns:
            tree = msgspec.json.decode(body)
            for learn in learns:
                tree = self._taught(tree, learn, arrival, meter)
            body = encode(tree)
        return body

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
        owners = {charge.limit.name: charge.owner for charge in arrival.charges}
        rows = []
        for word, unit in (learn.units or {"": ""}).items():
            for limit in self.limits.by_name.values():
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

    def given_back(self, arrival: Arrival, body: bytes) -> list[Charge]:
        """What the answer makes cheaper, as the file's `ok` says."""
        if arrival.plan.route.partition(" #")[0] not in self._settling:
            return []
        told = self._provider.feedback(arrival.plan, Answer(200, {}, body), now=arrival.now)
        found = zip(arrival.plan.charges, arrival.charges, strict=True)
        less = [mine._replace(cost=mine.cost - told.actual.get(charge.key, mine.cost)) for charge, mine in found]
        return [charge for charge in less if charge.cost]

    # -- refusals

    def throttled(self, arrival: Arrival, full: Full) -> Failure:
        """The refusal of a request that found a limit full."""
        return self._refuser.throttled(arrival, full.limit, full.free_at)

    def banned(self, arrival: Arrival, until: int, cause: Failure | None) -> Failure:
        """The answer to a request of a banned owner. The ban ends at `until` (ns) and began with `cause`."""
        if isinstance(cause, Refused):
            return self._refuser.answer(cause.rule, cause.status, until, arrival.now, limit=cause.limit)
        rule = self._refuser.ban
        if rule is None:  # nothing is known of bans here: what a firewall would say
            return Failure(403, self._envelope.failed.encode(), until=until, bans=True)
        return self._refuser.banned(rule, arrival, until)

    def ban_span(self) -> int:
        """Nanoseconds of the first ban of an address; 0 if this provider bans nobody."""
        rule = self._refuser.ban
        if rule is None:
            return 0
        return self.limits.stretched(duration(rule.hold) if rule.hold else self._provider.ban_length())

    def trouble(self, dice: random.Random) -> tuple[Failure, bool]:
        """One of the ways in which it answers 503, and whether the request was carried out behind it."""
        if self.sheet.trouble:
            chosen = dice.choice(self.sheet.trouble)
            word = Word(503, chosen.code, chosen.text)
            return Failure(503, encode(self.failed(word, 0))), chosen.carried_out
        rules = [rule for rule in self._file.refusals if rule.outcome == "overloaded"]
        if not rules:
            return Failure(503, self._envelope.failed.encode()), dice.random() < 0.5
        rule = dice.choice(rules)
        return self._refuser.answer(rule, (rule.status or [503])[0], 0, 0), rule.charged

    # -- headers

    def reports(self, arrival: Arrival, meter: Meter) -> dict[str, str]:
        """The headers that tell what is used."""
        headers: dict[str, str] = {}
        for charge in self.reported(arrival):
            names = self._reported.get(charge.limit.name)
            if names is None:
                continue
            limit, count = charge.limit, meter.used(arrival.now, charge.limit, charge.owner)
            span = interval_name(limit.period) if limit.period else ""
            values = {
                names.used: str(count),
                names.remaining: str(max(0, limit.capacity - count)),
                names.limit: str(limit.capacity),
                names.cost: str(charge.cost),
            }
            if names.reset:
                full = count >= limit.capacity or limit.window in ("fixed", "first")
                end = meter.tally(limit, charge.owner).counter.free_at(arrival.now) if full else arrival.now
                values[names.reset] = write_instant(names.reset_format, end, arrival.now)
            headers |= {name.replace("{interval}", span): value for name, value in values.items() if name}
        return headers

    def reported(self, arrival: Arrival) -> list[Charge]:
        """The charges whose limits the headers of this answer tell of."""
        return list(arrival.charges)


def _opened(said: Books) -> OrderBook:
    return OrderBook(MARKETS[said.markets], futures=said.futures, rejects_makers=said.rejects_makers, first=said.first)


def check_fresh(params: Mapping[str, str], now: int) -> None:
    """What a signed endpoint checks, except the signature itself: both parameters are there and the time is fresh."""
    for name in ("timestamp", "signature"):
        if not params.get(name):
            raise Fault("missing", name=name)
    try:
        timestamp, window = int(params["timestamp"]), float(params.get("recvWindow") or 5_000)
    except ValueError:
        raise Fault("illegal", name="timestamp", legal="^[0-9]{1,20}$") from None
    if not 0 < window <= 60_000:
        raise Fault("window")
    if timestamp > now + 1_000:
        raise Fault("ahead")
    if now - timestamp > window:
        raise Fault("stale")


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
