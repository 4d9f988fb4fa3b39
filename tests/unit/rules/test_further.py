"""Limits of the user's own beside those of a rule file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ratekeeper.errors import RuleError
from ratekeeper.ledger.limit import SECOND, Window
from ratekeeper.rules.book import Rulebook
from ratekeeper.rules.call import Answer, Outcome, Request
from ratekeeper.rules.numbers import Adjustments, Further
from ratekeeper.rules.provider import Provider
from ratekeeper.rules.schema import File

FRAGMENT = """
[owners]
account.header = "x-key"

[limits]
weight-1m = { unit = "weight", capacity = 1000, period = "1m", headers.limit = "x-limit" }
orders-1s = { unit = "orders", capacity = 10, period = "1s", scope = "account" }
orders-1m = { unit = "orders", capacity = 100, period = "1m", scope = "account" }
messages-1s = { unit = "messages", capacity = 5, period = "1s" }

[default]
cost = { weight = 1 }
confidence = "?"

[[routes]]
match = "POST /order"
class = "order"
cost = { orders-1s = 1, orders-1m = 3 }
failed = { orders = 0 }

[[routes]]
match = ["GET /book", "GET /book/{id}", "GET /list"]
cost = { weight = { by = "limit", bands = [[100, 2]], above = 20, missing = 5 } }

[[routes]]
match = "WS-SEND /*"
cost = { messages = 1 }

[[learn]]
route = "GET /list"
rows = "rows"
type = "type"
units = { ORDERS = "orders" }
interval = "every"
limit = "limit"
"""


@pytest.fixture
def file(file_of: Callable[[str], File]) -> File:
    """The rules of this page."""
    return file_of(FRAGMENT)


def made(file: File, **further: Further) -> Provider:
    """The provider with further limits; names with underscores."""
    return Provider(file, adjustments=Adjustments(further={k.replace("_", "-"): v for k, v in further.items()}))


def costs(provider: Provider, call: str, name: str = "mine", **params: Any) -> dict[str, int]:
    """What a call costs on the further limit, by scope."""
    plan = provider.plan(Request(*call.split(), params))
    return {charge.key.split("/", 2)[2]: charge.cost for charge in plan.charges if charge.limit.name == name}


def test_requests_count_each_call_as_one(file: File) -> None:
    """Known or not; a message of a websocket is no request."""
    provider = made(file, mine=Further("requests", 80, "1m", scope=("account",)))
    for call in ("POST /order", "GET /book", "GET /unknown"):
        assert costs(provider, call, limit=1000) == {"account:anonymous": 1}
    assert costs(provider, "WS-SEND /x") == {}
    limit = provider.limits["mine"]
    assert (limit.capacity, limit.period, limit.window) == (80, 60 * SECOND, Window.SLIDING)


def test_another_unit_is_counted_as_the_rules_count_it(file: File) -> None:
    """By its unit, or by the names of its limits; what is not charged after all is not charged here either."""
    weight, orders = (made(file, mine=Further(unit, 50, "1s")) for unit in ("weight", "orders"))
    assert costs(weight, "GET /book", limit=500) == {"ip:default": 20}
    assert costs(weight, "GET /unknown") == {"ip:default": 1}
    assert costs(weight, "POST /order") == {}
    assert costs(orders, "POST /order") == {"ip:default": 3}
    plan = orders.plan(Request("POST", "/order"))
    assert orders.feedback(plan, Answer(400, {}), now=0).actual == {charge.key: 0 for charge in plan.charges}


def test_some_routes(file: File) -> None:
    """Patterns name them, one by one also where the rules list several together; calls that no route knows are none."""
    provider = made(file, mine=Further("requests", 8, "1s", routes=("GET /book*",)))
    assert costs(provider, "GET /book") == costs(provider, "GET /book/7") == {"ip:default": 1}
    for call in ("GET /list", "POST /order", "GET /unknown"):
        assert costs(provider, call) == {}
    assert provider.plan(Request("GET", "/list")).charges[0].cost == 5, "the rules' own costs stay"


def test_the_provider_does_not_speak_of_it(file: File) -> None:
    """What it states changes its own limits, and a refusal means them."""
    provider = made(file, mine=Further("orders", 5, "1s", place="r.toml:3"))
    plan = provider.plan(Request("POST", "/order"))
    assert {charge.limit.name for charge in plan.charges} == {"orders-1s", "orders-1m", "mine"}
    told = provider.feedback(plan, Answer(429, {}), now=0)
    assert (told.outcome, told.full) == (Outcome.THROTTLED, ("test/orders-1s/account:anonymous",))
    rows = b'{"rows": [{"type": "ORDERS", "every": "1s", "limit": 8}]}'
    told = provider.feedback(provider.plan(Request("GET", "/list")), Answer(200, {}, rows), now=0)
    assert told.learned == {"orders-1s": (8, SECOND)}
    assert provider.with_learned(told.learned).limits["mine"].capacity == 5
    assert provider.limits["mine"].place == "your own limit, by r.toml:3"


def test_headroom_and_tiers_reach_it(file: File) -> None:
    """At least the wanted part of each limit is left, however small it is."""
    adjustments = Adjustments(headroom={"*": "30%", "mine": "12.5%"}, further={"mine": Further("requests", 8, "1s")})
    limits = Provider(file, adjustments=adjustments).limits
    assert {name: limit.usable for name, limit in limits.items()} == {
        "weight-1m": 700,
        "orders-1s": 7,
        "orders-1m": 70,
        "messages-1s": 3,
        "mine": 7,
    }


@pytest.mark.parametrize(
    ("name", "limit", "key", "words"),
    [
        ("orders-1s", Further("requests", 5, "1s"), "", "has a limit of that name. Write it without unit"),
        ("orders", Further("requests", 5, "1s"), "", "no name of a unit"),
        ("My Limit", Further("requests", 5, "1s"), "", "use a-z, 0-9, dots and dashes"),
        ("mine", Further("order", 5, "1s"), ".unit", "counts no 'order'. Write unit = 'requests'"),
        ("mine", Further("requests", 5, ""), "", "needs a period"),
        ("mine", Further("requests", 5, "0s"), "", "a period from 1ms to 366d"),
        ("mine", Further("requests", 10**13, "1s"), "", "at most 1,000,000,000,000 units"),
        ("mine", Further("requests", 5, "1s", scope=("accuont",)), ".scope", "unknown owner 'accuont'. Use one"),
        ("mine", Further("requests", 5, "1s", routes=("GET /bok",)), ".routes", "Did you mean 'GET /book'?"),
    ],
)
def test_what_does_not_fit(file: File, name: str, limit: Further, key: str, words: str) -> None:
    """One error names the key and the remedy."""
    with pytest.raises(RuleError, match=words) as caught:
        Provider(file, adjustments=Adjustments(further={name: limit}))
    assert caught.value.key == f"$.limits.test.{name}{key}"


def test_every_bundled_file_takes_some() -> None:
    """Whatever it counts, and however: each call that is known is one request, and costs what it cost before."""
    adjustments = Adjustments(further={"mine": Further("requests", 80, "1m", scope=("account",))})
    names = Rulebook.load().names()
    plain, other = Rulebook.load(), Rulebook.load(adjustments=dict.fromkeys(names, adjustments))
    for name in names:
        before, after = plain.provider(name), other.provider(name)
        for rule in before.file.routes:
            match = rule.match if isinstance(rule.match, str) else rule.match[0]
            request = Request(*match.split(" ", 1))
            old, new = before.plan(request), after.plan(request)
            assert old.route == new.route
            own = [charge for charge in new.charges if charge.limit.name == "mine"]
            assert [charge.cost for charge in own] == ([] if match.startswith("WS") else [1])
            assert tuple(charge for charge in new.charges if charge not in own) == old.charges
