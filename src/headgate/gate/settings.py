"""Where a gate finds its store, its hosts and its name: arguments first, then the environment, then defaults."""

from __future__ import annotations

import os
import secrets
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from headgate.errors import RuleError, StoreError, StoreUnavailable

__all__ = ["Settings", "home_folder", "load_settings", "open_store_name", "parse_hosts", "program_name", "secret_of"]


class Settings(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A configuration file. What it leaves out is as without it; the environment and arguments go before it.

    Attributes:
        home, store, egress, priority: as the environment variables of those names.
        weight: this process's share in fairness among equals.
        max_wait: seconds a call waits that names no timeout.
        learn: whether adapters ask a provider for its limits before the first call.
        rules: further rule files; relative paths are meant from the configuration file.
        hosts: hosts to treat as a provider.
        headroom: by provider and limit, what to leave unused: units, or per cent as in ``"10%"``.
    """

    home: str = ""
    store: str = ""
    egress: str = ""
    priority: str = ""
    weight: int = 1
    max_wait: float = 900.0
    learn: bool = True
    rules: list[str] = []
    hosts: dict[str, str] = {}
    headroom: dict[str, dict[str, int | str]] = {}


def load_settings(path: str | os.PathLike[str] | None = None) -> Settings:
    """The configuration file `path`, or ``$HEADGATE_CONFIG``, or none.

    Raises:
        RuleError: it cannot be read, or is wrong: names file and key.
    """
    chosen = path or os.environ.get("HEADGATE_CONFIG")
    if not chosen:
        return Settings()
    file = Path(chosen).expanduser()
    try:
        made = msgspec.convert(tomllib.loads(file.read_text(encoding="utf-8")), Settings)
    except OSError as error:
        raise RuleError(
            f"cannot be read: {error.strerror}. Check --config or HEADGATE_CONFIG", file=str(file)
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise RuleError(f"is not TOML: {error}", file=str(file)) from None
    except msgspec.ValidationError as error:
        text, _, key = str(error).partition(" - at ")
        raise RuleError(f"{text}. See docs/reference/configuration.md", file=str(file), key=key.strip("`")) from None
    return msgspec.structs.replace(made, rules=[str(file.parent / rule) for rule in made.rules])


def home_folder(home: str | os.PathLike[str] | None = None) -> Path:
    """The state folder: `home`, ``$HEADGATE_HOME``, or the platform's place for state."""
    chosen = home or os.environ.get("HEADGATE_HOME")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path("~/Library/Application Support/headgate").expanduser()
    if sys.platform == "win32":  # pragma: no cover
        return Path(os.environ.get("LOCALAPPDATA", "~")).expanduser() / "headgate"
    return Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "headgate"


def parse_hosts(hosts: str | Mapping[str, str] | None) -> dict[str, str]:
    """Hosts to treat as a provider: ``"127.0.0.1:9300=binance-usdm,..."`` or a mapping; None: ``$HEADGATE_HOSTS``.

    Raises:
        RuleError: an entry is not ``HOST[:PORT]=PROVIDER``.
    """
    if hosts is None:
        hosts = os.environ.get("HEADGATE_HOSTS", "")
    if not isinstance(hosts, str):
        return {host.lower(): provider for host, provider in hosts.items()}
    found = {}
    for entry in filter(None, (part.strip() for part in hosts.split(","))):
        host, equals, provider = entry.partition("=")
        if not (host.strip() and equals and provider.strip()):
            raise RuleError(
                f"{entry!r} is not HOST[:PORT]=PROVIDER. Write for example 127.0.0.1:9300=binance-usdm",
                file="HEADGATE_HOSTS",
            )
        found[host.strip().lower()] = provider.strip()
    return found


def program_name() -> str:
    """What to call this process in lists: the script's name and the process number."""
    script = Path(sys.argv[0]).name if sys.argv and sys.argv[0] not in ("", "-c", "-m") else "python"
    return f"{script}[{os.getpid()}]"


def secret_of(home: Path) -> bytes:
    """The key under which API keys are digested, the same for all processes of a folder; made on first use.

    Raises:
        StoreError: the folder can be neither read nor written.
    """
    path = home / "secret"
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = home / f"secret.{os.getpid()}"
        if not path.exists():
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
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


def open_store_name(store: str | None) -> str:
    """The store's address; ``host://`` if none is named.

    Raises:
        StoreError: no such kind of store.
    """
    name = store or "host://"
    if name.split("://")[0] not in ("host", "memory"):
        raise StoreError(f"no store is called {name!r}: use host:// or memory://")
    return name
