"""What must hold for every bundled rule file, whatever its provider."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
from tests.support.bundled import matches, plan

from ratekeeper.ledger.limit import Window
from ratekeeper.rules.book import DATA, Rulebook
from ratekeeper.rules.call import Priority, Request
from ratekeeper.rules.checks import check, refuse_unready
from ratekeeper.rules.files import read
from ratekeeper.rules.provider import Provider
from ratekeeper.rules.reading import listed

NAMES = sorted(path.stem for path in DATA.glob("*.toml"))


@pytest.fixture(scope="module", params=NAMES)
def provider(request: pytest.FixtureRequest) -> Provider:
    """Each bundled provider in turn."""
    return Rulebook.load().provider(request.param)


@pytest.mark.parametrize("name", NAMES)
def test_every_file_is_right(name: str) -> None:
    """A bundled file passes all checks, which programs spare themselves, and needs nothing that is not evaluated yet."""
    file = read(DATA / f"{name}.toml")
    check(file, name)
    refuse_unready(file, name)


def test_every_route_is_reached_and_fits(provider: Provider) -> None:
    """No route is hidden by another, and none costs more than its limits hold."""
    for match in matches(provider):
        found = plan(provider, match.replace("*", "x"))
        assert found.route.partition(" #")[0] == match
        assert all(charge.cost <= charge.limit.usable for charge in found.charges)


def test_every_limit_is_spent(provider: Provider) -> None:
    """No limit stands there that no call is charged to."""
    file = provider.file
    words = {word for rule in (file.default, *file.routes) for word in rule.cost} | set(file.every)
    assert not [name for name, rule in file.limits.items() if name not in words and rule.unit not in words]


def test_every_number_is_traced(provider: Provider) -> None:
    """Each limit and route is explained with source, date and grade."""
    for match in [*matches(provider), "GET /not/known"]:
        method, path = match.split()
        found = provider.explain(Request(method, path))
        for origin in [found.cost, *(share.provenance for share in found.limits)]:
            assert origin.source
            assert origin.confidence
            assert origin.sources[0].read == origin.date


def test_what_is_learned_has_a_route(provider: Provider) -> None:
    """Every body that states a limit or the clock is that of a route which can be told apart."""
    known = matches(provider)
    for learn in provider.file.learn:
        assert [match for match in known if match == learn.route or fnmatchcase(match, learn.route)], learn.route


@pytest.mark.parametrize(
    ("host", "path", "name"),
    [
        ("api.kraken.com", "/0/private/Balance", "kraken"),
        ("futures.kraken.com", "/derivatives/api/v3/sendorder", "kraken-futures"),
        ("api.coinbase.com", "/api/v3/brokerage/orders", "coinbase"),
        ("api.coinbase.com", "/v2/accounts", "coinbase"),
        ("api.exchange.coinbase.com", "/orders", "coinbase-exchange"),
        ("api.hyperliquid.xyz", "/info", "hyperliquid"),
        ("www.deribit.com", "/api/v2/private/buy", "deribit"),
        ("api.gateio.ws", "/api/v4/spot/orders", "gate"),
        ("api.kucoin.com", "/api/v1/hf/orders", "kucoin"),
        ("api-futures.kucoin.com", "/api/v1/orders", "kucoin-futures"),
    ],
)
def test_hosts(host: str, path: str, name: str) -> None:
    """The hosts that clients use lead to the file meant for them."""
    found = Rulebook.load().for_host(host, path)
    assert found is not None
    assert found.name == name


def test_unknown_calls_are_charged(provider: Provider) -> None:
    """A call that no route knows is not free, and fits."""
    found = plan(provider, "GET /not/known")
    assert found.charges
    assert all(charge.cost <= charge.limit.usable for charge in found.charges)


def test_deleting_orders_goes_first(provider: Provider) -> None:
    """Whatever deletes orders is critical."""
    for rule in provider.file.routes:
        for match in listed(rule.match):
            method, _, path = match.partition(" ")
            if method == "DELETE" and "order" in path.lower() and "/earn/" not in path:
                assert plan(provider, match.replace("*", "x")).priority is Priority.CRITICAL, match


def test_remaining_headers_stand_with_windows(provider: Provider) -> None:
    """A header that states what remains is only read where a window or bucket can be told from it."""
    for name, rule in provider.file.limits.items():
        assert not (rule.headers.remaining and rule.window is Window.SLOTS), name
