"""Who takes part: Ratekeeper and its peers, behind the same three questions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from benchmarks import ours, peers

__all__ = ["CONTENDERS", "permits", "shared_permits", "taker"]

CONTENDERS = ("ratekeeper", *peers.PEERS)


def permits(name: str, limits: int, folder: Path) -> Callable[[int], Awaitable[None]]:
    """See `peers.permits`; Ratekeeper has several forms, and those that end in ``host`` share with other processes."""
    if name.startswith("ratekeeper"):
        form = name.removesuffix(" host")
        return ours.permits(form, limits, folder, "memory://" if form == name else "host://")
    return peers.permits(name, limits, folder)


def shared_permits(name: str, folder: Path) -> Callable[[], Any]:
    """See `peers.shared_permits`."""
    return ours.shared_permits(name, folder) if name.startswith("ratekeeper") else peers.shared_permits(folder)


def taker(name: str, kind: str, capacity: int, period: float, folder: Path, *, shared: bool = False) -> peers.Take:
    """See `peers.taker`; ``no limiter`` waits for nothing."""
    if name == "no limiter":
        return peers.unlimited
    if name == "ratekeeper":
        return ours.taker(kind, capacity, period, folder, shared=shared)
    return peers.taker(name, kind, capacity, period, folder, shared=shared)
