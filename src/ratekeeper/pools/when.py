"""Instants in notes that all machines of a store read: on the store's clock, which each machine knows within bounds."""

from __future__ import annotations

import time

from ratekeeper.errors import StoreError
from ratekeeper.stores.base import Store

__all__ = ["age", "stamp"]


def stamp(store: Store) -> int:
    """The present on the store's steady clock, ns; the earlier if in doubt."""
    return time.monotonic_ns() + _skew(store)[0]


def age(store: Store, at: int) -> int:
    """How long ago a `stamp` was made, ns; the longer if in doubt. Negative: on another clock, before a reboot."""
    return time.monotonic_ns() + _skew(store)[1] - at


def _skew(store: Store) -> tuple[int, int]:
    try:
        return store.skew()
    except StoreError:
        return 0, 0  # it was never reached: notes go nowhere yet
