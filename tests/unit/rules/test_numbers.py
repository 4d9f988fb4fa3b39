"""The number that holds: the file's, the tier's, the provider's, the user's own; then what is left unused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ratekeeper.errors import RuleError
from ratekeeper.ledger.limit import SECOND, Limit
from ratekeeper.rules.call import Call
from ratekeeper.rules.provider import Provider
from ratekeeper.rules.schema import File

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
    return dict(Provider(file, tiers=tiers, overrides=overrides, learned=learned, headroom=headroom).limits)


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
    rules = Provider(file, tiers={"leak": "pro"}, overrides={"weight": (500, 0)}, headroom={"weight": 100})
    rules = rules.with_learned({"weight": (2000, MINUTE), "orders": (20, SECOND)})
    assert [rules.limits[name].usable for name in ("weight", "leak", "orders")] == [400, 20, 20]
    assert rules.plan(Call("GET", "/x")).charges[0].limit.usable == 400
