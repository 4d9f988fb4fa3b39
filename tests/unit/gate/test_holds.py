"""How long calls are held after a refusal: as long as it says, or longer each time if it does not say."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path

import pytest
from tests.support.server import Server

from ratekeeper import Event, Gate, Policies, Retry
from ratekeeper.ledger.limit import SECOND
from ratekeeper.rules.call import Feedback
from ratekeeper.stores.blocks import BlockState

Make = Callable[..., Gate]
WEIGHT, IP = "shop/weight-1h/ip:default", "shop/ip:default"


@pytest.fixture(params=["memory://", "host://", "redis://"])
def make(request: pytest.FixtureRequest, rules: Path, tmp_path: Path) -> Iterator[Make]:
    """Makes gates on one store of each kind; those in memory know only themselves."""
    gates: list[Gate] = []
    server = Server(tmp_path / "server") if request.param == "redis://" else None
    try:
        if server is not None:
            server.__enter__()

        def made(**policies: object) -> Gate:
            url = request.param if server is None else server.url
            gates.append(Gate(url, rules=[rules], home=tmp_path / "home", policies=Policies(**policies)))  # type: ignore[arg-type]
            return gates[-1]

        yield made
    finally:
        for gate in gates:
            gate.close()
        if server is not None:
            server.__exit__(None, None, None)


def answered(gate: Gate, status: int, path: str = "/x", **headers: str) -> Feedback:
    """One call and its answer."""
    permit = gate.permit("shop", "GET", path, timeout=10)
    permit.acquire()
    return permit.settle(status, {name.replace("_", "-"): value for name, value in headers.items()})


def held(gate: Gate, scope: str) -> BlockState | None:
    """The hold on a scope."""
    return next((state for state in gate.store.blocks.states() if state.scope == scope), None)


@pytest.mark.parametrize("status", [429, 403, 503])
@pytest.mark.parametrize("ahead", [-500, -0.9, 0, 0.9, 500])
def test_the_clock_that_an_answer_teaches_shortens_no_wait(make: Make, status: int, ahead: float) -> None:
    """Three seconds are three, whatever the same answer says of the server's clock; a date is meant by that clock."""
    gate = make()
    scope = {429: WEIGHT, 403: IP, 503: "shop"}[status]
    date = formatdate(time.time() + ahead, usegmt=True)
    told = answered(gate, status, retry_after="3", date=date)
    block = held(gate, scope)
    assert block is not None
    assert (block.length, told.retry_in, told.held) == (3 * SECOND, 3 * SECOND, 3 * SECOND)
    gate.unblock(scope)
    until = formatdate(time.time() + ahead + 60, usegmt=True)
    told = answered(gate, status, retry_after=until, date=formatdate(time.time() + ahead, usegmt=True))
    assert told.retry_in is not None
    assert 58.9 * SECOND < told.retry_in < 62.5 * SECOND


def test_a_hold_without_a_stated_end_grows(make: Make) -> None:
    """It doubles from refusal to refusal, with jitter, and begins anew when a call has gone well."""
    gate = make()
    lengths = []
    for _ in range(4):
        lengths.append(answered(gate, 429, "/slot").held)
        forget(gate, "shop/slots/ip:default")
    for nth, length in enumerate(lengths):
        assert SECOND << nth <= length <= (3 * SECOND << nth) // 2
    answered(gate, 200, "/slot")
    assert answered(gate, 429, "/slot").held <= 3 * SECOND // 2


def test_calls_under_way_are_one_refusal(make: Make) -> None:
    """Two that left together and were both refused are one step."""
    gate = make()
    permits = [gate.permit("shop", "GET", "/slot", timeout=10) for _ in range(2)]
    for permit in permits:
        permit.acquire()
    assert max(permit.settle(429, {}).held for permit in permits) <= 3 * SECOND // 2


@pytest.mark.parametrize("make", ["host://", "redis://"], indirect=True)
def test_it_grows_for_the_next_process_too(make: Make) -> None:
    """What one gate was refused, another goes on from; when that one is answered well, the first begins anew."""
    first = make()
    for _ in range(3):
        answered(first, 429, "/slot")
        forget(first, "shop/slots/ip:default")
    second = make()
    answered(second, 200, "/burst")  # another limit: it says nothing of this one
    agree(first, second)
    assert answered(second, 429, "/slot").held >= 8 * SECOND
    forget(second, "shop/slots/ip:default")
    agree(second, first)
    answered(second, 200, "/slot")
    agree(second, first)
    assert answered(first, 429, "/slot").held <= 3 * SECOND // 2


def test_the_users_ladder_is_the_gates(make: Make) -> None:
    """Exact backoffs hold for refusals without a hint too: one ladder, not two."""
    gate = make(retry=Retry(backoff=(2, 5)))
    found = []
    for _ in range(3):
        found.append(answered(gate, 429, "/slot").held)
        forget(gate, "shop/slots/ip:default")
    assert found == [2 * SECOND, 5 * SECOND, 5 * SECOND]


def test_the_event_says_how_long(make: Make) -> None:
    """In words and as a number."""
    gate = make()
    events: list[Event] = []
    gate.on(events.append)
    answered(gate, 429, "/slot", retry_after="7")
    (told,) = [event for event in events if event.kind == "throttled"]
    assert told.fields["seconds"] == 7
    assert told.message.endswith("such calls wait 7.0 s")


def forget(gate: Gate, scope: str) -> None:
    """As if the hold had ended this very moment: the row says so, and nothing blocks."""
    gate.unblock(scope)
    row = "~refused/" + scope.partition("/")[2]
    refusals, _ = gate.store.learned["shop"][row]
    gate.store.learn("shop", {row: (refusals, time.monotonic_ns() + sum(gate.store.skew()) // 2 - 1000)})


def agree(one: Gate, other: Gate) -> None:
    """Wait until both know of the same refusals."""
    row, end = "~refused/slots/ip:default", time.monotonic() + 10
    while one.store.learned.get("shop", {}).get(row) != other.store.learned.get("shop", {}).get(row):
        assert time.monotonic() < end, (one.store.learned, other.store.learned)
        with other.permit("shop", "GET", "/burst", timeout=10) as permit:
            permit.settle(200, {})
        time.sleep(0.02)
