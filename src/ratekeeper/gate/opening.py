"""Opening of a gate's store, with the secret that hashes API keys in it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ratekeeper.config.resolution import configure
from ratekeeper.config.schema import store_address
from ratekeeper.errors import StoreError, StoreUnavailable
from ratekeeper.stores.base import SharedStore, Store
from ratekeeper.stores.redis.address import is_address

if TYPE_CHECKING:
    from ratekeeper.stores.share import PartStore

__all__ = ["bare_store", "opened", "secret_of", "spare_store"]

_PATIENT = 2.0
"""Seconds that a person's command waits for the lock of the host store."""


def spare_store(main: Store | None, home: Path | None) -> PartStore:
    """Return a fallback store with a safe share of every limit: each limit divided by the number of live processes.

    Args:
        main: the store of the gate that failed; None: there is none.
        home: the state folder of that gate; None: the configured one.
    """
    from ratekeeper.stores.fallback import FallbackStore
    from ratekeeper.stores.members import WakeSockets
    from ratekeeper.stores.pauses import Pauses
    from ratekeeper.stores.share import PartStore

    if isinstance(main, FallbackStore):
        return main.spare()
    home = home or configure().home
    part = PartStore(1 + len(WakeSockets(home / "wake").living()))
    part.pauses = Pauses(home, "")
    return part


def opened(store: str | Store | None, home: Path, say: Callable[[str, str], None]) -> tuple[Store, bytes]:
    """Open the store of that address; return it with its secret. Each kind of store is imported on first use.

    Args:
        store: the address, ``""`` or None for ``host://``; or a `Store`, used as it is.
        home: the state folder.
        say: called with kind and sentence when a shared store is lost and when it is back.

    Raises:
        StoreError: there is no such kind of store.
    """
    if isinstance(store, Store):
        return store, secrets.token_bytes(32)
    name = store_address(store)
    if name.startswith("memory"):
        from ratekeeper.stores.memory import MemoryStore

        return MemoryStore(), secrets.token_bytes(32)
    from ratekeeper.stores.fallback import FallbackStore

    if is_address(name):
        from ratekeeper.stores.redis.store import RedisStore

        remote = RedisStore(name, home=home)
        return FallbackStore(remote, say), remote.secret(home)
    from ratekeeper.stores.host import HostStore

    try:
        secret = secret_of(home)
    except StoreError:
        secret = b""  # the store will report the error; without the folder processes share nothing
    return FallbackStore(HostStore(home), say), secret


def bare_store(home: Path | None = None) -> SharedStore:
    """Open the shared store in force without a fallback, for a person who wants to know what it says; else the host store.

    Args:
        home: open the host store of this state folder instead.

    Raises:
        StoreError: there is no such kind of store.
    """
    name = store_address(str(configure().store))
    if home is None and is_address(name):
        from ratekeeper.stores.redis.store import RedisStore

        return RedisStore(name, home=configure().home)
    from ratekeeper.stores.host import HostStore

    return HostStore(configure(home=home).home, patience=_PATIENT)


def secret_of(home: Path) -> bytes:
    """Return the secret that hashes API keys. All processes of a folder share it; the first use creates it.

    Raises:
        StoreError: the folder can be neither read nor written.
    """
    from ratekeeper.stores.files import make_folder, open_private

    path = home / "secret"
    try:
        make_folder(home)
        draft = home / f"secret.{os.getpid()}"
        if not path.exists():
            with os.fdopen(open_private(draft, os.O_WRONLY | os.O_TRUNC), "wb") as file:
                file.write(secrets.token_bytes(32))
            try:
                os.link(draft, path)  # fails if another process was first
            except FileExistsError:
                pass
            finally:
                draft.unlink(missing_ok=True)
        return path.read_bytes()
    except OSError as error:
        raise StoreUnavailable(f"{path}: {error.strerror}") from error
