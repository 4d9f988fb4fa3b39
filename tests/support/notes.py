"""Notes of a store that are plain bytes."""

from __future__ import annotations

from ratekeeper.stores.base import Store

__all__ = ["noted", "write"]


def write(store: Store, topic: str, value: bytes) -> bytes | None:
    """Write a note whatever stands there; returns what did."""
    return store.update(topic, bytes, lambda old, now: (value, old))


def noted(store: Store, topic: str) -> bytes | None:
    """What stands there."""
    return store.get(topic, bytes)
