"""The governed call, as users make it."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from email.utils import formatdate

import pytest

import ratekeeper
from ratekeeper import (
    Blocked,
    CannotFit,
    DeadlineExceeded,
    Event,
    Gate,
    Priority,
    Rejected,
    RuleError,
    UnknownProvider,
)


def spent(gate: Gate, limit: str = "weight-1h") -> tuple[int, int]:
    """(used, in flight) of a limit of the shop."""
    for view in gate.read().ledgers:
        if view.key == f"shop/{limit}/ip:default":
            return view.used, view.inflight
    return 0, 0


def test_a_permit_is_in_flight_inside_the_block_and_spent_after_it(gate: Gate) -> None:
    """What a call costs is held while it runs and counts as spent once it is over."""
    with gate.permit("shop", "GET", "/x") as permit:
        assert spent(gate) == (0, 1)
        assert permit.plan.charges[0].cost == 1
    assert spent(gate) == (1, 0)


def test_tasks_and_threads_use_the_same_gate(gate: Gate) -> None:
    """A gate serves asyncio and plain code alike."""

    async def one() -> None:
        async with gate.permit("shop", "GET", "/x"):
            assert spent(gate) == (0, 1)

    asyncio.run(one())
    with gate.permit("shop", "GET", "/x"):
        pass
    assert spent(gate) == (2, 0)


def test_a_permit_is_had_at_once_or_waited_for(gate: Gate) -> None:
    """Whoever asks without waiting has it, or may wait, or gives up his place in the line."""
    held = [gate.permit("shop", "GET", "/slot") for _ in range(2)]
    assert all(permit.at_once() for permit in held)
    waits = gate.permit("shop", "GET", "/slot", timeout=5)
    assert not waits.held and not waits.at_once()
    assert gate.room.count == 1
    waits.give_up()
    assert gate.room.count == 0
    for permit in held:
        permit.give_up()
    with gate.permit("shop", "GET", "/slot", timeout=1):
        pass


def test_refund_gives_everything_back(gate: Gate) -> None:
    """A call that was never sent costs nothing."""
    with gate.permit("shop", "GET", "/x") as permit:
        permit.refund()
    assert spent(gate) == (0, 0)


def test_a_call_without_an_answer_stays_charged(gate: Gate) -> None:
    """When the block raises, the request may still arrive: its units stay in flight."""
    with pytest.raises(OSError, match="reset"), gate.permit("shop", "GET", "/x"):
        raise OSError("reset")
    assert spent(gate) == (0, 1)


def test_the_answer_tells_the_real_cost_and_the_counter(gate: Gate) -> None:
    """A used-counter above everything of ours is foreign traffic: it is added and told."""
    events: list[Event] = []
    gate.on(events.append)
    with gate.permit("shop", "GET", "/x") as permit:
        permit.settle(200, {"X-Used": "6"})
    assert spent(gate) == (6, 0)
    assert [event.kind for event in events] == ["foreign"]
    assert events[0].fields["units"] == 5


def test_costs_named_by_the_caller_win(gate: Gate) -> None:
    """The caller may know the cost better than the rules, by unit or by limit name."""
    with gate.permit("shop", "GET", "/x") as permit:
        permit.settle(costs={"weight": 3})
    assert spent(gate) == (3, 0)


def test_a_permit_is_settled_once(gate: Gate) -> None:
    """Saying twice what became of a permit changes nothing, and it cannot be acquired while it is held."""
    with gate.permit("shop", "GET", "/x") as permit:
        with pytest.raises(RuntimeError, match="one attempt"):
            permit.acquire()
        permit.settle(200, {})
        permit.refund()
        permit.unknown()
    assert spent(gate) == (1, 0)


def test_a_cost_above_the_limit_is_refused_at_once(gate: Gate) -> None:
    """What can never fit is refused, with the limit's name; it never waits."""
    with pytest.raises(CannotFit) as caught:
        gate.permit("shop", "GET", "/big").acquire()
    assert caught.value.limit == "weight-1h"
    assert "11 weight" in str(caught.value)
    assert caught.value.retry_at is None


def test_a_deadline_that_cannot_be_met_is_told_at_once(gate: Gate) -> None:
    """With no room for an hour, a call that would wait a second is refused without waiting."""
    for _ in range(10):
        with gate.permit("shop", "DELETE", "/order"):
            pass
    with pytest.raises(DeadlineExceeded) as caught:
        gate.permit("shop", "DELETE", "/order", timeout=1).acquire()
    assert caught.value.limit == "weight-1h"
    assert caught.value.retry_at is not None
    assert 3500 < caught.value.retry_at - time.time() < 3700
    assert spent(gate) == (10, 0)


def test_a_slot_is_handed_on_by_whoever_frees_it(gate: Gate) -> None:
    """A call that waits for a slot goes as soon as a holder leaves, with no polling."""
    first, second = gate.permit("shop", "GET", "/slot"), gate.permit("shop", "GET", "/slot")
    first.acquire()
    second.acquire()
    got = threading.Event()

    def third() -> None:
        with gate.permit("shop", "GET", "/slot", timeout=30):
            got.set()

    thread = threading.Thread(target=third)
    thread.start()
    while not gate.room.count:
        assert thread.is_alive()
    assert not got.is_set()
    first.settle()
    assert got.wait(10)
    thread.join()
    second.settle()
    assert spent(gate, "slots") == (0, 0)


def test_waiting_calls_go_when_units_come_back(gate: Gate) -> None:
    """Twelve calls on a bucket of four go in turns, each when its computed instant comes."""

    async def all_of_them() -> None:
        async def one() -> None:
            async with gate.permit("shop", "GET", "/burst", timeout=30):
                pass

        await asyncio.gather(*(one() for _ in range(12)))

    begun = time.monotonic()
    asyncio.run(all_of_them())
    assert time.monotonic() - begun > 0.35  # eight units at twenty a second


def test_a_cancelled_wait_takes_nothing(gate: Gate) -> None:
    """A task that is cancelled while it waits leaves the lane; its units were never taken."""

    async def scene() -> None:
        async with gate.permit("shop", "GET", "/slot"), gate.permit("shop", "GET", "/slot"):
            waiting = asyncio.create_task(gate.permit("shop", "GET", "/slot").acquire_async())
            while not gate.room.count:
                await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert gate.room.count == 0

    asyncio.run(scene())
    assert spent(gate, "slots") == (0, 0)


def test_a_task_cancelled_after_the_grant_gives_it_back(gate: Gate) -> None:
    """Granted and cancelled in the same breath: the permit comes back, once."""

    async def scene() -> None:
        first, second = gate.permit("shop", "GET", "/slot"), gate.permit("shop", "GET", "/slot")
        await first.acquire_async()
        await second.acquire_async()
        waiting = asyncio.create_task(gate.permit("shop", "GET", "/slot").acquire_async())
        while not gate.room.count:
            await asyncio.sleep(0)
        first.settle()  # grants to the waiting task...
        waiting.cancel()  # ...which is cancelled before it runs
        with pytest.raises(asyncio.CancelledError):
            await waiting
        second.settle()
        assert spent(gate, "slots") == (0, 0)

    asyncio.run(scene())


def test_a_deadline_ends_the_wait(gate: Gate) -> None:
    """When nobody can know the instant, the wait still ends at its deadline."""
    third = gate.permit("shop", "GET", "/slot", timeout=0.05)
    with (
        gate.permit("shop", "GET", "/slot"),
        gate.permit("shop", "GET", "/slot"),
        pytest.raises(DeadlineExceeded) as no,
    ):
        third.acquire()
    assert "no permit within 0.1 s" in str(no.value) or "no permit within 0.0 s" in str(no.value)
    assert gate.room.count == 0


def test_priority_comes_from_the_call_the_block_the_gate_or_the_route(new_gate: Callable[..., Gate]) -> None:
    """The nearest word counts."""
    gate = new_gate(priority="low")
    plain = new_gate()

    def priority(permit: object) -> int:
        return permit._priority  # type: ignore[attr-defined, no-any-return]

    assert priority(plain.permit("shop", "DELETE", "/order")) == Priority.CRITICAL
    assert priority(gate.permit("shop", "DELETE", "/order")) == Priority.LOW
    with ratekeeper.priority("high"):
        assert priority(gate.permit("shop", "GET", "/x")) == Priority.HIGH
        assert priority(gate.permit("shop", "GET", "/x", priority=Priority.BACKGROUND)) == Priority.BACKGROUND
    with pytest.raises(RuleError, match="use one of critical, high"):
        gate.permit("shop", "GET", "/x", priority="urgent")


def test_a_pause_stops_one_class_and_lets_others_pass(gate: Gate) -> None:
    """A paused class waits; cancels go on; resuming lets the waiting go at once."""
    gate.block("shop/class:market", None, reason="by hand")
    with pytest.raises(Blocked, match="until it is resumed"):
        gate.permit("shop", "GET", "/x", timeout=5).acquire()
    with gate.permit("shop", "DELETE", "/order"):
        pass
    assert gate.unblock("shop/class:market")
    with gate.permit("shop", "GET", "/x", timeout=0):
        pass


def test_a_ban_holds_the_scope_and_says_why(gate: Gate) -> None:
    """A banned owner is refused at once where the ban outlasts the caller's patience."""
    gate.block("shop/ip:default", 120.0, "ban", "banned by the shop")
    with pytest.raises(Blocked) as caught:
        gate.permit("shop", "GET", "/x", timeout=1).acquire()
    assert "banned by the shop" in str(caught.value)
    assert caught.value.retry_at is not None
    with gate.permit("shop", "GET", "/x", egress="second"):
        pass


def test_unknown_provider_and_untouched_hosts(gate: Gate) -> None:
    """A name without rules is an error; a host without rules passes and is counted."""
    with pytest.raises(UnknownProvider):
        gate.permit("no-such-shop", "GET", "/")
    assert gate.match("example.org") is None
    assert gate.untouched_hosts == {"example.org": 1}
    found = gate.match("shop.test", "/x")
    assert found is not None
    assert found.name == "shop"


def test_a_closed_gate_refuses_who_waits(gate: Gate) -> None:
    """Closing ends every wait with an error instead of hanging it."""
    first, second = gate.permit("shop", "GET", "/slot"), gate.permit("shop", "GET", "/slot")
    first.acquire()
    second.acquire()
    errors: list[Exception] = []

    def third() -> None:
        try:
            gate.permit("shop", "GET", "/slot").acquire()
        except Rejected as error:
            errors.append(error)

    thread = threading.Thread(target=third)
    thread.start()
    while not gate.room.count:
        assert thread.is_alive()
    gate.close()
    thread.join(10)
    assert len(errors) == 1


def test_two_gates_on_one_home_share_a_budget(new_gate: Callable[..., Gate]) -> None:
    """Gates that use the host store of one home spend from the same ledgers and read the same secret."""
    one, two = new_gate("host://"), new_gate("host://")
    key = {"X-KEY": "k" + "1"}
    with one.permit("shop", "GET", "/x", headers=key), two.permit("shop", "GET", "/x", headers=key):
        assert spent(one) == spent(two) == (0, 2)
    assert spent(one) == (2, 0)


def test_a_forked_child_has_a_gate_of_its_own(new_gate: Callable[..., Gate]) -> None:
    """After a fork the child is another member: its permits count, its death frees nothing of the parent's."""
    gate = new_gate("host://")
    with gate.permit("shop", "GET", "/x"):
        child = os.fork()
        if child == 0:
            try:
                with gate.permit("shop", "GET", "/x"):
                    pass
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        assert status == 0
        assert spent(gate) == (1, 1)
    assert spent(gate) == (2, 0)


def test_handlers_that_raise_do_not_disturb_calls(gate: Gate) -> None:
    """A program's event handler is not ours to trust; taking it off again works."""

    def bad(event: Event) -> None:
        raise ValueError("handler")

    off = gate.on(bad)
    with gate.permit("shop", "GET", "/x") as permit:
        permit.settle(200, {"x-used": "5"})
    off()
    assert spent(gate) == (5, 0)


def test_a_refusal_by_a_clock_that_was_never_told_widens_the_doubt(gate: Gate) -> None:
    """By our count there was room: the windows of a provider that tells no time may lie anywhere."""
    with gate.permit("binance-usdm", "GET", "/fapi/v1/klines") as permit:
        permit.settle(429, {"retry-after": "1"}, b'{"code":-1003,"msg":"Too many requests."}')
    assert gate.times.clock("binance-usdm").doubt == 30_000_000_000
    with gate.permit("binance-spot", "GET", "/api/v3/time") as permit:
        permit.settle(200, {"date": "Fri, 20 Nov 2026 10:00:00 GMT"})
    known = gate.times.clock("binance-spot")
    known.widen(30_000_000_000)
    assert known.doubt < 600_000_000


@pytest.mark.parametrize(
    ("hours", "kind"), [(-20 * 24, "clock"), (3, "clock"), (87_600, "doubted"), (-87_600, "doubted")]
)
def test_an_answer_on_another_day_is_told_and_believed(gate: Gate, hours: int, kind: str) -> None:
    """The provider's clock wins over this machine's, unless it is years away: no certificate would be valid there. What was
    counted stays counted."""
    events: list[Event] = []
    gate.on(events.append)
    for _ in range(3):
        with gate.permit("binance-usdm", "GET", "/fapi/v1/time") as permit:
            permit.settle(200, {"date": formatdate(time.time() + 3600 * hours, usegmt=True)})
    assert [event.kind for event in events] == [kind]
    assert abs(gate.times.now("binance-usdm").lo / 1e9 - time.time() - (0 if kind == "doubted" else 3600 * hours)) < 5
    assert gate.read().ledgers[0].used == 3


def test_a_waiting_call_of_a_busy_process_is_served_from_a_batch(
    new_gate: Callable[..., Gate], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the store hands out of a batch is a permit for a waiting call too."""
    gate = new_gate("host://")
    with gate.permit("binance-usdm", "GET", "/fapi/v1/time"):
        pass
    gate.block("binance-usdm", None, reason="by hand")
    got = threading.Event()

    def waiting() -> None:
        with gate.permit("binance-usdm", "GET", "/fapi/v1/time", timeout=60) as permit:
            assert permit.held
            got.set()

    monkeypatch.setattr("ratekeeper.gate.room.check", lambda *_: None)  # wait for the pause to end
    thread = threading.Thread(target=waiting)
    thread.start()
    while not gate.room.count:
        assert thread.is_alive()
    monkeypatch.setattr("ratekeeper.stores.batching.DeferredSettles.busy", lambda *_: True)
    gate.unblock("binance-usdm")
    assert got.wait(10)
    thread.join(10)
    assert gate.room.count == 0
