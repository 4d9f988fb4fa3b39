"""Feedback from ordinary answers: counters, costs, the clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.support.ends import until

from ratekeeper.ledger.limit import SECOND
from ratekeeper.rules.call import Answer, Block, Feedback, Outcome, Request
from ratekeeper.rules.provider import Provider

NOW = 1_795_220_621 * SECOND
DATE = "Sat, 21 Nov 2026 00:23:41 GMT"
FRAGMENT = """
[limits]
weight-1m = { unit = "weight", capacity = 1000, period = "1m", window = "fixed", headers.used = "x-used-{interval}" }

[limits.calls]
unit = "calls"
capacity = 10
period = "1s"
headers = { remaining = "x-left", limit = "x-limit", reset = "x-reset", reset_format = "epoch-ms", cost = "x-cost" }

[[routes]]
match = "GET /w"
cost = { weight = 7 }

[[routes]]
match = "GET /unreliable"
cost = { weight = 7 }
feedback = false

[[routes]]
match = "GET /c"
cost = { calls = 1 }

[[routes]]
match = "POST /free"
cost = { weight = 7, calls = 1 }
ok = { weight = 0 }
failed = { weight = 1 }

[[routes]]
match = "POST /items"
cost = { weight = 120 }
ok = { weight = { count = "answer", base = 20, each = 1, per = 20 } }

[[learn]]
route = "GET /w"
clock = "now"
"""
W, C = "test/weight-1m/ip:default", "test/calls/ip:default"


@pytest.fixture
def provider(provider_of: Callable[[str], Provider]) -> Provider:
    """The provider of this page."""
    return provider_of(FRAGMENT)


def tell(provider: Provider, call: tuple[str, str], status: int = 200, body: Any = None, **headers: str) -> Feedback:
    """Feedback to an answer; header names with underscores."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return provider.feedback(provider.plan(Request(*call)), Answer(status, names, body), now=NOW)


def test_used(provider: Provider) -> None:
    """A used-counter is read from the header that names the interval in force."""
    assert tell(provider, ("GET", "/w"), x_used_1m="77").used == {W: 77}


def test_used_after_learning(provider: Provider) -> None:
    """After a limit was learned with another interval, the header of that interval is read, also for an old plan."""
    new = provider.with_learned({"weight-1m": (100, 5 * SECOND)})
    assert tell(new, ("GET", "/w"), x_used_5s="9", x_used_1m="500").used == {W: 9}
    old_plan = provider.plan(Request("GET", "/w"))
    assert new.feedback(old_plan, Answer(200, {"x-used-5s": "9"}), now=NOW).used == {W: 9}


@pytest.mark.parametrize("value", ["", "-1", "x", "1.5", "9" * 30, "\u0661"])
def test_nonsense_counter(provider: Provider, value: str) -> None:
    """A counter that is no plain number is not believed."""
    assert tell(provider, ("GET", "/w"), x_used_1m=value).used == {}


def test_ignored(provider: Provider) -> None:
    """Where the headers are declared unreliable they are not read; the clock is."""
    told = tell(provider, ("GET", "/unreliable"), x_used_1m="77", date=DATE)
    assert told.used == {}
    assert told.server_time == (NOW, NOW + SECOND)


def test_date(provider: Provider) -> None:
    """The Date header bounds the server's clock to one second, also on a call that charges nothing."""
    assert tell(provider, ("GET", "/w"), date=DATE).server_time == (NOW, NOW + SECOND)
    assert tell(provider, ("GET", "/w"), date="yesterday").server_time is None
    assert tell(provider, ("GET", "/w")).server_time is None


def test_clock_in_the_body(provider: Provider) -> None:
    """A server time in the body is finer than the Date header, unless they contradict each other."""
    moment = NOW + SECOND // 4
    body = b'{"now": %d}' % (moment // 1_000_000)
    fine = (moment, moment + SECOND // 1000)
    assert tell(provider, ("GET", "/w"), body=body).server_time == fine
    assert tell(provider, ("GET", "/w"), body=body, date=DATE).server_time == fine
    late = "Sat, 21 Nov 2026 00:25:41 GMT"
    assert tell(provider, ("GET", "/w"), body=body, date=late).server_time == (NOW + 120 * SECOND, NOW + 121 * SECOND)


def test_remaining(provider: Provider) -> None:
    """What remains tells what is used, against the limit that the same answer states."""
    assert tell(provider, ("GET", "/c"), x_left="4").used == {C: 6}
    told = tell(provider, ("GET", "/c"), x_left="4", x_limit="20")
    assert told.used == {C: 16}
    assert told.learned == {"calls": (20, SECOND)}
    assert tell(provider, ("GET", "/c"), x_limit="10").learned == {}


def test_nothing_remains(provider: Provider) -> None:
    """With nothing left all is used, and held until the reset if that lies ahead and is believable.

    It is not filled: by the time the answer is here, its window may be over, and only the ledger can tell.
    """
    reset = NOW + SECOND // 2
    told = tell(provider, ("GET", "/c"), x_left="0", x_reset=str(reset // 1_000_000))
    assert (told.used, told.full) == ({C: 10}, ())
    assert [(block.scope, until(block, NOW), block.kind) for block in told.blocks] == [(C, reset, "limit")]
    for wrong in (NOW - SECOND, NOW + 3600 * SECOND):
        told = tell(provider, ("GET", "/c"), x_left="0", x_reset=str(wrong // 1_000_000))
        assert (told.used, told.full, told.blocks) == ({C: 10}, (), ())


def test_stated_cost(provider: Provider) -> None:
    """A header may state what the call was charged."""
    assert tell(provider, ("GET", "/c"), x_cost="3").actual == {C: 3}


def test_actual(provider: Provider) -> None:
    """Success and failure may cost other than reserved; an overload or a lost answer does not."""
    assert tell(provider, ("POST", "/free")).actual == {W: 0}
    assert tell(provider, ("POST", "/free"), 400).actual == {W: 1}
    assert tell(provider, ("POST", "/free"), 500).actual == {}


def test_actual_from_the_answer(provider: Provider) -> None:
    """A cost may depend on the answer; without its body the reserved cost stays."""
    assert tell(provider, ("POST", "/items"), body=b"[" + b"1," * 44 + b"1]").actual == {W: 22}
    assert tell(provider, ("POST", "/items")).actual == {}
    assert tell(provider, ("POST", "/items"), body=b"<html>").actual == {}


def test_wants_body(provider: Provider) -> None:
    """Bodies are wanted where they can tell something: refusals, learn routes, costs from the answer."""
    plans = {path: provider.plan(Request(*path)) for path in [("GET", "/w"), ("GET", "/c"), ("POST", "/items")]}
    assert [provider.wants_body(plan, 200) for plan in plans.values()] == [True, False, True]
    assert all(provider.wants_body(plan, 429) for plan in plans.values())


def test_ordinary_answer(provider: Provider) -> None:
    """An ordinary answer without any of this tells that it went well, and nothing else."""
    told = tell(provider, ("GET", "/c"))
    assert told == Feedback()
    assert told.outcome is Outcome.OK
    assert not any(isinstance(block, Block) for block in told.blocks)


class Odd(dict[str, str]):
    """Headers of which one cannot be read."""

    def get(self, name: str, default: Any = None) -> Any:
        if name == "retry-after":
            raise TypeError(name)
        return super().get(name, default)


@pytest.mark.parametrize(
    ("status", "outcome"), [(418, Outcome.BANNED), (429, Outcome.THROTTLED), (503, Outcome.OVERLOADED)]
)
def test_status_alone_tells_enough(provider_of: Callable[[str], Provider], status: int, outcome: Outcome) -> None:
    """A refusal whose body and headers cannot be read is what its status says, once; the rest of the answer counts."""
    rules = provider_of(FRAGMENT + '\n[[refusals]]\nstatus = [418]\noutcome = "banned"\nblock = "ip"')
    headers = Odd(date=DATE) | {"x-used-1m": "9"}
    told = rules.feedback(rules.plan(Request("GET", "/w")), Answer(status, Odd(headers), b"no"), now=NOW)
    assert told.outcome is outcome
    assert [block.kind for block in told.blocks] == {418: ["ban"], 429: [], 503: ["throttle"]}[status]
    assert told.full == ((W,) if status == 429 else ())
    assert told.used == {W: 9}
    assert "body (TypeError), headers (TypeError)" in told.unreadable
