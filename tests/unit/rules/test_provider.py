"""Plans: what a call spends, on whose ledgers, and what stops it."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from ratekeeper.ledger.limit import SECOND
from ratekeeper.rules.call import Answer, Identity, Plan, Priority, Request
from ratekeeper.rules.provider import Provider
from ratekeeper.rules.reading import digest

FRAGMENT = """
[owners]
account.header = "x-key"
instrument.value = "symbol"

[limits]
weight-1m = { unit = "weight", capacity = 1000, period = "1m", window = "fixed", headroom = 100 }
orders-10s = { unit = "orders", capacity = 50, period = "10s", scope = ["account", "instrument"] }
each-1m = { unit = "each", capacity = 10, period = "1m", scope = ["ip", "endpoint"] }
leak = { unit = "leak", capacity = 20, refill = 5, period = "1s", window = "bucket" }

[default]
cost = { weight = 20 }

[[routes]]
match = "GET /time"
class = "market"
cost = { weight = 1 }

[[routes]]
match = "GET /klines"
class = "market"
cost = { weight = { by = "limit", bands = [[100, 1]], above = 5, missing = 1 } }

[[routes]]
match = "POST /order"
class = "order"
cost = { weight = 1, orders = 1 }

[[routes]]
match = "DELETE /order"
class = "cancel"
cost = { weight = 0 }

[[routes]]
match = "GET /each/*"
cost = { each = 1 }

[[routes]]
match = "GET /account"
class = "account"
cost = { weight = 5 }

[signing]
timestamp = "timestamp"
signature = "signature"
window = "recvWindow"
"""


@pytest.fixture
def provider(provider_of: Callable[[str], Provider]) -> Provider:
    """The provider of this page."""
    return provider_of(FRAGMENT)


def spent(plan: Plan) -> dict[str, int]:
    """Key -> cost of a plan."""
    return {charge.key: charge.cost for charge in plan.charges}


def test_plain(provider: Provider) -> None:
    """A plain route names its limit, its owner, its class and all that may stop it."""
    plan = provider.plan(Request("GET", "/time"))
    assert spent(plan) == {"test/weight-1m/ip:default": 1}
    assert plan.route == "GET /time"
    assert plan.scopes == ("test", "test/class:market", "test/ip:default")
    assert plan.priority is Priority.LOW


def test_plans_are_shared(provider: Provider) -> None:
    """The same call gives the same plan object; another cost or owner another one."""
    one, two = Identity(), Identity(egress="vpn")
    assert provider.plan(Request("GET", "/time"), one) is provider.plan(Request("GET", "/time", {"x": 1}), one)
    assert provider.plan(Request("GET", "/klines", {"limit": 5})) is provider.plan(
        Request("GET", "/klines", {"limit": 6})
    )
    assert spent(provider.plan(Request("GET", "/klines", {"limit": 500}))) == {"test/weight-1m/ip:default": 5}
    assert spent(provider.plan(Request("GET", "/time"), two)) == {"test/weight-1m/ip:vpn": 1}
    assert spent(provider.plan(Request("GET", "/time"), one)) == {"test/weight-1m/ip:default": 1}
    assert provider.plan(Request("GET", "/time"), Identity()) is provider.plan(Request("GET", "/time"), one)


def test_several_owners(provider: Provider) -> None:
    """Owners are joined in the order of the limit's scope, and the key itself is nowhere in the plan."""
    plan = provider.plan(Request("POST", "/order", {"symbol": "BTC"}, headers={"X-Key": "k1"}), Identity(secret=b"s"))
    account = f"account:{digest(b's', 'k1')}"
    assert spent(plan) == {"test/weight-1m/ip:default": 1, f"test/orders-10s/{account},instrument:BTC": 1}
    assert set(plan.scopes) == {"test", "test/class:order", "test/ip:default", f"test/{account}", "test/instrument:BTC"}
    assert "k1" not in repr(plan)


def test_free_call_is_still_stopped(provider: Provider) -> None:
    """What costs nothing charges nothing, yet a ban of its address or a pause of its class stops it."""
    plan = provider.plan(Request("DELETE", "/order", headers={"x-key": "k1"}))
    assert plan.charges == ()
    assert "test/ip:default" in plan.scopes
    assert "test/class:cancel" in plan.scopes
    assert plan.priority is Priority.CRITICAL


def test_private_calls_carry_their_account(provider: Provider) -> None:
    """A pause of an account stops its reading calls as well, though they spend only on the address."""
    plan = provider.plan(Request("GET", "/account"), Identity(account="main"))
    assert "test/account:main" in plan.scopes
    assert spent(plan) == {"test/weight-1m/ip:default": 5}


def test_endpoint_below_a_star(provider: Provider) -> None:
    """Below `/*` every real path is an endpoint of its own."""
    assert spent(provider.plan(Request("GET", "/each/a"))) == {"test/each-1m/ip:default,endpoint:GET/each/a": 1}
    assert spent(provider.plan(Request("GET", "/each/b"))) == {"test/each-1m/ip:default,endpoint:GET/each/b": 1}
    (key,) = spent(provider.plan(Request("GET", "/each/bot12:Ab-C/b")))  # a token in a path gets no name of its own
    assert "Ab-C" not in key
    assert key.startswith("test/each-1m/ip:default,endpoint:GET/each/~")


def test_unknown_route(provider: Provider) -> None:
    """A call that no route knows costs the stated default and has no route."""
    plan = provider.plan(Request("GET", "/new"))
    assert plan.route == ""
    assert spent(plan) == {"test/weight-1m/ip:default": 20}
    assert plan.priority is Priority.NORMAL


def test_priorities_fall_strictly(provider: Provider) -> None:
    """cancel goes before order before account before market data."""
    calls = [("DELETE", "/order"), ("POST", "/order"), ("GET", "/account"), ("GET", "/time")]
    classes = [provider.plan(Request(*call)).priority for call in calls]
    assert classes == [Priority.CRITICAL, Priority.HIGH, Priority.NORMAL, Priority.LOW]


def test_learned(provider: Provider) -> None:
    """Learned numbers change the limits and plans of a new provider; keys stay, and so does the old provider."""
    call = Request("GET", "/time")
    new = provider.with_learned({"weight-1m": (200, 5 * SECOND), "leak": (40, SECOND), "nonsense": (1, 1)})
    (charge,) = new.plan(call).charges
    assert (charge.key, charge.limit.capacity, charge.limit.period) == ("test/weight-1m/ip:default", 200, 5 * SECOND)
    assert charge.limit.headroom == 20
    assert (new.limits["leak"].capacity, new.limits["leak"].refill) == (40, 10)
    assert provider.plan(call).charges[0].limit.capacity == 1000
    assert new.with_learned({"leak": (60, SECOND)}).limits["weight-1m"].capacity == 200


@pytest.mark.parametrize(
    ("params", "until"),
    [
        ({"timestamp": 1_795_220_621_000, "signature": "s"}, 1_795_220_626_000),
        ({"timestamp": "1795220621000", "signature": "s", "recvWindow": "10000"}, 1_795_220_631_000),
        ({"timestamp": ["1795220621000"], "signature": ["s"], "recvWindow": ["999999"]}, 1_795_220_681_000),
        ({"timestamp": 1_795_220_621_000_000, "signature": "s"}, 1_795_220_626_000),
        ({"timestamp": "soon", "signature": "s"}, None),
        ({"timestamp": 1_795_220_621_000}, None),
        ({"signature": "s"}, None),
        (None, None),
    ],
)
def test_signed_until(provider: Provider, params: dict[str, object] | None, until: int | None) -> None:
    """A signature goes stale at its timestamp plus its window, which is bounded; no signature, no instant."""
    expected = None if until is None else until * 1_000_000
    assert provider.signed_until(Request("POST", "/order", params)) == expected


BATCH = """
[owners]
account.header = "x-key"
pair.value = ["pair", "body.*.pair"]

[limits]
pair-1s = { unit = "orders", capacity = 20, period = "1s", scope = ["account", "pair"] }
all-1s = { unit = "orders", capacity = 100, period = "1s", scope = "account" }

[[routes]]
match = "POST /batch"
class = "order"
cost = { orders = { count = "body", each = 1, missing = 20 } }
ok = { orders = 0 }

[[routes]]
match = "GET /limits"
class = "account"

[[routes]]
match = "GET /info"
class = "market"

[[learn]]
route = "GET /limits"
rows = ""
limit_name = "all-1s"
limit = "mine"

[[learn]]
route = "GET /info"
rows = ""
limit_name = "pair-1s"
limit = "all"
"""


def test_cost_of_several_owners(provider_of: Callable[[str], Provider]) -> None:
    """A batch is charged to each owner by its share, rounded up, and to what they have in common in full."""
    provider = provider_of(BATCH)
    plan = provider.plan(Request("POST", "/batch", None, [{"pair": "A"}, {"pair": "B"}, {"pair": "A"}]))
    pair = "test/pair-1s/account:anonymous,pair:"
    assert spent(plan) == {f"{pair}A": 2, f"{pair}B": 1, "test/all-1s/account:anonymous": 3}
    assert {"test/pair:A", "test/pair:B"} <= set(plan.scopes)
    assert provider.plan(Request("POST", "/batch", None, [{"pair": "B"}, {"pair": "A"}, {"pair": "A"}])) is plan
    told = provider.feedback(plan, Answer(200, {}), now=0)
    assert told.actual == {"test/all-1s/account:anonymous": 0}, "whose share changed is not said"
    unnamed = provider.plan(Request("POST", "/batch", None, [{}, {"pair": "A"}]))
    assert spent(unnamed) == {f"{pair}A": 2, "test/all-1s/account:anonymous": 2}


def test_limits_of_one_ledger(provider_of: Callable[[str], Provider]) -> None:
    """What is learned for one owner holds for that owner alone, before what is learned for all."""
    provider = provider_of(BATCH).with_learned(
        {"pair-1s": (50, SECOND), "pair-1s/account:anonymous,pair:A": (30, SECOND), "gone/account:x": (1, 1)}
    )
    plan = provider.plan(Request("POST", "/batch", None, [{"pair": "A"}, {"pair": "B"}]))
    assert [charge.limit.capacity for charge in plan.charges] == [30, 50, 100]
    assert [share.learned for share in provider.explain(Request("POST", "/batch", {"pair": "A"})).limits] == [
        True,
        False,
    ]


def test_who_is_spoken_of(provider_of: Callable[[str], Provider]) -> None:
    """A body that an account asks for speaks of that account, a public one of all; only the public one can be asked for."""
    provider = provider_of(BATCH)
    told = provider.feedback(provider.plan(Request("GET", "/limits")), Answer(200, {}, b'{"mine":70}'), now=0)
    assert told.learned == {"all-1s/account:anonymous": (70, SECOND)}
    told = provider.feedback(provider.plan(Request("GET", "/info")), Answer(200, {}, b'{"all":70}'), now=0)
    assert told.learned == {"pair-1s": (70, SECOND)}
    assert provider.learn_route == ("GET", "/info")


def test_ban_length(provider: Provider) -> None:
    """Bans without a stated end double from two minutes to three days."""
    lengths = [provider.ban_length(earlier) // SECOND for earlier in (0, 1, 2, 50, 10_000)]
    assert lengths == [120, 240, 480, 259_200, 259_200]


def test_explain(provider: Provider) -> None:
    """An explanation has every limit with cost, scope and provenance, and says what was learned."""
    found = provider.with_learned({"weight-1m": (200, SECOND)}).explain(Request("POST", "/order", {"symbol": "A"}))
    assert [(share.name, share.cost, share.capacity, share.learned) for share in found.limits] == [
        ("weight-1m", 1, 200, True),
        ("orders-10s", 1, 50, False),
    ]
    assert found.limits[1].scope == ["account", "instrument"]
    assert (found.known, found.route_class, found.priority) == (True, "order", "high")
    origin = found.cost
    assert (origin.source, str(origin.date), origin.confidence) == ("S", "2026-11-20", "D")
    assert not provider.explain(Request("GET", "/new")).known


def test_threads_agree(provider: Provider) -> None:
    """Two identities asked for by several threads at once never get each other's plan."""
    identities = [Identity(egress=name) for name in "abcd"]
    wrong: list[str] = []

    def ask(identity: Identity) -> None:
        wanted = f"test/weight-1m/ip:{identity.egress}"
        wrong.extend(
            charge.key
            for _ in range(2000)
            for charge in provider.plan(Request("GET", "/time"), identity).charges
            if charge.key != wanted
        )

    threads = [threading.Thread(target=ask, args=(identity,)) for identity in identities]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
