"""Calls of one key leave in the order of their nonces, in threads, tasks and several gates on one store."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.support.server import Server

from ratekeeper import DeadlineExceeded, Gate, Rejected, SignatureWouldExpire
from ratekeeper.gate.permit import Permit
from ratekeeper.gate.steps import Steps, drive, drive_async
from ratekeeper.rules.call import Request

RULES = Path(__file__).parents[2] / "support" / "testland.toml"
ACCOUNT = "testland/class:account"


@pytest.fixture(params=["memory", "host", "redis"])
def gates(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Gate, Gate]]:
    """Two gates on one store; in memory it is the same gate twice."""
    with ExitStack() as stack:
        store = f"{request.param}://"
        if request.param == "redis":
            store = stack.enter_context(Server(tmp_path / "server")).url
        options: dict[str, Any] = {"home": tmp_path, "hosts": {}, "rules": [RULES], "learn": False}
        one = stack.enter_context(Gate(store, **options))
        yield one, one if request.param == "memory" else stack.enter_context(Gate(store, **options))


def attempt(
    gate: Gate, nonce: int, path: str = "/balance", *, priority: Any = None, wait: float = 10.0, is_async: bool = False
) -> Steps[Permit]:
    """One attempt with a nonce, up to where it leaves."""
    rules, request = gate.provider("testland"), Request("GET", path, {"nonce": str(nonce)}, None, {"x-key": "a"})
    permit = gate.permit_for(rules, request, priority=priority, timeout=wait)
    place = gate.nonces.of(rules, request, permit.priority, is_async=is_async)
    assert place is not None
    try:
        yield from place.enter()
        yield from place.permitted(permit, wait)
    except BaseException:
        permit.give_up()
        place.over(unsent=True)
        raise
    return permit


def until(so: Callable[[], Any], seconds: float = 10.0) -> None:
    """Wait until something is so."""
    ends = time.monotonic() + seconds
    while not so():
        assert time.monotonic() < ends
        time.sleep(0.01)


def inflight(gate: Gate) -> int:
    """Units that permits hold."""
    return sum(view.inflight for view in gate.read().ledgers)


def test_the_next_leaves_when_the_last_is_answered(gates: tuple[Gate, Gate]) -> None:
    """And it holds no units while it waits for that."""
    one, two = gates
    permit = drive(attempt(one, 1))
    with ThreadPoolExecutor(1) as pool:
        later = pool.submit(drive, attempt(two, 2))
        time.sleep(0.3)
        assert not later.done() and inflight(one) <= 1
        permit.settle(200)
        later.result(timeout=5).settle(200)


def test_an_answer_that_does_not_come_holds_the_next_back_for_a_moment(gates: tuple[Gate, Gate]) -> None:
    """The bytes of the request have arrived by then."""
    permit = drive(attempt(gates[0], 1))
    begun = time.monotonic()
    drive(attempt(gates[1], 2)).settle(200)
    assert 1.5 < time.monotonic() - begun < 8
    permit.settle(200)


def test_those_ahead_that_give_up_hold_nobody_up(gates: tuple[Gate, Gate]) -> None:
    """Cancelled or too late, while they wait for their permit or for others."""
    one, two = gates
    one.block(ACCOUNT, 30)

    async def main() -> None:
        first = asyncio.create_task(drive_async(attempt(one, 1, wait=40, is_async=True)))
        await asyncio.sleep(0.1)
        second = asyncio.create_task(drive_async(attempt(two, 2, wait=40, is_async=True)))
        await asyncio.sleep(0.1)
        with pytest.raises(DeadlineExceeded, match="lower nonces"):
            await drive_async(attempt(two, 3, "/rate", wait=0.1, is_async=True))
        for task in (second, first):
            task.cancel()
        await asyncio.wait([first, second])

    asyncio.run(main())
    begun = time.monotonic()
    drive(attempt(two, 4, "/rate")).settle(200)
    assert time.monotonic() - begun < 1.5
    until(lambda: inflight(one) == 0)


def test_a_cancel_overtakes_what_waits_for_long(gates: tuple[Gate, Gate]) -> None:
    """What it overtakes is refused at once with a clear error, also in another process; nothing stays reserved."""
    one, two = gates
    one.block(ACCOUNT, 20)
    with ThreadPoolExecutor(3) as pool:
        waits = [pool.submit(drive, attempt(one, nonce, wait=60)) for nonce in (1, 2)]
        until(lambda: one.room.count)
        time.sleep(0.1)
        begun = time.monotonic()
        drive(attempt(two, 3, "/rate", priority="critical")).settle(200)
        assert time.monotonic() - begun < 1.5
        for wait in waits:
            with pytest.raises(SignatureWouldExpire, match="Take a new nonce"):
                wait.result(timeout=8)
    assert time.monotonic() - begun < 8
    until(lambda: (one.room.count, inflight(one)) == (0, 0))


def test_a_lower_nonce_that_comes_later_goes_first(gates: tuple[Gate, Gate]) -> None:
    """If the other one still waits for its permit: the threads of a program may be so late."""
    one, two = gates
    one.block(ACCOUNT, 0.6)
    left: list[int] = []

    def leave(gate: Gate, nonce: int) -> None:
        permit = drive(attempt(gate, nonce))
        left.append(nonce)
        permit.settle(200)

    threads = []
    for gate, nonce in ((one, 5), (two, 4)):
        threads.append(threading.Thread(target=leave, args=(gate, nonce)))
        threads[-1].start()
        time.sleep(0.15)
    for thread in threads:
        thread.join(10)
    assert left == [4, 5]


def test_a_closed_gate_refuses_those_in_line(gates: tuple[Gate, Gate]) -> None:
    """At once."""
    permit = drive(attempt(gates[0], 1))
    with ThreadPoolExecutor(1) as pool:
        later = pool.submit(drive, attempt(gates[1], 2))
        time.sleep(0.1)
        gates[1].close()
        with pytest.raises(Rejected, match="closed"):
            later.result(timeout=5)
    permit.refund()


def test_calls_without_a_number_or_a_key_have_no_order(gates: tuple[Gate, Gate]) -> None:
    """Nothing says which of them comes first."""
    gate = gates[0]
    rules = gate.provider("testland")
    for params, headers in (({"nonce": "abc"}, {"x-key": "a"}), ({"nonce": "1"}, {}), ({}, {"x-key": "a"})):
        assert gate.nonces.of(rules, Request("GET", "/balance", params, None, headers), 2, is_async=False) is None
