"""Waiting calls whose helper thread is dead, hangs or fails: each keeps its deadline, and what can go goes."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ratekeeper import DeadlineExceeded, Event, Gate, RatekeeperError
from ratekeeper.gate import room as module
from ratekeeper.stores import threads

HOUR = 3600.0


@pytest.fixture(params=["dead", "hangs", "none"])
def helpless(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The helper thread of a waiting room ends at once, hangs for good, or cannot be started."""
    over = threading.Event()

    class NoThread(threads.Helper):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            raise RuntimeError("can't start new thread")

    class Dead(threads.Helper):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(lambda: None)

    class Hanging(threads.Helper):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(over.wait)

    monkeypatch.setattr(module, "Helper", {"none": NoThread, "dead": Dead, "hangs": Hanging}[request.param])
    monkeypatch.setattr(module, "_LOOK", 0.02)
    monkeypatch.setattr(module, "_LATE", 0)
    yield
    over.set()


def in_a_thread(gate: Gate, path: str, timeout: float) -> float:
    """Make a call; returns the seconds that it waited. Raises what it raises."""
    begun = time.monotonic()
    gate.permit("shop", "GET", path, timeout=timeout).acquire()
    return time.monotonic() - begun


def in_a_task(gate: Gate, path: str, timeout: float) -> float:
    """Do the same on asyncio."""
    begun = time.monotonic()
    asyncio.run(gate.permit("shop", "GET", path, timeout=timeout).acquire_async())
    return time.monotonic() - begun


Waits = Callable[[Gate, str, float], float]


@pytest.mark.parametrize("waits", [in_a_thread, in_a_task])
def test_a_wait_keeps_its_deadline_whoever_was_to_wake_it(gate: Gate, helpless: None, waits: Waits) -> None:
    """Nobody frees the slots and no helper thread counts the time; the call is refused all the same."""
    for _ in range(2):
        gate.permit("shop", "GET", "/slot").acquire()
    with pytest.raises(DeadlineExceeded):
        waits(gate, "/slot", 0.1)
    assert gate.room.count == 0


@pytest.mark.parametrize("waits", [in_a_thread, in_a_task])
def test_a_wait_ends_when_it_may_although_nobody_wakes_it(gate: Gate, helpless: None, waits: Waits) -> None:
    """Units that come back with time are taken by the waiting call itself."""
    for _ in range(4):
        with gate.permit("shop", "GET", "/burst"):
            pass
    assert waits(gate, "/burst", HOUR) < 60


def test_a_helper_thread_that_fails_goes_on_and_is_told(new_gate: Callable[..., Gate], monkeypatch: Any) -> None:
    """Its error is one event, without the error's text; the call that waits for it is served."""
    gate, told, ticks = new_gate(), list[Event](), []
    gate.events.on(told.append)
    real = gate.room.tick

    def tick(rung: bool) -> float:
        ticks.append(rung)
        if len(ticks) <= 2:
            raise OSError("apiSecret=HIDDEN")
        return real(rung)

    monkeypatch.setattr(gate.room, "tick", tick)
    monkeypatch.setattr(threads, "_FIRST_PAUSE", 0.001)
    for _ in range(4):
        with gate.permit("shop", "GET", "/burst"):
            pass
    in_a_thread(gate, "/burst", HOUR)
    assert len(ticks) > 2
    assert [event.kind for event in told if event.kind != "waiting"] == ["helper failed"]
    assert "'waiting calls' failed (OSError at " in told[0].message and "HIDDEN" not in told[0].message
    assert told[0].fields == {"helper": "waiting calls"}


def test_a_handler_that_hangs_holds_no_other_call(gate: Gate) -> None:
    """The program's handler of events may do anything, also wait for a call of another thread."""
    begun, over = threading.Event(), threading.Event()

    def handler(event: Event) -> None:
        begun.set()
        over.wait(10)

    gate.room.LONG = 0  # type: ignore[misc]
    gate.events.on(handler)
    for _ in range(4):
        with gate.permit("shop", "GET", "/burst"):
            pass
    callers = [threading.Thread(target=in_a_thread, args=(gate, "/burst", HOUR)) for _ in range(4)]
    for thread in callers:
        thread.start()
    assert begun.wait(10)
    with gate.permit("shop", "GET", "/slot", timeout=5):
        pass
    over.set()
    for thread in callers:
        thread.join(20)
        assert not thread.is_alive()


def test_a_gate_made_before_greenlets_replaced_the_threads_says_so(gate: Gate, monkeypatch: Any) -> None:
    """Its locks would stop every greenlet. So a call that has to wait is refused in one sentence."""
    for _ in range(4):
        with gate.permit("shop", "GET", "/burst"):
            pass
    monkeypatch.setattr(module, "green", lambda: "gevent")
    with pytest.raises(RatekeeperError, match="gevent replaced the standard library's threads after this gate"):
        in_a_thread(gate, "/burst", HOUR)
    assert gate.room.count == 0
    gate._threads = lambda: None  # type: ignore[assignment]  # as if the functions of `_thread` were others now
    with pytest.raises(RatekeeperError, match="patch in the first line of the program"):
        gate.permit("shop", "GET", "/burst")
