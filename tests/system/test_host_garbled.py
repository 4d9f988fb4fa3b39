"""Whatever bytes lie in the records of the host store: no call passes that should not, and a ban is kept."""

from __future__ import annotations

import functools
import gc
import logging
import random
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import lmdb
import msgspec
import pytest
import urllib3

from ratekeeper import Gate
from ratekeeper.adapters._governor import Governor
from ratekeeper.adapters.urllib3 import pool_classes
from ratekeeper.errors import Blocked, RatekeeperError
from ratekeeper.gate.waits import Wait
from ratekeeper.ledger.limit import SECOND
from ratekeeper.policy.shared import Claim
from ratekeeper.stores.members import WakeSockets
from ratekeeper.stores.records import Ask, Grant

sys.path.append(str(Path(__file__).parents[1] / "support"))

from origin import Origin

LIMIT = 16
RULES = f"""
format = 1
name = "garbled"
title = "Garbled"
hosts = ["garbled.invalid"]
source = "T1"
[sources]
T1 = {{ title = "invented", read = 2026-11-21, confidence = "D" }}
[limits.hits]
unit = "requests"
capacity = {LIMIT}
period = "1d"
window = "sliding"
[limits.steady]
unit = "requests"
capacity = {LIMIT}
period = "7d"
window = "fixed"
[limits.leaky]
unit = "requests"
capacity = {LIMIT}
period = "30d"
window = "bucket"
[default]
class = "other"
cost = {{ requests = 1 }}
[[routes]]
match = "POST /order"
class = "order"
cost = {{ requests = 1 }}
"""
KINDS = ("L", "P", "N", "M", "F", "A", "!generation", "!blocks", "!learned", "!rebuilt", "!version", "!boot")


def noise(raw: bytes, dice: random.Random) -> bytes:
    return dice.randbytes(len(raw) or 8)


GARBLED: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "noise": noise,
    "empty": lambda raw, dice: b"",
    "cut": lambda raw, dice: raw[: len(raw) // 2],
    "negative": lambda raw, dice: b"\xff" * max(8, len(raw)),
    "greatest": lambda raw, dice: struct.pack("<q", 2**63 - 1) * max(1, len(raw) // 8),
    "digits": lambda raw, dice: b"9" * 5000,
    "minus": lambda raw, dice: b"-1",
    "brackets": lambda raw, dice: b"[" * 2000,
    "json": lambda raw, dice: msgspec.json.encode({"garbled": {"hits": (2**63 - 1, -5), "steady": (0, 0)}}),
    "msgpack": lambda raw, dice: msgspec.msgpack.encode(
        [("garbled/hits/ip:default", 2**63 - 1), ("x" * 9000, -(2**63))]
    ),
}

CASES = [(kind, how) for kind in KINDS for how in ("noise", "cut", "negative", "greatest", "json")]
CASES += [("all", how) for how in GARBLED]


@pytest.fixture(scope="module")
def origin() -> Iterator[Origin]:
    """A server that counts what arrives."""
    with Origin() as server:
        yield server


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, origin: Origin) -> Path:
    """A store in which every kind of record lies, after half of the calls; orders are banned."""
    home = tmp_path_factory.mktemp("whole") / "h"
    prepared(home, origin)
    gc.collect()
    return home


def gate_of(home: Path, origin: Origin) -> Gate:
    """A gate of another process, as it were: nothing of it is left when it is closed."""
    rules = home.parent / "garbled.toml"
    rules.write_text(RULES)
    return Gate("host://", home=home, hosts={origin.place: "garbled"}, rules=[rules], max_wait=0.0, learn=False)


def call(gate: Gate, origin: Origin, times: int, path: str = "/x", method: str = "GET") -> list[str]:
    """What became of so many calls through an adapter as `ratekeeper run` puts it into programs."""
    pools = urllib3.PoolManager(retries=False)
    pools.pool_classes_by_scheme = pool_classes(Governor(gate, lenient=True), pools.pool_classes_by_scheme)
    fates = []
    for _ in range(times):
        try:
            answer = pools.request(method, f"http://{origin.place}{path}")
            # A long block is told in the provider's form: an answer of our own.
            fates.append(Blocked.__name__ if answer.headers.get("x-ratekeeper-answer") == "refused" else "sent")
        except RatekeeperError as error:
            fates.append(type(error).__name__)
    pools.clear()
    return fates


def prepared(home: Path, origin: Origin) -> None:
    """Make that store."""
    gate = gate_of(home, origin)
    call(gate, origin, LIMIT // 2)
    gate.block(f"{gate.match(origin.place).namespace}/class:order", 3600, "ban", "test")  # type: ignore[union-attr]
    store, provider = gate.store.inner, gate.match(origin.place)  # type: ignore[attr-defined]
    store.learn(provider.namespace, {"hits": (LIMIT, 86_400 * SECOND)})
    store.update(f"contact:{provider.namespace}", Claim, lambda *_: (Claim(10**18), None))
    store.update("waits", dict[int, Wait], lambda *_: ({2: Wait(1, 2, 3)}, None))
    gate.times.learn(provider.namespace, 0, (0, 10**19))
    plan = gate.permit(provider, "GET", "/x").plan
    held = store.reserve(Ask(plan.provider, plan.charges, plan.scopes, (gate.member, 2)), gate.times.now(plan.provider))
    assert isinstance(held, Grant)
    store.hold(held, 1)  # its lease has ended: whoever comes next reads the record
    offline = WakeSockets(home / "absent")
    offline.open(5)
    store.transact(store._leave_to_offline)
    for name, value in ((b"!rebuilt", b"1"), (b"M%016x" % 9, b"dead[1]"), (b"F%016x" % 8, b"ended[1]")):
        store.transact(functools.partial(lambda put: store._txn.put(*put), (name, value)))
    gate.close()
    offline.close()


def garble(
    home: Path, kinds: tuple[str, ...], how: Callable[[bytes, random.Random], bytes], dice: random.Random
) -> int:
    """Write something else into all records of these kinds; returns into how many."""
    with lmdb.open(str(home / "ledgers"), lock=False) as env, env.begin(write=True) as txn:
        with txn.cursor() as cursor:
            found = [(bytes(name), bytes(value)) for name, value in cursor]
        chosen = [(name, value) for name, value in found if name.startswith(tuple(kind.encode() for kind in kinds))]
        for name, value in chosen:
            txn.put(name, how(value, dice))
        if "!generation" not in kinds and any(kind.startswith("!") for kind in kinds):
            txn.put(b"!generation", b"%x" % dice.getrandbits(60))  # so that it is looked at
    return len(chosen)


@pytest.mark.parametrize(("kind", "how"), CASES)
def test_a_garbled_record_opens_no_tap(
    kind: str, how: str, whole: Path, tmp_path: Path, origin: Origin, caplog: pytest.LogCaptureFixture
) -> None:
    """One kind of record after the other, and all of them, hold other bytes: the server sees no call above the limit, the
    ban is kept, no call fails but by a refusal of ours, and the next process finds a store that works."""
    caplog.set_level(logging.CRITICAL, "ratekeeper")
    home, before = tmp_path / "h", len(origin.arrivals)
    shutil.copytree(whole, home, ignore=shutil.ignore_patterns("wake"))
    assert garble(home, KINDS if kind == "all" else (kind,), GARBLED[how], random.Random(f"{kind} {how}"))
    for _ in range(2):
        gate = gate_of(home, origin)
        call(gate, origin, LIMIT // 2 + 2)
        assert set(call(gate, origin, 2, "/order", "POST")) == {Blocked.__name__}
        gate.close()
        del gate
        gc.collect()
    assert len(origin.arrivals) - before <= LIMIT // 2
