"""What a person stops, and what passes all the same: scopes in people's words, waiting calls, the emergency."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ratekeeper import Blocked, Gate, RuleError, UnknownProvider
from ratekeeper.gate.override import operator_override, overriding, spoken, understood
from ratekeeper.rules.call import Request

RULES = """
format = 1
name = "desk"
title = "Everything of one class on one limit"
hosts = ["desk.test"]
source = "T"

[sources]
T = { title = "made for these tests", read = 2026-11-21, confidence = "D" }

[limits.calls]
unit = "calls"
capacity = 2
refill = 2
period = "300ms"
window = "bucket"
scope = "ip"

[default]
class = "market"
cost = { calls = 1 }

[[routes]]
match = "POST /order"
class = "order"
cost = { calls = 1 }

[[routes]]
match = "DELETE /order"
class = "cancel"
cost = { calls = 1 }
"""


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """A gate all of whose calls have one class, as where a program sets its priority: nobody overtakes by class."""
    rules = tmp_path / "desk.toml"
    rules.write_text(RULES)
    with Gate("memory://", rules=[rules], hosts={"127.0.0.1:9": "desk"}, priority="high", learn=False) as made:
        yield made


def call(gate: Gate, method: str = "POST", path: str = "/order", timeout: float = 20.0) -> None:
    """One call."""
    with gate.permit("desk", method, path, timeout=timeout):
        pass


NAMESPACE = "desk@127.0.0.1:9"


@pytest.mark.parametrize(
    ("said", "meant", "again"),
    [
        ("everything", "*", "everything"),
        ("*", "*", "everything"),
        ("orders", "*/class:order", "orders"),
        ("class:order", "*/class:order", "orders"),
        ("class:cancel", "*/class:cancel", "class:cancel"),
        ("ip:default", "*/ip:default", "ip:default"),
        ("desk", NAMESPACE, NAMESPACE),
        ("desk/class:order", f"{NAMESPACE}/class:order", f"{NAMESPACE}/class:order"),
        ("desk/account:main", f"{NAMESPACE}/account:main", f"{NAMESPACE}/account:main"),
        ("desk@other:1/class:order", "desk@other:1/class:order", "desk@other:1/class:order"),
        (f"{NAMESPACE}/calls/ip:default", f"{NAMESPACE}/calls/ip:default", f"{NAMESPACE}/calls/ip:default"),
    ],
)
def test_scopes_in_peoples_words(gate: Gate, said: str, meant: str, again: str) -> None:
    """What is written is understood, shown, and understood again when it is written as it was shown."""
    assert gate.scope(said) == meant
    assert spoken(meant) == again
    assert gate.scope(again) == meant


@pytest.mark.parametrize("wrong", ["desk/order", "desk/class:", "desk/class:orders", "class:trade", "*/", "orders/now"])
def test_a_scope_that_nobody_has_is_refused(gate: Gate, wrong: str) -> None:
    """A slip must not look like a stop."""
    with pytest.raises(RuleError):
        gate.scope(wrong)


def test_an_unknown_provider_is_refused() -> None:
    """The name is looked up where the rules are."""

    def nobody(name: str) -> str:
        raise UnknownProvider(name)

    with pytest.raises(UnknownProvider):
        understood("nowhere/class:order", nobody)


@pytest.mark.parametrize("scope", ["orders", "everything", "desk", "desk/class:order", "ip:default"])
def test_a_pause_stops_orders_and_lets_cancels_pass(gate: Gate, scope: str) -> None:
    """The error names what was paused in the words of the command; resumed, orders go."""
    gate.block(gate.scope(scope), None, reason="by hand")
    with pytest.raises(Blocked, match=r"is shut until it is resumed \(pause: by hand\)") as told:
        call(gate)
    assert str(told.value).startswith(spoken(gate.scope(scope)))
    call(gate, "DELETE")
    assert gate.unblock(gate.scope(scope), "pause")
    call(gate)


def test_market_data_goes_on_while_orders_are_paused(gate: Gate) -> None:
    """Only what was named is stopped."""
    gate.block(gate.scope("orders"), None)
    call(gate, "GET", "/candles")
    with pytest.raises(Blocked):
        call(gate)


def test_orders_that_wait_are_stopped_and_stand_in_nobodys_way(gate: Gate) -> None:
    """Calls that wait already are held by a pause; cancels and candles of the same class and limit go past them."""
    failed: list[str] = []

    def order() -> None:
        try:
            call(gate)
        except Blocked as error:
            failed.append(str(error))

    call(gate, "GET", "/candles")
    call(gate, "GET", "/candles")  # now the limit is full, and everybody waits
    orders = [threading.Thread(target=order) for _ in range(5)]
    for thread in orders:
        thread.start()
    while gate.room.count < 5:
        threading.Event().wait(0.001)
    gate.block(gate.scope("orders"), 60, reason="by hand")
    call(gate, "DELETE")
    call(gate, "GET", "/candles")
    for thread in orders:
        thread.join()
    assert len(failed) == 5
    assert "pause: by hand" in failed[0]


def test_an_emergency_passes_pauses_but_no_ban(gate: Gate) -> None:
    """What a person wants now goes on under every pause; a ban is the provider's, and holds."""
    for scope in ("everything", "orders", "desk"):
        gate.block(gate.scope(scope), None)
    with operator_override():
        call(gate)
    with pytest.raises(Blocked):
        call(gate)
    gate.block(gate.scope("desk"), 60, "ban", "too many")
    with operator_override(), pytest.raises(Blocked, match="ban: too many"):
        call(gate, timeout=1)


def test_plans_of_an_emergency_are_told_apart(gate: Gate) -> None:
    """Permits taken together for one kind of call are never handed out to the other: their charges are two objects."""
    plan = gate.provider("desk").plan(Request("POST", "/order"))
    assert overriding(plan) is plan
    with operator_override():
        urgent = overriding(plan)
        assert overriding(urgent) is urgent
    assert urgent.charges == plan.charges
    assert urgent.charges is not plan.charges
    assert set(urgent.scopes) - set(plan.scopes) == {"emergency"}


def test_an_emergency_ends_with_its_block(gate: Gate) -> None:
    """Also where it raises."""
    gate.block(gate.scope("orders"), None)
    stop: Callable[[], None] = lambda: call(gate)  # noqa: E731 - the call that is tried after each
    with operator_override():
        stop()
    with pytest.raises(ValueError, match="on purpose"), operator_override():
        raise ValueError("on purpose")
    with pytest.raises(Blocked):
        stop()
