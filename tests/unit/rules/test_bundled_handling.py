"""What every bundled rule file says of keeping, merging and looking up, and that it is safe."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import msgspec
import pytest
from tests.support.bundled import WHO, ask, call_of, key, matches, plan, safe, single, told

from ratekeeper.rules.book import DATA, Rulebook
from ratekeeper.rules.call import Headers, Outcome, Request
from ratekeeper.rules.handling import class_of
from ratekeeper.rules.provider import Provider

NAMES = sorted(path.stem for path in DATA.glob("*.toml"))


@pytest.fixture(scope="module", params=NAMES)
def provider(request: pytest.FixtureRequest) -> Provider:
    """Each bundled provider in turn."""
    return Rulebook.load().provider(request.param)


def test_no_order_is_kept(provider: Provider) -> None:
    """What places orders or moves money is named by no pattern of [keep]: it would be made twice."""
    harmless = ("*test", "*precheck")
    acting = ("*withdraw*", "*transfer*", "*margin/deposit*", "*/add-margin", "*positions/{contract}/margin")
    for match in matches(provider):
        found = plan(provider, match.replace("*", "x"))
        if provider.handling.ttl(found) is None:
            continue
        kind = class_of(found)
        assert kind in {"account", "market"} or any(fnmatchcase(match, each) for each in harmless), match
        if not match.startswith("GET "):
            assert not any(fnmatchcase(match, each) for each in acting), match


def test_no_order_is_repeated(provider: Provider) -> None:
    """No call of class order may be made twice, but those that only test one, and those with a key of their own."""
    for match in matches(provider):
        found = plan(provider, match.replace("*", "x"))
        if class_of(found) == "order" and not any(fnmatchcase(match, each) for each in ("*test", "*precheck")):
            call = call_of(match.replace("*", "x"))
            assert not provider.handling.safe(call, found), match


def test_time_is_never_kept(provider: Provider) -> None:
    """A server clock off a shelf is wrong: what is learned as the clock alone is never kept."""
    for learn in provider.file.learn:
        if learn.rows is None and "*" not in learn.route:
            assert provider.handling.ttl(plan(provider, learn.route)) == 0, learn.route


def test_fates_are_not_kept(provider: Provider) -> None:
    """What tells the fate of an order is asked for anew each time, unless it is a position."""
    for lookup in provider.file.lookups:
        ttl = provider.handling.ttl(plan(provider, lookup.route))
        assert not ttl or "position" in lookup.route, lookup.route


def test_orders_have_a_lookup(provider: Provider) -> None:
    """Each file says how to find out what became of an order."""
    assert provider.file.lookups


@pytest.mark.parametrize(
    ("name", "line", "body", "asked"),
    [
        ("binance-usdm", "POST /fapi/v1/order?symbol=BTCUSDT&newClientOrderId=a1", None,
         "GET /fapi/v1/order?origClientOrderId=a1&symbol=BTCUSDT"),
        ("binance-coinm", "POST /dapi/v1/order?symbol=BTCUSD_PERP&newClientOrderId=a1", None,
         "GET /dapi/v1/order?origClientOrderId=a1&symbol=BTCUSD_PERP"),
        ("binance-spot", "POST /api/v3/order?symbol=BTCUSDT&newClientOrderId=a1", None,
         "GET /api/v3/order?origClientOrderId=a1&symbol=BTCUSDT"),
        ("binance-spot", "POST /api/v3/orderList/oco?listClientOrderId=a1", None,
         "GET /api/v3/orderList?origClientOrderId=a1"),
        ("bitget", "POST /api/v2/mix/order/place-order",
         {"symbol": "BTCUSDT", "productType": "USDT-FUTURES", "clientOid": "a1"},
         "GET /api/v2/mix/order/detail?clientOid=a1&productType=USDT-FUTURES&symbol=BTCUSDT"),
        ("okx", "POST /api/v5/trade/order", {"instId": "BTC-USDT", "clOrdId": "a1"},
         "GET /api/v5/trade/order?clOrdId=a1&instId=BTC-USDT"),
        ("okx", "POST /api/v5/trade/batch-orders", [{"instId": "BTC-USDT", "clOrdId": "a1"}],
         "GET /api/v5/trade/order?clOrdId=a1&instId=BTC-USDT"),
        ("bybit", "POST /v5/order/create", {"category": "linear", "symbol": "BTCUSDT", "orderLinkId": "a1"},
         "GET /v5/order/realtime?category=linear&orderLinkId=a1&symbol=BTCUSDT"),
        ("orderly", "POST /v1/order", {"client_order_id": "a1"}, "GET /v1/client/order/a1"),
        ("kraken", "POST /0/private/AddOrder?cl_ord_id=a1", None, "POST /0/private/OpenOrders?cl_ord_id=a1"),
        ("kraken-futures", "POST /derivatives/api/v3/sendorder?cliOrdId=a1", None,
         "POST /derivatives/api/v3/orders/status?cliOrdIds=a1"),
        ("kucoin", "POST /api/v1/hf/orders", {"clientOid": "a1", "symbol": "BTC-USDT"},
         "GET /api/v1/hf/orders/client-order/a1?symbol=BTC-USDT"),
        ("kucoin-futures", "POST /api/v1/orders", {"clientOid": "a1"}, "GET /api/v1/orders/byClientOid?clientOid=a1"),
        ("gate", "POST /api/v4/futures/usdt/orders", {"text": "t-a1"}, "GET /api/v4/futures/usdt/orders/t-a1"),
        ("gate", "PUT /api/v4/futures/usdt/orders/7", {"size": 2}, "GET /api/v4/futures/usdt/orders/7"),
        ("coinbase", "POST /api/v3/brokerage/orders", {"product_id": "BTC-USD", "client_order_id": "a1"},
         "GET /api/v3/brokerage/orders/historical/batch?product_ids=BTC-USD"),
        ("coinbase-exchange", "POST /orders", {"product_id": "BTC-USD"}, "GET /orders?product_id=BTC-USD&status=all"),
        ("deribit", "GET /api/v2/private/buy?label=a1&instrument_name=BTC-PERPETUAL", None,
         "GET /api/v2/private/get_order_state_by_label?label=a1"),
        ("hyperliquid", "POST /exchange", {"action": {"type": "order", "orders": [{"c": "0x1"}]}},
         "POST /info?oid=0x1&type=orderStatus"),
    ],
)  # fmt: skip
def test_fate_of_an_order(name: str, line: str, body: Any, asked: str) -> None:
    """An order with a client id of its own can be asked after; Binance's parameters stand in the query, others' in JSON."""
    assert ask(Rulebook.load().provider(name), line, body=body) == asked


def test_only_a_documented_key_makes_an_order_safe() -> None:
    """Binance refuses a used id among open orders only, so its orders are never repeated; Coinbase keeps one for each id."""
    book = Rulebook.load()
    assert not safe(book.provider("binance-usdm"), "POST /fapi/v1/order?symbol=BTCUSDT&newClientOrderId=a1")
    assert safe(book.provider("coinbase"), "POST /api/v3/brokerage/orders", body={"client_order_id": "a1"})
    assert not safe(book.provider("coinbase"), "POST /api/v3/brokerage/orders", body={})


def test_deribit_moves_money_by_get() -> None:
    """Deribit's GET buys and withdraws; what begins with get_ reads."""
    known = Rulebook.load().provider("deribit")
    lines = ("buy", "withdraw", "submit_transfer_to_user", "get_positions", "get_open_orders", "cancel_all")
    assert [safe(known, f"GET /api/v2/private/{each}") for each in lines] == [False, False, False, True, True, True]


def test_kraken_reads_by_post() -> None:
    """Kraken's private reads are POSTs with a nonce: they may be repeated, and balances are kept for their key."""
    known = Rulebook.load().provider("kraken")
    lines = ("Balance", "OpenOrders", "QueryOrders", "Withdraw", "AddOrder")
    assert [safe(known, f"POST /0/private/{each}") for each in lines] == [True, True, True, False, False]
    first, second = (
        key(known, f"POST /0/private/Balance?nonce={each}", headers={"api-key": "k1"}) for each in ("1", "2")
    )
    assert first == second is not None


@pytest.mark.parametrize(
    ("name", "line", "whole", "one"),
    [
        ("binance-spot", "GET /api/v3/ticker/price?symbol=A", [{"symbol": "A"}, {"symbol": "B"}], {"symbol": "A"}),
        ("binance-usdm", "GET /fapi/v2/ticker/price?symbol=A", [{"symbol": "A"}, {"symbol": "B"}], {"symbol": "A"}),
        ("binance-usdm", "GET /fapi/v1/premiumIndex?symbol=A", [{"symbol": "A"}, {"symbol": "B"}], {"symbol": "A"}),
        ("binance-coinm", "GET /dapi/v1/ticker/price?symbol=A", [{"symbol": "A"}, {"symbol": "B"}], [{"symbol": "A"}]),
        ("bitget", "GET /api/v2/mix/market/ticker?symbol=A&productType=P", {"data": [{"symbol": "A"}, {"symbol": "B"}]},
         {"data": [{"symbol": "A"}]}),
        ("bitget", "GET /api/v2/spot/market/tickers?symbol=A", {"data": [{"symbol": "A"}]}, {"data": [{"symbol": "A"}]}),
        ("bybit", "GET /v5/market/tickers?category=linear&symbol=A", {"retCode": 0, "result": {"list": [{"symbol": "A"}]}},
         {"retCode": 0, "result": {"list": [{"symbol": "A"}]}}),
        ("kucoin-futures", "GET /api/v1/ticker?symbol=A", {"code": "200000", "data": [{"symbol": "A"}, {"symbol": "B"}]},
         {"code": "200000", "data": {"symbol": "A"}}),
        ("gate", "GET /api/v4/spot/tickers?currency_pair=A", [{"currency_pair": "A"}, {"currency_pair": "B"}],
         [{"currency_pair": "A"}]),
        ("gate", "GET /api/v4/futures/usdt/tickers?contract=A", [{"contract": "A"}], [{"contract": "A"}]),
    ],
)  # fmt: skip
def test_bundled_merges(name: str, line: str, whole: Any, one: Any) -> None:
    """The call for many is a route of the file, and its answer gives each what its own call would have."""
    known = Rulebook.load().provider(name)
    found = single(known, line)
    assert found is not None
    together = known.plan(found.together(["A", "B"]), WHO)
    assert together.route
    assert msgspec.json.decode(found.split(msgspec.json.encode(whole))["A"]) == one


@pytest.mark.parametrize(
    ("name", "line", "status", "body"),
    [
        ("binance-spot", "POST /api/v3/order", 408, {"code": -1007}),
        ("binance-spot", "POST /api/v3/order", 400, {"code": -1006}),
        ("binance-usdm", "POST /fapi/v1/order", 503, {"code": -1007}),
        ("binance-coinm", "POST /dapi/v1/order", 408, {"code": -1007}),
        ("bitget", "POST /api/v2/mix/order/place-order", 400, {"code": "40010"}),
        ("okx", "POST /api/v5/trade/order", 400, {"code": "50004"}),
        ("okx", "POST /api/v5/trade/order", 200, {"code": "1", "data": [{"sCode": "50004"}]}),
        ("bybit", "POST /v5/order/create", 200, {"retCode": 170007}),
        ("kucoin", "POST /api/v1/hf/orders", 400, {"code": "408000"}),
        ("kraken", "POST /0/private/AddOrder", 200, {"error": ["EGeneral:Internal error"]}),
    ],
)
def test_an_unknown_fate_is_told(name: str, line: str, status: int, body: Any) -> None:
    """Where the provider says that it does not know what became of a call, it may have acted."""
    known = Rulebook.load().provider(name)
    found = told(known, plan(known, line), status, body)
    assert (found.outcome, found.acted, found.full) == (Outcome.FAILED, True, ())


@pytest.mark.parametrize(
    ("name", "headers", "until"),
    [
        ("kucoin", {"kc-api-timestamp": "1700000000250", "kc-api-sign": "s"}, 1_700_000_005_250),
        ("kucoin-futures", {"kc-api-timestamp": "1700000000250", "kc-api-sign": "s"}, 1_700_000_005_250),
        ("gate", {"timestamp": "1700000000", "sign": "s"}, 1_700_000_060_000),
        ("coinbase-exchange", {"cb-access-timestamp": "1700000000.25", "cb-access-sign": "s"}, 1_700_000_030_250),
    ],
)
def test_signatures_without_a_window_parameter(name: str, headers: dict[str, str], until: int) -> None:
    """They expire after a time that the provider has fixed."""
    known = Rulebook.load().provider(name)
    found = known.signed_until(Request("POST", "/x", None, None, Headers(headers)))
    assert found is not None and abs(found - until * 1_000_000) < 1_000_000
    assert known.signed_until(Request("POST", "/x", None, None, Headers({}))) is None


def test_nonces_that_must_rise() -> None:
    """Kraken's stand in a form or in JSON, and belong to the key; numbers of 64 bits, in any unit of time."""
    known = Rulebook.load().provider("kraken")
    assert known.nonce is not None
    mine, other = Headers({"api-key": "k1"}), Headers({"api-key": "k2"})
    form = known.nonce(Request("POST", "/0/private/Balance", {"nonce": "1700000000250000000"}, None, mine), b"s")
    json = known.nonce(Request("POST", "/0/private/Balance", None, {"nonce": 1_700_000_000_250}, mine), b"s")
    assert form is not None and json is not None
    assert (form[0], json[0]) == (1_700_000_000_250_000_000, 1_700_000_000_250) and form[1] == json[1]
    theirs = known.nonce(Request("POST", "/0/private/Balance", {"nonce": "7"}, None, other), b"s")
    assert theirs is not None and theirs[1] != form[1] and "k2" not in theirs[1]
    for nonce in ("", "abc", "-1", "1.5", str(1 << 64)):
        assert known.nonce(Request("POST", "/0/private/Balance", {"nonce": nonce}, None, mine), b"s") is None
    assert known.nonce(Request("GET", "/0/public/Time", None, None, mine), b"s") is None
