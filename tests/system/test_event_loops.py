"""Nobody waits for the network on an event loop: a server that is 200 ms away each way, and every policy in turn."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.support.loops import Watch
from tests.support.relay import Relay
from tests.support.server import Server

from ratekeeper import Event, Gate
from ratekeeper.errors import Blocked, BreakerOpen
from ratekeeper.gate.permit import Permit
from ratekeeper.gate.waits import read_waits
from ratekeeper.policy.breaker import OPEN, PROBING, Breaker
from ratekeeper.policy.freshness import Cache, Service
from ratekeeper.policy.pace import Paced
from ratekeeper.policy.policies import Policies
from ratekeeper.policy.retry import Retry
from ratekeeper.policy.shared import Bans
from ratekeeper.pools.health import REST, WARNINGS
from ratekeeper.sessions.dials import Dialler
from ratekeeper.sessions.liveness import Dials, Liveness
from ratekeeper.sessions.transports import Websockets

RULES = """
format = 1
name = "faraway"
title = "A provider for a slow store"
hosts = ["faraway.test"]
source = "T"

[sources]
T = { title = "made for these tests", read = 2026-11-27, confidence = "D" }

[owners]
account.header = "x-key"

[limits.calls-1d]
unit = "calls"
capacity = 1000
period = "1d"
window = "sliding"
scope = "ip"

[limits.few-1s]
unit = "few"
capacity = 100
period = "1s"
window = "sliding"
scope = "ip"

[default]
class = "market"
cost = { calls = 1 }

[[routes]]
match = "GET /few"
class = "market"
cost = { few = 1 }

[[routes]]
match = "POST /order"
class = "order"
cost = { calls = 1 }

[[routes]]
match = "GET /balance"
class = "account"
cost = { calls = 1 }

[keep]
"GET /balance" = "30s"

[ban]
first = "2m"
factor = 3
longest = "10m"

[[refusals]]
status = [418]
outcome = "banned"
block = "ip"
"""
POOL = """
[egress.addresses]
a = "127.0.0.2"
b = "127.0.0.3"

[egress.pools.faraway]
primary = ["a", "b"]
"""
Far = Callable[..., Gate]


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Far]:
    """Makes gates whose server is 200 ms away each way."""
    rules, config = tmp_path / "faraway.toml", tmp_path / "ratekeeper.toml"
    rules.write_text(RULES)
    config.write_text("")
    made: list[Gate] = []
    with Server(tmp_path / "server") as server, Relay(server.port, (200, 200)) as relay:

        def make(settings: str = "", **policies: Any) -> Gate:
            config.write_text(settings)
            made.append(
                Gate(
                    relay.url, home=tmp_path / f"home{len(made)}", config=config, rules=[rules], hosts={}, learn=False,
                    policies=Policies(**policies),
                )
            )  # fmt: skip
            return made[-1]

        yield make
        relay.delay = (0, 0)
        for gate in made:
            gate.close()


def watched(monkeypatch: pytest.MonkeyPatch, main: Callable[[], Awaitable[None]]) -> None:
    """Run it on an event loop, and fail if the thread of that waits."""
    with Watch(monkeypatch) as watch:
        asyncio.run(main())  # type: ignore[arg-type]
    assert not watch.waits, watch.waits[0]


def kinds(gate: Gate) -> list[str]:
    """The events of a gate, as they come."""
    seen: list[str] = []

    def tell(event: Event) -> None:
        seen.append(event.kind)

    gate.on(tell)
    return seen


async def until(true: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait for something that happens soon."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        await asyncio.sleep(0.01)


async def call(gate: Gate, status: int, path: str = "/x", method: str = "GET") -> None:
    """One call, and how it is answered."""
    async with gate.permit("faraway", method, path, timeout=30) as permit:
        await asyncio.sleep(0)
        permit.settle(status, {"retry-after": "1"} if status == 429 else {})


def blocks(gate: Gate, kind: str) -> list[int]:
    """Seconds of the blocks of a kind, as this process knows them."""
    return sorted(round((state.length or 0) / 1e9) for state in gate.store.blocks.states() if state.kind == kind)


def test_a_wait_is_seen(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    """What these tests stand on: a verb that is called on the loop is seen, and so is a lock whose holder is at it."""
    gate = far()

    async def asks() -> None:
        gate.store.get("topic", int)

    async def stands() -> None:
        lock = threading.Lock()

        def hold() -> None:
            with lock:
                gate.store.get("topic", int)

        thread = threading.Thread(target=hold)
        thread.start()
        await asyncio.sleep(0.05)
        with lock:
            thread.join()

    for main in (asks, stands):
        with Watch(monkeypatch) as watch:
            asyncio.run(main())
        assert watch.waits


def test_plain_calls(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permits, answers, a call that is cancelled before the server was ever reached, and what waited is added up."""
    gate = far()

    async def main() -> None:
        hasty = asyncio.create_task(call(gate, 200))
        await asyncio.sleep(0.05)
        hasty.cancel()
        with suppress(asyncio.CancelledError):
            await hasty
        await asyncio.gather(*(call(gate, 200) for _ in range(20)))
        async with gate.permit("faraway", "GET", "/x") as permit:
            permit.refund()
        async with gate.permit("faraway", "GET", "/x") as permit:
            permit.unknown()
        gate.room.waits.share()

    watched(monkeypatch, main)
    end = time.monotonic() + 30
    while sum(wait.calls for wait in read_waits(gate.store).values()) < 20:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_throttled_answers_with_a_pool(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    """Warnings are counted and the address rests; so does one from which no connection can be made, at once."""
    gate = far(POOL)
    seen = kinds(gate)

    async def main() -> None:
        for _ in range(2 * WARNINGS - 1):  # of two addresses, one has its third
            await call(gate, 429, "/few")
        await until(lambda: "egress" in seen)
        assert blocks(gate, REST) == [60]
        async with gate.permit("faraway", "GET", "/x", timeout=30) as permit:
            assert not permit.unreachable()
            assert blocks(gate, REST) == [5, 60]  # known here before the server has heard of it
        await until(lambda: seen.count("egress") == 2)

    watched(monkeypatch, main)
    assert sorted(gate.egress.health.warnings(f"faraway/egress:{name}") for name in "ab") == [0, WARNINGS - 1]


def test_a_ban_without_a_stated_end(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds at once, for the least that it lasts; the server knows of earlier ones, and makes it longer."""
    gate, other = far(), far()
    told: list[tuple[str, int]] = []
    for name, each in (("gate", gate), ("other", other)):
        each.on(lambda e, name=name: told.append((name, round(e.fields["seconds"]))) if e.kind == "banned" else None)

    async def main() -> None:
        await asyncio.gather(call(gate, 200), call(other, 200))
        await call(other, 418)
        await until(lambda: blocks(gate, "ban") == [120])
        await asyncio.to_thread(gate.unblock, "faraway/ip:default")
        await call(gate, 418)
        assert blocks(gate, "ban") == [120]
        await until(lambda: blocks(gate, "ban") == [360])
        with pytest.raises(Blocked):
            await call(gate, 200)

    watched(monkeypatch, main)
    assert told == [("other", 120), ("gate", 120), ("gate", 360)]
    bans = gate.store.get("ban:faraway/ip:default", Bans)
    assert bans is not None and len(bans.counted) == 2


def test_a_breaker_opens_is_probed_and_closes(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failures are counted, the breaker opens, a probe is claimed, and its success closes it."""
    gate = far(breaker=Breaker(failures=3, cooldown=0.5))
    seen = kinds(gate)
    status = 500

    async def send(permit: Permit) -> tuple[int, dict[str, str], bytes]:
        return status, {}, b"{}"

    async def main() -> None:
        nonlocal status
        await asyncio.gather(*(gate.call_async("faraway", "GET", "/x", send) for _ in range(3)))
        assert "breaker" in seen and blocks(gate, OPEN) and blocks(gate, PROBING)
        with suppress(BreakerOpen):
            await gate.call_async("faraway", "GET", "/x", send)
        status = 200
        await until(lambda: all(s.ends() < time.monotonic_ns() for s in gate.store.blocks.states() if s.kind == OPEN))
        await gate.call_async("faraway", "GET", "/x", send)
        assert "breaker closed" in seen and not blocks(gate, PROBING)

    watched(monkeypatch, main)


def test_kept_answers_and_single_flights(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    """One asks for all, here and on the other machine; what is kept is given, and an order makes it outdated."""
    gate, other = far(cache=Cache(market=30.0)), far(cache=Cache(market=30.0))
    sent = 0

    async def send(permit: Permit) -> tuple[int, dict[str, str], bytes]:
        nonlocal sent
        sent += 1
        await asyncio.sleep(0.2)
        return 200, {}, b"{}"

    async def main() -> None:
        got = await asyncio.gather(*(at.call_async("faraway", "GET", "/x", send) for at in (gate, other) * 4))
        assert sent == 1
        served = [str(each.service) for each in got]
        assert served.count("fresh") == 1  # who looks after the leader has stored its response finds a hit
        assert set(served) <= {"fresh", "shared", "hit"}
        assert (await other.call_async("faraway", "GET", "/x", send)).service is Service.HIT
        key = {"x-key": "one"}
        for method, path, expected in (
            ("GET", "/balance", 2), ("GET", "/balance", 2), ("POST", "/order", 3), ("GET", "/balance", 4)
        ):  # fmt: skip
            await gate.call_async("faraway", method, path, send, headers=key)
            assert sent == expected
        lead = asyncio.create_task(gate.call_async("faraway", "GET", "/y", send))
        await asyncio.sleep(0.1)
        lead.cancel()
        with suppress(asyncio.CancelledError):
            await lead
        await gate.call_async("faraway", "GET", "/y", send)

    watched(monkeypatch, main)


def test_pace_and_retries(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal without a reason leaves less of the limit, an answer that is fine looks whether more may be used; failed
    calls are made again."""
    gate = far(retry=Retry(attempts=3, first=0.01))
    answers = iter([429, 503, 200])

    async def send(permit: Permit) -> tuple[int, dict[str, str], bytes]:
        return next(answers), {"retry-after": "1"}, b"{}"

    async def main() -> None:
        await gate.call_async("faraway", "GET", "/few", send)
        await until(lambda: any(part[0] == 700 for part in gate.store.learned.get("faraway", {}).values()))
        await call(gate, 200, "/few")

    watched(monkeypatch, main)
    end = time.monotonic() + 30
    while not ((paced := gate.store.get("pace:faraway/few-1s/ip:default", Paced)) and paced.stepped):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert paced.low == 700


def test_dials(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose turn it is to dial, and what became of it."""
    gate = far()
    dialler = Dialler(gate, "wss://faraway.test/stream", {}, Websockets(), Liveness(), None)

    async def main() -> None:
        await dialler.turn()
        for _ in range(3):
            await dialler.failed(good=False)

    watched(monkeypatch, main)
    dials = gate.store.get("dial:faraway.test", Dials)
    assert dials is not None and dials.failures == 3
