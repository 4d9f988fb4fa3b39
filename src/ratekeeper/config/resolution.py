"""Resolves the settings of one gate, and who states each: an argument, else the environment, the file, the default."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, TypedDict, Unpack

import msgspec

from ratekeeper.config.file import SettingsFile, home_folder, read_settings
from ratekeeper.config.schema import Settings
from ratekeeper.errors import RuleError
from ratekeeper.policy.policies import Policies
from ratekeeper.pools.address import EgressSettings
from ratekeeper.rules.book import normal_host
from ratekeeper.rules.call import Priority
from ratekeeper.stores.base import Store
from ratekeeper.typed import converted

__all__ = [
    "SETTINGS",
    "UNGOVERNED_ON_ERROR",
    "Arguments",
    "Configuration",
    "Setting",
    "configure",
    "parse_hosts",
    "program_name",
    "switched_on",
]

UNGOVERNED_ON_ERROR: Final = "RATEKEEPER_UNGOVERNED_ON_ERROR"
"""The variable by which a user prefers calls that pass ungoverned to calls that are refused, when something is wrong."""


def switched_on(stated: str | bool) -> bool:
    """Whether a switch is on; as text it is ``1``, ``true``, ``yes`` or ``on``."""
    return stated.strip().lower() in {"1", "true", "yes", "on"} if isinstance(stated, str) else stated


def parse_hosts(hosts: str | Mapping[str, str] | None) -> dict[str, str]:
    """Hosts to treat as a provider: ``"127.0.0.1:9300=binance-usdm,..."`` or a mapping; None: ``$RATEKEEPER_HOSTS``.

    Raises:
        RuleError: an entry is not ``HOST[:PORT]=PROVIDER``.
    """
    if hosts is None:
        hosts = os.environ.get("RATEKEEPER_HOSTS", "")
    if not isinstance(hosts, str):
        return {normal_host(host, ""): provider for host, provider in hosts.items()}
    found = {}
    for entry in filter(None, (part.strip() for part in hosts.split(","))):
        host, equals, provider = entry.partition("=")
        if not (host.strip() and equals and provider.strip()):
            raise RuleError(
                f"{entry!r} is not HOST[:PORT]=PROVIDER. Write for example 127.0.0.1:9300=binance-usdm",
                file="RATEKEEPER_HOSTS",
            )
        found[normal_host(host, "")] = provider.strip()
    return found


def _weight(stated: str | int) -> int:
    if isinstance(stated, str) and (not stated.isdecimal() or int(stated) < 1):
        raise ValueError(f"expected a whole number from 1, got {stated[:40]!r}")
    return max(1, int(stated))


def _seconds(stated: str | float) -> float:
    try:
        seconds = float(stated)
    except ValueError:
        seconds = -1.0
    if isinstance(stated, str) and not seconds >= 0:
        raise ValueError(f"expected a number of seconds from 0, got {stated[:40]!r}")
    return seconds


def _priority(stated: Priority | int | str | None) -> Priority | None:
    return None if stated is None else Priority.of(stated)


def _policies(stated: Policies | str) -> Policies:
    if isinstance(stated, str):
        return Policies.named(stated)
    try:  # what is made in code is held to the same bounds as what stands in a file
        return converted(msgspec.to_builtins(stated), Policies)
    except msgspec.ValidationError as error:
        text, _, place = str(error).partition(" - at `$.")
        raise RuleError(f"Policies({place.rstrip('`')}): {text}") from None


class Setting(NamedTuple):
    """A setting that others than the file may state.

    Attributes:
        variable: the environment variable, or ``""``.
        read: makes the value in force of what somebody states; raises `RuleError` or ValueError.
        means: its meaning, as ``docs/reference/configuration.md`` has it.
        default: in words, where the default of `Settings` does not tell it.
    """

    variable: str
    read: Callable[[Any], object]
    means: str
    default: str = ""


SETTINGS: Final[Mapping[str, Setting]] = {
    "home": Setting("RATEKEEPER_HOME", home_folder, "the state folder", "see below"),
    "store": Setting(
        "RATEKEEPER_STORE",
        lambda stated: stated or "host://",
        "where ledgers live: `host://` (shared by all processes of this machine), `memory://` (this process only) or "
        "`redis://…` (shared by machines)",
        "`host://`",
    ),
    "hosts": Setting(
        "RATEKEEPER_HOSTS",
        parse_hosts,
        "treat these hosts as these providers: `127.0.0.1:9300=binance-usdm,…`",
        "none",
    ),
    "priority": Setting(
        "RATEKEEPER_PRIORITY",
        _priority,
        "class of calls that name none: `critical`, `high`, `normal`, `low`, `background`",
        "the route's own",
    ),
    "egress": Setting(
        "RATEKEEPER_EGRESS",
        lambda stated: stated,
        "name of the address that calls leave from, one of the configuration's or any; programs with the same name share "
        "the limits of that address",
        "`default`",
    ),
    "weight": Setting("RATEKEEPER_WEIGHT", _weight, "this program's share among equals"),
    "max_wait": Setting("", float, "seconds that a call waits which names no `timeout`"),
    "max_block_wait": Setting(
        "RATEKEEPER_MAX_BLOCK_WAIT",
        _seconds,
        "seconds that a call waits for the end of a ban, a pause or another block; one that ends later is an error at once; "
        "`inf`: as long as `max_wait`",
    ),
    "learn": Setting("", bool, "whether adapters ask a provider for its limits before the first call"),
    "policies": Setting(
        "RATEKEEPER_POLICIES",
        _policies,
        "what is done around calls: `all`, `none`, or some of `retry,breaker,cache,batch`",
        "`none`",
    ),
    "ungoverned_on_error": Setting(
        UNGOVERNED_ON_ERROR,
        switched_on,
        "`1`: when something is wrong inside Ratekeeper, calls of unchanged programs pass ungoverned instead of keeping to "
        "a safe share or being refused",
        "off",
    ),
}
"""By the name that arguments of `Gate`, keys of the file and attributes of `Configuration` have."""


class Arguments(TypedDict, total=False):
    """Those arguments of `Gate` that state a setting; None: the argument states nothing."""

    store: str | Store | None
    home: str | os.PathLike[str] | None
    priority: Priority | int | str | None
    weight: int | None
    max_wait: float | None
    max_block_wait: float | None
    learn: bool | None
    policies: Policies | str | None


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """All settings of a gate. `SETTINGS` has the meaning of the attributes that are not listed here.

    Attributes:
        file: the configuration file.
        program: the name under which `Settings.programs` is looked up.
        hosts: hosts to treat as a provider.
        rules: further rule files.
        store: an address, or a store object.
        egress: the addresses; where only one name is stated, without pools.
        priority: None: the route's own.
        sources: who states it, by the name of the setting (``weight``) and by host (``hosts.HOST``): ``argument``, the name
            of an environment variable, ``FILE:LINE`` or ``default``.
    """

    file: SettingsFile
    program: str
    hosts: Mapping[str, str]
    rules: tuple[Path, ...]
    home: Path
    store: str | Store
    egress: EgressSettings
    priority: Priority | None
    weight: int
    max_wait: float
    max_block_wait: float
    learn: bool
    policies: Policies
    ungoverned_on_error: bool
    sources: Mapping[str, str]

    @property
    def settings(self) -> Settings:
        """What the file states."""
        return self.file.settings


def configure(
    config: str | os.PathLike[str] | None = None,
    *,
    name: str | None = None,
    hosts: str | Mapping[str, str] | None = None,
    rules: Iterable[str | os.PathLike[str]] = (),
    **arguments: Unpack[Arguments],
) -> Configuration:
    """What is in force with these arguments (those of `Gate`), in this environment.

    Raises:
        RuleError: the file or a variable is wrong: names it, the line, the key and the remedy.
    """
    file = read_settings(config, arguments.get("home"))
    program = name or program_name().rpartition("[")[0]
    found: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for key, setting in SETTINGS.items():
        if key == "hosts":
            found[key] = _hosts(file, hosts, sources)
            continue
        stated, source = _stated(key, arguments.get(key), file, program)
        try:
            found[key] = setting.read(stated)
        except (RuleError, ValueError) as error:
            if source == setting.variable:
                raise RuleError(str(error), file=source) from None
            if isinstance(error, RuleError) and source not in ("argument", "default"):
                raise file.error(f"$.{key}", error.reason) from None
            raise
        sources[key] = source
    found["egress"] = _egress(found["egress"], file)
    paths = (*map(Path, file.settings.rules), *map(Path, rules))
    return Configuration(file=file, program=program, rules=paths, sources=sources, **found)


def _stated(key: str, argument: object, file: SettingsFile, program: str) -> tuple[object, str]:
    """The value of a setting by the first source, in their order, that states it, and the name of that source."""
    variable, own = SETTINGS[key].variable, f"$.programs.{program}.{key}"
    if argument is not None and argument != "":
        return argument, "argument"
    if variable and (text := os.environ.get(variable, "")):
        return text, variable
    if file.states(own):
        return getattr(file.settings.programs[program], key), file.place(own)
    return getattr(file.settings, key), file.place(f"$.{key}") if file.states(f"$.{key}") else "default"


def _hosts(file: SettingsFile, argument: str | Mapping[str, str] | None, sources: dict[str, str]) -> dict[str, str]:
    """The file's hosts, and over them the argument's or else the environment's."""
    over = parse_hosts(argument)
    stated_over = set(map(normal_host, over))
    found = {}
    for host, name in file.settings.hosts.items():
        if normal_host(host) not in stated_over:
            found[normal_host(host, "")] = name
            sources[f"hosts.{normal_host(host, '')}"] = file.place(f"$.hosts.{host}")
    sources |= dict.fromkeys((f"hosts.{host}" for host in over), "RATEKEEPER_HOSTS" if argument is None else "argument")
    return found | over


def _egress(stated: str | EgressSettings, file: SettingsFile) -> EgressSettings:
    """The addresses. A program whose one address is named has no pools to choose from."""
    if isinstance(stated, EgressSettings):
        return stated
    table = file.settings.egress
    return msgspec.structs.replace(
        table if isinstance(table, EgressSettings) else EgressSettings(), name=stated, pools={}
    )


def program_name() -> str:
    """What to call this process in lists: ``$RATEKEEPER_NAME`` or else the script's name, and the process number."""
    if name := os.environ.get("RATEKEEPER_NAME"):
        return f"{name}[{os.getpid()}]"
    script = Path(sys.argv[0]) if sys.argv and sys.argv[0] not in ("", "-c", "-m") else Path("python")
    if script.name == "__main__.py":  # python -m package
        script = script.parent
    return f"{script.name}[{os.getpid()}]"
