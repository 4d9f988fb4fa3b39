"""Budget is waited for; a block that ends later than a moment is told at once."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from ratekeeper import Blocked, Event, Gate, Policies, RetriesExhausted, Retry
from ratekeeper.gate.permit import Permit
from ratekeeper.ledger.decide import Refusal
from ratekeeper.ledger.limit import SECOND

SOON = 20.0
"""Seconds within which a loaded machine tells what it tells at once; every wait below would be longer."""
SCOPE = "shop/ip:default"


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads that wait."""
    with ThreadPoolExecutor(16) as made:
        yield made


def waiting(
    gate: Gate, pool: ThreadPoolExecutor, calls: int, path: str = "/slot", **options: Any
) -> list[Future[None]]:
    """So many calls of threads that stand in line."""
    before = gate.room.count
    made = [pool.submit(gate.permit("shop", "GET", path, **options).acquire) for _ in range(calls)]
    end = time.monotonic() + SOON
    while gate.room.count < before + calls:
        assert time.monotonic() < end
        time.sleep(0.002)
    return made


def full(gate: Gate) -> list[Permit]:
    """Both slots of the shop, held: whoever wants one waits."""
    held = [gate.permit("shop", "GET", "/slot") for _ in range(2)]
    for permit in held:
        permit.acquire()
    return held


@pytest.mark.parametrize("kind", ["ban", "throttle", "pause"])
def test_a_long_block_is_told_at_once(gate: Gate, kind: str) -> None:
    """A call that names no timeout does not wait; the error says what, whose and until when."""
    assert (gate.max_wait, gate.max_block_wait) == (900, 30)
    gate.block(SCOPE, 75, kind, "by the shop")
    with pytest.raises(Blocked, match="by the shop") as caught:
        gate.permit("shop", "GET", "/x").acquire()
    error = caught.value
    assert (error.kind, error.limit, error.scope, error.reason) == (kind, kind, SCOPE, "by the shop")
    assert error.seconds is not None and error.retry_at is not None
    assert 75 - SOON < error.seconds <= 75
    assert abs(error.retry_at - time.time() - error.seconds) < SOON


def test_the_same_in_a_task(gate: Gate) -> None:
    """Tasks are told as threads are."""
    gate.block(SCOPE, 75, "ban")

    async def ask() -> None:
        async with gate.permit("shop", "GET", "/x"):
            pass

    with pytest.raises(Blocked):
        asyncio.run(ask())


def test_a_short_block_is_waited_for(gate: Gate) -> None:
    """Less than a moment is a wait like any other."""
    gate.block(SCOPE, 0.1, "ban")
    with gate.permit("shop", "GET", "/x") as permit:
        assert permit.waited > 0


@pytest.mark.parametrize(
    ("setting", "options"),
    [(0.0, {"timeout": 60}), (0.0, {"timeout": math.inf}), (0.0, {"block_wait": 60}), (60.0, {}), (math.inf, {})],
)
def test_who_asked_to_wait_waits(new_gate: Callable[..., Gate], setting: float, options: dict[str, float]) -> None:
    """A timeout of the call's own, or a setting that is long enough."""
    gate = new_gate(max_block_wait=setting)
    gate.block(SCOPE, 0.2, "ban")
    with gate.permit("shop", "GET", "/x", **options) as permit:  # type: ignore[arg-type]
        assert permit.waited > 0


@pytest.mark.parametrize("options", [{}, {"timeout": 60, "block_wait": 0.05}])
def test_a_moment_is_what_the_setting_says(new_gate: Callable[..., Gate], options: dict[str, float]) -> None:
    """A second is long where a twentieth of one is all that a call waits."""
    gate = new_gate(max_block_wait=0.05)
    gate.block(SCOPE, 60, "ban")
    with pytest.raises(Blocked, match=r"wait 0\.1 s at most"):
        gate.permit("shop", "GET", "/x", **options).acquire()  # type: ignore[arg-type]


def test_a_pause_without_an_end_is_told_at_once(gate: Gate, pool: ThreadPoolExecutor) -> None:
    """There is nothing to wait for, unless the program waits however long it takes; the error says who and how."""
    gate.block("shop", None, reason="Ann is at lunch")
    for timeout in (None, 600.0):
        with pytest.raises(Blocked, match=r"Ann is at lunch.*`ratekeeper resume shop`") as caught:
            gate.permit("shop", "GET", "/x", timeout=timeout).acquire()
        assert (caught.value.seconds, caught.value.retry_at) == (None, None)
    (patient,) = waiting(gate, pool, 1, "/x", timeout=math.inf)
    gate.unblock("shop")
    patient.result(SOON)


def test_budget_is_waited_for_whatever_is_said_of_blocks(new_gate: Callable[..., Gate]) -> None:
    """The setting does not touch a call that waits for units, nor one whose units a provider gives back at a known time."""
    gate = new_gate(max_block_wait=0.0)
    for _ in range(6):  # four go at once, the rest as the bucket refills
        with gate.permit("shop", "GET", "/burst"):
            pass
    gate.store.block(
        "shop/weight-1h/ip:default", SECOND // 5, "limit", "none left", time.monotonic_ns(), time.time_ns()
    )
    with gate.permit("shop", "GET", "/x") as permit:
        assert permit.waited > 0


def test_all_who_wait_are_told_when_a_ban_begins(gate: Gate, pool: ThreadPoolExecutor) -> None:
    """Not only the first in line; who asked to wait stays, and is served afterwards."""
    held = full(gate)
    calls = waiting(gate, pool, 5)
    (patient,) = waiting(gate, pool, 1, timeout=600)
    calls += waiting(gate, pool, 2)
    gate.block(SCOPE, 75, "ban", "by the shop")
    for call in calls:
        with pytest.raises(Blocked, match="by the shop"):
            call.result(SOON)
    assert gate.room.count == 1
    for permit in held:
        permit.settle(200, {})
    assert not patient.done()
    gate.unblock(SCOPE)
    patient.result(SOON)


def test_the_answer_that_tells_of_a_ban_ends_the_waits(new_gate: Callable[..., Gate]) -> None:
    """Whoever hears it from the provider tells all others of the process."""
    gate = new_gate(hosts={})
    gate.store.learn("binance-usdm", {"weight-1m": (2, 60 * SECOND)})
    held = [gate.permit("binance-usdm", "GET", "/fapi/v1/time") for _ in range(2)]
    for permit in held:
        permit.acquire()
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(gate.permit("binance-usdm", "GET", "/fapi/v1/time").acquire)
        while not gate.room.count:
            time.sleep(0.002)
        held[0].settle(418, {"Retry-After": "75"}, b'{"code":-1003,"msg":"banned"}')
        with pytest.raises(Blocked):
            call.result(SOON)


def test_a_newcomer_does_not_wait_behind_a_patient_one(gate: Gate, pool: ThreadPoolExecutor) -> None:
    """What holds the line holds the newcomer too: told at once, also of a pause without an end."""
    gate.block("shop", None)
    (patient,) = waiting(gate, pool, 1, "/x", timeout=math.inf)
    with pytest.raises(Blocked):
        gate.permit("shop", "GET", "/x").acquire()
    gate.unblock("shop")
    patient.result(SOON)


def test_a_block_is_said_once(gate: Gate, pool: ThreadPoolExecutor) -> None:
    """One event per block, whoever is refused, those who wait among them; another one for the next block."""
    events: list[Event] = []
    gate.on(events.append)
    held = full(gate)
    calls = waiting(gate, pool, 3)
    for _ in range(2):
        gate.block(SCOPE, 75, "ban", "by the shop")
        for _ in range(3):
            with pytest.raises(Blocked):
                gate.permit("shop", "GET", "/x").acquire()
        gate.unblock(SCOPE)
    for call in calls:
        with pytest.raises(Blocked):
            call.result(SOON)
    told = [event for event in events if event.kind == "refusing"]
    assert len(told) == 2
    assert told[0].fields["scope"] == SCOPE
    assert "UTC" in told[0].message and "by the shop" in told[0].message
    for permit in held:
        permit.refund()


def test_a_store_that_is_away_does_not_hide_the_end(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says only when to look again; the block itself says until when it holds."""
    gate.block(SCOPE, 75, "ban")

    def away(*_: Any, **__: Any) -> Refusal:
        return Refusal(SCOPE, time.monotonic_ns() + SECOND, unknown=True, kind="ban")

    monkeypatch.setattr(gate.store, "reserve", away)
    with pytest.raises(Blocked) as caught:
        gate.permit("shop", "GET", "/x").acquire()
    assert caught.value.seconds is not None and caught.value.seconds > 30


@pytest.mark.parametrize(
    ("retry", "options", "served"),
    [(Retry(), {}, False), (Retry(deadline=60), {}, True), (Retry(), {"timeout": 60}, True)],
)
def test_retries_wait_for_a_block_only_if_they_were_asked_to(
    new_gate: Callable[..., Gate], retry: Retry, options: dict[str, float], served: bool
) -> None:
    """The default deadline is nobody's wish; one that was set, or a timeout of the call's own, is."""
    gate = new_gate(max_block_wait=0.05, policies=Policies(retry=retry))
    gate.block(SCOPE, 0.4 if served else 60, "ban")

    def send(permit: Permit) -> Any:
        return 200, {}, b"{}"

    if served:
        assert gate.call("shop", "GET", "/x", send, **options).status == 200
        return
    with pytest.raises(Blocked):
        gate.call("shop", "GET", "/x", send, **options)


def test_a_ban_between_two_tries_is_told(new_gate: Callable[..., Gate]) -> None:
    """The retry does not sleep through it: the first answer shuts the scope, and the second try is refused at once."""
    gate = new_gate(policies=Policies(retry=Retry()), hosts={})

    def send(permit: Permit) -> Any:
        return 418, {"Retry-After": "75"}, b'{"code":-1003,"msg":"banned"}'

    begun = time.monotonic()
    with pytest.raises(RetriesExhausted) as caught:
        gate.call("binance-usdm", "GET", "/fapi/v1/time", send)
    assert isinstance(caught.value.__cause__, Blocked)
    assert time.monotonic() - begun < SOON


def test_a_refused_call_is_cheap(gate: Gate) -> None:
    """A program that asks in a loop costs little: nothing is kept of it, nothing waits."""
    gate.block(SCOPE, 75, "ban")
    begun = time.monotonic()
    for _ in range(1000):
        with pytest.raises(Blocked):
            gate.permit("shop", "GET", "/x").acquire()
    assert time.monotonic() - begun < SOON
    assert gate.room.count == 0
    assert threading.active_count() < 20
