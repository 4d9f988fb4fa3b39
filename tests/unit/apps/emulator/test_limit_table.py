"""Limits in force, and requests priced and with their owners."""

from __future__ import annotations

from typing import Any

import pytest

from ratekeeper.apps.emulator.limit_table import LimitTable
from ratekeeper.apps.emulator.options import LimitChange, Options
from ratekeeper.rules.book import DATA, Rulebook
from ratekeeper.rules.call import Request

SECOND = 1_000_000_000


def table(name: str, **options: Any) -> LimitTable:
    """The limits of a bundled provider."""
    return LimitTable(Rulebook.load().provider(name), Options(provider=name, **options))


@pytest.mark.parametrize("name", sorted(path.stem for path in DATA.glob("*.toml")))
def test_every_file_has_a_main_limit_with_a_window(name: str) -> None:
    """The summary and ``--window`` need one."""
    assert table(name).main.period > 0


def test_the_main_limit_is_the_weight_of_an_address_or_what_most_routes_spend() -> None:
    """Not the raw requests that every call of Binance spends as well."""
    assert table("binance-spot").main.name == "weight-1m"
    assert table("kraken-futures").main.name == "cost-10s"


def test_scale_shortens_all_and_window_only_the_main_limit() -> None:
    """A change of one limit goes before both."""
    made = table("binance-usdm", scale=0.5, window=3, limits=(LimitChange("orders-10s", 7, 0.25),))
    periods = {name: limit.period for name, limit in made.by_name.items()}
    assert periods["weight-1m"] == 3 * SECOND
    assert periods["orders-1m"] == 30 * SECOND
    assert periods["orders-10s"] == SECOND // 4
    assert made.by_name["orders-10s"].capacity == 7
    assert made.stretched(120 * SECOND) == 6 * SECOND


def test_a_larger_bucket_drains_faster() -> None:
    """As when a provider states another capacity: the refill keeps its proportion."""
    limit = table("deribit").by_name["credits"]
    wider = table("deribit", limits=(LimitChange("credits", 2 * limit.capacity),)).by_name["credits"]
    assert (wider.capacity, wider.refill) == (2 * limit.capacity, 2 * limit.refill)


def test_charges_name_address_account_and_what_the_call_says() -> None:
    """Two addresses, two accounts and two instruments are six owners of four limits."""
    made = table("okx")
    ticker = Request("GET", "/api/v5/market/ticker", {"instId": "BTC-USDT"})
    first, second = (made.plan(ticker, ip, "")[1] for ip in ("127.0.0.1", "127.0.0.2"))
    assert [charge.owner for charge in first] != [charge.owner for charge in second]
    assert any("ip:127.0.0.1" in charge.owner for charge in first)
    owners = set()
    for account in ("a1", "a2"):
        for instrument in ("BTC-USDT", "ETH-USDT"):
            order = Request("POST", "/api/v5/trade/order", {}, {"instId": instrument}, {})
            owners |= {
                charge.owner for charge in made.plan(order, "127.0.0.1", account)[1] if charge.limit.name == "place-2s"
            }
    assert len(owners) == 4
    assert all(owner.startswith("account:a") for owner in owners)
