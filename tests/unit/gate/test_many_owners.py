"""Many owners in one process: nothing that a gate keeps grows with every owner that it ever met."""

from __future__ import annotations

import gc
import time
from collections import deque
from pathlib import Path

import pytest

from ratekeeper import Gate, Rejected
from ratekeeper.ledger.limit import SECOND
from ratekeeper.rules import answer

OWNERS = 4_800
MOST = 4_300
"""More entries than any cache of one process has: most keep 4,096."""
RULES = """
format = 1
name = "many"
title = "A provider of many owners"
hosts = ["many.invalid"]
source = "T1"
[sources]
T1 = { title = "invented", read = 2026-11-27, confidence = "D" }
[owners]
key.header = "x-key"
[limits.requests-2s]
unit = "requests"
capacity = 10
period = "2s"
window = "fixed"
scope = "key"
headers.used = "x-used"
headers.limit = "x-limit"
[limits.tokens-2s]
unit = "tokens"
capacity = 1000
period = "2s"
window = "sliding"
scope = "key"
[default]
class = "market"
cost = { requests = 1, tokens = 3 }
"""


@pytest.fixture
def jumping(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What all clocks are ahead by, ns."""
    ahead, mono, wall = [0], time.monotonic_ns, time.time_ns
    monkeypatch.setattr(time, "monotonic_ns", lambda: mono() + ahead[0])
    monkeypatch.setattr(time, "time_ns", lambda: wall() + ahead[0])
    return ahead


def large(root: object) -> list[str]:
    """The containers with many entries that objects of ours under `root` hold, and by which attribute."""
    found, seen, left = [], {id(root)}, deque([root])
    while left:
        one = left.popleft()
        for held in gc.get_referents(one):
            if id(held) in seen or isinstance(held, type) or type(held).__name__ in ("module", "function"):
                continue
            seen.add(id(held))
            if isinstance(held, dict | list | set | tuple | deque) and len(held) > MOST:
                names = [name for name, value in getattr(one, "__dict__", {}).items() if value is held]
                found.append(f"{type(one).__name__} {names}: {len(held)}")
            left.append(held)
    return found


@pytest.mark.parametrize("store", ["memory://", "host://"])
def test_nothing_grows_with_every_owner(
    store: str, tmp_path: Path, jumping: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of keys make a call each, some of which is refused: no container of the gate keeps one entry a key, and
    the store is small when their windows are over."""
    monkeypatch.setattr(answer, "_MOST_RECIPES", 4_096)
    rules = tmp_path / "many.toml"
    rules.write_text(RULES)
    with Gate(store, home=tmp_path / "h", rules=[rules], learn=False) as gate:
        environment = getattr(getattr(gate.store, "inner", None), "_environment", None)
        if environment is not None:
            environment.patience = 20.0  # a loaded machine must not count as a stopped process

        def some(first: int) -> None:
            for number in range(first, first + 50):
                permit = gate.permit("many", "GET", "/x", headers={"x-key": f"key-{number}"}, timeout=0)
                try:
                    with permit:
                        headers = {"x-used": "1"}
                        if not number % 10:
                            headers["x-limit"] = str(5 + number % 3)
                        permit.settle(200 if number % 100 else 429, headers, b"")
                except Rejected:
                    pass

        for first in range(0, OWNERS, 50):
            some(first)
            jumping[0] += SECOND // 4
        assert large(gate) == []
        jumping[0] += 60 * SECOND
        assert len(gate.read().ledgers) <= 200
        jumping[0] += 60 * SECOND
        assert len(gate.read().ledgers) <= 200
        assert sum(len(rows) for rows in gate.store.learned.values()) <= 1_000
