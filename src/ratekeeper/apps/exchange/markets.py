"""The markets of an exchange, kept in the state folder for an hour, so that not every command asks for them."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from ratekeeper.stores.files import make_folder, write_private
from ratekeeper.typed import json_decoder

__all__ = ["load_markets"]

_FRESH: Final = 3600.0
"""Seconds for which kept markets serve."""


class _Kept(msgspec.Struct):
    """What a load brings: the markets, and what the object notes of them among its options."""

    markets: list[dict[str, Any]]
    options: dict[str, Any]


def load_markets(exchange: Any, home: Path, *, anew: bool = False) -> bool:
    """Load the markets into an exchange object of ccxt.

    Args:
        exchange: the object; it asks the exchange only where nothing fresh is kept.
        home: the state folder.
        anew: ask in any case.

    Returns:
        Whether the exchange was asked.
    """
    if exchange.markets and not anew:
        return False
    path = _path(exchange, home)
    kept = None if anew else _read(path)
    if kept is not None:
        exchange.options.update(kept.options)
        exchange.set_markets(kept.markets)
        return False
    before = {name: _encoded(value) for name, value in exchange.options.items()}
    exchange.load_markets(anew)
    # Some exchange objects note more than the markets while they load them.
    noted = {
        name: value for name, value in exchange.options.items() if name not in before or _encoded(value) != before[name]
    }
    raw = _encoded(_Kept(list(exchange.markets.values()), noted))
    secrets = [str(getattr(exchange, name, None) or "") for name in exchange.requiredCredentials]
    if raw is not None and not any(secret and secret.encode() in raw for secret in secrets):
        _keep(path, raw)
    return True


def _path(exchange: Any, home: Path) -> Path:
    import ccxt

    where = _encoded([exchange.urls["api"], ccxt.__version__]) or b""
    return home / "markets" / f"{exchange.id}-{hashlib.sha256(where).hexdigest()[:12]}.json"


def _read(path: Path) -> _Kept | None:
    try:
        if not 0 <= time.time() - path.stat().st_mtime < _FRESH:
            return None
        found = json_decoder(_Kept)(path.read_bytes())
    except (OSError, ValueError, RecursionError, msgspec.MsgspecError):
        return None
    return found if found.markets and all("symbol" in each for each in found.markets) else None


def _keep(path: Path, raw: bytes) -> None:
    try:
        make_folder(path.parent)
        write_private(path, raw)
    except OSError:
        pass  # the next command asks again


def _encoded(value: Any) -> bytes | None:
    """The value as JSON; None: JSON cannot hold it."""
    try:
        return msgspec.json.encode(value)
    except (TypeError, ValueError, RecursionError):
        return None
