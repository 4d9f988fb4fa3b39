"""What an answer changes for everybody: bans that grow, limits that were stated, numbers of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ratekeeper import Event, Gate, Policies, Retry
from ratekeeper.ledger.limit import SECOND
from ratekeeper.rules.book import Rulebook
from ratekeeper.rules.numbers import Adjustments

RULES = """
format = 1
name = "harsh"
title = "A provider that bans"
hosts = ["harsh.test"]
source = "T"

[sources]
T = { title = "made for these tests", read = 2026-11-20, confidence = "D" }

[owners]
account.header = "x-key"

[limits.calls-1m]
unit = "calls"
capacity = 100
period = "1m"
scope = "ip"
headers.limit = "x-limit"

[limits.orders-1m]
unit = "orders"
capacity = 5
period = "1m"
scope = "account"
headers = { limit = "x-orders", remaining = "x-left" }

[default]
cost = { calls = 1 }

[[routes]]
match = "POST /order"
class = "order"
cost = { orders = 1 }

[ban]
first = "2m"
factor = 3
longest = "10m"

[[refusals]]
status = [418]
outcome = "banned"
block = "ip"
"""
IP = "harsh/ip:default"


@pytest.fixture
def harsh(tmp_path: Path) -> Path:
    """The rule file."""
    path = tmp_path / "harsh.toml"
    path.write_text(RULES)
    return path


@pytest.fixture(params=["memory://", "host://"])
def gate(request: pytest.FixtureRequest, harsh: Path, tmp_path: Path) -> Iterator[Gate]:
    """A gate on either store of one machine."""
    with Gate(request.param, rules=[harsh], home=tmp_path / "home") as made:
        yield made


def banned(gate: Gate) -> list[int]:
    """Seconds of the bans in force."""
    return [(state.length or 0) // SECOND for state in gate.store.blocks.states() if state.kind == "ban"]


def answered(gate: Gate, status: int, **headers: str) -> None:
    """One call and its answer."""
    with gate.permit("harsh", "GET", "/x") as permit:
        permit.settle(status, {name.replace("_", "-"): value for name, value in headers.items()})


def test_bans_grow_for_repeaters(gate: Gate) -> None:
    """A ban without a stated end lasts longer each time, up to the longest."""
    found = []
    for _ in range(4):
        answered(gate, 418)
        found += banned(gate)
        gate.unblock(IP)
    assert found == [120, 360, 600, 600]


def test_calls_under_way_are_one_ban(gate: Gate) -> None:
    """Ten answers of one ban are one step of the ladder, and one event."""
    events: list[Event] = []
    gate.on(events.append)
    with ExitStack() as stack:
        permits = [stack.enter_context(gate.permit("harsh", "GET", "/x")) for _ in range(10)]
        for permit in permits:
            permit.settle(418, {})
    assert banned(gate) == [120]
    assert [event.kind for event in events] == ["banned"]


def test_a_stated_end_goes_before_the_ladder(gate: Gate) -> None:
    """Where the provider says how long, that holds, and no step is taken."""
    answered(gate, 418, retry_after="30")
    assert banned(gate) == [30]
    gate.unblock(IP)
    answered(gate, 418)
    assert banned(gate) == [120]


def test_one_stated_end_is_one_event(gate: Gate) -> None:
    """Answers that tell the same end are one event; a later end is another."""
    events: list[Event] = []
    gate.on(events.append)
    with ExitStack() as stack:
        permits = [stack.enter_context(gate.permit("harsh", "GET", "/x")) for _ in range(6)]
        for permit in permits[:5]:
            permit.settle(418, {"Retry-After": "30"})
        permits[5].settle(418, {"Retry-After": "90"})
    assert [event.fields["seconds"] // 1 for event in events if event.kind == "banned"] == [30, 90]
    assert banned(gate) == [90]


def test_the_ladder_outlives_a_gate(harsh: Path, tmp_path: Path) -> None:
    """Another process, or the next one, goes on where the last one stood."""
    home = tmp_path / "home"
    for expected in (120, 360):
        with Gate("host://", rules=[harsh], home=home) as gate:
            answered(gate, 418)
            assert banned(gate) == [expected]
            gate.unblock(IP)


def capacity(gate: Gate, key: str) -> int:
    """Of a ledger, as the store keeps it."""
    return next(view.limit.capacity for view in gate.read().ledgers if view.key == key)


def ordered(gate: Gate, account: str, **headers: str) -> None:
    """One order of an account and its answer."""
    with gate.permit("harsh", "POST", "/order", account=account) as permit:
        permit.settle(200, {name.replace("_", "-"): value for name, value in headers.items()})


def test_what_is_stated_to_one_account_is_not_anothers(gate: Gate) -> None:
    """Each account has the capacity that its own answers stated."""
    ordered(gate, "a", x_orders="50")
    ordered(gate, "b")
    ordered(gate, "a")
    assert [capacity(gate, f"harsh/orders-1m/account:{name}") for name in "ab"] == [50, 5]


@pytest.mark.parametrize(("stated", "holds"), [("400", 40), ("30", 30)])
def test_an_own_number_gives_way_only_to_a_lower_one(harsh: Path, stated: str, holds: int) -> None:
    """What the user allows is not raised by the provider, in the store neither."""
    with Gate("memory://", rules=[harsh]) as gate:
        gate.plans.book = Rulebook.load(
            extra=[harsh], adjustments={"harsh": Adjustments(overrides={"calls-1m": (40, 0)})}
        )
        for _ in range(3):
            answered(gate, 200, x_limit=stated)
        assert capacity(gate, "harsh/calls-1m/ip:default") == holds


def test_nothing_left_is_weighed_not_believed(gate: Gate) -> None:
    """An answer that shows nothing left counts what it shows, and not a unit more."""
    events: list[Event] = []
    gate.on(events.append)
    with ExitStack() as stack:
        permits = [stack.enter_context(gate.permit("harsh", "POST", "/order", account="a")) for _ in range(5)]
        for left, permit in enumerate(reversed(permits)):
            permit.settle(200, {"x-left": str(left)})
    assert [view.used for view in gate.read().ledgers if "orders" in view.key] == [5]
    assert events == []


def test_stated_limits_are_written_once(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that states what is known already is no news for the store."""
    told: list[object] = []
    learn: Callable[..., bool] = gate.store.learn
    monkeypatch.setattr(gate.store, "learn", lambda *args: told.append(args) or learn(*args))
    for _ in range(3):
        ordered(gate, "a", x_orders="50")
    assert len(told) == 1


# --- refusals that no file lists ---------------------------------------------------------------------------------------

PAGE = b"<html><title>Attention Required! | Cloudflare</title></html>"


def said(gate: Gate, status: int, body: bytes, **headers: str) -> None:
    """One order and its answer."""
    with gate.permit("harsh", "POST", "/order", account="a") as permit:
        permit.settle(status, {name.replace("_", "-"): value for name, value in headers.items()}, body)


def held(gate: Gate, kind: str) -> dict[str, float]:
    """Seconds of the blocks of one kind, by what they hold."""
    states = [state for state in gate.store.blocks.states() if state.kind == kind]
    return {state.scope.partition("/")[2]: (state.length or 0) / SECOND for state in states}


def test_an_unlisted_refusal_is_told_once(gate: Gate) -> None:
    """And names what the file could list; another refusal is told as well."""
    events: list[Event] = []
    gate.on(events.append)
    for code in (7, 7, 8):
        said(gate, 400, b'{"code":%d,"msg":"system is busy, please try again"}' % code)
        gate.unblock("harsh/orders-1m/account:a")
    told = [event for event in events if event.kind == "unlisted refusal"]
    assert [event.fields["refusal"] for event in told] == ["HTTP 400 with code 7", "HTTP 400 with code 8"]
    assert told[0].fields["outcome"] == "overloaded"
    assert told[0].message.startswith("POST /order got an error that the rule file does not list, taken as overloaded")
    said(gate, 400, b'{"code":9,"msg":"insufficient balance"}')
    said(gate, 500, b"")
    assert [event.kind for event in events].count("unlisted refusal") == 2


def test_an_overload_holds_for_a_moment(gate: Gate) -> None:
    """What the call was charged on, and nothing else; the limit is not taken for used up."""
    said(gate, 400, b'{"msg":"system is busy"}')
    assert held(gate, "throttle") == {"orders-1m/account:a": 1.0}
    assert [view.used for view in gate.read().ledgers if "orders" in view.key] == [1]


def test_an_overload_holds_no_longer_than_the_users_backoff(harsh: Path) -> None:
    """Who says when a failed call is made again, says it of this one too."""
    with Gate("memory://", rules=[harsh], policies=Policies(retry=Retry(backoff=(0.3, 0.2)))) as gate:
        said(gate, 503, b"")
        assert held(gate, "throttle") == {"orders-1m/account:a": 0.2}


def test_an_unlisted_refusal_fills_the_limit(gate: Gate) -> None:
    """As one that is listed does: the flood ends."""
    said(gate, 400, '{"msg":"请求过于频繁"}'.encode())
    assert [view.used for view in gate.read().ledgers if "orders" in view.key] == [5]


def test_a_firewall_holds_the_address_longer_each_time(gate: Gate) -> None:
    """From ten seconds on, doubling; calls under way count once; what it says itself goes before that."""
    events: list[Event] = []
    gate.on(events.append)
    found = []
    for _ in range(3):
        with ExitStack() as stack:
            for permit in [stack.enter_context(gate.permit("harsh", "GET", "/x")) for _ in range(3)]:
                permit.settle(403, {"content-type": "text/html"}, PAGE)
        found.append(held(gate, "ban"))
        gate.unblock(IP)
    assert found == [{"ip:default": seconds} for seconds in (10, 20, 40)]
    assert [event.kind for event in events] == ["banned"] * 3
    answered(gate, 418)  # the file's own ladder does not know of them
    assert held(gate, "ban") == {"ip:default": 120}
    gate.unblock(IP)
    said(gate, 429, b"error code: 1015", retry_after="30")
    assert held(gate, "ban") == {"ip:default": 30}
