"""What providers with bodies of their own share: routes, errors, candles."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ratekeeper.apps.emulator.accounting import Meter
from ratekeeper.apps.emulator.bitget import Bitget
from ratekeeper.apps.emulator.bodied import Bodied, candle_rows, flat, named, objects
from ratekeeper.apps.emulator.incoming import Arrival, Failure, Fault, Incoming
from ratekeeper.apps.emulator.market import USDM_SYMBOLS
from ratekeeper.apps.emulator.options import Options
from ratekeeper.apps.emulator.orderly import Orderly
from ratekeeper.apps.emulator.tariff import Tariff
from ratekeeper.rules.book import Rulebook
from ratekeeper.rules.call import Answer, Call, Outcome
from ratekeeper.rules.provider import Provider

NOW = 1_800_000_000_000
BTC = USDM_SYMBOLS["BTCUSDT"]
VENUES: dict[str, type[Orderly] | type[Bitget]] = {"orderly": Orderly, "bitget": Bitget}


def venue(name: str) -> tuple[Provider, Bodied, Tariff]:
    """A venue and the rules that it keeps."""
    provider, options = Rulebook.load().provider(name), Options(provider=name)
    tariff = Tariff(provider, options)
    return provider, VENUES[name](tariff, options), tariff


@pytest.mark.parametrize("name", VENUES)
def test_no_error_of_a_mistake_looks_like_a_refusal(name: str) -> None:
    """A bot that sends a wrong order is told so, and not that it is throttled or banned."""
    provider, shop, tariff = venue(name)
    plan, _ = tariff.plan(Call("POST", "/v1/order"), "127.0.0.1", "a")
    for word in shop.words.values():
        body = json.dumps(shop.failed(word, NOW)).encode()
        told = provider.feedback(plan, Answer(word.status, {}, body), now=NOW * 1_000_000)
        assert told.outcome is Outcome.BAD_REQUEST, word


@pytest.mark.parametrize("name", VENUES)
def test_good_answers_do_not_look_like_refusals(name: str) -> None:
    """The envelope of a good answer is a good answer to the rules."""
    provider, shop, tariff = venue(name)
    plan, _ = tariff.plan(Call("GET", "/v1/orders"), "127.0.0.1", "a")
    body = json.dumps(shop.wrapped({"rows": []}, NOW)).encode()
    assert provider.feedback(plan, Answer(200, {}, body), now=NOW * 1_000_000).outcome is Outcome.OK


def test_every_fault_of_the_desk_has_a_word() -> None:
    """Faults of an unknown code are told as wrong parameters."""
    _, shop, _ = venue("bitget")
    assert shop.said(Fault(-1121, "Invalid symbol."), {"symbol": "X"}).text == "Parameter X does not exist"
    assert shop.said(Fault(-1013, "Filter failure: NOTIONAL"), {}).code == "45110"
    assert shop.said(Fault(-99, "?"), {}) == shop.words[-1100]


def test_a_path_without_rules_and_body_is_not_found() -> None:
    """ccxt tells by that that an account is no unified one."""
    _, shop, tariff = venue("bitget")
    call = Call("GET", "/api/v3/account/settings")
    plan, bills = tariff.plan(call, "127.0.0.1", "a")
    arrival = Arrival(call.method, call.path, {}, plan, bills, "127.0.0.1", "k1", "a", NOW * 1_000_000)
    with pytest.raises(Failure) as missing:
        shop.carry_out(arrival, Meter())
    assert missing.value.status == 404


def test_plain_values_of_a_body_become_parameters() -> None:
    """Lists and objects stay where they are."""
    assert flat({"a": 1, "b": True, "c": "x", "d": [1], "e": None, "f": 0.5}) == {
        "a": "1",
        "b": "true",
        "c": "x",
        "f": "0.5",
    }
    assert flat([1]) == {}


def test_parameters_get_the_names_of_the_desk() -> None:
    """What is not there is not made up."""
    asked = named(Incoming({"size": "1", "x": "2"}, NOW, "a"), [("size", "quantity"), ("price", "price")], side="BUY")
    assert asked.params == {"quantity": "1", "side": "BUY"}


@pytest.mark.parametrize("tree", [None, {}, {"orders": []}, {"orders": [{}] * 4}, [1]])
def test_a_batch_of_the_wrong_size_is_a_mistake(tree: Any) -> None:
    """None, too many, or no list at all."""
    with pytest.raises(Fault):
        objects(Incoming({}, NOW, "a", tree), "orders", 3)


def test_candles_are_bounded_as_asked() -> None:
    """The last ones, those from a start, those until an end; an unknown interval is a mistake."""

    def rows(**params: str) -> list[int]:
        asked = Incoming(params, NOW + 1, "a")
        return [row[0] for row in candle_rows(asked, BTC, "1m", start="from", end="to", most=5)]

    assert rows(limit="2") == [NOW - 60_000, NOW]
    assert rows(limit="99") == [NOW - n * 60_000 for n in (4, 3, 2, 1, 0)]
    assert rows(**{"from": str(NOW - 120_000), "to": str(NOW - 60_000)}) == [NOW - 120_000, NOW - 60_000]
    with pytest.raises(Fault):
        candle_rows(Incoming({}, NOW, "a"), BTC, "7m", start="from", end="to", most=5)
