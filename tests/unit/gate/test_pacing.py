"""The pace after refusals, kept for all gates of a store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ratekeeper import Event, Gate
from ratekeeper.rules.call import Request
from ratekeeper.stores.inforce import PACED

LEDGER = "weight-1h/ip:default"


@pytest.fixture(params=["memory://", "host://"])
def made(request: pytest.FixtureRequest, rules: Path, tmp_path: Path) -> Iterator[Callable[[], Gate]]:
    """Makes gates on one home, of either store of one machine."""
    gates: list[Gate] = []

    def make() -> Gate:
        gates.append(Gate(request.param, rules=[rules], home=tmp_path / "home"))
        return gates[-1]

    yield make
    for gate in gates:
        gate.close()


def call(gate: Gate, status: int, used: int = 0) -> None:
    """One call that is answered so."""
    with gate.permit("shop", "GET", "/x", timeout=0) as permit:
        permit.settle(status, {"x-used": str(used)} if used else {})


def usable(gate: Gate) -> int:
    """Units of the hour's limit that may be spent, as the store sees it."""
    plan = gate.plan("shop", Request("GET", "/x"))
    store = getattr(gate.store, "inner", gate.store)
    return int(store._in_force.of(plan.charges[0], gate.store.learned).usable)


def test_a_refusal_without_reason_leaves_less(made: Callable[[], Gate]) -> None:
    """Once a window, and the user is told once; an answer that is fine changes nothing before its time."""
    gate = made()
    events: list[Event] = []
    gate.on(events.append)
    call(gate, 200)
    assert usable(gate) == 10
    call(gate, 503)
    assert usable(gate) == 10  # overloaded is not quota
    with gate.permit("shop", "GET", "/x") as first, gate.permit("shop", "GET", "/x") as second:
        first.settle(429)
        second.settle(429)
    assert usable(gate) == 7
    assert [event.kind for event in events].count("paced") == 1
    assert gate.store.learned["shop"][PACED + LEDGER][0] == 700


def test_a_counter_that_explains_it_leaves_all(made: Callable[[], Gate]) -> None:
    """Others spent the limit: the ledger has added them, and nothing needs to be felt out."""
    gate = made()
    call(gate, 429, used=10)
    assert usable(gate) == 10
    assert not [row for row in gate.store.learned["shop"] if row.startswith(PACED)]


def test_it_holds_for_other_gates_of_the_store(rules: Path, tmp_path: Path) -> None:
    """And for those that begin later."""
    with Gate("host://", rules=[rules], home=tmp_path) as one, Gate("host://", rules=[rules], home=tmp_path) as two:
        call(two, 200)
        call(one, 429)
        with two.permit("shop", "GET", "/slot"):  # looks at the store, as every call does
            assert usable(two) == 7


def test_a_call_larger_than_the_part_fits_still(new_gate: Callable[..., Gate]) -> None:
    """It waits for the limit, and is not refused for ever."""
    gate = new_gate()
    gate.store.learn("shop", {PACED + "burst/ip:default": (100, 1), PACED + LEDGER: (100, 1)})
    charge = gate.plan("shop", Request("GET", "/x")).charges[0]
    assert usable(gate) == 1
    assert gate.store._in_force.of(charge._replace(cost=6), gate.store.learned).usable == 6  # type: ignore[attr-defined]
    bucket = gate.plan("shop", Request("GET", "/burst")).charges[0]
    assert gate.store._in_force.of(bucket, gate.store.learned).refill == 1  # type: ignore[attr-defined]


def test_smooth_pacing_spreads_a_window(rules: Path, tmp_path: Path) -> None:
    """Of ten units an hour one may be spent in six minutes; a bucket is smooth by itself."""
    config = tmp_path / "ratekeeper.toml"
    config.write_text('[providers.shop]\npace = "smooth"\n')
    with Gate("memory://", rules=[rules], config=config, home=tmp_path) as gate:
        plan = gate.plan("shop", Request("GET", "/x"))
        even = plan.charges[1]
        assert even.key == "shop/weight-1h~smooth/ip:default"
        assert (even.cost, even.limit.capacity, even.limit.period) == (1, 1, 360 * 10**9)
        assert len(gate.plan("shop", Request("GET", "/burst")).charges) == 1
        assert gate.provider("shop").explain(Request("GET", "/x")).limits[0].name == "weight-1h"
        call(gate, 429)
        assert usable(gate) == 7
