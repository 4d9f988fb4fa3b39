"""The rule book finds the provider that serves a host. It reads the whole file of a provider when that is first used."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from msgspec.structs import replace

from ratekeeper.errors import RuleError, UnknownProvider

if TYPE_CHECKING:
    from ratekeeper.rules.numbers import Adjustments
    from ratekeeper.rules.provider import Provider
    from ratekeeper.rules.schema import File

__all__ = ["Rulebook", "normal_host"]

DATA = Path(__file__).parent / "data"
_MOST_SERVED = 4096
"""Hosts whose provider is remembered."""
_DEFAULT_PORTS = {"http": "80", "ws": "80", "https": "443", "wss": "443"}
_PLACE = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(?::([0-9]*))?")


@lru_cache(4096)
def normal_host(host: str, scheme: str | None = None) -> str:
    """Return ``name`` or ``name:port`` in the one form in which a host is known: lower case, without a final dot, as IDNA
    writes it, an IPv6 address short and in brackets, without a default port.

    Args:
        host: as somebody writes it.
        scheme: whose default port is left out; None: both 80 and 443; ``""``: no port is.
    """
    place = _PLACE.fullmatch(host.strip())
    name, port = place.groups() if place is not None else (host.strip(), None)
    name = name.lower()
    if ":" in name and name.startswith("[") == name.endswith("]"):
        import ipaddress

        try:
            name = f"[{ipaddress.ip_address(name.strip('[]')).compressed}]"
        except ValueError:
            pass  # no address: nobody has rules for it
    elif not name.isascii():
        name = _as_idna(name)
    name = name.rstrip(".")
    port = (port or "").lstrip("0") or ("0" if port else "")
    default = {"80", "443"} if scheme is None else {_DEFAULT_PORTS.get(scheme, "")}
    return f"{name}:{port}" if port and port not in default else name


def _as_idna(name: str) -> str:
    try:
        import idna  # that of the HTTP clients, where one is installed

        return idna.encode(name, uts46=True).decode()
    except (ImportError, UnicodeError):
        pass
    try:
        return name.encode("idna").decode()
    except UnicodeError:
        return name


class _Entry(NamedTuple):
    """The head of a rule file, which is read before the rest is needed."""

    name: str
    path: Path
    """Empty for one that was added without a file."""
    hosts: tuple[str, ...]
    paths: tuple[str, ...]


class Rulebook:
    """The rule files in force. Make one with `load`; it is safe to share between threads."""

    def __init__(
        self,
        entries: Mapping[str, _Entry],
        files: Mapping[str, File],
        hosts: Mapping[str, str],
        adjustments: Mapping[str, Adjustments],
    ) -> None:
        """Make a book of what `load` has read.

        Args:
            entries, files: by name; files that are not among them are read when they are needed.
            hosts: further hosts, and whose they are.
            adjustments: the user's, by provider.
        """
        self._adjustments = adjustments
        self._entries = dict(entries)
        self._files = dict(files)
        self._lock = threading.RLock()  # a provider asked for by name may have to be added first
        self._providers: dict[tuple[str, str], Provider] = {}
        self._served: dict[str, Provider] = {}  # by host, where the path does not matter
        self._mapped: dict[str, str] = {}
        self._stated: dict[str, str] = {}  # of hosts that were mapped with a default port, with that port
        self._places: dict[str, str] = {}
        self._exact: dict[str, list[tuple[str, str]]] = {}
        self._below: dict[str, list[tuple[str, str]]] = {}
        for entry in self._entries.values():
            self._register(entry)
        for host, name in hosts.items():
            self._entry(name, key="RATEKEEPER_HOSTS")
            self._map(host, name)
        for host, name in sorted(self._mapped.items()):
            self._places[name] = f"{self._places[name]}+{host}" if name in self._places else f"{name}@{host}"

    @classmethod
    def load(
        cls,
        hosts: Mapping[str, str] | None = None,
        *,
        extra: Iterable[str | Path] = (),
        adjustments: Mapping[str, Adjustments] | None = None,
    ) -> Rulebook:
        """The bundled rule files, and `extra` ones, which replace a bundled file of the same name.

        Args:
            hosts: further hosts (``host:port`` or ``host``) to treat as a provider.
            extra: paths of the user's own rule files; they are checked at once.
            adjustments: the user's, by provider.
        """
        entries = {entry.name: entry for entry in map(_entry_of, sorted(DATA.glob("*.toml")))}
        files: dict[str, File] = {}
        for path in map(Path, extra):
            entry = _entry_of(path)
            if entry.name in files:
                raise RuleError(
                    f"provider {entry.name!r} is also defined by {entries[entry.name].path}. Rename one of them",
                    file=str(path),
                    key="$.name",
                )
            files[entry.name] = _checked(path)
            entries[entry.name] = entry
        return cls(entries, files, hosts or {}, adjustments or {})

    def add(self, file: File, at: Iterable[str] = ()) -> None:
        """Add rules that were made at run time, for a provider that has no file. Rules of a name that is there are not added.

        Args:
            file: its name and hosts must not be taken.
            at: hosts (``host:port`` or ``host``) that stand for the real ones: the provider gets the name
                ``NAME@HOST`` and with it ledgers of its own.
        """
        places = sorted(map(normal_host, at))
        name = f"{file.name}@{'+'.join(places)}" if places else file.name
        with self._lock:
            if name in self._entries:
                return
            _check(file, name)
            entry = _Entry(name, Path(), () if places else tuple(file.hosts), tuple(file.paths))
            self._register(entry)
            self._files[name] = file
            # Others read these without the lock: new ones take their place.
            self._entries = {**self._entries, name: entry}
            self._mapped = {**self._mapped, **dict.fromkeys(places, name)}
            self._served = {}

    def names(self) -> list[str]:
        """All providers with rules, sorted."""
        return sorted(self._entries)

    def path(self, name: str) -> Path:
        """The file of a provider."""
        return self._entry(name).path

    def hosts(self, name: str) -> list[str]:
        """The hosts of a provider: the user's first, with the port that the user stated."""
        mapped = sorted(self._stated.get(host, host) for host, provider in self._mapped.items() if provider == name)
        return mapped + list(self._entry(name).hosts)

    def provider(self, name: str) -> Provider:
        """The provider of that name, in the namespace of the hosts that the user mapped to it, if any."""
        return self._provider(name, self._places.get(name, name))

    def for_host(self, host: str, path: str = "") -> Provider | None:
        """The provider that serves `host` (``name`` or ``name:port``); None if no rules name it.

        `path` decides where one host serves several providers. The user's own hosts go before the files'.
        """
        served = self._served
        known = served.get(host)
        if known is not None:
            return known
        found, alone = self._find(normal_host(host), path)
        if found is not None and alone:
            if len(served) >= _MOST_SERVED:
                served.clear()
            served[host] = found
        return found

    def _find(self, host: str, path: str) -> tuple[Provider | None, bool]:
        """The provider that serves `host`, and whether it serves every path there."""
        name, _, port = host.rpartition(":")
        bare = name if name and port.isdecimal() else host
        mapped = self._mapped.get(host) or (self._mapped.get(bare) if bare not in self._stated else None)
        if mapped is not None:
            return self.provider(mapped), True
        candidates = self._exact.get(bare)
        while candidates is None and "." in bare:
            bare = bare.partition(".")[2]
            candidates = self._below.get(bare)
        for prefix, name in candidates or ():
            if path.startswith(prefix) or not path:
                return self._provider(name, name), len(candidates or ()) == 1 and not prefix
        return None, False

    def _provider(self, name: str, namespace: str) -> Provider:
        provider = self._providers.get((name, namespace))
        if provider is None:
            from ratekeeper.rules.numbers import UNADJUSTED
            from ratekeeper.rules.provider import Provider  # with all that calls need

            with self._lock:
                provider = self._providers.get((name, namespace))
                if provider is None:
                    adjustments = self._adjustments.get(name.partition("@")[0], UNADJUSTED)
                    provider = Provider(self._file(name), namespace, adjustments)
                    self._providers[name, namespace] = provider
        return provider

    def _file(self, name: str) -> File:
        entry = self._entry(name)
        if name not in self._files:
            from ratekeeper.rules.files import read

            self._files[name] = read(entry.path)  # a bundled file, which is checked before it is released
        return self._files[name]

    def _entry(self, name: str, key: str = "") -> _Entry:
        entry = self._entries.get(name) or self._derived(name)
        if entry is None:
            raise UnknownProvider(f"no rules for {name!r}. Known are: {', '.join(self.names())}", key=key)
        return entry

    def _derived(self, name: str) -> _Entry | None:
        """An exchange that only ccxt's tables know, asked for by name (``ccxt-bitso``)."""
        from ratekeeper.rules import ccxt_tables  # which needs ccxt only from here on

        if not name.startswith(ccxt_tables.PREFIX) or "@" in name:
            return None
        try:
            file = ccxt_tables.derive(name.removeprefix(ccxt_tables.PREFIX))
        except ImportError:
            raise UnknownProvider(f"{name!r} is derived from the tables of ccxt: pip install ccxt") from None
        self.add(replace(file, hosts=[host for host in file.hosts if self.for_host(host) is None]))
        return self._entries.get(name)

    def _map(self, host: str, name: str) -> None:
        """Map a host of the user's; one without a port stands for every port."""
        place = normal_host(host)
        if self._mapped.get(place, name) != name:
            raise RuleError(
                f"{place} is mapped to {self._mapped[place]!r} and to {name!r}. Remove one of them",
                key="RATEKEEPER_HOSTS",
            )
        if (stated := normal_host(host, "")) == place:
            self._stated.pop(place, None)
        elif place not in self._mapped:
            self._stated[place] = stated
        self._mapped[place] = name

    def _register(self, entry: _Entry) -> None:
        for host in entry.hosts:
            table, host = (self._below, host[2:]) if host.startswith("*.") else (self._exact, host)
            places = table.setdefault(host, [])
            for prefix in entry.paths or ("",):
                other = next((name for known, name in places if known == prefix), None)
                if other is not None:
                    raise RuleError(
                        f"{host}{prefix} belongs to {other!r} already. Remove it from one of the two files",
                        file=str(entry.path),
                        key="$.hosts",
                    )
                places.append((prefix, entry.name))
            places.sort(key=lambda place: -len(place[0]))


def _entry_of(path: Path) -> _Entry:
    from ratekeeper.rules.files import read_head

    head = read_head(path)
    return _Entry(head.name, path, tuple(map(normal_host, head.hosts)), tuple(head.paths))


def _checked(path: Path) -> File:
    from ratekeeper.rules.files import read

    file = read(path)
    _check(file, str(path))
    return file


def _check(file: File, place: str) -> None:
    from ratekeeper.rules.checks import check, refuse_unready

    check(file, place)
    refuse_unready(file, place)
