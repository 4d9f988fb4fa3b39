"""A provider with bodies of its own, on top of what its rule file tells: a table of routes, and orders.

Handlers speak the desk's language: they return the ``data`` of the answer, and raise a `Fault` with Binance's code, which
the provider's table of words turns into its own error.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import msgspec

from .incoming import Failure, Fault, Incoming
from .market import INTERVALS, Symbol, candle_span, candles
from .orders import statistics
from .plain import Plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .accounting import Bill, Meter
    from .incoming import Arrival
    from .options import Live
    from .orders import OrderDesk
    from .tariff import Tariff

__all__ = ["NO_KEY", "NO_PATH", "Bodied", "Teller", "Word", "candle_rows", "flat", "named", "objects"]

Teller: TypeAlias = Callable[[Incoming], Any]
"""Makes the ``data`` of an answer; bytes are the whole body."""
NO_KEY, NO_PATH = "no key", "no path"
"""Names of the two errors that no handler raises."""


class Word(NamedTuple):
    """How the provider says one error. ``{symbol}`` in the text becomes the symbol that was asked for."""

    status: int
    code: int | str
    text: str


class Bodied(Plain):
    """See `Venue` for what the methods are.

    Args:
        tariff: the rules in force.
        options: what was asked for.
        desks: where orders are kept; the first is the one whose changes websockets tell.
        words: errors by the code of the `Fault`, or by the filter that it names.
    """

    def __init__(
        self, tariff: Tariff, options: Live, desks: tuple[OrderDesk, ...], words: Mapping[int | str, Word]
    ) -> None:
        super().__init__(tariff, options)
        self.desk: OrderDesk = desks[0]
        self.desks = desks
        self.words = words
        self._exact: dict[str, tuple[Teller, bool]] = {}
        self._patterns: list[tuple[re.Pattern[str], tuple[Teller, bool]]] = []

    # -- the table of routes

    def public(self, route: str, teller: Teller) -> None:
        """Answer ``METHOD /path``; a ``{name}`` in the path becomes a parameter."""
        self._add(route, teller, private=False)

    def private(self, route: str, teller: Teller) -> None:
        """The same for calls that must name an account."""
        self._add(route, teller, private=True)

    def _add(self, route: str, teller: Teller, *, private: bool) -> None:
        if "{" in route:
            self._patterns.append((re.compile(re.sub(r"{(\w+)}", r"(?P<\1>[^/]+)", route)), (teller, private)))
        else:
            self._exact[route] = teller, private

    def _find(self, route: str) -> tuple[Teller, bool, dict[str, str]] | None:
        if route in self._exact:
            return *self._exact[route], {}
        for pattern, found in self._patterns:
            if match := pattern.fullmatch(route):
                return *found, match.groupdict()
        return None

    # -- what the provider's module says

    def wrapped(self, data: Any, now: int) -> dict[str, Any]:
        """The envelope of a good answer; `now` is milliseconds of the clock that dates."""
        raise NotImplementedError

    def failed(self, word: Word, now: int) -> dict[str, Any]:
        """The envelope of an error."""
        raise NotImplementedError

    # -- answers

    def carry_out(self, arrival: Arrival, meter: Meter) -> tuple[bytes, list[Bill]]:
        dated = arrival.dated // 1_000_000
        found = self._find(f"{arrival.method} {arrival.path}")
        if found is None:
            if arrival.plan.route:
                return super().carry_out(arrival, meter)
            raise self._failure(self.words[NO_PATH], dated)
        teller, private, more = found
        params = {**arrival.params, **flat(arrival.tree), **more}
        if private and not arrival.key:
            raise self._failure(self.words[NO_KEY], dated)
        for desk in self.desks:
            desk.match(arrival.now // 1_000_000)
        try:
            data = teller(arrival.incoming(params))
        except Fault as fault:
            raise self._failure(self.said(fault, params), dated) from None
        body = data if isinstance(data, bytes) else msgspec.json.encode(self.wrapped(data, dated))
        return body, self._given_back(arrival, body)

    def said(self, fault: Fault, params: Mapping[str, str]) -> Word:
        """The provider's word for a fault of a request with these parameters."""
        found = self.words.get(fault.text.rpartition(": ")[2]) or self.words.get(fault.code) or self.words[-1100]
        return found._replace(text=found.text.replace("{symbol}", params.get("symbol", "")))

    def _failure(self, word: Word, now: int) -> Failure:
        return Failure(word.status, msgspec.json.encode(self.failed(word, now)))

    def orders(self) -> dict[str, Any]:
        return statistics(*self.desks)


def flat(tree: Any) -> dict[str, str]:
    """The plain values of a JSON object as parameters."""
    if not isinstance(tree, dict):
        return {}
    return {
        str(name): str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in tree.items()
        if isinstance(value, str | int | float)
    }


def named(incoming: Incoming, words: Iterable[tuple[str, str]], **more: str) -> Incoming:
    """The request in the desk's words: each parameter under its other name, if it is there, and those of `more`."""
    params = {ours: value for theirs, ours in words if (value := incoming.params.get(theirs))}
    return incoming._replace(params={**params, **more})


def objects(incoming: Incoming, name: str, most: int) -> list[Any]:
    """The list of one to `most` objects under `name` in the JSON body; `Fault` if there is none."""
    found = incoming.tree.get(name) if isinstance(incoming.tree, dict) else None
    if not isinstance(found, list) or not 1 <= len(found) <= most:
        raise Fault(-1100, f"{name} is in wrong format.")
    return found


def candle_rows(
    incoming: Incoming, symbol: Symbol, interval: str, *, start: str, end: str, most: int
) -> list[tuple[int, str, str, str, str, float]]:
    """Candles as the request wants them; `start` and `end` name the parameters that bound them (ms).

    Raises:
        Fault: the interval is not known.
    """
    if interval not in INTERVALS:
        raise Fault(-1120, "Invalid interval.")
    count = min(incoming.number("limit", 100), most)
    bounds = incoming.number(start, 0, low=0), incoming.number(end, 0, low=0)
    return list(candles(symbol, interval, *candle_span(interval, incoming.now, count, *bounds)))
