"""Which store a gate works on, and the key under which API keys are digested there."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

from headgate.errors import StoreError
from headgate.gate.settings import open_store_name, secret_of
from headgate.stores.base import Store
from headgate.stores.memory import MemoryStore
from headgate.stores.redis.address import is_address

__all__ = ["opened"]


def opened(store: str | Store | None, home: Path, say: Callable[[str, str], None]) -> tuple[Store, bytes]:
    """The store of that address, with its key; each kind is imported when it is wanted.

    Args:
        store: its address, ``""`` or None for ``host://``; or a store, which is taken as it is.
        home: the state folder.
        say: told, as kind and sentence, when a shared store is lost and when it is back.

    Raises:
        StoreError: no such kind of store.
    """
    if isinstance(store, Store):
        return store, secrets.token_bytes(32)
    name = open_store_name(store)
    if name.startswith("memory"):
        return MemoryStore(), secrets.token_bytes(32)
    if is_address(name):
        from headgate.stores.redis.store import RedisStore
        from headgate.stores.safe import SafeStore

        remote = RedisStore(name, home=home)
        return SafeStore(remote, say), remote.secret(home)
    from headgate.stores.host import HostStore
    from headgate.stores.safe import SafeStore

    try:
        secret = secret_of(home)
    except StoreError:
        secret = b""  # the store will say what is wrong; without the folder nothing is shared anyhow
    return SafeStore(HostStore(home), say), secret
