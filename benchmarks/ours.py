"""Ratekeeper behind the same three questions as its `peers`."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from benchmarks.peers import AMPLE, SPANS, Settle, Take
from ratekeeper import Gate
from ratekeeper.stores.records import Ask, Grant

__all__ = ["FORMS", "permits", "shared_permits", "taker"]

FORMS = ("ratekeeper", "ratekeeper store")
"""A whole permit, as users take it; and the two verbs of the store inside it, which is what the peers' calls do."""

RULES = """
format = 1
name = "benchmark"
title = "Nobody's limits"
source = "B"
[sources]
B = {{ title = "made up for a benchmark", read = 2026-11-20, confidence = "D" }}
[default]
cost = {{ requests = 1 }}
{limits}
"""
LIMIT = """
[limits.{name}]
unit = "requests"
capacity = {capacity}
period = "{period:g}s"
window = "{window}"
headers.used = "{used}"
"""


def _gate(folder: Path, store: str, *limits: str) -> Gate:
    folder.mkdir(exist_ok=True)
    rules = folder / f"benchmark-{time.perf_counter_ns()}.toml"
    rules.write_text(RULES.format(limits="".join(limits)))
    return Gate(store, home=folder, hosts={}, rules=[rules])


def _ample(limits: int) -> list[str]:
    return [
        LIMIT.format(name=f"every-{span}s", capacity=AMPLE, period=span, window="fixed", used="")
        for span in SPANS[:limits]
    ]


def _verbs(gate: Gate) -> Callable[[], object]:
    """Reserve and settle, as a permit does it, without the permit."""
    plan = gate.permit("benchmark", "GET", "/").plan
    store, now, who = gate.store, gate.times.now, gate.context.who[2]

    def once() -> None:
        grant = store.reserve(Ask(plan.provider, plan.charges, plan.scopes, who), now(plan.provider))
        assert isinstance(grant, Grant)
        store.settle(grant, now(plan.provider))

    return once


def permits(form: str, limits: int, folder: Path, store: str = "memory://") -> Callable[[int], Awaitable[None]]:
    """See `peers.permits`. `form` is one of `FORMS`."""

    async def run(count: int) -> None:
        with _gate(folder, store, *_ample(limits)) as gate:
            if form == "ratekeeper":
                for _ in range(count):
                    async with gate.permit("benchmark", "GET", "/"):
                        pass
            else:
                once = _verbs(gate)
                for _ in range(count):
                    once()

    return run


def shared_permits(form: str, folder: Path) -> Callable[[], Any]:
    """See `peers.shared_permits`."""
    gate = _gate(folder, "host://", *_ample(1))
    if form != "ratekeeper":
        return _verbs(gate)

    def take() -> None:
        with gate.permit("benchmark", "GET", "/"):
            pass

    return take


def taker(kind: str, capacity: int, period: float, folder: Path, *, shared: bool) -> Take:
    """See `peers.taker`. Ratekeeper alone makes use of the answer: the used-counter and the date."""
    limit = LIMIT.format(name="only", capacity=capacity, period=period, window=kind, used="x-used")
    gate = _gate(folder, "host://" if shared else "memory://", limit)

    async def take() -> Settle:
        permit = gate.permit("benchmark", "GET", "/")
        await permit.acquire_async()
        return permit.settle

    return take
