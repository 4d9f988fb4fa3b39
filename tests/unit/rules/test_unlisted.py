"""Refusals that nobody listed, and every bundled file beside ccxt's tables of errors."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ccxt
import msgspec
import pytest

from ratekeeper.ledger.limit import SECOND, Instant
from ratekeeper.rules.book import DATA, Rulebook
from ratekeeper.rules.call import Answer, Feedback, Outcome, Request
from ratekeeper.rules.provider import Provider
from ratekeeper.rules.reading import text

NOW = 1_795_220_621 * SECOND
NO = (ccxt.RateLimitExceeded, ccxt.DDoSProtection, ccxt.ExchangeNotAvailable, ccxt.RequestTimeout)
"""The classes of ccxt that mean what a rule file must know; `OnMaintenance` is an `ExchangeNotAvailable`."""
CCXT: dict[str, tuple[str, tuple[str, ...], tuple[int, ...], Callable[[str], Any], Callable[[str], Any]]] = {
    # name: (ccxt's exchange, tables of its kinds of markets, statuses, body of a code, body of a text)
    "binance-spot": ("binance", ("spot",), (400,), lambda c: {"code": int(c)}, lambda t: {"msg": t}),
    "binance-usdm": ("binance", ("linear",), (400,), lambda c: {"code": int(c)}, lambda t: {"msg": t}),
    "binance-coinm": ("binance", ("inverse",), (400,), lambda c: {"code": int(c)}, lambda t: {"msg": t}),
    "bitget": ("bitget", (), (200, 400), lambda c: {"code": c, "msg": ""}, lambda t: {"code": "1", "msg": t}),
    "bybit": ("bybit", (), (200, 400), lambda c: {"retCode": int(c)}, lambda t: {"retCode": 1, "retMsg": t}),
    "coinbase": ("coinbase", (), (400, 403), lambda c: {"error": c}, lambda t: {"error": t}),
    "coinbase-exchange": ("coinbaseexchange", (), (400,), lambda c: {"message": c}, lambda t: {"message": t}),
    "deribit": ("deribit", (), (200, 400), lambda c: {"error": {"code": int(c)}}, lambda t: {"error": {"message": t}}),
    "gate": ("gate", (), (400, 403), lambda c: {"label": c}, lambda t: {"label": t}),
    "hyperliquid": ("hyperliquid", (), (200,), str, lambda t: {"status": "err", "response": t}),
    "kraken": ("kraken", (), (200,), lambda c: {"error": [c]}, lambda t: {"error": [f"EX{t}"]}),
    "kraken-futures": (
        "krakenfutures", (), (200, 400), lambda c: {"result": "error", "error": c}, lambda t: {"result": "error", "error": t},
    ),
    "kucoin": ("kucoin", (), (200, 400), lambda c: {"code": c, "msg": ""}, lambda t: {"code": "1", "msg": t}),
    "kucoin-futures": ("kucoinfutures", (), (200, 400), lambda c: {"code": c, "msg": ""}, lambda t: {"code": "1", "msg": t}),
    "okx": ("okx", (), (200, 400), lambda c: {"code": c, "msg": ""}, lambda t: {"code": "500", "msg": t}),
    "orderly": ("modetrade", (), (429, 400), lambda c: {"success": False, "code": int(c)}, lambda t: {"message": t}),
}  # fmt: skip


def entries(name: str) -> Iterator[tuple[str, bool]]:
    """(code or text, whether it is searched in the text) of what ccxt maps to one of `NO`."""
    exchange, markets, *_ = CCXT[name]
    table = getattr(ccxt, exchange)().exceptions
    for part in (table, *(table[market] for market in markets)):
        yield from ((key, " " in key) for key, kind in part.items() if isinstance(kind, type) and issubclass(kind, NO))
        for kind_of, broad in (("exact", False), ("broad", True)):
            found = {key for key, kind in part.get(kind_of, {}).items() if issubclass(kind, NO)}
            yield from ((key, broad or (" " in key and name != "kraken")) for key in sorted(found))


def feedback(provider: Provider, line: str, status: int, body: Any, **headers: str) -> Feedback:
    """What an answer to a call means."""
    raw = body if isinstance(body, (bytes, str, type(None))) else msgspec.json.encode(body)
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return provider.feedback(provider.plan(Request(*line.split(" ", 1))), Answer(status, names, raw), now=NOW)


def reasons(provider: Provider, key: str) -> list[str]:
    """Why the file takes a code or text for an error of the call itself."""
    found = []
    for rule in provider.file.refusals:
        codes = {text(each) for values in rule.body.values() for each in values} | set(map(str, rule.close))
        if key in codes or (rule.text and re.search(rule.text, key)):
            found.append(rule.note if rule.outcome == "bad request" or rule.close else "")
    return [each for each in found if each]


def test_no_file_is_left_out() -> None:
    """Every bundled file has its exchange in ccxt."""
    assert set(CCXT) == {path.stem for path in DATA.glob("*.toml")}


@pytest.mark.parametrize("name", CCXT)
def test_each_refusal_that_ccxt_knows_is_classed(name: str) -> None:
    """A code or text that ccxt takes for a rate limit, an outage or a timeout is so in the file, or has a reason there."""
    _, _, statuses, of_code, of_text = CCXT[name]
    provider = Rulebook.load().provider(name)
    line = "GET /not/known" if name != "kraken" else "POST /0/private/Balance"
    lost = []
    for key, searched in entries(name):
        body = (of_text if searched else of_code)(key)
        found = [feedback(provider, line, status, body) for status in (*statuses, *((500, 503) if searched else ()))]
        found = [told for told in found if told.outcome not in {Outcome.OK, Outcome.BAD_REQUEST}]
        if not found and not reasons(provider, key):
            lost.append(f"{key}: neither classed nor listed with a reason")
        elif found and not searched and all(told.unlisted for told in found):
            lost.append(f"{key}: known only by its words or its status")
    assert lost == []


PHRASES = tomllib.loads(Path(__file__).with_name("phrases.toml").read_text("utf-8"))

# --- words -----------------------------------------------------------------------------------------------------------

FRAGMENT = """
errors_under = [200]
hosts = ["api.shop.test"]

[owners]
account.header = "x-key"

[limits]
weight-1m = { unit = "weight", capacity = 1000, period = "1m", window = "fixed" }
orders-10s = { unit = "orders", capacity = 50, period = "10s", window = "fixed", scope = "account" }

[[routes]]
match = "POST /order"
class = "order"
cost = { weight = 1, orders = 1 }
"""


@pytest.fixture(scope="module")
def bundled() -> Rulebook:
    """All bundled files."""
    return Rulebook.load()


@pytest.fixture(scope="module")
def shop(provider_of: Callable[[str], Provider]) -> Provider:
    """A provider that lists no refusal."""
    return provider_of(FRAGMENT)


@pytest.mark.parametrize("outcome", [Outcome(name) for name in PHRASES])
def test_words_tell_what_is_meant(shop: Provider, outcome: Outcome) -> None:
    """Whatever the language, and wherever the words stand; words about orders and prices mean the order."""
    for phrase in PHRASES[outcome]:
        shapes: list[tuple[int, Any]] = [
            (200, {"success": False, "message": phrase}),
            (200, {"error": [phrase]}),
            (400, {"code": -1, "msg": phrase}),
            (403, {"error": {"code": 7, "message": phrase}}),
            (400, phrase),
        ]
        for status, body in shapes:
            told = feedback(shop, "POST /order", status, body)
            assert told.outcome is outcome, (status, body)
            assert bool(told.unlisted) == (outcome is not Outcome.BAD_REQUEST)
            assert told.acted == (outcome in {Outcome.OVERLOADED, Outcome.FAILED})
            held = {key.split("/")[1] for key in told.full} | {block.scope.split("/")[1] for block in told.blocks}
            shared = {"weight-1m"} if outcome is Outcome.THROTTLED else set()
            assert held == (set() if outcome is Outcome.BAD_REQUEST else {"orders-10s", *shared})


def texts() -> dict[str, type[Exception]]:
    """The texts by which ccxt tells errors, of all exchanges, and their classes."""
    found: dict[str, type[Exception]] = {}
    queue: list[Any] = [getattr(ccxt, name)().exceptions for name in ccxt.exchanges]
    while queue:
        for key, value in (queue.pop() or {}).items():
            if isinstance(value, dict):
                queue.append(value)
            elif isinstance(value, type) and not key.lstrip("-").isdigit():
                found.setdefault(key, value)
    return found


def test_no_text_of_ccxt_is_misread(shop: Provider) -> None:
    """Of the texts that ccxt knows of all exchanges, none about an order or a key counts as a rate; hardly a rate is lost."""
    kinds = texts()
    told = {key: feedback(shop, "POST /order", 400, {"msg": key}).outcome for key in kinds}
    rates = {key for key, kind in kinds.items() if issubclass(kind, (ccxt.RateLimitExceeded, ccxt.DDoSProtection))}
    refused = {key for key, outcome in told.items() if outcome in {Outcome.THROTTLED, Outcome.BANNED}}
    assert len(kinds) > 900
    assert refused - rates <= {"CLIENT_IP_BLOCKED"}
    assert rates - refused <= {"auto_cancel_daily_limit_reached"}
    trouble = {key for key, outcome in told.items() if outcome in {Outcome.OVERLOADED, Outcome.FAILED}}
    vague = (ccxt.OperationFailed, ccxt.ExchangeError)
    assert {kinds[key].__name__ for key in trouble if not issubclass(kinds[key], (*NO, ccxt.NetworkError))} <= {
        kind.__name__ for kind in vague
    }


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        ({"code": "00000", "msg": "too many requests"}, Outcome.OK),
        ({"code": 200, "message": "success", "data": [{"title": "Maintenance of the system"}]}, Outcome.OK),
        ({"error": [], "result": {"status": "maintenance"}}, Outcome.OK),
        ({"status": "NEW", "note": "rate limit"}, Outcome.OK),
        ([{"title": "too many requests"}], Outcome.OK),
        ({"code": 1000, "message": "OK", "data": {"text": "too many requests"}}, Outcome.OK),
        ({"code": 30013, "message": "Request too many requests"}, Outcome.THROTTLED),
        ([{"success": False, "msg": "too many requests"}, {"success": False, "msg": "x"}], Outcome.THROTTLED),
        ([{"success": False, "msg": "too many requests"}, {"success": True}], Outcome.OK),
        ({"status": "error", "err-code": "system-maintenance"}, Outcome.OVERLOADED),
        ({"success": False, "data": "x" * 5000, "msg": "too many requests"}, Outcome.OK),
    ],
)
def test_a_good_answer_is_not_searched(shop: Provider, body: Any, outcome: Outcome) -> None:
    """Under a good status only errors are read for words: news and names of a good answer may say anything."""
    assert feedback(shop, "POST /order", 200, body).outcome is outcome


def test_a_batch_that_was_refused_in_part(shop: Provider) -> None:
    """Its other orders may stand: the whole of it must not be sent again."""
    row = {"code": 7, "msg": "too many requests"}
    for rows, acted in (([row], False), ([{"code": 0}, row], True)):
        told = feedback(shop, "POST /order", 200, {"success": False, "data": rows})
        assert (told.outcome, told.acted) == (Outcome.THROTTLED, acted)


def test_what_the_file_could_list_is_named(shop: Provider) -> None:
    """By status and code, or else by the text without what differs from answer to answer."""
    assert (
        feedback(shop, "POST /order", 200, {"code": 4711, "msg": "too many requests"}).unlisted
        == "HTTP 200 with code 4711"
    )
    body = {"success": False, "msg": "Too many requests, id 12345"}
    assert feedback(shop, "POST /order", 400, body).unlisted == "HTTP 400: Too many requests, id #"
    assert feedback(shop, "POST /order", 429, b"").unlisted == "HTTP 429"
    for status in (400, 500, 504):
        assert feedback(shop, "POST /order", status, b"{}").unlisted == ""


@pytest.mark.parametrize(
    ("status", "outcome", "kind"),
    [
        (429, Outcome.THROTTLED, ""),
        (418, Outcome.BANNED, "ban"),
        (503, Outcome.OVERLOADED, "throttle"),
        (529, Outcome.OVERLOADED, "throttle"),
    ],
)  # fmt: skip
def test_the_status_alone(shop: Provider, status: int, outcome: Outcome, kind: str) -> None:
    """Statuses that mean a refusal everywhere hold the call's limits for a moment, or shut the address."""
    told = feedback(shop, "POST /order", status, {"code": 1})
    assert (told.outcome, bool(told.unlisted)) == (outcome, True)
    assert {block.kind for block in told.blocks} == ({kind} if kind else set())
    assert len(told.full) == (2 if status == 429 else 0)


@pytest.mark.parametrize(
    ("status", "body", "seconds"),
    [
        (429, {"retry_after": 7}, 7),
        (429, {"msg": "too many requests", "retryAfter": (NOW // SECOND + 9) * 1000}, 9),
        (400, {"msg": "Rate limit exceeded. Please try again in 30 seconds."}, 30),
        (200, {"success": False, "msg": f"IP banned until {(NOW // SECOND + 90) * 1000}"}, 90),
        (400, {"msg": "too many requests, no more than 10 per second"}, None),
    ],
)
def test_when_to_come_back(shop: Provider, status: int, body: Any, seconds: int | None) -> None:
    """Where nobody lists the refusal, the usual places are looked at."""
    wait = feedback(shop, "POST /order", status, body).wait
    assert (None if wait is None else wait.length(Instant(0, NOW, NOW)) // SECOND) == seconds


# --- the layer in front of the exchange --------------------------------------------------------------------------------

PAGE = b"<!DOCTYPE html><html><title>Attention Required! | Cloudflare</title><body>Sorry, you have been blocked</body></html>"
DOORS = [
    (429, b"error code: 1015", {}),
    (429, b"<html><body>429 Too Many Requests</body></html>", {}),
    (429, {"title": "Error 1015", "status": 429, "error_code": 1015, "cloudflare_error": True}, {}),
    (403, PAGE, {}),
    (403, b"<html><head><title>403 Forbidden</title></head></html>", {}),
    (403, b"  <HTML><H1>Access Denied</H1> Reference&#32;&#35;18 errors.edgesuite.net</HTML>", {}),
    (403, b"blocked by our web application firewall", {}),
    (503, b"<html><title>Just a moment...</title></html>", {}),
    (403, b"", {"cf_mitigated": "challenge"}),
    (405, b"<html>errors.aliyun.com</html>", {}),
]


@pytest.mark.parametrize("name", ["shop", *CCXT])
def test_a_firewall_shuts_the_address(shop: Provider, bundled: Rulebook, name: str) -> None:
    """It judges the address, whatever route was called: all of the provider is held, and longer each time."""
    provider = shop if name == "shop" else bundled.provider(name)
    for status, body, headers in DOORS:
        told = feedback(provider, "POST /order", status, body, **headers)
        assert (told.outcome, told.acted, told.full) == (Outcome.BANNED, False, ()), (status, body)
        (block,) = told.blocks
        assert (block.scope, block.kind) == (f"{provider.namespace}/ip:default", "ban")
        if block.wait is None:
            lengths = [provider.ban_length(earlier, block.first) // SECOND for earlier in (0, 1, 2, 99)]
            assert lengths == [10, 20, 40, 900]
        else:  # the file knows it, and how long it lasts
            known = {"bitget": 300, "kucoin": 30, "kucoin-futures": 30}
            assert block.wait.after // SECOND == known[name]
        told = feedback(provider, "POST /order", status, body, retry_after="77", **headers)
        assert [block.wait.after // SECOND for block in told.blocks if block.wait] == [77]


@pytest.mark.parametrize(
    ("status", "body", "outcome"),
    [
        (400, b"<html>bad request</html>", Outcome.BAD_REQUEST),
        (404, b"<html>not found</html>", Outcome.BAD_REQUEST),
        (502, b"<html>502 Bad Gateway nginx</html>", Outcome.FAILED),
        (522, b"<html>Cloudflare: connection timed out</html>", Outcome.FAILED),
        (503, b"<html>503 Service Temporarily Unavailable</html>", Outcome.OVERLOADED),
        (403, {"code": 7, "msg": "no permission"}, Outcome.BAD_REQUEST),
        (403, b"Forbidden", Outcome.BAD_REQUEST),
        (429, {"message": "You are being rate limited."}, Outcome.THROTTLED),
        (451, {"msg": "Service unavailable from a restricted location"}, Outcome.BAD_REQUEST),
    ],
)
def test_what_is_no_firewall(shop: Provider, status: int, body: Any, outcome: Outcome) -> None:
    """The exchange's own answers, and pages about the exchange, do not judge the address."""
    told = feedback(shop, "POST /order", status, body)
    assert told.outcome is outcome
    assert not [block for block in told.blocks if block.kind == "ban"]
