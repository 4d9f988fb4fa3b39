"""OKX v5: pools by user and instrument, families of options, batches, the sub-account's cap, codes under HTTP 200."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.bundled import NOW, charges, plan, told
from tests.support.ends import until

from ratekeeper.ledger.limit import SECOND
from ratekeeper.rules.book import Rulebook
from ratekeeper.rules.call import Identity, Outcome, Priority, Request
from ratekeeper.rules.numbers import Adjustments
from ratekeeper.rules.provider import Provider
from ratekeeper.rules.times import http_date

SWAP, SPOT, OPTION = "BTC-USDT-SWAP", "BTC-USDT", "BTC-USD-261225-90000-C"
ORDER = "POST /api/v5/trade/order"
BATCH = "POST /api/v5/trade/batch-orders"


@pytest.fixture(scope="module")
def okx() -> Provider:
    """The bundled rules."""
    return Rulebook.load().provider("okx")


def orders(*instruments: str) -> list[dict[str, str]]:
    """The body of a batch."""
    return [{"instId": instrument, "side": "buy", "sz": "1"} for instrument in instruments]


@pytest.mark.parametrize(
    ("line", "body", "cost"),
    [
        (ORDER, {"instId": SWAP}, {"place-2s": 1, "account-2s": 1}),
        (ORDER, {"instId": SPOT}, {"place-2s": 1}),
        (ORDER, {"instId": OPTION}, {"place-2s": 1, "account-2s": 1}),
        (ORDER, None, {"place-2s": 1, "account-2s": 1}),
        (BATCH, orders(SWAP), {"place-2s": 1, "account-2s": 1}),
        (BATCH, orders(SPOT), {"place-2s": 1}),
        (BATCH, orders(SWAP, SWAP, SWAP), {"place-batch-2s": 3, "account-2s": 3}),
        (BATCH, orders(SPOT, SPOT), {"place-batch-2s": 2}),
        (BATCH, None, {"place-batch-2s": 20, "account-2s": 20}),
        ("POST /api/v5/trade/amend-order", {"instId": SWAP}, {"amend-2s": 1, "account-2s": 1}),
        ("POST /api/v5/trade/amend-order", {"instId": SPOT}, {"amend-2s": 1}),
        ("POST /api/v5/trade/amend-batch-orders", orders(SWAP), {"amend-2s": 1, "account-2s": 1}),
        ("POST /api/v5/trade/amend-batch-orders", orders(SWAP, SWAP), {"amend-batch-2s": 2, "account-2s": 2}),
        ("POST /api/v5/trade/cancel-order", {"instId": SWAP}, {"cancel-2s": 1}),
        ("POST /api/v5/trade/cancel-batch-orders", orders(SWAP), {"cancel-2s": 1}),
        ("POST /api/v5/trade/cancel-batch-orders", orders(SWAP, SWAP), {"cancel-batch-2s": 2}),
        ("POST /api/v5/trade/close-position", {"instId": SWAP}, {"user-instrument-20-2s": 1}),
        ("POST /api/v5/trade/mass-cancel", {}, {"mass-cancel-2s": 1}),
        ("POST /api/v5/trade/cancel-all-after", {"tag": "a"}, {"user-tag-1-1s": 1}),
        (f"GET /api/v5/trade/order?instId={SWAP}", None, {"user-instrument-60-2s": 1}),
        ("GET /api/v5/trade/orders-pending", None, {"user-60-2s": 1}),
        ("GET /api/v5/trade/fills-history", None, {"user-10-2s": 1}),
        ("GET /api/v5/account/balance", None, {"user-10-2s": 1}),
        ("GET /api/v5/account/bills", None, {"user-5-1s": 1}),
        ("GET /api/v5/account/instruments?instType=SWAP", None, {"user-type-20-2s": 1}),
        ("GET /api/v5/market/tickers?instType=SPOT", None, {"ip-20-2s": 1}),
        ("GET /api/v5/market/books", None, {"ip-40-2s": 1}),
        ("GET /api/v5/market/trades", None, {"ip-100-2s": 1}),
        ("GET /api/v5/market/books-full", None, {"ip-10-2s": 1}),
        ("GET /api/v5/public/instruments?instType=SWAP", None, {"ip-type-20-2s": 1}),
        (f"GET /api/v5/public/funding-rate?instId={SWAP}", None, {"ip-instrument-10-2s": 1}),
        ("WS-CONNECT /ws/v5/public", None, {"ws-connects-1s": 1}),
        ("WS /order", {"args": [{"instId": SPOT}]}, {"place-2s": 1}),
        ("WS /batch-orders", {"args": orders(SWAP, SWAP)}, {"place-batch-2s": 2, "account-2s": 2}),
    ],
)
def test_costs(okx: Provider, line: str, body: Any, cost: dict[str, int]) -> None:
    """A call spends on the pool of its endpoint; orders that are not spot also on the sub-account's."""
    assert charges(okx, line, body=body) == cost


@pytest.mark.parametrize(
    ("line", "body", "owners"),
    [
        (ORDER, {"instId": SWAP}, "instrument:BTC-USDT-SWAP"),
        (ORDER, {"instId": OPTION}, "instrument:BTC-USD-"),
        (ORDER, {"instId": "BTC-USD"}, "instrument:BTC-USD"),
        (BATCH, orders(SPOT), "instrument:BTC-USDT"),
        ("WS /order", {"args": [{"instId": SPOT}]}, "instrument:BTC-USDT"),
        ("POST /api/v5/trade/cancel-all-after", {"tag": "a"}, "tag:a"),
        ("GET /api/v5/public/instruments?instType=SWAP", None, "instrument-type:SWAP"),
    ],
)
def test_owners(okx: Provider, line: str, body: Any, owners: str) -> None:
    """Whose pool it is: options count by family, which is not the spot pair of that name."""
    assert plan(okx, line, body=body).charges[0].key.split("/", 2)[2].split(",")[1] == owners


def test_batch_of_several_instruments(okx: Provider) -> None:
    """Each instrument's pool is charged its own orders, and the cap all of them."""
    found = plan(okx, BATCH, body=orders(SWAP, "ETH-USDT-SWAP", SWAP, OPTION))
    assert {charge.key.removeprefix("okx/"): charge.cost for charge in found.charges} == {
        "place-batch-2s/account:anonymous,instrument:BTC-USD-": 1,
        "place-batch-2s/account:anonymous,instrument:BTC-USDT-SWAP": 2,
        "place-batch-2s/account:anonymous,instrument:ETH-USDT-SWAP": 1,
        "account-2s/account:anonymous": 4,
    }
    assert "okx/instrument:ETH-USDT-SWAP" in found.scopes


def test_rest_and_websocket_share(okx: Provider) -> None:
    """Trading has the same pools over both."""
    rest, socket = plan(okx, ORDER, body={"instId": SWAP}), plan(okx, "WS /order", body={"args": orders(SWAP)})
    assert [charge.key for charge in rest.charges] == [charge.key for charge in socket.charges]


def test_priorities(okx: Provider) -> None:
    """Cancels go before orders, market data last."""
    lines = ("POST /api/v5/trade/cancel-batch-orders", BATCH, "GET /api/v5/account/balance", "GET /api/v5/market/books")
    found = [plan(okx, line).priority for line in lines]
    assert found == [Priority.CRITICAL, Priority.HIGH, Priority.NORMAL, Priority.LOW]


@pytest.mark.parametrize(
    ("line", "status", "body", "outcome", "full"),
    [
        ("GET /api/v5/market/books", 429, {"code": "50011", "msg": "Too Many Requests"}, Outcome.THROTTLED, ["ip-40-2s"]),
        ("GET /api/v5/market/books", 200, {"code": "50011", "msg": "Too Many Requests"}, Outcome.THROTTLED, ["ip-40-2s"]),
        (ORDER, 200, {"code": "50011", "msg": "", "data": []}, Outcome.THROTTLED, ["place-2s"]),
        (ORDER, 200, {"code": "1", "data": [{"sCode": "50011", "sMsg": ""}]}, Outcome.THROTTLED, ["place-2s"]),
        (ORDER, 200, {"code": "50061", "msg": "", "data": []}, Outcome.THROTTLED, ["account-2s"]),
        (BATCH, 200, {"code": "2", "data": [{"sCode": "0"}, {"sCode": "50061"}]}, Outcome.THROTTLED, ["account-2s"]),
        (ORDER, 200, {"code": "50040", "msg": "", "data": []}, Outcome.THROTTLED, ["place-2s"]),
        (ORDER, 429, {"code": "50013", "msg": "Systems are busy"}, Outcome.OVERLOADED, []),
        (ORDER, 200, {"code": "50013", "msg": "Systems are busy"}, Outcome.OVERLOADED, []),
        (ORDER, 200, {"code": "1", "data": [{"sCode": "51008", "sMsg": "Insufficient"}]}, Outcome.BAD_REQUEST, []),
        (ORDER, 200, {"code": "0", "data": [{"sCode": "0", "clOrdId": "50011"}]}, Outcome.OK, []),
        (ORDER, 400, {"code": "51000", "msg": "Parameter"}, Outcome.BAD_REQUEST, []),
        ("WS /order", 200, {"event": "error", "code": "60014"}, Outcome.THROTTLED, ["place-2s"]),
    ],
)  # fmt: skip
def test_refusals(okx: Provider, line: str, status: int, body: Any, outcome: Outcome, full: list[str]) -> None:
    """50011 means the endpoint's pool, 50061 the sub-account's, 50013 none: the call waits a moment."""
    found = told(okx, plan(okx, line, body={"instId": SWAP, "args": orders(SWAP)}), status, body)
    assert (found.outcome, [key.split("/")[1] for key in found.full]) == (outcome, full)
    held = {block.scope.split("/")[1] for block in found.blocks}
    assert held == ({"place-2s", "account-2s"} if outcome is Outcome.OVERLOADED else set())


def test_cap_named_by_another_call(okx: Provider) -> None:
    """A spot order does not spend on the cap; should a refusal name it all the same, it is held for its window."""
    found = told(okx, plan(okx, ORDER, body={"instId": SPOT}), 200, {"code": "50061"})
    assert [(b.scope, until(b, NOW) - NOW) for b in found.blocks] == [("okx/account-2s/account:anonymous", 2 * SECOND)]


def test_cap_is_read(okx: Provider) -> None:
    """What account-rate-limit states holds for the account that asked, and for no other."""
    found = plan(okx, "GET /api/v5/trade/account-rate-limit", headers={"OK-ACCESS-KEY": "k1"})
    answer = told(okx, found, 200, {"code": "0", "data": [{"accRateLimit": "2500", "nextAccRateLimit": "2500"}]})
    (ledger, numbers) = next(iter(answer.learned.items()))
    assert ledger.startswith("account-2s/account:")
    assert numbers == (2500, 2 * SECOND)
    richer = okx.with_learned(answer.learned)
    capacity = {
        key: plan(richer, ORDER, body={"instId": SWAP}, headers={"OK-ACCESS-KEY": key}).charges[1].limit.capacity
        for key in ("k1", "k2")
    }
    assert capacity == {"k1": 2500, "k2": 1000}
    assert okx.learn_route is None, "nobody without a key can ask for it"


def test_clock(okx: Provider) -> None:
    """The server's time in milliseconds, as text in a list."""
    found = told(okx, plan(okx, "GET /api/v5/public/time"), 200, {"code": "0", "data": [{"ts": "1795220621250"}]})
    assert found.server_time == (NOW + SECOND // 4, NOW + SECOND // 4 + SECOND // 1000)


def test_signature(okx: Provider) -> None:
    """The timestamp is ISO text in a header, and good for 30 seconds."""
    assert http_date("Sat, 21 Nov 2026 00:23:41 GMT") == NOW // SECOND
    headers = {"OK-ACCESS-TIMESTAMP": "2026-11-21T00:23:41.500Z", "OK-ACCESS-SIGN": "s"}
    assert okx.signed_until(Request("POST", "/api/v5/trade/order", headers=headers)) == NOW + 30 * SECOND + SECOND // 2
    assert okx.signed_until(Request("GET", "/api/v5/market/books")) is None


def test_tiers() -> None:
    """The user's fill ratio raises the cap; a lead instrument's pools shrink."""
    file = Rulebook.load().provider("okx").file
    chosen = Provider(file, adjustments=Adjustments({"account-2s": "ratio-5", "place-2s": "lead"}))
    assert [chosen.limits[name].capacity for name in ("account-2s", "place-2s", "amend-2s")] == [2000, 4, 60]
    assert Provider(file, adjustments=Adjustments({"*": "lead"})).limits["cancel-batch-2s"].capacity == 4


@pytest.mark.parametrize("host", ["www.okx.com", "aws.okx.com", "eea.okx.com", "us.okx.com"])
def test_hosts(host: str) -> None:
    """All hosts share one set of ledgers; pages that are not the API pass."""
    book = Rulebook.load()
    found = book.for_host(host, "/api/v5/market/books")
    assert found is not None
    assert found.namespace == "okx"
    assert book.for_host(host, "/docs") is None


def test_key_is_nowhere(okx: Provider) -> None:
    """Accounts are told apart by a digest."""
    call = Request("GET", "/api/v5/account/balance", headers={"ok-access-key": "k1"})
    assert "k1" not in repr(okx.plan(call, Identity(secret=b"x")))


def test_a_batch_that_was_refused_in_part(okx: Provider) -> None:
    """Its other orders may stand: the whole of it must not be sent again."""
    rows = [{"sCode": "0"}, {"sCode": "50061"}]
    for part, acted in ((rows, True), (rows[1:], False), (rows[1:] * 2, False)):
        found = told(okx, plan(okx, BATCH, body={"args": orders(SWAP, SWAP)}), 200, {"code": "2", "data": part})
        assert (found.outcome, found.acted) == (Outcome.THROTTLED, acted)
