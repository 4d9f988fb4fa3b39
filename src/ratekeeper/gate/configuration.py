"""What is in force for one gate: arguments before the environment, before the file, before the defaults; and who said it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from ratekeeper.errors import RuleError, UnknownProvider
from ratekeeper.gate import priorities
from ratekeeper.gate.priorities import Assigned, unknown_pattern
from ratekeeper.gate.settings import (
    Settings,
    SettingsFile,
    find_settings,
    home_folder,
    parse_hosts,
    program_name,
    read_settings,
)
from ratekeeper.policy.policies import Policies
from ratekeeper.pools.settings import EgressSettings
from ratekeeper.rules.book import Rulebook
from ratekeeper.rules.call import Priority
from ratekeeper.rules.numbers import Cap
from ratekeeper.rules.times import duration
from ratekeeper.stores.base import Store

__all__ = ["UNGOVERNED_ON_ERROR", "Configuration", "configure", "switched_on"]


@dataclass(frozen=True, slots=True)
class Configuration:
    """All that a gate is told.

    Attributes:
        file: the configuration file.
        program: the name under which `Settings.programs` is looked up.
        home: the state folder.
        store: its address, a store object, or ``""``.
        egress: name of the one address that this program is told to use, or ``""``.
        priority: class of calls that name none; None: the route's own.
        weight, max_wait, max_block_wait, learn, ungoverned_on_error, policies: as in `Settings`.
        hosts: hosts to treat as a provider.
        rules: further rule files.
        sources: who said it, by the name of the setting (``weight``) and by host (``hosts.HOST``): ``argument``, the name
            of an environment variable, ``FILE:LINE`` or ``default``.
    """

    file: SettingsFile
    program: str
    home: Path
    store: str | Store
    egress: str
    priority: Priority | None
    weight: int
    max_wait: float
    max_block_wait: float
    learn: bool
    ungoverned_on_error: bool
    policies: Policies
    hosts: Mapping[str, str]
    rules: tuple[Path, ...]
    sources: Mapping[str, str]

    @property
    def said(self) -> Settings:
        """What the file says."""
        return self.file.said

    def rulebook(self, *, derived: bool = False) -> Rulebook:
        """The rules with all that the configuration wants of them. `derived`: as for `mistakes`.

        Raises:
            RuleError: it wants what is not there; the first such thing.
        """
        book = self.unchecked()
        if self.file.path is not None:
            for error in self.mistakes(book, derived=derived):
                raise error
        return book

    def unchecked(self) -> Rulebook:
        """The same before `mistakes` were looked for."""
        said = self.said
        try:
            return Rulebook.load(
                self.hosts,
                extra=self.rules,
                headroom=_headroom(said),
                tiers=_tiers(said),
                overrides=_overrides(said),
                smooth=frozenset(name for name, provider in said.providers.items() if provider.pace == "smooth"),
                caps=self._caps(),
            )
        except UnknownProvider as error:
            for host, name in self.said.hosts.items():
                if self.hosts[host.lower()] == name and error.reason.startswith(f"no rules for {name!r}"):
                    raise self.file.error(f"$.hosts.{host}", f"{error.reason}.") from None
            raise

    def mistakes(self, book: Rulebook, *, derived: bool = False) -> Iterator[RuleError]:
        """Everything in the file that does not fit the rules in `book`, one error after the other.

        Args:
            derived: judge also what is said of providers that only ccxt's tables know, which takes ccxt.
        """
        from ratekeeper.rules.ccxt_tables import PREFIX  # a large module, for those who configure something

        said, known = self.said, book.names()
        spoken = [
            *((f"$.providers.{name}", name) for name in said.providers),
            *((f"$.headroom.{name}", name) for name in said.headroom),
            *((f"$.priorities.{pattern}", pattern.partition("/")[0].split()[:1]) for pattern in said.priorities),
            *((f"$.egress.pools.{name}", name) for name in _pools(said) if name != "*"),
            *(
                (f"$.programs.{program}.limits.{limit}", limit.partition("/")[0])
                for program, own in said.programs.items()
                for limit in own.limits
            ),
        ]
        wrong: set[str] = set()
        for key, name in spoken:
            name = name if isinstance(name, str) else "".join(name)
            if name.startswith(PREFIX) and not derived:
                continue
            try:
                with self.file.locating():
                    provider = book.provider(name)
                pattern = key.removeprefix("$.priorities.")
                if pattern != key and (reason := unknown_pattern(pattern, provider)):
                    yield self.file.error(key, reason)
                limit = key.partition(".limits.")[2].partition("/")[2] if key.startswith("$.programs.") else None
                if limit is not None and limit not in provider.limits:
                    has = ", ".join(provider.limits)
                    yield self.file.error(key, f"{name} has no limit {limit!r}. Write {name}/LIMIT; it has: {has}.")
            except UnknownProvider:
                yield self.file.error(key, f"no provider is called {name!r}. There are: {', '.join(known)}.")
            except RuleError as error:
                if str(error) not in wrong:
                    yield error
                wrong.add(str(error))
        yield from self._contradictions()

    def assigned(self) -> Assigned | None:
        """The classes that routes have by `Settings.priorities`; None if it says nothing."""
        if not self.said.priorities:
            return None
        return Assigned({pattern: priorities.of(klass) for pattern, klass in self.said.priorities.items()})

    def _caps(self) -> dict[str, dict[str, Cap]]:
        """By provider and limit, how much this program may spend."""
        found: dict[str, dict[str, Cap]] = {}
        own = self.said.programs.get(self.program)
        for name, units in own.limits.items() if own is not None else ():
            provider, _, limit = name.partition("/")
            place = self.file.place(f"$.programs.{self.program}.limits.{name}")
            found.setdefault(provider, {})[limit] = Cap(self.program, units, place)
        return found

    def _contradictions(self) -> Iterator[RuleError]:
        for name, provider in self.said.providers.items():
            for limit, wish in provider.limits.items():
                key = f"$.providers.{name}.limits.{limit}"
                if wish.period is not None and wish.capacity is None:
                    yield self.file.error(f"{key}.period", "a period without a number. Add the capacity.")
                if wish.headroom and limit in self.said.headroom.get(name, {}):
                    yield self.file.error(
                        f"$.headroom.{name}.{limit}", f"line {self._line(f'{key}.headroom')} says it too. Remove one."
                    )

    def _line(self, key: str) -> str:
        return self.file.place(key).rpartition(":")[2]


def configure(
    config: str | os.PathLike[str] | None = None,
    *,
    store: str | Store | None = None,
    home: str | os.PathLike[str] | None = None,
    hosts: str | Mapping[str, str] | None = None,
    rules: Iterable[str | os.PathLike[str]] = (),
    name: str | None = None,
    priority: Priority | int | str | None = None,
    weight: int | None = None,
    max_wait: float | None = None,
    max_block_wait: float | None = None,
    learn: bool | None = None,
    policies: Policies | str | None = None,
) -> Configuration:
    """What is in force with these arguments (those of `Gate`), in this environment.

    Raises:
        RuleError: the file or a variable is wrong: names it, the line, the key and the remedy.
    """
    file = read_settings(find_settings(config, home))
    program = name or program_name().rpartition("[")[0]
    pick = _Picker(file, program)
    klass = pick("priority", priority, "RATEKEEPER_PRIORITY", priorities.of, file.said.priority or "")
    return Configuration(
        file=file,
        program=program,
        home=home_folder(pick("home", home, "RATEKEEPER_HOME", Path, file.said.home)),
        store=pick("store", store, "RATEKEEPER_STORE", str, file.said.store),
        egress=pick("egress", None, "RATEKEEPER_EGRESS", str, ""),
        priority=None if klass == "" else priorities.of(klass),
        weight=max(1, pick("weight", weight, "RATEKEEPER_WEIGHT", _weight, file.said.weight)),
        max_wait=pick("max_wait", max_wait, "", float, file.said.max_wait),
        max_block_wait=pick(
            "max_block_wait", max_block_wait, "RATEKEEPER_MAX_BLOCK_WAIT", _seconds, file.said.max_block_wait
        ),
        learn=pick("learn", learn, "", bool, file.said.learn),
        ungoverned_on_error=pick(
            "ungoverned_on_error", None, UNGOVERNED_ON_ERROR, switched_on, file.said.ungoverned_on_error
        ),
        policies=_policies(pick("policies", policies, "RATEKEEPER_POLICIES", Policies.named, file.said.policies), file),
        hosts=pick.hosts(hosts),
        rules=(*map(Path, file.said.rules), *map(Path, rules)),
        sources=pick.sources,
    )


UNGOVERNED_ON_ERROR = "RATEKEEPER_UNGOVERNED_ON_ERROR"
"""The variable by which a user prefers calls that pass ungoverned to calls that are refused, when something is wrong."""


def switched_on(text: str) -> bool:
    """Whether a variable that is a switch says yes."""
    return text.strip().lower() in {"1", "true", "yes", "on"}


@dataclass(slots=True)
class _Picker:
    """Picks who is heard, and writes down who it was."""

    file: SettingsFile
    program: str
    sources: dict[str, str] = field(default_factory=dict)

    def __call__(self, key: str, argument: object, variable: str, read: Callable[[str], object], said: object) -> Any:
        """One setting. `read` makes it of the variable's text; `said`: what the file says, or the default."""
        own = f"$.programs.{self.program}.{key}"
        value: object
        if argument is not None and argument != "":
            value, source = argument, "argument"
        elif variable and (text := os.environ.get(variable, "")):
            try:
                value, source = read(text), variable
            except (RuleError, ValueError) as error:
                raise RuleError(str(error), file=variable) from None
        elif self.file.says(own):
            value, source = getattr(self.file.said.programs[self.program], key), self.file.place(own)
        else:
            value, source = said, self.file.place(f"$.{key}") if self.file.says(f"$.{key}") else "default"
        self.sources[key] = source
        return value

    def hosts(self, argument: str | Mapping[str, str] | None) -> dict[str, str]:
        """The file's hosts, and over them the arguments' or else the environment's."""
        found = {host.lower(): name for host, name in self.file.said.hosts.items()}
        self.sources |= {f"hosts.{host.lower()}": self.file.place(f"$.hosts.{host}") for host in self.file.said.hosts}
        over = parse_hosts(argument)
        source = "RATEKEEPER_HOSTS" if argument is None else "argument"
        self.sources |= {f"hosts.{host}": source for host in over}
        return found | over


def _policies(said: Policies | str, file: SettingsFile) -> Policies:
    if isinstance(said, Policies):
        try:  # what is made in code is held to the same bounds as what stands in a file
            return msgspec.convert(msgspec.to_builtins(said), Policies)
        except msgspec.ValidationError as error:
            text, _, place = str(error).partition(" - at `$.")
            raise RuleError(f"Policies({place.rstrip('`')}): {text}") from None
    try:
        return Policies.named(said)
    except RuleError as error:
        raise file.error("$.policies", error.reason) if file.says("$.policies") else error from None


def _weight(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"expected a whole number from 1, got {text[:40]!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise ValueError(f"expected a number of seconds from 0, got {text[:40]!r}")
    return seconds


def _pools(said: Settings) -> Iterable[str]:
    return said.egress.pools if isinstance(said.egress, EgressSettings) else ()


def _headroom(said: Settings) -> dict[str, dict[str, int | str]]:
    found: dict[str, dict[str, int | str]] = {}
    for name, provider in said.providers.items():
        own = found.setdefault(name, {"*": provider.headroom} if provider.headroom else {})
        own.update({limit: wish.headroom for limit, wish in provider.limits.items() if wish.headroom})
    for name, limits in said.headroom.items():
        found.setdefault(name, {}).update(limits)
    return found


def _tiers(said: Settings) -> dict[str, dict[str, str]]:
    return {
        name: {"*": provider.tier} if isinstance(provider.tier, str) else provider.tier
        for name, provider in said.providers.items()
    }


def _overrides(said: Settings) -> dict[str, dict[str, tuple[int, int]]]:
    return {
        name: {
            limit: (wish.capacity, duration(wish.period) if wish.period else 0)
            for limit, wish in provider.limits.items()
            if wish.capacity is not None
        }
        for name, provider in said.providers.items()
    }
