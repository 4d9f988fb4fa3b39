"""Says what may be done around a call: make it twice, keep its answer, merge it with others, look up its fate."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import quote, urlencode

import msgspec

from ratekeeper.ledger.limit import SECOND
from ratekeeper.rules.call import Plan, Request
from ratekeeper.rules.reading import ANONYMOUS, count, decoded, dig, dig_json, header, listed, reader, text
from ratekeeper.rules.times import duration

if TYPE_CHECKING:
    from ratekeeper.rules.schema import File, Lookup, Merge

__all__ = ["Handling", "Single", "class_of", "fingerprint"]

_READS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_SAFE: Final = frozenset({"cancel", "market"})
_MOST_KNOWN: Final = 4096
_NONCE: Final = "nonce"
"""The parameter under which providers want a number that no two calls share."""


class Single(NamedTuple):
    """A call that could be made together with others.

    Attributes:
        rule: how.
        group: calls of one group can be made as one: the same but for the name.
        path: of the one call for all of them.
        name: what this one asks for.
        rest: its other parameters.
    """

    rule: Merge
    group: bytes
    path: str
    name: str
    rest: Mapping[str, Any]

    def together(self, names: Iterable[str]) -> Request:
        """The one call for many names."""
        params = dict(self.rest)
        if self.rule.list_param:
            wanted = sorted(names)
            params[self.rule.list_param] = (
                msgspec.json.encode(wanted).decode() if self.rule.list_form == "json" else ",".join(wanted)
            )
        return Request("GET", self.path, params)

    def split(self, body: bytes) -> dict[str, bytes]:
        """The answers that single calls would have had, by name; nothing if the body is not as the rules say."""
        whole: Any = decoded(body)
        steps = tuple(self.rule.rows.split(".")) if self.rule.rows else ()
        rows = dig(whole, steps)
        if not isinstance(rows, list):
            return {}
        field = self.rule.field or self.rule.by
        found: dict[str, bytes] = {}
        for row in rows:
            if isinstance(row, dict) and field in row:
                part = row if self.rule.single == "row" else [row]
                found[text(row[field])] = msgspec.json.encode(_with(whole, steps, part))
        return found


class _Kind(NamedTuple):
    """What the file says of all calls of one plan.

    Attributes:
        route_class: of the route.
        ttl: seconds for which an answer is as good as a new one; None if the file does not say.
        owner: the account to which answers belong: ``""`` if they are the same for all, None if the account is unknown.
        lookup, merge: of the route, or None.
    """

    route_class: str
    ttl: float | None
    owner: str | None
    lookup: Lookup | None
    merge: Merge | None


class Handling:
    """What one rule file allows around its calls."""

    def __init__(self, file: File) -> None:
        # The longest pattern is the most precise one.
        self._keep = sorted(file.keep.items(), key=lambda item: len(item[0]), reverse=True)
        self._merges = {merge.match: merge for merge in file.merges}
        self._lookups = {match: lookup for lookup in file.lookups for match in listed(lookup.match)}
        self._good = [(path, {text(each) for each in values}) for path, values in file.good.items()]
        self._apart = file.apart
        signing = file.signing
        self._unsigned = {_NONCE}
        if signing is not None:
            self._unsigned |= {signing.timestamp, signing.signature, signing.window, *listed(signing.nonce)}
        # Where orders are placed by GET, money is moved by GET as well.
        self._gets_act = any(
            match.startswith("GET ") for rule in file.routes if rule.class_ == "order" for match in listed(rule.match)
        )
        self._kinds: dict[Plan, _Kind] = {}

    def _kind(self, plan: Plan) -> _Kind:
        route, route_class = _template(plan), class_of(plan)
        spans = (span for pattern, span in self._keep if route and fnmatchcase(route, pattern))
        ttl = next((duration(span) / SECOND for span in spans), None)
        accounts = (scope for scope in plan.scopes if scope.startswith(f"{plan.provider}/account:"))
        known = (scope for scope in accounts if not scope.endswith(f":{ANONYMOUS}"))
        owner = "" if route_class == "market" else next(known, None)
        if len(self._kinds) > _MOST_KNOWN:
            self._kinds.clear()
        self._kinds[plan] = kind = _Kind(route_class, ttl, owner, self._lookups.get(route), self._merges.get(route))
        return kind

    def ttl(self, plan: Plan) -> float | None:
        """Seconds for which an answer is as good as a new one; None if the file says nothing of the route."""
        return (self._kinds.get(plan) or self._kind(plan)).ttl

    def safe(self, call: Request, plan: Plan) -> bool:
        """Whether two such calls do no more than one.

        This holds for reads (market data, what ``[keep]`` names, and GET unless the provider takes orders by it), for
        cancels, and for orders of which the provider promises to carry out one only.
        """
        route_class, ttl, _, lookup, _ = self._kinds.get(plan) or self._kind(plan)
        if ttl is not None or route_class in _SAFE:
            return True
        method = call.method.upper()
        if route_class != "order":
            return method == "DELETE" or (method in _READS and not self._gets_act)
        return lookup is not None and bool(lookup.once) and reader(lookup.once)(call) is not None

    def ask(self, call: Request, plan: Plan) -> str:
        """The call that finds out the fate of this one, ``METHOD /path?query``; ``""`` if there is none.

        Places in its path are filled from its parameters, or else from the same places in the path of `call`.
        """
        lookup = (self._kinds.get(plan) or self._kind(plan)).lookup
        if lookup is None:
            return ""
        values = _values(lookup, call)
        if any(name not in values for name in lookup.needed or lookup.params):
            return ""
        for name in [name for name in values if f"{{{name}}}" in lookup.route]:
            values[f"{{{name}}}"] = quote(values.pop(name), safe="")
        path = _filled(lookup.route, {**_places(plan, call), **values})
        asked = {name: value for name, value in sorted(values.items()) if not name.startswith("{")}
        if "{" in path:
            return ""
        return f"{path}?{urlencode(asked)}" if asked else path

    def good(self, body: bytes) -> bool:
        """Whether an answer under a good status may be kept, because its body is no error by ``[good]``."""
        for path, values in self._good:
            value = dig_json(body, path)
            if value is not None and text(value) not in values:
                return False
        return True

    def key(self, call: Request, plan: Plan) -> bytes | None:
        """The key under which the answer to a call is kept: equal for calls with equal answers; None if it is unknown.

        Parameters that a signature adds are left out. An account's own answer is kept under that account (a keyed digest),
        and never without one.
        """
        owner = (self._kinds.get(plan) or self._kind(plan)).owner
        method = call.method.upper()
        if owner is None or (method not in _READS and call.params is None and call.body is None):
            return None
        plain = self._plain(call.params) if call.params else {}
        world = self._world(call) if self._apart else []
        return fingerprint(plan.provider, owner, method, call.path, plain, call.body, world)

    def single(self, call: Request, plan: Plan) -> Single | None:
        """How the call could be made together with others; None if it could not."""
        rule = (self._kinds.get(plan) or self._kind(plan)).merge
        if rule is None or not call.params or rule.by not in call.params:
            return None
        if rule.list_param in call.params or count(call.params[rule.by]) != 1:
            return None
        path = _filled(rule.to, _places(plan, call)) if rule.to else call.path
        rest = {name: value for name, value in self._plain(call.params).items() if name != rule.by}
        group = fingerprint(plan.provider, rule.match, path, rest, plan.scopes, self._world(call))
        return Single(rule, group, path, text(call.params[rule.by]), rest)

    def _world(self, call: Request) -> list[str | None]:
        """The headers that lead to another world behind the same address, such as demo trading."""
        return [header(call.headers, name) for name in self._apart]

    def _plain(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters as the wire would show them, without what a signature adds."""
        return {
            name: value if isinstance(value, (str, list, tuple)) else text(value)
            for name, value in params.items()
            if name not in self._unsigned
        }


def class_of(plan: Plan) -> str:
    """The class of a planned call: market, account, order, cancel, other."""
    return plan.scopes[1].rpartition(":")[2]


def fingerprint(*parts: Any) -> bytes:
    """A short digest: equal for equal values, and different for others."""
    return hashlib.blake2b(msgspec.json.encode(parts, order="deterministic"), digest_size=16).digest()


def _template(plan: Plan) -> str:
    """``METHOD /template`` of the route; routes that differ by conditions only share it."""
    return plan.route.partition(" #")[0]


def _places(plan: Plan, call: Request) -> dict[str, str]:
    """What stands in the places of the route's template: ``{settle}`` -> ``usdt``."""
    template = _template(plan).partition(" ")[2].split("/")
    return {place: value for place, value in zip(template, call.path.split("/"), strict=False) if place.startswith("{")}


def _filled(path: str, places: Mapping[str, str]) -> str:
    """A path with the places filled that are known; the others stay."""
    return "/".join(places.get(each, each) for each in path.split("/"))


def _values(lookup: Lookup, call: Request) -> dict[str, str]:
    """The parameters of a look-up that the call gives. Of several orders in one call none can be asked for alone."""
    found = {name: _one(reference, call) for name, reference in lookup.params.items()}
    return {name: text(value) for name, value in found.items() if value is not None}


def _one(reference: str, call: Request) -> Any:
    if reference.startswith("'"):
        return reference.strip("'")
    value = reader(reference)(call)
    if isinstance(value, (list, tuple)):
        value = value[0] if len(value) == 1 else None
    return None if isinstance(value, (dict, list, tuple)) else value


def _with(whole: Any, steps: tuple[str, ...], part: Any) -> Any:
    """The answer with `part` in the place that `steps` lead to."""
    if not steps:
        return part
    return {**whole, steps[0]: _with(whole[steps[0]], steps[1:], part)}
