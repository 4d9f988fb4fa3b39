"""The number that holds: the file's, the tier's, the provider's, the user's own; then what is left unused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratekeeper.errors import RuleError
from ratekeeper.ledger.limit import SECOND, Limit, Window
from ratekeeper.rules.call import Request
from ratekeeper.rules.numbers import Adjustments, in_force, learn_rows
from ratekeeper.rules.provider import Provider
from ratekeeper.rules.schema import File, Learn
from ratekeeper.stores.inforce import InForce

FRAGMENT = """
[limits]
weight = { unit = "w", capacity = 1000, period = "1m", headroom = 100, tiers = { pro = 3000 } }
leak = { unit = "l", capacity = 15, refill = 33, period = "100s", window = "bucket", tiers = { pro = { capacity = 20, refill = 100 }, mid = 30 } }
orders = { unit = "o", capacity = 10, period = "1s" }

[[routes]]
match = "GET /x"
cost = { w = 1 }
"""  # noqa: E501 - TOML knows no other way

MINUTE = 60 * SECOND


@pytest.fixture
def file(file_of: Callable[[str], File]) -> File:
    """Three limits, two with tiers."""
    return file_of(FRAGMENT)


def chosen(
    file: File,
    tiers: dict[str, str],
    overrides: dict[str, tuple[int, int]],
    learned: dict[str, tuple[int, int]],
    headroom: dict[str, int | str],
) -> dict[str, Limit]:
    """The limits that hold."""
    return dict(Provider(file, adjustments=Adjustments(tiers, overrides, headroom), learned=learned).limits)


def test_tiers(file: File) -> None:
    """A tier takes the place of the number; a bucket's refill is its own, or grows with the capacity."""
    found = chosen(file, {"*": "pro"}, {}, {}, {})
    assert [found[name].capacity for name in ("weight", "leak", "orders")] == [3000, 20, 10]
    assert found["leak"].refill == 100
    assert chosen(file, {"leak": "mid"}, {}, {}, {})["leak"].refill == 66
    assert chosen(file, {"*": "pro", "leak": "mid"}, {}, {}, {})["leak"].capacity == 30


def test_own_number(file: File) -> None:
    """A number of the user's own beats file and tier, and what the provider states unless that allows less."""
    for learned, capacity in ({}, 500), ({"weight": (2000, MINUTE)}, 500), ({"weight": (300, MINUTE)}, 300):
        limit = chosen(file, {"weight": "pro"}, {"weight": (500, 0)}, learned, {})["weight"]
        assert (limit.capacity, limit.period, limit.headroom, limit.own) == (capacity, MINUTE, 0, True)
    limit = chosen(file, {}, {"weight": (100, SECOND)}, {"weight": (2400, MINUTE)}, {})["weight"]
    assert (limit.capacity, limit.period) == (2400, MINUTE), "2400 a minute are less than 100 a second"
    assert chosen(file, {}, {"leak": (5, 0)}, {}, {})["leak"].refill == 11


def test_headroom_comes_last(file: File) -> None:
    """Per cent are of the number that holds; what is stated later keeps the share."""
    assert chosen(file, {"*": "pro"}, {}, {}, {"weight": "10%"})["weight"].usable == 2700
    assert chosen(file, {}, {"weight": (500, 0)}, {}, {"weight": 50})["weight"].usable == 450
    assert chosen(file, {}, {}, {"weight": (2000, MINUTE)}, {"weight": "10%"})["weight"].usable == 1800


def test_headroom_is_exact_and_leaves_at_least_so_much(file: File) -> None:
    """A part of a unit counts as one, but not all of a limit is left; a bucket refills more slowly, too."""
    found = {share: chosen(file, {}, {}, {}, {"*": share}) for share in ("0%", "10%", "30%", "30.1%", "99.9%")}
    assert [limits["orders"].usable for limits in found.values()] == [10, 9, 7, 6, 1]
    assert [(limits["leak"].usable, limits["leak"].refill) for limits in found.values()] == [
        (15, 33), (13, 29), (10, 23), (10, 23), (1, 1),
    ]  # fmt: skip
    assert chosen(file, {}, {}, {}, {"leak": 3})["leak"].refill == 33


@pytest.mark.parametrize(
    ("tiers", "overrides", "headroom", "key", "words"),
    [
        ({"weight": "gold"}, {}, {}, "$.tiers.test.weight", "pro"),
        ({"*": "gold"}, {}, {}, "$.tiers.test.*", "mid, pro"),
        ({"orders": "pro"}, {}, {}, "$.tiers.test.orders", "leave it out"),
        ({"none": "pro"}, {}, {}, "$.tiers.test.none", "weight, leak, orders"),
        ({}, {"none": (1, 0)}, {}, "$.limits.test.none", "weight, leak, orders"),
        ({}, {"weight": (0, 0)}, {}, "$.limits.test.weight", "at least one unit"),
        ({}, {"weight": (50, 0)}, {"weight": 50}, "$.headroom.test.weight", "below 50"),
    ],
)
def test_wrong_wishes(
    file: File,
    tiers: dict[str, str],
    overrides: dict[str, tuple[int, int]],
    headroom: dict[str, int | str],
    key: str,
    words: str,
) -> None:
    """What does not exist or leaves nothing is refused, with the key and what there is."""
    with pytest.raises(RuleError, match=words) as caught:
        chosen(file, tiers, overrides, {}, headroom)
    assert caught.value.key == key


def test_wishes_outlive_learning(file: File) -> None:
    """A provider that learns keeps tiers and own numbers."""
    rules = Provider(file, adjustments=Adjustments({"leak": "pro"}, {"weight": (500, 0)}, {"weight": 100}))
    rules = rules.with_learned({"weight": (2000, MINUTE), "orders": (20, SECOND)})
    assert [rules.limits[name].usable for name in ("weight", "leak", "orders")] == [400, 20, 20]
    assert rules.plan(Request("GET", "/x")).charges[0].limit.usable == 400


# --- Limits learned from what the provider states. -------------------------------------------------------------------


LEARN = Learn(
    route="GET /info",
    rows="rateLimits",
    type="rateLimitType",
    units={"REQUEST_WEIGHT": "weight", "ORDERS": "orders"},
    interval="interval",
    number="intervalNum",
    limit="limit",
    used="",
)
LIMITS = {
    limit.name: limit
    for limit in [
        Limit("weight-1m", "weight", 2400, 60 * SECOND),
        Limit("orders-10s", "orders", 300, 10 * SECOND),
        Limit("orders-1m", "orders", 1200, 60 * SECOND),
        Limit("slots", "orders", 5, 0, Window.SLOTS),
    ]
}


def row(kind: Any, interval: Any, number: Any, limit: Any, **more: Any) -> dict[str, Any]:
    """A row as Binance writes it."""
    return {"rateLimitType": kind, "interval": interval, "intervalNum": number, "limit": limit, **more}


def learned(*rows: Any) -> dict[str, tuple[int, float]]:
    """Limit -> (capacity, seconds) of what rows state."""
    found, _ = learn_rows(list(rows), LEARN, LIMITS)
    return {name: (capacity, period / SECOND) for name, (capacity, period) in found.items()}


def test_same_interval() -> None:
    """Rows go to the limits with their interval, in any order, and other types are left alone."""
    rows = [row("ORDERS", "MINUTE", 1, 900), row("ORDERS", "SECOND", 10, 100), row("RAW_REQUESTS", "MINUTE", 5, 61000)]
    assert learned(*rows, row("REQUEST_WEIGHT", "MINUTE", 1, 6000)) == {
        "orders-10s": (100, 10),
        "orders-1m": (900, 60),
        "weight-1m": (6000, 60),
    }


def test_other_interval() -> None:
    """One row and one limit belong together although the interval differs."""
    assert learned(row("REQUEST_WEIGHT", "SECOND", 5, 200)) == {"weight-1m": (200, 5)}


def test_by_length() -> None:
    """What has no equal is paired by length of interval."""
    rows = [row("ORDERS", "SECOND", 6, 60), row("ORDERS", "SECOND", 1, 10)]
    assert learned(*rows) == {"orders-10s": (10, 1), "orders-1m": (60, 6)}
    assert learned(row("ORDERS", "MINUTE", 1, 900), row("ORDERS", "SECOND", 5, 50)) == {
        "orders-1m": (900, 60),
        "orders-10s": (50, 5),
    }


@pytest.mark.parametrize(
    "bad",
    [
        row("REQUEST_WEIGHT", "MINUTE", 1, 0),
        row("REQUEST_WEIGHT", "MINUTE", 1, -5),
        row("REQUEST_WEIGHT", "MINUTE", 1, 10**15),
        row("REQUEST_WEIGHT", "MINUTE", 1, None),
        row("REQUEST_WEIGHT", "MINUTE", 1, True),
        row("REQUEST_WEIGHT", "MINUTE", 1, 12.5),
        row("REQUEST_WEIGHT", "MINUTE", 0, 100),
        row("REQUEST_WEIGHT", "MINUTE", None, 100),
        row("REQUEST_WEIGHT", "EON", 1, 100),
        row("REQUEST_WEIGHT", None, 1, 100),
        row("REQUEST_WEIGHT", "DAY", 5000, 100),
        row(["REQUEST_WEIGHT"], "MINUTE", 1, 100),
        {},
        None,
        "text",
    ],
)
def test_absurd_rows(bad: Any) -> None:
    """Absurd rows are ignored, and the good ones beside them are not."""
    assert learned(bad) == {}
    assert learned(bad, row("ORDERS", "SECOND", 10, 7)) == {"orders-10s": (7, 10)}


@pytest.mark.parametrize("rows", [None, "text", 5, {}, []])
def test_no_rows(rows: Any) -> None:
    """An answer without rows teaches nothing."""
    assert learn_rows(rows, LEARN, LIMITS) == ({}, {})


def test_named_limit_and_counter() -> None:
    """An answer may be its own row, name no type, write numbers as text, and count."""
    learn = Learn(route="POST /info", rows="", limit_name="weight-1m", limit="cap", used="used")
    assert learn_rows({"cap": "500", "used": 20}, learn, LIMITS) == (
        {"weight-1m": (500, 60 * SECOND)},
        {"weight-1m": 20},
    )


def test_counter_only() -> None:
    """Rows may count without stating a limit."""
    learn = msgspec.structs.replace(LEARN, limit="", used="count")
    rows = [row("ORDERS", "SECOND", 10, 300, count=12), row("ORDERS", "MINUTE", 1, 1200, count=40)]
    assert learn_rows(rows, learn, LIMITS) == ({}, {"orders-10s": 12, "orders-1m": 40})


KINDS = """
[limits]
weight = { unit = "w", capacity = 1000, period = "1m", headroom = 99 }
leak = { unit = "l", capacity = 15, refill = 33, period = "100s", window = "bucket" }
life = { unit = "n", capacity = 10000, refill = 1, period = "10s", window = "bucket", lifetime = true }
open = { unit = "s", capacity = 10, window = "slots" }

[default]
cost = { w = 1, l = 1, n = 1, s = 1 }
confidence = "?"
"""
NAMES = ("weight", "leak", "life", "open")
NUMBERS = st.tuples(st.integers(0, 10**6), st.sampled_from([0, SECOND, 60 * SECOND, 100 * SECOND]))


@pytest.fixture(scope="module")
def kinds(file_of: Callable[[str], File]) -> File:
    """A limit of each kind whose numbers follow the capacity in a way of its own."""
    return file_of(KINDS)


@given(
    learned=st.dictionaries(st.sampled_from([each + end for each in NAMES for end in ("", "/ip:default")]), NUMBERS),
    own=st.dictionaries(st.sampled_from(NAMES), st.tuples(st.integers(1, 2000), st.just(0))),
    share=st.integers(0, 90),
)
def test_rules_and_stores_agree(
    kinds: File, learned: dict[str, tuple[int, int]], own: dict[str, tuple[int, int]], share: int
) -> None:
    """A plan made after the provider stated its numbers holds the limits that a store finds for a plan made before."""
    rules = Provider(kinds, adjustments=Adjustments(overrides=own, headroom={"*": f"{share}%"}))
    before, after = (each.plan(Request("GET", "/x")).charges for each in (rules, rules.with_learned(learned)))
    for old, new in zip(before, after, strict=True):
        found = InForce().of(old, {"test": learned})
        assert asdict(found) == asdict(new.limit)
        assert asdict(InForce().of(new, {"test": learned})) == asdict(new.limit), "stated twice is stated once"


def test_in_force() -> None:
    """A ledger's own number goes first; a number of the user's own gives way to less; nonsense is not believed."""
    limit = Limit("orders", "orders", 100, SECOND, headroom=10)
    assert in_force(limit, "orders/ip:a", {}) is limit
    assert in_force(limit, "orders/ip:a", {"orders": (50, 0), "orders/ip:a": (200, 0)}).usable == 180
    assert in_force(limit, "orders/ip:b", {"orders": (50, 0), "orders/ip:a": (200, 0)}).usable == 45
    assert in_force(limit, "orders", {"orders": (0, SECOND)}) is limit
    own = Limit("orders", "orders", 100, SECOND, own=True)
    assert in_force(own, "orders", {"orders": (300, SECOND)}) is own
    assert in_force(own, "orders", {"orders": (300, 10 * SECOND)}).period == 10 * SECOND
    slots = Limit("open", "slots", 10, 0, Window.SLOTS, own=True)
    assert in_force(slots, "open", {"open": (4, 0)}).capacity == 4
    leak = Limit("leak", "l", 10, SECOND, Window.BUCKET, refill=1)
    assert in_force(leak, "leak", {"leak": (5, 0)}).refill == 1, "it never stops"
    assert (
        in_force(
            Limit("life", "n", 10, SECOND, Window.BUCKET, refill=1, lasting=True), "life", {"life": (40, 0)}
        ).refill
        == 1
    )
