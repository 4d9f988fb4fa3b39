"""Waiting calls of a gate whose store is a network away."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.server import Server

from ratekeeper import Gate
from ratekeeper.errors import Rejected, StoreUnavailable
from ratekeeper.stores.redis.store import RedisStore

RULES = Path(__file__).parents[2] / "support" / "testland.toml"


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """A gate with a server of its own."""
    with (
        Server(tmp_path / "server") as server,
        Gate(server.url, home=tmp_path / "home", rules=[RULES], hosts={}) as made,
    ):
        yield made


def inner(gate: Gate) -> RedisStore:
    """The store behind the safe share."""
    store = gate.store.inner  # type: ignore[attr-defined]
    assert isinstance(store, RedisStore)
    return store


def counted(gate: Gate, limit: str) -> tuple[int, int]:
    """(used, in flight) on the server."""
    (view,) = [view for view in gate.read().ledgers if f"/{limit}/" in view.key]
    return view.used, view.inflight


def settled(gate: Gate, limit: str, expected: tuple[int, int]) -> None:
    """Wait until the server knows."""
    end = time.monotonic() + 10
    while counted(gate, limit) != expected:
        assert time.monotonic() < end, counted(gate, limit)
        time.sleep(0.01)


def test_calls_that_come_together_share_round_trips(gate: Gate) -> None:
    """Two hundred tasks: all are served and counted once, with far fewer round trips than calls."""

    async def call() -> None:
        async with gate.permit("testland", "GET", "/"):
            await asyncio.sleep(0)

    async def all_of_them() -> None:
        await asyncio.gather(*(call() for _ in range(200)))

    with gate.permit("testland", "GET", "/"):
        pass
    before = inner(gate).trips
    asyncio.run(all_of_them())
    settled(gate, "requests-1d", (201, 0))
    assert inner(gate).trips - before < 100


def test_an_event_loop_never_waits_for_the_network(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """While tasks wait and are served, no round trip is made by the thread of their loop."""
    connection = inner(gate).connection
    real, threads = connection.call, set()

    def call_server(*arguments: Any) -> Any:
        threads.add(threading.get_ident())
        return real(*arguments)

    monkeypatch.setattr(connection, "call", call_server)

    async def call() -> None:
        async with gate.permit("testland", "GET", "/stream"):
            await asyncio.sleep(0.01)

    async def all_of_them() -> None:
        await asyncio.gather(*(call() for _ in range(6)))

    asyncio.run(all_of_them())
    assert threads
    assert threading.get_ident() not in threads


def test_a_waiting_call_goes_when_another_ends(gate: Gate) -> None:
    """Slots: the third waits for the first two, in another thread."""
    held = [gate.permit("testland", "GET", "/stream") for _ in range(2)]
    for permit in held:
        permit.acquire()
    done = threading.Event()

    def call() -> None:
        with gate.permit("testland", "GET", "/stream", timeout=20):
            done.set()

    thread = threading.Thread(target=call)
    thread.start()
    assert not done.wait(0.2)
    held[0].settle(200, {})
    assert done.wait(10)
    thread.join()
    held[1].settle(200, {})
    settled(gate, "streams", (0, 0))


def test_a_call_that_gave_up_leaves_nothing(gate: Gate) -> None:
    """Cancelled while it waits: no unit, no waiter stays, and the next is served."""
    held = [gate.permit("testland", "GET", "/stream") for _ in range(2)]
    for permit in held:
        permit.acquire()

    async def give_up() -> None:
        task = asyncio.create_task(gate.permit("testland", "GET", "/stream").acquire_async())
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(give_up())
    assert gate.room.count == 0
    for permit in held:
        permit.settle(200, {})
    settled(gate, "streams", (0, 0))


def test_a_deadline_is_kept(gate: Gate) -> None:
    """Now or never, and a second or never: refused with a reason, and nothing stays in the line."""
    held = [gate.permit("testland", "GET", "/stream") for _ in range(2)]
    for permit in held:
        permit.acquire()
    for timeout in (0.0, 0.3):
        with pytest.raises(Rejected):
            gate.permit("testland", "GET", "/stream", timeout=timeout).acquire()
    assert gate.room.count == 0
    for permit in held:
        permit.settle(200, {})


def test_closing_refuses_who_waits(gate: Gate) -> None:
    """A waiting thread gets an error when the gate is closed, and does not hang."""
    held = [gate.permit("testland", "GET", "/stream") for _ in range(2)]
    for permit in held:
        permit.acquire()
    errors: list[Exception] = []

    def call() -> None:
        try:
            gate.permit("testland", "GET", "/stream", timeout=30).acquire()
        except Rejected as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    end = time.monotonic() + 10
    while not gate.room.count and time.monotonic() < end:
        time.sleep(0.005)
    gate.close()
    thread.join(10)
    assert len(errors) == 1


def test_what_a_settled_permit_says_twice_counts_once(gate: Gate) -> None:
    """Settled and settled again, refunded after it was settled: the first word stands."""
    permit = gate.permit("testland", "GET", "/")
    permit.acquire()
    assert permit._grant is not None
    grant, now = permit._grant, gate.times.now("testland")
    permit.settle(200, {})
    assert gate.store.settle(grant, now).late
    assert gate.store.refund(grant, now).late
    settled(gate, "requests-1d", (1, 0))


def test_what_was_never_seen_is_taken_for_used(gate: Gate) -> None:
    """Without a server nobody can say what others spent on a ledger that this process has not seen."""
    with gate.permit("testland", "GET", "/"):
        pass
    now = gate.times.now("testland")
    assert inner(gate).peek("testland/requests-1d/ip:default", now) is not None
    with pytest.raises(StoreUnavailable):
        inner(gate).peek("testland/requests-1d/ip:other", now)


def test_waits_are_added_up_on_the_server(gate: Gate) -> None:
    """How long calls waited stands there for `ratekeeper status`."""
    from ratekeeper.gate.waits import read_waits

    for _ in range(3):
        with gate.permit("testland", "GET", "/"):
            pass
    gate.room.waits.share()
    end = time.monotonic() + 10
    while sum(wait.calls for wait in read_waits(gate.store).values()) < 1:
        assert time.monotonic() < end
        time.sleep(0.01)
