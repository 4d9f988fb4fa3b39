"""Which address a call leaves from."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ratekeeper import Blocked, DeadlineExceeded, Gate

RULES = """
format = 1
name = "shop"
title = "A small provider"
hosts = ["shop.test"]
source = "T"

[sources]
T = { title = "made for these tests", read = 2026-11-20, confidence = "D" }

[owners]
account.header = "x-key"

[limits.weight-1h]
unit = "weight"
capacity = 10
period = "1h"
window = "sliding"
scope = "ip"
headers.used = "x-used"

[limits.mine-1h]
unit = "mine"
capacity = 100
period = "1h"
window = "sliding"
scope = "account"

[limits.slots]
unit = "slots"
capacity = 1
window = "slots"
scope = "ip"

[default]
class = "market"
cost = { weight = 1 }

[[routes]]
match = "GET /slot"
class = "market"
cost = { slots = 1 }

[[routes]]
match = "GET /mine"
class = "account"
cost = { weight = 1, mine = 1 }
"""
POOL = """
[egress.addresses]
a = "127.0.0.2"
b = "127.0.0.3"
c = "127.0.0.4"
[egress.pools.shop]
primary = ["a", "b"]
backups = ["c"]
"""


@pytest.fixture
def new_gate(tmp_path: Path) -> Any:
    """Makes gates with a pool; all are closed at the end."""
    made: list[Gate] = []
    (tmp_path / "shop.toml").write_text(RULES)

    def make(config: str = POOL, **options: Any) -> Gate:
        path = tmp_path / "ratekeeper.toml"
        path.write_text(config)
        made.append(Gate("memory://", config=path, rules=[tmp_path / "shop.toml"], **options))
        return made[-1]

    yield make
    for gate in made:
        gate.close()


def take(gate: Gate, path: str = "/x", **options: Any) -> str:
    """One call; the name of the address it left from."""
    with gate.permit("shop", "GET", path, timeout=0, **options) as permit:
        return permit.egress.name


def test_capacity_adds_up(new_gate: Callable[..., Gate]) -> None:
    """Three addresses of ten give thirty permits, then a refusal; backups serve last."""
    gate = new_gate()
    names = [take(gate) for _ in range(30)]
    assert sorted(names[:20]) == ["a"] * 10 + ["b"] * 10
    assert names[20:] == ["c"] * 10
    with pytest.raises(DeadlineExceeded):
        take(gate)


def test_tasks_choose_as_threads_do(new_gate: Callable[..., Gate]) -> None:
    """The asyncio way gives the same thirty."""
    gate = new_gate()

    async def one() -> str:
        async with gate.permit("shop", "GET", "/x", timeout=0) as permit:
            return permit.egress.name

    async def main() -> list[str]:
        return [await one() for _ in range(30)]

    assert sorted(asyncio.run(main())) == ["a"] * 10 + ["b"] * 10 + ["c"] * 10


def test_what_the_provider_counts_moves_the_choice(new_gate: Callable[..., Gate]) -> None:
    """An address whose counter is high, because somebody else uses it, is used less."""
    gate = new_gate()
    with gate.permit("shop", "GET", "/x") as permit:
        first = permit.egress.name
        permit.settle(200, {"X-Used": "9"})
    other = {"a": "b", "b": "a"}[first]
    assert [take(gate) for _ in range(5)] == [other] * 5


def test_a_ban_is_of_one_address(new_gate: Callable[..., Gate]) -> None:
    """No call leaves from an address while it is banned; afterwards it is used again."""
    gate = new_gate()
    gate.block("shop/ip:a", 600, "ban")
    assert {take(gate) for _ in range(6)} == {"b"}
    gate.unblock("shop/ip:a")
    assert "a" in {take(gate) for _ in range(6)}


def test_all_banned_says_the_soonest_end(new_gate: Callable[..., Gate]) -> None:
    """If every address is banned the refusal is of the one that opens first."""
    gate = new_gate()
    for name, seconds in (("a", 600), ("b", 300), ("c", 900)):
        gate.block(f"shop/ip:{name}", seconds, "ban")
    with pytest.raises(Blocked) as caught, gate.permit("shop", "GET", "/x", timeout=5):
        pass
    assert caught.value.scope == "shop/ip:b"


def test_three_refusals_send_it_to_rest(new_gate: Callable[..., Gate]) -> None:
    """An address that is refused three times is left, and said to be."""
    gate = new_gate(POOL.replace('["a", "b"]', '["a"]').replace('["c"]', '["b"]'))
    events: list[str] = []
    gate.on(lambda event: events.append(event.message) if event.kind == "egress" else None)
    for _ in range(3):
        for state in gate.store.blocks.states():
            gate.unblock(state.scope)
        with gate.permit("shop", "GET", "/slot") as permit:
            assert permit.egress.name == "a"
            permit.settle(429)
    assert take(gate, "/slot") == "b"
    assert events == ["a rests for 60 s: 3 warnings"]


def test_an_unreachable_address_is_left(new_gate: Callable[..., Gate]) -> None:
    """`Permit.unreachable` gives everything back, and the next call leaves from elsewhere."""
    gate = new_gate()
    permit = gate.permit("shop", "GET", "/x")
    permit.acquire()
    first = permit.egress.name
    assert permit.unreachable()
    assert sum(view.used + view.inflight for view in gate.read().ledgers) == 0
    assert first not in {take(gate) for _ in range(10)}


def test_if_all_rest_they_are_used_all_the_same(new_gate: Callable[..., Gate]) -> None:
    """A provider that is down makes every address rest: the next call tries, rather than wait for nothing."""
    gate = new_gate()
    for expected in (True, True, False):
        permit = gate.permit("shop", "GET", "/x")
        permit.acquire()
        assert permit.unreachable() is expected
    assert take(gate) in {"a", "b", "c"}


@pytest.mark.parametrize(("pin", "used"), [('{ desk = "c" }', {"c"}), ('"b"', {"b"}), ('{ "*" = ["a", "c"] }', {"a"})])
def test_pins(pin: str, used: set[str], new_gate: Callable[..., Gate]) -> None:
    """A pinned account leaves from its addresses only; calls that show no account are free."""
    gate = new_gate(POOL + f"pin = {pin}\n")
    assert {take(gate, "/mine", account="desk") for _ in range(6)} == used
    assert {take(gate) for _ in range(6)} >= {"a", "b"} - used


def test_a_key_is_pinned_by_its_digest(new_gate: Callable[..., Gate]) -> None:
    """The digest that `status` shows stands for the key, whatever the route."""
    gate = new_gate()
    headers = {"x-key": "k" * 10}
    plan = gate.permit("shop", "GET", "/mine", headers=headers).plan
    digest = next(scope for scope in plan.scopes if "account:" in scope).rpartition(":")[2]
    gate.egress.pools["shop"].pins[digest] = ["c"]
    assert {take(gate, headers=headers) for _ in range(4)} == {"c"}


def test_a_pinned_call_waits_for_its_address(new_gate: Callable[..., Gate]) -> None:
    """However free the others are."""
    gate = new_gate(POOL + 'pin = { desk = "a" }\n')
    for _ in range(10):
        assert take(gate, account="desk") == "a"
    with pytest.raises(DeadlineExceeded) as caught:
        take(gate, account="desk")
    assert caught.value.scope == "shop/weight-1h/ip:a"


def test_low_calls_leave_a_pinned_address_what_critical_ones_want(new_gate: Callable[..., Gate]) -> None:
    """Low calls of the pool use the other addresses to the end, and not the last units of that to which others are pinned."""
    gate = new_gate(POOL + 'pin = { desk = "a" }\n')
    for _ in range(3):
        assert take(gate, account="desk", priority="critical") == "a"
    used: list[str] = []
    with contextlib.suppress(DeadlineExceeded):
        used += (take(gate, priority="low") for _ in range(100))
    assert used.count("b") == used.count("c") == 10
    assert used.count("a") < 7
    assert take(gate, account="desk", priority="critical") == "a"


def test_a_call_that_waits_gets_what_is_freed(new_gate: Callable[..., Gate]) -> None:
    """All slots are taken: whoever waits is served when one comes back, and told where it is."""
    gate = new_gate()
    held = []
    for _ in range(3):
        held.append(gate.permit("shop", "GET", "/slot"))
        held[-1].acquire()
    got: list[str] = []

    def wait() -> None:
        with gate.permit("shop", "GET", "/slot", timeout=20) as permit:
            got.append(permit.egress.name)

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    while gate.room.count < 3:
        threading.Event().wait(0.01)
    for permit in held:
        permit.settle()
    for thread in threads:
        thread.join(20)
    assert len(got) == 3


def test_a_cancelled_wait_leaves_nothing(new_gate: Callable[..., Gate]) -> None:
    """A task that gives up while it stands in line leaves neither a place nor a permit."""
    gate = new_gate()

    async def main() -> None:
        held = [gate.permit("shop", "GET", "/slot") for _ in range(3)]
        for permit in held:
            await permit.acquire_async()
        task = asyncio.create_task(gate.permit("shop", "GET", "/slot", timeout=60).acquire_async())
        depths = gate.context.depths
        while not any(depths.length(f"shop/ip:{name}") for name in "abc"):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        for permit in held:
            permit.settle()

    asyncio.run(main())
    assert gate.room.count == 0
    assert all(view.inflight == 0 for view in gate.read().ledgers)
    assert [gate.context.depths.length(f"shop/ip:{name}") for name in "abc"] == [0, 0, 0]


def test_a_program_told_its_address_does_not_choose(
    new_gate: Callable[..., Gate], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``RATEKEEPER_EGRESS`` names the one address of this program, with its way out."""
    monkeypatch.setenv("RATEKEEPER_EGRESS", "c")
    gate = new_gate()
    assert take(gate) == "c"
    assert gate.permit("shop", "GET", "/x").egress.bind == "127.0.0.4"


def test_who_cannot_choose_uses_the_default(new_gate: Callable[..., Gate]) -> None:
    """A caller that does not roam spends on the address named as the default, else on the first primary."""
    assert take(new_gate(), any_address=False) == "a"
    assert (
        take(
            new_gate(POOL.replace("[egress.addresses]", '[egress]\nname = "b"\n[egress.addresses]')), any_address=False
        )
        == "b"
    )
    assert take(new_gate(), egress="b") == "b"
    assert take(new_gate("")) == "default"
