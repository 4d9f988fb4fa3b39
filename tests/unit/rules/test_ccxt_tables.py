"""Rules derived from ccxt's tables, for every exchange that the installed ccxt knows."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import ccxt
import pytest
from ccxt.base.types import Entry

from ratekeeper.errors import UnknownProvider
from ratekeeper.ledger.limit import Window
from ratekeeper.rules.book import Rulebook
from ratekeeper.rules.call import Answer, Feedback, Outcome, Request
from ratekeeper.rules.ccxt_tables import PREFIX, acquaint, derive, exchanges_at, urls_of
from ratekeeper.rules.checks import check, unready
from ratekeeper.rules.files import parse, to_toml
from ratekeeper.rules.numbers import Adjustments
from ratekeeper.rules.provider import Provider
from ratekeeper.rules.schema import File

pytestmark = pytest.mark.xdist_group("ccxt tables")  # each is derived once
EVERY = pytest.mark.parametrize("name", ccxt.exchanges)
MINUTE = 60_000_000
"""In units of pace."""

file_of = cache(derive)


@EVERY
def test_every_exchange_has_a_rule_file(name: str) -> None:
    """It passes the checks, can be used now, is marked, and comes back from its text unchanged."""
    file = file_of(name)
    check(file, name)
    assert not unready(file)
    assert parse(to_toml(file, "remark"), name) == file
    assert file.name.startswith(PREFIX) and "derived from ccxt" in file.title and file.confidence == "C"
    assert all(source.title.startswith(f"ccxt {ccxt.__version__}") for source in file.sources.values())
    assert file.hosts and file.routes


@EVERY
def test_the_pace_is_that_of_ccxt(name: str) -> None:
    """Every limit lets a microsecond of spacing pass in a microsecond; the smallest is ccxt's own or a quarter second."""
    sample = getattr(ccxt, name)()
    provider = Provider(file_of(name))
    for limit in provider.limits.values():
        assert 0 <= limit.period - limit.capacity * 1000 < 1_000_000 and not limit.refill
    smallest = min(limit.capacity for limit in provider.limits.values())
    if provider.limits[next(iter(provider.limits))].window is Window.BUCKET:
        assert smallest == max(2 * math.ceil(sample.rateLimit) * 1000, 250_000)
    else:
        assert smallest == sample.rollingWindowSize * 1000 != 60_000_000


def test_nonces_that_must_rise_are_known() -> None:
    """ccxt counts them up, or calls them nonces; what it calls a timestamp is none."""
    found = {name: file.signing for name in ccxt.exchanges if (file := file_of(name)).signing}
    places = {name: (signing.nonce, signing.key) for name, signing in found.items() if signing}
    assert places["kraken"] == (["body.nonce", "nonce"], ["header.api-key"])
    assert places["bitfinex"] == (["header.bfx-nonce"], ["header.bfx-apikey"])
    assert places["coinmate"] == (["nonce"], ["publicKey"])
    assert places["independentreserve"] == (["body.nonce"], ["body.apiKey"])
    assert places.keys().isdisjoint({"binance", "bybit", "cryptocom", "okx"})
    provider = Provider(file_of("coinmate"))
    assert provider.nonce is not None
    one, two = (provider.nonce(Request("POST", "/api/x", {"nonce": "7", "publicKey": key}), b"s") for key in "ab")
    assert one and two and one[0] == two[0] == 7 and one[1] != two[1]


def entries(exchange: Any) -> list[Any]:
    """ccxt's table, one object for each method."""
    kinds = type(exchange).__mro__
    return list({id(e): e for kind in kinds for e in vars(kind).values() if isinstance(e, Entry)}.values())


def signed(exchange: Any, entry: Any, params: Mapping[str, Any]) -> tuple[str, Request] | None:
    """Host and call of what ccxt would send; None if it does not sign that with made-up keys."""
    try:
        made = exchange.sign(entry.path, entry.api, entry.method, dict(params))
    except Exception:
        return None
    place = urlsplit(made["url"])
    query = dict(parse_qsl(place.query))
    headers = {key.lower(): str(value) for key, value in (made.get("headers") or {}).items()}
    if "urlencoded" in headers.get("content-type", ""):
        query |= dict(parse_qsl(str(made.get("body") or "")))
    return place.hostname or "", Request(made.get("method") or entry.method, place.path, query, None, headers)


@EVERY
def test_no_call_is_cheaper_than_under_ccxt(name: str) -> None:
    """What a real request of ccxt is charged is what its own throttle would charge, or more, up to a minute."""
    key = "k" * 8
    exchange = getattr(ccxt, name)({"apiKey": key, "secret": "ab" * 16, "password": key, "uid": "1"})
    providers = {host: Provider(file_of(each)) for each in family(name) for host in file_of(each).hosts}
    compared = known = 0
    for entry in entries(exchange)[::2]:
        path = dict.fromkeys(re.findall(r"\{([^}]+)\}", entry.path), "7")
        for more in ({}, {"symbol": "AB", "limit": 1000, "market": "AB"}):
            params = {**path, **more}
            found = signed(exchange, entry, params)
            if found is None or found[0] not in providers:
                continue
            try:
                cost = exchange.calculate_rate_limiter_cost(entry.api, entry.method, entry.path, params, entry.config)
            except Exception:
                continue
            plan = providers[found[0]].plan(found[1])
            compared, known = compared + 1, known + bool(plan.route)
            charged = max((each.cost for each in plan.charges if each.limit.unit in {"pace", "own-pace"}), default=0)
            if plan.route:
                assert charged >= math.floor(cost * exchange.rateLimit * 1000), (entry.path, params)
    assert known >= 0.9 * compared


def family(name: str) -> list[str]:
    """The exchange and those that its class is made from."""
    return [kind.__name__ for kind in getattr(ccxt, name).__mro__ if kind.__name__ in ccxt.exchanges]


def test_a_host_has_one_provider_in_every_process() -> None:
    """No two derived providers call the same host, unless a bundled file serves it: then neither is used for it."""
    book = Rulebook.load()
    owners: dict[str, set[str]] = defaultdict(set)
    for name in ccxt.exchanges:
        for host in file_of(name).hosts:
            owners[host].add(file_of(name).name)
    shared = {host: names for host, names in owners.items() if len(names) > 1 and book.for_host(host) is None}
    assert not shared


def test_most_tables_are_read_whole() -> None:
    """Nearly every entry becomes a route; where several become one request, the dearest is taken."""
    names = [name for name in ccxt.exchanges if family(name) == [name]]
    routes = sum(len(rule.match) for name in names for rule in file_of(name).routes)
    assert routes > 0.9 * sum(len(entries(getattr(ccxt, name)())) for name in names)


def costs(file: File, match: str) -> Any:
    """The cost of a route."""
    return next(rule.cost for rule in file.routes if match in rule.match)


def test_kraken() -> None:
    """The window that its class states, decimals, the account's own limit, and classes."""
    file = file_of("kraken")
    assert list(file.limits) == ["pace-10s", "account-pace-10s"]
    assert file.limits["pace-10s"].window is Window.SLIDING and file.limits["pace-10s"].capacity == 10_000_000
    assert costs(file, "GET /0/public/OHLC") == {"pace": 1_200_000}
    assert costs(file, "POST /0/private/Ledgers") == {"pace": 6_000_000, "account-pace": 6_000_000}
    assert file.owners["account"].header == ["api-key"]
    kinds = {rule.class_ for rule in file.routes for match in rule.match if match == "POST /0/private/CancelOrder"}
    assert kinds == {"cancel"}


def test_dear_calls() -> None:
    """A call above the usual limit fills it and is charged in full on the longer one; above a minute it has its own."""
    file = file_of("okx")
    spent = costs(file, "GET /api/v5/account/bills-history-archive".replace("GET", "POST"))
    assert spent["pace"] == MINUTE and spent["pace-250ms"] == 250_000
    assert spent["own-pace"] == 72_000 * 110_000
    own = next(rule for rule in file.limits.values() if rule.unit == "own-pace")
    assert own.scope == ["ip", "endpoint"]


def test_inherited_hosts() -> None:
    """An exchange made from another one's class has only the hosts that are new; without such it is the other one."""
    assert file_of("binanceusdm") == file_of("binance")
    assert file_of("gateeu").hosts == ["api.gateeu.com"]
    assert "api.binance.com" not in file_of("binanceus").hosts


def test_unknown() -> None:
    """A wrong name is an error that proposes the right one."""
    with pytest.raises(UnknownProvider, match="Did you mean 'kraken'"):
        derive("krakn")


def test_by_host() -> None:
    """The exchanges that call a host."""
    assert exchanges_at(["api.kraken.com"]) == ["kraken"]
    assert exchanges_at(["nobody.example"]) == []


def test_urls_of_an_object() -> None:
    """REST only, with the hostname filled in."""
    exchange = ccxt.bybit({"hostname": "bytick.com"})
    exchange.urls["api"]["ws"] = "wss://stream.bytick.com"
    assert {urlsplit(url).hostname for url in urls_of(exchange)} == {"api.bytick.com"}


def test_acquaint() -> None:
    """Hosts of the class get its provider, a mirror gets one of its own; what a file serves is left alone."""
    book = Rulebook.load()
    mirror = ccxt.bitso()
    mirror.urls["api"] = {"rest": "http://127.0.0.1:9399/api"}
    acquaint(book, ccxt.bitso(), ["bitso.com"])
    acquaint(book, ccxt.bitso(), ["bitso.com"])
    acquaint(book, mirror, ["127.0.0.1:9399"])
    real, other = book.for_host("bitso.com"), book.for_host("127.0.0.1:9399")
    assert real is not None and other is not None
    assert (real.namespace, other.namespace) == ("ccxt-bitso", "ccxt-bitso@127.0.0.1:9399")
    assert other.plan(Request("GET", "/api/v3/ticker")).route == "GET /api/v3/ticker"
    acquaint(book, ccxt.binance(), ["eapi.binance.com", "papi.binance.com"])
    assert book.for_host("api.binance.com").name == "binance-spot"  # type: ignore[union-attr]
    assert book.for_host("papi.binance.com").name == "ccxt-binance"  # type: ignore[union-attr]


def test_by_name() -> None:
    """A derived provider can be asked for, and mapped to a host, like any other; an unknown one is an error."""
    book = Rulebook.load(
        hosts={"127.0.0.1:9399": "ccxt-bitso"}, adjustments={"ccxt-bitso": Adjustments(headroom={"pace-4s": "50%"})}
    )
    provider = book.for_host("127.0.0.1:9399")
    assert provider is not None and provider.namespace == "ccxt-bitso@127.0.0.1:9399"
    assert provider.limits["pace-4s"].usable == 2_000_000
    assert Rulebook.load().provider("ccxt-luno").namespace == "ccxt-luno"
    with pytest.raises(UnknownProvider, match="no exchange 'leviathan'"):
        book.provider("ccxt-leviathan")


@pytest.mark.parametrize("name", ["mexc", "htx", "bingx", "upbit", "bitflyer"])
def test_what_a_derived_exchange_refuses(name: str) -> None:
    """No table says how it refuses: status and words tell, also under HTTP 200, and the limits of the call are held."""
    provider = Provider(file_of(name))
    plan = provider.plan(Request("POST", "/some/order"))

    def told(status: int, body: bytes) -> Feedback:
        return provider.feedback(plan, Answer(status, {}, body), now=0)

    busy = told(200, '{"code":510,"msg":"请求过于频繁"}'.encode())
    assert (busy.outcome, bool(busy.full), busy.unlisted) == (Outcome.THROTTLED, True, "HTTP 200 with code 510")
    assert told(200, b'{"success":false,"message":"unknown error"}').outcome is Outcome.FAILED
    assert told(400, b'{"message":"insufficient balance for limit order"}').outcome is Outcome.BAD_REQUEST
    assert told(200, b'{"code":200,"data":[{"title":"system maintenance"}]}').outcome is Outcome.OK
    assert [block.scope for block in told(429, b"error code: 1015").blocks] == [f"ccxt-{name}/ip:default"]
    assert told(418, b"").outcome is Outcome.BANNED
