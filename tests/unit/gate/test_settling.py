"""What an answer changes for everybody: bans that grow, limits that were stated, numbers of the user's own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ratekeeper import Event, Gate, Policies, Rejected, Retry
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

[limits.fixed-1h]
unit = "fixed"
capacity = 1000
period = "1h"
window = "fixed"
headers.used = "x-fixed"

[default]
cost = { calls = 1 }

[[routes]]
match = "GET /fixed"
cost = { fixed = 1 }

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
    with gate.permit("harsh", "GET", "/x", timeout=0) as permit:
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


# --- Statements that cannot be meant. --------------------------------------------------------------------------------

CALLS = "harsh/calls-1m/ip:default"


def doubted(events: list[Event]) -> list[str]:
    """The places of statements that were doubted."""
    return [event.fields["place"] for event in events if event.kind == "doubted"]


def holds(gate: Gate) -> list[float]:
    """Seconds for which ledgers are held."""
    return [(state.length or 0) / SECOND for state in gate.store.blocks.states() if state.kind == "limit"]


@pytest.mark.parametrize("stated", ["0", "1", "1000000000000", "999999999999999999", "1e400"])
def test_a_limit_that_cannot_be_meant_is_told_once_and_held_once(gate: Gate, stated: str) -> None:
    """One that allows less holds the ledger for a minute, once; then the file's number is tried. Others change nothing."""
    events: list[Event] = []
    gate.on(events.append)
    answered(gate, 200, x_limit=stated)
    less = stated == "1"
    assert holds(gate) == ([60.0] if less else [])
    if less:
        with pytest.raises(Rejected, match="has no room for"):
            answered(gate, 200)
    gate.unblock(CALLS)  # the minute is over
    for _ in range(20):
        answered(gate, 200, x_limit=stated)
    assert (holds(gate), doubted(events), capacity(gate, CALLS)) == ([], ["calls-1m"], 100)
    assert not [row for row in gate.store.learned.get("harsh", {}) if not row.startswith("~")]


def test_a_lower_limit_is_obeyed(gate: Gate) -> None:
    """Half or a twentieth of the file's number is no reason to doubt."""
    events: list[Event] = []
    gate.on(events.append)
    for stated in (50, 5):
        answered(gate, 200, x_limit=str(stated))
        answered(gate, 200)
        assert capacity(gate, CALLS) == stated
    assert (doubted(events), holds(gate)) == ([], [])


def test_a_doubt_is_shared(harsh: Path, tmp_path: Path) -> None:
    """A process that begins later does not hold the ledger again."""
    home = tmp_path / "home"
    for expected in ([60.0], [], []):
        with Gate("host://", rules=[harsh], home=home) as gate:
            answered(gate, 200, x_limit="1")
            assert holds(gate) == expected
            gate.unblock(CALLS)


def test_a_counter_that_stands_still_is_not_believed(gate: Gate) -> None:
    """What this side has sent counts; the ledger would be empty for ever otherwise."""
    events: list[Event] = []
    gate.on(events.append)
    for count in range(20):
        with gate.permit("harsh", "GET", "/fixed") as permit:
            permit.settle(200, {"x-fixed": "0" if count < 10 else "4"})
    used = next(view.used for view in gate.read().ledgers if "fixed" in view.key)
    assert used >= 10, "of the ten calls beside a 4 the first few believe it"
    assert doubted(events) == ["use of fixed-1h/ip:default"]


def test_a_counter_beyond_all_bounds_holds_once(gate: Gate) -> None:
    """It does not count, and no other program is made room for."""
    events: list[Event] = []
    gate.on(events.append)
    for count in (10**6, 10**15, 10**30):
        with gate.permit("harsh", "GET", "/fixed") as permit:
            permit.settle(200, {"x-fixed": str(count)})
        assert holds(gate) == ([60.0] if count == 10**6 else [])
        gate.unblock("harsh/fixed-1h/ip:default")
    assert [(view.used, view.foreign) for view in gate.read().ledgers if "fixed" in view.key] == [(3, 0)]
    assert [event.kind for event in events] == ["doubted"]


@pytest.mark.parametrize("hint", ["31536000", "1e30", "Tue, 24 Nov 2048 00:00:00 GMT"])
def test_a_ban_of_years_is_one_of_the_ladder(gate: Gate, hint: str) -> None:
    """The answer says that it is a ban; how long it is, nobody can mean."""
    events: list[Event] = []
    gate.on(events.append)
    answered(gate, 418, retry_after=hint)
    assert (banned(gate), doubted(events)) == ([120], ["retry hint"])


@pytest.mark.parametrize("hint", ["31536000", "0", "-5", "1e400"])
def test_a_throttled_call_is_not_held_for_years(gate: Gate, hint: str) -> None:
    """It is held for as long as one that names no end."""
    with gate.permit("harsh", "GET", "/x") as permit:
        told = permit.settle(429, {"retry-after": hint})
    assert told.held <= 61 * SECOND


@pytest.mark.parametrize("status", [400, 403, 418, 429, 503])
def test_what_a_provider_quotes_of_a_request_is_struck_out(
    status: int, gate: Gate, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Short secrets, too: in the feedback, the events, the log, the blocks and whatever is kept on disk."""
    events: list[Event] = []
    gate.on(events.append)
    headers = {"X-Key": "hdr", "Authorization": "Basic dTE6cHcx"}
    params, body = {"symbol": "BTCUSDT", "signature": "a+1"}, {"apiSecret": 'b"2'}
    quoted = 'no hdr, dTE6cHcx, pw1, a+1, a%2B1, YSsx, b"2, b\\"2, 12:tok-3 for BTCUSDT'
    with (
        caplog.at_level("DEBUG"),
        gate.permit("harsh", "GET", "/bot12:tok-3/x", params=params, body=body, headers=headers) as permit,
    ):
        told = permit.settle(status, {"Retry-After": "60"}, quoted)
    assert told.reason == f"HTTP {status}: no " + ", ".join(["[...]"] * 9) + " for BTCUSDT"
    shown = [told, caplog.text, gate.read(), gate.store.blocks.states()]
    shown += [(event.message, event.fields) for event in events]
    shown += [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(shown) > 4
    for secret in ("hdr", "dTE6cHcx", "pw1", "a+1", "a%2B1", "YSsx", 'b"2', "tok-3"):
        assert not [each for each in shown if secret in str(each)]


def test_a_small_number_of_the_users_own_makes_no_counter_absurd(harsh: Path) -> None:
    """A counter is judged by the provider's number: others may use what the user leaves to them."""
    events: list[Event] = []
    with Gate("memory://", rules=[harsh]) as gate:
        gate.on(events.append)
        gate.plans.book = Rulebook.load(
            extra=[harsh], adjustments={"harsh": Adjustments(overrides={"fixed-1h": (3, 0)})}
        )
        with gate.permit("harsh", "GET", "/fixed") as permit:
            permit.settle(200, {"x-fixed": "700"})
        assert (doubted(events), holds(gate)) == ([], [])
        assert next(view.foreign for view in gate.read().ledgers if "fixed" in view.key) == 699


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
    assert held(gate, "throttle") == {"orders-1m/account:a": 0.125}
    assert [view.used for view in gate.read().ledgers if "orders" in view.key] == [1]


@pytest.mark.parametrize(
    ("retry", "seconds"),
    [(None, [0.125, 0.25, 0.5, 1.0, 1.0]), (Retry(backoff=(0.4, 0.2)), [0.025, 0.05, 0.1, 0.2, 0.2])],
)
def test_overloads_in_a_row_hold_longer(harsh: Path, retry: Retry | None, seconds: list[float]) -> None:
    """An outage ends a flood; single failures hardly hold other calls. Who says when a failed call is made again, says it of
    this one too."""
    with Gate("memory://", rules=[harsh], policies=Policies(retry=retry) if retry else None) as gate:
        said(gate, 503, b"")
        (first,) = held(gate, "throttle").values()
        found, now = [first], time.monotonic_ns() + 2 * SECOND
        for _ in seconds[1:]:
            length = gate.settling._pacing.moment("harsh", "harsh/orders-1m/account:a", SECOND, now, now)
            found.append(length / SECOND)
            now += length + 1
    assert found == pytest.approx(seconds)


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
