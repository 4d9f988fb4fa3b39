"""ratekeeper.adapters.ccxt with real ccxt exchanges against a real server."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs

import ccxt
import ccxt.async_support
import ccxt.pro
import pytest

from ratekeeper import Gate, OutcomeUnknown, Policies, Rejected, RetriesExhausted, Retry
from ratekeeper.adapters.ccxt import govern

COLOURS = pytest.mark.parametrize("kind", ["sync", "async", "pro"])


@pytest.fixture
def gate(origin: Any) -> Iterator[Gate]:
    """A gate that takes the server for Binance's futures; its windows last a day, as the server states."""
    with Gate("memory://", hosts={origin.place: "binance-usdm"}, max_wait=5) as made:
        yield made


@pytest.fixture
def run(gate: Gate, origin: Any) -> Callable[..., Any]:
    """Calls a method of a governed exchange of some kind: ``run(kind, method, *arguments)``."""

    def call(kind: str, method: str, *arguments: Any, options: dict[str, Any] | None = None, **config: Any) -> Any:
        module = {"sync": ccxt, "async": ccxt.async_support, "pro": ccxt.pro}[kind]
        key = "k" * 8
        exchange = module.binanceusdm({"apiKey": key, "secret": key[::-1], "options": options or {}, **config})
        exchange.urls["api"] = {
            name: f"{origin.url}/{'fapi/v1' if 'fapi' in name else 'elsewhere'}" for name in exchange.urls["api"]
        }
        assert govern(exchange, gate=gate) is exchange
        assert govern(exchange, gate=gate) is exchange  # twice is once
        if kind == "sync":
            return getattr(exchange, method)(*arguments)

        async def main() -> Any:
            exchange.timeout_on_exit = 0
            try:
                return await getattr(exchange, method)(*arguments)
            finally:
                await exchange.close()

        return asyncio.run(main())

    return call


@COLOURS
def test_weight_comes_from_the_signed_request(kind: str, run: Any, origin: Any, spent: Any) -> None:
    """The dry run tells route and parameters; first contact and one call of weight 10 are charged, once each."""
    run(kind, "fapiPublicGetKlines", {"symbol": "BTCUSDT", "interval": "1m", "limit": 1500})
    assert origin.paths() == ["/fapi/v1/klines"]
    assert spent("weight-1m") == (11, 0)


@COLOURS
def test_orders_are_charged_to_the_account(kind: str, run: Any, origin: Any, gate: Any) -> None:
    """A signed order spends on the limits of the account that its key names, and arrives freshly signed."""
    run(kind, "fapiPrivatePostOrder", {"symbol": "BTCUSDT", "side": "BUY", "type": "MARKET", "quantity": "1"})
    sent = parse_qs(origin.arrivals[-1].body.decode())
    assert abs(int(sent["timestamp"][0]) / 1000 - origin.arrivals[-1].at) < 2
    keys = [view.key for view in gate.read().ledgers if "/orders-" in view.key]
    assert keys and all("/account:" in key and "kkkk" not in key for key in keys)


@COLOURS
def test_the_throttle_of_ccxt_is_replaced(kind: str, run: Any, origin: Any, gate: Any) -> None:
    """ccxt's own leaky bucket would space calls by their cost; for a governed host it does not."""
    began = time.monotonic()
    for _ in range(3):
        run(kind, "fapiPublicGetTime", {}, rateLimit=3000)
    assert time.monotonic() - began < 3
    assert len(origin.paths()) == 3


@COLOURS
def test_retries_are_charged(kind: str, run: Any, origin: Any, spent: Any) -> None:
    """`maxRetriesOnFailure` works as before, each retry is signed afresh and charged."""
    options = {"maxRetriesOnFailure": 2, "maxRetriesOnFailureDelay": 5}
    run(kind, "fapiPrivateGetOpenOrders", {"symbol": "BTCUSDT", "do": "fail-once"}, options=options)
    run(kind, "fapiPrivateGetOpenOrders", {"symbol": "BTCUSDT", "maxRetriesOnFailure": 1})
    first, second, third = [a.params for a in origin.arrivals[1:]]
    assert "maxRetriesOnFailure" not in {**first, **second, **third}
    assert first["timestamp"] < second["timestamp"]
    assert spent("weight-1m") == (4, 0)


@COLOURS
def test_refusal_is_a_rate_limit_error(kind: str, run: Any, origin: Any) -> None:
    """A rejected call raises ccxt's RateLimitExceeded, which is also Ratekeeper's; nothing is sent or retried."""
    origin.limits = [{"rateLimitType": "REQUEST_WEIGHT", "interval": "DAY", "intervalNum": 1, "limit": 12}]
    klines = {"symbol": "BTCUSDT", "interval": "1m", "limit": 1500}
    run(kind, "fapiPublicGetKlines", klines)
    with pytest.raises(ccxt.RateLimitExceeded) as caught:
        run(kind, "fapiPublicGetKlines", klines, options={"maxRetriesOnFailure": 3})
    assert isinstance(caught.value, Rejected) and caught.value.retry_at is not None
    assert origin.paths() == ["/fapi/v1/klines"]


@COLOURS
def test_answers_are_understood(kind: str, run: Any, origin: Any, gate: Any) -> None:
    """A 429 reaches the gate with its body, and the user as ccxt's own error."""
    kinds: list[str] = []
    gate.on(lambda event: kinds.append(event.kind))
    with pytest.raises(ccxt.NetworkError) as caught:
        run(kind, "fapiPublicGetTime", {"do": "refuse"})
    assert not isinstance(caught.value, Rejected)
    assert "throttled" in kinds


@COLOURS
def test_unsent_and_unanswered(kind: str, run: Any, origin: Any, gate: Any, spent: Any) -> None:
    """No connection: refunded. Sent without an answer: stays charged. Refused by ccxt itself: never asked."""
    with pytest.raises(ccxt.NetworkError):
        run(kind, "fapiPrivatePostOrder", {"symbol": "A", "do": "reset"}, options={"maxRetriesOnFailure": 0})
    assert sum(spent("orders-1m")) == 1
    with pytest.raises(ccxt.AuthenticationError):
        run(kind, "fapiPrivatePostOrder", {"symbol": "A"}, secret="")
    assert sum(spent("orders-1m")) == 1
    origin.server.shutdown()
    origin.server.server_close()
    with pytest.raises(ccxt.NetworkError):
        run(kind, "fapiPrivatePostOrder", {"symbol": "A"})
    assert sum(spent("orders-1m")) == 1


def test_direct_fetch_is_gated(origin: Any, gate: Any, spent: Any) -> None:
    """A request made past the API methods waits at `fetch` itself."""
    exchange = govern(ccxt.binanceusdm(), gate=gate)
    assert exchange.fetch(f"{origin.url}/fapi/v1/klines?limit=1500")["ok"]
    assert spent("weight-1m") == (11, 0)


def test_other_hosts_keep_their_throttle(origin: Any, gate: Any) -> None:
    """An exchange that neither a file nor ccxt knows is not touched: its own throttle still spaces its calls."""
    exchange = govern(ccxt.kraken({"rateLimit": 200, "id": "leviathan"}), gate=gate)
    exchange.urls["api"] = {name: origin.url.replace("127.0.0.1", "localhost") for name in exchange.urls["api"]}
    exchange.publicGetTime()
    begun = time.time()  # what a busy machine does to an arrival makes the others no earlier
    for _ in range(3):
        exchange.publicGetTime()
    times = [arrival.at for arrival in origin.arrivals]
    assert len(times) == 4 and times[3] - begun > 0.35
    assert gate.read().ledgers == []


@COLOURS
def test_an_exchange_without_a_file_is_derived(kind: str, origin: Any) -> None:
    """ccxt's own tables are the rules: address and account are charged, and a mirror's ledgers are its own."""
    module = {"sync": ccxt, "async": ccxt.async_support, "pro": ccxt.pro}[kind]
    key = "k" * 8
    with Gate("memory://", max_wait=0.5) as gate:
        exchange = govern(module.coincheck({"apiKey": key, "secret": key}), gate=gate)
        exchange.urls["api"] = dict.fromkeys(exchange.urls["api"], origin.url)

        async def call(method: str) -> Any:
            made = getattr(exchange, method)()
            return made if kind == "sync" else await made

        async def main() -> None:
            exchange.timeout_on_exit = 0
            try:
                for _ in range(2):  # 1.5 s each: two fit into the bucket, and then there is nothing left for long
                    await call("privateGetAccountsBalance")
                with pytest.raises(ccxt.RateLimitExceeded) as caught:
                    await call("privateGetAccountsBalance")
                assert isinstance(caught.value, Rejected)
            finally:
                if kind != "sync":
                    await exchange.close()

        asyncio.run(main())
        ledgers = {view.key.rpartition(":")[0]: view.used for view in gate.read().ledgers}
        assert set(ledgers) == {
            f"ccxt-coincheck@{origin.place}/pace-3s/ip",
            f"ccxt-coincheck@{origin.place}/account-pace-3s/account",
        }
        assert len(origin.arrivals) == 2


def test_derived_rules_leave_known_hosts_alone(gate: Gate) -> None:
    """Where a file knows some hosts of an exchange, the others get derived rules, of the class that they come from."""
    exchange = govern(ccxt.binanceusdm(), gate=gate)
    with pytest.raises(ccxt.ExchangeError):
        exchange.eapiPrivateGetAccount()  # without a key it is not even signed
    assert gate.book.for_host("eapi.binance.com").namespace == "ccxt-binance"
    assert gate.book.for_host("api.binance.com").namespace == "binance-spot"


@pytest.mark.parametrize("name", ["ccxt.base.exchange", "ccxt.async_support.base.exchange"])
def test_hooks_are_where_we_think(name: str) -> None:
    """What we replace exists in the base class, in the shape we call it; an upgrade that moves it fails here."""
    module = importlib.import_module(name)
    base = module.BaseExchange
    assert issubclass(module.Exchange, base)
    parameters = {hook: list(inspect.signature(getattr(base, hook)).parameters) for hook in ("fetch2", "fetch")}
    assert parameters["fetch2"] == ["self", "path", "api", "method", "params", "config"]
    assert parameters["fetch"] == ["self", "url", "method", "headers", "body"]
    assert {"fetch2", "fetch", "throttle"} <= set(vars(base))
    source = inspect.getsource(base.fetch2)
    assert all(f"self.{call}(" in source for call in ("throttle", "sign", "fetch", "handle_option_integer_and_params"))
    assert "self.on_rest_response(http_status_code, http_status_text, url, method, headers," in inspect.getsource(
        base.fetch
    )
    sign = list(inspect.signature(module.Exchange.sign).parameters)
    assert sign[:5] == ["self", "path", "api", "method", "params"]


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_an_attempt_has_a_time_of_its_own(kind: str, origin: Any) -> None:
    """A read that hangs is cut off and made again, an order is cut off and not repeated; both are ccxt's own errors."""
    module = {"sync": ccxt, "async": ccxt.async_support}[kind]
    policies = Policies(retry=Retry(attempts=2, backoff=(0,), attempt_timeout=0.4))
    with Gate("memory://", hosts={origin.place: "binance-usdm"}, learn=False, policies=policies) as gate:
        exchange = govern(module.binanceusdm({"apiKey": "k" * 8, "secret": "s" * 8}), gate=gate)
        exchange.urls["api"] = dict.fromkeys(exchange.urls["api"], f"{origin.url}/fapi/v1")
        calls = (exchange.fapiPublicGetTime, exchange.fapiPrivatePostOrder)

        async def both() -> list[Any]:
            try:
                return [await asyncio.gather(call({"do": "hang"}), return_exceptions=True) for call in calls]
            finally:
                await exchange.close()

        begun = time.monotonic()
        ended = asyncio.run(both()) if kind == "async" else [[_error(call)] for call in calls]
        assert time.monotonic() - begun < 6
        assert [type(each).__mro__[1] for (each,) in ended] == [RetriesExhausted, OutcomeUnknown]
        assert all(isinstance(each, ccxt.RequestTimeout) for (each,) in ended)
        assert origin.paths() == ["/fapi/v1/time"] * 2 + ["/fapi/v1/order"]


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize(
    ("code", "words", "expected"),
    [
        ("45001", "unknown error", OutcomeUnknown),
        ("40725", "service return an error", OutcomeUnknown),
        ("40010", "Request timed out", OutcomeUnknown),
        ("1001", "The request is too frequent", ccxt.RateLimitExceeded),
        ("43012", "Insufficient balance", ccxt.InsufficientFunds),
    ],
)
def test_what_bitget_says_of_an_order(kind: str, code: str, words: str, expected: Any, origin: Any) -> None:
    """Trouble inside the exchange leaves the order unknown, also without policies; a refusal is what ccxt makes of it."""
    module = {"sync": ccxt, "async": ccxt.async_support}[kind]
    origin.says = (200, {"code": code, "msg": words, "requestTime": 1, "data": None})
    kinds: list[str] = []
    with Gate("memory://", hosts={origin.place: "bitget"}, learn=False) as gate:
        gate.on(lambda event: kinds.append(event.kind))
        exchange = govern(module.bitget({"apiKey": "k" * 8, "secret": "s" * 8, "password": "p"}), gate=gate)
        exchange.urls["api"] = dict.fromkeys(exchange.urls["api"], origin.url)
        place = exchange.privateSpotPostV2SpotTradePlaceOrder

        async def order() -> Any:
            try:
                return (await asyncio.gather(place({"do": "say"}), return_exceptions=True))[0]
            finally:
                await exchange.close()

        origin.asked = "say"
        error = asyncio.run(order()) if kind == "async" else _error(place, "say")
        assert isinstance(error, expected) and isinstance(error, ccxt.BaseError)
        assert isinstance(error, OutcomeUnknown) == (expected is OutcomeUnknown)
        assert origin.paths() == ["/api/v2/spot/trade/place-order"]
        assert ("throttled" in kinds) == (code == "1001")


def _error(call: Callable[..., Any], do: str = "hang") -> Exception:
    with pytest.raises(ccxt.BaseError) as caught:
        call({"do": do})
    return caught.value
