"""The configuration file: where it is found, and on which line it states what.

tomllib tells no lines. But a TOML statement ends where its text parses by itself, so `key_lines` reads the text statement
by statement with tomllib itself: no second grammar that could disagree with it.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import msgspec

from ratekeeper.config.schema import Settings, store_address
from ratekeeper.errors import RuleError, StoreError
from ratekeeper.pools.address import EgressSettings, checked
from ratekeeper.typed import converted

__all__ = ["SettingsFile", "find_settings", "home_folder", "key_lines", "line_of", "read_settings"]

_PAGE: Final = "docs/reference/configuration.md"
_LATER: Final = {"$.alerts": "Ratekeeper sends no alerts yet. Take it out."}
"""Why keys are refused that a later version may know: nobody must rely on what nothing obeys."""


class SettingsFile(NamedTuple):
    """A configuration file as it was read.

    Attributes:
        settings: what it states.
        path: None if there is none.
        lines: line of every key in it, as `key_lines` tells them.
    """

    settings: Settings = Settings()
    path: Path | None = None
    lines: Mapping[str, int] = {}

    def states(self, key: str) -> bool:
        """Whether `key` (``$.weight``) is in the file."""
        return key in self.lines

    def place(self, key: str) -> str:
        """Where the file states `key`: ``ratekeeper.toml:14``."""
        return f"{self.path}:{line_of(self.lines, key)}"

    def error(self, key: str, reason: str) -> RuleError:
        """What is wrong with `key`, with its place."""
        return RuleError(reason, file=str(self.path or ""), key=key, line=line_of(self.lines, key))

    @contextmanager
    def locating(self) -> Iterator[None]:
        """Add the place in the file to errors that name only a key (of pools, of rules)."""
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


def read_settings(
    config: str | os.PathLike[str] | None = None, home: str | os.PathLike[str] | None = None
) -> SettingsFile:
    """Read the configuration file that `find_settings` finds.

    Raises:
        RuleError: it cannot be read, or is wrong: names file, line, key and remedy. Where several things are wrong, the
            first; the others are in its `__notes__`.
    """
    path = find_settings(config, home)
    if path is None:
        return SettingsFile()
    from ratekeeper.rules.files import faults, text_of, toml_of  # for those who have a file

    text = text_of(path, "Check --config or RATEKEEPER_CONFIG")
    raw = toml_of(text, str(path))
    lines = key_lines(text)
    file = SettingsFile(Settings(), path, lines)
    wrong = [file.error(key, _LATER.get(key, reason)) for key, reason in faults(raw, Settings, page=_PAGE)]
    if wrong:
        for other in wrong[1:]:
            wrong[0].add_note(str(other))
        raise wrong[0]
    settings = converted(raw, Settings)
    with file.locating():
        if isinstance(settings.egress, EgressSettings):
            checked(settings.egress)
    try:
        store_address(settings.store)
    except StoreError as error:
        raise file.error("$.store", f"{error}.") from None
    home = settings.home and str(path.parent / Path(settings.home).expanduser())
    rules = [str(path.parent / Path(rule).expanduser()) for rule in settings.rules]
    return SettingsFile(msgspec.structs.replace(settings, home=home, rules=rules), path, lines)


def find_settings(
    config: str | os.PathLike[str] | None = None, home: str | os.PathLike[str] | None = None
) -> Path | None:
    """The configuration file in force: `config`, ``$RATEKEEPER_CONFIG``, else ``ratekeeper.toml`` in the folder `home`,
    ``$RATEKEEPER_HOME`` or, without either, the platform's place for configuration. None if there is no file there.

    The working directory is not looked at: a file that happens to lie there must not change what a program may spend.

    Raises:
        RuleError: the folder may not be entered.
    """
    chosen = config or os.environ.get("RATEKEEPER_CONFIG")
    if chosen:
        return Path(chosen).expanduser()
    folder = home or os.environ.get("RATEKEEPER_HOME")
    file = (Path(folder).expanduser() if folder else _platform_folder("CONFIG")) / "ratekeeper.toml"
    try:
        return file if stat.S_ISREG(file.stat().st_mode) else None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:  # what the file states is unknown, so nothing may be spent by the defaults
        remedy = "Let this user enter the folder, or set RATEKEEPER_HOME to another one"
        raise RuleError(f"cannot be entered: {error.strerror}. {remedy}", file=str(file.parent)) from None


def home_folder(home: str | os.PathLike[str] | None = None) -> Path:
    """The state folder: `home`, ``$RATEKEEPER_HOME``, or the platform's place for state."""
    chosen = home or os.environ.get("RATEKEEPER_HOME")
    return Path(chosen).expanduser() if chosen else _platform_folder("STATE")


def key_lines(text: str) -> dict[str, int]:
    """Where every key and table of valid TOML stands: its path, such as ``$.limits.calls.capacity``, and its line from 1.

    What is written inside one value (an inline table, an array over several lines) has the line on which that statement
    begins. Names are not quoted in paths, whatever they hold.
    """
    import tomllib

    lines: dict[str, int] = {"$": 1}
    arrays: dict[str, int] = {}
    table, pending, first = "$", "", 1
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        pending += line + "\n"
        try:
            found = tomllib.loads(pending)
        except tomllib.TOMLDecodeError:
            continue  # the statement goes on
        if pending.lstrip().startswith("["):
            table = _header(found, first, lines, arrays)
        else:
            _note(found, table, first, lines)
        pending, first = "", number + 1
    return lines


def line_of(lines: Mapping[str, int], path: str) -> int:
    """The line of a path, or of the nearest table around it; 0 if nothing of it is in the file."""
    while path not in lines:
        path = path[: max(path.rfind("."), path.rfind("["), 0)] or "$"
    return 0 if path == "$" else lines[path]


def _header(found: Any, line: int, lines: dict[str, int], arrays: dict[str, int]) -> str:
    """Note a table's header, alone in `found`; return the table's path."""
    path = "$"
    while found:
        if isinstance(found, list):
            arrays[path] = arrays.get(path, -1) + 1
            path, found = f"{path}[{arrays[path]}]", found[0]
        else:
            name, found = next(iter(found.items()))
            path = f"{path}.{name}"
            if path in arrays and isinstance(found, dict):
                path = f"{path}[{arrays[path]}]"
        lines.setdefault(path, line)
    return path


def _note(value: Any, path: str, line: int, lines: dict[str, int]) -> None:
    lines.setdefault(path, line)
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inside:
        _note(each, f"{path}[{key}]" if isinstance(value, list) else f"{path}.{key}", line, lines)


def _platform_folder(kind: Literal["CONFIG", "STATE"]) -> Path:
    if sys.platform == "darwin":
        base = "~/Library/Application Support"
    elif sys.platform == "win32":  # pragma: no cover
        base = os.environ.get("APPDATA" if kind == "CONFIG" else "LOCALAPPDATA", "~")
    else:
        base = os.environ.get(f"XDG_{kind}_HOME") or ("~/.config" if kind == "CONFIG" else "~/.local/state")
    return Path(base).expanduser() / "ratekeeper"
