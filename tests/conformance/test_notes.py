"""What lies beside the ledgers: several machines change it at once, in every kind of store, and no change is lost."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis
from tests.support.machine import PLACE, made, work
from tests.support.notes import noted, write
from tests.support.server import Server

from ratekeeper import Gate
from ratekeeper.gate.waits import read_waits
from ratekeeper.ledger.limit import SECOND, Instant
from ratekeeper.policy.breaker import Outcomes
from ratekeeper.policy.pace import Paced
from ratekeeper.policy.shared import Bans, Claim, Trouble, banned, claimed
from ratekeeper.sessions.liveness import Dials
from ratekeeper.stores.base import Store
from ratekeeper.stores.host import HostStore
from ratekeeper.stores.memory import MemoryStore
from ratekeeper.stores.redis.store import RedisStore

RULES = Path(__file__).parents[1] / "support" / "testland.toml"
MACHINE = Path(__file__).parents[1] / "support" / "machine.py"
TIMES = 40


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for all tests of this suite."""
    with Server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(params=["memory", "host", "redis"])
def kind(request: pytest.FixtureRequest) -> str:
    """Of store; that of the server is empty."""
    if request.param == "redis":
        redis.Redis(port=request.getfixturevalue("server").port).flushall()
    return str(request.param)


@pytest.fixture
def two(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Store, Store]]:
    """The store as two machines, or two processes, see it."""
    memory = MemoryStore()
    if kind == "redis":
        url = request.getfixturevalue("server").url
        stores: tuple[Store, Store] = RedisStore(url), RedisStore(url)
    else:
        stores = (memory, memory) if kind == "memory" else (HostStore(tmp_path / "h"), HostStore(tmp_path / "h"))
    yield stores
    for store in stores:
        store.close()


def at_once(kind: str, server: Server | None, folder: Path) -> tuple[Gate, list[list[str]]]:
    """Two machines at work at the same moment; returns a third, and what each of the two has won."""
    if server is None and kind == "memory":
        memory = MemoryStore()
        gates, won = [made(memory, folder, RULES) for _ in range(3)], list[list[str]]()
        threads = [threading.Thread(target=lambda gate=gate: won.append(work(gate, TIMES))) for gate in gates[:2]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return gates[2], won
    store = server.url if server is not None else "host://"
    homes = [folder / ("h" if server is None else f"h{nth}") for nth in range(3)]
    running = [
        subprocess.Popen(
            [sys.executable, MACHINE, store, home, RULES, str(TIMES)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for home in homes[:2]
    ]  # fmt: skip
    told = []
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in running:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in running:
        told.append(json.loads(process.communicate(timeout=100)[0]))
        assert process.returncode == 0
    return made(store, homes[2], RULES), told


def test_two_machines_lose_nothing(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Failures of calls and of addresses, the pace of a limit, dials and waits are exactly the sum of what both did, and
    each task is one machine's."""
    server = request.getfixturevalue("server") if kind == "redis" else None
    gate, won = at_once(kind, server, tmp_path)
    with gate:
        store, both = gate.store, 2 * TIMES
        health = store.get("breaker:testland/class:other", Outcomes)
        assert health is not None and health.failed == both
        trouble = store.get(f"failures:{PLACE}", Trouble)
        assert trouble is not None and (trouble.number, trouble.rests) == (both, both)
        paced = store.get(f"pace:{gate.plan('testland', _call()).charges[0].key}", Paced)
        assert paced is not None and paced.part == 1000 - both
        dials = store.get("dial:testland.invalid", Dials)
        assert dials is not None and dials.failures == both
        assert {int(priority): wait.calls for priority, wait in read_waits(store).items()} == {2: both}
        assert sorted(won[0] + won[1]) == sorted(f"task:{nth}" for nth in range(TIMES))


def _call() -> Any:
    from ratekeeper.rules.call import Request

    return Request("GET", "/")


def test_threads_of_one_process_lose_nothing(two: tuple[Store, Store]) -> None:
    """Eight threads on two openings of a store."""

    def add() -> None:
        for nth in range(25):
            two[nth % 2].update("sum", int, lambda old, now: ((old or 0) + 1, None))

    threads = [threading.Thread(target=add) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert two[0].get("sum", int) == 200


class Pair(NamedTuple):
    """Some type of note."""

    number: int
    name: str = ""


@pytest.mark.parametrize("old", [b"", b"?", b"\x00" * 24, b"\xff" * 3, b"12345", b"\x93\x01\x02\x03", b"\x92\x01\x02"])
def test_bytes_of_another_version_are_no_note(two: tuple[Store, Store], old: bytes) -> None:
    """What cannot be read as the type that is asked for is not there, and the next change begins anew."""
    mine, yours = two
    _write_raw(mine, "pair", old)
    assert yours.get("pair", Pair) is None
    assert yours.update("pair", Pair, lambda found, now: (Pair(1, "x"), found)) is None
    assert mine.get("pair", Pair) == Pair(1, "x")


def _write_raw(store: Store, topic: str, raw: bytes) -> None:
    if isinstance(store, RedisStore):
        redis.Redis(port=int(store.address.hosts[0][1])).set(f"hg:{{notes}}:N:{topic}", raw)
    else:
        store.transact(lambda: store._note_down(topic, raw))  # type: ignore[attr-defined]


def test_a_note_that_was_taken_out_is_gone(two: tuple[Store, Store]) -> None:
    """For all, and what it is changed to then begins anew; taking out what is not there is nothing."""
    mine, yours = two
    write(mine, "topic", b"1")
    assert yours.update("topic", bytes, lambda old, now: (None, old)) == b"1"
    assert noted(mine, "topic") is None
    assert mine.update("topic", bytes, lambda old, now: (None, old)) is None
    assert write(mine, "topic", b"2") is None
    assert noted(yours, "topic") == b"2"


def test_the_present_is_within_the_stores_bounds(two: tuple[Store, Store]) -> None:
    """The present that a change is given agrees between machines: what one dates, the other finds as old as it is."""
    mine, yours = two
    dated = mine.update("date", int, lambda old, now: (now.lo, now))
    assert dated.lo <= dated.hi
    seen = yours.update("date", int, lambda old, now: (old, (old, now)))
    assert seen[0] is not None and 0 <= seen[1].hi - seen[0] < 60 * SECOND


def test_claims_end_and_are_given_back(two: tuple[Store, Store]) -> None:
    """A task is one's until its time is over or it is given back, and prolonged by whoever has it."""
    mine, yours = two

    def claim(store: Store, seconds: float) -> Claim | int:
        until = store.present().mono + int(seconds * SECOND)
        return store.update("task", Claim, lambda old, now: claimed(old, now, until))

    assert isinstance(claim(mine, 60), Claim)
    left = claim(yours, 60)
    assert isinstance(left, int) and 50 * SECOND < left - yours.present().mono < 70 * SECOND
    mine.update("task", Claim, lambda old, now: (None, None))
    assert isinstance(claim(yours, -1), Claim)
    assert isinstance(claim(mine, 60), Claim)


def test_claims_are_renewed_while_they_last(two: tuple[Store, Store]) -> None:
    """Whoever has a task keeps it for longer; one that was given back stays free."""
    mine, yours = two
    assert mine.claim("task", 60 * SECOND) == 0
    mine.renew("task", 300 * SECOND)
    assert 290 * SECOND < yours.claim("task", 60 * SECOND) - yours.present().mono < 310 * SECOND
    mine.release("task", 300 * SECOND)
    mine.renew("task", 300 * SECOND)
    assert yours.claim("task", 60 * SECOND) == 0


def test_the_ladder_of_bans_is_climbed_once_for_calls_that_left_before(two: tuple[Store, Store]) -> None:
    """Two machines that are refused at the same time have met one ban; whoever is refused afterwards has met another."""

    def meet(store: Store, ago: float) -> int:
        sent = store.present().mono - int(ago * SECOND)
        return store.update("bans", Bans, lambda old, now: banned(old, now, sent, lambda nth: (nth + 1) * SECOND))

    mine, yours = two
    assert [meet(mine, 1), meet(yours, 1), meet(mine, 1)] == [SECOND, 0, 0]
    assert [meet(yours, -1), meet(mine, -2)] == [2 * SECOND, 3 * SECOND]


def test_a_server_may_forget_a_note_after_its_time(server: Server) -> None:
    """Where a change says how long its note is of use, the server keeps it no longer than so."""
    client = redis.Redis(port=server.port)
    store = RedisStore(server.url)
    store.update("kept", int, lambda old, now: (1, None))
    store.update("short", int, lambda old, now: (1, None), 30 * SECOND)
    assert client.ttl("hg:{notes}:N:kept") == -1
    assert 0 < client.ttl("hg:{notes}:N:short") <= 31
    assert isinstance(store.update("short", int, lambda old, now: (old, now)), Instant)
    store.close()
