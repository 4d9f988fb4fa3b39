"""Which account at which exchange, and its keys: from the environment or from a file of their own, never from arguments."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from ratekeeper.adapters.ccxt import govern
from ratekeeper.config.file import SettingsFile, read_settings
from ratekeeper.config.schema import CREDENTIALS, VARIABLE, ExchangeSettings
from ratekeeper.errors import RuleError
from ratekeeper.gate.gate import Gate
from ratekeeper.policy.policies import Policies
from ratekeeper.rules.call import Priority
from ratekeeper.rules.secrets import struck

__all__ = ["Account", "chosen", "connected", "without_secrets"]

_THEIRS: Final = ("apiKey", "secret", "password", "uid", "accountId", "walletAddress", "privateKey")
_CREDENTIALS: Final = dict(zip(CREDENTIALS, _THEIRS, strict=True))
"""Our name of a credential -> ccxt's."""
_PATIENCE: Final = 10_000
"""Milliseconds to wait for an answer of the exchange."""
_WAIT: Final = 10.0
"""Seconds that a call of a person waits for room; at the highest class that is long. He is told of a longer ban at once."""


class Account(NamedTuple):
    """An account to act on.

    Attributes:
        name: of its table in the configuration, or ``""``.
        exchange: ccxt's name.
        said: the table.
    """

    name: str
    exchange: str
    said: ExchangeSettings


def chosen(exchange: str = "", account: str = "", file: SettingsFile | None = None) -> Account:
    """The account that is meant.

    Args:
        exchange: ccxt's name, or ``""``.
        account: name of an ``[exchanges.NAME]`` table, or ``""``.
        file: the configuration; None: the one in force.

    Raises:
        RuleError: there is none, or several.
    """
    file = file or read_settings()
    tables = [Account(name, said.exchange or name, said) for name, said in file.settings.exchanges.items()]
    names = ", ".join(table.name for table in tables) or "none; see [exchanges.NAME] in docs/reference/configuration.md"
    found = [table for table in tables if account in ("", table.name) and exchange in ("", table.exchange, table.name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise RuleError(f"several accounts fit. Say --account NAME, one of: {', '.join(each.name for each in found)}")
    if account:
        at = f" at {exchange}" if exchange else ""
        raise RuleError(f"no account is called {account!r}{at}. There are: {names}")
    if not exchange:
        raise RuleError("which exchange? Say --exchange ID (ccxt's name), or configure [exchanges.NAME]")
    return Account("", exchange, ExchangeSettings())


def _keys(account: Account, environment: Mapping[str, str], folder: Path | None) -> dict[str, str]:
    """The credentials by ccxt's names, as far as they are given."""
    said = account.said
    place = f"exchanges.{account.name}"
    if said.keys:
        return _keys_of_file((folder or Path()) / Path(said.keys).expanduser(), f"{place}.keys")
    found = {}
    for ours, theirs in _CREDENTIALS.items():
        named = getattr(said, ours)
        if named and not VARIABLE.fullmatch(named):
            # It is not repeated: somebody may have written the key itself.
            raise RuleError(
                "is not the name of an environment variable (capital letters, digits and _). "
                "Write there which variable holds it, and remove the value if it was the value",
                key=f"{place}.{ours}",
            )
        if value := environment.get(named or f"RATEKEEPER_EXCHANGE_{ours.upper()}"):
            found[theirs] = value
        elif named:
            raise RuleError(f"the environment variable {named} is not set", key=f"{place}.{ours}")
    return found


def _keys_of_file(path: Path, key: str) -> dict[str, str]:
    try:
        if path.stat().st_mode & 0o077:
            raise RuleError(f"{path} holds keys, and other users may use it: chmod 600 {path}", key=key)
        said = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RuleError(f"{path} cannot be read: {error.strerror}", key=key) from None
    except (ValueError, RecursionError):
        raise RuleError(f"{path} is not TOML", key=key) from None  # the parser's own words may repeat what is in it
    wrong = [name for name, value in said.items() if name not in _CREDENTIALS or not isinstance(value, str)]
    if wrong:
        raise RuleError(f"{path} may hold only the texts {', '.join(_CREDENTIALS)}", key=key)
    return {_CREDENTIALS[name]: value for name, value in said.items()}


def connected(account: Account, *, file: SettingsFile | None = None) -> tuple[Any, Gate]:
    """A governed exchange object of the synchronous ccxt, and its gate, which the caller closes.

    Raises:
        RuleError: ccxt knows no such exchange, or a key that it needs is missing.
        ModuleNotFoundError: ccxt is not installed.
    """
    import ccxt

    file = file or read_settings()
    if account.exchange not in ccxt.exchanges:
        raise RuleError(f"ccxt knows no exchange called {account.exchange!r}: use its names, such as binanceusdm")
    keys = _keys(account, os.environ, file.path.parent if file.path else None)
    # What a person asks for needs neither currencies nor margin pairs: they would be calls of their own, with every command.
    options: dict[str, Any] = {"warnOnFetchOpenOrdersWithoutSymbol": False, "fetchMargins": False}
    if account.said.market:
        options["defaultType"] = account.said.market
    exchange = getattr(ccxt, account.exchange)({**keys, "timeout": _PATIENCE, "options": options})
    exchange.has["fetchCurrencies"] = False
    missing = [ours for ours, theirs in _CREDENTIALS.items() if exchange.requiredCredentials.get(theirs)]
    missing = [ours for ours in missing if _CREDENTIALS[ours] not in keys]
    if missing:
        if account.said.keys:
            raise RuleError(f"{account.exchange} needs {', '.join(missing)} too: {account.said.keys} lacks it")
        names = ", ".join(getattr(account.said, ours) or f"RATEKEEPER_EXCHANGE_{ours.upper()}" for ours in missing)
        raise RuleError(f"{account.exchange} needs keys: set {names}, or name a file in [exchanges.NAME] keys")
    if account.said.url:
        _redirect(exchange, account, file)
    # No policies: a person wants to see what is, not what was kept, and decides alone about a second try.
    gate = Gate(name="ratekeeper exchange", max_wait=_WAIT, policies=Policies())
    return govern(exchange, gate=gate, priority=Priority.CRITICAL), gate


def _redirect(exchange: Any, account: Account, file: SettingsFile) -> None:
    """Send its calls to where the configuration says. Whose limits hold there, ``[hosts]`` says as for any program."""
    url = account.said.url.rstrip("/")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
        raise file.error(
            f"$.exchanges.{account.name}.url", "write http://HOST[:PORT] or https, without user and query."
        )
    exchange.urls["api"] = _moved(exchange.urls["api"], url)


def _moved(old: Any, url: str) -> Any:
    if isinstance(old, dict):
        return {name: _moved(each, url) for name, each in old.items()}
    if isinstance(old, str) and old.startswith("https://"):
        return f"{url}/{old.removeprefix('https://').partition('/')[2]}".rstrip("/")
    return old


def without_secrets(text: str, exchange: Any) -> str:
    """A message of ccxt in one line, without the credentials and without queries of URLs, which hold signatures."""
    text = re.sub(r"\?\S*", "?…", " ".join(text.split()))
    held = [getattr(exchange, name, None) for name in _CREDENTIALS.values()]
    secrets = [value for value in held if isinstance(value, str) and len(value) > 1]  # of one letter: all would go
    text = struck(text, secrets, "…")
    for value in secrets:
        text = text.replace(value, "…")  # those too short for `struck`
    return text[:300]
