"""The configuration file: what it may say, where it is found, and on which line it says what."""

from __future__ import annotations

import os
import re
import secrets
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from ratekeeper.errors import RuleError, StoreError, StoreUnavailable
from ratekeeper.gate.by_hand import ExchangeSettings, TelegramSettings
from ratekeeper.policy.policies import Policies
from ratekeeper.pools.settings import EgressSettings, checked
from ratekeeper.rules.files import faults, key_lines, line_of
from ratekeeper.stores.redis.address import is_address, parse_address

__all__ = [
    "AlertSettings",
    "LimitSettings",
    "ProgramSettings",
    "ProviderSettings",
    "Settings",
    "SettingsFile",
    "find_settings",
    "home_folder",
    "load_settings",
    "open_store_name",
    "parse_hosts",
    "program_name",
    "read_settings",
    "secret_of",
]

_PERCENT = r"^\d+(\.\d+)?%$"
Whole = Annotated[int, Meta(ge=1, title="a whole number from 1", description="Write a whole number of units.")]
Weight = Annotated[int, Meta(ge=1, title="a whole number from 1", description="Others have 1.")]
Seconds = Annotated[float, Meta(ge=0, title="a number of seconds from 0", description="Write for example 120.")]
Percent = Annotated[str, Meta(pattern=_PERCENT, title="per cent", description="Write for example '10%'.")]
Headroom = Annotated[
    Annotated[int, Meta(ge=0)] | Annotated[str, Meta(pattern=_PERCENT)],
    Meta(title="units or per cent", description="Write for example 20 or '10%'."),
]
Span = Annotated[
    str,
    Meta(
        pattern=r"^(\d+(\.\d+)?(ms|[smhdw]))+$",
        title="a duration",
        description="Write for example '10s', '1m' or '1h30m'.",
    ),
]
Share = Annotated[
    float, Meta(gt=0, le=1, title="a share above 0, at most 1", description="Write for example 0.9 for 90 %.")
]
Class = Literal["critical", "high", "normal", "low", "background"]


class LimitSettings(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One limit of a provider, as the user wants it.

    Attributes:
        capacity: a number of the user's own, in units; what the provider states goes before it only if it is lower.
        period: the window of that number, such as ``1m``; the rule file's if left out.
        headroom: what to leave unused: units, or per cent as in ``"10%"``.
    """

    capacity: Whole | None = None
    period: Span | None = None
    headroom: Headroom = 0


class ProviderSettings(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One provider.

    Attributes:
        tier: the customer's tier; or by limit, where they differ.
        headroom: what to leave unused of every limit, in per cent.
        limits: by name.
        pace: ``"smooth"`` spreads the budget of each window evenly over it; ``"burst"`` spends it as calls come.
    """

    tier: str | dict[str, str] = {}
    headroom: Percent = ""
    limits: dict[str, LimitSettings] = {}
    pace: Literal["burst", "smooth"] = "burst"


class ProgramSettings(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One program, by the name that ``ratekeeper status`` shows: `weight`, `priority` and `max_block_wait` as below, for it
    alone.

    Attributes:
        limits: by ``PROVIDER/LIMIT``, how many units of it all processes of that name may spend together in each of its
            windows.
    """

    weight: Weight | None = None
    priority: Class | None = None
    max_block_wait: Seconds | None = None
    limits: dict[str, Whole] = {}


class AlertSettings(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Reserved: accepted, checked, and not used yet.

    Attributes:
        at: shares of a limit at which to alert.
    """

    at: list[Share] = []


class Settings(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A configuration file. What it leaves out is as without it; the environment and arguments go before it.

    Attributes:
        home, store, priority: as the environment variables of those names; a relative `home` is meant from the file.
        egress: name of the address that calls leave from, or all about several of them.
        weight: a process's share in fairness among equals.
        max_wait: seconds a call waits that names no timeout.
        max_block_wait: seconds such a call waits for the end of a block (a ban, a pause); one that ends later refuses it.
        learn: whether adapters ask a provider for its limits before the first call.
        ungoverned_on_error: whether a call may pass ungoverned when something goes wrong inside Ratekeeper; else it keeps to
        a
            safe share, or is refused.
        rules: further rule files; relative paths are meant from the configuration file.
        hosts: hosts to treat as a provider.
        providers: by name.
        priorities: class of calls that name none, by what they are: ``PROVIDER``, ``PROVIDER/class:CLASS`` or
            ``PROVIDER METHOD PATH``.
        programs: by name.
        alerts: reserved.
        policies: what is done around calls: ``"all"``, some names (``"retry,cache"``), or a table with settings.
        exchanges: accounts for ``ratekeeper exchange``, by a name of the user's.
        telegram: the chats that ``ratekeeper telegram`` obeys.
        headroom: by provider and limit; the older way of ``providers.NAME.limits.LIMIT.headroom``.
    """

    home: str = ""
    store: str = ""
    egress: str | EgressSettings = ""
    priority: Class | None = None
    weight: Weight = 1
    max_wait: Seconds = 900.0
    max_block_wait: Seconds = 30.0
    learn: bool = True
    ungoverned_on_error: bool = False
    rules: list[str] = []
    hosts: dict[str, str] = {}
    providers: dict[str, ProviderSettings] = {}
    priorities: dict[str, Class] = {}
    programs: dict[str, ProgramSettings] = {}
    alerts: AlertSettings = AlertSettings()
    policies: str | Policies = ""
    exchanges: dict[str, ExchangeSettings] = {}
    telegram: TelegramSettings = TelegramSettings()
    headroom: dict[str, dict[str, Headroom]] = {}


@dataclass(frozen=True, slots=True)
class SettingsFile:
    """A configuration file as it was read.

    Attributes:
        said: what it says.
        path: None if there is none.
        lines: line of every key in it, as `ratekeeper.rules.files.key_lines` tells them.
    """

    said: Settings = field(default_factory=Settings)
    path: Path | None = None
    lines: Mapping[str, int] = field(default_factory=dict)

    def says(self, key: str) -> bool:
        """Whether `key` (``$.weight``) is in the file."""
        return key in self.lines

    def place(self, key: str) -> str:
        """Where the file says `key`: ``ratekeeper.toml:14``."""
        return f"{self.path}:{line_of(self.lines, key)}"

    def error(self, key: str, reason: str) -> RuleError:
        """What is wrong with `key`, with its place."""
        return RuleError(reason, file=str(self.path or ""), key=key, line=line_of(self.lines, key))

    @contextmanager
    def locating(self) -> Iterator[None]:
        """Gives errors of those who judge by key only (pools, rules) the place in the file."""
        try:
            yield
        except RuleError as error:
            keys = [self._own(error.key)] if error.key.startswith("$.") and not error.file else []
            if not keys or not line_of(self.lines, keys[0]):
                raise
            raise self.error(keys[0], error.reason) from None

    def _own(self, key: str) -> str:
        """The file's key for what the rules call ``$.tiers.NAME.LIMIT`` and so on."""
        part, _, rest = key.removeprefix("$.").partition(".")
        provider, _, limit = rest.partition(".")
        written = {
            "tiers": [f"tier.{limit}", "tier"],
            "limits": [f"limits.{limit}"],
            "headroom": [f"limits.{limit}.headroom", "headroom"],
        }
        names = [f"$.providers.{provider}.{name}" for name in written.get(part, [])]
        return next((name for name in [key, *names] if name in self.lines), (names or [key])[0])


def find_settings(
    config: str | os.PathLike[str] | None = None, home: str | os.PathLike[str] | None = None
) -> Path | None:
    """The configuration file in force: `config`, ``$RATEKEEPER_CONFIG``, else ``ratekeeper.toml`` in the folder `home`,
    ``$RATEKEEPER_HOME`` or, without either, the platform's place for configuration. None if there is no file there.

    The working directory is not looked at: a file that happens to lie there must not change what a program may spend.
    """
    chosen = config or os.environ.get("RATEKEEPER_CONFIG")
    if chosen:
        return Path(chosen).expanduser()
    folder = home or os.environ.get("RATEKEEPER_HOME")
    file = (Path(folder).expanduser() if folder else _config_folder()) / "ratekeeper.toml"
    return file if file.is_file() else None


def _config_folder() -> Path:
    if sys.platform == "darwin":
        return Path("~/Library/Application Support/ratekeeper").expanduser()
    if sys.platform == "win32":  # pragma: no cover
        return Path(os.environ.get("APPDATA", "~")).expanduser() / "ratekeeper"
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "ratekeeper"


def load_settings(config: str | os.PathLike[str] | None = None) -> Settings:
    """What the configuration file in force says. Raises as `read_settings` does."""
    return read_settings(find_settings(config)).said


def read_settings(path: Path | None) -> SettingsFile:
    """Read a configuration file; None: there is none.

    Raises:
        RuleError: it cannot be read, or is wrong: names file, line, key and remedy. Where several things are wrong, the
            first; the others are in its `__notes__`.
    """
    if path is None:
        return SettingsFile()
    try:
        text = path.read_text(encoding="utf-8")
        raw = tomllib.loads(text)
    except OSError as error:
        raise RuleError(
            f"cannot be read: {error.strerror}. Check --config or RATEKEEPER_CONFIG", file=str(path)
        ) from None
    except UnicodeDecodeError:
        raise RuleError("cannot be read: it is not UTF-8. Save it as UTF-8", file=str(path)) from None
    except tomllib.TOMLDecodeError as error:
        told = re.search(r"\(at line (\d+), column \d+\)", str(error))
        line = int(told[1]) if told else text.count("\n") + 1
        raise RuleError(f"is not TOML: {error}. Correct that line", file=str(path), line=line) from None
    lines = key_lines(text)
    file = SettingsFile(Settings(), path, lines)
    wrong = [file.error(key, reason) for key, reason in faults(raw, Settings)]
    if wrong:
        for other in wrong[1:]:
            wrong[0].add_note(str(other))
        raise wrong[0]
    said = msgspec.convert(raw, Settings)
    with file.locating():
        if isinstance(said.egress, EgressSettings):
            checked(said.egress)
    if said.store:
        try:
            open_store_name(said.store)
        except StoreError as error:
            raise file.error("$.store", f"{error}.") from None
    home = said.home and str(path.parent / Path(said.home).expanduser())
    rules = [str(path.parent / Path(rule).expanduser()) for rule in said.rules]
    return SettingsFile(msgspec.structs.replace(said, home=home, rules=rules), path, lines)


def home_folder(home: str | os.PathLike[str] | None = None) -> Path:
    """The state folder: `home`, ``$RATEKEEPER_HOME``, or the platform's place for state."""
    chosen = home or os.environ.get("RATEKEEPER_HOME")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path("~/Library/Application Support/ratekeeper").expanduser()
    if sys.platform == "win32":  # pragma: no cover
        return Path(os.environ.get("LOCALAPPDATA", "~")).expanduser() / "ratekeeper"
    return Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "ratekeeper"


def parse_hosts(hosts: str | Mapping[str, str] | None) -> dict[str, str]:
    """Hosts to treat as a provider: ``"127.0.0.1:9300=binance-usdm,..."`` or a mapping; None: ``$RATEKEEPER_HOSTS``.

    Raises:
        RuleError: an entry is not ``HOST[:PORT]=PROVIDER``.
    """
    if hosts is None:
        hosts = os.environ.get("RATEKEEPER_HOSTS", "")
    if not isinstance(hosts, str):
        return {host.lower(): provider for host, provider in hosts.items()}
    found = {}
    for entry in filter(None, (part.strip() for part in hosts.split(","))):
        host, equals, provider = entry.partition("=")
        if not (host.strip() and equals and provider.strip()):
            raise RuleError(
                f"{entry!r} is not HOST[:PORT]=PROVIDER. Write for example 127.0.0.1:9300=binance-usdm",
                file="RATEKEEPER_HOSTS",
            )
        found[host.strip().lower()] = provider.strip()
    return found


def program_name() -> str:
    """What to call this process in lists: ``$RATEKEEPER_NAME`` or else the script's name, and the process number."""
    if name := os.environ.get("RATEKEEPER_NAME"):
        return f"{name}[{os.getpid()}]"
    script = Path(sys.argv[0]) if sys.argv and sys.argv[0] not in ("", "-c", "-m") else Path("python")
    if script.name == "__main__.py":  # python -m package
        script = script.parent
    return f"{script.name}[{os.getpid()}]"


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
    if name.split("://")[0] not in ("host", "memory") and not is_address(name):
        shown = name.partition("://")[0] if "@" in name else name
        raise StoreError(f"no store is called {shown!r}: use host://, memory:// or redis://HOST:PORT")
    if is_address(name):
        parse_address(name)
    return name
