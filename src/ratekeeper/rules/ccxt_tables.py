"""Derives rules for exchanges without a file from ccxt's own tables, and marks them (long because one table tells it all).

What the tables mean (ccxt's throttler): a call of cost `c` keeps an exchange busy for `c * rateLimit` milliseconds, and
other calls wait until that is over, but for one of cost 1. This is the unit here, ``pace``: microseconds of that spacing,
so nothing is lost to rounding, and every limit lets a microsecond pass in a microsecond.

* An exchange whose class states the window for ccxt's "rolling window" algorithm gets that window: sliding, for nobody
  says where the provider's begins. Any other gets ccxt's default, a bucket: as small as ccxt's own (two calls of cost 1),
  or a quarter of a second, for here a call is held in full until it is answered, and a smaller one would wait for answers
  instead of the pace. So a span T sees no more than T and that quarter.
* A call that costs more than this limit holds fills it, and is charged in full on a longer one, up to a minute.
* What costs still more (a statement of a month, at 40 hours) would stop everything else under ccxt; here such a call
  takes the minute and, for itself, has a limit per endpoint.
* Nobody says whose limit it is either. So all calls are charged to the address, and signed ones also to the account, if a
  header tells it: several addresses then do not multiply what one account spends.

Where ccxt counts a nonce up, or calls a number a nonce, that number must rise from call to call of one key (``[signing]``).

Which request a method of ccxt becomes, only its own `sign` knows. It is asked, with made-up credentials and without any
network, once for every entry of the table. How the provider says no is read by status and words (`unlisted`), also under 200.
"""

from __future__ import annotations

import copy
import difflib
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from ratekeeper.errors import UnknownProvider
from ratekeeper.ledger.limit import Window
from ratekeeper.rules.ccxt_costs import capped, cost_of, dearer, dearest
from ratekeeper.rules.reading import decoded
from ratekeeper.rules.schema import (
    Cost,
    Costs,
    Default,
    File,
    LimitRule,
    Owner,
    Refusal,
    RouteClass,
    RouteRule,
    Signing,
    Source,
)
from ratekeeper.rules.times import interval_name

__all__ = ["PREFIX", "Book", "acquaint", "derive", "exchanges_at", "urls_of"]

PREFIX: Final = "ccxt-"
"""Begins the name of every derived provider, and so its ledgers: the same in every process, and no bundled file's."""

_SECOND: Final = 1_000_000
"""In units of pace: microseconds."""
_MINUTE: Final = 60 * _SECOND
_UNDER_WAY: Final = _SECOND // 4
"""What the smallest bucket holds: as much as usual answers take."""
_UNSTATED: Final = 60_000
"""Milliseconds that ccxt's base class writes where an exchange states no rolling window."""
_KEY: Final = "account-of-nobody"
"""The made-up API key: where it shows up in a header, that header tells the account."""
_NONCE: Final = 1_700_000_000_123
"""The made-up nonce: where it shows up, calls carry theirs."""
_UNORDERED: Final = frozenset({"btse", "cryptocom"})
"""Exchanges whose "nonce" is a time that may be some seconds off, as ccxt's tables of their errors say."""
_MARK: Final = "hgx"
"""Begins what stands in for path parameters."""


class _Unit(NamedTuple):
    """What is counted, and for whom."""

    name: str
    scope: str | list[str]


_SHARED: Final = (_Unit("pace", "ip"), _Unit("account-pace", "account"))
_OWN: Final = _Unit("own-pace", ["ip", "endpoint"])


class _Seen(NamedTuple):
    """One request that ccxt can make."""

    host: str
    method: str
    path: str
    cost: Cost
    private: bool
    account: frozenset[str]
    """The headers that tell whose it is, in lower case."""
    nonces: frozenset[str] = frozenset()
    keys: frozenset[str] = frozenset()
    """References to its nonce, and to the API key of a request with a nonce."""


def derive(exchange: Any) -> File:
    """The rules that ccxt's tables imply.

    Args:
        exchange: an exchange's id in ccxt, such as ``kraken``; or an exchange object, whose URLs count instead of the
            usual ones (a sandbox, a mirror).

    An id gets the hosts that are its own. Those it inherits from the class it is made from (``binanceusdm`` from
    ``binance``) belong to that one, so that every process gives a host to the same provider; an exchange that has no
    other hosts is derived as that one.

    Raises:
        UnknownProvider: ccxt has no such exchange.
        ImportError: ccxt is not installed.
    """
    if not isinstance(exchange, str):
        sample = _sample(exchange.id)
        sample.urls, sample.hostname = copy.deepcopy(exchange.urls), exchange.hostname
        return _Table(sample).file()
    own, *bases = [_Table(_sample(name)) for name in _family(exchange)]
    own.hosts = own.hosts.difference(*(base.hosts for base in bases))
    return own.file() if own.hosts else bases[-1].file()


class Book(Protocol):
    """Rules of many providers (`ratekeeper.rules.book.Rulebook`)."""

    def for_host(self, host: str, path: str = "") -> Any:
        """The rules for a host; None: there are none."""

    def add(self, file: File, at: Iterable[str] = ()) -> None:
        """Take in the rules of another provider, perhaps at hosts of its own."""


def acquaint(book: Book, exchange: Any, hosts: Iterable[str]) -> None:
    """Adds derived rules to `book` for those `hosts` (``name`` or ``name:port``) of an exchange object.

    Hosts that its class knows get the provider of that class. Any others (a sandbox, a mirror) get one of their own,
    ``ccxt-kraken@127.0.0.1:9300``, which shares nothing with the real one.
    """
    left = {host: _bare(host) for host in hosts}
    for name in _family(exchange.id):
        file = derive(name)
        if not left.keys().isdisjoint({host for host, bare in left.items() if bare in file.hosts}):
            free = [host for host in file.hosts if book.for_host(host) is None]
            book.add(msgspec.structs.replace(file, hosts=free))
            left = {host: bare for host, bare in left.items() if bare not in file.hosts}
    if left:
        book.add(derive(exchange), at=left)


def exchanges_at(hosts: Iterable[str]) -> list[str]:
    """The exchanges of ccxt that call one of these hosts; none if ccxt is not installed."""
    try:
        import ccxt
    except ImportError:
        return []
    wanted = set(hosts)
    return [name for name in ccxt.exchanges if not wanted.isdisjoint(map(_bare_url, urls_of(_sample(name))))]


def urls_of(exchange: Any) -> Iterator[str]:
    """The base URL of each REST API of an exchange object as it is set now."""
    queue: list[Any] = [(getattr(exchange, "urls", None) or {}).get("api")]
    while queue:
        item = queue.pop()
        if isinstance(item, dict):
            queue.extend(item.values())
        elif isinstance(item, str) and item.startswith("http"):
            yield item.replace("{hostname}", getattr(exchange, "hostname", None) or "")


# --- what ccxt says -----------------------------------------------------------------------------------------------


def _sample(name: str) -> Any:
    """An exchange object that makes no call: with made-up credentials, so that it can sign."""
    import ccxt

    if name not in ccxt.exchanges:
        near = difflib.get_close_matches(name, ccxt.exchanges, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else "`python -c 'import ccxt; print(ccxt.exchanges)'` lists them"
        raise UnknownProvider(f"ccxt {ccxt.__version__} has no exchange {name!r}. {hint}")
    number = "2" * 64
    made = getattr(ccxt, name)(
        {
            "apiKey": _KEY,
            "secret": "ab" * 16,
            "password": "nobody",
            "uid": "1",
            "accountId": "1",
            "login": "nobody",
            "token": "nobody",
            "walletAddress": f"0x{'1' * 40}",
            "privateKey": f"0x{number}",
        }
    )
    made.accountId = "1"
    made.options = {**(made.options or {}), "authToken": "nobody"}
    return made


def _family(name: str) -> list[str]:
    """The exchange and those whose classes it is made from, the nearest first."""
    import ccxt

    kind = type(_sample(name))
    return [each.__name__ for each in kind.__mro__ if each.__name__ in ccxt.exchanges]


def _bare_url(url: str) -> str:
    return urlsplit(url).hostname or url


def _bare(host: str) -> str:
    return _bare_url(f"//{host}")


def _entries(sample: Any) -> list[Any]:
    """The table: one object for each method, with `path`, `api`, `method` and `config` (its costs)."""
    from ccxt.base.types import Entry

    found = [
        each for kind in type(sample).__mro__ for each in vars(kind).values() if isinstance(each, Entry)
    ]  # each stands there under two names
    return list({id(each): each for each in found}.values())


def _requests(sample: Any) -> Iterator[_Seen]:
    sample.nonce = sample.incrementing_nonce = lambda: _NONCE
    for entry in _entries(sample):
        marks = {name: f"{_MARK}{number}x" for number, name in enumerate(re.findall(r"\{([^}]+)\}", entry.path))}
        private = any("private" in each.lower() for each in ([entry.api] if isinstance(entry.api, str) else entry.api))
        method = entry.method
        headers: Mapping[str, Any] = {}
        nonces: frozenset[str] = frozenset()
        keys: frozenset[str] = frozenset()
        try:
            made = sample.sign(entry.path, entry.api, entry.method, dict(marks))
            method, url, headers = made.get("method") or method, made["url"], made.get("headers") or {}
            if sample.id not in _UNORDERED:
                values = list(_values(url, headers, made.get("body")))
                nonces = frozenset(name for name, value in values if value == str(_NONCE) and "nonce" in name.lower())
                keys = frozenset(name for name, value in values if nonces and _tells(value))
        except Exception:  # noqa: BLE001 - made-up keys do not please every exchange; then its URLs must do
            url = _joined(sample, entry, marks)
        place = urlsplit(url)
        account = frozenset(str(name).lower() for name, value in headers.items() if _tells(value))
        path = _template(place.path, marks)
        if place.hostname and path:
            private = private or bool(account)
            yield _Seen(place.hostname, method.upper(), path, cost_of(entry, sample), private, account, nonces, keys)


def _values(url: str, headers: Mapping[str, Any], body: Any) -> Iterator[tuple[str, str]]:
    """References to what a request carries, with the values."""
    for name, value in headers.items():
        yield f"header.{str(name).lower()}", str(value)
    sent = body.decode("latin-1") if isinstance(body, bytes) else str(body or "")
    fields = decoded(sent)
    if isinstance(fields, dict):
        for name, value in fields.items():
            yield f"body.{name}", str(value)
    else:
        yield from parse_qsl(sent)
    yield from parse_qsl(urlsplit(url).query)


def _joined(sample: Any, entry: Any, marks: dict[str, str]) -> str:
    """What most exchanges do: the section's URL, a slash, the path."""
    api = [entry.api] if isinstance(entry.api, str) else list(entry.api)
    urls = sample.urls["api"]
    for step in api:
        urls = urls[step] if isinstance(urls, dict) and step in urls else urls
    while isinstance(urls, dict):
        urls = next(iter(urls.values()), "")
    path = re.sub(r"\{([^}]+)\}", lambda found: marks[found[1]], entry.path)
    return f"{urls.replace('{hostname}', sample.hostname or '')}/{path}"


def _template(path: str, marks: dict[str, str]) -> str:
    """The path with ``{name}`` for each segment that holds a parameter; empty if a rule file cannot say it."""
    path = re.sub("/+", "/", unquote(path))
    for name, mark in marks.items():
        path = re.sub(f"[^/]*{mark}[^/]*", f"{{{re.sub('[^A-Za-z0-9_]', '_', name)}}}", path, flags=re.IGNORECASE)
    return path if path.startswith("/") and not set(path) & set(" *?") else ""


def _tells(value: object) -> bool:
    """Whether a header's value is the key and nothing that changes: alone, or behind a word such as Bearer."""
    return str(value).rpartition(" ")[2] == _KEY


# --- what follows ----------------------------------------------------------------------------------------------------


class _Table:
    """What an exchange's table comes to.

    Attributes:
        hosts: those it calls: its URLs, and where its requests really go.
        seen: its requests, one of each method and path.
    """

    def __init__(self, sample: Any) -> None:
        self.sample = sample
        self.seen = list(_requests(sample))
        self.hosts = set(map(_bare_url, urls_of(sample)))
        self.hosts |= {each.host for each in self.seen}

    def file(self) -> File:
        """As a rule file, for the requests to `hosts`."""
        import ccxt

        sample, seen = self.sample, _merged(each for each in self.seen if each.host in self.hosts)
        costs = sorted(dearest(each.cost) for each in seen) or [0]
        lengths = _lengths(sample, costs)
        headers = sorted(frozenset().union(*(each.account for each in seen)))
        nonces = sorted(frozenset().union(*(each.nonces for each in seen)))
        keys = sorted(frozenset().union(*(each.keys for each in seen)))
        grouped: dict[tuple[RouteClass, bytes], tuple[Costs, list[str]]] = {}
        for each in seen:
            spent = _costs(each.cost, lengths, account=bool(each.account))
            key = _class(each), msgspec.json.encode(spent)
            grouped.setdefault(key, (spent, []))[1].append(f"{each.method} {each.path}")
        return File(
            format=1,
            name=f"{PREFIX}{sample.id}",
            title=f"{sample.name} (derived from ccxt {ccxt.__version__}, not from its documentation)",
            hosts=sorted(self.hosts),
            source="CCXT",
            confidence="C",
            sources={
                "CCXT": Source(
                    title=f"ccxt {ccxt.__version__}, table of {sample.id}",
                    url="https://github.com/ccxt/ccxt",
                    read=datetime.now(UTC).date(),
                    confidence="C",
                )
            },
            owners={"account": Owner(header=headers)} if headers else {},
            limits=_limits(sample, lengths, costs[-1], account=bool(headers)),
            default=Default(
                cost=_costs(costs[len(costs) * 9 // 10], lengths, account=False),
                confidence="?",
                note="as dear as nine of ten known routes",
            ),
            routes=[
                RouteRule(match=sorted(matches), class_=kind, cost=spent)
                for (kind, _), (spent, matches) in sorted(grouped.items(), key=lambda item: (item[0][0], item[1][1]))
            ],
            signing=Signing(nonce=nonces, key=keys) if nonces and keys else None,
            refusals=[Refusal(status=[418], outcome="banned", block="ip")],
            errors_under=[200],
        )


def _limits(sample: Any, lengths: list[int], longest: int, *, account: bool) -> dict[str, LimitRule]:
    wanted = [(unit, length) for unit in _SHARED[: 2 if account else 1] for length in lengths]
    if longest > _MINUTE:
        wanted.append((_OWN, longest))
    note = f"in microseconds of the spacing that ccxt keeps: cost times its rateLimit of {sample.rateLimit:g} ms"
    return {
        _name(unit, length): LimitRule(
            unit=unit.name,
            capacity=length,
            period=_period(length),
            window=Window.SLIDING if _stated(sample) else Window.BUCKET,
            scope=unit.scope,
            note=note,
        )
        for unit, length in wanted
    }


def _stated(sample: Any) -> int:
    """The window that the class itself states; 0 if none."""
    stated = float(sample.rollingWindowSize or 0)
    return 0 if stated == _UNSTATED else round(stated * 1000)


def _lengths(sample: Any, costs: list[int]) -> list[int]:
    """The size of the usual limit, and of a longer one if there is what does not fit into it. In microseconds."""
    call = 1000 * math.ceil(sample.rateLimit)
    short = max(_stated(sample), call) if _stated(sample) else max(2 * call, _UNDER_WAY)
    longest = min(costs[-1], _MINUTE)
    return [short, -(-longest // _SECOND) * _SECOND] if longest > short else [short]


def _costs(cost: Cost, lengths: list[int], *, account: bool) -> Costs:
    """What a call spends on each limit: all of it on the longest limit, as much as there is on a shorter one."""
    spent: Costs = {}
    for unit in _SHARED[: 2 if account else 1]:
        spent[unit.name] = capped(cost, lengths[-1])
        if dearest(cost) > lengths[0]:
            spent[_name(unit, lengths[0])] = capped(cost, lengths[0])
    if dearest(cost) > _MINUTE:
        spent[_OWN.name] = cost
    return {word: each for word, each in spent.items() if each != 0}


def _merged(seen: Iterable[_Seen]) -> list[_Seen]:
    """One of each method and path: several entries can become one request, told apart by what it carries."""
    found: dict[tuple[str, str], _Seen] = {}
    for each in seen:
        key = each.method, re.sub(r"\{[^}/]*\}", "{}", each.path)
        other = found.get(key)
        if other is not None:
            each = each._replace(
                path=other.path,
                cost=dearer(other.cost, each.cost),
                private=other.private or each.private,
                account=other.account | each.account,
                nonces=other.nonces | each.nonces,
                keys=other.keys | each.keys,
            )
        found[key] = each
    return list(found.values())


def _class(seen: _Seen) -> RouteClass:
    """Sets nothing but the priority, so a guess by the name will do."""
    path = seen.path.lower()
    if not seen.private:
        return "market"
    if "cancel" in path or (seen.method == "DELETE" and "order" in path):
        return "cancel"
    return "order" if seen.method != "GET" and "order" in path else "account"


def _name(unit: _Unit, length: int) -> str:
    return f"{unit.name}-{_period(length)}"


def _period(length: int) -> str:
    return interval_name(math.ceil(length / 1000) * 1_000_000)
