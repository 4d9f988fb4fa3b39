"""Who takes part: Headgate and its peers, behind the same three questions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from benchmarks import ours, peers

__all__ = ["CONTENDERS", "permits", "shared_permits", "taker"]

CONTENDERS = ("headgate", *peers.PEERS)


def permits(name: str, limits: int, folder: Path) -> Callable[[int], Awaitable[None]]:
    """See `peers.permits`; Headgate's names are ``headgate``, ``headgate store`` and both with `` host`` behind."""
    return ours.permits(name, limits, folder) if name.startswith("headgate") else peers.permits(name, limits)


def shared_permits(name: str, folder: Path) -> Callable[[], Any]:
    """See `peers.shared_permits`."""
    return ours.shared_permits(name, folder) if name.startswith("headgate") else peers.shared_permits(folder)


def taker(name: str, kind: str, capacity: int, period: float, folder: Path | None) -> peers.Take:
    """See `peers.taker`."""
    return (ours if name == "headgate" else peers).taker(name, kind, capacity, period, folder)
